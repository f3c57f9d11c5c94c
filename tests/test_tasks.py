"""The VAE against enumeration of its latent states, and its likelihood and KL against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from enumerated_bounds import check_bounds

from estimators import NVIL, REINFORCE, Exact, GumbelSoftmax
from tasks import VAE
from tasks.datasets import Dataset, Split
from tasks.distributions.latents import latents_of
from tasks.distributions.likelihoods import bernoulli_nats
from tasks.layers import StackedMLP, stacked_linear
from training.replicas.streams import Streams

PIXELS = 6


def tiny_data(levels=1, images=40):
    high = 2 if levels == 1 else 256
    pixels = torch.randint(0, high, (images, PIXELS), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(pixels, levels)
    return Dataset("tiny", (2, 3), "static" if levels == 1 else "none", split, split, split)


def tiny_vae(categories=2, latents=3, seeds=(0, 1), spread=0.5, **options):
    """A VAE whose joint states can be enumerated, with parameters far from their start."""
    vae = VAE(tiny_data(), Streams(seeds), latents=latents, categories=categories, **options)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return vae


def enumerated(vae, x):
    """``log q``, ``log p(x, z)`` ``[states, R, E]`` and the exact log-likelihood ``[R, E]`` by summing over states."""
    latents, categories = vae.latents.latents, vae.latents.categories
    codes = torch.cartesian_prod(*[torch.arange(categories)] * latents).reshape(-1, latents)
    z = F.one_hot(codes, categories).float()[:, None, None]
    outputs = vae.encoders[0](x)
    log_q = (z * vae.latents.logits(outputs).log_softmax(-1)).sum((-2, -1))
    log_prior = (z * vae.latents.logits(vae.prior_outputs).log_softmax(-1)).sum((-2, -1))
    features = vae.latents.features(z).expand(-1, vae.replicas, x.shape[1], -1)
    pixel_logits = vae.decoders[0](features)
    log_p_x = torch.distributions.Bernoulli(logits=pixel_logits).log_prob(x).sum(-1)
    joint = log_prior + log_p_x
    return log_q.expand_as(joint), joint, joint.logsumexp(0)


def whole_split(vae):
    return vae.data.test.pixels.float().expand(vae.replicas, -1, -1)


@pytest.mark.parametrize("prior", ["uniform", "learned"])
@pytest.mark.parametrize(("categories", "latents"), [(2, 4), (3, 3)])
def test_evaluation_against_enumeration(categories, latents, prior):
    """The sampled ELBO is the exact one; the bound rises with samples to the exact log-likelihood and stays below.

    Means over 40 images; the tolerances are 6 standard errors computed from the exact spread of the log weights.
    """
    vae = tiny_vae(categories, latents, prior=prior)
    with torch.no_grad():
        log_q, joint, _ = enumerated(vae, whole_split(vae))
    check_bounds(lambda samples: vae.evaluate("test", samples), log_q, joint, 0.2)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize(("categories", "latents"), [(2, 4), (3, 3)])
def test_the_objective_through_exact_is_the_negative_elbo(categories, latents, kl):
    vae = tiny_vae(categories, latents, kl=kl, prior="learned")
    x = whole_split(vae)
    log_q, joint, _ = enumerated(vae, x)
    elbo = (log_q.exp() * (joint - log_q)).sum(0)
    losses = vae.loss(x, Exact())
    assert torch.allclose(losses, -elbo, rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(losses.mean(-1).sum(), list(vae.parameters()))
    exact = torch.autograd.grad(-elbo.mean(-1).sum(), list(vae.parameters()))
    for got, want in zip(ours, exact, strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_a_score_function_is_that_of_enumeration_in_the_mean():
    """Both KLs, encoder and decoder: 3,000 draws as examples; every coordinate within 6 standard errors."""
    for kl in ("analytic", "sampled"):
        vae = tiny_vae(2, 3, seeds=(0,), spread=0.5, kl=kl)
        x = whole_split(vae)[:, :1].expand(-1, 3000, -1)
        bias = vae.encoders[0].biases[-1]
        exact = torch.autograd.grad(vae.loss(x[:, :1], Exact()).sum(), bias)[0].flatten()
        outputs = vae.encoders[0](x).detach().requires_grad_()
        vae.encoders[0].forward = lambda _, outputs=outputs: outputs
        torch.manual_seed(0)
        draws = torch.autograd.grad(vae.loss(x, REINFORCE()).sum(), outputs)[0][0]
        assert ((draws.mean(0) - exact).abs() < 6 * draws.std(0) / 3000**0.5 + 1e-6).all()


def test_the_kl_goes_where_the_estimator_can_scale_it():
    """Beside NVIL's variance normalisation an analytic KL would weigh too much; ``auto`` puts it into the loss."""
    vae = tiny_vae()
    assert vae.kl_for(NVIL()) == vae.kl_for(NVIL(variance_normalisation=False)) == vae.kl_for(REINFORCE()) == "sampled"
    assert vae.kl_for(GumbelSoftmax()) == vae.kl_for(GumbelSoftmax(hard=True)) == "analytic"
    assert tiny_vae(kl="analytic").kl_for(NVIL()) == "analytic"


def test_evaluation_is_repeatable_independent_of_the_pack_and_never_uses_an_estimator():
    together, alone = tiny_vae(seeds=(3, 7), spread=0), tiny_vae(seeds=(7,), spread=0)
    first, second = together.evaluate("valid", 20), together.evaluate("valid", 20)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, value in alone.evaluate("valid", 20).items():
        assert torch.allclose(value[0], first[name][1], rtol=1e-5)


def test_grey_targets_are_not_called_bounds():
    vae = VAE(tiny_data(levels=255), Streams([0]), latents=2)
    assert set(vae.evaluate("test", 2)) == {"pseudo_elbo", "pseudo_bound"}
    assert vae.protocol()["evaluation_is_bound"] is False
    assert set(tiny_vae().evaluate("test", 2)) == {"elbo", "bound"}


def test_the_initial_output_bias_gives_independent_pixels():
    """With zero weights and the bias of the data mean the likelihood is that of independent Bernoulli pixels."""
    data = tiny_data()
    vae = VAE(data, Streams([0]), latents=2, output_bias="data_mean")
    with torch.no_grad():
        for weight in vae.decoders[0].weights:
            weight.zero_()
    p = data.mean.clamp(0.001, 0.999)
    x = data.test.pixels.float()
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1).mean()
    assert vae.evaluate("test", 1)["elbo"].item() == pytest.approx(
        expected.item() - vae.latents.kl(vae.encoders[0](x[None]), vae.prior_outputs).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("categories", [2, 5])
def test_kl_and_log_ratio(categories):
    family = latents_of(4, categories)
    outputs, prior = torch.randn(3, family.width), torch.randn(1, family.width)
    q = torch.distributions.Categorical(logits=family.logits(outputs))
    p = torch.distributions.Categorical(logits=family.logits(prior).expand(3, -1, -1))
    assert torch.allclose(family.kl(outputs, prior), torch.distributions.kl_divergence(q, p).sum(-1), atol=1e-5)
    z = q.sample()
    features = family.features(F.one_hot(z, categories).float())
    ratio = (q.log_prob(z) - p.log_prob(z)).sum(-1)
    assert torch.allclose(family.log_ratio(features, outputs, prior), ratio, atol=1e-5)


def test_the_written_out_derivative_of_the_kl_to_the_uniform_prior():
    family = latents_of(4, 2)
    outputs = (3 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
    uniform = torch.zeros(1, 4, dtype=torch.float64)
    assert torch.allclose(family.kl(outputs, None), family.kl(outputs, uniform))
    assert torch.autograd.gradcheck(lambda a: family.kl(a, None), (outputs,))
    assert torch.autograd.gradgradcheck(lambda a: family.kl(a, None), (outputs,))
    assert torch.func.grad(lambda a: family.kl(a, None).sum())(outputs.detach()).isfinite().all()
    extreme = torch.tensor([[-1e3, 1e3, 0.0, 90.0]], requires_grad=True)
    assert torch.autograd.grad(family.kl(extreme, None).sum(), extreme)[0].isfinite().all()


@pytest.mark.parametrize("categories", [2, 5])
def test_samples_of_the_task_follow_the_distribution(categories):
    """Frequencies within 6 standard errors, exactly one-hot."""
    family = latents_of(2, categories)
    outputs = torch.randn(family.width, generator=torch.Generator().manual_seed(0)).expand(50_000, -1)
    u = torch.rand(50_000, 2, generator=torch.Generator().manual_seed(1))
    features = family.sample(outputs, u)
    p = family.features(family.logits(outputs[:1]).softmax(-1))[0]
    assert set(features.unique().tolist()) == {0.0, 1.0}
    assert ((features.mean(0) - p).abs() < 6 * (p * (1 - p) / 50_000).sqrt()).all()


@pytest.mark.parametrize("pixels", [1, 7, 64, 101, 784])
def test_bernoulli_nats(pixels):
    """Value, first and second derivative against torch's cross-entropy in float64, also at extreme logits."""
    torch.manual_seed(0)
    logits = (torch.randn(2, 3, pixels, dtype=torch.float64) * 3).requires_grad_()
    x = (torch.rand(3, pixels) > 0.5).double()
    ours = bernoulli_nats(logits, x)
    theirs = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((y**2).sum(), logits, create_graph=True)[0] for y in (ours, theirs)]
    assert torch.allclose(*grads, rtol=1e-10, atol=1e-10)
    seconds = [torch.autograd.grad((g**2).sum(), logits)[0] for g in grads]
    assert torch.allclose(*seconds, rtol=1e-10, atol=1e-10)
    extreme = torch.tensor([[-1e3, 1e3]]).repeat(1, pixels).requires_grad_()
    nats = bernoulli_nats(extreme, torch.ones_like(extreme))
    assert nats.item() == pytest.approx(1e3 * pixels) and torch.autograd.grad(nats.sum(), extreme)[0].isfinite().all()
    in_functorch = torch.func.grad(lambda a: bernoulli_nats(a, x).sum())(logits.detach())
    assert torch.allclose(in_functorch, torch.autograd.grad(bernoulli_nats(logits, x).sum(), logits)[0])


def test_stacked_linear_is_one_linear_layer_per_replica():
    x, weight, bias = torch.randn(5, 4, 3, 7, 2), torch.randn(3, 2, 6), torch.randn(3, 1, 6)
    expected = torch.stack([x[:, :, r] @ weight[r] + bias[r] for r in range(3)], 2)
    assert torch.allclose(stacked_linear(x, weight, bias), expected, atol=1e-6)
    assert torch.allclose(stacked_linear(x[0, 0], weight, bias), expected[0, 0], atol=1e-6)


def test_initial_weights_depend_on_the_runs_own_seed_alone():
    packs = [Streams(seeds).fresh("parameters") for seeds in ([5], [1, 5, 9])]
    alone, third = (
        StackedMLP([4, 8, 3], "tanh", source_replicas, source)
        for source, source_replicas in zip(packs, (1, 3), strict=True)
    )
    assert torch.equal(alone.weights[0][0], third.weights[0][1]) and torch.equal(
        alone.weights[1][0], third.weights[1][1]
    )
    assert alone.weights[0].abs().max() <= math.sqrt(6 / 12)


INITIAL = {
    "glorot": (torch.distributions.Uniform(-(0.02**0.5), 0.02**0.5), 0),
    "linear": (torch.distributions.Uniform(-0.1, 0.1), 0.1),
    "variance_scaling": (torch.distributions.Normal(0.0, 0.026**0.5), 0),
}


@pytest.mark.parametrize("rule", INITIAL)
def test_initial_weights_have_their_distribution(rule):
    """100 inputs, 200 outputs: the distribution function at the weights is uniform, by the Kolmogorov-Smirnov distance
    over 80,000 weights (false alarms below 1e-6 at 2.7 / sqrt(n)); a normal one is cut at two standard deviations."""
    layer = StackedMLP([100, 200, 3], "tanh", 4, Streams([1, 2, 3, 4]).fresh("parameters"), rule)
    weights, bias = layer.weights[0].detach().flatten().double(), layer.biases[0].detach()
    distribution, bound = INITIAL[rule]
    u = distribution.cdf(weights)
    if rule == "variance_scaling":
        assert weights.abs().max() <= 2 * 0.026**0.5 + 1e-6
        low = distribution.cdf(torch.tensor(-2 * 0.026**0.5))
        u = (u - low) / (1 - 2 * low)
        assert weights.var().item() == pytest.approx(0.02, rel=0.02)
    grid = torch.arange(1, len(u) + 1) / len(u)
    assert (u.sort().values - grid).abs().max() < 2.7 / len(u) ** 0.5
    assert bias.abs().max() <= bound and (not bound or bias.std() == pytest.approx(bound / 3**0.5, rel=0.1))
    assert not torch.equal(layer.weights[0][0], layer.weights[0][1])


def test_a_linear_layer_starts_as_torchs_own():
    """Both bounds are those of ``torch.nn.Linear``, weights and biases."""
    torch.manual_seed(0)
    theirs = torch.nn.Linear(25, 4000)
    ours = StackedMLP([25, 4000], "tanh", 1, Streams([1]).fresh("parameters"), "linear")
    for own, other in ((ours.weights[0], theirs.weight), (ours.biases[0], theirs.bias)):
        assert own.abs().max().item() == pytest.approx(other.abs().max().item(), rel=2e-3)
        assert own.std().item() == pytest.approx(other.std().item(), rel=0.05)


def test_soft_samples_reach_the_decoder_and_hard_ones_the_evaluation():
    vae = tiny_vae()
    seen = []
    vae.decoders[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    vae.loss(whole_split(vae), GumbelSoftmax(1.0))
    assert ((seen[-1] > 0) & (seen[-1] < 1)).any()
    vae.evaluate("test", 3)
    assert ((seen[-1] == 0) | (seen[-1] == 1)).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latents": 0}, "task.latents must be at least 1"),
        ({"initialisation": "he"}, "task.initialisation must be one of glorot, linear, variance_scaling"),
        ({"categories": 1}, "task.categories must be at least 2"),
        ({"prior": "gaussian"}, "task.prior must be one of uniform, learned"),
        ({"kl": "exact"}, "task.kl must be one of auto, analytic, sampled"),
        ({"output_bias": "mean"}, "task.output_bias must be one of"),
        ({"nonlinearity": "swish"}, "task.nonlinearity must be one of"),
        ({"hidden": (0,)}, "task.hidden must be widths of at least 1"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        VAE(tiny_data(), Streams([0]), **options)


def test_evaluation_refuses_no_samples_and_unknown_splits():
    with pytest.raises(ValueError, match="at least 1 sample"):
        tiny_vae().evaluate("test", 0)
    with pytest.raises(ValueError, match="train, valid or test"):
        tiny_vae().evaluate("holdout", 1)
