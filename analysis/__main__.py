"""``python -m analysis runs/SWEEP``: tables, figures and statuses of a sweep."""

import sys

from analysis.command import main

if __name__ == "__main__":
    sys.exit(main())
