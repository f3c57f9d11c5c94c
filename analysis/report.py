"""``python -m analysis.report runs/SWEEP``: curves, tables, runs and a Gumbel-Softmax to play with, as one HTML file.

The file needs no network and no other file; its parts are in ``analysis/page/``.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.command import DIFFERENT, NOTHING, OK, add_runs, read, refuse, unwritable
from analysis.output import Parser, run
from analysis.page.data import page_data
from analysis.records.files import write_atomically
from analysis.statistics.summary import ProtocolsDiffer

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("elements.js", "view.js", "rows.js", "curves.js", "tables.js", "tabs.js", "gumbel.js", "main.js")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 0, 1 if protocols differ, or 2 if there is no run to show."""
    parser = Parser(
        prog="python -m analysis.report",
        description="An interactive page of a sweep, one HTML file; no run is changed.",
    )
    add_runs(parser)
    parser.add_argument("--output", type=Path, help="the file to write (default: PATH/report/report.html)")
    options = parser.parse_args(arguments)
    try:
        frame = read(options.path, options.where, options.tune, options.compare)
        output = options.output or options.path / "report" / "report.html"
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page(frame, output.parent).encode())
    except ProtocolsDiffer as error:
        return refuse(str(error), DIFFERENT)
    except ValueError as error:
        return refuse(str(error), NOTHING)
    except OSError as error:
        return refuse(unwritable(error), NOTHING)
    print(f"wrote {output}")
    return OK


def page(frame: pd.DataFrame, folder: Path) -> str:
    """The page of the long ``frame``, with links to the runs relative to ``folder``."""
    from plotly.offline import get_plotlyjs

    parts = {
        "title": html.escape(" and ".join(sorted(set(frame["sweep"])))),
        "style": (PAGE / "page.css").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "script": "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "data": _embedded(page_data(frame, folder)),
        "noise": _embedded(json.loads((PAGE / "gumbel_noise.json").read_text(encoding="utf-8"))),
    }
    # In one pass: what a part says is never taken for a place of another part.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], (PAGE / "page.html").read_text(encoding="utf-8"))


def _embedded(content: Any) -> str:
    """JSON in ASCII that no text inside can end (``</script>``) or turn into a comment (``<!--``)."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


if __name__ == "__main__":
    run(main)
