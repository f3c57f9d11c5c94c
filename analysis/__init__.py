"""Records -> DataFrame -> statistics -> tables, figures, report. Imports neither torch nor tasks."""

import os
import sys

if sys.argv[:1] == ["-m"]:  # a command, python -m analysis: its figures are files
    # matplotlib ends the command for a notebook's backend that is inherited and not installed, and for a broken file.
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
