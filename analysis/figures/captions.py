"""Captions of the figures that ``python -m analysis`` writes, with what was trained, as one file beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.output import visible
from analysis.records.files import write_atomically
from analysis.statistics.summary import COMPARISON
from analysis.tables import trained
from analysis.tables.table import MARKDOWN

CAPTIONS = {
    "learning_curves_seconds": (
        "Negative validation bound against seconds of training, of the whole pack; mean over the finished "
        "seeds of each estimator's chosen setting, with the pointwise 95 % interval (Student's t)."
    ),
    "learning_curves_evaluations": (
        "Negative validation bound against evaluations of the loss per example; mean over the finished seeds "
        "of each estimator's chosen setting, with the pointwise 95 % interval (Student's t)."
    ),
    "learning_curves": (
        "Negative validation bound (m: its importance samples; ELBO: one) against training steps; mean over "
        "the finished seeds of each estimator's chosen setting, with the pointwise 95 % interval (Student's "
        "t). Early losses may lie above the axis. Thin lines: runs that are under way."
    ),
    "gradient_variance": (
        "Variance of the encoder's gradient of a minibatch's mean loss, as the optimiser gets it: mean over "
        "parameters of m2 - m1^2, moving moments with decay 0.999; geometric mean over the finished seeds of "
        "each estimator's chosen setting, with the pointwise 95 % interval (Student's t). Estimators that the "
        "title names divide their gradient by a running scale and cannot be compared; unscaled: times the square "
        "of the scale."
    ),
    "temperatures": (
        "Temperature of the estimator (of several layers the first's); mean over the finished seeds of each "
        "estimator's chosen setting, with the pointwise 95 % interval (Student's t)."
    ),
    "ranked_gradient_variance": (
        "Gradient variance at the last common step, geometric mean with 95 % interval over seeds."
    ),
    "ranked": (
        "Test metric of each estimator's chosen setting, mean with 95 % interval over seeds, best on top; a "
        "number with an arrow lies beyond the axis."
    ),
    "reconstructions": ("Test images (first row) and their reconstructions, of the first finished seed."),
    "samples": ("Images decoded from codes drawn from the prior, of the first finished seed."),
    "sensitivity": (
        "Negative test bound at each learning rate, other options chosen on validation at each; ring: the "
        "chosen value; cross with a number: runs that diverged; arrow: a mean beyond the axis."
    ),
    "variance_over_training": (
        "Variance of one gradient at fixed parameters and minibatch, per parameter; bars: two standard errors."
    ),
    "bias_variance": (
        "Relative bias |E g - r| / |r| (r: exact or reference gradient) against relative variance tr Cov(g) / "
        "|r|^2 of one gradient; below: bias that cannot be told from 0, with its largest size. *: declared "
        "biased."
    ),
    "variance_ranking": (
        "Cost to reach unit signal-to-noise: relative variance times evaluations, or seconds, of one "
        "gradient: the work until the noise of the mean gradient is as long as the gradient. *: declared "
        "biased."
    ),
}
"""By the beginning of a figure's name; the first that fits."""


def caption(name: str) -> str | None:
    """That of the figure ``name``; ``None`` for one of a paper's own."""
    return next((text for start, text in CAPTIONS.items() if name == start or name.startswith(f"{start}_")), None)


def write(files: Sequence[Path], summary: pd.DataFrame, output: Path) -> list[Path]:
    """Write ``figures.md`` for the pictures among ``files``, which show runs of ``summary``; none for no picture."""
    pictures = {file.stem: text for file in files if file.suffix == ".png" and (text := caption(file.stem))}
    if not pictures:
        return []
    blocks = [f"## {name}\n\n{text}" for name, text in pictures.items()]
    for (task, data), group in summary.groupby(COMPARISON):
        lines = [*trained.whole(group), *(f"Command: {line}" for line in trained.commands(group))]
        about = "\n".join(f"- {MARKDOWN.sentence(visible(line))}" for line in lines)
        blocks.append(f"## What was trained: {MARKDOWN.sentence(visible(f'{task}, {data}'))}\n\n{about}")
    write_atomically(output / "figures.md", ("\n\n".join(["# Figures", *blocks]) + "\n").encode())
    return [output / "figures.md"]
