"""The loop that takes a pack of runs from configs to records."""

import sys

if sys.platform == "win32":
    raise SystemExit("error: training needs Linux or macOS: signals, locks and pipes are theirs; on Windows use WSL")
