"""Pathwise estimators: the contract, closed forms and identities; densities of the Concrete distribution.

Statistical assertions are at 6 standard errors (two-sided 2e-9 each), and every test has a fixed seed.
"""

import copy
import math

import mpmath
import pytest
import torch

from estimators import GumbelSoftmax, StraightThrough, check_estimator
from estimators.concrete import relaxed_log_prob, relaxed_log_sample
from estimators.decoupled_straight_through import DecoupledStraightThrough
from estimators.discrete_vae import OverlappingExponential, SpikeAndExponential
from estimators.gapped_straight_through import GappedStraightThrough
from estimators.gumbel_rao import GumbelRao, _gumbels_given, _logistic_given
from estimators.identity_straight_through import IdentityStraightThrough
from estimators.noise import noise_source, open_uniform
from estimators.reinmax import ReinMax
from estimators.reinmax_cv import ReinMaxCV
from estimators.reinmax_rao import ReinMaxRao

HARD = {
    "GumbelRao": GumbelRao(0.8, num_inner=4),
    "GumbelRao of 1": GumbelRao(0.3, num_inner=1),
    "GappedStraightThrough": GappedStraightThrough(),
    "GappedStraightThrough p": GappedStraightThrough(0.5, "p"),
    "GappedStraightThrough tensors": GappedStraightThrough(torch.full((1, 1, 1), 0.7), torch.full((1, 1, 1), 2.0)),
    "ReinMax": ReinMax(),
    "ReinMax at 1.3": ReinMax(1.3),
    "ReinMaxCV": ReinMaxCV(0.5, 1.5, num_inner=3),
    "ReinMaxRao": ReinMaxRao(0.5, num_inner=3),
    "DecoupledStraightThrough": DecoupledStraightThrough(),
    "DecoupledStraightThrough at 0.5": DecoupledStraightThrough(1.0, 0.5),
    "IdentityStraightThrough": IdentityStraightThrough(),
}
# Sharp ones: the contract's clause on impossible categories rounds z, and a smoothed sure bit may be below 1/2.
SMOOTH = {
    "SpikeAndExponential": SpikeAndExponential(40.0),
    "OverlappingExponential": OverlappingExponential(torch.full((1, 1, 1), 30.0)),
}


@pytest.mark.parametrize("name", [*HARD, *SMOOTH])
def test_contract(name):
    check_estimator({**HARD, **SMOOTH}[name], draws=10_000)


def gradients(estimator, logits, loss, draws, seed=0):
    """One gradient per draw, ``[draws, *logits.shape]``, in float64."""
    torch.manual_seed(seed)
    leaf = logits.double().expand(draws, *logits.shape).contiguous().requires_grad_()
    return torch.autograd.grad(copy.deepcopy(estimator).double()(leaf, loss).sum(), leaf)[0]


def sample_and_pullback(estimator, logits, g, seed=0):
    """``z`` and the gradient of ``sum(g * z)`` in the logits."""
    torch.manual_seed(seed)
    leaf = logits.clone().requires_grad_()
    z = estimator.sample(leaf)
    return z.detach(), torch.autograd.grad((z * g).sum(), leaf)[0]


def cubic(z):
    weights = torch.linspace(-1, 1.7, z.shape[-2] * z.shape[-1], dtype=z.dtype).reshape(z.shape[-2:])
    return (z * weights).sum((-2, -1)) ** 3 + (z**2 * weights.flip(0)).sum((-2, -1))


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("categories", [2, 5])
def test_samples_are_exactly_one_hot_with_the_right_frequencies(name, categories):
    torch.manual_seed(2)
    logits = 2 * torch.randn(3, categories)
    z = HARD[name].sample(logits.expand(30_000, 3, categories))
    assert ((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all()
    p = logits.softmax(-1)
    assert ((z.mean(0) - p).abs() < 6 * (p * (1 - p) / len(z)).sqrt() + 1e-6).all()


@pytest.mark.parametrize("name", [*HARD, *SMOOTH])
def test_replicas_draw_their_own_noise(name):
    torch.manual_seed(0)
    estimator = {**HARD, **SMOOTH}[name]
    logits = torch.randn(3, 2, 4, 2, 2 if name in SMOOTH else 5)

    def draw(part, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with noise_source(lambda s, dtype, device, e: open_uniform(s, dtype, device, generators, len(s) - e - 2)):
            return sample_and_pullback(estimator, part, torch.arange(1.0, part.shape[-1] + 1))

    both = draw(logits, [1, 2])
    for replica in (0, 1):
        for together, alone in zip(both, draw(logits[:, replica : replica + 1], [replica + 1]), strict=True):
            assert torch.allclose(together[:, replica : replica + 1], alone, atol=1e-6)


@pytest.mark.parametrize("categories", [2, 4])
@pytest.mark.parametrize(
    "method",
    [
        lambda t: GumbelRao(t, 3),
        lambda t: GappedStraightThrough(t, t),
        lambda t: ReinMax(1 + t),
        lambda t: ReinMaxCV(t, 1 / t, 2),
        lambda t: ReinMaxRao(t, 2),
        lambda t: DecoupledStraightThrough(t, 1 / t),
        SpikeAndExponential,
        OverlappingExponential,
    ],
)
def test_a_hyperparameter_per_replica(method, categories):
    """A tensor equals one estimator per value on the same noise."""
    values = torch.tensor([0.2, 1.0, 5.0]).reshape(3, 1, 1, 1)
    categories = 2 if method in (SpikeAndExponential, OverlappingExponential) else categories
    logits, g = torch.randn(2, 3, 5, 2, categories)
    together = sample_and_pullback(method(values), logits, g)
    for r, value in enumerate(values.flatten().tolist()):
        for ours, alone in zip(together, sample_and_pullback(method(value), logits, g), strict=True):
            assert torch.allclose(ours[r], alone[r], rtol=1e-4, atol=1e-6)


# --- Gumbel-Rao ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("categories", [2, 4])
def test_gumbel_rao_has_the_mean_of_st_gumbel_softmax_and_less_variance(categories):
    logits = torch.tensor([[0.3, -1.0, 0.8, 0.0], [-0.5, 0.7, 0.1, 1.0]])[:, :categories]
    st, one, many = (
        gradients(estimator, logits, cubic, 40_000, seed)
        for seed, estimator in enumerate((GumbelSoftmax(0.4, hard=True), GumbelRao(0.4, 1), GumbelRao(0.4, 10)))
    )
    for other in (one, many):
        error = ((st.var(0) + other.var(0)) / len(st)).sqrt()
        assert ((st.mean(0) - other.mean(0)).abs() < 6 * error).all()
    for power in (2, 4):  # num_inner = 1: equal in distribution, here in more moments
        error = (((st**power).var(0) + (one**power).var(0)) / len(st)).sqrt()
        assert (((st**power).mean(0) - (one**power).mean(0)).abs() < 6 * error).all()
    assert many.var(0).sum() < 0.8 * st.var(0).sum()


def test_conditional_noise_keeps_the_sample():
    torch.manual_seed(0)
    for categories, conditional in ((2, _logistic_given), (6, _gumbels_given)):
        logits = 3 * torch.randn(50, 4, categories)
        z = StraightThrough().sample(logits)
        noisy = conditional(z, logits, 20)
        chosen = (noisy > 0).long() if categories == 2 else noisy.argmax(-1)
        assert (chosen == z.argmax(-1)).all()


@pytest.mark.parametrize("categories", [2, 3])
def test_gumbel_rao_tends_to_reinmax_at_low_temperature(categories):
    """Given z. The Jacobian's variance is of order 1 / temperature: 6 errors of 200,000 draws are some 0.03."""
    torch.manual_seed(0)
    logits, g = torch.randn(2, 6, 1, categories, dtype=torch.float64)
    z, rao = sample_and_pullback(GumbelRao(0.01, 200_000), logits, g)
    same, reinmax = sample_and_pullback(ReinMax(), logits, g)
    assert torch.equal(z, same) and (rao - reinmax).abs().max() < 0.03
    assert (sample_and_pullback(StraightThrough(), logits, g)[1] - reinmax).abs().max() > 0.07


# --- the straight-through family -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0.5, 3.0, "p"])
def test_gapped_straight_through_puts_the_sample_ahead(gap):
    torch.manual_seed(0)
    estimator = GappedStraightThrough(gap=gap)
    logits = 2 * torch.randn(500, 4, 5, dtype=torch.float64)
    z = StraightThrough().sample(logits)
    shifted = estimator._shifted(z, logits)
    p = (z * logits.softmax(-1)).sum(-1)
    wanted = -torch.log1p(-p) / p if gap == "p" else torch.full_like(p, gap)
    chosen, others = (z * shifted).sum(-1), shifted.masked_fill(z > 0, -math.inf).amax(-1)
    assert torch.equal(chosen, logits.amax(-1)) and (chosen - others >= wanted - 1e-9).all()
    ahead = logits.masked_fill(z > 0, -math.inf).amax(-1) + wanted <= (z * logits).sum(-1)
    assert ahead.any() and torch.equal(shifted[ahead], logits[ahead])


def test_gapped_straight_through_on_log_odds_is_the_general_formula():
    torch.manual_seed(0)
    logits, g = torch.randn(2, 500, 3, 2, dtype=torch.float64)
    for gap in (0.7, "p"):
        z, gradient = sample_and_pullback(GappedStraightThrough(0.6, gap), logits, g)
        p = (z * logits.softmax(-1)).sum(-1, keepdim=True)
        top = logits.amax(-1, keepdim=True)
        lead = -torch.log1p(-p) / p if gap == "p" else gap
        m = (torch.where(z > 0, top, torch.minimum(logits, top - lead)) / 0.6).softmax(-1)
        assert torch.allclose(gradient, m * (g - (m * g).sum(-1, keepdim=True)) / 0.6, atol=1e-12)


def test_identity_straight_through_passes_the_gradient():
    torch.manual_seed(0)
    logits, g = torch.randn(2, 20, 3, 4)
    assert torch.equal(sample_and_pullback(IdentityStraightThrough(), logits, g)[1], g)
    bits = sample_and_pullback(IdentityStraightThrough(), logits[..., :2], g[..., :2])[1]
    slope = g[..., 1] - g[..., 0]  # of the bit
    assert torch.allclose(bits, torch.stack((-slope, slope), -1))


@pytest.mark.parametrize("categories", [2, 4])
def test_decoupled_straight_through_contains_straight_through(categories):
    torch.manual_seed(0)
    logits, g = torch.randn(2, 100, 3, categories)
    ours = sample_and_pullback(DecoupledStraightThrough(1.0, 0.3), logits, g)
    assert all(map(torch.equal, ours, sample_and_pullback(StraightThrough(0.3), logits, g)))
    z, gradient = sample_and_pullback(DecoupledStraightThrough(0.3, 0.3), logits, g)
    same, tempered = sample_and_pullback(StraightThrough(), logits / 0.3, g)
    assert torch.equal(z, same) and torch.allclose(gradient, tempered / 0.3, rtol=1e-4, atol=1e-6)


# --- discrete VAEs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 3.0, 12.0])
def test_smoothed_bits_invert_their_distribution_function(beta):
    """At noise v the distribution function is 1 - v, except below the spike."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(5000, 1, 2, dtype=torch.float64)
    v, p = torch.rand(5000, 1, dtype=torch.float64), logits.softmax(-1)[..., 1]
    with noise_source(lambda *_: v):
        s = SpikeAndExponential(beta).sample(logits)[..., 1]
        t = OverlappingExponential(beta).sample(logits)[..., 1]
    spike = (1 - p) + p * torch.expm1(beta * s) / math.expm1(beta)
    assert ((s == 0) == (v >= p)).all() and torch.allclose(spike[s > 0], 1 - v[s > 0])
    falling, rising = torch.expm1(-beta * t) / math.expm1(-beta), torch.expm1(beta * t) / math.expm1(beta)
    assert torch.allclose((1 - p) * falling + p * rising, 1 - v)


@pytest.mark.parametrize("method", [SpikeAndExponential, OverlappingExponential])
def test_smoothed_bits_have_the_derivative_at_fixed_noise(method):
    logits = torch.tensor([[0.0, 1.0], [0.3, -0.4], [1.0, 3.0], [0.0, 0.2]], dtype=torch.float64, requires_grad=True)

    def sample(x):
        torch.manual_seed(1)
        return method(torch.tensor([[2.0], [3.0], [5.0], [8.0]])).sample(x)

    assert torch.autograd.gradcheck(sample, (logits,)) and sample(logits)[:, 1].gt(0).any()


# --- the Concrete distribution -------------------------------------------------------------------------------------


def reference(log_y, logits, temperature):
    """The density of Maddison et al., appendix C.3, with 60 digits."""
    with mpmath.workdps(60):
        log_y, logits, t = [mpmath.mpf(v) for v in log_y], [mpmath.mpf(v) for v in logits], mpmath.mpf(temperature)
        terms = [a - t * x for a, x in zip(logits, log_y, strict=True)]
        total = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in terms))
        k = len(terms)
        return float(mpmath.log(mpmath.factorial(k - 1)) + (k - 1) * mpmath.log(t) + mpmath.fsum(terms) - k * total)


@pytest.mark.parametrize("temperature", [1e-3, 0.03, 2 / 3, 10.0])
@pytest.mark.parametrize("categories", [2, 3, 8])
def test_concrete_density_against_high_precision(categories, temperature):
    torch.manual_seed(0)
    logits = 3 * torch.randn(20, 1, categories, dtype=torch.float64)
    log_y = relaxed_log_sample(logits, temperature)
    value = relaxed_log_prob(log_y, logits, temperature)
    expected = [reference(y, a, temperature) for y, a in zip(log_y[:, 0].tolist(), logits[:, 0].tolist(), strict=True)]
    assert torch.allclose(value[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)
    single = relaxed_log_prob(log_y.float(), logits.float(), temperature)
    assert torch.allclose(single.double(), value, rtol=1e-4, atol=1e-4)


def test_concrete_density_against_torch_where_torch_is_finite():
    """torch's density is over the simplex: smaller by the sum of log y."""
    torch.manual_seed(0)
    logits = torch.randn(50, 1, 4, dtype=torch.float64)
    log_y = relaxed_log_sample(logits, 0.8)
    theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.8), logits=logits).log_prob(log_y.exp())
    assert torch.allclose(relaxed_log_prob(log_y, logits, 0.8) - log_y.sum(-1), theirs)


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 10.0])
def test_binary_concrete_density_integrates_to_one(temperature):
    """Trapezoids on +-60 / temperature around the mode, where the tails are below e^-50."""
    a = 1.3
    l = torch.linspace(a - 60, a + 60, 20_001, dtype=torch.float64) / temperature  # noqa: E741
    log_y = torch.stack((torch.zeros_like(l), l), -1).unsqueeze(-2)
    density = relaxed_log_prob(log_y, torch.tensor([[0.0, a]], dtype=torch.float64), temperature).exp()
    assert torch.trapezoid(density[:, 0], l).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("temperature", [1e-2, 0.7, 5.0])
def test_concrete_density_integrates_to_one(temperature):
    """Importance sampling of the two log-ratios from independent logistic variables of the density's own scale."""
    torch.manual_seed(0)
    logits = torch.tensor([0.5, -0.7, 0.0], dtype=torch.float64)
    u = torch.rand(400_000, 2, dtype=torch.float64).clamp(1e-15, 1 - 1e-15)
    x = u.logit()
    ratios = (logits[:2] - logits[2] + 1.5 * x) / temperature
    log_y = torch.cat((ratios, torch.zeros_like(ratios[:, :1])), -1).unsqueeze(-2)
    proposal = (u.log() + torch.log1p(-u) + math.log(temperature / 1.5)).sum(-1)
    weight = (relaxed_log_prob(log_y, logits.unsqueeze(0), temperature)[:, 0] - proposal).exp()
    assert abs(weight.mean() - 1) < 6 * weight.std() / len(weight) ** 0.5 and weight.std() < 3


@pytest.mark.parametrize("categories", [2, 4])
def test_concrete_samples_are_gumbel_softmax_samples_in_log_space(categories):
    logits = torch.randn(100, 3, categories, dtype=torch.float64)
    torch.manual_seed(1)
    log_y = relaxed_log_sample(logits, 0.4)
    torch.manual_seed(1)
    assert torch.allclose(log_y.exp(), GumbelSoftmax(0.4).sample(logits))
    assert torch.allclose(log_y.logsumexp(-1), torch.zeros(100, 3, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("categories", [2, 4])
def test_relaxed_kl_and_its_gradient_are_finite_in_single_precision(categories):
    """At 1e-3, too; with a temperature per replica."""
    torch.manual_seed(0)
    temperature = torch.tensor([1e-3, 2 / 3, 10.0]).reshape(3, 1, 1, 1)
    logits = (100 * torch.randn(3, 50, 2, categories)).requires_grad_()
    log_y = relaxed_log_sample(logits, temperature)
    kl = relaxed_log_prob(log_y, logits, temperature) - relaxed_log_prob(log_y, torch.zeros(2, categories), 0.5)
    gradient = torch.autograd.grad(kl.sum(), logits)[0]
    assert kl.shape == (3, 50, 2) and kl.isfinite().all() and gradient.isfinite().all()


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GumbelRao(0.0), "GumbelRao: temperature must be positive and finite"),
        (lambda: GumbelRao(1.0, 0), "GumbelRao: num_inner must be at least 1, not 0"),
        (lambda: GappedStraightThrough(1.0, -1.0), "GappedStraightThrough: gap must be positive and finite"),
        (lambda: GappedStraightThrough(1.0, "q"), "GappedStraightThrough: gap must be positive and finite or 'p'"),
        (lambda: DecoupledStraightThrough(1.0, math.nan), "backward_temperature must be positive and finite"),
        (lambda: SpikeAndExponential(100.0), "SpikeAndExponential: beta must be at most 80"),
        (lambda: OverlappingExponential().sample(torch.zeros(1, 1, 3)), "Bernoulli latents"),
        (lambda: relaxed_log_prob(torch.zeros(1, 2), torch.zeros(1, 2), 0.0), "Concrete: temperature must be positive"),
    ],
)
def test_bad_arguments_raise_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)
