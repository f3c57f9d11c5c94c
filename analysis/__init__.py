"""Records -> DataFrame -> statistics -> tables, figures, report. Imports neither torch nor tasks."""
