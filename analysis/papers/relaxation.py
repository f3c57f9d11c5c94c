"""The Gumbel-Softmax distribution at several temperatures: expectations and samples beside the categorical.

``python -m analysis.papers.relaxation STEM`` writes ``STEM.pdf`` and ``STEM.png``, from noise of the library's sampler.
The figure is Figure 1 of Jang, Gu, Poole, "Categorical reparameterization with Gumbel-Softmax", arXiv 1611.01144.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from analysis.figures.curves import save
from analysis.figures.style import BLUE, ORANGE, RC

TEMPERATURES = (0.1, 0.5, 1.0, 10.0)
PROBABILITIES = (0.05, 0.1, 0.25, 0.3, 0.15, 0.1, 0.05)
NOISE = Path(__file__).parents[1] / "page" / "gumbel_noise.json"
"""Written by ``make noise``."""


def relaxed(probabilities: ArrayLike, gumbel: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """``softmax((log p + g) / temperature)``: ``p [K]`` with every entry positive, ``g [..., K]`` -> ``[..., K]``."""
    scores = (np.log(np.asarray(probabilities, dtype=float)) + np.asarray(gumbel, dtype=float)) / temperature
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@matplotlib.rc_context(RC)
def expectations_and_samples(
    probabilities: ArrayLike, gumbel: ArrayLike, temperatures: Sequence[float] = TEMPERATURES
) -> Figure:
    """Two rows of bars over the K categories: (a) expectations, (b) samples; a column for the categorical first.

    Args:
        probabilities: ``[K]``, positive, summing to 1.
        gumbel: standard Gumbel noise ``[draws, K]``. Expectations are means over all draws, a sample is that of the
            first draw, the same in every column.
        temperatures: a column for each.

    Raises:
        ValueError: for probabilities that are none, or noise of another number of categories.
    """
    p, g = np.asarray(probabilities, dtype=float), np.asarray(gumbel, dtype=float)
    if p.ndim != 1 or not np.all(p > 0) or not np.isclose(p.sum(), 1):
        raise ValueError(f"probabilities must be positive [K] and sum to 1, not {p.tolist()}")
    if g.ndim != 2 or g.shape[1] != p.size or not len(g):
        raise ValueError(f"gumbel must be [draws, {p.size}], not {list(g.shape)}")
    drawn = np.eye(p.size)[np.argmax(np.log(p) + g[0])]
    columns = [("categorical", p, drawn)]
    for temperature in temperatures:
        z = relaxed(p, g, temperature)
        columns.append((f"temperature {temperature:g}", z.mean(axis=0), z[0]))
    figure = Figure(figsize=(1.35 * len(columns), 2.6))
    grid = figure.subplots(2, len(columns), sharex=True, sharey=True)
    for column, (title, expectation, sample) in enumerate(columns):
        for row, (heights, color) in enumerate(((expectation, BLUE), (sample, ORANGE))):
            axes = grid[row, column]
            axes.bar(np.arange(1, p.size + 1), heights, color=color, width=0.8)
            axes.grid(axis="x", visible=False)
            axes.set(ylim=(0, 1.04), xticks=[1, p.size])
        grid[0, column].set_title(title)
        grid[1, column].set_xlabel("category")
    grid[0, 0].set_ylabel("expectation")
    grid[1, 0].set_ylabel("sample")
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m analysis.papers.relaxation STEM")
    noise = np.array(json.loads(NOISE.read_text())["noise"])[:, : len(PROBABILITIES)]
    for file in save(expectations_and_samples(PROBABILITIES, noise), Path(sys.argv[1])):
        print(f"wrote {file}")
