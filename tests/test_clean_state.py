"""Running averages and learned parts: what is not finite leaves them alone, and checkpointing is right or refused.

Everything is exact: closed forms, or the same noise with and without the bad example.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from estimators import METHODS, NVIL, REBAR, RELAX, RLOO, RODEO, VIMCO, DoubleCV, Exact, MuProp

BAD = [math.inf, -math.inf, math.nan, 1e30]


def told(values):
    """A loss with these values, whatever the sample; it depends on it as far as a derivative can tell."""
    return lambda z: values + 0 * z.sum((-2, -1))


def call(estimator, values, context=None):
    values = torch.as_tensor(values)
    estimator(torch.zeros(*values.shape, 1, 2), told(values), context)


def averages(estimator):
    if isinstance(estimator, MuProp):
        return [estimator.average.value()]
    return [estimator.mean.value(), estimator.square.value()]


# --- running averages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
def test_nvil_averages_the_examples_that_are_finite(bad):
    """1e30 is finite and its square is not: it enters neither moment, or the variance would be of two populations."""
    estimator = NVIL(decay=0.5)
    call(estimator, [1.0, 3.0, bad])
    assert [x.item() for x in averages(estimator)] == [2.0, 5.0]
    call(estimator, [bad, 6.0, bad])
    assert torch.allclose(torch.stack(averages(estimator)), torch.tensor([(0.5 + 3) / 0.75, (1.25 + 18) / 0.75]))
    signal, _ = estimator.signal(torch.tensor([4.0]), None)
    mean, square = (0.5 + 3) / 0.75, (1.25 + 18) / 0.75
    assert signal.item() == pytest.approx((4 - mean) / math.sqrt(square - mean**2), rel=1e-5)


@pytest.mark.parametrize("bad", BAD[:3])
def test_muprop_averages_the_residuals_that_are_finite(bad):
    """Residuals of losses without a slope: what the loss is at the sample minus what it is at the mean, told apart."""
    estimator, values = MuProp(decay=0.5), torch.tensor([1.0, 3.0, bad])

    def loss(z):
        at_mean = ((z != 0) & (z != 1)).any(-1).any(-1)
        return torch.where(at_mean, 0.0, values) + 0 * z.sum((-2, -1))

    estimator(torch.zeros(3, 1, 2), loss)
    assert estimator.average.value().item() == 2.0


@pytest.mark.parametrize("make", [NVIL, MuProp, lambda **o: NVIL(3, **o)], ids=["NVIL", "MuProp", "baseline"])
@pytest.mark.parametrize("values", [[math.inf, math.nan], []], ids=["no finite example", "no example"])
def test_a_call_without_a_usable_example_does_not_count(make, values):
    estimator = make()
    context = lambda n: torch.ones(n, 3)  # noqa: E731
    for _ in range(2):
        call(estimator, values, context(len(values)))
        assert all(x.item() == 0 for x in averages(estimator))
    call(estimator, [1.0, 3.0], context(2))
    before = copy.deepcopy(estimator.state_dict())
    call(estimator, values, context(len(values)))
    assert all(torch.equal(before[key], value) for key, value in estimator.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_an_empty_batch(method):
    estimator = method(**method.examples(3, 2, 5)[""])
    logits = torch.zeros(0, 3, 2, requires_grad=True)
    losses = estimator(logits, lambda z: z[..., 1].sum(-1), torch.zeros(0, 5))
    losses.sum().backward()
    assert losses.shape == (0,) and logits.grad.shape == logits.shape
    assert all(value.isfinite().all() for value in estimator.state_dict().values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in estimator.parameters())


@pytest.mark.parametrize("lead", [(), (4,)])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_replica_leaves_its_neighbours_alone(bad, lead):
    """And one bad example its own replica: against replicas alone on the finite ones; also with samples in front."""
    values = torch.arange(12.0).reshape(3, 4).expand(*lead, 3, 4).clone()
    values[..., 1, :] = bad
    values[..., 2, 0] = bad
    estimator = NVIL(replicas=3)
    call(estimator, values)
    for replica, finite in enumerate([[0.0, 1.0, 2.0, 3.0], [], [9.0, 10.0, 11.0]]):
        alone = NVIL()
        call(alone, finite)
        assert all(torch.equal(a[replica, 0], b) for a, b in zip(averages(estimator), averages(alone), strict=True))
    call(NVIL(replicas=3), torch.zeros(*lead, 3, 0))


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float16)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(convert, dtype):
    """Squares of 304 are 92416, and the largest number in half precision is 65504."""
    for estimator in (NVIL(), convert(NVIL()), convert(NVIL(replicas=2))):
        for _ in range(3):
            call(estimator, torch.full((2, 5), 304.0, dtype=dtype))
        for value, right in zip(averages(estimator), (304.0, 92416.0), strict=True):
            assert value.dtype == torch.float32 and torch.allclose(value, torch.full_like(value, right))
        signal, _ = estimator.signal(torch.full((2, 5), 306.0, dtype=dtype), None)
        assert signal.dtype == dtype and (signal == 2).all()
    assert NVIL().double().mean.total.dtype == torch.float64


@pytest.mark.parametrize("name", ["NVIL", "DoubleCV", "RODEO", "REBAR", "RELAX"])
def test_squares_in_half_precision(name):
    """Losses of 400, whose squares are infinite there: values and what is learned stay finite, and something is."""
    torch.manual_seed(0)
    estimator = LEARNERS[name]().half()
    logits = torch.zeros(8, 2, 2, dtype=torch.float16, requires_grad=True)
    context = torch.ones(8, 3, dtype=torch.float16)
    losses = estimator(logits, lambda z: 400 + 40 * z[..., 1].sum(-1), context)
    losses.mean().backward()
    learned = [p.grad for p in estimator.parameters() if p.grad is not None]
    assert losses.isfinite().all() and losses.dtype == torch.float16 and (losses >= 400).all()
    assert all(g.isfinite().all() for g in learned) and any(g.abs().max() > 0 for g in learned)


def test_a_large_loss_keeps_its_value_and_gradient():
    """The baseline's squared error overflows; the estimator's value does not."""
    estimator = NVIL(3, variance_normalisation=False)
    logits = torch.zeros(2, 1, 2, requires_grad=True)
    losses = estimator(logits, told(torch.tensor([1e30, 2.0])), torch.ones(2, 3))
    assert losses.tolist() == [torch.tensor(1e30).item(), 2.0]
    gradient = torch.autograd.grad(losses.sum(), logits)[0]
    assert torch.allclose(gradient.abs(), torch.tensor([5e29, 1.0])[:, None, None].expand(2, 1, 2))


@pytest.mark.parametrize("large", [1e13, 1e18, 1e25, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_do_not_overflow_either(large, dtype):
    """Whatever the size of the losses and of the batch, in single precision buffers: averages stay finite."""
    large = large if dtype == torch.float32 else large**8
    for estimator in (NVIL(), NVIL(replicas=2), MuProp()):
        call(estimator, torch.full((2, 3000), large, dtype=dtype))
        call(estimator, torch.full((2, 3000), 2.0, dtype=dtype))
        assert all(x.isfinite().all() for x in estimator.state_dict().values())


# --- learned parts -------------------------------------------------------------------------------------------------

LEARNERS = {
    "NVIL": lambda: NVIL(3, hidden=5),
    "REBAR": REBAR,
    "REBAR tied": lambda: REBAR(tied=True),
    "RELAX": lambda: RELAX(2, 2, 3, hidden=5, layers=1),
    "RELAX without loss": lambda: RELAX(2, 2, 3, hidden=5, layers=1, use_loss=False),
    "DoubleCV": lambda: DoubleCV(3),
    "RODEO": lambda: RODEO(3, hidden=5),
}


@pytest.mark.parametrize("bad", [*BAD[:3], 1e200])
@pytest.mark.parametrize("name", LEARNERS)
def test_learned_parts_learn_from_the_other_examples(name, bad):
    """Their gradient is that of the other examples, the bad one's weight is 0; in double precision."""
    torch.manual_seed(0)
    estimator = LEARNERS[name]().double()
    for parameter in estimator.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    logits, context = torch.randn(4, 2, 2).double(), torch.randn(4, 3).double()
    weights = torch.tensor([1.0, -0.7], dtype=torch.float64)

    def slopes(first, weight):
        def loss(z):
            losses = ((z[..., 1] * weights).sum(-1) - 0.3) ** 2 + (z[..., 1] * weights).sum(-1)
            return torch.cat((losses[..., :1] * first, losses[..., 1:]), dim=-1)

        learner = copy.deepcopy(estimator)
        torch.manual_seed(1)
        losses = learner(logits.clone().requires_grad_(), loss, context)
        losses.backward(torch.tensor([weight, 1.0, 1.0, 1.0], dtype=torch.float64))
        return [p.grad for p in learner.parameters() if p.grad is not None]

    found, right = slopes(bad, 1.0), slopes(1.0, 0.0)
    assert len(found) == len(right) and any(g.abs().max() > 0 for g in right)
    for ours, theirs in zip(found, right, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["DoubleCV", "RODEO"])
def test_a_gradient_that_is_not_finite_is_not_hidden(name):
    """The example's own gradient in its logits stays worthless, as REINFORCE's would be; its neighbours' do not."""
    logits = torch.zeros(2, 2, 2, requires_grad=True)
    LEARNERS[name]()(logits, lambda z: torch.tensor([math.inf, 1.0]) * (1 + z[..., 1].sum(-1))).sum().backward()
    assert not logits.grad[0].isfinite().any() and logits.grad[1].isfinite().all()


# --- gradient checkpointing ----------------------------------------------------------------------------------------

EVERY = {
    **{method.__name__: method for method in METHODS if method is not RELAX},
    "RELAX": lambda: RELAX(3, 2, hidden=4),
    "NVIL without averages": lambda: NVIL(4, centring=False, variance_normalisation=False),
    "MuProp without centring": lambda: MuProp(centring=False),
}
BY_TRANSFORMS = {"MuProp", "DARN", "REBAR", "RELAX", "DoubleCV", "RODEO"}


class Model(nn.Module):
    def __init__(self, estimator):
        super().__init__()
        self.encoder, self.estimator, self.decoder = nn.Linear(4, 6), estimator, nn.Linear(6, 5)

    def forward(self, x):
        logits = self.encoder(x).unflatten(-1, (3, 2))
        return self.estimator(logits, lambda z: self.decoder(z.flatten(-2)).square().sum(-1), x)


def slopes(model, x, run):
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    run(model, x).sum().backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_checkpointing_gives_the_same_gradient_or_refuses(name, reentrant):
    """Around a model that holds the estimator; averages and derivatives by ``torch.func`` are what may refuse."""
    torch.manual_seed(3)
    model, x = Model(EVERY[name]()), torch.randn(7, 4)
    run = lambda model, x: checkpoint(model, x, use_reentrant=reentrant)  # noqa: E731
    if name.split()[0] in BY_TRANSFORMS and not reentrant:
        with pytest.raises(RuntimeError, match="use_reentrant=True"):
            slopes(model, x, run)
        return
    if name in ("NVIL", "MuProp"):
        model.estimator(torch.zeros(3, 3, 2), lambda z: 3 + z[..., 1].sum(-1))
        counted = copy.deepcopy(model.estimator)
        with pytest.raises(RuntimeError, match=f"^{name}: gradient checkpointing computes this call again") as error:
            slopes(model, x, run)
        assert "\n" not in str(error.value)
        once = copy.deepcopy(model)
        once.estimator = counted
        torch.manual_seed(0)
        once(x)
        for key, value in counted.state_dict().items():
            assert torch.equal(value, model.estimator.state_dict()[key]), "counted more than once"
        model.estimator.eval()
    expected = slopes(model, x, lambda model, x: model(x))
    found = slopes(model, x, run)
    assert len(found) == len(expected)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_networks_around_nvil_can_be_checkpointed(reentrant):
    """Encoder and decoder, as its refusal advises."""
    torch.manual_seed(3)
    results = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        torch.manual_seed(4)
        model, x = Model(NVIL()), torch.randn(7, 4, requires_grad=True)
        for _ in range(2):
            torch.manual_seed(5)
            logits = run(model.encoder, x).unflatten(-1, (3, 2))
            losses = model.estimator(logits, lambda z, r=run, m=model: r(m.decoder, z.flatten(-2)).square().sum(-1))
            losses.sum().backward()
        results.append([x.grad, *(p.grad for p in (*model.encoder.parameters(), *model.decoder.parameters()))])
        results[-1] += list(model.estimator.state_dict().values())
    if not reentrant:  # the reentrant form gives parameters no gradient where its inputs have none
        assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))
    else:
        assert all(torch.allclose(a, b) for a, b in zip(results[0][:3], results[1][:3], strict=True))


def test_every_method_with_state_is_here():
    stateful = {
        method.__name__
        for method in METHODS
        if method in (RELAX,) or any(True for _ in [*method().parameters(), *method().buffers()])
    }
    assert stateful <= {name.split()[0] for name in LEARNERS} | {"NVIL", "MuProp"}
    assert not [*RLOO().state_dict(), *VIMCO().state_dict(), *Exact().state_dict()]
