"""Coupled estimators: the contract, closed forms of variances, and identities between them.

Statistical assertions are at 6 standard errors (two-sided 2e-9 each), and every test has a fixed seed.
"""

import math

import pytest
import torch

from estimators import Exact, check_estimator
from estimators.arm import ARM
from estimators.arms import ARMS
from estimators.ars import ARS
from estimators.arsm import ARSM
from estimators.carms import CARMS
from estimators.categorical_disarm import DisARMIW, DisARMStickBreaking, DisARMTree
from estimators.disarm import DisARM
from estimators.noise import noise_source, open_uniform

BINARY = {
    "ARM": ARM(),
    "DisARM": DisARM(),
    "ARMS of 2": ARMS(2),
    "ARMS of 5": ARMS(5),
    "ARMS gaussian of 2": ARMS(2, "gaussian"),
    "ARMS gaussian of 3": ARMS(3, "gaussian"),
}
CATEGORICAL = {
    "CARMS of 2": CARMS(2),
    "CARMS of 3": CARMS(3),
    "DisARMTree": DisARMTree(),
    "DisARMStickBreaking": DisARMStickBreaking(),
    "DisARMStickBreaking descending": DisARMStickBreaking("descending"),
    "DisARMStickBreaking as given": DisARMStickBreaking(None),
    "DisARMIW": DisARMIW(),
}
ALL = {**BINARY, **CATEGORICAL, "ARS": ARS(), "ARSM": ARSM()}


@pytest.mark.parametrize("name", ALL)
def test_contract(name):
    check_estimator(ALL[name], draws=6_000)


def test_evaluations_of_swaps_depend_on_the_categories():
    logits = [torch.zeros(1, 1, k) for k in (2, 4, 10)]
    assert [ARSM().evaluations_for(x) for x in logits] == [2, 7, 46]
    assert [ARS().evaluations_for(x) for x in logits] == [2, 4, 10]


def gradients(estimator, logits, loss, draws, noise=None):
    """One gradient per draw, ``[draws, *logits.shape]``, in float64."""
    leaf = logits.double().expand(draws, *logits.shape).contiguous().requires_grad_()
    with noise_source(noise):
        return torch.autograd.grad(estimator(leaf, loss).sum(), leaf)[0]


def bernoulli(p):
    return torch.tensor([[0.0, math.log(p / (1 - p))]], dtype=torch.float64)


# --- variances of one bit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", [n for n in ALL if "5" not in n and "3" not in n])
def test_variance_on_one_bernoulli(name, p):
    """D^2 [1/12 - 2/3 (m - 1/2)^3 - p^2 q^2] for ARM and ARSM, D^2 m^2 (1 - m)(m - 1/2) for two-sample DisARM."""
    torch.manual_seed(1)
    first, second = 0.09, 0.49
    g = gradients(ALL[name], bernoulli(p), lambda z: z[..., 0, 0] * first + z[..., 0, 1] * second, 60_000)[..., 1]
    g = g.flatten()
    m, q = max(p, 1 - p), 1 - p
    if name in ("ARM", "ARS", "ARSM"):
        variance = 1 / 12 - 2 / 3 * (m - 0.5) ** 3 - p**2 * q**2
    else:
        variance = m**2 * (1 - m) * (m - 0.5)
    variance *= (second - first) ** 2
    exact = (second - first) * p * q
    spread = ((g - exact) ** 2).std() / len(g) ** 0.5
    assert abs(((g - exact) ** 2).mean() - variance) < 6 * spread + 1e-12
    assert abs(g.mean() - exact) < 6 * g.std() / len(g) ** 0.5 + 1e-12


def test_disarm_has_no_variance_at_one_half():
    torch.manual_seed(0)
    g = gradients(DisARM(), torch.zeros(1, 2), lambda z: 3 * z[..., 0, 1] ** 2, 1000)
    assert torch.allclose(g, torch.tensor([[-0.75, 0.75]], dtype=torch.float64).expand_as(g))


def test_disarm_is_the_conditional_mean_of_arm():
    """On the same noise: the mean of ARM's estimates among the draws with one pair (b, b~) is DisARM's estimate."""
    logits = torch.tensor([[0.0, 1.1], [0.0, -0.4]])
    loss = lambda z: (z[..., 0, 1] - 0.3) ** 2 + 2 * z[..., 0, 1] * z[..., 1, 1]  # noqa: E731
    results = []
    for estimator in (ARM(), DisARM()):
        torch.manual_seed(4)
        results.append(gradients(estimator, logits, loss, 100_000)[..., 1])
    arm, disarm = results
    kinds, kind, counts = disarm.round(decimals=9).unique(dim=0, return_inverse=True, return_counts=True)
    assert len(kinds) > 4
    for i in range(len(kinds)):
        group = arm[kind == i]
        error = group.std(0) / counts[i] ** 0.5
        assert ((group.mean(0) - kinds[i]).abs() < 6 * error + 1e-9).all()


# --- identities: the same estimate from the same noise ---------------------------------------------------------------


def cubic(z):
    weights = torch.linspace(-1, 1.7, z.shape[-2] * z.shape[-1], dtype=z.dtype).reshape(z.shape[-2:])
    return (z * weights).sum((-2, -1)) ** 3 + (z**2 * weights.flip(0)).sum((-2, -1))


def test_two_arms_are_disarm():
    """The Dirichlet variable (d, 1 - d) of two samples is a uniform one: d = u for rare ones, 1 - u for rare zeros."""
    torch.manual_seed(0)
    u = torch.rand(2000, 3, dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.3], [0.0, -0.6], [0.5, 0.1]])
    d = torch.where(logits[:, 1] > logits[:, 0], 1 - u, u)
    disarm = gradients(DisARM(), logits, cubic, 2000, lambda *_: u)
    arms = gradients(ARMS(2), logits, cubic, 2000, lambda *_: -torch.expm1(-torch.stack((d, 1 - d))))
    assert disarm.abs().max() > 0 and torch.allclose(arms, disarm, atol=1e-12)


def test_arsm_of_two_categories_is_arm():
    torch.manual_seed(0)
    u = torch.rand(2000, 3, dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.3], [0.0, -0.6], [0.5, 0.1]])
    arm = gradients(ARM(), logits, cubic, 2000, lambda *_: u)
    arsm = gradients(ARSM(), logits, cubic, 2000, lambda *_: -torch.expm1(-torch.stack((u, 1 - u), dim=-1)))
    assert torch.allclose(arsm, arm, atol=1e-12)


def with_reference(u, reference, categories):
    """A source for ARS and ARSM: the Dirichlet variables from ``u``, and one reference category for all."""
    return lambda shape, *_: u if len(shape) == u.dim() else torch.full(shape, (reference + 0.5) / categories)


def test_ars_of_two_categories_is_arm():
    torch.manual_seed(0)
    u = torch.rand(2000, 3, dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.3], [0.0, -0.6], [0.5, 0.1]])
    arm = gradients(ARM(), logits, cubic, 2000, lambda *_: u)
    dirichlet = -torch.expm1(-torch.stack((u, 1 - u), dim=-1))
    for reference in (0, 1):
        ars = gradients(ARS(), logits, cubic, 2000, with_reference(dirichlet, reference, 2))
        assert torch.allclose(ars, arm, atol=1e-12)


@pytest.mark.parametrize("categories", [2, 3, 5])
def test_arsm_is_the_mean_of_ars_over_the_reference_category(categories):
    torch.manual_seed(0)
    logits, u = torch.randn(3, categories), torch.rand(500, 3, categories, dtype=torch.float64)
    arsm, *ars = (
        gradients(estimator, logits, cubic, 500, with_reference(u, reference, categories))
        for estimator, reference in ((ARSM(), 0), *((ARS(), j) for j in range(categories)))
    )
    assert arsm.abs().max() > 0 and torch.allclose(torch.stack(ars).mean(0), arsm, atol=1e-12)


def test_two_carms_of_two_categories_are_disarm():
    torch.manual_seed(0)
    u = torch.rand(2000, 3, dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.3], [0.0, -0.6], [0.5, 0.1]])
    disarm = gradients(DisARM(), logits, cubic, 2000, lambda *_: u)
    source = lambda shape, *_: u if len(shape) == 2 else -torch.expm1(-torch.stack((1 - u, u)))  # noqa: E731
    assert torch.allclose(gradients(CARMS(2), logits, cubic, 2000, source), disarm, atol=1e-12)


def test_trees_and_sticks_of_two_categories_are_disarm():
    torch.manual_seed(0)
    u = torch.rand(2000, 3, dtype=torch.float64)
    logits = torch.tensor([[0.0, 1.3], [0.0, -0.6], [0.5, 0.1]])
    disarm = gradients(DisARM(), logits, cubic, 2000, lambda *_: u)
    tree = gradients(DisARMTree(), logits, cubic, 2000, lambda *_: u.unsqueeze(-1))
    sticks = gradients(DisARMStickBreaking(None), logits, cubic, 2000, lambda *_: 1 - u.unsqueeze(-1))
    assert torch.allclose(tree, disarm, atol=1e-12) and torch.allclose(sticks, disarm, atol=1e-12)


# --- unbiasedness and couplings where the contract's problems do not go ----------------------------------------------


@pytest.mark.parametrize("name", [*CATEGORICAL, "ARS", "ARSM"])
@pytest.mark.parametrize("categories", [3, 5])
def test_unbiased_with_skewed_probabilities(name, categories):
    """Probabilities from 5e-3 to 0.8: where a coupling misses pairs of categories, the mean is off."""
    torch.manual_seed(0)
    logits = torch.tensor([[3.0, -2.0, 0.0, 1.0, -1.0], [0.2, 1.5, -1.5, 0.0, 2.5]])[:, :categories]
    table = torch.randn(categories, categories, dtype=torch.float64)
    loss = lambda z: torch.einsum("...i,...j,ij->...", z[..., 0, :], z[..., 1, :], table)  # noqa: E731
    g = gradients(ALL[name], logits, loss, 40_000)
    exact = gradients(Exact(), logits, loss, 1)[0]
    assert ((g.mean(0) - exact).abs() < 6 * g.std(0) / len(g) ** 0.5).all()


@pytest.mark.parametrize("name", [n for n in ALL if "5" not in n])
def test_samples_have_the_right_marginals_and_are_one_hot(name):
    torch.manual_seed(3)
    logits = torch.tensor([[2.0, -1.0], [-3.0, 0.5]]) if name in BINARY else torch.tensor([[2.0, -1.0, 0.3, -4.0, 1.0]])
    seen = []
    ALL[name](logits.expand(30_000, *logits.shape), lambda z: seen.append(z) or z.sum((-2, -1)))
    p = logits.softmax(-1)
    for z in seen[0]:
        assert ((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all()
        assert ((z.mean(0) - p).abs() < 6 * (p * (1 - p) / len(z)).sqrt()).all()


def test_rare_bits_are_drawn_at_the_right_rate_in_single_precision():
    torch.manual_seed(0)
    p = 1e-3
    for estimator in (ARMS(4), ARMS(4, "gaussian")):
        for sign in (1, -1):
            logits = sign * torch.tensor([[0.0, math.log(p / (1 - p))]]).expand(250_000, 1, 2)
            seen = []
            estimator(logits, lambda z, seen=seen: seen.append(z) or z.sum((-2, -1)))
            rate = seen[0][..., 1 if sign == 1 else 0].mean()
            assert abs(rate - p) < 6 * (p / 1e6) ** 0.5


def test_gaussian_copula_against_scipy():
    """P(b_i = b_j = 1) from the quadrature and from scipy's bivariate normal distribution function."""
    from scipy.stats import multivariate_normal, norm

    log_m = torch.tensor([0.5, 0.2, 1e-3], dtype=torch.float64).log()
    for n in (3, 10):
        _, both = ARMS(n, "gaussian")._gaussian(log_m)
        for m, value in zip(log_m.exp().tolist(), both.tolist(), strict=True):
            normal = multivariate_normal([0, 0], [[1, -1 / (n - 1)], [-1 / (n - 1), 1]])
            assert value * m == pytest.approx(normal.cdf([norm.ppf(m)] * 2), rel=1e-5, abs=1e-12)


def test_more_antithetic_samples_beat_independent_ones():
    """ARMS(4) and CARMS(4) have at most the variance of the leave-one-out estimator with 4 independent samples."""
    torch.manual_seed(0)

    def independent(logits, loss, draws):
        p = logits.softmax(-1).double()
        z = torch.distributions.OneHotCategorical(probs=p).sample((4, draws))
        f = loss(z)
        return ((f - f.mean(0))[..., None, None] * (z - p)).sum(0) / 3

    for estimator, logits in (
        (ARMS(4), torch.tensor([[0.0, 0.7], [0.0, -0.3]])),
        (ARMS(4, "gaussian"), torch.tensor([[0.0, 0.7], [0.0, -0.3]])),
        (CARMS(4), torch.tensor([[0.0, 0.7, -0.5], [0.3, -0.3, 0.0]])),
    ):
        variance = gradients(estimator, logits, cubic, 40_000).var(0).sum()
        assert variance < 0.9 * independent(logits, cubic, 40_000).var(0).sum()


# --- replicas ------------------------------------------------------------------------------------------------------


def stream(seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda shape, dtype, device, event: open_uniform(shape, dtype, device, generators, len(shape) - event - 2)


@pytest.mark.parametrize("name", ALL)
def test_replicas_draw_their_own_noise(name):
    """Two replicas in one call, under a sample dimension, equal each replica alone on its own stream."""
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, 2, 2 if name in BINARY else 5, dtype=torch.float64)

    def gradient(part, seeds):
        leaf = part.clone().requires_grad_()
        with noise_source(stream(seeds)):
            losses = ALL[name](leaf, cubic)
        return torch.autograd.grad(losses.sum(), leaf)[0]

    both = gradient(logits, [1, 2])
    assert torch.allclose(both[:, :1], gradient(logits[:, :1], [1])) and both.abs().max() > 0
    assert torch.allclose(both[:, 1:], gradient(logits[:, 1:], [2]))


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ARMS(1), "ARMS: num_samples must be at least 2, not 1"),
        (lambda: ARMS(2, "clayton"), "ARMS: copula must be 'dirichlet' or 'gaussian'"),
        (lambda: CARMS(1), "CARMS: num_samples must be at least 2, not 1"),
        (lambda: DisARMStickBreaking("abs"), "DisARMStickBreaking: order must be 'ascending', 'descending' or None"),
        (lambda: ARM()(torch.zeros(1, 1, 3), cubic), "ARM is defined for Bernoulli latents"),
    ],
)
def test_bad_arguments_raise_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)
