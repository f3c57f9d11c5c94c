"""A run is what trains: longer, evaluated otherwise, with a basket added, it stays the same run."""

import dataclasses

import pytest
import torch
from fake_runs import seal_again
from test_basket_in_runs import FEW, TINY, repeatable
from test_training import config, drop_times, rows, train

from analysis import records
from analysis.records import legacy
from training.config import identity, schema
from training.config.compose import runs_of_command
from training.config.plan import RunPlan
from training.pack.build import build
from training.pack.pack import Pack
from training.sweep.planning import PASSED, make_plan

RUNS = ["estimator=gumbel_softmax", "estimator=nvil", "estimator=rebar", "estimator=nvil optimizer=sgd"]
RUNS += ["estimator=gumbel_softmax schedule=exponential schedule.rate=0.1 schedule.every=7"]


def result(path):
    return records.RunRecord(path).result()


def state(path):
    return torch.load(path / records.CHECKPOINT, weights_only=True)


def assert_same_state(one, two):
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one.keys() - {"seconds", "evaluation_seconds"}:
            assert_same_state(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        for each, other in zip(one, two, strict=True):
            assert_same_state(each, other)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


@pytest.mark.parametrize("first", [20, 23], ids=["at an evaluation", "between two"])
@pytest.mark.parametrize("options", RUNS)
def test_longer_is_as_if_it_had_been_so_long_from_the_start(tmp_path, options, first):
    overrides = options.split()
    (whole,) = train(tmp_path / "whole", *overrides, steps=40)
    (path,) = train(tmp_path / "on", *overrides, steps=first)
    shorter = result(path)
    (again,) = train(tmp_path / "on", *overrides, steps=40)
    assert again == path and path.name == whole.name
    assert "goes on at step" in (path / records.LOG).read_text()
    assert list(map(drop_times, rows(path))) == list(map(drop_times, rows(whole)))
    one, two = state(path), state(whole)
    assert_same_state({**one, "rows": 0, "along": None}, {**two, "rows": 0, "along": None})
    assert drop_times(one["along"]) == drop_times(two["along"])
    (older,) = records.format.older_results(path)
    assert result(older) == shorter and shorter["step"] == first
    frame = records.load(tmp_path / "on")
    last = frame.groupby("steps")["test_bound"].last().to_dict()
    assert last == {first: shorter["metrics"]["test_bound"], 40: result(whole)["metrics"]["test_bound"]}
    assert set(frame["status"]) == {"finished"} and frame.attrs["damaged"] == []


def test_another_evaluation_trains_nothing(tmp_path, monkeypatch):
    (path,) = train(tmp_path / "run", steps=20)
    (other,) = train(tmp_path / "other", steps=20, test_samples=7)
    before = result(path)
    with monkeypatch.context() as patch:
        patch.setattr(Pack, "train_step", lambda pack: pytest.fail("nothing is trained"))
        assert train(tmp_path / "run", steps=20, test_samples=7) == [path]
        assert train(tmp_path / "run", steps=20, test_samples=3) == [path]  # the older one answers
    now = result(path)
    assert drop_times(now["metrics"]) == drop_times(result(other)["metrics"])
    assert (before["evaluation"]["test_samples"], now["evaluation"]["test_samples"]) == (3, 7)
    assert [result(older) for older in records.format.older_results(path)] == [before]
    assert set(records.load(tmp_path / "run")["test_samples"]) == {7}
    assert set(records.load(tmp_path / "run", superseded=True)["test_samples"]) == {3, 7}


def test_a_basket_is_added_to_a_finished_run(tmp_path):
    (whole,) = train(tmp_path / "whole", *TINY, *FEW)
    (path,) = train(tmp_path / "added", *TINY[:2], steps=20, evaluate_every=10)
    before = {name: (path / name).read_bytes() for name in (records.METRICS, records.CHECKPOINT)}
    assert train(tmp_path / "added", *TINY, *FEW) == [path] and path.name == whole.name
    assert repeatable(path) == repeatable(whole) and len(repeatable(path)) == 36
    assert {name: (path / name).read_bytes() for name in before} == before
    assert result(path)["basket"] == result(whole)["basket"] and not records.format.older_results(path)
    stands = RunPlan(config(*TINY, *FEW, runs_dir=str(tmp_path / "added")))
    assert make_plan([stands]).todo == 0
    train(tmp_path / "added", *TINY[:2], steps=20, evaluate_every=10, test_samples=9)
    assert repeatable(path) == repeatable(whole)  # what was measured stays, though it is not asked for now


def test_longer_with_a_basket_that_was_added(tmp_path):
    """The points of a longer run are others: what is missing is measured by going the way again."""
    few = [*TINY, *FEW, "~basket.estimators.disarm", "~basket.estimators.reinforce"]
    (whole,) = train(tmp_path / "whole", *few, steps=24)
    train(tmp_path / "added", *TINY[:2], steps=20, evaluate_every=10)
    train(tmp_path / "added", *few, steps=20)
    (path,) = train(tmp_path / "added", *few, steps=24)
    assert "goes on at step 20" in (path / records.LOG).read_text()
    assert repeatable(path) == repeatable(whole)
    assert [row["step"] for row in rows(path)] == [10, 20, 24]


def test_a_sweep_over_steps_has_a_result_for_each(tmp_path):
    plans = [RunPlan(config(f"steps={steps}", runs_dir=str(tmp_path))) for steps in (30, 10, 20)]
    plan = make_plan(plans)
    assert [run.target.steps for pack in plan.packs for run in pack] == [10]
    assert [run.target.steps for run in plan.later] == [20, 30] and plan.todo == 3


def test_what_was_passed_is_said_and_left(tmp_path):
    (path,) = train(tmp_path, steps=40)
    before = (path / records.RESULT).read_bytes()
    plan = make_plan([RunPlan(config("steps=20", runs_dir=str(tmp_path)))])
    assert list(plan.skipped) == [PASSED] and plan.todo == 0
    train(tmp_path, steps=20)
    assert (path / records.RESULT).read_bytes() == before


def test_a_checkpoint_in_which_parameters_have_their_former_names(tmp_path):
    """Of one-layer VAEs ``encoder`` and ``decoder``, before they could have several layers."""
    (whole,), (path,) = train(tmp_path / "whole", steps=20), train(tmp_path / "on", steps=10)
    now = state(path)
    former = {name.replace("coders.0.", "coder."): value for name, value in now["tensors"].items()}
    assert "task.encoder.weight0" in former and former.keys() != now["tensors"].keys()
    torch.save({**now, "tensors": former}, path / records.CHECKPOINT)
    seal_again(path)
    assert train(tmp_path / "on", steps=20) == [path]
    assert "goes on at step 10" in (path / records.LOG).read_text()
    assert_same_state(state(path)["tensors"], state(whole)["tensors"])


def test_a_deep_vae_of_one_layer_has_the_protocol_of_a_vae():
    """Also where it was recorded in the words of several layers."""
    (several, one, plain) = (
        build([config(f"task={task}", f"task.layers={layers}")], torch.device("cpu")).task.protocol()
        for task, layers in (("deep_vae_bernoulli", 2), ("deep_vae_bernoulli", 1), ("vae_bernoulli", 1))
    )
    assert one == plain and legacy.protocol(several) == several and legacy.protocol(one) == one
    assert legacy.protocol({**several, "layers": 1}) == one


# --- roles and names -------------------------------------------------------------------------------------------------


def test_every_option_has_a_role():
    groups = ("estimator", "task", *schema.GROUPS)
    options = [field.name for field in dataclasses.fields(schema.Config) if field.name not in groups]
    options += [
        f"{group}.{field.name}"
        for group in groups
        for node in schema.nodes_of(group)
        for field in dataclasses.fields(node)
    ]
    assert len(options) > 100 and {identity.role(option) for option in options} == set(identity.ROLES)
    for field in dataclasses.fields(schema.Config):
        assert field.metadata["role"] in identity.ROLES, field.name


def test_an_option_that_is_added_later_renames_nothing(monkeypatch):
    before = config()

    @dataclasses.dataclass
    class Adam(schema.Adam):
        amsgrad: bool = schema.option(False, "trains", neutral=False)

    monkeypatch.setitem(schema.GROUPS, "optimizer", (Adam, schema.SGD))
    for cached in (schema.nodes_of, identity._metadata):
        cached.cache_clear()
    now, other = ({**before, "optimizer": {**before["optimizer"], "amsgrad": value}} for value in (False, True))
    names = [identity.run_name(each) for each in (before, now, other)]
    assert names[0] == names[1] != names[2]
    monkeypatch.undo()
    for cached in (schema.nodes_of, identity._metadata):
        cached.cache_clear()


NAMES = {
    "": "gumbel_softmax-vae_bernoulli-digits-s0-493695444a",
    "estimator=nvil task=vae_categorical data=mnist optimizer.lr=1e-3 seed=7": (
        "nvil-vae_categorical-mnist-s7-3bef240f1a"
    ),
    "estimator=rebar task.kl=sampled": "rebar-vae_bernoulli-digits-s0-06191e501f",
    "estimator=gapped_straight_through estimator.gap=p optimizer=sgd": (
        "gapped_straight_through-vae_bernoulli-digits-s0-bdc5f12ab7"
    ),
    "estimator=rloo task=deep_vae_bernoulli task.layers=3 data=omniglot": (
        "rloo-deep_vae_bernoulli-omniglot-s0-b36de5397a"
    ),
    "estimator=relax task=sbn_categorical data=binarized_mnist": "relax-sbn_categorical-binarized_mnist-s0-297bbe5298",
    "estimator=exact task=semi_supervised data=mnist": "exact-semi_supervised-mnist-s0-e72cf11567",
    "estimator=exact task=toy_simplex data=none": "exact-toy_simplex-none-s0-7f91ad889b",
    "estimator=gumbel_softmax schedule=exponential schedule.only=[gumbel_softmax] allow_tf32=true": (
        "gumbel_softmax-vae_bernoulli-digits-s0-e4d3fc11f4"
    ),
    "estimator=disarm task=vae_gaussian_pixels data.binarization=none batch_size=50": (
        "disarm-vae_gaussian_pixels-digits-s0-875bd51777"
    ),
}
"""Of recorded runs. A change here renames runs that cost hours: give a new option a ``neutral`` value instead."""


@pytest.mark.parametrize("options", NAMES)
def test_recorded_names_stay(options):
    asked = f"{options} steps=7 test_samples=3 evaluate_every=2 basket=default"
    (run,) = runs_of_command(f"python train.py -m {asked}")
    assert run.name == NAMES[options]
