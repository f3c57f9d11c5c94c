"""Numbers: half precision and autocast, and extreme temperatures and logits, over all methods.

The tests of half precision also run on CUDA where there is a device.
"""

import copy
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

import estimators
from estimators import (
    NVIL,
    REBAR,
    RELAX,
    RODEO,
    DecoupledStraightThrough,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    OverlappingExponential,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    SpikeAndExponential,
    StraightThrough,
)

LATENTS = 3
HALF = [torch.bfloat16, torch.float16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EVERY = {
    **{(method.__name__, 2): method for method in estimators.METHODS},
    **{(method.__name__, 4): method for method in estimators.METHODS if not method.binary_only},
    ("GumbelSoftmax hard", 4): lambda: GumbelSoftmax(hard=True),
}
RELAXED = {"GumbelSoftmax", "OverlappingExponential", "SpikeAndExponential"}


def build(name, categories, device="cpu"):
    torch.manual_seed(0)
    make = EVERY[name, categories]
    options = make.examples(LATENTS, categories)[""] if make in estimators.METHODS else {}
    return make(**options).to(device)


def quadratic(z):
    """In float32 at least, returned in the dtype of ``z``: all that is rounded is the estimator's own."""
    x = z.to(torch.promote_types(z.dtype, torch.float32))
    weights = torch.linspace(-1, 1.3, z.shape[-1], dtype=x.dtype, device=z.device)
    return ((x * weights).sum((-2, -1)) ** 2 + x[..., 0].sum(-1)).to(z.dtype)


def gradient(estimator, logits, loss=quadratic):
    """Losses, gradients of the logits and of what the estimator learns, and ``z`` as the loss got it."""
    seen = []
    leaf = logits.clone().requires_grad_()
    torch.manual_seed(1)
    losses = estimator(leaf, lambda z: loss(seen.append(z.detach()) or z))
    wanted = [leaf, *estimator.parameters()]
    return losses, torch.autograd.grad(losses.sum(), wanted, allow_unused=True), the_sample(seen)


def assert_finite(losses, gradients):
    assert losses.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients) and gradients[0] is not None


def is_one_hot(z):
    return bool(((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all())


def the_sample(seen):
    """The first one-hot ``z`` of the loss's calls (MuProp looks at the mean before), or the first of all."""
    return next((z for z in seen if is_one_hot(z)), seen[0])


# --- half precision ------------------------------------------------------------------------------------------------


class Watch(TorchFunctionMode):
    """Notes whether operations run under autocast: those of the loss, and those of the estimator."""

    def __init__(self):
        super().__init__()
        self.in_loss, self.seen = False, {True: set(), False: set()}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen[self.in_loss].add(torch.is_autocast_enabled("cpu"))
        return result

    def watched(self, z):
        self.in_loss = True
        losses = quadratic(z)
        self.in_loss = False
        return losses


@pytest.mark.parametrize(("name", "categories"), EVERY)
def test_autocast_is_for_the_loss_alone(name, categories):
    """The lists of what autocast computes in float32 differ between devices, and so would z and the gradients."""
    estimator, logits = build(name, categories), torch.randn(8, LATENTS, categories, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), Watch() as watch:
        estimator(logits, watch.watched)
    assert watch.seen == {True: {True}, False: {False}}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "categories"), EVERY)
def test_a_model_under_autocast(name, categories, device):
    """bfloat16 logits from an encoder and a decoder in bfloat16; parameters and their gradients in float32."""
    estimator = build(name, categories, device)
    encoder = torch.nn.Linear(7, LATENTS * categories, device=device)
    decoder = torch.nn.Linear(LATENTS * categories, 5, device=device)
    seen = []

    def loss(z):
        seen.append(z.detach())
        return torch.nn.functional.linear(z.flatten(-2), decoder.weight, decoder.bias).tanh().square().sum(-1)

    with torch.autocast(device, dtype=torch.bfloat16):
        logits = encoder(torch.randn(64, 7, device=device)).unflatten(-1, (LATENTS, categories))
        losses = estimator(logits, loss)
    assert logits.dtype == torch.bfloat16 and seen[0].dtype == torch.bfloat16
    assert losses.dtype == (torch.float32 if device == "cuda" else torch.bfloat16)  # CUDA has sums in float32
    gradients = torch.autograd.grad(losses.mean(), [*encoder.parameters(), *decoder.parameters()])
    assert_finite(losses, gradients)
    assert gradients[0].dtype == torch.float32 and gradients[0].abs().max() > 0
    if name not in RELAXED:
        assert is_one_hot(the_sample(seen))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "categories"), [key for key in EVERY if key[0] not in ("RELAX", "RODEO")])
def test_autocast_does_not_touch_the_estimators_own_mathematics(name, categories, device):
    """With float32 logits and loss all is as without autocast (but for networks, whose products it means to round)."""
    logits = torch.randn(2000, LATENTS, categories, generator=torch.Generator().manual_seed(2)).to(device)
    results = []
    for enabled in (False, True):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            results.append(gradient(build(name, categories, device), logits))
    (losses, gradients, z), (same_losses, same_gradients, same_z) = results
    assert torch.equal(z, same_z) and torch.equal(losses, same_losses)
    assert torch.equal(gradients[0], same_gradients[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half_dtype", HALF)
@pytest.mark.parametrize(("name", "categories"), EVERY)
def test_half_logits_give_the_numbers_of_float32_up_to_rounding(name, categories, half_dtype, device):
    """On the same noise: a bfloat16 number has a relative error of 2^-9, and few samples are so close to a tie.

    What the estimator learns stays in float32, or is in half precision, too.
    """
    logits = torch.randn(2000, LATENTS, categories, generator=torch.Generator().manual_seed(2)).to(half_dtype)
    logits = logits.to(device)
    results = []
    for dtype, own in ((torch.float32, torch.float32), (half_dtype, torch.float32), (half_dtype, half_dtype)):
        estimator = build(name, categories, device).to(own)
        losses, gradients, z = gradient(estimator, logits.to(dtype))
        assert losses.dtype == gradients[0].dtype == z.dtype == dtype
        assert_finite(losses, gradients)
        results.append((z.float(), gradients[0].float()))
    for result in results[1:]:
        _assert_close_in_half_precision(name, *results[0], *result)


def _assert_close_in_half_precision(name, z, expected, half_z, half):
    if name in RELAXED:
        assert torch.allclose(z, half_z, atol=0.02)
        same = ((z[..., 1] == 0) == (half_z[..., 1] == 0)).all(-1)  # on the spike at 0 there is no gradient
    else:
        assert is_one_hot(half_z)
        same = (z == half_z).flatten(-2).all(-1).reshape(-1, len(expected)).all(0)
    assert same.float().mean() > 0.99
    assert (half - expected)[same].norm() < 0.03 * expected[same].norm()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("name", "categories"), [key for key in EVERY if key[0] not in ("REBAR", "RELAX")])
def test_large_losses_in_half_precision_keep_their_value(name, categories, dtype):
    """A surrogate of value 0 must not overflow: sums over many latents of a loss of thousands, at sure logits.

    (REBAR's and RELAX's squared gradients overflow in the loss itself, whose slope is in half precision.)
    """
    torch.manual_seed(0)
    logits = (8 * torch.randn(20, 40, categories)).to(dtype)
    if name in ("Exact", "IndeCateR", "ARSM", "ARS"):
        logits = logits[:, :2]

    def loss(z):
        x = z[..., 0].float().mean(-1)
        return (3000 + 500 * x).to(dtype)

    estimator = build(name, categories)
    losses, gradients, _ = gradient(estimator, logits, loss)
    assert losses.dtype == dtype and losses.isfinite().all() and gradients[0].isfinite().all()
    assert (losses >= 2900 * (1 - 0.01)).all() and (losses <= 3600).all()


@pytest.mark.parametrize(("name", "categories"), EVERY)
def test_the_default_dtype_changes_nothing(name, categories):
    """With float64 as torch's default, float32 logits and contexts give the same float32 numbers."""
    logits = torch.randn(500, LATENTS, categories, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
    context = torch.randn(500, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    results = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            estimator = NVIL(5) if name == "NVIL" else build(name, categories)
            leaf = logits.clone().requires_grad_()
            torch.manual_seed(1)
            losses = estimator(leaf, quadratic, context)
            losses.sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        assert losses.dtype == leaf.grad.dtype == torch.float32
        results.append((losses.detach(), leaf.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", ["float64 default", "float64 context", "half logits and context", "autocast"])
@pytest.mark.parametrize("replicas", [None, 4])
@pytest.mark.parametrize("method", [NVIL, RELAX, RODEO])
def test_networks_work_in_the_dtype_of_their_weights(method, replicas, setting):
    """Whatever that of logits, losses and context; what is learned gets its gradient."""
    torch.manual_seed(0)
    shape = (4, 20) if replicas else (20,)
    logits, context = torch.randn(*shape, LATENTS, 2), torch.randn(*shape, 5)
    if setting == "half logits and context":
        logits, context = logits.half(), context.half()
    if setting == "float64 context":
        context = context.double()
    torch.set_default_dtype(torch.float64 if setting == "float64 default" else torch.float32)
    try:
        arguments = {NVIL: {"context_features": 5}, RELAX: {"latents": LATENTS, "context_features": 5}, RODEO: {}}
        estimator = method(**arguments[method], hidden=8, replicas=replicas)
    finally:
        torch.set_default_dtype(torch.float32)
    leaf = logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
        for _ in range(2):
            losses = estimator(leaf, quadratic, context)
            gradients = torch.autograd.grad(losses.sum(), [leaf, *estimator.parameters()], allow_unused=True)
    assert losses.dtype == logits.dtype
    assert_finite(losses, gradients)
    assert any(g is not None and g.abs().max() > 0 for g in gradients[1:])


# --- extremes ------------------------------------------------------------------------------------------------------

AT_TEMPERATURES = {
    "GumbelSoftmax": GumbelSoftmax,
    "GumbelSoftmax hard": lambda t: GumbelSoftmax(t, hard=True),
    "StraightThrough": StraightThrough,
    "DecoupledStraightThrough": lambda t: DecoupledStraightThrough(t, t),
    "GappedStraightThrough": lambda t: GappedStraightThrough(t, 1e4),
    "GappedStraightThrough p": lambda t: GappedStraightThrough(t, "p"),
    "GumbelRao": GumbelRao,
    "ReinMax": lambda t: ReinMax(max(t, 1.0)),
    "ReinMaxCV": ReinMaxCV,
    "ReinMaxRao": ReinMaxRao,
    "REBAR": REBAR,
    "RELAX": lambda t: RELAX(LATENTS, 3, temperature=t, hidden=4),
    "RELAX of bits": lambda t: RELAX(LATENTS, 2, temperature=t, hidden=4),
    "SpikeAndExponential": lambda t: SpikeAndExponential(min(1 / t, 80.0)),
    "OverlappingExponential": lambda t: OverlappingExponential(min(1 / t, 80.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", AT_TEMPERATURES)
def test_finite_at_every_temperature_and_scale_of_the_logits(name, temperature, dtype):
    """Also with an impossible category, which is never drawn and gets no gradient."""
    torch.manual_seed(0)
    estimator = AT_TEMPERATURES[name](temperature)
    bits = estimator.binary_only or name == "RELAX of bits"
    for categories in (2,) if bits else (3,) if name == "RELAX" else (2, 3):
        scales = torch.tensor([0.0, 1e-3, 1.0, 30.0, 1e3], dtype=dtype).reshape(-1, 1, 1, 1)
        logits = scales * torch.randn(5, 300, LATENTS, categories, dtype=dtype)
        impossible = torch.zeros_like(logits, dtype=torch.bool)
        impossible[:, 150:, 1, -1] = True
        logits = logits.masked_fill(impossible, -math.inf)
        losses, gradients, z = gradient(copy.deepcopy(estimator).to(dtype), logits)
        assert_finite(losses, gradients)
        assert losses.dtype == gradients[0].dtype == z.dtype == dtype
        if name in RELAXED:
            assert z.isfinite().all() and (z >= 0).all()
            assert torch.allclose(z.sum(-1), torch.ones_like(z[..., 0]))
        else:
            assert is_one_hot(z)
            assert (z[impossible] == 0).all() and (gradients[0][impossible] == 0).all()
