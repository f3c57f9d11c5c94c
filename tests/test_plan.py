"""From overrides to runs to packs: as Hydra composes them, each once, packed by structure; what is over is skipped."""

import math
import random

import pytest
import torch
import yaml
from configs import config
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from test_cli import call

from analysis import records
from training.config import identity, schema
from training.config.compose import _Composer, runs_of
from training.config.plan import RunPlan, packs_of, structure
from training.errors import UserError
from training.pack.build import build
from training.sweep import planning

CPU = torch.device("cpu")
SMALL = ["task.latents=4", "steps=4", "evaluate_every=4", "valid_samples=1", "test_samples=1", "progress=false"]


@pytest.fixture(scope="module")
def composer():
    """``runs(*arguments)`` of a multirun, where what was composed is kept, and Hydra's own config of a job."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        hydra: Hydra = GlobalHydra.instance().hydra
        master = hydra.compose_config("config", [], run_mode=RunMode.MULTIRUN)

        kept = _Composer(master, hydra.config_loader)

        def runs(*arguments, compose=kept):
            return runs_of([*SMALL, *arguments], master, hydra.config_loader, compose)

        def composed(*overrides):
            config = hydra.config_loader.load_sweep_config(master, [*SMALL, *overrides])
            OmegaConf.set_struct(config, False)
            del config["hydra"]
            return OmegaConf.to_container(config, resolve=True)

        yield runs, composed


SWEEPS = [
    ["seed=3,5", "optimizer.lr=1,2e-3", "estimator=nvil,reinmax"],
    ["optimizer=adam,sgd", "optimizer.lr=1e-2,0.1"],
    ["schedule=exponential", "schedule.only=[gumbel_softmax],[]", "schedule.rate=0,1"],
    ["task=vae_bernoulli,vae_categorical", "task.hidden=[8],[8,4]", "task.prior=learned,uniform"],
    ["estimator=gapped_straight_through", "estimator.temperature=1,0.5", "seed=range(3)"],
    ["+experiment=mnist_small", "steps=7,9", "seed=1"],
    ["data=digits,mnist", "data.binarization=static", "task.latents=3,4", "optimizer.weight_decay=0.0,0.1"],
    ["estimator=nvil", "++estimator.variance_normalisation=true,false"],
    ["task.prior_temperature=null,0.5", "task.kl=relaxed"],
    ["steps=${batch_size}", "batch_size=3,4"],
    ["estimator=nvil,rloo,reinmax", "task=vae_bernoulli,sbn_categorical", "optimizer=sgd,adam", "seed=1,2"],
    ["~basket.estimators.arm", "basket=default", "task.hidden=[8],[]", "data=digits,mnist", "task=vae_cosine"],
]


@pytest.mark.parametrize("arguments", SWEEPS, ids=lambda a: a[0])
def test_runs_have_the_configs_that_hydra_composes(composer, arguments):
    """Setting values in one composed config is the same as composing each; a run per element of the product."""
    runs_of_sweep, composed = composer
    choices = []
    for override in OverridesParser.create().parse_overrides(arguments):
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line])
    jobs = [[]]
    for choice in choices:
        jobs = [[*job, value] for job in jobs for value in choice]
    expected = [composed(*job) for job in jobs]
    got = runs_of_sweep(*arguments)
    seeds = [config["seed"] + r for config in expected for r in range(config["replicas"])]
    assert [run.config["seed"] for run in got] == seeds
    by_key = {run.key: run for run in got}
    for each in expected:
        run = by_key[RunPlan(each | {"replicas": 1}).key]
        assert run.config == each | {"replicas": 1}


def test_options_of_different_groups_are_composed_together(composer, monkeypatch):
    """One config for each option, not for each combination of them or for each value."""
    composed = []
    load = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda *own: composed.append(own) or load(*own))
    grid = [
        "estimator=nvil,rloo,reinmax,darn",
        "task=vae_bernoulli,sbn_bernoulli,vae_categorical",
        "optimizer=sgd,adam",
    ]
    assert len(composer[0](*grid, "optimizer.lr=0.1,0.2", compose=None)) == 48 and len(composed) == 7


def test_an_option_that_changes_another_group_is_left_to_hydra(composer, monkeypatch):
    """As a user's own file may, in the package of the whole config: here the second of three tasks."""
    load = ConfigLoaderImpl.load_sweep_config

    def loaded(self, master, overrides):
        config = load(self, master, overrides)
        if "task=vae_categorical" in overrides:
            config.optimizer.lr = 0.5
        return config

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", loaded)
    grid = ["task=vae_bernoulli,vae_categorical,sbn_bernoulli", "estimator=nvil,rloo", "batch_size=3,4"]
    runs = composer[0](*grid, compose=None)
    rates = [(run.config["task"]["name"], run.config["optimizer"]["lr"] == 0.5) for run in runs]
    assert rates == [(name, name == "vae_categorical") for name, _ in rates] and len(runs) == 12
    assert [run.config["batch_size"] for run in runs] == [3, 4] * 6


@pytest.mark.parametrize("wrong", ["stepz=[1]", "stepz=1", "task.wrong=[1]", "task.wrong=1", "estimator=wrong"])
def test_an_unknown_option_is_refused_however_much_is_composed_already(wrong):
    config("estimator=nvil")
    with pytest.raises(HydraException):
        config("estimator=nvil", wrong)


def test_replicas_are_seeds_and_a_run_stands_once(composer):
    runs, _ = composer
    assert [run.config["seed"] for run in runs("replicas=3", "seed=4,5")] == [4, 5, 6, 7]
    lines = runs("replicas=2", "estimator=nvil")[1].overrides
    assert "seed=1" in lines and "estimator=nvil" in lines and not any(line.startswith("replicas") for line in lines)


def test_what_differs_in_numbers_is_one_pack(composer):
    """The packs of a sweep over seeds, rates and temperatures can be built: one structure for all of them."""
    runs, _ = composer
    grid = ["seed=range(3)", "optimizer.lr=1e-3,3e-4", "estimator.temperature=0.5,1", "schedule=exponential"]
    all_runs = runs(*grid, "schedule.rate=0.0,0.1", "optimizer.beta1=0.9,0.5", "task=vae_bernoulli,vae_categorical")
    packs = packs_of(all_runs, workers=1, largest=1000)
    assert [len(pack) for pack in packs] == [48, 48]
    for pack in packs:
        assert len({run.config["task"]["name"] for run in pack}) == 1
        built = build([run.config for run in pack], CPU)
        assert built.train_step().isfinite().all()
    apart = runs("steps=4,5") + runs("batch_size=7") + runs("task.hidden=[3]") + runs("estimator=nvil")
    assert len(packs_of(apart, workers=1, largest=1000)) == 5


@pytest.mark.parametrize("seed", range(20))
def test_packs_hold_every_run_once_and_keep_workers_busy(composer, seed):
    chance = random.Random(seed)
    seeds = f"seed=range({chance.randint(1, 30)})"
    all_runs = composer[0](seeds, "estimator=nvil,reinmax,rloo"[: chance.choice([14, 22, 27])])
    workers, largest = chance.randint(1, 6), chance.randint(1, 12)
    packs = packs_of(all_runs, workers, largest)
    assert sorted(run.name for pack in packs for run in pack) == sorted(run.name for run in all_runs)
    assert all(1 <= len(pack) <= largest and len({structure(run.config) for run in pack}) == 1 for pack in packs)
    assert len(packs) >= min(workers, len(all_runs))
    assert [len(pack) for pack in packs] == sorted(map(len, packs), reverse=True)
    groups = {structure(run.config): 0 for run in all_runs}
    for run in all_runs:
        groups[structure(run.config)] += 1
    assert len(packs) <= max(workers, sum(math.ceil(size / largest) for size in groups.values()))


def test_sixty_runs_are_two_packs_of_thirty(composer):
    all_runs = composer[0]("estimator=reinmax,nvil", "seed=range(10)", "optimizer.lr=1e-4,3e-4,1e-3")
    assert [len(pack) for pack in packs_of(all_runs, workers=2, largest=32)] == [30, 30]


def test_a_plan_says_what_is_done_skipped_and_left(composer, tmp_path):
    def runs(*arguments):
        return composer[0](f"runs_dir={tmp_path}", "device=cpu", "workers=1", *arguments)

    def finish(run, status="finished"):
        record = run.record
        assert record.claim.take()
        record.start(yaml.safe_dump(run.config), [], identity.facts(run.config))
        record.append({"step": run.target.steps})
        record.finish({"status": status, "step": run.target.steps, "evaluation": run.target.evaluation})
        record.claim.release()
        return record

    grid = ["estimator=arm,nvil", "task=vae_bernoulli,vae_categorical", "seed=range(3)"]
    first = runs(*grid)
    (done, diverged, failed), busy = first[:3], first[-1]
    finish(done)
    finish(diverged, "diverged")
    failed.path.mkdir(parents=True)
    failed.record.status("failed", error="bad luck")
    assert busy.record.claim.take()
    plan = planning.make_plan(first)
    assert dict(plan.done) == {"finished": 1, "diverged": 1} and plan.todo == 12 - 2 - 3 - 1
    reasons = {reason.split(",")[0]: len(runs) for reason, runs in plan.skipped.items()}
    assert reasons == {"is defined for Bernoulli latents": 3, "being trained by another process": 1}
    assert "12 runs: 6 to do in 3 packs, 1 diverged, 1 finished" in plan.lines()
    more = planning.make_plan(runs(*grid[:2], "seed=range(5)"))
    assert more.todo == 6 + 6
    again = planning.make_plan(runs(*grid, "retry=failed"))
    assert [run.name for pack in again.packs for run in pack] == [failed.name]
    anew = planning.make_plan(runs(*grid, "retry=diverged"), take_back=True)
    assert [run.name for pack in anew.packs for run in pack] == [diverged.name]
    assert diverged.record.outcome() is None and done.record.outcome() == "finished"
    with pytest.raises(UserError, match="retry must be failed, diverged or changed"):
        planning.make_plan(runs("retry=everything"))


@pytest.mark.parametrize("file", [records.RESULT, records.METRICS, records.CONFIG])
@pytest.mark.parametrize("content", [None, b"", b"garbage \x00\xff", "half", "one digit"])
def test_a_damaged_record_is_named_and_its_run_redone_or_left(composer, tmp_path, file, content):
    (run,) = composer[0](f"runs_dir={tmp_path}", "device=cpu", "workers=1")
    record = run.record
    record.claim.take()
    record.start(yaml.safe_dump(run.config), [], identity.facts(run.config))
    record.append({"step": run.target.steps})
    record.finish({"status": "finished", "step": run.target.steps, "evaluation": run.target.evaluation})
    assert planning.make_plan([run]).todo == 0
    whole = (run.path / file).read_bytes()
    if content is None:
        (run.path / file).unlink()
    else:
        edited = {
            "half": whole[: len(whole) // 2],
            "one digit": whole.replace(b"4", b"40" if b"step" in whole else b"5"),
        }
        (run.path / file).write_bytes(edited.get(content, content))
    record.claim.release()
    plan = planning.make_plan([run])
    if file == records.RESULT and content not in (None, "one digit"):  # nobody knows what it was
        assert plan.todo == 0 and any(planning.UNREADABLE in line and str(run.path) in line for line in plan.lines())
        return
    assert plan.todo == 1 and not plan.done
    if (file, content) != (records.RESULT, None):
        named = run.path if file == records.RESULT else run.path / file
        assert any(str(named) in line and "redone" in line for line in plan.lines())


def test_an_option_of_one_estimator_is_its_alone_in_a_sweep(composer):
    """The others are as if it were not there; it overrules the option of all, wherever they stand; it makes a grid."""
    runs, _ = composer
    both, general = "estimator=nvil,reinmax", "estimator.temperature=0.5"
    own = ["estimator.nvil.decay=0.5", "estimator.reinmax.temperature=1,2"]
    alone = runs("estimator=nvil", "estimator.decay=0.5") + runs("estimator=reinmax", "estimator.temperature=1,2")
    for arguments in ([both, *own], [*own, both], [own[1], own[0], both]):
        found = runs(*arguments)
        assert [run.name for run in found] == [run.name for run in alone]
        assert [run.config for run in found] == [run.config for run in alone]
    assert [set(run.overrides) - {*SMALL, "seed=0"} for run in found] == [
        {"estimator=nvil", "estimator.decay=0.5"},
        {"estimator=reinmax", "estimator.temperature=1"},
        {"estimator=reinmax", "estimator.temperature=2"},
    ]
    (overruled,) = runs("estimator.reinmax.temperature=2", "estimator=reinmax", general)
    assert overruled.name == alone[2].name
    shared = runs("estimator=nvil,rloo", "estimator.nvil.decay=0.5,0.9", "estimator.rloo.num_samples=3", "seed=0,1")
    assert len(shared) == 6 and len({run.name for run in shared}) == 6


def test_an_option_of_one_task_or_optimiser_is_its_alone(composer):
    runs, _ = composer
    tasks = runs("task=vae_bernoulli,sbn_bernoulli", "task.sbn_bernoulli.latents=3", "task.vae_bernoulli.hidden=[8]")
    assert [(run.config["task"]["latents"], run.config["task"].get("hidden")) for run in tasks] == [(4, [8]), (3, None)]
    optimisers = runs("optimizer=adam,sgd", "optimizer.lr=0.1", "optimizer.sgd.momentum=0,0.5", "optimizer.sgd.lr=1")
    assert [(run.config["optimizer"]["lr"], run.config["optimizer"].get("momentum")) for run in optimisers] == [
        *((0.1, None), (1.0, 0.0), (1.0, 0.5))
    ]


ODD = ["a b", "a,b", "a/b", "ü/日本", "x" * 300, "$(rm -rf)", "a=b", "'", '"', "{", "..", "#", "a\\b"]


@pytest.mark.parametrize("value", ODD)
def test_odd_values_become_one_run_with_a_sane_name(composer, tmp_path, value):
    """As a word of the estimator's config, which enters the run's name; slashes stay out of paths."""
    quoted = "'" + value.replace("'", "\\'") + "'"
    (run,) = composer[0](f"runs_dir={tmp_path}", f"estimator.name={quoted}")
    assert run.config["estimator"]["name"] == value
    assert run.path.parent == tmp_path / "main" and len(run.path.name) < 160 and run.path.name.isascii()
    run.path.mkdir(parents=True)
    run.record.start(yaml.safe_dump(run.config), list(run.overrides), identity.facts(run.config))
    assert yaml.safe_load((run.path / records.OVERRIDES).read_text()) == list(run.overrides)
    frame = records.load(tmp_path)
    assert frame["estimator"].tolist() == [value]


@pytest.mark.parametrize("name", ["a/b", "..", ".", "x" * 300, "''"])
def test_a_sweep_names_one_folder(composer, name):
    with pytest.raises(UserError, match="names a folder"):
        composer[0](f"sweep={name}")


def test_mistakes_in_a_sweep_are_one_sentence_before_anything_trains(monkeypatch, tmp_path):
    for arguments, words in (
        (["optimizer.lr=1e-3,0"], "optimizer.lr must be positive"),
        (["steps=4,many"], "many"),
        (["steps=4,0"], "steps must be at least 1, not 0"),
        (["source=jang"], "source=jang has no published numbers here: use jang2017, "),
        (["estimator.temprature=1,2"], "temprature"),
        (["estimator=nvil,nvli"], "nvli"),
        (["seed=interval(0,1)"], "interval"),
        (["workers=-1"], "workers must be"),
        (["pack_size=-1"], "pack_size must be"),
        (["sweep=a/b"], "names a folder"),
    ):
        code = call(monkeypatch, "-m", *SMALL, *arguments, f"runs_dir={tmp_path}")
        assert isinstance(code, str) and code.startswith("error: ") and words in code and "\n" not in code, code
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing_and_estimates(monkeypatch, tmp_path, capsys):
    arguments = ["-m", *SMALL, "seed=range(4)", "estimator=nvil,arm", "task=vae_bernoulli,vae_categorical"]
    assert call(monkeypatch, *arguments, "dry_run=true", "workers=1", f"runs_dir={tmp_path}") is None
    out = capsys.readouterr().out
    assert "16 runs: 12 to do in 3 packs, none finished" in out and "4 runs skipped: arm: is defined for" in out
    assert out.count("pack ") == 3 and "MiB" in out and "with 1 workers" in out
    assert not list(tmp_path.iterdir())
