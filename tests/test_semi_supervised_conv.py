"""Convolutional semi-supervised classification, and its warm-up, against torch.nn and torch.distributions."""

import math
from dataclasses import replace

import pytest
import torch
from test_semi_supervised import CPU, data, digits, style_noise
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from estimators import Exact, GumbelSoftmax, StraightThrough
from tasks import SemiSupervised
from tasks.convolutions import StackedConvolutions
from training.config import identity
from training.pack.build import build
from training.replicas.streams import Streams

CHANNELS, STYLE, K = (2, 3, 4), 2, 3
SIZES = [(7, 5), (4, 3), (2, 2), (1, 1)]


def images():
    """The tiny data's pixels as images of 7 x 5, odd and even in turn when halved."""
    given = data(K)
    generator = torch.Generator().manual_seed(2)

    def larger(split):
        shape = (len(split.labels), 35)
        return replace(split, pixels=torch.randint(0, 2, shape, dtype=torch.uint8, generator=generator))

    splits = {name: larger(getattr(given, name)) for name in ("train", "valid", "test")}
    return replace(given, image_shape=(7, 5), **splits)


def tiny(seeds=(0, 1), **options):
    """Every replica with parameters of its own, far from their start."""
    options = {"labelled": 2 * K, "style": STYLE, "network": "conv", "channels": CHANNELS, **options}
    task = SemiSupervised(images(), Streams(seeds), categories=K, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return task.double()


def convolution(inputs, outputs, before, after, transposed):
    if not transposed:
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    more = tuple(a - (2 * b - 1) for a, b in zip(after, before, strict=True))
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=more)


def alone(stacked, replica):
    """One replica of stacked convolutions as torch.nn has them, with the same weights."""
    transposed, layers = stacked.transposed, []
    channels, sizes = ((1, *CHANNELS), SIZES) if not transposed else ((*CHANNELS[::-1], 1), SIZES[::-1])
    for place in range(3):
        layer = convolution(*channels[place : place + 2], *sizes[place : place + 2], transposed).double()
        with torch.no_grad():
            layer.weight.copy_(getattr(stacked, f"weight{place}")[replica])
            layer.bias.copy_(getattr(stacked, f"bias{place}")[replica])
        layers += [nn.ReLU(), layer]
    return nn.Sequential(nn.Unflatten(-1, (channels[0], *sizes[0])), *layers[1:], nn.Flatten())


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_convolutions_are_separate_ones(transposed):
    """Values and gradients in inputs, weights and biases, with dimensions of samples in front."""
    uniform = Streams((3, 4)).fresh("parameters")
    stacked = StackedConvolutions((7, 5), (1, *CHANNELS), torch.relu, 2, uniform, transposed=transposed).double()
    for bias in stacked.biases:
        nn.init.normal_(bias)
    x = torch.randn(5, 2, 6, stacked.inputs, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(5, 2, 6, stacked.outputs, dtype=torch.float64)
    y = stacked(x)
    slopes = torch.autograd.grad(y, [x, *stacked.parameters()], cotangent)
    assert y.shape == cotangent.shape and not stacked.biases[0].equal(torch.zeros(2, CHANNELS[0]))
    for replica in range(2):
        single = alone(stacked, replica)
        own = x.detach()[:, replica].flatten(0, 1).requires_grad_()
        z = single(own)
        assert torch.allclose(z, y[:, replica].flatten(0, 1), rtol=0, atol=1e-12)
        found = torch.autograd.grad(z, [own, *single.parameters()], cotangent[:, replica].flatten(0, 1))
        assert torch.allclose(found[0], slopes[0][:, replica].flatten(0, 1), rtol=0, atol=1e-12)
        for one, all_of_them in zip(found[1:], slopes[1:], strict=True):
            assert torch.allclose(one, all_of_them[replica], rtol=0, atol=1e-11)


def test_they_start_as_glorot_has_it_by_each_seed():
    def made(*seeds):
        return StackedConvolutions((28, 28), (1, 16, 32), torch.relu, len(seeds), Streams(seeds).fresh("parameters"))

    together, single = made(3, 4), made(4)
    assert [tuple(size) for size in together.sizes] == [(28, 28), (14, 14), (7, 7)]
    for both, one in zip(together.parameters(), single.parameters(), strict=True):
        assert torch.equal(both[1:], one)
    bound = (6 / (9 * 16 + 9 * 32)) ** 0.5
    assert together.weight1.shape == (2, 32, 16, 3, 3) and not together.bias1.any()
    assert 0.99 * bound < together.weight1.abs().amax() <= bound
    assert together.weight1.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def objective(task, x, replica, kl_weight, alpha):
    """U + w L + alpha CE ``[E]`` of one replica, with its networks written out; and their parameters."""

    def linear(stacked):
        layer = nn.Linear(*stacked.weights[0].shape[1:]).double()
        with torch.no_grad():
            layer.weight.copy_(stacked.weights[0][replica].T)
            layer.bias.copy_(stacked.biases[0][replica, 0])
        return layer

    convolved, readout = task.classifier
    classifier = nn.Sequential(alone(convolved, replica), nn.ReLU(), linear(readout))
    of_x, of_y, inner = alone(task.style_of_x, replica), linear(task.style_of_y), linear(task.style_inner)
    first, last = task.decoder
    decoder = nn.Sequential(linear(first), nn.ReLU(), alone(last, replica))

    def nats(x, y, noise):
        q = inner((of_x(x) + of_y(y)).relu())
        q = Normal(q[:, :STYLE], q[:, STYLE:].exp())
        pixels = decoder(torch.cat((y, q.loc + q.scale * noise), -1))
        kl = kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))).sum(-1)
        return -Bernoulli(logits=pixels).log_prob(x).sum(-1) + kl_weight * kl

    seeds = Streams(task.streams.seeds)
    noise = style_noise(task, x)[replica]
    classes = torch.eye(K, dtype=torch.float64)
    log_q = classifier(x[replica]).log_softmax(-1)
    each = torch.stack([nats(x[replica], y.expand(len(noise), -1), noise) for y in classes], -1)
    unlabelled = (log_q.exp() * (each + kl_weight * (log_q + math.log(K)))).sum(-1)
    source = seeds.source("labelled")
    rows = (source(x.shape[:2], x.dtype, CPU, 0) * task.labelled).long()[replica]
    noise = torch.special.ndtri(source((*x.shape[:2], STYLE), x.dtype, CPU, 1))[replica]
    seen, y = task.labelled_pixels[replica, rows].double(), task.labelled_classes[replica, rows].double()
    log_q_own = (classifier(seen).log_softmax(-1) * y).sum(-1)
    losses = unlabelled + 0.7 * (nats(seen, y, noise) + math.log(K)) - alpha * log_q_own
    networks = [classifier, of_x, of_y, inner, decoder]
    return losses, [parameter for network in networks for parameter in network.parameters()]


@pytest.mark.parametrize("warm", [False, True])
def test_exact_is_the_enumerated_objective(warm):
    """Values and gradients of all parameters, of each replica; in the warm-up's middle with its weights, too."""
    options = {"warm_up": 8, "kl_start": 3.0, "alpha_start": 0.5} if warm else {}
    task = tiny(alpha=0.4, labelled_weight=0.7, **options)
    task.warm(torch.tensor(4))
    weights = (2.0, 0.3) if warm else (1.0, 0.4)  # halfway from 3 to 1, and from 0.2 to 0.4
    x = task.data.test.pixels[:5].double().expand(2, -1, -1)
    losses = task.loss(x, Exact())
    slopes = torch.autograd.grad(losses.mean(-1).sum(), list(task.parameters()))
    for replica in range(2):
        expected, parameters = objective(task, x, replica, *weights)
        assert torch.allclose(losses[replica], expected, rtol=1e-6)  # weights are kept in single precision
        found = torch.autograd.grad(expected.mean(), parameters)
        for ours, theirs in zip(slopes, found, strict=True):
            theirs = theirs if theirs.dim() != 2 else theirs.T
            assert torch.allclose(ours[replica].reshape(theirs.shape), theirs, rtol=1e-5, atol=1e-7)
            assert theirs.abs().max() > 1e-6


# --- the warm-up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Exact, StraightThrough, lambda: GumbelSoftmax(0.7)])
def test_weights_go_linearly_to_those_of_no_warm_up(make):
    """The loss is linear in both weights, whatever the estimator and the place of its KL."""

    def losses(step=None, **options):
        task = tiny(alpha=2.0, **options)
        if step is not None:
            task.warm(torch.tensor(step))
        torch.manual_seed(0)
        return task.loss(task.data.test.pixels[:4].double().expand(2, -1, -1), make()).detach()

    end = losses()
    for options in ({"kl_start": 5.0}, {"alpha_start": 0.0, "kl_start": 1.0}):
        first, *rest = [losses(step, warm_up=10, **options) for step in (0, 2, 5, 10, 40)]
        for fraction, found in zip((0.2, 0.5, 1.0, 1.0), rest, strict=True):
            assert torch.allclose(found, first + fraction * (end - first), rtol=1e-6)
        assert (first - end).abs().min() > 1e-3


def test_evaluation_has_the_weights_of_the_bound():
    plain, warm = tiny(), tiny(warm_up=10, kl_start=4.0)
    warm.warm(torch.tensor(0))
    for name, value in plain.evaluate("test", 3).items():
        assert torch.equal(value, warm.evaluate("test", 3)[name])


CONV = ("task.network=conv", "task.channels=[2,3,4]", "task.warm_up=6", "task.kl_start=2.0")


def pack(*seeds, estimator="gumbel_softmax"):
    return build([digits(f"estimator={estimator}", *CONV, seed=seed) for seed in seeds], CPU)


@pytest.mark.parametrize("estimator", ["exact", "gumbel_softmax"])
def test_packed_and_resumed_in_the_middle(estimator):
    together, single = pack(3, 4, estimator=estimator), pack(4, estimator=estimator)
    for _ in range(3):
        assert torch.allclose(together.train_step()[1], single.train_step()[0], rtol=1e-5)
    resumed = pack(4, estimator=estimator)
    resumed.restore([single.state(0)])
    assert resumed.task.progress.item() == pytest.approx(2 / 6)  # of the last step taken, the third
    for _ in range(2):
        assert torch.equal(resumed.train_step(), single.train_step())
    for key, value in single.task.state_dict().items():
        assert torch.equal(value, resumed.task.state_dict()[key])


def test_starts_may_differ_within_a_pack():
    jobs = [digits("estimator=exact", *CONV) for _ in range(2)]
    jobs[1]["task"]["kl_start"] = 0.5
    together = build(jobs, CPU).train_step()
    for job, loss in zip(jobs, together, strict=True):
        assert torch.allclose(build([job], CPU).train_step()[0], loss, rtol=1e-5)
    assert together[0] != together[1]


# --- options ---------------------------------------------------------------------------------------------------------


def test_pixels_start_at_the_common_mean():
    task = SemiSupervised(images(), Streams([0]), categories=K, labelled=K, network="conv", output_bias="data_mean")
    (bias,) = task.decoder[1].biases[-1].sigmoid()
    assert bias.item() == pytest.approx(task.data.mean.mean().item())


def test_runs_without_these_options_keep_names_and_state():
    job = digits()
    added = ("network", "channels", "warm_up", "kl_start", "alpha_start")
    old = {**job, "task": {key: value for key, value in job["task"].items() if key not in added}}
    assert identity.run_name(job) == identity.run_name(old) != identity.run_name(digits("task.network=conv"))
    assert not [name for name, _ in build([job], CPU).task.named_buffers() if name in ("progress", "kl_start")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": "cnn"}, "task.network must be one of mlp, conv, not 'cnn'"),
        ({"network": "conv", "channels": (16, 32)}, r"task.channels must be three numbers .* not \[16, 32\]"),
        ({"network": "conv", "channels": (16, 0, 32)}, r"task.channels must be three numbers of at least 1"),
        ({"network": "conv", "nonlinearity": "selu"}, "task.nonlinearity must be one of tanh, relu"),
        ({"warm_up": -1}, "task.warm_up must be at least 0 steps, not -1"),
        ({"warm_up": 5, "kl_start": -1.0}, "task.kl_start must be at least 0 and finite"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        SemiSupervised(images(), Streams([0]), **{"labelled": K, "categories": K, **options})
    assert "\n" not in str(caught.value)
