"""The toy problems: values against enumeration, optima against brute force, where estimators go, packs, records."""

import json
import math
import re

import configs
import pytest
import torch

from analysis import records
from analysis.figures import curves as figures
from analysis.statistics import summary as statistics
from estimators import RLOO, Exact, ReinMax, StraightThrough
from estimators.exact import enumerate_states
from estimators.memory import Allocations
from training.config.plan import RunPlan
from training.errors import UserError
from training.pack.build import build
from training.pack.evaluation import summary
from training.pack.run import train_runs
from training.progress import PackLine
from training.sweep import estimate

CPU = torch.device("cpu")
FAST = ["data=none", "steps=40", "evaluate_every=20", "batch_size=4", "progress=false"]
PROBLEMS = [
    ["task=toy", "task.latents=3", "task.categories=4"],
    ["task=toy_polynomial", "task.latents=3", "task.exponent=1.5"],
    ["task=toy_polynomial", "task.latents=3"],
    ["task=toy_bernoulli3"],
    ["task=toy_simplex"],
    ["task=toy_simplex", "task.latents=2"],
    ["task=toy_simplex", "task.categories=2", "task.latents=2"],
    ["task=toy_large_k", "task.categories=50"],
]


def config(*overrides, **settings):
    return configs.config(*FAST, *overrides) | settings


def pack(*overrides, replicas=1, **settings):
    job = config(*overrides, **settings)
    return build([{**job, "seed": seed} for seed in range(replicas)], CPU)


def task(*overrides, replicas=1):
    return pack(*overrides, replicas=replicas).task


def set_logits(toy, logits):
    with torch.no_grad():
        toy.outputs.copy_(logits.reshape(toy.outputs.shape))


def enumerated(toy):
    """The expected loss ``[replicas]`` by enumeration of all joint states, in float64."""
    return toy.double().loss(torch.zeros(toy.replicas, 1, 0), Exact()).squeeze(-1).detach()


@pytest.mark.parametrize("overrides", PROBLEMS, ids=" ".join)
def test_values_are_enumerated_expectations(overrides):
    toy = task(*overrides, replicas=3)
    set_logits(toy, torch.randn(toy.outputs.shape, generator=torch.Generator().manual_seed(0)))
    (value, gap), other = toy.evaluate("valid", 1).values(), toy.evaluate("test", 7)
    assert torch.equal(value, other["value"]) and torch.equal(gap, value.neg() - toy.optimum())
    torch.testing.assert_close(-value, enumerated(toy), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("overrides", PROBLEMS[:3] + PROBLEMS[7:], ids=" ".join)
def test_optima_are_the_best_states(overrides):
    """With logits for each latent the best distribution is a state: the least loss of all of them."""
    toy = task(*overrides)
    states = enumerate_states(toy.latents.latents, toy.latents.categories, like=torch.zeros(()))
    least = toy.loss_of(states.reshape(len(states), 1, 1, *states.shape[1:])).min()
    assert least.item() == pytest.approx(toy.optimum().item(), abs=1e-7)


@pytest.mark.parametrize("overrides", PROBLEMS[3:7], ids=" ".join)
def test_optima_under_shared_logits_are_the_best_of_a_grid(overrides):
    """No distribution on a grid over the simplex is better, and one of them is as good."""
    categories = task(*overrides).latents.categories
    parts = 30
    grid = torch.cartesian_prod(*[torch.arange(parts + 1)] * categories)
    p = grid[grid.sum(1) == parts].double() / parts
    toy = task(*overrides, replicas=len(p)).double()
    log_p = p.clamp_min(1e-12).log()
    set_logits(toy, log_p[:, 1] - log_p[:, 0] if categories == 2 else log_p)
    least = enumerated(toy).min().item()
    assert least == pytest.approx(toy.optimum()[0].item(), abs=1e-9)


@pytest.mark.parametrize(
    ("overrides", "optimum"),
    [
        (["task=toy"], 0.249001),
        (["task=toy", "task.latents=200"], 0.249001),
        (["task=toy_polynomial", "task.exponent=1.5"], 0.30187),
        (["task=toy_polynomial", "task.exponent=2"], 0.2025),
        (["task=toy_polynomial", "task.exponent=3"], 0.091125),
        (["task=toy_bernoulli3"], 0.6705),
    ],
)
def test_optima_of_the_literature(overrides, optimum):
    assert task(*overrides).optimum().item() == pytest.approx(optimum, abs=5e-6)


def trained(*overrides):
    run = pack("optimizer.lr=0.02", "batch_size=100", *overrides)
    for _ in range(1000):
        run.train_step()
    return run.task


@pytest.mark.parametrize("estimator", ["rloo", "rebar", "exact"])
@pytest.mark.parametrize(
    "problem", [["task=toy_bernoulli3"], ["task=toy_simplex"], ["task=toy_simplex", "task.latents=2"]], ids=" ".join
)
def test_unbiased_estimators_reach_the_optimum(problem, estimator):
    toy = trained(*problem, f"estimator={estimator}")
    assert 0 <= toy.evaluate("test", 1)["gap"].item() < 2e-3


def test_straight_through_minimises_the_relaxed_loss_instead():
    """Its mean gradient is that of loss(p), for quadratic losses: to p = mean_l t_l, and to the uniform p = c."""
    bits = trained("task=toy_bernoulli3", "estimator=straight_through")
    assert bits.outputs.sigmoid().item() == pytest.approx(0.53, abs=0.02)
    simplex = trained("task=toy_simplex", "estimator=straight_through")
    assert simplex.outputs.softmax(-1).flatten().tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert simplex.evaluate("test", 1)["gap"].item() > 0.04


@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.0])
def test_where_reinmax_is_exact_and_where_straight_through_stops(exponent, monkeypatch):
    """The exact mean gradient of one bit, from its two samples.

    With slopes s_b = d|x - t|^c / dx at x = b: the truth is p (1 - p) (|1 - t|^c - t^c), straight-through's mean
    p (1 - p) (p s_1 + (1 - p) s_0), so it stops at p = t^(c - 1) / ((1 - t)^(c - 1) + t^(c - 1)); ReinMax is right
    for c = 2 and for no other, which is not quadratic.
    """
    toy = task("task=toy_polynomial", "task.latents=1", f"task.exponent={exponent}").double()
    t, bits = 0.45, torch.tensor([0.0, 1.0], dtype=torch.float64)
    for module in ("straight_through", "reinmax"):
        monkeypatch.setattr(f"estimators.{module}.perturbed_scores", lambda logits: bits.reshape(2, 1, 1) - 0.5)

    def mean(estimator, p):
        odds = torch.full((2, 1, 1), math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
        losses = estimator(toy.latents.logits(odds), toy.loss_of)
        for_zero, for_one = torch.autograd.grad(losses.sum(), odds)[0].flatten().tolist()
        return (1 - p) * for_zero + p * for_one

    stop = t ** (exponent - 1) / ((1 - t) ** (exponent - 1) + t ** (exponent - 1))
    assert mean(StraightThrough(), stop) == pytest.approx(0, abs=1e-7)
    for p in (0.2, 0.7):
        truth = p * (1 - p) * ((1 - t) ** exponent - t**exponent)
        slopes = exponent * (p * (1 - t) ** (exponent - 1) - (1 - p) * t ** (exponent - 1))
        assert mean(StraightThrough(), p) == pytest.approx(p * (1 - p) * slopes, rel=1e-6)
        error = abs(mean(ReinMax(), p) / truth - 1)
        assert error < 1e-5 if exponent == 2 else error > 0.05


def test_a_million_categories_in_memory_linear_in_them():
    peaks = []
    for categories in (100_000, 1_000_000):
        run = pack("task=toy_large_k", "estimator=rloo", "batch_size=1", f"task.categories={categories}")
        before = run.task.evaluate("test", 1)["value"]
        with Allocations() as memory:
            assert run.train_step().isfinite().all()
        peaks.append(memory.peak)
        assert run.task.evaluate("test", 1)["value"] != before
    assert peaks[1] < 10.1 * peaks[0] and peaks[1] < 20 * RLOO(2).evaluations * 4e6


def test_the_initial_logits_are_each_seeds_own():
    first, second = (task("task=toy_polynomial", "estimator=reinmax", replicas=2) for _ in range(2))
    assert torch.equal(first.outputs, second.outputs) and not torch.equal(first.outputs[0], first.outputs[1])
    spread = first.outputs.abs().max().item()
    assert 0.009 < spread < 0.01 and first.outputs.std().item() == pytest.approx(0.01 / math.sqrt(3), rel=0.15)
    assert not task("task=toy").outputs.any()


@pytest.mark.parametrize("overrides", PROBLEMS, ids=" ".join)
def test_alone_in_a_pack_and_resumed_give_the_same(overrides):
    estimator = "estimator=rebar"
    together, alone = pack(*overrides, estimator, replicas=3), build([config(*overrides, estimator, seed=1)], CPU)
    for _ in range(20):
        losses = together.train_step()
        torch.testing.assert_close(alone.train_step()[0], losses[1], rtol=1e-4, atol=1e-6)
    again = build([config(*overrides, estimator, seed=1)], CPU)
    again.restore([alone.state(0)])
    for _ in range(5):
        assert torch.equal(again.train_step(), alone.train_step())


def test_runs_record_their_own_optimum_and_different_problems_are_not_ranked(tmp_path):
    jobs = [
        config("task=toy", "estimator=rloo", f"task.target={target}", runs_dir=str(tmp_path)) for target in (0.2, 0.4)
    ]
    together = build(jobs, CPU)
    recorded = [summary(together, r, "finished", {})["protocol"] for r in range(2)]
    assert [(p["target"], p["exponent"], p["optimum"]) for p in recorded] == [(0.2, 2.0, 0.04), (0.4, 2.0, 0.16)]
    train_runs([RunPlan(job) for job in jobs], PackLine(False), solo=True)
    frame = records.load(tmp_path)
    assert json.dumps(sorted(frame["protocol.optimum"].unique())) == "[0.04, 0.16]"
    with pytest.raises(statistics.ProtocolsDiffer, match="optimum is 0.04"):
        statistics.summarise(frame)
    (axes,) = figures.learning_curves(figures.chosen(frame[frame["task.target"] == 0.2])).axes
    assert axes.get_ylabel() == "expected loss" and axes.get_title() == "toy"
    assert [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2].count(0.04) == 1
    low, high = axes.get_ylim()
    assert low < 0.04 < high


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=toy_bernoulli3", "data=digits"], "the task has no images: use data=none"),
        (["task=toy_simplex", "data=digits"], "the task has no images: use data=none"),
        (["task=toy_simplex", "task.latents=3"], "task.latents must be 1 or 2"),
        (["task=toy_simplex", "task.categories=1"], "task.categories must be at least 2"),
        (["task=toy_polynomial", "task.exponent=0.5"], "task.exponent must be at least 1 and finite, not 0.5"),
        (["task=toy_polynomial", "task.exponent=nan"], "task.exponent must be at least 1 and finite, not nan"),
        (["task=toy_polynomial", "task.target=inf"], "task.target must be finite"),
        (["task=toy_polynomial", "task.init=-1"], "task.init must be at least 0"),
        (["task=toy_large_k", "estimator=disarm"], "has 1000000 categories"),
    ],
)
def test_mistakes_are_one_sentence(overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        build([config(*overrides)], CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", [["task=toy"], ["task=toy_simplex"]], ids=" ".join)
def test_what_a_toy_will_take_is_estimated(overrides):
    (line, total) = estimate.lines([(RunPlan(config(*overrides, "estimator=rloo")),)], 1)
    assert re.fullmatch(r"pack 1: rloo on toy\w* x 1: about .+, \d+ MiB", line) and total.startswith("about ")
