"""The contract over all estimators, closed forms and identities, and that broken estimators are caught."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import estimators
from estimators import (
    REINFORCE,
    VIMCO,
    ContractError,
    DisARM,
    Exact,
    GumbelSoftmax,
    OverlappingExponential,
    SpikeAndExponential,
    StraightThrough,
    UnorderedSet,
    check,
    check_estimator,
    gradient_only,
)
from estimators.base import Estimator, ScoreFunction
from estimators.categorical import log_probabilities, probabilities, sample_with_log_prob
from estimators.noise import open_uniform

SUBJECTS = check.subjects([])
VARIANTS = {
    # What the methods' own examples are; those with a test file of their own are held to it there at more options.
    **{each.name: (each.assembled(), {"context_features": each.context_features}) for each in SUBJECTS},
    "SpikeAndExponential at 40": (SpikeAndExponential(40.0), {}),
    "OverlappingExponential at 40": (OverlappingExponential(40.0), {}),
    "StraightThrough at 0.5": (StraightThrough(0.5), {}),
    "GumbelSoftmax at 0.1": (GumbelSoftmax(0.1), {}),
    "GumbelSoftmax hard at 0.5": (GumbelSoftmax(0.5, hard=True), {}),
    "GumbelSoftmax tensor": (GumbelSoftmax(torch.full((1, 1, 1), 0.7)), {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_contract(name):
    estimator, options = VARIANTS[name]
    check_estimator(estimator, **options)


def test_every_method_is_under_the_contract():
    assert {name.split()[0] for name in VARIANTS} == {method.__name__ for method in estimators.METHODS}
    assert all(method.__name__ in estimators.__all__ for method in estimators.METHODS)


class AnotherObjective(REINFORCE):
    objective = "median"


def test_the_contract_is_about_an_objective_whose_value_is_known():
    """A multi-sample bound's is enumerated: one that is off by a constant factor of its gradient is caught."""
    with pytest.raises(ValueError, match="another objective"):
        check_estimator(AnotherObjective())

    class Doubled(VIMCO):
        def signals(self, log_weight, bound):
            return 2 * super().signals(log_weight, bound)

    with pytest.raises(ContractError, match="is biased"):
        check_estimator(Doubled(3))


def test_what_an_estimator_cannot_do_is_said_by_its_class():
    """To be read after its name; the shapes at the edges of what it can do are not refused."""
    assert DisARM.skip(5, 3).startswith("is defined for Bernoulli latents, but the task has 3 categories")
    assert "with the 2 layers of the task" in VIMCO.skip(5, 3, 2) and VIMCO.skip(5, 3, 1) is None
    assert "no bound" in VIMCO.skip(5, 2, kl="analytic") and VIMCO.skip(5, 2, kl="sampled") is None
    assert Exact.skip(16, 2) is None and "2**17 joint states" in Exact.skip(17, 2)
    assert "more than estimator.max_states=8" in Exact.skip(4, 2, options={"max_states": 8}, task="task=mine")
    assert Exact.skip(1, 2, 70).startswith("would enumerate") and Exact.skip(70, 2).startswith("would enumerate")
    assert UnorderedSet.skip(2, 2) is None and UnorderedSet.skip(1, 2).startswith("wants 4 different states")
    assert UnorderedSet.skip(1, 3, 2, options={"num_samples": 4}).startswith("wants 4")  # of one layer, not of both
    assert GumbelSoftmax.skip(2, 2, kl="relaxed") is None
    assert "Concrete density" in GumbelSoftmax.skip(2, 2, kl="relaxed", options={"hard": True})
    able = [method for method in estimators.METHODS if method.skip(2, 2, kl="relaxed") is None]
    assert able == [GumbelSoftmax]
    for method in estimators.METHODS:
        assert method.skip(2, 2) is None and (method.skip(2, 4) is None) is not method.binary_only


def test_what_a_class_skips_it_refuses_and_what_it_does_not_it_estimates():
    for subject in SUBJECTS:
        for latents, categories in ((1, 2), (1, 3), (2, 2), (2, 4)):
            logits = torch.zeros(1, latents, categories, requires_grad=True)
            estimator = subject.make(categories) if latents == 2 else None
            if estimator is None or type(estimator).skip(latents, categories) is not None:
                continue
            context = torch.ones(1, check.CONTEXT_FEATURES)
            estimator(logits, lambda z: z[..., 0].sum(-1), context).sum().backward()
            assert logits.grad.shape == logits.shape


# --- what check_estimator must catch -------------------------------------------------------------------------------


class SignFlipped(REINFORCE):
    def estimate(self, logits, loss, context):
        z, log_prob = sample_with_log_prob(logits)
        losses = loss(z)
        return losses - gradient_only(losses.detach() * log_prob)


class DetachedLoss(REINFORCE):
    def estimate(self, logits, loss, context):
        z, log_prob = sample_with_log_prob(logits)
        losses = loss(z).detach()
        return losses + gradient_only(losses * log_prob)


class Surrogate(REINFORCE):
    def estimate(self, logits, loss, context):
        z, log_prob = sample_with_log_prob(logits)
        losses = loss(z)
        return losses + losses.detach() * log_prob


class BatchBaseline(ScoreFunction):
    def signal(self, losses, context):
        return losses - losses.mean(), None


class NoGradient(REINFORCE):
    def estimate(self, logits, loss, context):
        return loss(sample_with_log_prob(logits)[0])


class Undeclared(Estimator):
    def estimate(self, logits, loss, context):
        return loss(probabilities(logits))


class MiscountedEvaluations(REINFORCE):
    def estimate(self, logits, loss, context):
        first, second = super().estimate(logits, loss, context), super().estimate(logits, loss, context)
        return (first + second) / 2


class NotFinite(GumbelSoftmax):
    def estimate(self, logits, loss, context):
        return loss((logits / self.temperature).exp() / (logits / self.temperature).exp().sum(-1, keepdim=True))


class ClaimsQuadratic(StraightThrough):
    exact_for = 2


class ClaimsHard(GumbelSoftmax):
    relaxed = False


class Reduces(REINFORCE):
    def estimate(self, logits, loss, context):
        return super().estimate(logits, loss, context).mean()


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (SignFlipped(), "the gradient .* is biased, but it is declared unbiased"),
        (DetachedLoss(), "passes no gradient to parameters that the loss closes over"),
        (Surrogate(), "does not preserve the value"),
        (BatchBaseline(), "couples examples"),
        (NoGradient(), "returns losses without a gradient"),
        (Undeclared(), "declares no `unbiased`"),
        (MiscountedEvaluations(), "evaluates the loss at 2 samples per gradient but declares evaluations = 1"),
        (NotFinite(), "non-finite"),
        (ClaimsQuadratic(), "exact in the mean for losses of degree 2"),
        (ClaimsHard(), "returns the loss of a z that is not one-hot, .* but declares relaxed = False"),
        (Reduces(), r"returned shape \[\] instead of"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Estimator) else "",
)
def test_a_broken_estimator_is_caught(broken, sentence):
    with pytest.raises(estimators.ContractError, match=sentence):
        check_estimator(broken)


# --- closed forms and identities -----------------------------------------------------------------------------------


def gradients(estimator, logits, loss, draws):
    """One gradient per draw, ``[draws, *logits.shape]``, in float64."""
    leaf = logits.double().expand(draws, *logits.shape).contiguous().requires_grad_()
    return torch.autograd.grad(copy.deepcopy(estimator).double()(leaf, loss).sum(), leaf)[0]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_variance_of_reinforce_on_one_bernoulli(p):
    """Var = p(1-p)[(1-p) f1^2 + p f0^2] - (f1-f0)^2 p^2 (1-p)^2 in the log-odds; 6 standard errors of a variance."""
    torch.manual_seed(1)
    t = 0.3
    logits = torch.tensor([[0.0, math.log(p / (1 - p))]])
    g = gradients(REINFORCE(), logits, lambda z: ((z[..., 1] - t) ** 2).sum(-1), 200_000)[..., 1].flatten()
    f0, f1 = t**2, (1 - t) ** 2
    variance = p * (1 - p) * ((1 - p) * f1**2 + p * f0**2) - (f1 - f0) ** 2 * p**2 * (1 - p) ** 2
    spread = ((g - g.mean()) ** 2).std() / len(g) ** 0.5
    assert abs(g.var() - variance) < 6 * spread + 20 * variance / len(g)


def test_straight_through_drives_the_toy_to_the_wrong_point():
    """Mean gradient of (b - t)^2 is 2(p - t)p(1 - p), which vanishes at p = t; the exact one is (1 - 2t)p(1 - p)."""
    t = 0.45
    for p in (0.1, 0.45, 0.9):
        torch.manual_seed(0)
        logits = torch.tensor([[0.0, math.log(p / (1 - p))]])
        g = gradients(StraightThrough(), logits, lambda z: ((z[..., 1] - t) ** 2).sum(-1), 100_000)[..., 1].flatten()
        assert abs(g.mean() - 2 * (p - t) * p * (1 - p)) < 6 * g.std() / len(g) ** 0.5
        exact = gradients(Exact(), logits, lambda z: ((z[..., 1] - t) ** 2).sum(-1), 1)[..., 1].item()
        assert exact == pytest.approx((1 - 2 * t) * p * (1 - p))


@pytest.mark.parametrize("categories", [2, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_gumbel_softmax_has_the_distribution_of_torchs(categories, temperature):
    """First and second moments of relaxed samples against ``F.gumbel_softmax``; 6 standard errors, 20 comparisons."""
    torch.manual_seed(3)
    logits = torch.randn(2, categories, dtype=torch.float64).expand(50_000, 2, categories)
    ours, theirs = GumbelSoftmax(temperature).sample(logits), F.gumbel_softmax(logits, temperature)
    for power in (1, 2):
        a, b = ours**power, theirs**power
        error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 6 * error).all()
    assert torch.allclose(ours.sum(-1), torch.ones_like(ours[..., 0]))


def test_gumbel_softmax_gradient_is_that_of_the_relaxation():
    """At fixed noise, autograd through the sample equals finite differences of the sample."""
    logits = torch.randn(3, 4, dtype=torch.float64)
    estimator = GumbelSoftmax(0.7)

    def sample(x):
        torch.manual_seed(0)
        return estimator.sample(x)

    assert torch.autograd.gradcheck(sample, (logits.requires_grad_(),))
    bits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample, (bits,))


def test_hard_and_soft_samples_share_noise():
    logits = torch.randn(100, 3, 6)
    torch.manual_seed(5)
    soft = GumbelSoftmax(0.4).sample(logits)
    torch.manual_seed(5)
    hard = GumbelSoftmax(0.4, hard=True).sample(logits)
    assert torch.equal(soft.argmax(-1), hard.argmax(-1))


@pytest.mark.parametrize("estimator", [GumbelSoftmax(0.2, hard=True), StraightThrough(), StraightThrough(0.1)])
@pytest.mark.parametrize("categories", [2, 7])
def test_hard_samples_are_exactly_one_hot_with_the_right_frequencies(estimator, categories):
    torch.manual_seed(2)
    logits = 2 * torch.randn(3, categories)
    z = estimator.sample(logits.expand(60_000, 3, categories))
    assert ((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all()
    p = logits.softmax(-1)
    assert ((z.mean(0) - p).abs() < 6 * (p * (1 - p) / len(z)).sqrt() + 1e-6).all()


def test_binary_helpers_agree_with_softmax():
    logits = torch.randn(4, 3, 2, dtype=torch.float64)
    assert torch.allclose(probabilities(logits, 0.7), (logits / 0.7).softmax(-1))
    assert torch.allclose(log_probabilities(logits), logits.log_softmax(-1))
    torch.manual_seed(0)
    z, log_prob = sample_with_log_prob(logits)
    assert torch.allclose(log_prob, (z * logits.log_softmax(-1)).sum((-2, -1)))


def test_a_temperature_per_replica():
    """A tensor of temperatures equals one estimator per temperature on the same noise."""
    temperatures = torch.tensor([0.2, 1.0, 5.0]).reshape(3, 1, 1, 1)
    for categories in (2, 4):
        logits = torch.randn(3, 5, 2, categories)
        torch.manual_seed(0)
        together = GumbelSoftmax(temperatures).sample(logits)
        for r, temperature in enumerate((0.2, 1.0, 5.0)):
            torch.manual_seed(0)
            assert torch.equal(together[r], GumbelSoftmax(temperature).sample(logits)[r])


# --- Exact ---------------------------------------------------------------------------------------------------------


def test_exact_is_the_weighted_sum_over_states():
    logits = torch.randn(2, 2, 3, dtype=torch.float64)
    table = torch.randn(3, 3, dtype=torch.float64)

    def loss(z):
        return torch.einsum("...i,...j,ij->...", z[..., 0, :], z[..., 1, :], table)

    p = logits.softmax(-1)
    assert torch.allclose(Exact()(logits, loss), torch.einsum("bi,bj,ij->b", p[:, 0], p[:, 1], table))


def test_exact_refuses_too_many_states():
    with pytest.raises(ValueError, match=r"2\*\*20 joint states"):
        Exact()(torch.zeros(1, 20, 2), lambda z: z.sum((-2, -1)))


# --- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_noise_is_open_and_uniform(dtype):
    torch.manual_seed(0)
    u = open_uniform((1_000_000,), dtype, torch.device("cpu"))
    assert u.min() > 0 and u.max() < 1 and u.dtype == dtype
    assert abs(u.double().mean() - 0.5) < 6 * (1 / 12 / len(u)) ** 0.5
    assert (u < 1e-5).sum() < 10 + 6 * 10**0.5
    counts = torch.histc(u.double(), 100, 0, 1)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 99 + 6 * (2 * 99) ** 0.5


def test_the_extreme_draws_give_finite_noise(monkeypatch):
    """Also at the ends of the range of the random bits, which no test would ever draw."""
    from estimators import noise

    for bits in (0, 2**31 - 1):
        monkeypatch.setattr(torch.Tensor, "random_", lambda self, generator=None, bits=bits: self.fill_(bits))
        for draw in (noise.gumbel, noise.logistic):
            assert draw((2, 2), dtype=torch.float32, device=torch.device("cpu")).isfinite().all()


def test_the_argmax_of_many_gumbels_is_not_tied():
    """Among 100,000 equal logits the winner is uniform: the winner's noise must be fine enough to have no ties."""
    torch.manual_seed(0)
    values, _ = GumbelSoftmax(1.0).sample(torch.zeros(200, 1, 100_000)).topk(2, dim=-1)
    assert (values[..., 0] > values[..., 1]).float().mean() > 0.99


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, torch.tensor([[1.0], [0.0]])])
@pytest.mark.parametrize("method", [GumbelSoftmax, StraightThrough])
def test_a_temperature_must_be_positive(method, temperature):
    with pytest.raises(ValueError, match=f"{method.__name__}: temperature must be positive and finite"):
        method(temperature)


@pytest.mark.parametrize(
    ("logits", "loss", "sentence"),
    [
        (torch.zeros(3, 2, 1), lambda z: z.sum((-2, -1)), "at least 2 categories"),
        (torch.zeros(3), lambda z: z.sum(), r"\[\*batch, latents, categories\]"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), lambda z: z.sum((-2, -1)), "floating point"),
        (torch.zeros(3, 2, 2), lambda z: z.sum(), "do not reduce over examples"),
        (torch.zeros(3, 2, 2), lambda z: z.sum(-1), "one value per example"),
    ],
)
def test_bad_calls_raise_one_sentence(logits, loss, sentence):
    for estimator in (REINFORCE(), GumbelSoftmax(), Exact()):
        with pytest.raises(ValueError, match=sentence) as caught:
            estimator(logits, loss)
        assert type(estimator).__name__ in str(caught.value) and "\n" not in str(caught.value)


def test_a_hyperparameter_per_category_is_refused():
    with pytest.raises(ValueError, match="last dimension of 1"):
        GumbelSoftmax(torch.ones(2, 3))
