"""``torch.compile(fullgraph=True)``: every method in one graph, with the numbers of the uncompiled one."""

import copy
import threading

import pytest
import torch

import estimators
from estimators import (
    NVIL,
    RELAX,
    GappedStraightThrough,
    GumbelSoftmax,
    ReinMax,
    StraightThrough,
    noise,
    noise_source,
    uniform,
)

ALL = {
    **{method.__name__: method() for method in estimators.METHODS if method is not RELAX},
    "RELAX": RELAX(3, 4, hidden=4),
    "GumbelSoftmax hard": GumbelSoftmax(hard=True),
    "GumbelSoftmax of a tensor": GumbelSoftmax(torch.full((1, 1, 1), 0.7)),
    "GappedStraightThrough p": GappedStraightThrough(gap="p"),
    "NVIL with baseline": NVIL(2),
}
FEW = ["GumbelSoftmax", "GumbelSoftmax hard", "StraightThrough", "ReinMax", "REINFORCE", "RLOO"]


def loss(z):
    weights = torch.linspace(-1, 1, z.shape[-1], dtype=z.dtype)
    return (z * weights).sum((-2, -1)) ** 2 + z[..., 0].sum(-1)


def steps(estimator, call):
    """Losses, gradients and the estimator's state over three calls on the same noise."""
    for seed in range(3):
        torch.manual_seed(seed)
        logits = torch.randn(5, 3, 2 if estimator.binary_only else 4, requires_grad=True)
        losses = call(logits)
        wanted = [logits, *estimator.parameters()]
        gradients = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
        yield [losses, *gradients, *(value.clone() for value in estimator.state_dict().values())]


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "eager") for name in ALL), *((name, "aot_eager") for name in FEW)]
)
def test_one_graph_gives_the_same_losses_gradients_and_state(name, backend):
    """Three calls: what an estimator learns or keeps is updated within the graph, too."""
    torch._dynamo.reset()
    plain, compiled = copy.deepcopy(ALL[name]), copy.deepcopy(ALL[name])
    context = torch.randn(5, 2) if "baseline" in name else None
    graph = torch.compile(lambda logits: compiled(logits, loss, context), backend=backend, fullgraph=True)
    for ours, expected in zip(
        steps(compiled, graph), steps(plain, lambda logits: plain(logits, loss, context)), strict=True
    ):
        for a, b in zip(ours, expected, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [GumbelSoftmax, StraightThrough, ReinMax])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_drop_in_sample_is_one_graph(method, dtype):
    torch._dynamo.reset()
    logits = torch.randn(6, 3, 2, dtype=dtype)
    samples = []
    for sample in (method().sample, torch.compile(method().sample, backend="eager", fullgraph=True)):
        torch.manual_seed(0)
        samples.append(sample(logits))
    assert torch.equal(*samples)


def test_a_noise_source_is_never_passed_over():
    """Compiled before, within and after a block: within it, the graph breaks at the source instead of ignoring it."""
    torch._dynamo.reset()
    estimator, logits = GumbelSoftmax(), torch.randn(4, 2, 3)
    compiled = torch.compile(lambda x: estimator.sample(x), backend="eager")
    outside = compiled(logits)
    with noise_source(lambda shape, dtype, device, event_dims: torch.full(shape, 0.5, dtype=dtype)):
        assert torch.allclose(compiled(logits), logits.softmax(-1))
    assert not torch.allclose(outside, logits.softmax(-1)) and not torch.allclose(compiled(logits), logits.softmax(-1))


def test_a_noise_source_belongs_to_its_thread():
    shape, options = (3,), {"dtype": torch.float32, "device": torch.device("cpu")}
    seen = []
    with noise_source(lambda *_: torch.full(shape, 0.5)):
        thread = threading.Thread(target=lambda: seen.append(uniform(shape, **options)))
        thread.start()
        thread.join()
        assert torch.equal(uniform(shape, **options), torch.full(shape, 0.5))
        with noise_source(None):
            assert uniform(shape, **options).unique().numel() == 3
    assert seen[0].unique().numel() == 3 and noise._open_blocks == 0
