"""Numbers as text: for the screen, Markdown, LaTeX, CSV."""
