"""VAEs of several layers against enumeration of them all, evaluation in one layer's way and in theirs, and packs."""

import pytest
import torch
import torch.nn.functional as F
from enumerated_bounds import check_bounds
from test_tasks import PIXELS, tiny_data
from test_training import config

from estimators import NVIL, REBAR, REINFORCE, RLOO, VIMCO, DisARM, Exact, GumbelSoftmax, MuProp
from estimators.exact import enumerate_states
from tasks import VAE
from tasks.datasets import load_dataset
from training.config import validity
from training.errors import UserError
from training.pack.build import build
from training.replicas.streams import Streams

CPU = torch.device("cpu")
TASKS = {
    "deep_vae_bernoulli": ["task=deep_vae_bernoulli", "task.latents=4"],
    "deep_vae_categorical": ["task=deep_vae_categorical", "task.latents=2", "task.categories=3"],
}
DRAWS = 4000


def moved(task, spread):
    """``task`` with the same parameters in every replica, far from their start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.copy_(parameter[:1] + spread * torch.randn(parameter[:1].shape, generator=generator))
    return task


def tiny(seeds=(0, 1), levels=1, spread=0.7, dtype=torch.float64, **options):
    """Two bits or one latent of three categories a layer, on images of six pixels."""
    options = {"latents": 2 if options.get("categories", 2) == 2 else 1, "layers": 2, **options}
    return moved(VAE(tiny_data(levels), Streams(seeds), **options), spread).to(dtype)


def images(task, count=40, dtype=torch.float64):
    return task.data.test.pixels[:count].to(dtype).expand(task.replicas, -1, -1)


def bernoulli_log_prob(outputs, x):
    return -F.binary_cross_entropy_with_logits(outputs, x.expand_as(outputs), reduction="none").sum(-1)


def enumerated(task, x, log_density=bernoulli_log_prob, scaled=lambda x: x):
    """``log q(z|x)`` and ``log p(x, z)``, ``[joint states of all layers, R, E]``.

    ``log_density`` of the images given the decoder's outputs; ``scaled``: as the likelihood has them.
    """
    states = enumerate_states(task.latents.latents, task.latents.categories, like=x)

    def log_prob(z, outputs):
        return (z * task.latents.logits(outputs).log_softmax(-1)).sum((-2, -1))

    def seen(features):
        return 2 * features - 1 if task.centred else features

    log_q, log_joint, below = torch.zeros_like(x[..., 0]), torch.zeros_like(x[..., 0]), None
    entering = scaled(x) - scaled(task.data.mean).to(x.dtype) if task.centred else scaled(x)
    for encoder, decoder in zip(task.encoders, task.decoders, strict=True):
        outputs = encoder(entering)
        shape = task.latents.logits(outputs).shape
        z = states.reshape(-1, *(1,) * (len(shape) - 2), *states.shape[1:]).expand(-1, *shape)
        log_q = log_q + log_prob(z, outputs)
        entering = seen(task.latents.features(z))
        generated = decoder(entering)
        log_joint = log_joint + (log_density(generated, x) if below is None else log_prob(below, generated))
        below = z
    log_joint = log_joint + log_prob(below, task.prior_outputs)
    return log_q.flatten(0, -3), log_joint.flatten(0, -3)


def gradients(losses, task):
    return torch.autograd.grad(losses.mean(-1).sum(), list(task.parameters()))


# --- the objective and its gradient ----------------------------------------------------------------------------------

OPTIONS = [{}, {"kl": "sampled"}, {"hidden": (3,), "centred": True, "nonlinearity": "relu"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("categories", [2, 3])
def test_exact_nested_is_the_enumerated_elbo(categories, layers, options):
    """With the analytic and with the sampled KL, so the mean of the one is the other."""
    task = tiny(categories=categories, layers=layers, prior="learned", **options)
    x = images(task, 5)
    log_q, log_joint = enumerated(task, x)
    assert torch.allclose(log_q.logsumexp(0), torch.zeros_like(x[..., 0]), atol=1e-12)
    expected = (log_q.exp() * (log_q - log_joint)).sum(0)
    losses = task.loss(x, *[Exact()] * layers)
    assert torch.allclose(losses, expected, rtol=1e-12)
    for got, want in zip(gradients(losses, task), gradients(expected, task), strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-12) and want.abs().max() > 1e-4


UNBIASED = {
    "REINFORCE": REINFORCE,
    "RLOO": RLOO,
    "MuProp": MuProp,
    "REBAR": REBAR,
    "DisARM": DisARM,
    "NVIL": lambda: NVIL(PIXELS, variance_normalisation=False),
}


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize(("categories", "layers"), [(2, 2), (3, 2), (2, 3)])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_are_so_in_every_layer(name, categories, layers, kl):
    """A replica is a draw. Below 3000 coordinates in all at 6.5 standard errors: false alarms below 3e-7."""
    if (name == "DisARM" and categories != 2) or (layers == 3 and name not in ("REINFORCE", "REBAR")):
        return
    task = tiny(range(DRAWS), categories=categories, layers=layers, kl=kl, prior="learned")
    x, parameters = images(task, 1), list(task.parameters())
    mean = task.loss(x, *[Exact()] * layers)
    exact = torch.autograd.grad(mean.sum(), parameters)
    torch.manual_seed(0)
    estimators = [UNBIASED[name]().double() for _ in range(layers)]
    losses = task.loss(x, *estimators)
    assert (losses.mean() - mean[0]).abs() < 6.5 * losses.std() / DRAWS**0.5
    for each, want in zip(torch.autograd.grad(losses.sum(), parameters), exact, strict=True):
        z = (each.mean(0) - want[0]) / (each.std(0) / DRAWS**0.5 + 1e-9)
        assert z.abs().max() < 6.5, f"{name}: {z.abs().max():.1f} standard errors"


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("categories", [2, 3])
def test_pathwise_gradients_go_through_both_layers_and_both_conditionals(categories, kl, hard):
    """Against the formula, written down for two layers at the same samples; hard ones without log q's own gradient."""
    task, estimator = tiny(categories=categories, prior="learned", kl=kl), GumbelSoftmax(0.7, hard=hard)
    x = images(task)
    torch.manual_seed(0)
    losses = task.loss(x, estimator, estimator)

    def log_probs(outputs):
        return task.latents.logits(outputs).log_softmax(-1)

    torch.manual_seed(0)
    log_q1 = log_probs(task.encoders[0](x))
    z1 = estimator.sample(log_q1)
    log_q2 = log_probs(task.encoders[1](task.latents.features(z1)))
    z2 = estimator.sample(log_q2)
    q1, q2 = (log_q1.exp(), log_q2.exp()) if kl == "analytic" else (z1, z2)
    generated = task.decoders[0](task.latents.features(z1))
    expected = F.binary_cross_entropy_with_logits(generated, x, reduction="none").sum(-1)
    expected = expected - (z1 * log_probs(task.decoders[1](task.latents.features(z2)))).sum((-2, -1))
    if hard and kl == "sampled":
        log_q1, log_q2 = log_q1.detach(), log_q2.detach()
    expected = expected + (q1 * log_q1).sum((-2, -1)) + (q2 * (log_q2 - log_probs(task.prior_outputs))).sum((-2, -1))
    assert torch.allclose(losses, expected, rtol=1e-10)
    for got, want in zip(gradients(losses, task), gradients(expected, task), strict=True):
        assert torch.allclose(got, want, rtol=1e-8, atol=1e-12)


def test_the_kl_goes_where_the_estimator_can_scale_it():
    task = tiny()
    assert task.kl_for(NVIL()) == task.kl_for(VIMCO()) == task.kl_for(REINFORCE()) == "sampled"
    assert task.kl_for(GumbelSoftmax()) == task.kl_for(GumbelSoftmax(hard=True)) == "analytic"
    assert tiny(kl="analytic").kl_for(NVIL()) == "analytic"


def test_hidden_layers_as_wide_as_what_enters():
    task = tiny(layers=2, square_hidden=2, latents=3)
    shapes = [[tuple(weight.shape[1:]) for weight in net.weights] for net in (*task.encoders, *task.decoders)]
    assert shapes[0] == [(PIXELS, PIXELS), (PIXELS, PIXELS), (PIXELS, 3)]
    assert shapes[1] == shapes[3] == [(3, 3), (3, 3), (3, 3)] and shapes[2] == [(3, 3), (3, 3), (3, PIXELS)]
    assert task.loss(images(task, 5), Exact(), Exact()).isfinite().all()


def test_a_loss_wants_an_estimator_for_each_layer():
    task = tiny(layers=3)
    with pytest.raises(ValueError, match="3 layers need as many estimators, not 2"):
        task.loss(images(task), Exact(), Exact())


# --- evaluation and the exact likelihood -----------------------------------------------------------------------------


@pytest.mark.parametrize(("categories", "layers"), [(2, 1), (2, 2), (3, 2), (2, 3), (3, 4)])
def test_the_exact_likelihood_is_a_distribution_over_images(categories, layers):
    """It sums to 1 over all images; it and the exact ELBO are those of enumerating the joint states of all layers."""
    task = tiny(categories=categories, layers=layers, latents=2, prior="learned", centred=True)
    every = torch.cartesian_prod(*[torch.arange(2.0)] * PIXELS).double().expand(task.replicas, -1, -1)
    log_p = task.exact(every)["exact_log_likelihood"]
    assert torch.allclose(log_p.logsumexp(1), torch.zeros(task.replicas, dtype=torch.float64), atol=1e-12)
    with torch.no_grad():
        log_q, log_joint = enumerated(task, every[:, :3])
    assert torch.allclose(log_p[:, :3], log_joint.logsumexp(0), rtol=1e-12)
    elbo = (log_q.exp() * (log_joint - log_q)).sum(0)
    assert torch.allclose(task.exact(every[:, :3])["exact_elbo"], elbo, rtol=1e-12)
    assert (elbo < log_p[:, :3] - 1e-3).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "von_mises_fisher"])
@pytest.mark.parametrize(("categories", "centred"), [(2, False), (3, False), (4, True), (2, True)])
def test_the_fast_evaluation_of_one_layer_is_that_of_several(categories, centred, likelihood):
    """On the same noise, whose samples are the same but for ties: noise has 31 bits in the one, 24 in the other."""
    levels = 1 if likelihood == "bernoulli" else 255
    task = tiny(
        levels=levels,
        dtype=torch.float32,
        categories=categories,
        layers=1,
        latents=5,
        hidden=(4,),
        prior="learned",
        likelihood=likelihood,
        centred=centred,
    )
    x = images(task, dtype=torch.float32) / levels
    noise = task.streams.words("evaluate/test")((2, x.shape[1], 30, 5), CPU)
    with torch.no_grad():
        fast = task.log_weights(x, noise)
        observed = task.likelihood.observed(x)
        entering = observed - task.likelihood.observed(task.data.mean) if centred else observed
        slow = task._log_weights_of_several(observed, task.encoders[0](entering), noise)
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.shape == theirs.shape == (2, 40, 30) and ours.std() > 0.1
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("categories", "layers"), [(2, 2), (3, 2), (2, 3)])
def test_evaluation_against_enumeration(categories, layers):
    """The ELBO is that of enumeration; the bound rises with the samples to ``log p(x)`` and stays below, in the mean.

    Means over 40 images; the tolerances are 6 standard errors computed from the exact spread (of the log weights, which
    the ELBO with its closed forms stays within).
    """
    task = tiny(categories=categories, layers=layers, dtype=torch.float32, prior="learned")
    x = images(task, dtype=torch.float32)
    with torch.no_grad():
        log_q, log_joint = enumerated(task, x)
    for found in check_bounds(lambda samples: task.evaluate("test", samples, details=True), log_q, log_joint, 0.2):
        exact, elbo = log_joint.logsumexp(0), (log_q.exp() * (log_joint - log_q)).sum(0)
        assert torch.allclose(found["exact_log_likelihood"], exact.double().mean(-1), rtol=1e-5)
        assert torch.allclose(found["exact_elbo"], elbo.double().mean(-1), rtol=1e-5)


def test_evaluation_is_repeatable_whatever_the_pack_and_the_precision():
    together, alone = (VAE(tiny_data(), Streams(seeds), latents=4, layers=3) for seeds in ([3, 7], [7]))
    first, again = together.evaluate("valid", 30), together.evaluate("valid", 30)
    assert first.keys() == {"elbo", "bound"} and all(torch.equal(first[name], again[name]) for name in first)
    for name, value in alone.evaluate("valid", 30).items():
        assert torch.allclose(value[0], first[name][1], rtol=1e-5)
    assert alone.double().evaluate("valid", 30)["bound"].isfinite().all()


@pytest.mark.parametrize("centred", [False, True])
def test_hard_samples_in_the_evaluation_and_what_the_networks_see(centred):
    task = VAE(tiny_data(), Streams([0]), latents=2, layers=2, centred=centred)
    seen = []
    for network in [*task.encoders, *task.decoders]:
        network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    low = -1 if centred else 0
    task.loss(images(task, dtype=torch.float32), GumbelSoftmax(), GumbelSoftmax())
    soft = [x for x in seen if x.shape[-1] == 2]
    assert len(soft) == 3 and all(((z > low) & (z < 1)).all() for z in soft)
    (first,) = [x for x in seen if x.shape[-1] == PIXELS]
    assert torch.allclose(first.mean(1), torch.zeros(1, PIXELS), atol=1e-6) == centred
    seen.clear()
    task.evaluate("test", 3)
    hard = [x for x in seen if x.shape[-1] == 2]
    assert len(hard) == 3 and all(set(z.unique().tolist()) == {low, 1} for z in hard)


def test_grey_targets_are_not_called_bounds():
    assert set(tiny(levels=255, dtype=torch.float32).evaluate("test", 2)) == {"pseudo_elbo", "pseudo_bound"}
    assert tiny(levels=255).protocol()["evaluation_is_bound"] is False


def test_pictures():
    """Those from the prior have the model's own mean: 20,000 of them within 6 standard errors, exactly enumerated."""
    task = tiny((0,), dtype=torch.float32, layers=2, latents=1)
    (pictures,) = task.examples(4)
    assert {name: tuple(each.shape) for name, each in pictures.items()} == dict.fromkeys(
        ("originals", "reconstructions", "samples"), (4, 2, 3)
    )
    every = torch.cartesian_prod(*[torch.arange(2.0)] * PIXELS)[None]
    mean = (task.exact(every)["exact_log_likelihood"].exp()[..., None] * every).sum(1)[0]
    samples = task.examples(20_000)[0]["samples"].flatten(1)
    assert ((samples.mean(0) - mean).abs() < 6 * samples.std(0) / 20_000**0.5 + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": 0}, "task.layers must be from 1 to 4, not 0"),
        ({"layers": 5}, "task.layers must be from 1 to 4, not 5"),
        ({"latents": 0}, "task.latents must be at least 1"),
        ({"categories": 1}, "task.categories must be at least 2"),
        ({"prior": "gaussian"}, "task.prior must be one of uniform, learned"),
        ({"kl": "exact"}, "task.kl must be one of auto, analytic, sampled, relaxed"),
        ({"output_bias": "mean"}, "task.output_bias must be one of zero, data_mean"),
        ({"hidden": (0,)}, "task.hidden must be widths of at least 1"),
        ({"square_hidden": -1}, "task.square_hidden must be at least 0"),
        ({"square_hidden": 1, "hidden": (3,)}, "give one of the two"),
        ({"initialisation": "he"}, "task.initialisation must be one of"),
        ({"nonlinearity": "swish"}, "task.nonlinearity must be one of"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(**options)


# --- packs -----------------------------------------------------------------------------------------------------------


def pack(*overrides, task="deep_vae_bernoulli", seeds=(4,)):
    job = config(*TASKS[task], "batch_size=8", "optimizer.lr=1e-3", *overrides)
    return build([{**job, "seed": seed} for seed in seeds], CPU)


def test_what_does_not_nest_is_refused_unless_there_is_one_layer():
    two = config(*TASKS["deep_vae_bernoulli"], "estimator=vimco")
    assert "does not nest: with the 2 layers of task=deep_vae_bernoulli" in validity.reason_to_skip(two)
    one = config(*TASKS["deep_vae_bernoulli"], "task.layers=1", "estimator=vimco")
    assert validity.reason_to_skip(one) is None and build([one], CPU).train_step().isfinite().all()
    with pytest.raises(UserError, match="on data=none: the task needs images"):
        build([config("task=deep_vae_bernoulli", "data=none")], CPU)
    with pytest.raises(ValueError, match="the VAE tasks need images: data=none has none"):
        VAE(load_dataset("none"), Streams([0]), layers=2)


@pytest.mark.parametrize("name", ["rloo", "reinmax"])
def test_two_layers_learn_more_than_independent_pixels(name):
    """300 steps on digits. Independent pixels with the means of the training images have an exact likelihood."""
    ours = pack(
        f"estimator={name}", "task.latents=50", "batch_size=50", "optimizer.lr=1e-2", "task.output_bias=data_mean"
    )
    mean, x = ours.data.mean.clamp(0.001, 0.999), ours.data.test.pixels.float()
    independent = (x * mean.log() + (1 - x) * (1 - mean).log()).sum(-1).mean().item()
    assert independent == pytest.approx(-26.83, abs=0.01)
    for _ in range(300):
        ours.train_step()
    found = ours.task.evaluate("test", 10)
    assert independent + 0.5 < found["elbo"].item() < found["bound"].item() < 0
    assert found["bound"] > independent + 1
