"""The content of the interactive report, as one dictionary for JSON; no number is computed in the page.

``comparisons`` (one per task and data set) hold ``rows``: an estimator with one of the settings that were tried. A row
has the cells of its table, its protocol, its curves and the places of its runs in ``runs``. The first row of each
estimator is the setting chosen on validation: the line that ``python -m analysis`` prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from analysis.command import reason
from analysis.figures.curves import chosen
from analysis.figures.style import SOLID, Look, families_of, look, looks
from analysis.page import parts
from analysis.page.colors import DARK, LIGHT, shades
from analysis.page.curves import AXES, Curves, curve_columns, metrics_of
from analysis.records import STATUSES, RunRecord
from analysis.statistics.settings import Uses, as_text, uses_of, varying
from analysis.statistics.summary import COMPARISON, final_rows, ranked, summarise, summarise_runs
from analysis.tables import summary as tables
from analysis.tables.table import PLAIN, fixed

NAMES = {"optimizer.lr": "learning rate", "estimator.temperature": "temperature"}
DIGITS = {"value": 6, "elbo": 2, "bound": 2}
"""Decimals of a metric, as the table has them; other ones have three digits in all."""
SYMBOLS = {
    **{".": "circle", "o": "circle", "s": "square", "D": "diamond", "d": "diamond-tall", "*": "star"},
    **{"^": "triangle-up", "v": "triangle-down", "<": "triangle-left", ">": "triangle-right"},
    **{"P": "cross", "X": "x", "h": "hexagon", "H": "hexagon2", "p": "pentagon", "8": "octagon"},
}


def page_data(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Everything that the page in ``folder`` shows of the long ``frame``.

    Raises :class:`~analysis.statistics.summary.ProtocolsDiffer`.
    """
    summary = summarise(frame)
    runs = ranked(final_rows(frame))
    uses = uses_of(frame)
    found = looks(runs["label"], families_of(runs, "label"))
    colors = {theme: shades(found, background) for theme, background in (("light", LIGHT), ("dark", DARK))}
    filters = {key: _filters(group, uses) for key, group in runs.groupby(COMPARISON)}
    counts = runs["status"].value_counts()
    return {
        "counts": [[word, int(counts[word])] for word in STATUSES if word in counts],
        "repeated": int(frame["path"].nunique() - len(runs)),
        "damaged": list(frame.attrs.get("damaged", [])),
        "looks": {
            name: _look(each) | {"colors": {theme: own[name] for theme, own in colors.items()}}
            for name, each in found.items()
        },
        "axes": {"step": "training steps", "loss_evaluations": "loss evaluations", "seconds": "seconds of training"},
        "runs": [_run(run, folder, filters[run["task"], run["data"]]) for _, run in runs.iterrows()],
        "comparisons": list(_comparisons(frame, runs, summary, filters)),
        "together": parts.together(runs),
    }


def _about(metric: str, long: pd.DataFrame) -> str:
    """What a curve shows, where its name does not say it."""
    if metric == "gradient_variance_unscaled":
        return "Gradient variance times the square of the running scale that the estimator divides its gradient by."
    if metric == "gradient_variance":
        return "Variance of the encoder's gradient of a minibatch's mean loss, as applied, mean over its parameters."
    if metric.endswith("bound") and "evaluate_samples" in long:
        samples = sorted({as_text(value) for value in long["evaluate_samples"].dropna().unique()})
        return f"Importance-weighted bound of {' or '.join(samples)} samples, the mean over images." if samples else ""
    return ""


def _look(style: Look) -> dict[str, Any]:
    """Colour, dashes and marker of an estimator, as plotly and SVG name them."""
    line = style.linestyle
    dash = "solid" if isinstance(line, str) else ",".join(f"{2 * length:g}px" for length in line[1])
    symbol, size = SYMBOLS[style.marker], 4 if style.marker == "." else 7
    return {
        **{"label": style.label, "color": style.color, "dash": dash, "symbol": symbol, "size": size},
        "hollow": line != SOLID,
    }


def _run(run: pd.Series, folder: Path, filters: Iterable[str]) -> dict[str, Any]:
    words = as_text(run["error"])
    words = (RunRecord(Path(run["path"])).error() or "") if words == "none" else words
    words = "" if run["status"] == "finished" else words.strip()
    return {
        **{name: as_text(run[name]) for name in ("run", "sweep", "task", "data", "seed", "setting")},
        "estimator": run["label"],
        "status": run["status"],
        "href": quote(os.path.relpath(run["path"], folder)) + "/",
        "reason": "" if run["status"] == "finished" else words.rpartition("\n")[2] or reason(run),
        "values": _values(run, filters),
        "details": words if "\n" in words else "",
        "step": None if pd.isna(run["step"]) else int(run["step"]),
    }


def _values(run: pd.Series, filters: Iterable[str]) -> dict[str, str]:
    return {column: as_text(run[column]) for column in filters}


def _comparisons(
    frame: pd.DataFrame, runs: pd.DataFrame, summary: pd.DataFrame, filters: Mapping[Any, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    columns = curve_columns(frame)
    evaluated = frame.dropna(subset=["step"]).reindex(columns=["path", *AXES, *columns])
    by_path = dict(list(evaluated.groupby("path", observed=True)))
    pictured = dict(list(chosen(frame).groupby(COMPARISON, observed=True)))
    compared, measured, committed = parts.pairs_of(runs), parts.variance(frame), parts.committed()
    for (task, data), group in runs.groupby(COMPARISON):
        shown = _settings(group, summary)
        long = frame[frame["path"].isin(group["path"])]
        metrics = list(metrics_of(long, columns))
        drawn = Curves(by_path, metrics)
        header, *cells = tables.cells(shown, PLAIN)
        rows = [_row(row, header, line) for (_, row), line in zip(shown.iterrows(), cells, strict=True)]
        for row in rows:
            members = group.loc[row["runs"]]
            row["values"] = _values(members.iloc[0], filters[task, data]) if row["setting"] != "none" else {}
            row["curves"] = drawn.of(members)
        first = shown[shown["place"] == 0].reset_index(drop=True)
        yield {
            **{"task": task, "data": data, "title": tables.title(first), "caption": tables.caption(first)},
            **{"notes": tables.notes(first), "header": header, "rows": rows},
            "filters": list(filters[task, data].values()),
            "metrics": [
                {"name": m.name, "label": m.label, "log": m.log, "digits": DIGITS.get(m.name.rpartition("_")[2])}
                | {"about": _about(m.name, long)}
                for m in metrics
            ],
            "grids": drawn.grids,
            **{"pairs": compared.get((task, data)), "variance": measured.get((task, data), [])},
            "leaderboard": committed.get((task, data), []),
            "images": parts.images(pictured[task, data]) if (task, data) in pictured else [],
            "reproduce": parts.reproduce(first),
            "optimum": group["protocol.optimum"].dropna().unique().tolist() if "protocol.optimum" in group else [],
        }


def _row(row: pd.Series, header: list[str], cells: list[str]) -> dict[str, Any]:
    return {
        **{"estimator": row["label"], "place": int(row["place"]), "setting": as_text(row["setting"])},
        "short": parts.in_words(as_text(row["setting"]), NAMES),
        **{"settings": int(row["settings"]), "interval": row["interval"], "n": int(row["n"]), "mark": row["mark"]},
        **{"cells": cells, "keys": [_key(row, name, cell) for name, cell in zip(header, cells, strict=True)]},
        **{"protocol": _protocol(row), "published": _published(row), "runs": row["runs"]},
    }


def _settings(group: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of the summary of one comparison and rows like them for the settings that were not chosen, best first.

    Each has its ``place``, the labels of its ``runs`` in ``group`` and, if it was chosen, the ``mark`` of the tables.
    """
    chosen = summary[(summary[COMPARISON] == group[COMPARISON].iloc[0].tolist()).all(axis=1)].reset_index(drop=True)
    parts = [chosen.assign(place=0, mark=tables.ties(chosen))]
    lost = group["label"].isin(chosen.loc[chosen["setting"].isna(), "label"])  # one row has all their runs
    for place in range(1, int(group["place"].max()) + 1):
        if (here := group["place"].eq(place) & ~lost).any():
            parts.append(summarise_runs(group[here]).assign(place=place, mark=""))
    shown = pd.concat(parts, ignore_index=True).sort_values("mean", kind="stable", ignore_index=True)
    members, settings = [], []
    for label, place in zip(shown["label"], shown["place"], strict=True):
        own = group[(group["label"] == label) & (group["place"].eq(place) | lost)]
        members.append([int(label) for label in own.index])
        settings.append((None if lost[own.index[0]] else own["setting"].iloc[0], own["settings"].iloc[0]))
    text, number = zip(*settings, strict=True)
    return shown.assign(runs=members, setting=list(text), settings=list(number))


def _filters(group: pd.DataFrame, uses: Uses) -> dict[str, dict[str, Any]]:
    """The options to choose one comparison's runs by: what varies within a cell, learning rates, temperatures."""
    names = set(varying(group, uses))
    names |= {name for name in NAMES if name in group and group[name].map(as_text).nunique() > 1}
    found = {}
    for name in sorted(names, key=lambda name: (name not in NAMES, name)):
        values = sorted(set(group[name].map(as_text)) - {"none"}, key=_numbers_first)
        if len(values) > 1:
            found[name] = {"column": name, "label": NAMES.get(name, name), "values": values}
    return found


def _numbers_first(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def _key(row: pd.Series, column: str, cell: str) -> float | str | None:
    """The key by which a table is sorted, where that is not the cell's text."""
    values = {"nats": "mean", "loss": "mean", "seeds": "n", "published": "published", "difference": "difference"}
    if column in values:
        return _number(row[values[column]])
    if column == "not finished":
        return int(row["diverged"] + row["failed"] + row["unfinished"])
    return look(row["label"]).label if column == "estimator" else cell


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _protocol(row: pd.Series) -> list[tuple[str, str]]:
    names = [name for name in map(str, row.index) if name.startswith("protocol.")]
    names += [name for name in ("task.kl", "steps", "optimizer", "batch_size", "metric") if name in row]
    stated = [(name.removeprefix("protocol.").replace("_", " "), as_text(row[name])) for name in names]
    digits = DIGITS.get(str(row["metric"]).rpartition("_")[2])
    valid = f"{row['valid']:.3g}" if digits is None else fixed(row["valid"], digits)
    stated.append(("validation", "none" if np.isnan(row["valid"]) else valid))
    return [(name, value) for name, value in stated if value != "none"]


def _published(row: pd.Series) -> str:
    if np.isnan(row["published"]):
        return ""
    words = [row["published_source"], row["published_differences"] and f"there {row['published_differences']}"]
    return "; ".join(str(word) for word in [*words, row["published_note"]] if word)
