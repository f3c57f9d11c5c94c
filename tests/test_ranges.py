"""Every number of the schema has a range, stated once: configs are checked against it, and constructors agree."""

import dataclasses
import math

import pytest
import torch

import estimators
from training.config import ranges, schema
from training.config.compose import runs_of_command
from training.errors import UserError

FREE = {"latents": 2, "categories": 2}
ESTIMATORS = {method: schema.schema_of(method, schema.FOR_ESTIMATORS) for method in estimators.METHODS}
NODES = [
    schema.Config,
    *(node for nodes in schema.GROUPS.values() for node in nodes),
    *ESTIMATORS.values(),
    *map(schema.schema_of, schema.TASKS.values()),
]
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_number_has_a_range_that_holds_its_default(node):
    for field in dataclasses.fields(node):
        limits = ranges.ranges_of(node).get(field.name)
        assert (limits is not None) == ("range" in field.metadata), field.name
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        for number in default if isinstance(default, list) else [default]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                assert number in limits, field.name


@pytest.mark.parametrize(
    ("text", "whole", "inside", "outside", "words"),
    [
        ("(0, inf)", False, [1e-30, 1, 3e38], [0.0, -1.0, INF, NAN, 1e-60, 1e39, 10**400], "positive and finite"),
        ("[0, inf)", False, [0.0, 1e-60, 5], [-1e-300, INF, NAN, 1e39], "at least 0 and finite"),
        ("[0, 1)", False, [0.0, 0.999], [1.0, -0.1, NAN, 1 - 1e-12], "in [0, 1)"),
        ("(0, 80.0]", False, [80.0, 1e-3], [0.0, 80.1, NAN], "in (0, 80]"),
        ("(-inf, inf)", False, [-1e30, 0.0], [INF, -INF, NAN, -1e39], "finite"),
        ("[1, inf)", True, [1, 2**63 - 1], [0, -1, 2**63, 10**400], "at least 1"),
        ("[0, 1]", True, [0, 1], [2, -1], "0 or 1"),
        ("[1, 4]", True, [1, 4], [0, 5], "from 1 to 4"),
    ],
)
def test_a_range_holds_what_its_interval_does_in_the_precision_that_is_used(text, whole, inside, outside, words):
    limits = ranges.Range.of(text, whole)
    assert all(value in limits for value in inside) and not any(value in limits for value in outside)
    assert str(limits) == words


@pytest.mark.parametrize("text", ["0, 1", "[1, 0]", "{0, 1}"])
def test_what_is_no_interval_is_an_error(text):
    with pytest.raises(ValueError, match="interval|convert"):
        ranges.Range.of(text, whole=True)


def outside(limits):
    """Values just outside of a range, and no numbers."""
    found = [limits.low - (1 if limits.whole else 1e-3 * limits.with_low)] if limits.low > -INF else []
    found += [limits.high + (1 if limits.whole else 1e-3 * limits.with_high)] if limits.high < INF else []
    return [int(value) for value in found] if limits.whole else [*found, INF, -INF, NAN]


@pytest.mark.parametrize("method", ESTIMATORS, ids=lambda method: method.__name__)
def test_constructors_refuse_what_the_schema_refuses(method):
    needed = FREE if method is estimators.RELAX else {}
    for name, limits in ranges.ranges_of(ESTIMATORS[method]).items():
        for value in outside(limits):
            with pytest.raises(ValueError, match=name):
                method(**needed, **{name: value})


@pytest.fixture(scope="module")
def configs():
    """A config for each schema of a group, and the group."""
    commands = {
        "adam": ("optimizer", "optimizer=adam"),
        "sgd": ("optimizer", "optimizer=sgd"),
        "exponential": ("schedule", "schedule=exponential"),
        "basket": ("basket", "basket=default"),
        "slurm": ("cluster", "cluster=slurm"),
        "data": ("data", ""),
        "task": ("task", "task=deep_vae_bernoulli"),
        "semi_supervised": ("task", "task=semi_supervised"),
        "estimator": ("estimator", "estimator=relax"),
        "config": ("", ""),
    }
    return [(group, runs_of_command(f"python train.py -m {options}")[0].config) for group, options in commands.values()]


def test_each_number_outside_of_its_range_is_refused_by_its_key_and_range(configs):
    tried = 0
    for group, config in configs:
        ranges.check(config)
        node = config[group] if group else config
        kind = ranges._schema(group, group, node) if group else schema.Config
        for name, limits in ranges.ranges_of(kind).items():
            for value in outside(limits):
                changed = {**node, name: [value] if isinstance(node[name], list) else value}
                with pytest.raises(UserError) as error:
                    ranges.check({**config, group: changed} if group else changed)
                key = f"{group}.{name}" if group else name
                assert str(error.value).startswith(f"{key} must be ") and str(limits) in str(error.value)
                tried += 1
    assert tried > 80


def test_numbers_inside_of_a_basket_are_checked_too(configs):
    ((_, config),) = [(group, config) for group, config in configs if group == "basket"]
    basket = config["basket"]
    for place, changed in (
        ("basket.estimators.nvil.decay", {"estimators": {"nvil": {**basket["estimators"]["nvil"], "decay": 2.0}}}),
        ("basket.reference.foo", {"reference": {**basket["reference"], "foo": 1}}),
    ):
        with pytest.raises(UserError, match=place):
            ranges.check({**config, "basket": {**basket, **changed}})


class Scaled(estimators.REINFORCE):
    """An estimator from elsewhere: a number without a range, one with, and whatever else."""

    def __init__(self, gain: float, size: "schema.Annotated[int, ('range', '[3, 5]')]" = 4, **rest: object) -> None:
        super().__init__()


def test_an_estimator_from_elsewhere_states_its_ranges_or_has_finite_numbers():
    found = ranges.ranges_of(schema.schema_of(Scaled, schema.FOR_ESTIMATORS))
    assert {name: str(limits) for name, limits in found.items()} == {"gain": "finite", "size": "from 3 to 5"}
    (run,) = runs_of_command("python train.py -m")
    own = {"name": "scaled", "_target_": f"{__name__}.Scaled", "gain": 1.0, "other": 3}
    ranges.check({**run.config, "estimator": own})
    for changed, words in (
        ({"gain": NAN}, "gain must be finite"),
        ({"size": 6}, "from 3 to 5"),
        ({"gain": "???"}, "no v"),
    ):
        with pytest.raises(UserError, match=words):
            ranges.check({**run.config, "estimator": {**own, **changed}})


def test_a_record_from_before_an_option_is_not_refused():
    (run,) = runs_of_command("python train.py -m")
    ranges.check({key: value for key, value in run.config.items() if key not in ("basket", "cluster", "retries")})


def test_a_run_that_cannot_fit_into_memory_is_refused_before_it_is_allocated(monkeypatch):
    """The least that it takes: four copies of the weights (two layers, 64 x 1000 each) in single precision."""
    from training.pack import memory

    (run,) = runs_of_command("python train.py -m task.latents=1000")
    weights = 4 * 4 * 2 * 64 * 1000
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1.01 * weights)
    memory.rehearse(run.config)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0.99 * weights)
    with pytest.raises(UserError, match=r"takes at least 0.00191 GiB .* shape \[1, 1, 1000, 64\], and 0.00189 GiB"):
        memory.rehearse(run.config)
    monkeypatch.undo()
    for options in (
        "task.latents=1000000000",
        "task.hidden=[1000000000]",
        "estimator=rloo estimator.num_samples=10**9",
    ):
        (run,) = runs_of_command(f"python train.py -m {options.replace('10**9', str(10**9))}")
        with pytest.raises(UserError, match="take.? at least .* GiB .* are free"):
            memory.rehearse(run.config)
    assert torch.get_default_device().type == "cpu"
