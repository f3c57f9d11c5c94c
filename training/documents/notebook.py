"""Notebooks without a kernel: ``python -m training.documents.notebook NOTEBOOK`` runs one and keeps what it shows.

A cell's output is what it prints and the figures that it leaves open, as in Jupyter.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    found: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return found


def executed(notebook: Notebook) -> Notebook:
    """The notebook with the outputs of its code cells anew, which run one after the other in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, number = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell = {**cell, "execution_count": number, "outputs": _run("".join(cell["source"]), namespace)}
        cells.append(cell)
    return {**notebook, "cells": cells}


def _run(source: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, "<cell>", "exec"), namespace)  # noqa: S102
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    pyplot.close("all")
    return outputs


def printed(notebook: Notebook) -> str:
    """All that its cells print."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def markdown(notebook: Notebook) -> str:
    """The notebook as a page, figures within it."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append("```text\n{}\n```".format("".join(output["text"]).rstrip()))
            else:
                parts.append(
                    f'<img alt="What the cell draws" src="data:image/png;base64,{output["data"]["image/png"]}">'
                )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(json.dumps(executed(read(place)), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
