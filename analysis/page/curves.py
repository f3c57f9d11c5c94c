"""Curves for the interactive report: means over seeds with their intervals, single runs, thinned to a few points."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics.curves import Metric, average
from analysis.statistics.summary import curve_metrics

POINTS = 200
"""Longer curves are drawn at this many of their steps, the first and the last among them."""
AXES = ("step", "loss_evaluations", "seconds")
_CURVE = re.compile(r"(train|valid)_(?!samples$)|gradient_variance(_unscaled)?$|temperature(_\d+)?$")


def curve_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of the long ``frame`` that hold metrics of training or validation."""
    return [name for name in map(str, frame) if _CURVE.match(name) and frame[name].notna().any()]


def metrics_of(long: pd.DataFrame, columns: list[str]) -> Iterator[Metric]:
    """The metrics that have a curve in ``long``, first the one that the figure of learning curves shows."""
    first = next((name for name in curve_metrics(long) if name in columns and long[name].notna().any()), None)
    for name in sorted(columns, key=lambda name: (name != first, name)):
        counts = long.dropna(subset=[name]).groupby("path", observed=True)[name]
        if not (counts.size() > 1).any() or (name.startswith("temperature") and not (counts.nunique() > 1).any()):
            continue
        split, _, what = name.partition("_")
        split = {"valid": "validation ", "train": "training "}.get(split, "")
        if name in {f"valid_{kind}{bound}" for kind in ("", "pseudo_") for bound in ("elbo", "bound")}:
            what = what.replace("pseudo_", "pseudo-").replace("elbo", "ELBO")
            yield Metric(name, f"negative {split}{what} [nats]", negated=True)
        elif name == "valid_value":
            yield Metric(name, "expected loss", negated=True)
        elif name.startswith("gradient_variance"):
            yield Metric(name, name.replace("_", " "), log=True)
        else:
            yield Metric(name, f"{split}{what if split else name}".replace("_", " "))


@dataclass
class Curves:
    """Curves of groups of runs; ``parts`` is the long frame by path, ``grids`` the points that curves refer to."""

    parts: dict[str, pd.DataFrame]
    metrics: list[Metric]
    grids: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[tuple[str, ...], int] = field(default_factory=dict)

    def of(self, runs: pd.DataFrame) -> dict[str, Any]:
        """Per metric ``mean``: that of the finished ``runs``; ``runs``: each of them; ``others``: those not finished.

        ``runs`` are rows of :func:`~analysis.statistics.summary.ranked`, whose index names them.
        """
        places = dict(zip(runs["path"], map(int, runs.index), strict=True))
        done = runs["status"] == "finished"
        found: dict[str, Any] = {}
        for metric in self.metrics:
            own: dict[str, Any] = {"mean": None, "runs": {}, "others": {}}
            if mean := self._mean(runs.loc[done, "path"], metric):
                own["runs"] = {places[path]: line for path, line in mean.pop("each").items()}
                own["mean"] = mean
            for path in runs.loc[~done, "path"]:
                if alone := self._mean([path], metric):
                    own["others"][places[path]] = {"grid": alone["grid"], "values": alone["values"]}
            if own["mean"] or own["others"]:
                found[metric.name] = own
        return found

    def _mean(self, paths: Iterable[str], metric: Metric) -> dict[str, Any] | None:
        parts = [self.parts[path] for path in paths if path in self.parts]
        if not parts:
            return None
        rows = pd.concat(parts)
        curve = average(rows, metric)
        if curve is None:
            return None
        thin = curve.thinned(POINTS)
        rows = rows[rows[metric.name].notna()]
        rows = rows[rows[metric.name] > 0] if metric.log else rows
        found = {"grid": self._grid(rows, thin.x, curve.x.size), "values": _short(thin.mean)}
        if thin.band:
            found |= {"low": _short(thin.band[0]), "high": _short(thin.band[1])}
        each = dict(zip(thin.paths, map(_short, thin.lines), strict=True))
        return found | {"n": len(thin.paths), "each": each}

    def _grid(self, rows: pd.DataFrame, steps: NDArray[Any], total: int) -> int:
        """The place in ``grids`` of ``steps`` with the mean loss evaluations and seconds of the runs there."""
        means = rows[rows["step"].isin(steps)].groupby("step")[list(AXES[1:])].mean()
        grid = {"step": steps.tolist(), "steps": int(total)} | {
            name: _short(means[name].to_numpy()) for name in AXES[1:]
        }
        key = tuple(map(str, grid.values()))
        if key not in self._known:
            self._known[key] = len(self.grids)
            self.grids.append(grid)
        return self._known[key]


def _short(values: NDArray[Any]) -> list[float | None]:
    """Values rounded to six significant digits, ``None`` for missing ones."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.astype(float).tolist()]
