"""ReinMax and its two low-variance relatives: closed forms at given noise, limits, and the law of total variance.

The contract is in ``test_pathwise``. Statistical assertions are at 6 standard errors (two-sided 2e-9 each), and every
test has a fixed seed.
"""

import math

import pytest
import torch

from estimators import ReinMax, ReinMaxCV, ReinMaxRao, StraightThrough, check_estimator
from estimators.contract import ContractError
from estimators.noise import noise_source


def sample_and_pullback(estimator, logits, g, seed=0):
    """``z`` and the gradient of ``sum(g * z)`` in the logits."""
    torch.manual_seed(seed)
    leaf = logits.clone().requires_grad_()
    z = estimator.sample(leaf)
    return z.detach(), torch.autograd.grad((z * g).sum(), leaf)[0]


def jacobian(m, g):
    return m * (g - (m * g).sum(-1, keepdim=True))


@pytest.mark.parametrize("categories", [2, 4])
def test_reinmax_is_the_mean_of_straight_through_and_darn(categories):
    """Sample by sample, at temperature 1, with DARN centred at p: the score times the loss's linear term."""
    torch.manual_seed(0)
    logits = torch.randn(200, 3, categories, dtype=torch.float64)
    g = torch.randn(200, 3, categories, dtype=torch.float64)
    z, reinmax = sample_and_pullback(ReinMax(), logits, g)
    same, straight_through = sample_and_pullback(StraightThrough(), logits, g)
    p = logits.softmax(-1)
    darn = (z - p) * (g * (z - p)).sum(-1, keepdim=True)
    assert torch.equal(z, same) and torch.allclose(reinmax, (straight_through + darn) / 2, atol=1e-12)


@pytest.mark.parametrize("categories", [2, 4])
def test_reinmax_at_a_temperature_mixes_two_jacobians(categories):
    torch.manual_seed(0)
    logits, g = torch.randn(2, 50, 3, categories, dtype=torch.float64)
    z, gradient = sample_and_pullback(ReinMax(1.4), logits, g)

    expected = 2 * jacobian(((logits / 1.4).softmax(-1) + z) / 2, g) - 0.5 * jacobian(logits.softmax(-1), g)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_reinmax_is_not_exact_for_cubics():
    """The contract measures its exactness up to degree 2; declared exact for degree 3 it fails."""

    class Cubic(ReinMax):
        exact_for = 3

    with pytest.raises(ContractError, match="degree 3.* is biased"):
        check_estimator(Cubic(), draws=10_000)
    assert ReinMax().exact_for == 2 and ReinMax(1.1).exact_for is None


# --- ReinMax-Rao ---------------------------------------------------------------------------------------------------


def test_reinmax_rao_is_the_formula_of_the_paper_at_given_noise():
    """The midpoint's conditional Gumbels are -log E_z for the sample, -log(E_j / m_j + E_z) for the others."""
    torch.manual_seed(0)
    logits, g = torch.randn(2, 50, 3, 4, dtype=torch.float64)
    exponentials = []

    def record(shape, dtype, device, event_dims):
        u = torch.rand(shape, dtype=dtype)
        exponentials.append(-torch.log1p(-u))
        return u

    with noise_source(record):
        z, gradient = sample_and_pullback(ReinMaxRao(0.7, 6), logits, g)
    p = logits.softmax(-1)
    m, e = (p + z) / 2, exponentials[1]
    top = (z * e).sum(-1, keepdim=True)
    y = (-torch.where(z > 0, top, e / m + top).log() / 0.7).softmax(-1)
    assert y.shape == (6, 50, 3, 4)
    assert torch.allclose(gradient, 2 * jacobian(y, g).mean(0) / 0.7 - 0.5 * jacobian(p, g), atol=1e-12)


def test_reinmax_rao_of_bits_has_the_distribution_of_the_general_formula():
    """K = 2 draws one logistic variable; a third, impossible category goes the general way. Two moments, given z."""
    torch.manual_seed(0)
    logits, g = torch.tensor([[0.3, -0.8]], dtype=torch.float64), torch.tensor([[0.4, -1.1]], dtype=torch.float64)
    third = torch.tensor([[-math.inf]], dtype=torch.float64)
    results = []
    for wide in (False, True):
        at, cotangent = (torch.cat((x, y), -1) if wide else x for x, y in ((logits, third), (g, torch.zeros(1, 1))))
        z, gradient = sample_and_pullback(ReinMaxRao(0.6, 1), at.expand(40_000, -1, -1), cotangent, seed=int(wide))
        assert gradient[..., 2:].eq(0).all()
        results.append((z[:, 0, 1], gradient[:, 0, 1]))
    for bit in (0, 1):
        for power in (1, 2):
            a, b = (gradient[z == bit] ** power for z, gradient in results)
            assert abs(a.mean() - b.mean()) < 6 * (a.var() / len(a) + b.var() / len(b)).sqrt()


@pytest.mark.parametrize("categories", [2, 3])
def test_limits_of_reinmax_rao(categories):
    """Given z. The Jacobian's variance is of order 1 / temperature: 6 errors of 200,000 draws are some 0.06."""
    torch.manual_seed(0)
    logits, g = torch.randn(2, 6, 1, categories, dtype=torch.float64)
    p = logits.softmax(-1)
    z, cold = sample_and_pullback(ReinMaxRao(0.01, 200_000), logits, g)
    darn = (z - p) * (g * (z - p)).sum(-1, keepdim=True)
    assert (cold - darn / 2).abs().max() < 0.06 and (darn / 2).abs().max() > 0.1
    same, hot = sample_and_pullback(ReinMaxRao(1e9, 2), logits, g)
    assert torch.equal(z, same) and torch.allclose(hot, -jacobian(p, g) / 2, atol=1e-7)


# --- ReinMax-CV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("categories", [2, 4])
def test_reinmax_cv_without_its_control_variate_is_reinmax(categories):
    torch.manual_seed(0)
    logits, g = torch.randn(2, 100, 3, categories, dtype=torch.float64)
    assert all(map(torch.equal, *(sample_and_pullback(e, logits, g) for e in (ReinMaxCV(scale=0.0), ReinMax()))))


def test_reinmax_cv_is_the_formula_at_given_noise():
    torch.manual_seed(0)
    logits, g = torch.randn(2, 50, 3, 4, dtype=torch.float64)
    gumbels, exponentials = [], []

    def record(shape, dtype, device, event_dims):
        u = torch.rand(shape, dtype=dtype)
        exponentials.append(-torch.log1p(-u))
        gumbels.append(-exponentials[-1].log())
        return u

    with noise_source(record):
        z, gradient = sample_and_pullback(ReinMaxCV(0.7, 1.5, 6), logits, g)
    p = logits.softmax(-1)
    m, e = (p + z) / 2, exponentials[1]
    top = (z * e).sum(-1, keepdim=True)
    given = -torch.where(z > 0, top, e / p + top).log() - p.log()
    assert torch.equal((logits + given).argmax(-1), z.argmax(-1).expand(6, -1, -1))
    own, fresh = (jacobian(((m.log() + noise) / 0.7).softmax(-1), g) / 0.7 for noise in (gumbels[0], given))
    expected = 2 * jacobian(m, g) - 0.5 * jacobian(p, g) + 1.5 * (fresh.mean(0) - own)
    assert torch.allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("categories", [2, 4])
def test_the_pair_of_reinmax_cv_has_mean_zero_given_the_sample_and_only_adds_variance(categories):
    """Given z: mean 0, whatever z is. So it is uncorrelated with ReinMax, and (1 + 1/n) / (1 + 1) of its variance with
    one inner draw remains with n."""
    torch.manual_seed(0)
    logits = torch.tensor([[0.3, -1.0, 0.8, 0.0]], dtype=torch.float64)[:, :categories].expand(60_000, 1, categories)
    g = torch.tensor([1.3, -0.4, 0.2, -2.0], dtype=torch.float64)[:categories]
    variances = {}
    for n in (1, 10):
        z, reinmax = sample_and_pullback(ReinMax(), logits, g)
        same, gradient = sample_and_pullback(ReinMaxCV(0.5, 0.5, n), logits, g)
        pair = (gradient - reinmax)[:, 0]
        assert torch.equal(z, same)
        for category in range(categories):
            group = pair[z[:, 0, category] > 0]
            assert (group.mean(0).abs() < 6 * group.std(0) / len(group) ** 0.5).all()
        products = pair * (reinmax - reinmax.mean(0))[:, 0]
        assert (products.mean(0).abs() < 6 * products.std(0) / len(products) ** 0.5).all()
        assert gradient.var(0).sum() > reinmax.var(0).sum()
        variances[n] = pair.var(0), ((pair - pair.mean(0)) ** 2).std(0) / len(pair) ** 0.5
    ratio = 1.1 / 2
    error = (variances[10][1] ** 2 + (ratio * variances[1][1]) ** 2).sqrt()
    assert ((variances[10][0] - ratio * variances[1][0]).abs() < 6 * error).all()


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ReinMax(0.5), "ReinMax: temperature must be at least 1, not 0.5"),
        (lambda: ReinMaxRao(0.0), "ReinMaxRao: temperature must be positive and finite"),
        (lambda: ReinMaxRao(1.0, 0), "ReinMaxRao: num_inner must be at least 1, not 0"),
        (lambda: ReinMaxCV(-1.0), "ReinMaxCV: temperature must be positive and finite"),
        (lambda: ReinMaxCV(1.0, math.nan), "ReinMaxCV: scale must be finite, not nan"),
        (lambda: ReinMaxCV(1.0, 0.5, 0), "ReinMaxCV: num_inner must be at least 1, not 0"),
    ],
)
def test_bad_arguments_raise_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)
