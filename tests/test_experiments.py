"""Experiments: each says its command, is planned as a whole in every budget, and each kind of its runs trains."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from analysis.papers import leaderboard
from analysis.papers.published import published
from analysis.records import flat_config
from analysis.statistics.forms import certificate
from training.config import validity
from training.config.compose import runs_of_command
from training.config.plan import structure
from training.pack.build import build
from training.pack.evaluation import evaluate_last, summary
from training.processes import ROOT
from training.sweep.rungs import rungs_of

FOLDER = Path(__file__).parents[1] / "conf" / "experiment"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
BUDGETS = {
    name: ["full", *yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["hydra"]["sweeper"].get("budgets", {})]
    for name in NAMES
}
BUDGETS |= {name: BUDGETS["jang_table1"] for name in ("jang_figure3", "jang_figure4")}
SKIPPED = {
    "every_estimator": (
        "is defined for Bernoulli latents, but task=",
        "trains a multi-sample bound, whose gradient does",
    ),
    "jang_table2": ("would never be asked by task=labelled_only, which learns from labels alone",),
    "concrete_table1": ("trains a multi-sample bound, whose gradient does not nest: with the 2 layers",),
}
SMALL_ALREADY = {"demo", "every_estimator", "jang_reasons", "mnist_small"}


@cache
def runs_of(name, budget):
    return runs_of_command(f"python train.py -m +experiment={name} budget={budget}")


@pytest.mark.parametrize(("name", "budget"), [(name, budget) for name in NAMES for budget in BUDGETS[name]])
def test_an_experiment_is_planned_as_a_whole(name, budget):
    """By the planner of ``train.py``; what it refuses is what the file's head says is skipped."""
    head = (FOLDER / f"{name}.yaml").read_text().splitlines()[1]
    assert head.startswith("# ") and "python train.py" in head and f"+experiment={name}" in head
    runs = runs_of(name, budget)
    sweep = "jang_table1" if name.startswith("jang_figure") else name
    assert {run.config["sweep"] for run in runs} == {sweep if budget == "full" else f"{sweep}_{budget}"}
    reasons = set()
    for run in runs:
        validity.check(run.config)
        reasons.add(validity.reason_to_skip(run.config))
        assert not validity.caution(run.config)
    expected = SKIPPED.get(name, ())
    assert None in reasons and all(any(part in reason for part in expected) for reason in reasons - {None})
    if race := rungs_of(runs):
        assert all(len(cell) >= 2 for cell in race.cells), "a race has something to choose from in each cell"
    small = "small" in BUDGETS[name]
    assert small != (name in SMALL_ALREADY or name.startswith("toy_"))
    if budget == "small":
        full = runs_of(name, "full")
        assert len(runs) <= len(full) and runs[0].config["steps"] <= full[0].config["steps"]
        assert {run.key for run in runs}.isdisjoint(run.key for run in full)


def test_the_runs_of_a_budget_lie_where_the_command_says():
    runs = runs_of_command("python train.py -m +experiment=arms budget=small sweep=mine")
    assert {run.config["sweep"] for run in runs} == {"mine"}
    assert {run.name for run in runs} == {run.name for run in runs_of("arms", "small")}


def test_the_forms_of_all_estimators_are_certified():
    """But Gumbel-Rao with more inner draws, which has the same mean, and MuProp with both of its options at once."""
    certified, others = leaderboard.certified(ROOT / leaderboard.RESULTS), set()
    nodes = {
        json.dumps(run.config["estimator"])
        for name in NAMES
        for budget in BUDGETS[name]
        for run in runs_of(name, budget)
    }
    for node in map(json.loads, nodes):
        name = node.pop("name")
        said = certificate(certified.get(node.pop("_target_"), []), node)
        if said == "none" or said.startswith("default form"):
            others.add(name)
    assert others == {"gumbel_rao", "gumbel_rao_100", "gumbel_rao_1000", "muprop"}


def tiny(config):
    """The same options with few latents, narrow nets, few draws and two steps, on the digits."""
    few = {"steps": 2, "batch_size": 4, "train_samples": 0, "valid_samples": 1, "test_samples": 1}
    task, estimator, data = ({**config[group]} for group in ("task", "estimator", "data"))
    task["name"], estimator["name"] = task["_target_"], estimator["_target_"]
    if "latents" in task and data["name"] != "none":
        task["latents"] = min(task["latents"], 4)
    if "hidden" in task:
        task["hidden"] = [8] * len(task["hidden"])
    for name, most in (("num_inner", 10), ("num_samples", 8)):
        if name in estimator:
            estimator[name] = min(estimator[name], most)
    if data["name"] != "none":
        data["name"] = "digits"
    return {**config, **few, "task": task, "estimator": estimator, "data": data}


tried, evaluated = set(), set()


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_of_its_runs_trains(name):
    """Two steps of one run per structure, but for its sizes; those once that another experiment has too."""
    for run in runs_of(name, "small" if "small" in BUDGETS[name] else "full"):
        config = tiny(run.config)
        if structure(config) in tried or validity.reason_to_skip(config):
            continue
        tried.add(structure(config))
        pack = build([config], torch.device("cpu"))
        for _ in range(2):
            assert pack.train_step().isfinite().all(), run.label
        kind = (config["task"]["name"], config["task"].get("likelihood"), config["task"].get("layers"))
        if kind not in evaluated:
            evaluated.add(kind)
            (row,) = evaluate_last(pack)
            assert None not in row.values(), run.label
            assert summary(pack, 0, "finished", row)["step"] == 2


PUBLISHED = {
    "jang_table1": {
        ("sbn_bernoulli", "binarized_mnist"): [72.0, 59.7, 58.9, 58.9, 58.7, 58.5, 59.3],
        ("sbn_categorical", "binarized_mnist"): [73.1, 67.9, 63.0, 61.8, 61.1, 59.0, 59.7],
        ("vae_bernoulli", "binarized_mnist"): [112.2, 110.9, 109.7, 116.0, 111.5, 105.0, 111.5],
        ("vae_categorical", "binarized_mnist"): [110.6, 128.8, 107.0, 110.9, 107.8, 101.5, 107.8],
    },
    "concrete_figure4": {
        ("sbn_bernoulli_2_layers", "binarized_mnist"): [58.5, 61.4],
        ("sbn_bernoulli_3_layers", "binarized_mnist"): [56.3, 59.7],
    },
    "concrete_table1": {
        ("vae_bernoulli", "binarized_mnist"): [107.3, 104.4, 101.9, 98.8],
        ("vae_bernoulli", "omniglot"): [118.7, 115.7, 113.5, 113.0],
        ("vae_bernoulli_nonlinear", "binarized_mnist"): [92.1, 93.8, 91.4, 89.3],
        ("vae_bernoulli_nonlinear", "omniglot"): [108.4, 116.4, 118.2, 116.0],
        ("deep_vae_bernoulli", "binarized_mnist"): [102.1, 92.9],
        ("deep_vae_bernoulli", "omniglot"): [116.3, 109.2],
        ("deep_vae_bernoulli_nonlinear", "binarized_mnist"): [87.9, 88.4],
        ("deep_vae_bernoulli_nonlinear", "omniglot"): [105.9, 111.7],
    },
    "muprop_table3": {
        ("vae_bernoulli", "binarized_mnist"): [113.5, 113.6, 129.4, 112.4],
        ("deep_vae_bernoulli_2_layers", "binarized_mnist"): [99.7, 100.4, 119.9, 103.5],
        ("deep_vae_bernoulli_3_layers", "binarized_mnist"): [97.5, 101.1, 116.7, 99.3],
        ("vae_categorical_200x10", "binarized_mnist"): [107.7, 108.6, 114.5, 120.5],
    },
    "arm_tables": {
        ("vae_bernoulli", "binarized_mnist"): [113.1, 113.0, 107.7, 113.6, 107.2],
        ("vae_bernoulli_nonlinear", "binarized_mnist"): [102.2, 99.1, 101.4, 119.2, 98.4],
        ("deep_vae_bernoulli", "binarized_mnist"): [99.8, 100.4, 95.4, 100.9, 96.7],
        ("vae_bernoulli", "omniglot"): [117.6, 117.6, 117.7, 122.1, 115.8],
        ("vae_bernoulli_nonlinear", "omniglot"): [116.6, 117.5, 118.0, 128.2, 117.6],
        ("deep_vae_bernoulli", "omniglot"): [111.4, 111.2, 110.8, 115.4, 109.8],
        ("sbn_bernoulli_thresholded", "mnist"): [57.9],
    },
    "muprop_table2": {
        ("sbn_bernoulli_2_layers", "mnist"): [63.2, 57.7, 56.1, 57.2],
        ("sbn_bernoulli_3_layers", "mnist"): [100.6, 62.7, 54.4, 55.8],
    },
    "gumbel_rao_table": {
        ("vae_bernoulli_batch_20", "binarized_mnist"): [98.2, 100.7, 105.5, 100.7, 100.6, 100.5, 202.6],
        ("vae_bernoulli_batch_200", "binarized_mnist"): [96.4, 97.1, 103.1, 97.4, 96.8, 97.0, 121.4],
        ("vae_categorical_4ary_batch_20", "binarized_mnist"): [95.7, 99.1, 106.2, 97.8, 97.5, 97.6, 173.7],
        ("vae_categorical_4ary_batch_200", "binarized_mnist"): [93.8, 93.7, 104.5, 93.8, 94.0, 93.5, 122.2],
        ("vae_categorical_8ary_batch_20", "binarized_mnist"): [95.5, 98.0, 107.2, 97.4, 96.8, 96.5, 203.9],
        ("vae_categorical_8ary_batch_200", "binarized_mnist"): [92.3, 92.8, 105.1, 93.1, 92.2, 92.5, 124.9],
        ("vae_categorical_16ary_batch_20", "binarized_mnist"): [96.8, 98.8, 108.2, 97.9, 97.3, 96.8, 169.4],
        ("vae_categorical_16ary_batch_200", "binarized_mnist"): [94.3, 92.6, 104.5, 92.4, 92.4, 92.2, 129.5],
    },
}
# The bounds of these are of the training images.
TRAIN = {
    "rebar_table1": {
        ("vae_bernoulli_linear_1", "binarized_mnist"): [111.7, 111.6, 112.5, 111.3],
        ("vae_bernoulli_linear_1", "omniglot"): [117.09, 116.63, 117.44, 117.23],
        ("deep_vae_bernoulli_linear_2", "binarized_mnist"): [99.07, 98.22, 99.6, 99.62],
        ("deep_vae_bernoulli_linear_2", "omniglot"): [109.55, 108.71, 109.98, 109.95],
        ("vae_bernoulli_nonlinear", "binarized_mnist"): [101.1, 81.01, 101.5, 102.2],
        ("vae_bernoulli_nonlinear", "omniglot"): [108.72, 56.76, 109.58, 110.4],
    },
    "relax_table1": {
        ("vae_bernoulli_linear_1", "binarized_mnist"): [111.6, 111.20],
        ("vae_bernoulli_linear_1", "omniglot"): [116.63, 116.57],
        ("deep_vae_bernoulli_linear_2", "binarized_mnist"): [98.22, 98.00],
        ("deep_vae_bernoulli_linear_2", "omniglot"): [108.71, 108.54],
        ("vae_bernoulli_nonlinear", "binarized_mnist"): [81.01, 78.13],
        ("vae_bernoulli_nonlinear", "omniglot"): [56.76, 56.12],
    },
}
NONE = {
    "disarm",
    "arms",
    "double_cv_gaussian",
    "kool_vae",
    "coupled",
    "carms",
    "double_cv",
    "reinmax_table_grey_targets",
}


SAMPLED = {
    *("arm_tables", "arms", "carms", "coupled", "disarm", "double_cv", "double_cv_gaussian", "gumbel_rao_table"),
    *("rebar_table1", "relax_table1", "every_estimator"),
}
"""Whose papers or code have log q - log p at the sample inside of the loss, and one of our own."""


def test_the_kl_is_where_the_papers_have_it():
    """All runs with a KL, but for those with Concrete densities; Kool's and ReinMax's code have it in closed form."""
    found = {}
    for name in NAMES:
        kls = {run.config["task"]["kl"] for run in runs_of(name, "full") if "kl" in run.config["task"]}
        found[name] = kls - {"relaxed"}
    assert {name for name, kls in found.items() if kls == {"sampled"}} == SAMPLED
    assert {name for name, kls in found.items() if kls == {"analytic"}} == {
        "kool_vae",
        "reinmax_table_grey_targets",
        "gradient_variance",
    }


def test_the_setting_of_rebars_code():
    """Weights, tied noise, and a baseline that depends on the input alone."""
    for run in runs_of("rebar_table1", "full"):
        assert run.config["task"]["initialisation"] == "variance_scaling"
        own = run.config["estimator"]
        assert own["name"] != "rebar" or own["tied"]
        if own["name"] == "nvil":
            assert own["input_dependent"] and not own["centring"] and not own["variance_normalisation"]


def test_the_curves_of_kool_stand_beside_validation():
    beside = {}
    for run in runs_of("kool_vae", "full"):
        config = flat_config(run.config)
        value = published(config["task"], config["data"], config["estimator"], config, split="valid")
        beside[config["estimator"], config.get("estimator.num_samples")] = value and value.value
    assert {key: beside[key] for key in beside if key[1] == key[1] and key[1]} == {
        ("unordered_set", 4): 91.3, ("unordered_set", 8): 91.2, ("rloo", 4): 89.8, ("rloo", 8): 90.8,
    }  # fmt: skip
    assert sorted(value for key, value in beside.items() if not (key[1] == key[1] and key[1])) == [90.5, 97.2, 158.6]


@pytest.mark.parametrize("name", [*PUBLISHED, *TRAIN, *sorted(NONE)])
def test_the_published_numbers_beside_an_experiment(name):
    """In the order of its runs, where they are those of the paper; none where the paper was not read."""
    beside = {}
    for run in runs_of(name, "full"):
        config = flat_config(run.config)
        cell = config["task"], config["data"]
        value = published(*cell, config["estimator"], config, split="train" if name in TRAIN else "test")
        if value and not validity.reason_to_skip(run.config):
            beside.setdefault(cell, {}).setdefault(config["estimator"], value.nats)
    assert {cell: list(values.values()) for cell, values in beside.items()} == (PUBLISHED | TRAIN).get(name, {})
