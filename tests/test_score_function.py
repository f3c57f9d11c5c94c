"""RLOO, VIMCO, MuProp, DARN, UnorderedSet, IndeCateR: contract, exact means, closed forms.

Most tests are exact (enumeration, identities) and cannot fail by chance. The others compare means with 6 standard
errors (2e-9 per comparison, fewer than 500 comparisons: below 1e-6 together) or run ``check_estimator`` (1e-6 each),
from fixed seeds.
"""

import itertools
import math

import pytest
import torch
from exact_means import exact_gradient, exact_mean, gradients, polynomial

from estimators import REINFORCE, Exact, check_estimator
from estimators.darn import DARN
from estimators.double_cv import DoubleCV
from estimators.indecater import IndeCateR
from estimators.muprop import MuProp
from estimators.rebar import REBAR
from estimators.relax import RELAX
from estimators.rloo import RLOO
from estimators.rodeo import RODEO
from estimators.unordered_set import UnorderedSet, log_ratios, stochastic_beam_search
from estimators.vimco import VIMCO

UNBIASED = {
    "RLOO": RLOO(3),
    "MuProp": MuProp(),
    "REBAR": REBAR(),
    "REBAR tied": REBAR(tied=True),
    "RELAX": RELAX(2, hidden=4, layers=1),
    "DoubleCV": DoubleCV(2, alpha=-0.8),
    "RODEO": RODEO(2, hidden=4),
    "UnorderedSet": UnorderedSet(3),
    "IndeCateR": IndeCateR(),
}


@pytest.mark.parametrize(
    "estimator",
    [RLOO(), RLOO(5), MuProp(), DARN(), DARN(0.2), DARN(torch.full((1, 1, 1), -1.0)), UnorderedSet(2), UnorderedSet(4)],
    ids=lambda e: f"{type(e).__name__}({e.evaluations})",
)
def test_contract(estimator):
    check_estimator(estimator, draws=5_000)


def test_the_evaluations_of_indecater_depend_on_the_shape_of_the_logits():
    check_estimator(IndeCateR(), draws=5_000)
    assert IndeCateR().evaluations_for(torch.zeros(7, 2, 4)) == 8


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_exact_means(monkeypatch, shape, degree):
    """Enumerating every joint sample, the mean of value and gradient is that of Exact."""
    logits = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    f = polynomial(degree, *shape)
    cases = [(RLOO(2), 2), (MuProp(), None), (IndeCateR(), None)]
    if shape == (1, 3):
        cases.append((RLOO(4), 4))
    for estimator, samples in cases:
        value, gradient = exact_mean(monkeypatch, estimator, logits, f, samples)
        assert torch.allclose(value, Exact()(logits, f), rtol=0, atol=1e-12)
        assert torch.allclose(gradient, exact_gradient(logits, f), rtol=0, atol=1e-12)


# --- nesting and closures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["outer", "inner"])
@pytest.mark.parametrize("name", UNBIASED)
def test_nested_with_reinforce_stays_unbiased(name, place):
    torch.manual_seed(4)
    estimator, other = UNBIASED[name].double(), REINFORCE()
    first, second = (estimator, other) if place == "outer" else (other, estimator)
    logits, bias = torch.randn(2, 2, 2, dtype=torch.float64)
    weights = torch.randn(4, 4, dtype=torch.float64)
    f = polynomial(2, 2, 2)

    def estimate(one, two, draws):
        leaves = [x.expand(*draws, 2, 2).clone().requires_grad_() for x in (logits, bias)]

        def outer_loss(z1):
            inner_logits = (z1.flatten(-2) @ weights).unflatten(-1, (2, 2)) + leaves[1]
            return two(inner_logits, lambda z2: f(z2 - 0.5 * z1))

        return torch.autograd.grad(one(leaves[0], outer_loss).sum(), leaves)

    got, want = estimate(first, second, (20_000,)), estimate(Exact(), Exact(), ())
    for mean, exact in zip(got, want, strict=True):
        error = mean.std(0) / len(mean) ** 0.5 + 1e-10
        assert ((mean.mean(0) - exact).abs() < 6 * error).all()


@pytest.mark.parametrize("name", UNBIASED)
def test_parameters_of_the_loss_get_the_gradient_at_the_hard_samples_only(name):
    """No gradient from the mean, the relaxed samples or the variance descent leaks into what loss closes over."""
    torch.manual_seed(0)
    seen = []
    w = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def loss(z):
        seen.append(z.detach().clone())
        return (z * w).sum((-2, -1)) ** 3

    estimator = UNBIASED[name].double()
    logits = torch.randn(50, 2, 2, dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(estimator(logits, loss).sum(), w)[0]
    hard = next(z for z in seen if ((z == 0) | (z == 1)).all())
    right = (hard * w).sum((-2, -1)) ** 3
    if name == "IndeCateR":
        weights = logits.softmax(-1).movedim((-2, -1), (0, 1)).flatten(0, 1).detach() / 2
        right = (weights * right).sum()
    elif name == "UnorderedSet":
        log_q = (hard * logits.detach().log_softmax(-1)).sum((-2, -1))
        first, _ = log_ratios(log_q.mT, False)
        right = (right * (log_q + first.mT).exp()).sum()
    else:
        right = right.mean(0).sum() if hard.dim() == 4 else right.sum()
    assert torch.allclose(got, torch.autograd.grad(right, w)[0], rtol=1e-9, atol=1e-9)


# --- RLOO ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rloo_with_two_samples_of_one_bernoulli(p):
    """The estimate is half the difference if the samples differ, its variance D^2 p(1-p)(1/2 - p(1-p))."""
    torch.manual_seed(0)
    t, v = 0.499, p * (1 - p)
    logits = torch.tensor([[0.0, math.log(p / (1 - p))]])
    delta = (1 - t) ** 2 - t**2
    g = gradients(RLOO(2), logits, lambda z: ((z[..., 1] - t) ** 2).sum(-1), 100_000)[..., 1].flatten()
    assert ((g.abs() < 1e-12) | ((g - delta / 2).abs() < 1e-12)).all()
    frequency = (g.abs() > 1e-12).double().mean()
    assert abs(frequency - 2 * v) < 6 * (2 * v * (1 - 2 * v) / len(g)) ** 0.5
    variance = delta**2 * v * (0.5 - v)
    assert abs(g.var() - variance) < 6 * ((g - g.mean()) ** 2).std() / len(g) ** 0.5 + 20 * variance / len(g)


# --- VIMCO ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "samples"), [((2, 2), 2), ((2, 2), 3), ((1, 3), 4), ((2, 3), 2)])
def test_vimco_is_unbiased_for_the_multi_sample_bound(monkeypatch, shape, samples):
    """All K**(L * samples) joint samples: value and gradient, also the part through log q in the weight."""
    logits = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    f = polynomial(2, *shape)

    def bound(leaf):
        states = _all_states(shape)
        log_q = (states * leaf.log_softmax(-1)).sum((-2, -1))
        log_weight = -f(states) - log_q
        joint = torch.tensor(list(itertools.product(range(len(states)), repeat=samples)))
        return (log_q[joint].sum(-1).exp() * (log_weight[joint].logsumexp(-1) - math.log(samples))).sum()

    leaf = logits.clone().requires_grad_()
    expected = bound(leaf)
    expected_gradient = torch.autograd.grad(expected, leaf)[0]
    z_logits = {}

    class Recorded(VIMCO):
        def estimate(self, logits, loss, context):
            z_logits["value"] = logits
            return super().estimate(logits, loss, context)

    def loss(z):  # log q with its gradient, as in an ELBO
        return f(z) + (z * z_logits["value"].log_softmax(-1)).sum((-2, -1))

    value, gradient = exact_mean(monkeypatch, Recorded(samples), logits, loss, samples)
    assert torch.allclose(-value, expected, rtol=0, atol=1e-12)
    assert torch.allclose(-gradient, expected_gradient, rtol=0, atol=1e-12)
    assert VIMCO.objective == "multi_sample_bound" and getattr(RLOO, "objective", "mean") == "mean"


def _all_states(shape):
    """``[K**L, L, K]``, the first latent's category the most significant digit."""
    digits = list(itertools.product(range(shape[1]), repeat=shape[0]))
    return torch.eye(shape[1], dtype=torch.float64)[torch.tensor(digits)]


def test_vimco_leaves_out_by_the_geometric_mean():
    """Written out sample by sample; and a constant added to the loss changes no gradient, only the bound."""
    log_weight = torch.randn(4, 3, dtype=torch.float64)
    for s in range(4):
        replaced = log_weight.exp()
        replaced[s] = torch.cat((replaced[:s], replaced[s + 1 :])).prod(0) ** (1 / 3)
        assert torch.allclose(VIMCO(4)._left_out(log_weight)[s], replaced.mean(0).log(), rtol=1e-12)
    logits, f, results = torch.randn(3, 4, dtype=torch.float64), polynomial(2, 3, 4), []
    for constant in (0.0, 100.0):
        torch.manual_seed(0)
        results.append(gradients(VIMCO(3), logits, lambda z, c=constant: f(z) + c, 100))
    assert torch.allclose(*results, rtol=1e-9, atol=1e-9) and results[0].abs().max() > 1e-3


def test_vimco_is_finite_and_keeps_examples_apart():
    torch.manual_seed(0)
    f = polynomial(2, 3, 4)
    for scale in (1e3, math.inf):
        logits = torch.zeros(8, 3, 4)
        logits[..., 0], logits[..., 0, 1] = -scale, min(scale, 1e3)
        leaf = logits.requires_grad_()
        losses = VIMCO(3)(leaf, f)
        assert losses.shape == (8,) and losses.isfinite().all()
        assert torch.autograd.grad(losses.sum(), leaf)[0].isfinite().all()
    results = []
    for changed in (False, True):
        torch.manual_seed(1)
        leaf = torch.zeros(8, 3, 4)
        leaf[3] += 5.0 * changed * torch.arange(4.0)
        leaf.requires_grad_()
        results.append(torch.autograd.grad(VIMCO(3)(leaf, f).sum(), leaf)[0])
    others = torch.arange(8) != 3
    assert torch.equal(results[0][others], results[1][others])
    with torch.no_grad():
        assert not VIMCO(3)(leaf, f).requires_grad


# --- MuProp, DARN, IndeCateR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2), (2, 4)])
def test_muprop_has_no_noise_for_a_linear_loss(shape):
    logits = torch.randn(*shape, dtype=torch.float64)
    f = polynomial(1, *shape)
    g = gradients(MuProp(), logits, f, 100)
    assert torch.allclose(g, exact_gradient(logits, f).expand_as(g), rtol=0, atol=1e-12)


def test_darn_is_exact_as_far_as_declared(monkeypatch):
    """Linear losses: for every K and centre; quadratic ones: for K = 2 and centre 1/2; cubic ones: never."""

    def bias(estimator, shape, degree):
        logits = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        f = polynomial(degree, *shape)
        _, mean = exact_mean(monkeypatch, estimator, logits, f)
        exact = exact_gradient(logits, f)
        return ((mean - exact).norm() / exact.norm()).item()

    for shape in ((3, 2), (2, 4)):
        for centre in (None, 0.0, 0.7):
            assert bias(DARN(centre), shape, 1) < 1e-12
    assert bias(DARN(), (3, 2), 2) < 1e-12 and bias(DARN(0.5), (3, 2), 2) < 1e-12
    assert bias(DARN(0.3), (3, 2), 2) > 1e-2 and bias(DARN(), (2, 4), 2) > 1e-2 and bias(DARN(), (3, 2), 3) > 1e-2
    assert DARN().exact_for == 1


def test_indecater_is_exact_for_a_sum_over_latents_and_never_noisier_than_reinforce():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64)
    g = gradients(IndeCateR(), logits, polynomial(1, 3, 4), 50)
    assert torch.allclose(g, exact_gradient(logits, polynomial(1, 3, 4)).expand_as(g), rtol=0, atol=1e-12)
    f = polynomial(3, 3, 4)
    assert gradients(IndeCateR(), logits, f, 5_000).var(0).sum() < gradients(REINFORCE(), logits, f, 5_000).var(0).sum()


# --- UnorderedSet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), [((3, 2), 8), ((1, 10), 10), ((2, 3), 9), ((1, 2), 2)])
def test_unordered_set_of_all_states_is_exact(shape, size):
    logits = 2 * torch.randn(5, *shape, dtype=torch.float64)
    f = polynomial(3, *shape)
    leaf = logits.clone().requires_grad_()
    losses = UnorderedSet(size)(leaf, f)
    assert torch.allclose(losses, Exact()(logits, f), rtol=0, atol=1e-10)
    assert torch.allclose(torch.autograd.grad(losses.sum(), leaf)[0], exact_gradient(logits, f), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 2), (1, 5), (2, 3)])
def test_beam_search_draws_without_replacement(shape):
    """Ordered pairs have probability q(a) q(b) / (1 - q(a)); the returned log q is that of the states."""
    torch.manual_seed(5)
    draws = 100_000
    log_q = torch.randn(*shape, dtype=torch.float64).log_softmax(-1)
    index, log_prob = stochastic_beam_search(log_q.expand(draws, *shape), 2)
    q = (_all_states(shape) * log_q).sum((-2, -1)).exp()
    place = (index * shape[1] ** torch.arange(shape[0] - 1, -1, -1)).sum(-1)
    assert torch.allclose(q[place].log(), log_prob) and (place[:, 0] != place[:, 1]).all()
    counts = torch.bincount(place[:, 0] * len(q) + place[:, 1], minlength=len(q) ** 2).reshape(len(q), len(q))
    expected = torch.outer(q / (1 - q), q).fill_diagonal_(0.0)
    assert ((counts / draws - expected).abs() <= 6 * (expected / draws).sqrt()).all()


def test_ratios_are_those_of_all_orders():
    """Against the sum over all orders of drawing, in sets that hold little and nearly all of the probability."""
    for scale in (0.1, 1.0, 6.0):
        q = (scale * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))).softmax(0)[:4]

        def probability(members, gone=(), q=q):
            total = 0.0
            for order in itertools.permutations(members):
                left, product = 1 - sum(q[g] for g in gone), 1.0
                for s in order:
                    product, left = product * q[s] / left, left - q[s]
                total += product
            return total

        first, second = log_ratios(q.log(), False)
        for s in range(4):
            rest = [t for t in range(4) if t != s]
            assert torch.isclose(first[s].exp(), probability(rest, (s,)) / probability(range(4)), rtol=1e-8)
            for t in rest:
                pair = [u for u in rest if u != t]
                expected = probability(pair, (s, t)) / probability(rest, (s,))
                assert torch.isclose(second[s, t].exp(), expected, rtol=1e-8)
        assert (second.diagonal() == 0).all()


def test_variances_of_two_samples_with_and_without_replacement():
    """The toy of UnorderedSet's authors: three Bernoullis of one logit at 0, |x - (.6, .51, .48)|^2, two evaluations.

    All 8 states are equally likely, so both estimates are c (f_s - f_t)(n_s - n_t), n the number of ones, with c = 1/2
    for any two states (RLOO) and c = 7/16 for two different ones: the second moments are in the ratio 7 to 8.
    """
    torch.manual_seed(0)
    f = lambda z: ((z[..., 1] - torch.tensor([0.6, 0.51, 0.48])) ** 2).sum(-1)  # noqa: E731
    states = _all_states((3, 2))
    ones, losses = states[..., 1].sum(-1), f(states)
    product = (losses[:, None] - losses) * (ones[:, None] - ones)
    mean = product.mean() / 2
    for estimator, square in (
        (RLOO(2), product.square().mean() / 4),
        (UnorderedSet(2), product.square().mean() * 7 / 32),
    ):
        g = gradients(estimator, torch.zeros(3, 2), f, 40_000)[..., 1].sum(-1)
        assert abs(g.mean() - mean) < 6 * g.std() / len(g) ** 0.5
        assert abs(g.square().mean() - square) < 6 * g.square().std() / len(g) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unordered_set_scales_to_many_latents(dtype):
    """Joint probabilities far below the smallest float: weights sum to about 1 and everything is finite."""
    torch.manual_seed(0)
    leaf = torch.zeros(3, 200, 3, dtype=dtype, requires_grad=True)
    losses = UnorderedSet(6)(leaf, lambda z: 1 + 0 * z.sum((-2, -1)))
    assert torch.allclose(losses, torch.ones_like(losses), atol=1e-3)
    assert torch.autograd.grad(losses.sum(), leaf)[0].abs().max() < 1e-2


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [RLOO, VIMCO, DoubleCV, RODEO, UnorderedSet])
@pytest.mark.parametrize("number", [0, 1])
def test_too_few_samples(method, number):
    with pytest.raises(
        ValueError, match=rf"{method.__name__}: num_samples must be .*2.*, not {number}; .*use"
    ) as caught:
        method(number)
    assert "\n" not in str(caught.value)


def test_other_bad_input():
    with pytest.raises(ValueError, match="UnorderedSet: num_samples must be 2 to 10, not 11"):
        UnorderedSet(11)
    with pytest.raises(ValueError, match=r"2\*\*1 joint states are fewer than num_samples=3; use Exact"):
        UnorderedSet(3)(torch.zeros(5, 1, 2), lambda z: z.sum((-2, -1)))
    with pytest.raises(ValueError, match="DARN: centre must be finite"):
        DARN(math.nan)
    with pytest.raises(ValueError, match="last dimension of 1"):
        DARN(torch.ones(3, 2))
