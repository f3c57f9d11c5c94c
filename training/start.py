"""``python training/start.py -m MODULE ARGUMENTS``: ``python -m`` with the folder of this code in first place.

Options of the interpreter may stand before ``-m``; they are left out.
"""

import os
import sys


def main() -> None:
    """Set the path before anything is imported that is not built in or was there already."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path = [os.path.dirname(here), *(place for place in sys.path if place not in ("", here))]
    import runpy

    word = sys.argv.index("-m") + 1
    module = sys.argv[word]
    sys.argv[: word + 1] = ["-m"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
