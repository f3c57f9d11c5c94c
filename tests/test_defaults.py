"""A record that is older than an option ran as the option's default goes: it is no other setting, and no other run."""

import copy
import json

import numpy as np
import pytest
from fake_runs import make_config, seal_again, write_run
from test_training import config, train

from analysis import records
from analysis.command import main
from analysis.defaults import FILE, complete
from analysis.papers import reference
from analysis.statistics.summary import final_rows, ranked, summarise
from training.config import defaults
from training.config.identity import run_name
from training.gradients import basket


def test_the_file_has_the_defaults_of_the_schema():
    assert FILE.read_text() == defaults.text(), "python -m training.config.defaults writes it anew"
    known = defaults.defaults()
    assert known["classes"]["estimators.NVIL"]["decay"] == 0.8
    assert known["names"]["optimizer"]["adam"]["beta1"] == 0.9 and "beta1" not in known["names"]["optimizer"]["sgd"]
    assert known["config"]["allow_tf32"] is False and known["config"]["basket"] == {"name": "none"}


def leaves(node, at=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key)


@pytest.mark.parametrize(
    "overrides",
    [
        ["estimator=nvil"],
        ["estimator=gumbel_softmax", "schedule=exponential", "optimizer=sgd", "task=vae_categorical"],
        ["estimator=rebar", "task=deep_vae_bernoulli", "data=mnist"],
        ["estimator=relax", "task=sbn_categorical", "data=omniglot"],
        ["estimator=exact", "task=toy_simplex", "data=none"],
    ],
)
def test_whatever_a_record_lacks_its_config_is_that_of_the_defaults(overrides):
    """Each option on its own, and all that are at their schema's defaults at once."""
    job = json.loads(json.dumps(config(*overrides)))
    without = copy.deepcopy(job)
    count = 0
    for path in leaves(job):
        lacking = copy.deepcopy(job)
        for changed in (lacking, without):
            node = changed
            for key in path[:-1]:
                node = node[key]
            value = node.pop(path[-1])
            if complete(changed) != job:  # the option file or the command line says something else, or it is required
                node[path[-1]] = value
        count += lacking != job
    assert complete(without) == job and run_name(complete(without)) == run_name(job)
    assert count > 20
    assert "seed" not in without and "estimator" in without


def test_an_option_that_another_choice_does_not_have_stays_missing():
    sgd = complete(make_config(optimizer={"name": "sgd", "lr": 0.1}))
    assert sgd["optimizer"] == {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    mine = {"name": "nvil", "_target_": "mine.NVIL", "lr": 1.0}
    assert complete(make_config() | {"estimator": mine})["estimator"] == mine


@pytest.mark.parametrize(
    ("option", "default", "other", "use"),
    [
        ("estimator__decay", 0.8, 0.5, "tuned"),
        ("task__likelihood", "bernoulli", "gaussian", "compared"),
        ("optimizer__beta1", 0.9, 0.5, "tuned"),
        ("data__train_evaluated", 10_000, 5, ""),
        ("allow_tf32", False, True, "compared"),
    ],
)
def test_runs_of_older_code_are_of_the_same_setting(tmp_path, option, default, other, use):
    """Five seeds without the option and five with it are ten seeds of one setting; with another value there are two."""
    sweeps = tmp_path / "same", tmp_path / "two"
    for sweep, value in zip(sweeps, (default, other), strict=True):
        for seed in range(10):
            own = {option: value} if seed >= 5 else {}
            write_run(sweep, make_config(seed=seed, **own), test=-100.0 - seed, valid=-90.0)
    same, two = (summarise(records.load(sweep)) for sweep in sweeps)
    assert same[["n", "settings", "setting", "variant"]].to_numpy().tolist() == [[10, 1, "", ""]]
    assert same["mean"].item() == pytest.approx(104.5)
    texts = {f"{option.replace('__', '.')}={json.dumps(value).strip(chr(34))}" for value in (default, other)}
    runs = ranked(final_rows(records.load(sweeps[1])))
    assert set(runs["setting"]) == (texts if use == "tuned" else {""})
    assert set(runs["variant"]) == (texts if use == "compared" else {""})
    assert (
        two[["n", "settings"]].to_numpy().tolist() == {"tuned": [[5, 2]], "compared": [[5, 1]] * 2, "": [[10, 1]]}[use]
    )


def test_a_run_that_older_code_recorded_too_counts_once(tmp_path):
    """The same five seeds twice are five, not ten: the interval would be too narrow."""
    for seed in range(5):
        write_run(tmp_path / "main", make_config(seed=seed), test=-100.0 - seed)
        write_run(tmp_path / "main", make_config(seed=seed, estimator__decay=0.8), test=-100.0 - seed)
    frame = records.load(tmp_path / "main")
    assert frame["path"].nunique() == 10 and len(final_rows(frame)) == 5
    row = summarise(frame).iloc[0]
    half = 2.7764451051977987 * np.std(range(5), ddof=1) / np.sqrt(5)  # Student's t with 4 degrees of freedom
    assert row["n"] == 5 and row["high"] - row["mean"] == pytest.approx(half)


def test_the_command_says_so(tmp_path, capsys):
    write_run(tmp_path / "main", make_config())
    write_run(tmp_path / "main", make_config(estimator__decay=0.8))
    assert main([str(tmp_path / "main"), "--where", "estimator.decay=0.8"]) == 0
    assert "1 runs were recorded more than once and count once" in capsys.readouterr().out


def test_a_reference_that_is_older_than_an_option(tmp_path):
    """It stands beside runs with the option's default, and not beside others."""
    for seed in range(3):
        write_run(tmp_path / "old", make_config(seed=seed))
        write_run(tmp_path / "default", make_config("rloo", seed=seed, task__likelihood="bernoulli"))
    reference.write(records.load(tmp_path / "old"), tmp_path)
    content = json.loads((tmp_path / reference.FILE).read_text())
    for entry in content["entries"]:
        del entry["config"]["task.likelihood"]
    del content[reference.SEAL]  # as old code wrote it
    (tmp_path / reference.FILE).write_text(json.dumps(content))
    entries = reference.read(tmp_path)
    both, sentences = reference.with_references(final_rows(records.load(tmp_path / "default")), entries)
    assert len(both) == 6 and not sentences
    frame = records.load(tmp_path / "default")
    frame["task.likelihood"] = "gaussian"
    both, sentences = reference.with_references(final_rows(frame), entries)
    assert len(both) == 3 and "task.likelihood bernoulli (here gaussian)" in sentences[0]


def test_an_older_run_can_be_measured(tmp_path):
    """A run whose config lacks options is built with their defaults."""
    import torch
    import yaml

    (run,) = train(tmp_path, "estimator=nvil", "task.latents=2")
    job = yaml.safe_load((run / records.CONFIG).read_text())
    del job["estimator"]["decay"], job["task"]["likelihood"], job["basket"], job["allow_tf32"]
    (run / records.CONFIG).write_text(yaml.safe_dump(job))
    seal_again(run)
    assert basket.load_run(run, torch.device("cpu")).configs[0]["estimator"]["decay"] == 0.8
