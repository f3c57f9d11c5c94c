"""Tables in the layout of a paper: rows and columns by fields of the config, ours above the published number.

``layouts.json`` declares them: a title, the ``rows`` and the ``columns``, each a mapping of fields of the runs (named
as by :func:`analysis.records.load`) to the values that the table has and their labels (empty: not shown); of several
fields, every combination. The field ``metric`` stands for what is reported: ``bound`` (the negative test bound) or the
name of another test metric, of which more is better. ``compare`` says within what numbers are compared: ``row`` or
``column``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.papers import own
from analysis.papers.published import differences, published
from analysis.statistics.intervals import interval
from analysis.statistics.settings import as_text
from analysis.statistics.summary import final_rows, select, summarise_runs
from analysis.tables import table as tables
from analysis.tables import trained
from analysis.tables.summary import protocol, signed, ties
from analysis.tables.table import NONE, Cell, Marked, Markup, Table

FILE = Path(__file__).with_name("layouts.json")
LINES = ("ours", "interval", "published", "difference", "seeds")
COLUMNS = [
    *("row", "column", "estimator", "task", "data", "reported", "mean", "low", "high", "interval", "n"),
    *("diverged", "failed", "unfinished", "mark", "setting", "settings", "raced", "published", "difference"),
    *("published_source", "published_differences", "published_note"),
]


@dataclass(frozen=True)
class Place:
    """A row or a column: its label and the values, as text, that the fields of a run have in it."""

    label: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """One table of a paper."""

    name: str
    title: str
    rows: tuple[Place, ...]
    columns: tuple[Place, ...]
    compare: str


@cache
def layouts() -> Mapping[str, Layout]:
    """All layouts by their names, which are those of the experiments that train them."""
    found = {}
    for name, entry in json.loads(FILE.read_text(encoding="utf-8")).items():
        if entry["compare"] not in ("row", "column"):
            raise ValueError(f"{FILE.name}: compare of {name} must be row or column, not {entry['compare']!r}")
        places = (_places(entry["rows"]), _places(entry["columns"]))
        found[name] = Layout(name, entry["title"], *places, entry["compare"])
    return found


def _places(fields: Mapping[str, Mapping[str, str]]) -> tuple[Place, ...]:
    combinations = product(*(labels.items() for labels in fields.values()))
    return tuple(
        Place(
            ", ".join(label for _, label in chosen if label),
            dict(zip(fields, (value for value, _ in chosen), strict=True)),
        )
        for chosen in combinations
    )


def fill(layout: Layout, frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of ``layout`` that has runs in the long ``frame``:
    :func:`~analysis.statistics.summary.summarise`'s.

    Adds the labels ``row`` and ``column``, ``reported`` (the metric) and ``mark``: ``best``, ``tie`` (its interval
    overlaps the best's) or empty, as in the other tables. Rows in which no column has runs are missing.

    Raises:
        ValueError: if there is no run for any cell, or if several (estimator, task, data) are in one.
        ProtocolsDiffer: as :func:`~analysis.statistics.summary.summarise`.
    """
    runs = final_rows(frame)
    cells = []
    for row, column in product(layout.rows, layout.columns):
        wanted = {**row.values, **column.values}
        metric = wanted.pop("metric", "bound")
        kept = runs
        for field, value in wanted.items():
            kept = kept[kept[field].map(as_text) == value] if field in kept else kept.iloc[:0]
        if kept.empty:
            continue
        summary = summarise_runs(kept)
        if len(summary) > 1:
            several = "; ".join(" ".join(map(str, key)) for key in summary[["estimator", "task", "data"]].to_numpy())
            raise ValueError(
                f"the cell {row.label}, {column.label} of {layout.name} has {several}: choose with --where"
            )
        cell = summary.iloc[0].to_dict()
        if metric != "bound":
            cell |= _another(metric, kept)
        cells.append({"row": row.label, "column": column.label, "reported": metric, **cell})
    if not cells:
        raise ValueError(
            f"no run stands in a cell of {layout.name}: see {FILE.name} for the fields and values that it has"
        )
    table = pd.DataFrame(cells)
    table["mark"] = ""
    for _, group in table.groupby([layout.compare, "reported"]):
        up = group["reported"].iloc[0] != "bound"
        compared = group.assign(mean=-group["mean"], low=-group["high"], high=-group["low"]) if up else group
        table.loc[group.index, "mark"] = ties(compared)
    return table


def _another(metric: str, runs: pd.DataFrame) -> dict[str, Any]:
    """The mean of another test metric over the finished runs of the setting that is chosen on the validation bound."""
    chosen = select(runs)
    finished, column = chosen[chosen["status"] == "finished"], f"test_{metric}"
    values = finished[column].dropna() if column in finished else []
    mean, low, high = interval(values) if len(values) else (np.nan, np.nan, np.nan)
    cell: dict[str, Any] = {"mean": mean, "low": low, "high": high, "n": len(values), "published": np.nan}
    cell |= {"difference": np.nan, "published_source": None, "published_differences": None, "published_note": None}
    run = chosen.iloc[0].to_dict()
    value = published(run["task"], run["data"], run["estimator"], run, metrics=(metric,))
    if value is not None:
        cell |= {"published": value.value, "difference": mean - value.value, "published_note": value.note}
        cell |= {"published_source": f"{value.short}, {value.table}", "published_differences": differences(value, run)}
    return cell


def body(layout: Layout, table: pd.DataFrame, markup: Markup) -> list[list[str]]:
    """The table as strings: a header, then of each row the lines ``LINES``, of those that have a number."""
    return printed(layout, table).cells(markup)


def printed(layout: Layout, table: pd.DataFrame) -> Table:
    """The table of :func:`fill` as texts: of each row the lines ``LINES``, of those that have a number."""
    lines: list[list[Cell]] = []
    for row in layout.rows:
        cells = {cell["column"]: cell for cell in table[table["row"] == row.label].to_dict("records")}
        for number, name in enumerate(LINES if cells else ()):
            texts = [_text(cells.get(column.label), name) for column in layout.columns]
            if name in ("ours", "seeds") or any(text != NONE for text in texts):
                lines.append([row.label if number == 0 else "", name, *texts])
    header = ["", "", *(column.label for column in layout.columns)]
    columns = [*COLUMNS, *sorted(str(name) for name in table if str(name).startswith("protocol."))]
    about = notes(layout, table)
    rows = table.drop_duplicates("estimator").assign(label=lambda each: each["estimator"])
    return Table(
        header,
        lines,
        about,
        layout.title,
        labels=2,
        numbers=table.reindex(columns=columns),
        whole=trained.whole(rows),
        commands=trained.commands(table),
        key=layout.name,
    )


def _text(cell: Mapping[str, Any] | None, name: str) -> Cell:
    if cell is None:
        return NONE
    mean, low, high = cell["mean"], cell["low"], cell["high"]
    if name == "ours":
        return Marked(NONE if np.isnan(mean) else tables.fixed(mean, 2), cell["mark"])
    if name == "interval":
        if np.isnan(low):
            return NONE
        return (
            f"[{tables.fixed(low, 2)}, {tables.fixed(high, 2)}]"
            if cell["interval"] == "BCa bootstrap"
            else f"±{tables.fixed(high - mean, 2)}"
        )
    if name == "published":
        return NONE if np.isnan(cell["published"]) else tables.fixed(cell["published"], 1)
    if name == "difference":
        return NONE if np.isnan(cell["difference"]) else signed(cell["difference"])
    lost = ", ".join(f"{cell[word]} {word}" for word in ("diverged", "failed", "unfinished") if cell[word])
    return f"{cell['n']}" + (f" ({lost})" if lost else "")


def notes(layout: Layout, table: pd.DataFrame) -> list[str]:
    """What the numbers mean: intervals and marks, the protocol, chosen settings, and how the published ones differ."""
    kinds = [kind for kind in table["interval"].unique() if kind != "none"]
    first = (
        f"Mean over seeds{f', 95 % interval ({chr(44).join(kinds)})' if kinds else ''}; best of each {layout.compare}"
    )
    first += " marked" + (", ~: its interval overlaps with the best's" if (table["mark"] == "tie").any() else "")
    lines = [first + ("; a single seed has no interval" if (table["n"] == 1).any() else "") + "."]
    lines.append(f"Protocol: {protocol(table)}.")
    lines += [f"Raced over {raced}; the settings that lost ended there." for raced in table["raced"].unique() if raced]
    tried = table[table["settings"] > 1]
    for (row, column), cells in tried.groupby(["row", "column"], sort=False):
        cell = cells.iloc[0]
        chosen = cell["setting"] if cell["setting"] else "none has finished"
        lines.append(f"{row}, {column}: {chosen}, best of {cell['settings']} on validation.")
    for (source, different), _ in table.groupby(["published_source", "published_differences"], sort=False):
        lines.append(f"Published: {source}" + (f"; there {different}." if different else "."))
    noted = table[table["published_note"].fillna("") != ""]
    for note, cells in noted.groupby("published_note", sort=False):
        where = "; ".join(f"{row}, {column}" for row, column in cells[["row", "column"]].to_numpy())
        lines.append(f"Published for {where}: {note}.")
    return lines


def write(layout: Layout, frame: pd.DataFrame, output: Path) -> list[Path]:
    """Write the table as Markdown, LaTeX and CSV, its numbers at full precision, into ``output``; returns the files.

    Raises as :func:`fill`.
    """
    size = r"\scriptsize\setlength{\tabcolsep}{2pt}" if len(layout.columns) > 4 else r"\small"
    return tables.write([printed(layout, fill(layout, frame))], output / layout.name, size=size)


def of_sweeps(sweeps: Sequence[str]) -> list[Layout]:
    """The layouts of the experiments that wrote ``sweeps``, each once (see :func:`analysis.papers.own.names`)."""
    known = layouts()
    found = (next((name for name in own.names(sweep) if name in known), None) for sweep in sweeps)
    return [known[name] for name in dict.fromkeys(found) if name is not None]
