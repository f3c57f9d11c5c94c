"""Figure 1 of Jang et al.: what its bars show."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from analysis.papers.relaxation import TEMPERATURES, expectations_and_samples, relaxed
from estimators import GumbelSoftmax, noise_source

P = np.array([0.05, 0.1, 0.25, 0.3, 0.15, 0.1, 0.05])
GUMBEL = np.random.default_rng(0).gumbel(size=(4000, P.size))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_formula_is_the_librarys(temperature):
    """``GumbelSoftmax.sample`` on the same noise ``g = -log(-log(1 - u))``."""
    uniform = torch.tensor(-np.expm1(-np.exp(-GUMBEL)))
    with noise_source(lambda shape, dtype, device, event_dims: uniform.reshape(shape)):
        z = GumbelSoftmax(temperature).sample(torch.tensor(np.log(P)).expand(len(GUMBEL), 1, P.size))
    assert np.allclose(z.squeeze(1).numpy(), relaxed(P, GUMBEL, temperature), atol=1e-9)


def test_the_bars():
    """The expectation goes from the categorical (cold) to uniform (hot); a sample from a corner to the middle."""
    figure = expectations_and_samples(P, GUMBEL)
    heights = np.array([[bar.get_height() for bar in axes.patches] for axes in figure.axes]).reshape(2, 5, P.size)
    expectations, samples = heights
    assert np.allclose(heights.sum(-1), 1)
    assert np.array_equal(expectations[0], P) and np.array_equal(np.sort(samples[0]), np.eye(P.size)[-1])
    assert np.abs(expectations[1] - P).max() < 4 * np.sqrt(0.25 / len(GUMBEL))
    assert (np.diff(np.abs(expectations - 1 / P.size).max(-1)[1:]) < 0).all()
    assert (np.diff(samples.max(-1)[1:]) < 0).all() and (samples.argmax(-1)[:3] == samples[0].argmax()).all()


def test_cold_samples_follow_the_categorical():
    """The largest category of a relaxed sample is an exact one at every temperature; false alarm 1e-6."""
    counts = np.bincount(relaxed(P, GUMBEL, 0.1).argmax(-1), minlength=P.size)
    assert chisquare(counts, P * len(GUMBEL)).pvalue > 1e-6


@pytest.mark.parametrize("p, g", [([0.5, 0.6], GUMBEL[:, :2]), ([1.0, 0.0], GUMBEL[:, :2]), (P, GUMBEL[:, :2])])
def test_what_is_no_distribution_is_refused(p, g):
    with pytest.raises(ValueError, match="must be"):
        expectations_and_samples(p, g)
