"""Second derivatives: right in the mean where that is simple, refused in words everywhere else, never a wrong number.

The means are exact: the sampler is replaced by the enumeration of all joint samples. One comparison is statistical: 8
coordinates at 6.5 standard errors, a false alarm with probability below 1e-9.
"""

import copy

import pytest
import torch
from exact_means import gradients

import estimators
from estimators import (
    METHODS,
    NVIL,
    REBAR,
    REINFORCE,
    RELAX,
    RLOO,
    VIMCO,
    DisARM,
    Exact,
    GumbelSoftmax,
    IndeCateR,
    MuProp,
    StraightThrough,
    UnorderedSet,
    gradient_only,
)
from estimators.base import Pathwise
from estimators.categorical import harden, log_probabilities, perturbed_scores, probabilities
from estimators.exact import enumerate_states

RIGHT = {
    "REINFORCE": (REINFORCE(), 1),
    "RLOO": (RLOO(2), 2),
    "NVIL": (NVIL(variance_normalisation=False), 1),
    "NVIL with baseline": (NVIL(3, variance_normalisation=False), 1),
    "MuProp": (MuProp(), 1),
    "MuProp without centring": (MuProp(centring=False), 1),
}
FIRST_ORDER = [m for m in METHODS if m not in (REINFORCE, RLOO, NVIL, MuProp, UnorderedSet, Exact, GumbelSoftmax)]
BUILT = {
    **{(m.__name__, 2): m for m in FIRST_ORDER},
    **{(m.__name__, 3): m for m in FIRST_ORDER if not m.binary_only},
    ("NVIL", 2): NVIL,
    ("GumbelSoftmax hard", 3): lambda: GumbelSoftmax(hard=True),
    ("RELAX without loss", 2): lambda: RELAX(2, 2, hidden=4, use_loss=False),
    ("REBAR fixed", 2): lambda: REBAR(learn=False),
}
WORDS = "first order only: .* use REINFORCE"


def build(name, categories):
    make = BUILT[name, categories]
    return (RELAX(2, categories, hidden=4) if make is RELAX else make()).double()


def loss(z, w):
    """Not a polynomial in ``w``, neither even nor odd in ``z``."""
    return ((z * w.exp()).sum((-2, -1)) + 0.3) ** 2 + (z * w.flip(-1)).sum((-2, -1)) ** 3


def problem(categories=2):
    generator = torch.Generator().manual_seed(categories)
    draw = lambda: torch.randn(2, categories, dtype=torch.float64, generator=generator)  # noqa: E731
    logits, w = draw().requires_grad_(), (0.3 * draw()).requires_grad_()
    return logits, w, [draw(), draw()]


def derivative_along(value, inputs, directions, order):
    """The ``order``-th derivative of ``value`` in ``inputs``, all but the last time along ``directions``."""
    found = torch.autograd.grad(value, inputs, create_graph=True)
    for _ in range(order - 1):
        along = sum((g * v).sum() for g, v in zip(found, directions, strict=True))
        found = torch.autograd.grad(along, inputs, create_graph=True)
    return found


def exact(categories, order):
    logits, w, directions = problem(categories)
    return derivative_along(Exact()(logits, lambda z: loss(z, w + 0.1 * logits)), (logits, w), directions, order)


@pytest.fixture
def enumerated(monkeypatch):
    """Puts all joint samples in the place of the sampler; returns their probabilities for given logits."""

    def prepare(logits, num_samples):
        states = enumerate_states(*logits.shape, like=logits)
        joint = torch.cartesian_prod(*[torch.arange(len(states))] * num_samples).reshape(-1, num_samples)
        z = states[joint].movedim(1, 0)  # [S, draws, L, K]

        def sample(logits):
            shown = z if num_samples > 1 else z[0]
            return shown, torch.where(shown > 0, log_probabilities(logits), 0.0).sum((-2, -1))

        for module in ("base", "rloo", "muprop"):
            monkeypatch.setattr(f"estimators.{module}.sample_with_log_prob", sample)
        return torch.where(z > 0, log_probabilities(logits.detach()), 0.0).sum((0, -2, -1)).exp()

    return prepare


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("categories", [2, 3])
@pytest.mark.parametrize("name", RIGHT)
def test_the_mean_of_the_derivatives_is_exact(enumerated, name, categories, order):
    """With averages that earlier calls have left; in logits and in what the loss closes over, mixed ones included."""
    estimator, num_samples = copy.deepcopy(RIGHT[name])
    estimator.double()
    logits, w, directions = problem(categories)
    context = torch.ones(1, 3, dtype=torch.float64)
    estimator(logits.detach().expand(50, 2, categories), lambda z: loss(z, w), context.expand(50, 3))
    probability = enumerated(logits, num_samples)

    leaf = logits.expand(len(probability), *logits.shape)
    losses = estimator(leaf, lambda z: loss(z, w + 0.1 * leaf), context.expand(len(probability), 3))
    found = derivative_along((probability * losses).sum(), (logits, w), directions, order)
    for ours, right in zip(found, exact(categories, order), strict=True):
        assert torch.allclose(ours, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["REINFORCE", "RLOO", "MuProp"])
def test_transforms_give_the_same_second_derivatives(name):
    """``torch.func`` by forward and by reverse mode, at the same noise as autograd twice."""
    logits, w, directions = problem(3)
    estimator = RIGHT[name][0].double()

    def value(logits, w):
        torch.manual_seed(0)
        return copy.deepcopy(estimator)(logits, lambda z: loss(z, w))

    ours = derivative_along(value(logits, w), (logits, w), directions, 2)
    slopes = torch.func.grad(value, (0, 1))
    inputs = (logits.detach(), w.detach())
    _, forward = torch.func.jvp(slopes, inputs, tuple(directions))
    _, pull_back = torch.func.vjp(slopes, *inputs)
    for found in (forward, pull_back(tuple(directions))):
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, ours, strict=True))


def test_unordered_set():
    """With all states in the set exact; otherwise the mean of 20,000 draws."""
    logits, w, directions = problem(2)
    everything = UnorderedSet(4).double()(logits, lambda z: loss(z, w + 0.1 * logits))
    for ours, right in zip(derivative_along(everything, (logits, w), directions, 2), exact(2, 2), strict=True):
        assert torch.allclose(ours, right, rtol=1e-9, atol=1e-9)
    torch.manual_seed(0)
    leaves = [x.detach().expand(20_000, 2, 2).clone().requires_grad_() for x in (logits, w)]
    losses = UnorderedSet(2).double()(leaves[0], lambda z: loss(z, leaves[1] + 0.1 * leaves[0]))
    for draws, right in zip(derivative_along(losses.sum(), leaves, directions, 2), exact(2, 2), strict=True):
        assert ((draws.mean(0) - right).abs() < 6.5 * draws.std(0) / len(draws) ** 0.5).all()


def test_a_relaxed_sample_is_differentiated_as_it_is():
    """Gumbel-Softmax has the second derivatives of its relaxation: central differences of the first ones."""
    logits, w, (direction, _) = problem(3)

    def slope(logits):
        torch.manual_seed(0)
        leaf = logits.detach().requires_grad_()
        return leaf, torch.autograd.grad(GumbelSoftmax(0.7)(leaf, lambda z: loss(z, w)), leaf, create_graph=True)[0]

    leaf, first = slope(logits)
    second = torch.autograd.grad((first * direction).sum(), leaf)[0]
    differences = (slope(logits + 1e-5 * direction)[1] - slope(logits - 1e-5 * direction)[1]) / 2e-5
    assert torch.allclose(second, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "categories"), BUILT)
def test_what_is_first_order_says_so(name, categories):
    """In the logits, in them and in what the loss closes over, mixed, under transforms, and as an inner layer."""
    estimator = build(name, categories)
    logits, w, directions = problem(categories)
    estimate = lambda logits, w: estimator(logits, lambda z: loss(z, w))  # noqa: E731
    first = torch.autograd.grad(estimate(logits, w), (logits, w), create_graph=True)
    for inputs in ((logits,), (logits, w), (w,)):
        with pytest.raises(RuntimeError, match=WORDS):
            torch.autograd.grad((first[0] * directions[0]).sum(), inputs, retain_graph=True, allow_unused=True)
    constants = (logits.detach(), w.detach())
    for transform in (
        torch.func.jacrev(torch.func.grad(estimate)),
        torch.func.jacfwd(torch.func.grad(estimate), randomness="same"),
        torch.func.jacfwd(torch.func.jacfwd(estimate, randomness="same"), randomness="same"),
    ):
        with pytest.raises(RuntimeError, match=WORDS):
            transform(*constants)
    if estimator.objective == "mean":
        nested = REINFORCE()(logits, lambda z: estimator(z + logits, lambda inner: loss(inner + z, w)))
        (slope,) = torch.autograd.grad(nested, logits, create_graph=True)
        with pytest.raises(RuntimeError, match=WORDS):
            torch.autograd.grad(slope.sum(), logits)


@pytest.mark.parametrize(("name", "categories"), BUILT)
def test_a_first_derivative_is_the_same_with_a_graph_and_without(name, categories):
    estimator = build(name, categories)
    logits, w, _ = problem(categories)
    results = []
    for create_graph in (False, True):
        torch.manual_seed(0)
        losses = copy.deepcopy(estimator)(logits, lambda z: loss(z, w))
        results.append([losses, *torch.autograd.grad(losses, (logits, w), create_graph=create_graph)])
    torch.manual_seed(0)
    if name not in ("NVIL", "REBAR", "RELAX", "DoubleCV", "RODEO", "RELAX without loss"):
        slopes = torch.func.grad(lambda x, w: copy.deepcopy(estimator)(x, lambda z: loss(z, w)), (0, 1))
        results.append([results[0][0], *slopes(logits.detach(), w.detach())])
    for other in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("estimator", [DisARM(), StraightThrough(), IndeCateR(), VIMCO(2)])
def test_parameters_of_the_loss_keep_their_second_derivatives(estimator):
    """Through no estimate: those of what was evaluated, here the only weight of a loss ``(w * bits)^2``."""
    logits, seen = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True), []
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def square(z, w=w):
        seen.append(z.detach())
        return (w * z[..., 1].sum(-1)) ** 2

    found = derivative_along(estimator(logits, square).sum(), (w,), (1.0,), 2)[0]
    fresh = w.detach().requires_grad_()
    values = square(seen[0], fresh)  # IndeCateR's are two states with probability 1/2 each
    value = -(-values).logsumexp(0).sum() if isinstance(estimator, VIMCO) else values.mean()
    assert torch.allclose(found, derivative_along(value, (fresh,), (1.0,), 2)[0])


class OrdinaryStraightThrough(Pathwise):
    def sample(self, logits):
        p = probabilities(logits)
        return harden(perturbed_scores(logits.detach()), logits) + (p - p.detach())


def test_rebar_differentiates_layers_within_its_loss_as_before():
    """For its temperature it goes through an inner estimator twice, whose gradient it takes for a constant."""
    logits = torch.randn(7, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slopes = []
    for inner in (StraightThrough(), OrdinaryStraightThrough()):
        outer = REBAR().double()
        torch.manual_seed(0)
        outer(
            logits, lambda z, inner=inner: inner(2 * z + logits, lambda y: (y * z).sum((-2, -1)) ** 2)
        ).sum().backward()
        slopes.append(torch.stack([outer.log_temperature.grad, outer.log_scale.grad]))
    assert slopes[0].abs().min() > 0 and torch.allclose(*slopes, rtol=1e-12)
    for name, categories in BUILT:
        if categories == 2 and name not in ("VIMCO", "RELAX", "RELAX without loss"):
            made = build(name, 2)
            losses = REBAR().double()(logits, lambda z, e=made: e(2 * z + logits, lambda y: (y * z).sum((-2, -1))))
            assert losses.isfinite().all()


def test_a_compiled_graph_refuses_too():
    torch._dynamo.reset()
    logits, w, directions = problem(2)
    compiled = torch.compile(lambda x: DisARM()(x, lambda z: loss(z, w)), backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="double backward|not have been used"):
        derivative_along(compiled(logits), (logits,), directions[:1], 2)


def test_gradient_only_is_a_zero_with_a_gradient_and_refuses():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    term = gradient_only(x**3)
    assert torch.equal(term, torch.zeros(2))
    (first,) = torch.autograd.grad(term.sum(), x, create_graph=True)
    assert torch.equal(first, 3 * x**2)
    with pytest.raises(RuntimeError, match=WORDS):
        first.sum().backward()


def test_every_method_is_either_right_or_refuses():
    named = {name.split()[0] for name, _ in BUILT} | {name.split()[0] for name in RIGHT}
    assert named | {"UnorderedSet", "Exact"} == {method.__name__ for method in estimators.METHODS}


def test_large_baselines_change_no_bit_of_the_first_derivative():
    """The baseline is subtracted before anything is multiplied: as exact as ``(loss - c) * d log q``."""
    logits = torch.randn(2, 2, dtype=torch.float64)
    torch.manual_seed(0)
    shifted = gradients(RLOO(3), logits, lambda z: 2.0**40 + z[..., 1].sum(-1), 20)
    torch.manual_seed(0)
    assert torch.allclose(shifted, gradients(RLOO(3), logits, lambda z: z[..., 1].sum(-1), 20), rtol=0, atol=1e-3)
