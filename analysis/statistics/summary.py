"""From runs to one summary row per estimator, task and data set: the choice of hyperparameters, protocols, curves.

Intervals are in :mod:`analysis.statistics.intervals`, tests and what compares estimators in
:mod:`analysis.statistics.comparisons`.

Everything here is a pure function of arrays or of the frame of :func:`analysis.records.load`. Four rules hold:

- A hyperparameter setting is chosen on the validation bound, averaged over its seeds, and reported on test.
- Settings of which the largest share of runs finished go first, whatever their bound; so a setting cannot win by losing
  its bad seeds. Among them the best validation mean wins; of equals, the first in the order of their text.
- Every run counts somewhere: beside a mean over finished runs stands how many diverged, failed or are unfinished.
- Runs of different protocols are neither averaged nor ranked together: :class:`ProtocolsDiffer`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.papers.published import Published, differences, published
from analysis.statistics.intervals import interval, interval_name
from analysis.statistics.settings import WITHIN, as_text, uses_of, with_settings

CELL = ["estimator", "variant", "task", "data"]
"""A row's runs agree in these columns: one method on one task and data set."""
COMPARISON = ["task", "data"]
SOFT = ("elbo", "relaxed_elbo")
"""What an estimator with relaxed samples reaches with hard and with relaxed ones."""
SAID = ("estimator.", "task.", "optimizer", "schedule")
"""Options that a summary says of each row."""
LEGACY_PRIMARIES = ("bound", "pseudo_bound", "value")
"""Primary metrics of records of older code, which did not say it: the first of these that a run has."""


class ProtocolsDiffer(ValueError):
    """Runs that would be compared were evaluated differently; the message says in what, and what to do."""


def curve(frame: pd.DataFrame, metric: str, x: str = "step") -> tuple[NDArray[Any], NDArray[Any]]:
    """``x [m]`` at the steps at which every run of the long ``frame`` has ``metric``, and its ``values [runs, m]``.

    ``x`` is ``step``, ``loss_evaluations`` (calls of the loss so far, in samples per example) or ``seconds`` (of
    training without evaluation). Where runs differ in ``x`` at a step, which seconds do, it is their mean.
    """
    frame = frame[list(dict.fromkeys(["path", "step", metric, x]))].dropna(subset=["step", metric])
    frame = frame.assign(path=pd.factorize(frame["path"], sort=True)[0])
    table = frame.pivot(index="path", columns="step", values=metric).dropna(axis=1)
    if x == "step":
        return table.columns.to_numpy(dtype=int), table.to_numpy(dtype=float)
    places = frame.groupby("step")[x].mean().reindex(table.columns)
    known = places.notna().to_numpy()
    return places.to_numpy(dtype=float)[known], table.to_numpy(dtype=float)[:, known]


def curve_metrics(frame: pd.DataFrame) -> tuple[str, ...]:
    """Which columns a learning curve may show, the best first: of each comparison the first that it has.

    The importance-weighted bound that the table has, if it was evaluated along the way with as many samples as at the
    end, and the ELBO otherwise; of a toy problem the expected loss; of a task with another primary metric that.
    """
    samples = {name: frame[name] for name in ("evaluate_samples", "valid_samples") if name in frame}
    same = len(samples) == 2 and (samples["evaluate_samples"] == samples["valid_samples"]).all()
    bounds = ("bound", "pseudo_bound") if same and (samples["evaluate_samples"] > 1).all() else ("elbo", "pseudo_elbo")
    declared = frame["primary"].dropna().unique() if "primary" in frame else ()
    return tuple(f"valid_{name}" for name in (*bounds, "value", *(set(declared) - set(LEGACY_PRIMARIES))))


def final_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per run, its last, with its primary metric on both splits under one name.

    Adds ``valid`` and ``test`` (higher is better; ``test`` only of finished runs; ``valid`` of eliminated ones, too, as
    it was at their rung), ``metric`` (the primary metric that
    its task declares, such as ``bound``, in nats), and ``variant``, ``setting`` and ``label``
    (:func:`analysis.statistics.settings.with_settings`). A finished run without a finite value is counted as
    ``failed``, with the reason in ``error``. A run that stands in several sweeps, or that
    several versions of the code recorded (same ``identity`` and steps), counts once, a finished one first.
    """
    uses = uses_of(frame)
    keys = frame[["path", "step"]].reset_index(drop=True).sort_values(["path", "step"], na_position="first")
    runs = plain(frame.iloc[keys.drop_duplicates("path", keep="last").index])
    runs["valid"], runs["test"], runs["metric"] = np.nan, np.nan, None
    runs = runs.astype({"metric": object, "error": object})
    finished = runs["status"] == "finished"
    for metric, sign in _primaries(runs).items():
        if f"test_{metric}" in runs and f"valid_{metric}" in runs:
            has = finished & runs[f"test_{metric}"].notna() & _compared_by(metric, runs)
            runs.loc[has, "valid"] = sign * runs.loc[has, f"valid_{metric}"].astype(float)
            runs.loc[has, "test"] = sign * runs.loc[has, f"test_{metric}"].astype(float)
            runs.loc[has, "metric"] = metric
        if f"valid_{metric}" in runs:
            out = (runs["status"] == "eliminated") & _compared_by(metric, runs)
            runs.loc[out, "valid"] = sign * runs.loc[out, f"valid_{metric}"].astype(float)
    useless = finished & ~np.isfinite((runs["valid"] + runs["test"]).to_numpy(dtype=float))
    runs.loc[useless, ["status", "error"]] = ["failed", "finished without a finite value on validation and test"]
    order = (runs["status"] != "finished").astype(int)
    same = [name for name in ("identity" if "identity" in runs else "run", "steps") if name in runs]
    runs = runs.assign(_order=order).sort_values(["_order", "path"]).drop_duplicates(same).drop(columns="_order")
    runs = runs.sort_values([*WITHIN, "seed", "run"]).reset_index(drop=True)
    return with_settings(runs, uses)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy of ``frame`` with texts in the place of categories."""
    texts = {
        name: kind.categories.dtype for name, kind in frame.dtypes.items() if isinstance(kind, pd.CategoricalDtype)
    }
    return frame.astype(texts).copy()


def _primaries(runs: pd.DataFrame) -> dict[str, int]:
    """The primary metrics that tasks declare, each with the sign that makes higher better."""
    declared = runs.reindex(columns=["primary", "primary_sign"]).dropna().drop_duplicates()
    signs = {str(metric): int(sign) for metric, sign in declared.itertuples(index=False)}
    return {**signs, **{metric: 1 for metric in LEGACY_PRIMARIES if metric not in signs}}


def _compared_by(metric: str, runs: pd.DataFrame) -> pd.Series:
    declared = runs.reindex(columns=["primary"])["primary"]
    unknown = declared.isna() & runs["metric"].isna() & (metric in LEGACY_PRIMARIES)
    return (declared == metric) | unknown


def check_protocols(runs: pd.DataFrame) -> None:
    """Raise :class:`ProtocolsDiffer` unless runs of one task and data set agree in every ``protocol.*`` column.

    ``runs`` are those of :func:`final_rows`. Runs without any protocol (unfinished ones) are not looked at.
    """
    columns = [column for column in map(str, runs) if column.startswith("protocol.")]
    recorded = runs[runs[columns].notna().any(axis=1)] if columns else runs.iloc[:0]
    for (task, data), group in recorded.groupby(COMPARISON):
        differing = {column: group[column].map(as_text).value_counts() for column in columns}
        differing["metric"] = group["metric"].dropna().value_counts()
        differing = {column: counts for column, counts in differing.items() if len(counts) > 1}
        if differing:
            fields = "; ".join(
                f"{column.removeprefix('protocol.')} is "
                + " and ".join(f"{value} ({n} runs)" for value, n in sorted(counts.items(), key=str))
                for column, counts in differing.items()
            )
            column, counts = next(iter(differing.items()))
            one = f" (--where {column}={min(counts.index, key=str)})" if column in columns else ""
            raise ProtocolsDiffer(
                f"{task} on {data}: these runs were evaluated differently and cannot be averaged or ranked together: "
                f"{fields}. Analyse one kind at a time{one}, or keep them in different sweeps."
            )


def ranked(runs: pd.DataFrame) -> pd.DataFrame:
    """All runs of :func:`final_rows`, with what orders the settings of each cell.

    Adds ``settings`` (how many were tried) and ``place`` (0 for the best by the rules of this module; settings without
    a finished run come last).
    """
    placed = []
    for _, cell in runs.groupby(CELL):
        scores = []
        for setting, tried in cell.groupby("setting"):
            finished = tried[tried["status"] == "finished"]
            valid = finished["valid"].mean() if len(finished) else -np.inf
            scores.append((-len(finished) / len(tried), -valid, setting))
        place = {setting: number for number, (*_, setting) in enumerate(sorted(scores))}
        placed.append(cell.assign(settings=len(place), place=cell["setting"].map(place)))
    return pd.concat(placed, ignore_index=True) if placed else runs.assign(settings=0, place=0)


def select(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, of every status, of the chosen setting of each cell: the first of :func:`ranked`, without ``place``.

    A cell without any finished run keeps all its runs, with ``setting`` missing.
    """
    placed = ranked(runs)
    none = ~(placed["status"] == "finished").groupby([placed[name] for name in CELL]).transform("any")
    placed["setting"] = placed["setting"].astype(object).mask(none, None)
    return placed[none | (placed["place"] == 0)].drop(columns="place").reset_index(drop=True)


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell (estimator, task, data), best first, of the long frame of :func:`analysis.records.load`.

    ``mean``, ``low``, ``high``: the *negative* test bound in nats (lower is better) over the ``n`` finished runs of the
    chosen ``setting``. Of a task that declares another primary metric these are it, or its negative where higher is
    better: then ``negated`` is true, and tables show it as it was recorded. ``diverged``, ``failed``, ``unfinished``:
    its other runs (the cell's, if none finished). ``settings``: how many were tried, and ``cell_diverged``,
    ``cell_failed``, ``cell_unfinished``: over all of these; ``raced``: the race that ended some of them, in words.
    ``published``, ``difference`` (ours - theirs), ``published_source``, ``published_differences`` (of settings) and
    ``published_note`` (its trap): see :mod:`analysis.papers.published`. Further columns say what the chosen runs have:
    ``curve``: where the learning curves end (:func:`curve_metrics`, on validation), negated as ``mean`` is;
    ``elbo`` and ``relaxed_elbo``, negated: of hard samples on test, and the objective at relaxed ones, if it has any;
    ``protocol.*``, ``task.kl``, ``steps``, ``optimizer`` and others, the first of them in its options, commit and
    device; ``paths`` are all of them.

    Raises :class:`ProtocolsDiffer`.
    """
    return summarise_runs(final_rows(frame))


def summarise_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """:func:`summarise` of the runs of :func:`final_rows`."""
    check_protocols(runs)
    chosen = select(runs)
    shared = [c for c in map(str, chosen) if c.startswith("protocol.")]
    shared += [c for c in ("task.kl", "steps", "optimizer", "batch_size", "test_samples", "metric") if c in chosen]
    said = [c for c in map(str, chosen) if c.startswith(SAID) or c in ("commit", "device", "wall_seconds")]
    rows = []
    for cell, kept in chosen.groupby(CELL):
        tried = runs[(runs[CELL] == list(cell)).all(axis=1)]
        finished = kept[kept["status"] == "finished"]
        first = (finished if len(finished) else kept).iloc[0]
        agreed = {name: first[name] for name in shared}
        row: dict[str, Any] = {
            **dict(zip(CELL, cell, strict=True)),
            **{name: first.get(name) for name in ("label", "family", "tuned", "compared")},
        }
        mean, low, high = interval(-finished["test"]) if len(finished) else (np.nan, np.nan, np.nan)
        row |= {"mean": mean, "low": low, "high": high, "n": len(finished), "interval": interval_name(len(finished))}
        row |= {"valid": -finished["valid"].mean(), **_lost(kept)}
        row["raced"] = _raced(tried)
        row |= _curve_end(finished)
        row |= {name: -_mean(finished, f"test_{name}") for name in SOFT}
        row["negated"] = first["metric"] not in (*LEGACY_PRIMARIES, None) and first.get("primary_sign") == 1
        row |= {f"cell_{word}": count for word, count in _lost(tried).items()}
        row |= {"setting": kept["setting"].iloc[0], "settings": kept["settings"].iloc[0]}
        row |= {name: first[name] for name in said} | {
            "paths": [path for path in kept["path"] if isinstance(path, str)]
        }
        rows.append({**row, **_published_number(row, agreed, first.to_dict()), **agreed})
    summary = pd.DataFrame(rows)
    return summary.sort_values([*COMPARISON, "mean", "label"], ignore_index=True) if rows else summary


def _curve_end(finished: pd.DataFrame) -> dict[str, Any]:
    """``curve``: the mean at which the learning curves end, lower is better, of the metric ``curve_metric``."""
    name = next((each for each in curve_metrics(finished) if each in finished and finished[each].notna().any()), None)
    if name is None or name.removeprefix("valid_") not in (*LEGACY_PRIMARIES, "elbo", "pseudo_elbo"):
        return {"curve": np.nan, "curve_metric": None}
    return {"curve": -finished[name].astype(float).mean(), "curve_metric": name}


def _mean(finished: pd.DataFrame, column: str) -> float:
    """Over runs; NaN if none has it."""
    return float(finished[column].astype(float).mean()) if column in finished else math.nan


def _lost(runs: pd.DataFrame) -> dict[str, int]:
    counts = {word: int((runs["status"] == word).sum()) for word in ("diverged", "failed")}
    over = runs["status"].isin(["finished", "eliminated"]).sum()
    return {**counts, "unfinished": len(runs) - int(over) - sum(counts.values())}


def _raced(runs: pd.DataFrame) -> str:
    """The races that ended runs of a cell, to be read after "raced over"; empty for none."""
    if "race.over" not in runs:
        return ""
    raced = runs[(runs["status"] == "eliminated") & runs["race.over"].notna()]
    pairs = raced[["race.over", "race.rungs"]].drop_duplicates().sort_values(["race.over", "race.rungs"])
    texts = [[", ".join(map(str, json.loads(text))) for text in pair] for pair in pairs.to_numpy()]
    return "; ".join(f"{over}, compared on validation at {rungs} steps" for over, rungs in texts)


def published_bound(
    cell: Mapping[str, Any], config: Mapping[str, Any], metric: Any, likelihood: Any
) -> Published | None:
    """The published bound to stand beside that of a ``cell``, whose runs have this ``config`` and primary ``metric``.

    None stands beside another quantity: a metric that is no bound, or a density beside a probability.
    """
    if isinstance(metric, str) and metric != "bound":
        return None
    value = published(cell["task"], cell["data"], cell["estimator"], config)
    differs = value and isinstance(likelihood, str) and value.settings.get("likelihood", "bernoulli") != likelihood
    return None if differs else value


def _published_number(row: dict[str, Any], agreed: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    value = published_bound(row, run, agreed.get("metric"), agreed.get("protocol.likelihood"))
    if value is None:
        nothing = dict.fromkeys(("published_source", "published_differences", "published_note"))
        return {"published": np.nan, "difference": np.nan, **nothing}
    return {
        "published": value.nats,
        "difference": row["mean"] - value.nats,
        "published_source": f"{value.short}, {value.table}",
        "published_differences": differences(value, agreed),
        "published_note": f"{value.method}: {value.note}" if value.note else "",
    }
