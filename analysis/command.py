"""The command ``python -m analysis``: statuses and tables on the screen, tables, figures and the frame in a folder."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import records, tables
from analysis.statistics import COMPARISON, ProtocolsDiffer, as_text, final_rows, summarise

OK, DIFFERENT, NOTHING = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on the runs at a path; exit code 0, 1 if protocols differ, or 2 if there is nothing to report."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description="Tables, figures and statuses of a sweep; no run is changed."
    )
    parser.add_argument("path", type=Path, help="a sweep (runs/NAME), one run, or a folder of sweeps")
    parser.add_argument("--output", type=Path, help="where the report is written (default: PATH/report)")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="only these runs")
    options = parser.parse_args(arguments)
    if not options.path.exists():
        return _refuse(f"no such path: {options.path}", NOTHING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the damaged records are listed by name below
            frame = records.load(options.path)
        kept = where(frame, options.where)
    except (FileNotFoundError, ValueError) as error:
        return _refuse(str(error), NOTHING)
    for sentence in frame.attrs["damaged"]:
        print(f"damaged, left out: {sentence}")
    if kept.empty:
        return _refuse(f"no readable run at {options.path}" + (" with this --where" if options.where else ""), NOTHING)
    output = options.output or options.path / "report"
    output.mkdir(parents=True, exist_ok=True)
    _storable(kept).to_parquet(output / "frame.parquet")
    return report(kept, output)


def report(frame: pd.DataFrame, output: Path) -> int:
    """Print the statuses and tables of the long ``frame``, write tables and figures into ``output``; exit code."""
    runs = final_rows(frame)
    print("\n".join(statuses(frame, runs)))
    try:
        summary = summarise(frame)
    except ProtocolsDiffer as error:
        return _refuse(str(error), DIFFERENT)
    _write_tables(summary, output)
    for file in (*_write_figures(frame, output), *_write_variance(frame, output)):
        print(f"wrote {file}")
    if not (runs["status"] == "finished").any():
        return _refuse("no run is finished: there are no numbers to report yet", NOTHING)
    return OK


def where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows of the runs for which every ``COLUMN=VALUE`` holds. Raises ``ValueError`` for an unknown column."""
    for condition in conditions:
        column, separator, value = condition.partition("=")
        if not separator or column not in frame:
            raise ValueError(f"--where {condition}: expected COLUMN=VALUE with one of {', '.join(map(str, frame))}")
        frame = frame[frame[column].map(as_text) == value]
    return frame


def statuses(frame: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Lines for the screen: how many runs have which status, then every run that is not finished, with the reason."""
    counts = runs["status"].value_counts()
    lines = [f"{len(runs)} runs: " + ", ".join(f"{counts[word]} {word}" for word in records.STATUSES if word in counts)]
    repeated = frame["path"].nunique() - len(runs)
    if repeated:
        lines.append(f"{repeated} runs stand in more than one sweep and count once")
    for _, run in runs[runs["status"] != "finished"].iterrows():
        reason = as_text(run["error"])
        if run["status"] == "diverged" and as_text(run.get("diverged_at")) != "none":
            reason = f"at step {as_text(run['diverged_at'])}"
        elif reason == "none":
            reason = f"at step {as_text(run['step'])}" if as_text(run["step"]) != "none" else "no step yet"
        lines.append(f"{run['status']}: {run['run']} ({reason.splitlines()[-1]})")
    return [*lines, ""]


def _refuse(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _write_tables(summary: pd.DataFrame, output: Path) -> None:
    print(tables.to_text(summary, width=shutil.get_terminal_size((100, 24)).columns), end="\n\n")
    for name, write in (("md", tables.to_markdown), ("tex", tables.to_latex), ("csv", tables.to_csv)):
        file = output / f"table.{name}"
        file.write_text(write(summary), encoding="utf-8")
        print(f"wrote {file}")


def _write_figures(frame: pd.DataFrame, output: Path) -> list[Path]:
    from analysis import figures

    shown = figures.chosen(frame)
    drawn = {
        "learning_curves": figures.learning_curves(shown),
        "gradient_variance": figures.gradient_variance(shown),
        "temperatures": figures.temperatures(shown),
    }
    tasks = shown.drop_duplicates(COMPARISON)["task"].tolist()
    for (task, data), group in shown.groupby(COMPARISON):
        images, name = figures.read_images(group), f"{task}_{data}" if tasks.count(task) > 1 else task
        drawn[f"reconstructions_{name}"] = figures.reconstructions(images, f"{task}, {data}")
        drawn[f"samples_{name}"] = figures.samples(images, f"{task}, {data}")
    return [file for name, figure in drawn.items() if figure for file in figures.save(figure, output / name)]


def _write_variance(frame: pd.DataFrame, output: Path) -> list[Path]:
    """Of runs that measured gradients (``basket=``) the tables and figures."""
    from analysis import variance_figures

    measured = [records.load_basket(path) for path in frame["path"].unique()]
    return list(variance_figures.write(pd.concat(measured, ignore_index=True), output))


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns of mixed types as JSON text: parquet holds one type per column."""
    stored = frame.copy()
    stored.attrs = {}
    for column in stored:
        if not pd.api.types.is_object_dtype(stored[column]):
            continue
        values = stored[column].dropna()
        if values.map(type).nunique() > 1 or values.map(lambda value: isinstance(value, (dict, list))).any():
            stored[column] = stored[column].map(_json_text)
    return stored


def _json_text(value: Any) -> str | None:
    return None if as_text(value) == "none" else json.dumps(value, default=str)
