"""The comparisons of a report: pairs of estimators, all tasks together, sensitivity to the learning rate."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.figures import sensitivity
from analysis.records.files import write_atomically
from analysis.statistics.comparisons import across_tasks, pairs, verdict
from analysis.statistics.settings import as_text
from analysis.statistics.summary import COMPARISON, select
from analysis.tables import table
from analysis.tables.table import NONE, Table, fixed


def write(runs: pd.DataFrame, output: Path) -> tuple[list[str], list[Path]]:
    """Write ``comparisons.md``, ``pairs.csv`` and ``across_tasks.csv`` into ``output``; returns sentences and files.

    ``runs`` are those of :func:`~analysis.statistics.summary.final_rows`. A table without enough runs is not written.
    """
    chosen = select(runs)
    compared, scores = pairs(chosen), across_tasks(chosen)
    files = []
    for name, found in (("pairs", compared), ("across_tasks", scores)):
        if not found.empty:
            files.append(output / f"{name}.csv")
            write_atomically(files[-1], table.frame_to_csv(found).encode())
    if blocks := [*best_against_the_others(compared).values(), *([] if scores.empty else [together(scores)])]:
        files += table.write(blocks, output / "comparisons", ("md",))
    return verdict(compared), files


def best_against_the_others(compared: pd.DataFrame) -> dict[tuple[str, str], Table]:
    """Of the pairs of each task and data set those of the estimator that is before most of the others."""
    return {
        (str(task), str(data)): _of_the_best(str(task) if data == "none" else f"{task} on {data}", group)
        for (task, data), group in compared.groupby(COMPARISON)
    }


def write_sensitivity(frame: pd.DataFrame, output: Path) -> list[Path]:
    """Write ``sensitivity.csv`` and its figure into ``output`` if some estimator has several learning rates."""
    from analysis.figures import curves as figures

    by_rate = sensitivity.sensitivity(frame)
    figure = sensitivity.figure(by_rate)
    if figure is None:
        return []
    write_atomically(output / "sensitivity.csv", table.frame_to_csv(by_rate).encode())
    return [output / "sensitivity.csv", *figures.save(figure, output / "sensitivity")]


def _of_the_best(where: str, group: pd.DataFrame) -> Table:
    ahead = group[group["n"] > 0]["estimator"].value_counts()
    best = str(ahead.index[0]) if len(ahead) else str(group["estimator"].iloc[0])
    own = group[(group["estimator"] == best) | (group["other"] == best)]
    header = [f"{best} against", "difference", "95 % interval", "seeds", "p", "p (Holm)", "P(lower)", "95 % interval"]
    rows = []
    for pair in own.to_dict("records"):
        first = pair["estimator"] == best
        sign = 1.0 if first else -1.0
        low, high = sorted((sign * pair["low"], sign * pair["high"]))
        p = [pair[name] for name in ("probability_low", "probability", "probability_high")]
        p = p if first else [1.0 - value for value in reversed(p)]
        numbers = [_number(sign * pair["difference"]), f"[{_number(low)}, {_number(high)}]", str(pair["n"])]
        numbers += [_number(pair["p"], 3), _number(pair["p_holm"], 3), _number(p[1])]
        numbers.append(f"[{_number(p[0])}, {_number(p[2])}]")
        rows.append([str(pair["other"] if first else pair["estimator"]), *numbers])
    about = f"Differences of negative test bounds in nats, paired by seed: those of {best} minus the other's. "
    about += "P(lower): the share of seeds in which it ends lower, ties as half, with Clopper's and Pearson's interval."
    return Table(header, rows, [*verdict(group), about], where, numbers=own)


def together(scores: pd.DataFrame) -> Table:
    """Of the rows of :func:`~analysis.statistics.comparisons.across_tasks`."""
    header = ["estimator", "interquartile mean", "95 % interval", "runs", "diverged", "failed", "unfinished"]
    rows = []
    for row in scores.to_dict("records"):
        interval = f"[{_number(row['low'])}, {_number(row['high'])}]"
        counts = [str(row[name]) for name in ("n", "diverged", "failed", "unfinished")]
        rows.append([row["estimator"], _number(row["iqm"]), interval, *counts])
    tasks = int(scores["tasks"].iloc[0])
    lines = [f"{tasks} tasks, each scaled to 0 for the lowest mean and 1 for the highest: lower is better."]
    lines.append("Stratified bootstrap over seeds; with few seeds it is too narrow.")
    if left_out := scores.attrs["left_out"]:
        lines.append(f"Without a finished run on some task, hence left out: {', '.join(left_out)}.")
    return Table(header, rows, lines, "All tasks together", numbers=scores)


def _number(value: float, digits: int = 2) -> str:
    return NONE if as_text(value) == "none" else fixed(value, digits)
