"""Semi-supervised classification against torch.distributions, with the class enumerated and the style integrated."""

import math
from dataclasses import replace

import configs
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Normal, kl_divergence

from estimators import NVIL, REBAR, REINFORCE, RLOO, VIMCO, Exact, GumbelSoftmax, MuProp
from tasks import SemiSupervised
from tasks.datasets import Dataset, Split
from training.config import validity
from training.pack.build import build
from training.replicas.streams import Streams

CPU = torch.device("cpu")
PIXELS, DRAWS = 6, 3000


def data(categories=3, levels=1, binarization="static", images=60):
    """Random pixels; class c at every ``categories``-th image from c on."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 2 if levels == 1 else 256, (images, PIXELS), dtype=torch.uint8, generator=generator)
    bits = Split(pixels // 128 if levels == 255 else pixels, 1, torch.arange(images) % categories)
    train = replace(bits, pixels=pixels, levels=levels)
    return Dataset("tiny", (2, 3), binarization, train, *((train, train) if binarization == "none" else (bits, bits)))


def tiny(seeds=(0, 1), categories=3, spread=0.7, dtype=torch.float64, of=None, **options):
    """Every replica with the same parameters, far from their start."""
    options = {"labelled": 2 * categories, "style": 2, "hidden": (4,), "nonlinearity": "tanh", **options}
    task = SemiSupervised(of or data(categories), Streams(seeds), categories=categories, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.copy_(parameter[:1] + spread * torch.randn(parameter[:1].shape, generator=generator))
    return task.to(dtype)


def batch(task, examples=5):
    x = task.data.test.pixels[:examples].to(task.alpha.dtype) / task.data.test.levels
    return x.expand(task.replicas, -1, -1)


def style_noise(task, x, purpose="style"):
    """What the task will draw, from a stream of its own."""
    return torch.special.ndtri(
        Streams(task.streams.seeds).source(purpose)((*x.shape[:2], task.style_size), x.dtype, CPU, 1)
    )


def nats(task, x, y, noise):
    """l(x, y) with ``y`` ``[..., R, E]`` as class indices, by torch.distributions and layers written out."""
    one_hot = F.one_hot(y, task.latents.categories).to(x.dtype)
    features = one_hot[..., 1:] if task.latents.categories == 2 else one_hot
    (wx, bx), (wy, by) = (tuple(net.parameters()) for net in (task.style_of_x, task.style_of_y))
    outputs = x @ wx + bx + features @ wy + by
    if task.style_inner is not None:
        (w, b) = task.style_inner.parameters()
        outputs = outputs.tanh() @ w + b
    q = Normal(outputs[..., : task.style_size], outputs[..., task.style_size :].exp())
    z = q.loc + q.scale * noise
    logits = task.decoder(torch.cat((features, z), -1))
    kl = kl_divergence(q, Normal(torch.zeros_like(z), torch.ones_like(z)))
    return -Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1) + kl.sum(-1), q, z


def classes(task, x):
    """``log q(y|x)`` ``[K, R, E]`` and all classes as indices of that shape."""
    log_q = task.latents.logits(task.classifier(x)).squeeze(-2).log_softmax(-1).movedim(-1, 0)
    return log_q, torch.arange(len(log_q)).reshape(-1, 1, 1).expand(log_q.shape)


def digits(*overrides, **settings):
    small = ["task=semi_supervised", "task.labelled=20", "task.style=3", "task.hidden=[8]", "batch_size=8"]
    small += ["steps=40", "evaluate_every=20", "test_samples=3", "valid_samples=2", "optimizer.lr=1e-3"]
    return configs.config(*small, *overrides) | settings


# --- the objective and its gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(4,), ()])
@pytest.mark.parametrize("categories", [2, 3])
def test_exact_is_the_enumerated_objective(categories, hidden):
    """U + w L + alpha CE by torch.distributions on the same noise; values and gradients of all parameters."""
    weights = {"alpha": torch.tensor([[[[0.3]]], [[[2.0]]]]), "labelled_weight": torch.tensor([[[[0.2]]], [[[1.5]]]])}
    task = tiny(categories=categories, hidden=hidden, **weights)
    x = batch(task)
    log_q, y = classes(task, x)
    each, _, _ = nats(task, x, y, style_noise(task, x))
    unlabelled = (log_q.exp() * (each + log_q + math.log(categories))).sum(0)
    labelled = Streams(task.streams.seeds).source("labelled")
    rows = (labelled(x.shape[:2], x.dtype, CPU, 0) * task.labelled).long()
    noise = torch.special.ndtri(labelled((*x.shape[:2], task.style_size), x.dtype, CPU, 1))
    index = torch.arange(task.replicas).unsqueeze(-1)
    chosen = task._labelled_rows()[index, rows]
    x_labelled, y_labelled = task.data.train.pixels[chosen].to(x.dtype), task.data.train.labels[chosen]
    log_q_labelled, _ = classes(task, x_labelled)
    log_q_own = log_q_labelled.gather(0, y_labelled.unsqueeze(0)).squeeze(0)
    supervised, _, _ = nats(task, x_labelled, y_labelled, noise)
    expected = unlabelled + task.labelled_weight * (supervised + math.log(categories)) - task.alpha * log_q_own
    losses = task.loss(x, Exact())
    assert torch.allclose(losses, expected, rtol=1e-6)
    ours, theirs = (torch.autograd.grad(v.mean(-1).sum(), list(task.parameters())) for v in (losses, expected))
    for got, want in zip(ours, theirs, strict=True):
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-9) and want.abs().max() > 1e-4
    alone = tiny(categories=categories, hidden=hidden, **weights, unlabelled=False)
    assert torch.allclose(alone.loss(x, Exact()), expected - unlabelled, rtol=1e-6)


def test_labelled_loss_in_closed_form():
    """All weights zero: independent fair pixels, q(z|x, y) = p(z), a uniform classifier; then q(z) = N(mu, e^2s)."""
    task = tiny(spread=0.0, unlabelled=False, alpha=0.25)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.zero_()
    expected = PIXELS * math.log(2) + 1.25 * math.log(3)
    assert torch.allclose(task.loss(batch(task), Exact()), torch.tensor(expected, dtype=torch.float64))
    with torch.no_grad():
        task.style_inner.biases[0].copy_(torch.tensor([1.0, -2.0, 0.5, -1.0]))
    kl = 0.5 * (1 + 4 + math.exp(1) + math.exp(-2) - 2) - (0.5 - 1.0)
    assert torch.allclose(task.loss(batch(task), Exact()), torch.tensor(expected + kl, dtype=torch.float64))


UNBIASED = {
    "REINFORCE": lambda: REINFORCE(),
    "RLOO": lambda: RLOO(),
    "MuProp": lambda: MuProp(),
    "REBAR": lambda: REBAR(),
    "NVIL": lambda: NVIL(PIXELS, variance_normalisation=False),
    "NVIL, analytic KL": lambda: NVIL(PIXELS, variance_normalisation=False),
}


@pytest.mark.parametrize("categories", [2, 3])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_are_so(name, categories, monkeypatch):
    """A replica is a draw, minus Exact's gradient on the same style and labelled images. Below 500 coordinates in all
    at 6.5 standard errors: false alarms below 1e-7."""
    if name == "NVIL, analytic KL":
        monkeypatch.setattr(SemiSupervised, "kl_for", lambda self, estimator: "analytic")
    gradients = []
    for estimator in (Exact(), UNBIASED[name]().double()):
        task = tiny(range(DRAWS), categories=categories)
        torch.manual_seed(0)
        x = batch(task, 1)
        gradients.append(torch.autograd.grad(task.loss(x, estimator).sum(), list(task.parameters())))
    largest = 0.0
    for exact, each in zip(*gradients, strict=True):
        difference = each - exact
        largest = max(largest, difference.abs().max().item())
        z = difference.mean(0) / (difference.std(0) / DRAWS**0.5 + 1e-9)
        assert z.abs().max() < 6.5, f"{name}: {z.abs().max():.1f} standard errors"
    assert largest > 0.01


def test_vimco_is_the_multi_sample_bound_of_class_and_style():
    """Its value against enumeration of the pairs of classes at each example's style noise, at 6 standard errors."""
    task = tiny((0,), dtype=torch.float32)
    x = batch(task, 1).expand(-1, 20_000, -1)
    noise = style_noise(task, x)
    log_q, y = classes(task, x)
    with torch.no_grad():
        _, q, z = nats(task, x, y, noise)
        features = F.one_hot(y, 3).float()
        log_p = Bernoulli(logits=task.decoder(torch.cat((features, z), -1))).log_prob(x).sum(-1)
        ratio = (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
        log_w = log_p + ratio - math.log(3) - log_q
        pairs = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
        weight = (log_q[:, None] + log_q[None]).exp()
        mean = (weight * pairs).sum((0, 1))
        variance = (weight * pairs.square()).sum((0, 1)) - mean.square()
        supervised = tiny((0,), dtype=torch.float32, unlabelled=False).loss(x, Exact())
    torch.manual_seed(0)
    got = task.loss(x, VIMCO(2)) - supervised
    assert task.kl_for(VIMCO(2)) == task.kl_for(RLOO()) == "sampled" and task.kl_for(GumbelSoftmax()) == "analytic"
    assert (got + mean).mean().abs() < 6 * (variance.mean() / 20_000).sqrt()


# --- labels ----------------------------------------------------------------------------------------------------------


def test_as_many_labels_of_each_class_by_the_seed():
    task = tiny((3, 4), categories=3, labelled=12)
    rows = task._labelled_rows()
    labels = task.data.train.labels[rows]
    assert all((labels == category).sum(-1).tolist() == [4, 4] for category in range(3))
    assert all(len(set(own.tolist())) == 12 for own in rows) and set(rows[0].tolist()) != set(rows[1].tolist())
    alone = tiny((4,), categories=3, labelled=12)
    assert torch.equal(alone._labelled_rows()[0], rows[1])
    assert torch.equal(task.labelled_pixels, task.data.train.pixels[rows])
    assert torch.equal(task.labelled_classes.argmax(-1), labels)


def test_no_other_label_is_read():
    """Other labels for all other training images, once the few are chosen, change nothing; another one of the few does.
    And the unlabelled images have no part in a run without them."""
    job, given = digits("estimator=gumbel_softmax"), data(10, levels=255, binarization="dynamic")

    def trained(change, **images):
        own = replace(given, train=replace(given.train, labels=given.train.labels.clone()))
        pack = build([job | images.pop("config", {})], CPU, own)
        change(pack, own)
        return [pack.train_step().item() for _ in range(4)]

    def others(pack, own):
        rest = torch.ones(len(own.train), dtype=torch.bool)
        rest[pack.task._labelled_rows()[0]] = False
        own.train.labels[rest] = 7

    def one(pack, own):
        pack.task.labelled_classes[0, 0] = pack.task.labelled_classes[0, 0].roll(1)

    plain = trained(lambda pack, own: None)
    assert plain == trained(others) and plain != trained(one)

    def images(pack, own):
        pack.batches.pixels = 255 - pack.batches.pixels

    alone = {"config": digits("task=labelled_only", "estimator=exact")}
    assert trained(images) != plain
    assert trained(images, **alone) == trained(lambda pack, own: None, **alone)


def test_labelled_images_are_binarised_anew():
    """Grey ones under dynamic binarisation: bits whose mean is the intensity, at 6 standard errors."""
    given = data(levels=255, binarization="dynamic")
    task, seen = tiny((0,), of=given, labelled=3, unlabelled=False), []
    task.classifier.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    task.loss(torch.zeros(1, 6000, PIXELS, dtype=torch.float64), Exact())
    (bits,) = seen
    assert bool(((bits == 0) | (bits == 1)).all())
    mean = task.labelled_pixels.double().div(255).mean(1)
    assert ((bits.mean(1) - mean).abs() < 6 * 0.5 / 6000**0.5).all()


@pytest.mark.parametrize("estimator", ["exact", "gumbel_softmax", "rloo"])
def test_a_separable_problem_is_learned_from_few_labels(estimator):
    """Three prototypes with 5 % of their bits flipped: two labels of each are enough with the unlabelled images."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]).repeat(1, 4)
    labels = torch.arange(600) % 3
    flips = (torch.rand(600, 24, generator=generator) < 0.05).long()
    split = Split((prototypes[labels] ^ flips).to(torch.uint8), 1, labels)
    given = Dataset("separable", (4, 6), "static", split, split, split)
    own = ["task.labelled=6", "task.categories=3", "task.style=2", "task.hidden=[16]", "optimizer.lr=1e-2"]
    job = digits(f"estimator={estimator}", *own, "data.binarization=static", batch_size=50)
    job["data"]["name"] = given.name
    pack = build([job], CPU, given)
    for _ in range(200):
        pack.train_step()
    found = pack.task.evaluate("test", 3)
    assert found["accuracy"].item() > 98 and found["cross_entropy"].item() < 0.1


# --- evaluation ------------------------------------------------------------------------------------------------------


def quadrature(task, x):
    """ELBO and ``log p(x)``, ``[R, E]``, with a one-dimensional style: classes enumerated, z on a fine grid."""
    grid = torch.linspace(-30, 30, 6001, dtype=x.dtype)
    log_step = math.log((grid[1] - grid[0]).item())
    log_q, y = classes(task, x)
    _, q, _ = nats(task, x, y, torch.zeros(*y.shape, 1, dtype=x.dtype))
    kl = kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))).squeeze(-1)
    z = grid.reshape(-1, 1, 1, 1, 1).expand(-1, *y.shape, -1)
    features = F.one_hot(y, 3).to(x.dtype).expand(len(grid), -1, -1, -1, -1)
    log_p = Bernoulli(logits=task.decoder(torch.cat((features, z), -1))).log_prob(x).sum(-1)  # [grid, K, R, E]
    log_prior = Normal(0.0, 1.0).log_prob(grid).reshape(-1, 1, 1, 1) - math.log(3)
    exact = (log_p + log_prior + log_step).logsumexp((0, 1))
    mass = (q.log_prob(z).squeeze(-1) + log_step).exp()
    assert torch.allclose(mass.sum(0), torch.ones_like(kl), atol=1e-6)
    return (log_q.exp() * ((mass * log_p).sum(0) - kl - log_q - math.log(3))).sum(0), exact


def test_evaluation_against_quadrature():
    """``elbo`` is the exact ELBO, ``bound`` rises with the samples to ``log p(x)`` and stays below, in the mean.

    Means over 60 images; the standard errors are those over 20 replicas with the same parameters, 6 of them allowed.
    """
    task, one = (tiny(seeds, style=1, spread=0.4) for seeds in (range(20), (0,)))
    with torch.no_grad():  # q(z|x, y) is made to overlap with the prior, so that 300 samples are enough
        for own in (task, one):
            for parameter in own.style_inner.parameters():
                parameter *= 0.2
        elbo, exact = (value.mean().item() for value in quadrature(one, batch(one, 60)))
    assert exact > elbo + 0.05
    last = -math.inf
    for samples in (1, 10, 300):
        found = task.evaluate("test", samples)
        errors = {name: 6 * found[name].std() / 20**0.5 + 1e-9 for name in ("elbo", "bound")}
        assert abs(found["elbo"].mean() - elbo) < errors["elbo"] < 0.1
        assert last - errors["bound"] < found["bound"].mean() < exact + errors["bound"]
        assert elbo - errors["bound"] < found["bound"].mean()
        last = found["bound"].mean()
    assert abs(last - exact) < errors["bound"] + 0.01 < 0.05


def test_accuracy_and_cross_entropy_are_those_of_the_classifier():
    """Over chunks of several sizes, as scikit-learn has them; no sample has a part in them."""
    from sklearn.metrics import accuracy_score, log_loss

    task = tiny(of=data(images=130), dtype=torch.float32)
    labels = task.data.test.labels
    with torch.no_grad():
        log_q, _ = classes(task, batch(task, 130))
    found = task.evaluate("test", 1)
    for replica in range(2):
        p = log_q[:, replica].T.exp().double().numpy()
        assert found["accuracy"][replica].item() == pytest.approx(100 * accuracy_score(labels, p.argmax(-1)))
        assert found["cross_entropy"][replica].item() == pytest.approx(
            log_loss(labels, p / p.sum(-1, keepdims=True)), rel=1e-5
        )
    assert torch.equal(found["accuracy"], task.evaluate("test", 7)["accuracy"])


def test_evaluation_is_repeatable_whatever_the_pack():
    options = {"labelled": 6, "categories": 3, "style": 2, "hidden": (4,), "output_bias": "data_mean"}
    together, alone = (SemiSupervised(data(), Streams(seeds), **options) for seeds in ([3, 7], [7]))
    first, again = together.evaluate("valid", 30), together.evaluate("valid", 30)
    assert list(first) == ["elbo", "bound", "accuracy", "cross_entropy"]
    assert {"bound_10", "elbo_standard_error"} <= set(together.evaluate("train", 30, details=True))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, value in alone.evaluate("valid", 30).items():
        assert torch.allclose(value[0], first[name][1], rtol=1e-5)


def test_hard_classes_in_the_evaluation_and_soft_ones_in_training():
    task, seen = tiny(), []
    task.style_of_y.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    task.loss(batch(task), GumbelSoftmax())
    assert ((seen[-1] > 0) & (seen[-1] < 1)).all() and ((seen[0] == 0) | (seen[0] == 1)).all()
    seen.clear()
    task.evaluate("test", 3)
    assert seen and all(((y == 0) | (y == 1)).all() for y in seen)


def test_grey_targets_are_not_called_bounds():
    task = tiny(of=data(levels=255, binarization="none"))
    assert list(task.evaluate("test", 2))[:2] == ["pseudo_elbo", "pseudo_bound"]
    assert task.protocol()["evaluation_is_bound"] is False
    assert task.loss(batch(task), Exact()).isfinite().all()


def test_pictures():
    """The diagonal of the analogies: an image's own class is its reconstruction, where the classifier is right."""
    task = tiny(dtype=torch.float32)
    for replica, pictures in enumerate(task.examples()):
        assert {name: tuple(images.shape) for name, images in pictures.items()} == {
            **dict.fromkeys(("originals", "reconstructions", "samples"), (3, 2, 3)),
            "analogies": (3, 3, 2, 3),
        }
        log_q, _ = classes(task, batch(task, 3))
        for row, best in enumerate(log_q[:, replica].argmax(0).tolist()):
            assert torch.allclose(pictures["analogies"][row, best], pictures["reconstructions"][row], atol=1e-6)
        assert torch.equal(pictures["originals"].flatten(1), task.data.test.pixels[:3].float())


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"categories": 4}, "data=tiny has 3 classes: use task.categories=3, not 4"),
        ({"labelled": 4}, "task.labelled must be a positive multiple of the 3 classes, .* not 4"),
        ({"labelled": 0}, "task.labelled must be a positive multiple"),
        ({"labelled": 63}, "wants 21 images of each class, but data=tiny has only 20 of one"),
        ({"style": 0}, "task.style must be at least 1"),
        ({"hidden": (0,)}, "task.hidden must be widths of at least 1"),
        ({"alpha": -1.0}, "task.alpha must be at least 0"),
        ({"labelled_weight": math.inf}, "task.labelled_weight must be at least 0 and finite"),
        ({"output_bias": "mean"}, "task.output_bias must be one of zero, data_mean"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        SemiSupervised(data(), Streams([0]), **{"labelled": 3, "categories": 3, **options})


def test_data_without_labels_are_refused():
    bare = replace(data(), name="bare", train=replace(data().train, labels=None))
    with pytest.raises(ValueError, match="needs labels, and data=bare has none; use data=digits or data=mnist"):
        SemiSupervised(bare, Streams([0]), labelled=3, categories=3)
    reason = "needs images with labels of task.categories=10 classes, and these have none"
    assert reason in validity.reason_to_skip(digits("data=binarized_mnist"))


def test_evaluation_refuses_no_samples_and_unknown_splits():
    for split, samples, sentence in (("test", 0, "at least 1 sample"), ("holdout", 1, "train, valid or test")):
        with pytest.raises(ValueError, match=sentence):
            tiny().evaluate(split, samples)
