"""States of probability 0 count as 0, whatever the loss there; a latent without a possible category is an error."""

import contextlib
import math

import pytest
import torch

import estimators
from estimators import Exact, GumbelSoftmax, IndeCateR, UnorderedSet, noise_source, relaxed_log_sample
from estimators.base import Pathwise
from estimators.noise import open_uniform

INF = math.inf
EVERY = {
    f"{method.__name__} {name}".strip(): (method, name) for method in estimators.METHODS for name in method.examples()
}


def build(name, latents, categories):
    torch.manual_seed(0)
    method, variant = EVERY[name]
    return method(**method.examples(latents, categories)[variant])


def shapes():
    return [(name, k) for name in EVERY for k in (2, 3) if k == 2 or not build(name, 2, 2).binary_only]


def barrier(w):
    """``-log(1 - w z_00) + (w + 1)^2 sum z``: infinite where the first latent is in category 0 and ``w`` is 1."""

    def loss(z):
        weights = torch.linspace(-1, 1.5, z.shape[-1], dtype=z.dtype)
        return -torch.log1p(-w * z[..., 0, 0]) + (w + 1) ** 2 * (z * weights).sum((-2, -1)).square()

    return loss


def logits_and_oracle(latents, categories=3, impossible=-INF, dtype=torch.float64):
    """Logits whose first latent is never in category 0, and value and gradients by a sum over the possible states."""
    torch.manual_seed(3)
    logits = torch.randn(4, latents, categories, dtype=dtype)
    logits[:, 0, 0] = impossible
    leaf = logits.clone().requires_grad_()
    w = torch.ones((), dtype=dtype, requires_grad=True)
    states = torch.cartesian_prod(*[torch.arange(categories)] * latents).reshape(-1, latents)
    states = torch.nn.functional.one_hot(states[states[:, 0] > 0], categories).to(dtype)
    # Without category 0 of the first latent, so that nothing impossible is in the graph.
    log_p = torch.stack([leaf[:, 0, 1:].log_softmax(-1) @ z[0, 1:] for z in states])
    if latents > 1:
        log_p = log_p + torch.stack([(leaf[:, 1:].log_softmax(-1) * z[1:]).sum((-2, -1)) for z in states])
    loss = barrier(w)
    value = (log_p.exp() * loss(states).unsqueeze(-1)).sum(0)
    return logits, value, torch.autograd.grad(value.sum(), (leaf, w))


@pytest.mark.parametrize("impossible", [-INF, -800.0])
@pytest.mark.parametrize("setting", ["eager", "a harness's noise", "compiled", "transformed"])
@pytest.mark.parametrize(("make", "latents"), [(Exact, 1), (Exact, 2), (lambda: UnorderedSet(3), 1), (IndeCateR, 1)])
def test_sums_over_states_leave_impossible_ones_out(make, latents, setting, impossible):
    """Also those whose probability underflows, and in the gradient of what the loss closes over. The set of all three
    states and one latent after the other are exact here, too."""
    logits, value, gradients = logits_and_oracle(latents, impossible=impossible)
    estimator, w = make(), torch.ones((), dtype=torch.float64)

    def total(logits, w):
        return estimator(logits, barrier(w))

    source = noise_source(lambda shape, dtype, device, _: open_uniform(shape, dtype, device))
    torch._dynamo.reset()
    torch.manual_seed(0)
    with source if setting.startswith("a") else contextlib.nullcontext():
        if setting == "transformed":
            ours, pull_back = torch.func.vjp(total, logits, w)
            found = pull_back(torch.ones_like(ours))
        else:
            run = torch.compile(total, backend="eager", fullgraph=True) if setting == "compiled" else total
            leaves = (logits.requires_grad_(), w.requires_grad_())
            ours = run(*leaves)
            found = torch.autograd.grad(ours.sum(), leaves)
    for a, b in zip((ours, *found), (value, *gradients), strict=True):
        torch.testing.assert_close(a, b)


def test_the_value_of_an_impossible_infinity():
    logits = torch.tensor([[[-INF, 0.0, 0.0]]], requires_grad=True)
    losses = Exact()(logits, lambda z: -torch.log1p(-z[..., 0, 0]))
    assert losses.item() == 0 and torch.autograd.grad(losses.sum(), logits)[0].eq(0).all()
    # ... and of a possible one
    assert Exact()(torch.zeros(1, 1, 3), lambda z: -torch.log1p(-z[..., 0, 0])).item() == INF


@pytest.mark.parametrize(("name", "categories"), shapes())
def test_every_method_where_the_loss_is_infinite_at_an_impossible_state(name, categories):
    """The possible states' losses are finite; so are value and gradients, 0 at the impossible category."""
    logits, _, _ = logits_and_oracle(2, categories)
    logits = logits.expand(200, *logits.shape).clone().requires_grad_()
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    estimator = build(name, 2, categories).double()
    losses = estimator(logits, barrier(w))
    at_logits, at_w = torch.autograd.grad(losses.sum(), (logits, w))
    assert losses.isfinite().all() and at_logits.isfinite().all() and at_w.isfinite()
    # For two categories the other one is certain.
    assert (at_logits[..., 0, 0] == 0).all()


@pytest.mark.parametrize("row", ["impossible", "infinite"])
@pytest.mark.parametrize(("name", "categories"), shapes())
def test_a_latent_without_a_distribution_is_an_error(name, categories, row):
    logits = torch.randn(3, 2, categories)
    logits[1, 1] = -INF if row == "impossible" else INF
    estimator = build(name, 2, categories)
    sentence = rf"latent at \[1, 1\] .* {'all its logits are -inf' if row == 'impossible' else 'has a logit of .inf'}"
    calls = [lambda: estimator(logits, lambda z: z.sum((-2, -1)))]
    if isinstance(estimator, Pathwise):
        calls.append(lambda: estimator.sample(logits))
    for call in calls:
        with pytest.raises(ValueError, match=f"^{type(estimator).__name__}: the {sentence}"):
            call()


def test_a_relaxed_sample_without_a_distribution_is_an_error():
    for call in (
        lambda x: relaxed_log_sample(x, 0.5),
        lambda x: GumbelSoftmax().sample_with_log_prob(x),
        lambda x: GumbelSoftmax().sample_with_log_ratio(x, torch.zeros(2, 3)),
    ):
        with pytest.raises(ValueError, match=r"latent at \[2, 0\]"):
            call(torch.zeros(3, 2, 3).index_fill(0, torch.tensor(2), -INF))
        with pytest.raises(ValueError, match="floating point"):
            call(torch.zeros(3, 2, 3, dtype=torch.int64))


@pytest.mark.parametrize(("name", "categories"), shapes())
def test_nan_stays_with_its_example(name, categories):
    """A diverged example, or replica, is NaN and no error, and its neighbours do not notice, bit for bit."""
    logits = torch.randn(5, 2, categories)
    spoilt = logits.clone()
    spoilt[1, 0, 1] = math.nan
    results = []
    for x in (logits, spoilt):
        estimator, leaf = build(name, 2, categories), x.clone().requires_grad_()
        torch.manual_seed(1)
        losses = estimator(leaf, lambda z: (z * torch.arange(z.shape[-1])).sum((-2, -1)) ** 2)
        results.append((losses, *torch.autograd.grad(losses.sum(), leaf)))
    (losses, gradient), (spoilt_losses, spoilt_gradient) = results
    assert spoilt_losses[1].isnan() or spoilt_gradient[1].isnan().any()
    others = [0, 2, 3, 4]
    assert torch.equal(losses[others], spoilt_losses[others])
    assert torch.equal(gradient[others], spoilt_gradient[others])


def test_a_certain_bit_is_no_error():
    """Two categories have a distribution wherever their log-odds are a number."""
    logits = torch.tensor([[[0.0, INF], [INF, 1.0], [-INF, INF], [-INF, 3.0]]])
    z = GumbelSoftmax(hard=True).sample(logits)
    assert z.argmax(-1).tolist() == [[1, 0, 1, 1]]


def test_a_harness_watches_over_its_own_logits():
    """Within its noise nothing is raised: one replica that diverges must not stop the others."""
    logits = torch.zeros(2, 3, 1, 3)
    logits[0] = -INF
    with noise_source(lambda shape, dtype, device, _: open_uniform(shape, dtype, device)):
        z = GumbelSoftmax().sample(logits)
    assert z[1].isfinite().all()
