"""Structured output prediction against enumeration of all its layers, and a pack with an estimator for each of them."""

import pytest
import torch
import torch.nn.functional as F
from enumerated_bounds import check_bounds
from test_tasks import tiny_data
from test_training import config

import tasks.structured
from analysis import records
from analysis.statistics import summary as statistics
from analysis.tables import summary as tables
from estimators import NVIL, REBAR, REINFORCE, RLOO, VIMCO, DisARM, Exact, GumbelSoftmax, MuProp
from estimators.exact import enumerate_states
from tasks import StructuredPrediction
from tasks.datasets import load_dataset
from training.config import validity
from training.config.plan import RunPlan
from training.errors import UserError
from training.gradients import basket
from training.pack.build import build
from training.pack.evaluation import evaluate
from training.pack.run import train_runs
from training.progress import PackLine
from training.replicas.streams import Streams
from training.sweep import planning

CPU = torch.device("cpu")
TASKS = {
    "sbn_bernoulli": ["task=sbn_bernoulli", "task.latents=4"],
    "sbn_categorical": ["task=sbn_categorical", "task.latents=3", "task.categories=3"],
}
DRAWS = 4000


def tiny(seeds=(0, 1), levels=1, spread=0.7, dtype=torch.float32, **options):
    """Two latents a layer, x and y of three pixels, every replica with the same parameters, far from their start."""
    task = StructuredPrediction(tiny_data(levels), Streams(seeds), **{"latents": 2, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.copy_(parameter[:1] + spread * torch.randn(parameter[:1].shape, generator=generator))
    return task.to(dtype)


def whole_split(task, dtype=torch.float32):
    return task.data.test.pixels.to(dtype).expand(task.streams.replicas, -1, -1)


def enumerated(task, images):
    """``log p(z|x)`` and ``log p(y|z_last)``, ``[joint states of all layers, R, E]``."""
    states = enumerate_states(task.latents.latents, task.latents.categories, like=images)
    x, y = images[..., : task.upper], images[..., task.upper :]
    log_prior, outputs = torch.zeros(images.shape[:2], dtype=images.dtype), task.networks[0](x)
    for network in task.networks[1:]:
        log_p = task.latents.logits(outputs).log_softmax(-1)
        z = states.reshape(-1, *(1,) * (log_p.dim() - 2), *states.shape[1:]).expand(-1, *log_p.shape)
        log_prior = log_prior + (z * log_p).sum((-2, -1))
        outputs = network(task.latents.features(z))
    nats = F.binary_cross_entropy_with_logits(outputs, y.expand_as(outputs), reduction="none").sum(-1)
    return log_prior.flatten(0, -3), -nats.flatten(0, -3)


# --- the objective and its gradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("categories", [2, 3])
def test_exact_nested_is_the_enumerated_expectation(categories, layers):
    task = tiny(categories=categories, layers=layers, dtype=torch.float64)
    images = whole_split(task, torch.float64)[:, :5]
    log_prior, log_likelihood = enumerated(task, images)
    assert torch.allclose(log_prior.logsumexp(0), torch.zeros(images.shape[:2], dtype=torch.float64), atol=1e-12)
    expected = -(log_prior.exp() * log_likelihood).sum(0)
    losses = task.loss(images, *[Exact()] * layers)
    assert torch.allclose(losses, expected, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(x.mean(-1).sum(), list(task.parameters())) for x in (losses, expected))
    for got, want in zip(ours, theirs, strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-12) and want.abs().max() > 1e-4


UNBIASED = {
    "REINFORCE": lambda: REINFORCE(),
    "RLOO": lambda: RLOO(),
    "DisARM": lambda: DisARM(),
    "MuProp": lambda: MuProp(),
    "REBAR": lambda: REBAR(),
    "NVIL": lambda: NVIL(3, variance_normalisation=False),
}


@pytest.mark.parametrize("categories", [2, 3])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_are_so_in_every_layer(name, categories):
    """A replica is a draw. Below 1000 coordinates in all at 6.5 standard errors: false alarms below 1e-7."""
    if name == "DisARM" and categories != 2:
        return
    task = tiny(range(DRAWS), categories=categories, dtype=torch.float64)
    image = whole_split(task, torch.float64)[:, :1]
    parameters = list(task.parameters())
    exact = torch.autograd.grad(task.loss(image, Exact(), Exact()).sum(), parameters)
    torch.manual_seed(0)
    layers = [UNBIASED[name]().double() for _ in range(2)]
    for each, want in zip(torch.autograd.grad(task.loss(image, *layers).sum(), parameters), exact, strict=True):
        z = (each.mean(0) - want[0]) / (each.std(0) / DRAWS**0.5 + 1e-9)
        assert z.abs().max() < 6.5, f"{name}: {z.abs().max():.1f} standard errors"


def test_a_loss_wants_an_estimator_for_each_layer():
    task = tiny(layers=3)
    with pytest.raises(ValueError, match="3 layers need as many estimators, not 2"):
        task.loss(whole_split(task), Exact(), Exact())


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("categories", "layers"), [(2, 2), (3, 2), (2, 1)])
def test_evaluation_against_enumeration(categories, layers):
    """The ELBO is ``E[log p(y|z)]``; the bound rises with the samples to ``log p(y|x)`` and stays below, in the mean.

    Means over 40 images; the tolerances are 6 standard errors computed from the exact spread.
    """
    task = tiny(categories=categories, layers=layers)
    with torch.no_grad():
        log_prior, log_likelihood = enumerated(task, whole_split(task))
    joint = log_prior + log_likelihood
    first = check_bounds(lambda samples: task.evaluate("test", samples), log_prior, joint, 0.05)[0]
    assert torch.allclose(first["bound"], first["elbo"], atol=1e-5)


def test_evaluation_is_repeatable_whatever_the_pack_and_the_precision():
    """And with the seeds' own parameters, the same numbers alone."""
    together, alone = (
        StructuredPrediction(tiny_data(), Streams(seeds), latents=4, output_bias="data_mean") for seeds in ([3, 7], [7])
    )
    first, again = together.evaluate("valid", 30), together.evaluate("valid", 30)
    assert first.keys() == {"elbo", "bound"} and all(torch.equal(first[name], again[name]) for name in first)
    for name, value in alone.evaluate("valid", 30).items():
        assert torch.allclose(value[0], first[name][1], rtol=1e-5)
    assert alone.double().evaluate("valid", 30)["bound"].isfinite().all()


def test_hard_samples_in_the_evaluation_and_soft_ones_in_training():
    task, seen = tiny(), []
    for network in task.networks[1:]:
        network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    task.loss(whole_split(task), GumbelSoftmax(), GumbelSoftmax())
    assert len(seen) == 2 and all(((z > 0) & (z < 1)).any() for z in seen)
    seen.clear()
    task.evaluate("test", 3)
    assert seen and all(((z == 0) | (z == 1)).all() for z in seen)


def test_the_lower_half_alone_is_predicted():
    """Zero weights and the bias of the data's mean: independent pixels of the lower half."""
    task = StructuredPrediction(tiny_data(), Streams([0]), latents=2, output_bias="data_mean")
    with torch.no_grad():
        task.networks[-1].weights[0].zero_()
    p, y = task.data.mean[3:].clamp(0.001, 0.999), task.data.test.pixels[:, 3:].float()
    expected = (y * p.log() + (1 - y) * (1 - p).log()).sum(-1).mean().item()
    assert task.evaluate("test", 2)["bound"].item() == pytest.approx(expected, rel=1e-5)
    assert task.context_features == task.upper == 3 and task.networks[-1](torch.zeros(1, 1, 2)).shape[-1] == 3


def test_grey_targets_are_not_called_bounds():
    assert set(tiny(levels=255).evaluate("test", 2)) == {"pseudo_elbo", "pseudo_bound"}
    assert tiny(levels=255).protocol()["evaluation_is_bound"] is False


def test_pictures_keep_the_upper_half():
    for pictures in tiny().examples(4):
        assert set(pictures) == {"originals", "reconstructions", "samples"}
        for images in pictures.values():
            assert images.shape == (4, 2, 3) and torch.equal(images[:, :1], pictures["originals"][:, :1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": 0}, "task.layers must be from 1 to 4, not 0"),
        ({"layers": 5}, "task.layers must be from 1 to 4, not 5"),
        ({"latents": 0}, "task.latents must be at least 1"),
        ({"categories": 1}, "task.categories must be at least 2"),
        ({"output_bias": "mean"}, "task.output_bias must be one of zero, data_mean"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(**options)


def test_evaluation_refuses_no_samples_and_unknown_splits():
    with pytest.raises(ValueError, match="at least 1 sample"):
        tiny().evaluate("test", 0)
    with pytest.raises(ValueError, match="train, valid or test"):
        tiny().evaluate("holdout", 1)


# --- packs: an estimator for each layer ------------------------------------------------------------------------------


def pack(*overrides, task="sbn_bernoulli", seeds=(4,)):
    job = config(*TASKS[task], "batch_size=8", "optimizer.lr=1e-3", *overrides)
    return build([{**job, "seed": seed} for seed in seeds], CPU)


COUNTED = ("gumbel_softmax", "darn", "rloo", "muprop", "rebar", "disarm", "indecater", "exact")


@pytest.mark.parametrize("name", COUNTED)
def test_evaluations_are_those_of_the_innermost_loss(name, monkeypatch):
    ours, rows = pack(f"estimator={name}"), []
    nats = tasks.structured.bernoulli_nats
    monkeypatch.setattr(
        tasks.structured, "bernoulli_nats", lambda logits, y: (rows.append(logits[..., 0].numel()), nats(logits, y))[1]
    )
    ours.train_step()
    assert sum(rows) == ours.evaluations * 8


def test_statistics_and_learned_parts_belong_to_a_layer():
    nvil = pack("estimator=nvil", "task.layers=3")
    for _ in range(3):
        nvil.train_step()
    assert len(nvil.estimators) == 3 and nvil.estimator is nvil.estimators[0]
    for other in nvil.estimators[1:]:  # the same moments in both (the value is preserved), other weights
        assert not torch.equal(other.baseline.hidden_weight, nvil.estimator.baseline.hidden_weight)
        assert other.mean.total.data_ptr() != nvil.estimator.mean.total.data_ptr() and other.mean.total.abs() > 0
    rebar = pack("estimator=rebar", task="sbn_categorical", seeds=(4, 5))
    for _ in range(3):
        rebar.train_step()
    first, second = rebar.temperatures()
    assert first.shape == (2,) and bool((first != second).all() and (first != 0.5).all() and (second != 0.5).all())
    row = evaluate(rebar)[1]
    assert (row["temperature"], row["temperature_2"]) == (first[1].item(), second[1].item())


def test_every_layer_is_annealed():
    annealed = ["estimator=annealed_straight_through", "schedule=exponential", "schedule.rate=0.1", "schedule.every=1"]
    ours = pack(*annealed, "estimator.temperature=1.0")
    for _ in range(4):
        ours.train_step()
    assert [values.item() for values in ours.temperatures()] == pytest.approx([torch.tensor(-0.3).exp().item()] * 2)


def test_a_divergence_names_every_layers_temperature():
    ours = pack("estimator=rebar", seeds=(1, 2))
    with torch.no_grad():
        ours.task.networks[1].weights[0][1] = torch.inf
    ours.train_step()
    ((replica, details),) = ours.divergences([0, 1], everywhere=False)
    assert replica == 1 and "rebar, temperature 0.5 and 0.5, logits" in details["divergence"]


def test_what_does_not_nest_is_skipped_and_said():
    two = config("task=sbn_bernoulli", "estimator=vimco")
    assert "does not nest: with the 2 layers of task=sbn_bernoulli" in validity.reason_to_skip(two)
    plan = planning.make_plan([RunPlan(two)])
    assert plan.todo == 0 and any("1 run skipped: vimco: trains a multi-sample bound" in line for line in plan.lines())
    one = config(*TASKS["sbn_bernoulli"], "task.layers=1", "estimator=vimco")
    assert validity.reason_to_skip(one) is None and build([one], CPU).train_step().isfinite().all()
    many = config("task=sbn_categorical", "task.latents=3", "task.categories=10", "estimator=exact")
    assert "would enumerate the 10**6 joint states" in validity.reason_to_skip(many)
    with pytest.raises(UserError, match=r"estimator=exact would enumerate the 10\*\*6 joint states"):
        build([many], CPU)
    assert validity.reason_to_skip(config("task=sbn_bernoulli", "task.latents=4", "estimator=exact")) is None
    with pytest.raises(UserError, match="on data=none: the task needs images"):
        build([config("task=sbn_bernoulli", "data=none")], CPU)
    with pytest.raises(ValueError, match="needs images of at least two rows: data=none has 0"):
        StructuredPrediction(load_dataset("none"), Streams([0]))


def test_vimco_on_one_layer_is_the_multi_sample_bound():
    """Its value against enumeration of the pairs of samples, within 6 standard errors of 20,000 draws."""
    task = tiny((0,), layers=1)
    images = whole_split(task)[:, :1].expand(-1, 20_000, -1)
    log_prior, log_likelihood = enumerated(task, images[:, :1])
    pairs = torch.logaddexp(log_likelihood[:, None], log_likelihood[None]) - torch.tensor(2.0).log()
    weight = (log_prior[:, None] + log_prior[None]).exp()
    mean = (weight * pairs).sum()
    error = ((weight * pairs**2).sum() - mean**2).sqrt() / 20_000**0.5
    torch.manual_seed(0)
    assert (task.loss(images, VIMCO(2)).mean() + mean).abs() < 6 * error


def test_gradient_variance_at_one_point():
    trained = pack("estimator=exact", "task.latents=2")
    for _ in range(5):
        trained.train_step()
    nodes = {name: config(f"estimator={name}")["estimator"] for name in ("reinforce", "rloo", "exact")}
    reinforce, rloo, exact = basket.measure(basket.Point(trained), nodes, draws=200, warm_up=2)
    assert exact.figures.variance < 1e-12 < rloo.figures.variance < reinforce.figures.variance
    assert [result.evaluations for result in (reinforce, rloo, exact)] == [1, 4, 16]


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_run_is_recorded_and_stands_beside_its_quantity(tmp_path):
    job = config(*TASKS["sbn_bernoulli"], "estimator=st_gumbel_softmax", runs_dir=str(tmp_path))
    train_runs([RunPlan({**job, "seed": seed}) for seed in range(2)], PackLine(False), solo=True)
    summary = statistics.summarise(records.load(tmp_path))
    assert "sbn_bernoulli on digits: -log p(y|x) <= negative test bound" in tables.to_markdown(summary)
    assert r"$-\log p(y|x) \le$ negative" in tables.to_latex(summary)
    assert summary["protocol.half"].tolist() == ["y: the lower 4 of 8 rows, x: the others"]
    assert len(list(tmp_path.rglob("images.npz"))) == 2
