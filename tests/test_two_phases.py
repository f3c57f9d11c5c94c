"""``propose`` and ``surrogate``: the numbers of the call, the contract, and what is said about bad input."""

import copy

import pytest
import torch
from exact_means import exact_gradient, polynomial

import estimators
from estimators import (
    NVIL,
    REINFORCE,
    RLOO,
    VIMCO,
    BlackBox,
    DisARM,
    Estimator,
    GumbelSoftmax,
    MuProp,
    ScoreFunction,
    UnorderedSet,
    check,
    check_estimator,
    gradient_moments,
)

MAKE = {subject.name: subject.make for subject in check.subjects([]) if isinstance(subject.make(2), BlackBox)}


class InTwoPhases(Estimator):
    """The contract, asked of the two phases: the losses come from outside of the estimator."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        for name in ("unbiased", "evaluations", "binary_only", "exact_for", "rescales", "objective", "stochastic"):
            setattr(self, name, getattr(inner, name))
        self.nests = inner.nests

    def expected(self, logits, loss):
        return self.inner.expected(logits, loss)

    def evaluations_for(self, logits):
        return self.inner.evaluations_for(logits)

    def estimate(self, logits, loss, context):
        z, pending = self.inner.propose(logits, context)
        return pending.surrogate(loss(z))


def test_which_methods_have_two_phases():
    """All that need nothing but the losses of samples, and of the others none."""
    black_boxes = {method for method in estimators.METHODS if issubclass(method, BlackBox)}
    default = [subject for subject in check.subjects([]) if " " not in subject.name]  # RELAX may leave the loss out
    need_none = {subject.name for subject in default if not subject.make(2).needs_gradient}
    assert need_none == {method.__name__ for method in black_boxes}
    assert {NVIL, REINFORCE, RLOO, DisARM, estimators.ARMS, UnorderedSet} <= black_boxes


def three_steps(estimator, categories, in_phases):
    """Losses, gradients, and what is learned or kept, of three calls on the same noise."""
    loss = polynomial(3, 3, categories)
    for seed in range(3):
        given = torch.Generator().manual_seed(seed)
        logits = torch.randn(4, 3, categories, dtype=torch.float64, generator=given).requires_grad_()
        context = torch.rand(4, check.CONTEXT_FEATURES, generator=given)
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(seed)
        if in_phases:
            z, pending = estimator.propose(logits, context)
            assert not z.requires_grad
            losses = pending.surrogate(scale * loss(z))
        else:
            losses = estimator(logits, lambda z, scale=scale: scale * loss(z), context)
        gradients = torch.autograd.grad(losses.sum(), [logits, scale, *estimator.parameters()])
        assert gradients[0].abs().sum() > 0
        yield [losses, *gradients, *(value.clone() for value in estimator.state_dict().values())]


@pytest.mark.parametrize("name", MAKE)
def test_the_numbers_of_the_call(name):
    """Bit for bit."""
    estimator = MAKE[name](2)
    for categories in (2,) if estimator.binary_only else (2, 4):
        called = MAKE[name](categories)
        phased = copy.deepcopy(called)
        for want, got in zip(
            three_steps(called, categories, False), three_steps(phased, categories, True), strict=True
        ):
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize(
    "estimator",
    [REINFORCE(), RLOO(3), UnorderedSet(3), DisARM(), VIMCO(2), NVIL(variance_normalisation=False)],
    ids=lambda e: type(e).__name__,
)
def test_the_contract_holds_for_two_phases(estimator):
    check_estimator(InTwoPhases(estimator), draws=5_000)


@pytest.mark.parametrize("estimator", [REINFORCE(), RLOO(2), estimators.ARMS(3)], ids=lambda e: type(e).__name__)
def test_mean_and_variance_of_the_call(estimator):
    logits = torch.tensor([[[0.3, -0.4], [0.1, 0.8]]], dtype=torch.float64)
    loss = polynomial(2, 2, 2)
    moments = []
    for form in (estimator, InTwoPhases(estimator)):
        torch.manual_seed(0)
        moments.append(gradient_moments(form, logits, loss, draws=2000))
    assert torch.equal(moments[0].mean, moments[1].mean) and torch.equal(moments[0].variance, moments[1].variance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_rewards_of_an_environment(dtype):
    """Losses without a graph, from outside of torch, in any dtype; the mean gradient is that of enumeration.

    Six standard errors in four coordinates.
    """
    torch.manual_seed(0)
    logits = torch.tensor([[0.3, -0.4], [0.1, 0.8]], requires_grad=True)
    draws = 20_000
    many = logits.expand(draws, 2, 2).clone().requires_grad_()
    z, pending = RLOO(3).propose(many)
    hits = [int(a + b == 1) for a, b in z[..., 1].flatten(0, 1).int().tolist()]
    losses = pending.surrogate(torch.tensor(hits).reshape(3, draws).to(dtype))
    assert losses.shape == (draws,)
    (gradient,) = torch.autograd.grad(losses.sum(), many)
    exact = exact_gradient(logits.detach().double(), lambda z: (z[..., 0, 1] - z[..., 1, 1]).abs())
    assert ((gradient.mean(0) - exact).abs() < 6 * gradient.std(0) / draws**0.5).all()


def test_several_proposals_may_wait():
    """Their losses come in any order."""
    logits = torch.randn(5, 3, 4, requires_grad=True)
    torch.manual_seed(0)
    (z1, first), (z2, second) = RLOO(2).propose(logits), RLOO(2).propose(logits)
    weights = torch.linspace(-1, 1, 12).reshape(3, 4)

    def loss(z):
        return (z * weights).sum((-2, -1)) ** 2

    got = [torch.autograd.grad(p.surrogate(loss(z)).sum(), logits)[0] for z, p in ((z2, second), (z1, first))]
    torch.manual_seed(0)
    want = [torch.autograd.grad(RLOO(2)(logits, loss).sum(), logits)[0] for _ in range(2)]
    assert torch.equal(got[0], want[1]) and torch.equal(got[1], want[0])


def test_under_autocast_the_surrogate_is_in_the_logits_dtype():
    logits = torch.randn(5, 3, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, pending = NVIL().propose(logits)
        losses = pending.surrogate((z @ torch.ones(2, 1)).sum((-2, -1)))
    assert z.dtype == torch.float32 and losses.dtype == torch.float32


def test_in_one_compiled_graph():
    logits = torch.randn(5, 3, 4, requires_grad=True)

    def step(x):
        z, pending = RLOO(2).propose(x)
        return pending.surrogate(z[..., 0].sum(-1) ** 2)

    torch.manual_seed(0)
    compiled = torch.compile(step, backend="aot_eager")(logits)
    torch.manual_seed(0)
    assert torch.allclose(compiled, step(logits))


class Own(ScoreFunction):
    def signal(self, losses, context):
        return losses, None

    def estimate(self, logits, loss, context):
        return super().estimate(logits, loss, context) * 2


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda x: GumbelSoftmax().propose(x), ValueError, "GumbelSoftmax differentiates the loss"),
        (lambda x: MuProp().propose(x), ValueError, r"losses = estimator\(logits, loss\), or propose of REINFORCE"),
        (lambda x: Own().propose(x), ValueError, "Own writes estimate itself"),
        (lambda x: REINFORCE().propose(x.long()), ValueError, "logits must be floating point"),
        (lambda x: DisARM().propose(x), ValueError, "DisARM is defined for Bernoulli latents"),
        (
            lambda x: RLOO(2).propose(x)[1].surrogate(torch.zeros(4)),
            ValueError,
            r"surrogate must be given one value per example, \[2, 4\] for z of \[2, 4, 3, 3\], but it was given \[4\]",
        ),
        (lambda x: REINFORCE().propose(x)[1].surrogate(torch.tensor(1.0)), ValueError, r"but it was given \[\]"),
        (lambda x: REINFORCE().propose(x)[1].surrogate([0.0] * 4), ValueError, "a tensor of losses, not list"),
        (
            lambda x: REINFORCE().propose(x)[1].surrogate(torch.zeros(4, dtype=torch.complex64)),
            ValueError,
            "surrogate must be given real numbers",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call(torch.randn(4, 3, 3))
    assert "\n" not in str(caught.value)


def test_the_losses_come_once():
    """Wrong ones may be mended; a second call would count them twice in a running baseline."""
    z, pending = REINFORCE().propose(torch.randn(4, 3, 2, requires_grad=True))
    with pytest.raises(ValueError, match="but it was given"):
        pending.surrogate(z[..., 1])
    pending.surrogate(z[..., 1].sum(-1))
    with pytest.raises(RuntimeError, match="have had their losses; propose gives new ones"):
        pending.surrogate(z[..., 1].sum(-1))


def test_a_proposal_without_a_graph():
    """Rollouts often run under no_grad, and the gradient would silently be none."""
    logits = torch.randn(4, 3, 2, requires_grad=True)
    with torch.no_grad():
        _, pending = REINFORCE().propose(logits)
        _, evaluated = REINFORCE().propose(logits)
        assert torch.equal(evaluated.surrogate(torch.ones(4)), torch.ones(4))
    with pytest.raises(ValueError, match="propose was called under torch.no_grad"):
        pending.surrogate(torch.ones(4))
