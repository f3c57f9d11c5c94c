"""Figures from the long frame: learning curves, gradient variance, reconstructions, samples.

``frame`` is always the long frame of the runs to show (:func:`chosen`), of one protocol per task and data set. A figure
is a plain ``matplotlib.figure.Figure``: no pyplot, no window, no global state left behind.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.figures.style import STYLE, fit_titles, in_order, legend_below, look, with_looks
from analysis.records import IMAGES, DamagedRecord
from analysis.records.files import replacing
from analysis.records.images import read_images as read_images_of
from analysis.statistics.curves import Curve, Metric, average
from analysis.statistics.summary import COMPARISON, curve_metrics, final_rows, select

COLUMNS = 3
MANY = 8
"""More estimators than this in one panel get more height and fainter bands."""
DRAWN = frozenset(
    ("path", "step", "seed", "estimator", "family", "task", "data", "primary", "evaluate_samples", "valid_samples")
    + ("pack_replicas", "loss_evaluations", "protocol.optimum", "estimator.variance_normalisation")
)
"""What figures need besides metrics."""
IMAGES_SHOWN = 10
SHOWN = ("originals", "reconstructions", "samples")
X_LABELS = {
    "step": "training steps",
    "loss_evaluations": "evaluations of the loss per example",
    "seconds": "seconds of training",
}
EARLY = 0.2
"""The share of the steps whose losses may lie above the visible range: they fall by hundreds of nats."""

UNDER_WAY = ("running", "queued", "waiting")
UNSCALED, NORMALISED = "gradient_variance_unscaled", "estimator.variance_normalisation"


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """Of the long ``frame`` the runs that are shown: of each cell the finished runs of its chosen setting; of a cell
    that has none, whatever is under way, with status ``running``."""
    runs = select(final_rows(frame))
    shown = runs[(runs["status"] == "finished") | (runs["setting"].isna() & runs["status"].isin(UNDER_WAY))]
    shown = shown.set_index("path")
    roles = frame.attrs.get("roles", {})
    columns = [name for name in frame if name in DRAWN or roles.get(name, "metric") == "metric"]
    kept = frame.loc[frame["path"].isin(shown.index), columns]
    kept.attrs = {}  # of which pandas makes copies at every turn
    places, paths = pd.factorize(kept["path"])
    of_run = shown.loc[paths].replace({"status": dict.fromkeys(UNDER_WAY, "running")})
    return kept.assign(**{name: of_run[name].astype("category").array.take(places) for name in ("status", "label")})


@matplotlib.style.context(STYLE)
def learning_curves(frame: pd.DataFrame, x: str = "step") -> Figure | None:
    """Negative validation bound (nats) against ``x``: mean over seeds with its pointwise 95 % interval (Student's t).

    ``x`` is a key of ``X_LABELS`` (:func:`~analysis.statistics.summary.curve`); seconds are those of a whole pack of
    runs that trained together, and the axis says of how many.

    Which bound: see :func:`~analysis.statistics.summary.curve_metrics`. Of a toy problem it is the expected loss, with
    a line at the optimum. One panel per task and data set; unfinished runs are drawn one by one, thin. ``None`` if
    there is nothing to draw.
    """
    if x not in frame or frame[x].isna().all():
        return None
    return _panels(frame, curve_metrics(frame), partial(_learning_curve, x=x), x)


@matplotlib.style.context(STYLE)
def gradient_variance(frame: pd.DataFrame) -> Figure | None:
    """Mean per-parameter gradient variance (log scale) against steps: geometric mean over seeds with 95 % interval.

    It is that of the gradient as applied. An estimator with variance normalisation divides its gradient by a scale, so
    its curve cannot be compared with the others'; the panel says so. Beside it stands the variance times the square of
    that scale, where it was recorded, which can.

    Panels, unfinished runs and ``None`` as in :func:`learning_curves`.
    """
    return _panels(_with_unscaled(frame), ("gradient_variance",), _variance_curve)


def _with_unscaled(frame: pd.DataFrame) -> pd.DataFrame:
    """With a label of its own for the unscaled variance of what rescales its gradient."""
    if UNSCALED not in frame or not len(rows := frame[frame[UNSCALED].notna()]):
        return frame
    label = "label" if "label" in frame else "estimator"
    own = rows.assign(
        label=rows[label].astype(str) + ", unscaled",
        path=rows["path"].astype(str) + ", unscaled",
        gradient_variance=rows[UNSCALED],
        **{NORMALISED: False},
    )
    return pd.concat([frame.assign(label=frame[label].astype(str)), own], ignore_index=True)


@matplotlib.style.context(STYLE)
def temperatures(frame: pd.DataFrame) -> Figure | None:
    """The estimators' temperatures against steps (of several layers the first's): mean over seeds with 95 % interval.

    A learned or annealed temperature is drawn, and a constant one beside it. ``None`` if none changes.
    """
    if "temperature" not in frame:
        return None
    values = frame.groupby("path", observed=True)["temperature"].nunique()
    runs = frame[["path", *COMPARISON]].drop_duplicates("path")
    cells = runs.loc[runs["path"].isin(values.index[values > 1]), COMPARISON].drop_duplicates()
    moving = frame[frame["path"].isin(runs.merge(cells)["path"])]
    return _panels(moving, ("temperature",), _temperature_curve) if len(cells) else None


def _panels(frame: pd.DataFrame, metrics: tuple[str, ...], draw: Any, x: str = "step") -> Figure | None:
    panels = []
    frame = with_looks(frame if "label" in frame else frame.assign(label=frame["estimator"]))
    for (task, data), group in frame.groupby(COMPARISON, observed=True):
        metric = next((name for name in metrics if name in group and group[name].notna().any()), None)
        if metric:
            panels.append((str(task) if data == "none" else f"{task}, {data}", metric, group))
    if not panels:
        return None
    columns = 2 if len(panels) == 4 else min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    names = in_order({name for *_, group in panels for name in group["label"].unique()})
    height = 2.6 if len(names) <= MANY else 3.6
    figure = Figure(figsize=(3.4 * columns + (1.0 if columns == 1 else 0), height * rows))
    handles: dict[str, Any] = {}
    for position, (title, metric, group) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, position + 1)
        axes.set_title(title)
        axes.set_xlabel(X_LABELS[x] + (_together(group) if x == "seconds" else ""))
        draw(axes, group, metric, handles)
        axes.margins(x=0.02)
        axes.xaxis.set_major_formatter(_thousands)
    order = [name for name in names if name in handles]
    legend_below(figure, [handles[name] for name in order], [look(name).label for name in order], 2 * columns)
    fit_titles(figure)
    return figure


def _together(group: pd.DataFrame) -> str:
    """How many runs trained together, if more than one."""
    packs = sorted(set(group["pack_replicas"].dropna().astype(int))) if "pack_replicas" in group else []
    return f" of packs of {', '.join(map(str, packs))} runs" if packs and packs != [1] else ""


def _thousands(value: float, _: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _learning_curve(axes: Axes, group: pd.DataFrame, metric: str, handles: dict[str, Any], x: str) -> None:
    what = metric.removeprefix("valid_").replace("pseudo_", "pseudo-").replace("elbo", "ELBO")
    if what.endswith("bound"):
        axes.set_title(f"{axes.get_title()}, m = {group['valid_samples'].iloc[0]} samples")
    is_loss = what == "value" or what.endswith(("bound", "ELBO"))
    nats = "expected loss" if what == "value" else f"negative validation {what} [nats]"
    axes.set_ylabel(nats if is_loss else f"validation {what.replace('_', ' ')}")
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")  # losses near 0.249 are no "+2.49e-1"
    optimum = _optimum(group)
    lowest, highest = list(optimum), list(optimum)
    for drawn in _draw(axes, group, Metric(metric, negated=is_loss), handles, x):
        late = drawn.mean[drawn.x >= EARLY * drawn.x.max()]
        lowest.append(late.min())
        highest.append(late.max())
    if lowest and (span := max(highest) - min(lowest)) > 0:
        axes.set_ylim(min(lowest) - (0.08 if optimum else 0.06) * span, max(highest) + 0.06 * span)
    for value in optimum:
        axes.axhline(value, color="0.5", linewidth=0.8, zorder=1)
        below: Any = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "top"}
        axes.text(1, value, "optimum", fontsize=6.5, color="0.3", **below)


def _optimum(group: pd.DataFrame) -> list[float]:
    """The least loss that a toy problem has, if the runs know it."""
    column = "protocol.optimum"
    return group[column].dropna().astype(float).unique().tolist() if column in group else []


def _variance_curve(axes: Axes, group: pd.DataFrame, metric: str, handles: dict[str, Any]) -> None:
    axes.set_ylabel("gradient variance")
    if NORMALISED in group and (rescaled := in_order(set(group.loc[group[NORMALISED].eq(True), "label"]))):
        labels = ", ".join(look(name).label for name in rescaled)
        axes.set_title(f"{axes.get_title()}\n({labels}: rescaled, not comparable)")
    axes.set_yscale("log")
    _draw(axes, group[group[metric] > 0], Metric(metric, log=True), handles)


def _temperature_curve(axes: Axes, group: pd.DataFrame, metric: str, handles: dict[str, Any]) -> None:
    axes.set_ylabel("temperature")
    _draw(axes, group[group[metric].notna()], Metric(metric), handles)
    axes.set_ylim(bottom=0)


def _draw(axes: Axes, group: pd.DataFrame, metric: Metric, handles: dict[str, Any], x: str = "step") -> list[Curve]:
    """Draw one curve per label, of a label without a finished run one per run; returns them."""
    drawn = []
    names = in_order(set(group["label"].unique()))
    for place, name in enumerate(names):
        runs = group[group["label"] == name]
        style = runs["look"].iat[0]
        unfinished = (runs["status"] != "finished").all()
        parts = [part for _, part in runs.groupby("path", observed=True)] if unfinished else [runs]
        for part in parts:
            curve = average(part, metric, x)
            if curve is None:
                continue
            every = max(1, curve.x.size // 7)
            (line,) = axes.plot(curve.x, curve.mean, **style.line(), markevery=(place * every // len(names), every))
            if unfinished:
                line.set(linewidth=0.6, marker="")
            if curve.band:
                alpha = 0.18 if len(names) <= MANY else 0.09
                axes.fill_between(curve.x, *curve.band, color=style.color, alpha=alpha, linewidth=0)
            handles.setdefault(name, Line2D([], [], **style.line()))
            drawn.append(curve)
        if unfinished and drawn:
            axes.set_title("thin: unfinished runs", loc="right", fontsize=7, y=0.93)
    return drawn


def read_images(frame: pd.DataFrame) -> dict[str, dict[str, NDArray[Any]]]:
    """Per estimator the images of its first finished seed.

    Returns ``{estimator: {"originals": [n, h, w], "reconstructions": [n, h, w], "samples": [n, h, w]}}``.
    ``frame`` holds runs of one task and data set. A file that cannot be read is warned of by name and left out.
    """
    found: dict[str, dict[str, NDArray[Any]]] = {}
    finished = frame[frame["status"] == "finished"].drop_duplicates("path").sort_values(["label", "seed", "path"])
    for estimator, path in zip(finished["label"], finished["path"], strict=True):
        if estimator in found:
            continue
        try:
            arrays = read_images_of(Path(path))
            if arrays is not None:
                found[estimator] = {name: _strip(arrays, name) for name in SHOWN}
        except DamagedRecord as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
        except (KeyError, ValueError) as error:
            warnings.warn(f"left out: {Path(path) / IMAGES}: not the pictures that are drawn ({error})", stacklevel=2)
    return {name: found[name] for name in in_order(set(found))}


def _strip(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if arrays[name].ndim != 3:
        raise ValueError(f"{name} has shape {list(arrays[name].shape)}")
    return arrays[name]


def reconstructions(images: dict[str, dict[str, NDArray[Any]]], title: str) -> Figure | None:
    """A row of originals, then a row of reconstructions per estimator; originals stand again where they change."""
    rows: list[tuple[str, NDArray[Any]]] = []
    originals: NDArray[Any] | None = None
    for name, arrays in images.items():
        if originals is None or not np.array_equal(originals, arrays["originals"]):
            originals = arrays["originals"]
            rows.append(("original", originals))
        rows.append((look(name).label, arrays["reconstructions"]))
    return _strips(rows, f"Reconstructions: {title}")


def samples(images: dict[str, dict[str, NDArray[Any]]], title: str) -> Figure | None:
    """Per estimator a row of images decoded from latent codes that were drawn from the prior."""
    return _strips([(look(name).label, arrays["samples"]) for name, arrays in images.items()], f"Samples: {title}")


@matplotlib.style.context(STYLE)
def _strips(rows: list[tuple[str, NDArray[Any]]], title: str) -> Figure | None:
    rows = [(label, images[:IMAGES_SHOWN]) for label, images in rows if len(images)]
    if not rows:
        return None
    figure = Figure(figsize=(6.6, 0.53 * len(rows) + 0.35))
    grid = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    grid[0].set_title(title)
    for axes, (label, images) in zip(grid, rows, strict=True):
        n, height, width = images.shape
        gap = max(1, width // 14)
        strip = np.full((height, IMAGES_SHOWN * (width + gap) - gap), np.nan)
        for place in range(n):
            strip[:, place * (width + gap) : place * (width + gap) + width] = images[place]
        axes.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


@matplotlib.style.context(STYLE)
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.pdf`` (vector; the same bytes for the same figure) and ``stem.png``; returns both paths."""
    pdf, png = stem.with_name(f"{stem.name}.pdf"), stem.with_name(f"{stem.name}.png")
    own: dict[Path, dict[str, Any]] = {pdf: {"metadata": {"CreationDate": None}}, png: {}}
    for file, options in own.items():
        with replacing(file) as temporary:
            figure.savefig(temporary, format=file.suffix[1:], **options)
    return [pdf, png]
