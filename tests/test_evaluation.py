"""The loop of all bounds (tasks.evaluation.bounds) against enumeration, and what its numbers may not depend on.

Tolerances are standard errors computed from the exact spread, or from repetitions with other seeds.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from test_structured import tiny as tiny_chain
from test_tasks import tiny_data, tiny_vae, whole_split
from test_training import config

from estimators.memory import Allocations
from tasks.datasets import DataError, load_dataset
from tasks.distributions import latents
from tasks.distributions.latents import latents_of
from tasks.distributions.likelihoods import bernoulli_log_prob_
from tasks.evaluation import bounds, chunks, enumeration
from training.pack.build import build
from training.pack.evaluation import evaluate_last
from training.replicas.streams import Streams

SAME = 200
"""Replicas with the same parameters and other seeds: repetitions of an evaluation."""
MODELS = {
    "bernoulli": lambda seeds: tiny_vae(2, 4, seeds),
    "bernoulli, learned prior": lambda seeds: tiny_vae(2, 4, seeds, prior="learned"),
    "categorical": lambda seeds: tiny_vae(3, 3, seeds),
    "categorical, learned prior": lambda seeds: tiny_vae(3, 3, seeds, prior="learned"),
    "chain of bits": lambda seeds: tiny_chain(seeds),
    "chain of categories": lambda seeds: tiny_chain(seeds, categories=3, layers=3),
}


def repetitions(name):
    """A pack whose replicas differ in their evaluation's noise alone."""
    task = MODELS[name](range(SAME))
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    return task


@pytest.mark.parametrize("name", MODELS)
def test_bounds_rise_to_the_exact_log_likelihood_and_never_exceed_it(name):
    """In the mean over 200 repetitions; all within 6 of their standard errors (false alarms below 1e-7)."""
    found = repetitions(name).evaluate("test", 1000, details=True)
    exact, exact_elbo = found["exact_log_likelihood"][0].item(), found["exact_elbo"][0].item()
    means = {key: value.mean().item() for key, value in found.items()}
    errors = {key: value.std().item() / SAME**0.5 for key, value in found.items()}
    names = ["bound_1", "bound_10", "bound_100", "bound"]
    assert abs(means["elbo"] - exact_elbo) < 6 * errors["elbo"] + 1e-5
    assert abs(means["bound_1"] - exact_elbo) < 6 * errors["bound_1"] + 1e-5
    for low, high in zip(names[:-1], names[1:], strict=True):
        assert means[high] > means[low] - 6 * errors[low]
    assert all(means[each] < exact + 6 * errors[each] + 1e-5 for each in names)
    assert exact - means["bound"] < 0.01 < exact - exact_elbo, "the limits are told apart"


@pytest.mark.parametrize("name", ["bernoulli", "categorical, learned prior", "chain of bits"])
def test_standard_errors_are_those_of_repetitions_on_other_images(name):
    """The spread over images and noise: of means over 40 images drawn with replacement, 200 times."""
    task = repetitions(name)
    found = task.evaluate("test", 10, details=True)
    per_image = _per_image(task, 10)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, per_image.shape[1], per_image.shape, generator=generator)
    spread = per_image.gather(1, rows).mean(1).std().item()
    claimed = found["bound_standard_error"].square().mean().sqrt().item()
    assert claimed == pytest.approx(spread, rel=6 / (2 * SAME) ** 0.5)


def _per_image(task, samples):
    """The bound of each image ``[replicas, images]``, from evaluations of one image at a time."""
    data, parts = task.data, []
    for row in range(len(data.test)):
        one = type(data.test)(data.test.pixels[row : row + 1], 1)
        parts.append(
            bounds.evaluate(
                type(data)(data.name, data.image_shape, data.binarization, one, one, one),
                "test",
                Streams([1000 * row + seed for seed in range(SAME)]),
                task.log_weights,
                num_samples=samples,
                words=task.latents.latents * getattr(task, "layers", 1),
                like=next(task.parameters()),
            )["bound"]
        )
    return torch.stack(parts, 1)


@pytest.mark.parametrize("name", MODELS)
def test_exact_values_against_a_sum_over_states_in_python(name):
    task = MODELS[name]([0, 1])
    if "chain" in name:
        from test_structured import enumerated

        log_prior, log_likelihood = enumerated(task, whole_split_of(task))
        exact, elbo = (log_prior + log_likelihood).logsumexp(0), (log_prior.exp() * log_likelihood).sum(0)
    else:
        from test_tasks import enumerated

        log_q, joint, exact = enumerated(task, whole_split(task))
        elbo = (log_q.exp() * (joint - log_q)).sum(0)
    found = task.evaluate("test", 1, details=True)
    assert torch.allclose(found["exact_log_likelihood"], exact.mean(-1).double(), atol=1e-5)
    assert torch.allclose(found["exact_elbo"], elbo.mean(-1).double(), atol=1e-5)


def whole_split_of(task):
    return task.data.test.pixels.float().expand(task.streams.replicas, -1, -1)


def test_exact_values_only_where_states_are_few():
    assert enumeration.is_feasible(latents_of(14, 2)) and not enumeration.is_feasible(latents_of(15, 2))
    assert enumeration.is_feasible(latents_of(7, 2), 4) and not enumeration.is_feasible(latents_of(8, 2), 2)
    assert "exact_elbo" not in tiny_vae(2, 15).evaluate("test", 2, details=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers_alone_and_in_a_pack_whatever_the_pieces(name, monkeypatch):
    together = MODELS[name]([3, 7, 9])
    alone = MODELS[name]([7])
    with torch.no_grad():
        for ours, theirs in zip(alone.parameters(), together.parameters(), strict=True):
            ours.copy_(theirs[1:2])
    expected = together.evaluate("valid", 230, details=True)
    monkeypatch.setitem(chunks.PIECE_ROWS, "cpu", 70)
    for key, value in alone.evaluate("valid", 230, details=True).items():
        assert torch.allclose(value[0], expected[key][1], rtol=1e-6), key


def test_memory_does_not_depend_on_the_number_of_samples():
    vae = tiny_vae(2, 50)
    vae.data = tiny_data(images=5)
    peaks = []
    for samples in (1000, 20_000):
        with Allocations() as memory:
            vae.evaluate("test", samples, details=True)
        peaks.append(memory.peak)
    assert peaks[1] < 1.05 * peaks[0]


def test_prefixes_are_bounds_of_the_first_samples():
    """The samples of 10,000 begin with those of 1000: all 5 images are in one block."""
    vae = tiny_vae()
    vae.data = tiny_data(images=5)
    many, few = vae.evaluate("test", 1000, details=True), vae.evaluate("test", 10_000, details=True)
    assert set(many) >= {"bound_1", "bound_10", "bound_100"} and "bound_1000" not in many
    for key in ("bound_1", "bound_10", "bound_100"):
        assert torch.equal(many[key], few[key])
    assert torch.allclose(many["bound"], few["bound_1000"], atol=1e-12)
    assert set(vae.evaluate("test", 1000)) == {"elbo", "bound"}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("categories", [2, 5])
def test_draws_follow_the_distribution(categories, shared):
    """From probabilities that all samples share, and from those of each: the same draws but for rounding.

    Exactly one-hot; frequencies within 6 standard errors; certain and impossible values always and never.
    """
    family = latents_of(3, categories)
    outputs = torch.randn(1, 1, 1, family.width, generator=torch.Generator().manual_seed(0))
    outputs[..., 0] = 60.0
    noise = Streams([5]).words("test")((1, 1, 200_000, 3), torch.device("cpu"))
    features = family.draw(outputs if shared else outputs.expand(1, 1, 200_000, -1), noise)[0, 0]
    p = family.features(family.logits(outputs).softmax(-1))[0, 0, 0]
    assert set(features.unique().tolist()) == {0.0, 1.0} and (features[:, 0] == 1).all()
    if categories > 2:
        assert (features.unflatten(-1, (3, categories)).sum(-1) == 1).all()
    assert ((features.mean(0) - p).abs() <= 6 * (p * (1 - p) / len(features)).sqrt() + 1e-7).all()


@pytest.mark.parametrize("hidden", [(), (7,)])
def test_the_places_of_the_ones_are_as_good_as_the_code(hidden, monkeypatch):
    """The sum of rows of weights, and the same numbers of a whole evaluation."""
    vae = tiny_vae(5, 3, [0, 1], hidden=hidden)
    outputs = torch.randn(2, 4, 1, 15)
    noise = Streams([5, 6]).words("test")((2, 4, 30, 3), torch.device("cpu"))
    ones, features = vae.latents.draw_codes(outputs, noise), vae.latents.draw(outputs, noise)
    assert ones.dtype == torch.int64 and ones.shape == (2, 4, 30, 3) and features.shape == (2, 4, 30, 15)
    expected = vae.decoders[0](features.flatten(1, 2)).unflatten(1, (4, 30))
    assert torch.allclose(vae.latents.through(vae.decoders[0], ones), expected, atol=1e-5)
    assert torch.allclose(vae.latents.dot(ones, outputs[:, :, 0]), (features * outputs).sum(-1), atol=1e-5)
    found = vae.evaluate("test", 20)
    monkeypatch.setattr(latents, "FEW_ONES", 100)
    assert all(torch.allclose(found[key], value, rtol=1e-5) for key, value in vae.evaluate("test", 20).items())


def test_words_are_uniform_and_belong_to_their_run():
    words = Streams([4, 5]).words("a")
    first, second = words((2, 1001), torch.device("cpu")), words((2, 50_000), torch.device("cpu"))
    assert first.dtype == torch.int32 and first.min() >= 0 and not torch.equal(first[0], first[1])
    mean, deviation = second.double().mean() / 2**31, 12**-0.5
    assert abs(mean - 0.5) < 6 * deviation / 100_000**0.5 and second.max() > 0.999 * 2**31
    assert torch.equal(Streams([5]).words("a")((1, 1001), torch.device("cpu"))[0], first[1])
    assert not torch.equal(Streams([5]).words("b")((1, 1001), torch.device("cpu"))[0], first[1])
    with pytest.raises(ValueError, match="expected 2 replicas"):
        words((3, 5), torch.device("cpu"))


@pytest.mark.parametrize("pixels", [1, 64, 101, 784])
def test_the_likelihood_of_evaluation_in_float32(pixels):
    """Against float64 cross-entropy: logits of the size of a trained model's, and extreme ones."""
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(2, 3, 50, pixels, generator=generator)
    logits[0, 0, 0] = 1e3 * logits[0, 0, 0].sign()
    x = (torch.rand(2, 3, pixels, generator=generator) < 0.5).float()
    target = x.double().unsqueeze(2).expand_as(logits)
    exact = -F.binary_cross_entropy_with_logits(logits.double(), target, reduction="none").sum(-1)
    assert torch.allclose(
        bernoulli_log_prob_(logits, x).double(), exact, rtol=1e-6, atol=1e-4 * math.sqrt(pixels / 784)
    )


def test_train_is_evaluated_in_part_and_as_bits():
    """Of ``dynamic`` training images the bits of ``static``: a bound, and of so many images as were asked for."""
    dynamic, static = (load_dataset("digits", binarization=rule, train_evaluated=30) for rule in ("dynamic", "static"))
    assert torch.equal(dynamic.evaluated("train").pixels, static.train.pixels[:30])
    assert dynamic.evaluated("train").levels == 1 and dynamic.evaluated("test") is dynamic.test
    assert load_dataset("digits", binarization="none").evaluated("train").levels == 255
    with pytest.raises(DataError, match="train_evaluated must be at least 1"):
        load_dataset("digits", train_evaluated=0)


def test_grey_targets_have_no_bounds_by_any_name():
    vae = tiny_vae()
    vae.data = tiny_data(levels=255)
    assert all(name.startswith("pseudo_") for name in vae.evaluate("test", 20, details=True))


@pytest.mark.slow
def test_a_learned_prior_improves_the_bound_on_digits():
    """Same seeds, same steps, trained until neither moves much: by more than 3 paired standard errors, every seed.

    (Earlier it may be worse: after 400 steps of six bits it was, by 0.06 nats.)
    """
    found = {}
    for prior in ("uniform", "learned"):
        job = config("task.latents=10", f"task.prior={prior}", "estimator=rloo", "optimizer.lr=1e-2")
        pack = build([{**job, "seed": seed} for seed in range(5)], torch.device("cpu"))
        for _ in range(4000):
            pack.train_step()
        found[prior] = pack.task.evaluate("test", 100, details=True)
    for name in ("exact_log_likelihood", "bound"):
        gain = found["learned"][name] - found["uniform"][name]
        assert (gain > 0).all() and gain.mean() > 3 * gain.std() / len(gain) ** 0.5, (name, gain)


def _last(temperature, *seeds):
    options = "estimator=gumbel_softmax", f"estimator.temperature={temperature}"
    return evaluate_last(build([config(*options, seed=seed) for seed in seeds], torch.device("cpu")))


def test_the_relaxed_objective_is_the_elbo_at_temperature_0_and_no_bound_on_top_of_it():
    """Relaxed samples become hard ones, so their objective becomes the ELBO: within 6 standard errors of both."""
    for split in ("valid", "test"):
        (cold,) = _last(1e-4, 0)
        error = 2**0.5 * cold[f"{split}_elbo_standard_error"]
        assert cold[f"{split}_relaxed_elbo"] == pytest.approx(cold[f"{split}_elbo"], abs=6 * error)
    one, two = _last(0.5, 0, 1)
    assert one["test_relaxed_elbo"] != two["test_relaxed_elbo"], "a seed's own noise"
    assert one["test_relaxed_elbo"] == pytest.approx(_last(0.5, 0)[0]["test_relaxed_elbo"], rel=1e-6), "alone as packed"


def test_hard_samples_have_no_relaxed_objective():
    pack = build([config("estimator=st_gumbel_softmax")], torch.device("cpu"))
    assert not [name for name in evaluate_last(pack)[0] if "relaxed" in name]
