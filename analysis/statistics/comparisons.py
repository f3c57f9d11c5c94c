"""What a reviewer asks of a comparison: paired differences, probabilities of improvement, one number across tasks.

Runs of different estimators are paired by seed: with it they share their initial weights, their order of the data and
their binarisation. ``chosen`` is always the frame of :func:`analysis.statistics.summary.select`, of one protocol per
task and data set. Scores are negative test bounds in nats: lower is better.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.statistics.intervals import interval
from analysis.statistics.summary import COMPARISON

LEVEL = 0.05
EXACT_UP_TO = 14
"""Pairs up to which all ``2^n`` flips of signs are gone through; beyond, as many random ones."""


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p-value of the paired permutation test of ``differences [n]``: the share of the ``2^n`` flips of signs
    with a mean at least as far from zero. It is at least :func:`smallest_p`. ``nan`` for none.
    """
    from scipy.stats import permutation_test

    sample = np.asarray(differences, dtype=float)
    if len(sample) < 2:  # one difference and its mirror image are equally far from zero
        return 1.0 if len(sample) else float("nan")
    options: dict[str, Any] = {"permutation_type": "samples", "n_resamples": 2**EXACT_UP_TO, "vectorized": True}
    result = permutation_test((sample,), np.mean, alternative="two-sided", rng=np.random.default_rng(0), **options)
    return float(result.pvalue)


def smallest_p(n: int) -> float:
    """The smallest two-sided p-value that ``n`` pairs can reach when signs are flipped: ``2^(1 - n)``."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: ArrayLike) -> NDArray[np.floating]:
    """Holm's step-down correction of ``p_values [m]``: rejecting those below a level keeps the chance of any false
    rejection below it (Holm, 1979, A simple sequentially rejective multiple test procedure)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def probability_of_improvement(
    ours: ArrayLike, theirs: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """``P(X < Y) + P(X = Y) / 2`` of paired scores ``ours, theirs [n]``, with an interval: ``(p, low, high)``.

    ``inf`` stands for a diverged run: it loses to every number and ties with another ``inf``. The interval is
    Clopper's and Pearson's for the number of wins; its lower end counts ties as losses and its upper end as wins. It
    covers at least ``confidence``. Three nan for no pairs.
    """
    from scipy.stats import binomtest

    x, y = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    n, wins, ties = len(x), int((x < y).sum()), int((x == y).sum())
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    low = binomtest(wins, n).proportion_ci(confidence, method="exact").low
    high = binomtest(wins + ties, n).proportion_ci(confidence, method="exact").high
    return (wins + ties / 2) / n, float(low), float(high)


def pairs(chosen: pd.DataFrame) -> pd.DataFrame:
    """One row per pair of estimators on one task and data set, the one with the lower mean difference first.

    ``difference``, ``low``, ``high``: mean of ``estimator`` - ``other`` over the ``n`` seeds that both finished, with
    95 % interval. ``p``: :func:`sign_flip_p`; ``p_holm``: corrected over the pairs of this task and data set, of which
    there are ``family``; ``smallest_p`` and ``smallest_p_holm``: what ``n`` seeds can reach at best.
    ``probability``, ``probability_low``, ``probability_high``: :func:`probability_of_improvement` over the
    ``probability_n`` seeds of which both runs are over; there a diverged run counts as a loss.
    ``unpaired``: seeds that the difference lacks, since a run diverged, failed, is unfinished or was never started.
    """
    rows = []
    for (task, data), group in chosen.groupby(COMPARISON):
        finished = group[group["status"] == "finished"]
        over = group[group["status"].isin(["finished", "diverged"])].assign(
            score=lambda runs: np.where(runs["status"] == "finished", -runs["test"].astype(float), np.inf)
        )
        values = finished.pivot_table(index="seed", columns="label", values="test", aggfunc="mean", observed=True)
        scores = over.pivot_table(index="seed", columns="label", values="score", aggfunc="mean", observed=True)
        seeds = group.groupby("label")["seed"].agg(set)
        of_group = []
        values = values.reindex(columns=scores.columns)
        for one, two in combinations(map(str, scores), 2):
            difference = (values[two] - values[one]).dropna()  # of bounds, hence ours - theirs of negative bounds
            if len(difference) and difference.mean() > 0:
                one, two, difference = two, one, -difference
            both = scores[[one, two]].dropna()
            p = dict(zip(("probability", "probability_low", "probability_high"), _improvement(both), strict=True))
            mean, low, high = interval(difference) if len(difference) else (np.nan, np.nan, np.nan)
            n = len(difference)
            row = {"task": task, "data": data, "estimator": one, "other": two, "difference": mean, "low": low}
            row |= {"high": high, "n": n, "unpaired": len(seeds[one] | seeds[two]) - n, "p": sign_flip_p(difference)}
            of_group.append({**row, **p, "probability_n": len(both)})
        tested = [row for row in of_group if row["n"]]
        for row, p_holm in zip(tested, holm([row["p"] for row in tested]), strict=True):
            reach = smallest_p(row["n"])
            row |= {"p_holm": p_holm, "family": len(tested), "smallest_p": reach}
            row["smallest_p_holm"] = min(1.0, reach * len(tested))
        rows += of_group
    columns = ["task", "data", "estimator", "other", "difference", "low", "high", "n", "unpaired", "p", "p_holm"]
    columns += ["family", "smallest_p", "smallest_p_holm"]
    columns += ["probability", "probability_low", "probability_high", "probability_n"]
    return pd.DataFrame(rows, columns=columns)


def _improvement(both: pd.DataFrame) -> tuple[float, float, float]:
    return probability_of_improvement(both.iloc[:, 0], both.iloc[:, 1])


def verdict(compared: pd.DataFrame) -> list[str]:
    """What :func:`pairs` says of each task and data set, in sentences; also that so few seeds can say nothing."""
    places: dict[str, list[str]] = {}
    for (task, data), group in compared[compared["n"] > 0].groupby(COMPARISON):
        m, apart, n = len(group), int((group["p_holm"] <= LEVEL).sum()), int(group["n"].max())
        line = f"{apart} of {m} pairs of estimators differ (paired by seed, sign-flip test, Holm, {LEVEL})"
        line += "" if apart else ", so the best, which is the lowest mean, may be best by chance"
        if group["smallest_p_holm"].min() > LEVEL:
            line += f"; none can with {n} shared seed{'s' if n != 1 else ''}: the smallest p is {smallest_p(n):.3g}"
            line += f", and {min(1.0, m * smallest_p(n)):.3g} after the correction for {m} pairs" if m > 1 else ""
            line += f"; it takes {1 + math.ceil(math.log2(m / LEVEL))} seeds"
        places.setdefault(line, []).append(str(task) if data == "none" else f"{task} on {data}")
    return [f"{', '.join(where)}: {line}." for line, where in places.items()]


def normalised(chosen: pd.DataFrame, reference: str | None = None) -> pd.DataFrame:
    """The finished runs of the estimators that every task has, with a ``score`` that may be put together across tasks.

    Without ``reference``: 0 is the lowest mean over seeds that an estimator has on the task and 1 the highest, hence it
    depends on which estimators are compared. With it: the difference to the mean of that estimator, in nats.
    ``attrs["left_out"]`` names the estimators that have no finished run on some task.
    """
    runs = chosen[chosen["status"] == "finished"].assign(score=lambda runs: -runs["test"].astype(float))
    tasks = runs.drop_duplicates(["label", *COMPARISON])["label"].value_counts()
    complete = tasks.index[tasks == len(chosen[COMPARISON].drop_duplicates())]
    kept = runs[runs["label"].isin(complete)].copy()
    if reference is not None and reference not in set(complete):
        raise ValueError(f"the reference estimator {reference!r} has no finished run on every task")
    for _, group in kept.groupby(COMPARISON):
        means = group.groupby("label")["score"].mean()
        if reference is None:
            kept.loc[group.index, "score"] = (group["score"] - means.min()) / ((means.max() - means.min()) or 1.0)
        else:
            kept.loc[group.index, "score"] = group["score"] - means[reference]
    kept.attrs["left_out"] = sorted(set(chosen["label"]) - set(complete))
    return kept


def interquartile_mean(scores: list[NDArray[np.floating]], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of the middle half of all ``scores`` (``[seeds]`` of each task) with a stratified bootstrap interval.

    Seeds are drawn anew within each task (Agarwal et al., 2021, arXiv 2108.13264); percentiles of 4999 draws with a
    fixed seed. As any percentile bootstrap it is too narrow for few seeds: by ``sqrt((n - 1) / n)`` at least, 0.82 for
    three. A single seed per task has none. A task with more seeds than another weighs more.
    """
    from scipy.stats import bootstrap, trim_mean

    def middle(*samples: NDArray[np.floating], axis: int = -1) -> Any:
        return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    point = float(middle(*scores))
    if min(len(sample) for sample in scores) < 2:
        return point, float("nan"), float("nan")
    ends = bootstrap(
        scores, middle, n_resamples=4999, confidence_level=confidence, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return point, float(ends.low), float(ends.high)


def across_tasks(chosen: pd.DataFrame, reference: str | None = None) -> pd.DataFrame:
    """One row per estimator that has finished runs on every task, the best first; empty for fewer than two tasks.

    ``iqm``, ``low``, ``high``: :func:`interquartile_mean` of :func:`normalised` scores. ``tasks``, and ``n``: runs in
    it; ``diverged``, ``failed``, ``unfinished``: runs of the chosen settings that are not. ``attrs`` as there.
    """
    columns = ["estimator", "iqm", "low", "high", "tasks", "n", "diverged", "failed", "unfinished"]
    scored = normalised(chosen, reference)
    tasks = len(scored[COMPARISON].drop_duplicates())
    rows = []
    for estimator, group in scored.groupby("label") if tasks > 1 else []:
        iqm, low, high = interquartile_mean([own["score"].to_numpy() for _, own in group.groupby(COMPARISON)])
        words = chosen.loc[chosen["label"] == estimator, "status"]
        row = {"estimator": estimator, "iqm": iqm, "low": low, "high": high, "tasks": tasks, "n": len(group)}
        row |= {word: int((words == word).sum()) for word in ("diverged", "failed")}
        rows.append({**row, "unfinished": int((~words.isin(["finished", "eliminated", "diverged", "failed"])).sum())})
    table = pd.DataFrame(rows, columns=columns).sort_values(["iqm", "estimator"], ignore_index=True)
    table.attrs["left_out"] = scored.attrs["left_out"]
    return table
