"""Estimators where torch is used in other ways: ``vmap``, BatchNorm and checkpointing in the loss, default devices,
losses that are integers."""

import copy

import pytest
import torch
from exact_means import exact_gradient, polynomial
from torch import nn
from torch.utils.checkpoint import checkpoint

from estimators import (
    ARMS,
    DARN,
    METHODS,
    NVIL,
    REBAR,
    REINFORCE,
    RELAX,
    RLOO,
    RODEO,
    DisARM,
    DoubleCV,
    GappedStraightThrough,
    GumbelSoftmax,
    MuProp,
    StraightThrough,
    noise,
)
from estimators.base import Pathwise

EVERY = {
    **{(method.__name__, 2): method for method in METHODS if method is not RELAX},
    **{(method.__name__, 4): method for method in METHODS if method is not RELAX and not method.binary_only},
    ("RELAX", 2): lambda: RELAX(3, 2, hidden=4),
    ("RELAX", 4): lambda: RELAX(3, 4, hidden=4),
    ("GumbelSoftmax hard", 4): lambda: GumbelSoftmax(0.5, hard=True),
    ("NVIL with baseline", 2): lambda: NVIL(5),
    ("ARMS gaussian", 2): lambda: ARMS(4, "gaussian"),
    ("GappedStraightThrough p", 4): lambda: GappedStraightThrough(0.5, "p"),
}
SAMPLERS = [key for key, make in EVERY.items() if isinstance(make(), Pathwise)]
BY_TRANSFORMS = [MuProp, DARN, REBAR, lambda: RELAX(3, 2, hidden=4), DoubleCV, RODEO]


def loss(z):
    weights = torch.linspace(-1, 1, z.shape[-1], dtype=z.dtype, device=z.device)
    return (z * weights).sum((-2, -1)) ** 2 + z[..., 0].sum(-1)


# --- vmap ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "categories"), SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_under_vmap(name, categories, dtype):
    """One noise for each example, or the same for all; the mean of 10,000 is that without vmap, within 6.5 errors of
    either (below 50 coordinates a case)."""
    torch.manual_seed(0)
    estimator, logits = EVERY[name, categories](), torch.randn(3, categories, dtype=dtype)
    many = logits.expand(10_000, 3, categories)
    ours = torch.vmap(estimator.sample, randomness="different")(many).detach()
    plain = estimator.sample(many).detach()
    assert ours.dtype == dtype and len(ours.unique(dim=0)) > 1
    error = ((ours.var(0) + plain.var(0)) / len(ours)).sqrt()
    assert ((ours.mean(0) - plain.mean(0)).abs() < 6.5 * error + 1e-6).all()
    same = torch.vmap(estimator.sample, randomness="same")(many[:50])
    assert torch.allclose(same, same[:1].expand_as(same))


@pytest.mark.parametrize(("name", "categories"), EVERY)
def test_gradients_under_vmap(name, categories):
    """vmap(grad) over examples: of the exact mean where the method is unbiased (4,000 draws, 6.5 standard errors)."""
    torch.manual_seed(0)
    estimator, logits = EVERY[name, categories]().double(), 0.5 * torch.randn(3, categories, dtype=torch.float64)
    f, draws = polynomial(3, 3, categories), 4_000 if EVERY[name, categories]().unbiased else 50
    context = torch.ones(5, dtype=torch.float64)
    slope = torch.func.grad(lambda x: estimator(x, f, context))
    found = torch.vmap(slope, randomness="different")(logits.expand(draws, 3, categories))
    assert found.isfinite().all() and (name == "Exact" or len(found.unique(dim=0)) > 1)
    if estimator.unbiased and estimator.objective == "mean":
        error = found.std(0) / draws**0.5
        assert ((found.mean(0) - exact_gradient(logits, f)).abs() < 6.5 * error + 1e-9).all()
    if name != "Exact":
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(slope)(logits.expand(5, 3, categories))


def test_the_extreme_draws_under_vmap_give_finite_noise(monkeypatch):
    for bits in (0, 2**31 - 1):
        monkeypatch.setattr(
            torch, "randint", lambda high, shape, dtype, device, bits=bits: torch.full(shape, bits, dtype=dtype)
        )
        for draw in (noise.gumbel, noise.logistic):
            f = lambda _, draw=draw: draw((2, 2), dtype=torch.float32, device=torch.device("cpu"))  # noqa: E731
            assert torch.vmap(f)(torch.zeros(3)).isfinite().all()


# --- modules in the loss -------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    def __init__(self, normalisation=None, reentrant=None):
        super().__init__()
        self.linear, self.normalisation, self.reentrant = nn.Linear(6, 4), normalisation, reentrant

    def forward(self, z):
        h = z.flatten(-2)
        h = self.linear(h) if self.reentrant is None else checkpoint(self.linear, h, use_reentrant=self.reentrant)
        if self.normalisation is not None:
            h = self.normalisation(h.reshape(-1, 4)).reshape(h.shape)
        return h.square().sum(-1)


@pytest.mark.parametrize("make", BY_TRANSFORMS)
@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (Decoder(nn.BatchNorm1d(4)), "BatchNorm in training mode"),
        (Decoder(nn.BatchNorm1d(4, momentum=None)), "BatchNorm in training mode"),
        (Decoder(reentrant=True), "no gradient checkpointing"),
        (Decoder(reentrant=False), "gradient checkpointing does not work inside of the loss"),
    ],
)
def test_what_torch_func_cannot_do_is_one_sentence(make, decoder, words):
    estimator = make()
    with pytest.raises(RuntimeError, match=words) as error:
        estimator(torch.zeros(5, 3, 2, requires_grad=True), decoder)
    assert str(error.value).startswith(type(estimator).__name__) and "\n" not in str(error.value)


@pytest.mark.parametrize("make", BY_TRANSFORMS)
@pytest.mark.parametrize("normalisation", [nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4).eval()])
def test_what_the_sentence_advises_works(make, normalisation):
    logits = torch.zeros(5, 3, 2, requires_grad=True)
    make()(logits, Decoder(normalisation)).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("make", [REINFORCE, NVIL, RLOO, DisARM, StraightThrough])
def test_others_have_no_such_limits(make):
    for decoder in (Decoder(nn.BatchNorm1d(4)), Decoder(reentrant=True), Decoder(reentrant=False)):
        logits = torch.zeros(5, 3, 2, requires_grad=True)
        make()(logits, decoder).sum().backward()
        assert logits.grad.isfinite().all()


def test_an_error_of_the_loss_itself_stays_as_it_is():
    def broken(z):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        MuProp()(torch.zeros(5, 3, 2), broken)


# --- devices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "categories"), EVERY)
def test_any_default_device(name, categories):
    """Built on the meta device and filled later; used while the default is another device than that of the logits."""
    torch.manual_seed(0)
    plain = EVERY[name, categories]()
    logits, context = torch.randn(5, 3, categories, requires_grad=True), torch.randn(5, 5)
    with torch.device("meta"):
        torch.manual_seed(0)
        built = EVERY[name, categories]()
        assert built.unbiased == plain.unbiased and built.exact_for == plain.exact_for
        assert all(tensor.is_meta for tensor in (*built.parameters(), *built.buffers()))
        built.to_empty(device="cpu").load_state_dict(plain.state_dict())
        results = []
        for estimator in (built, plain):
            torch.manual_seed(1)
            losses = copy.deepcopy(estimator)(logits, loss, context)
            results.append((losses, *torch.autograd.grad(losses.sum(), logits)))
    torch.manual_seed(1)
    losses = plain(logits, loss, context)
    results.append((losses, *torch.autograd.grad(losses.sum(), logits)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_numbers_on_the_meta_device():
    with torch.device("meta"):
        assert StraightThrough(torch.full((2, 1, 1, 1), 0.5)).temperature.is_meta
        assert NVIL(4, replicas=2, decay=torch.full((2, 1, 1, 1), 0.5)).baseline.hidden_weight.is_meta
        for wrong in (0.0, -1.0):
            with pytest.raises(ValueError, match="temperature must be positive"):
                GumbelSoftmax(wrong)


# --- losses without a fraction -------------------------------------------------------------------------------------

REWARDS = {
    "bool": lambda z: z[..., 1].sum(-1) > 1,
    "integer": lambda z: z[..., 1].sum(-1).long() ** 2,
    "bytes": lambda z: z[..., 1].sum(-1).to(torch.uint8),
}


@pytest.mark.parametrize(("name", "categories"), EVERY)
@pytest.mark.parametrize("kind", REWARDS)
def test_rewards_are_numbers_or_refused(name, categories, kind):
    """As the same numbers in floating point; whoever differentiates the loss says that there is nothing to."""
    logits, context = torch.randn(50, 3, categories, requires_grad=True), torch.randn(50, 5)
    estimator = EVERY[name, categories]()
    if estimator.needs_gradient:
        with pytest.raises(ValueError, match=f"^{type(estimator).__name__} differentiates the loss, and one of torch"):
            estimator(logits, REWARDS[kind], context)
        return
    results = []
    for reward in (REWARDS[kind], lambda z: REWARDS[kind](z).to(z.dtype)):
        torch.manual_seed(0)
        losses = copy.deepcopy(estimator)(logits, reward, context)
        results.append((losses, *torch.autograd.grad(losses.sum(), logits)))
    assert results[0][0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("name", "categories"), EVERY)
@pytest.mark.parametrize("loss", [lambda z: z.detach()[..., 1].sum(-1), lambda z: z.argmax(-1).sum(-1).float()])
def test_a_loss_without_a_graph_is_refused_where_it_is_differentiated(name, categories, loss):
    """Its gradient would be none, or silently that of something else; for the others it is a reward."""
    logits, context = torch.randn(5, 3, categories, requires_grad=True), torch.randn(5, 5)
    estimator = EVERY[name, categories]()
    if not estimator.needs_gradient:
        estimator(logits, loss, context).sum().backward()
        return
    with pytest.raises(
        ValueError, match="differentiates the loss, and this one does not depend on z by a graph"
    ) as found:
        estimator(logits, loss, context)
    assert "\n" not in str(found.value)


def test_black_boxes_for_relax():
    """Without the loss in its control variate it needs no derivative; complex losses have no order."""
    logits = torch.randn(5, 3, 2, requires_grad=True)
    RELAX(3, 2, hidden=4, use_loss=False)(logits, REWARDS["bool"]).sum().backward()
    with pytest.raises(ValueError, match=r"must return real numbers, not torch\.complex64"):
        REINFORCE()(logits, lambda z: z[..., 1].sum(-1) * 1j)
