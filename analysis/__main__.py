"""``python -m analysis runs/SWEEP``: tables, figures and statuses of a sweep."""

from analysis import output
from analysis.command import main

if __name__ == "__main__":
    output.run(main)
