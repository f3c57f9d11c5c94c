"""What stands in the tabs of the page: pairs, all tasks together, pictures, measured gradients; and how to train it
again."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.figures.curves import IMAGES_SHOWN, SHOWN, read_images
from analysis.papers import leaderboard
from analysis.records import load_basket
from analysis.statistics.comparisons import across_tasks, pairs
from analysis.statistics.summary import COMPARISON, select
from analysis.statistics.variance import panels
from analysis.tables import comparisons, trained
from analysis.tables import variance as variance_tables
from analysis.tables.table import PLAIN, Table

Key = tuple[str, str]
ROOT = Path(__file__).parents[2]


def pairs_of(runs: pd.DataFrame) -> dict[Key, dict[str, Any]]:
    """Of each task and data set the pairs of its best estimator; ``runs`` as of ``final_rows``."""
    return {key: _table(found) for key, found in comparisons.best_against_the_others(pairs(select(runs))).items()}


def together(runs: pd.DataFrame) -> dict[str, Any] | None:
    """All tasks in one table; ``None`` for fewer than two."""
    scores = across_tasks(select(runs))
    return None if scores.empty else _table(comparisons.together(scores))


def in_words(setting: str, names: Mapping[str, str]) -> str:
    """``"optimizer.lr=0.1"`` as ``"learning rate 0.1"``."""
    words = [part.partition("=") for part in setting.split(", ")]
    return ", ".join(f"{names.get(name, name)} {value}" if value else name for name, _, value in words)


def variance(frame: pd.DataFrame) -> dict[Key, list[dict[str, Any]]]:
    """The tables of gradients that runs measured with a basket."""
    if "basket" not in frame:
        return {}
    paths = frame.loc[frame["basket"].astype(object).fillna("none") != "none", "path"].unique()
    measured = [load_basket(path) for path in paths]
    found: dict[Key, list[dict[str, Any]]] = {}
    for panel in panels(pd.concat(measured, ignore_index=True)) if measured else []:
        found.setdefault((panel.task, panel.data), []).append(_table(*variance_tables.tables([panel])))
    return found


def committed() -> dict[Key, list[dict[str, Any]]]:
    """The leaderboard's tables of each task and data set; none where the code is without its documents."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for table in leaderboard.boards(ROOT / leaderboard.RESULTS):
        task, data = table.numbers[COMPARISON].iloc[0]  # type: ignore[index]
        found.setdefault((task, data), []).append(_table(table))
    return found


def images(group: pd.DataFrame) -> list[dict[str, Any]]:
    """Per estimator the pictures of its first finished seed: a strip of each of ``SHOWN``, as data URIs of PNG.

    ``group``: the chosen runs of one task and data set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # python -m analysis names what it cannot read
        found = read_images(group)
    return [
        {"estimator": name, "strips": {kind: _strip(arrays[kind][:IMAGES_SHOWN]) for kind in SHOWN}}
        for name, arrays in found.items()
    ]


def reproduce(rows: pd.DataFrame) -> dict[str, Any]:
    """Commands, commit, versions and settings of the chosen rows of one comparison's summary."""
    paths = [path for own in rows["paths"] for path in own]
    commits = [str(commit) for commit in rows["commit"].dropna().unique()] if "commit" in rows else []
    return {
        "commands": trained.commands(rows),
        "commits": commits,
        "versions": trained.versions(paths),
        "sentences": trained.whole(rows),
    }


def _table(table: Table) -> dict[str, Any]:
    header, *rows = table.cells(PLAIN)
    notes = [*table.caption, *table.notes]
    return {"title": table.title, "header": header, "rows": rows, "notes": notes, "labels": table.labels}


def _strip(images: NDArray[Any]) -> str:
    """Pictures ``[n, height, width]`` in [0, 1] side by side, with a gap, as the data URI of a PNG."""
    from PIL import Image

    n, height, width = images.shape
    gap = max(1, width // 14)
    strip = np.zeros((height, n * (width + gap) - gap, 2), dtype=np.uint8)
    for place, image in enumerate(images):
        here = slice(place * (width + gap), place * (width + gap) + width)
        strip[:, here, 0] = (255 * np.clip(np.nan_to_num(image), 0, 1)).round()
        strip[:, here, 1] = 255
    file = io.BytesIO()
    Image.fromarray(strip, "LA").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
