"""What a sweep varies: roles of columns come from the records, never from their names."""

from __future__ import annotations

import pytest
import yaml
from fake_runs import make_config, write_run

from analysis import records
from analysis.command import main, read
from analysis.records import load
from analysis.statistics.settings import COMPARED, TUNED, Uses, uses_of
from analysis.statistics.summary import final_rows, summarise
from training.config.identity import facts, run_name


@pytest.fixture
def sweep(tmp_path):
    return tmp_path / "runs" / "sweep"


def rows(frame):
    """``{label: (n, settings, setting)}`` of the summary."""
    summary = summarise(frame).set_index("label")
    return {label: (row["n"], row["settings"], row["setting"]) for label, row in summary.iterrows()}


def test_a_new_metric_is_no_setting_whatever_its_name(sweep):
    for seed in range(3):
        extra = {"gradient_norm": 1.0 + seed, "optimizer.temperature": float(seed), "task.difficulty": float(seed)}
        write_run(sweep, make_config(seed=seed), test=-100.0 - seed, row=lambda step, extra=extra: extra)
    frame = load(sweep)
    assert {frame.attrs["roles"][name] for name in extra} == {"metric"}
    assert rows(frame) == {"nvil": (3, 1, "")}


def test_what_trains_is_compared_and_numbers_of_the_optimiser_are_tuned(sweep):
    for latents in (20, 200):
        for lr in (0.1, 0.2):
            for seed in range(2):
                config = make_config(seed=seed, task__latents=latents, optimizer__lr=lr)
                write_run(sweep, config, test=-100.0 - lr, valid=-100.0 - lr)
    found = rows(load(sweep))
    assert found == {f"nvil, task.latents={latents}": (2, 2, "optimizer.lr=0.1") for latents in (20, 200)}
    tuned = rows(read(sweep, [], tune=["task.latents"]))
    assert tuned == {"nvil": (2, 4, "optimizer.lr=0.1, task.latents=20")}
    compared = rows(read(sweep, [], tune=["task"], compare=["optimizer.lr"]))
    assert set(compared) == {f"nvil, optimizer.lr={lr}" for lr in (0.1, 0.2)}


def test_steps_are_compared(sweep):
    for steps in (1000, 2000):
        for seed in range(2):
            config = make_config(seed=seed, steps=steps)
            write_run(sweep / str(steps), config, test=-100.0 - steps / 1000)
    assert set(rows(load(sweep))) == {"nvil, steps=1000", "nvil, steps=2000"}


def test_words_are_compared(sweep):
    write_run(sweep, make_config(optimizer__name="adam"))
    write_run(sweep, make_config(optimizer__name="sgd"))
    assert set(rows(load(sweep))) == {"nvil, optimizer=adam", "nvil, optimizer=sgd"}


def test_a_run_says_how_its_sweep_is_read(sweep):
    for hidden in ([200], [200, 200]):
        write_run(sweep, make_config(task__hidden=hidden, tune=["task.hidden"]), valid=-100.0 - len(hidden))
    assert rows(load(sweep)) == {"nvil": (1, 2, "task.hidden=[200]")}
    assert len(rows(read(sweep, [], compare=["task.hidden"]))) == 2  # the command line has the last word


@pytest.mark.parametrize("name", ["task", "task.hidden"])
def test_both_at_once_is_refused_but_an_option_goes_before_its_group(name):
    with pytest.raises(ValueError, match=r"task.hidden cannot be both tuned and compared"):
        Uses({"task.hidden": "trains"}, tune=(name,), compare=(name,)).of("task.hidden", [1, 2])
    both = {"tune": ("task",), "compare": ("task.hidden",)}
    assert Uses({"task.hidden": "trains"}, **both).of("task.hidden", [1, 2]) == COMPARED
    swapped = Uses({"task.hidden": "trains"}, tune=both["compare"], compare=both["tune"])
    assert swapped.of("task.hidden", [1, 2]) == TUNED


def test_how_options_are_used_that_nobody_named():
    assert Uses({"x": "trains"}).of("x", [1, 2]) == COMPARED and Uses({"x": "watches"}).of("x", [1, 2]) is None
    assert Uses({"optimizer.lr": "trains"}).of("optimizer.lr", [1, 2.5]) == TUNED
    assert Uses({"optimizer.nesterov": "trains"}).of("optimizer.nesterov", [True, False]) == COMPARED


def test_the_command_says_what_was_tuned_and_compared(sweep, capsys):
    for latents in (20, 200):
        for lr in (0.1, 0.2):
            write_run(sweep, make_config(task__latents=latents, optimizer__lr=lr))
    assert main([str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert "Compared, each value in a row: task.latents." in printed
    assert "Tuned, the value chosen on validation: optimizer.lr." in printed
    assert main([str(sweep), "--tune", "task.nothing"]) == 2
    assert "task.nothing is none" in capsys.readouterr().err


@pytest.mark.parametrize("higher", [True, False])
def test_a_task_declares_by_what_it_is_compared(sweep, capsys, higher):
    """A task whose metric has another name is not failed, and its better direction wins."""
    for lr, score in ((0.1, 0.25), (0.2, 0.75)):
        for seed in range(2):
            config = make_config(task="parity", seed=seed, optimizer__lr=lr)
            record = records.RunRecord(sweep / run_name(config))
            primary = {"metric": "score", "higher_is_better": higher}
            assert record.claim.take()
            record.start(yaml.safe_dump(config), [], {**facts(config), "primary": primary})
            record.append({"step": 1000, "valid_score": score, "test_score": score + seed})
            record.finish({"status": "finished", "step": 1000, "protocol": {}})
            record.claim.release()
    runs = final_rows(load(sweep))
    assert set(runs["status"]) == {"finished"} and set(runs["metric"]) == {"score"}
    (row,) = summarise(load(sweep)).to_dict("records")
    assert row["setting"] == ("optimizer.lr=0.2" if higher else "optimizer.lr=0.1")
    assert main([str(sweep)]) == 0
    printed = capsys.readouterr().out
    shown = 1.25 if higher else 0.75
    assert f"{shown:.2f} ±" in printed and f"score on test; {'higher' if higher else 'lower'} is better" in printed


def test_records_of_older_code_load_and_say_what_cannot_be_told(sweep):
    """As the code before roles wrote them: no run.json; options are told by their names."""
    for seed in range(2):
        config = make_config(seed=seed, device=f"cuda:{seed}")
        record = records.RunRecord(sweep / f"nvil-vae_bernoulli-binarized_mnist-s{seed}-0123456789")
        assert record.claim.take()
        record.start(yaml.safe_dump(config), [])
        record.append({"step": 1000, "valid_bound": -1.0 - seed, "test_bound": -2.0 - seed})
        record.finish({"status": "finished", "step": 1000, "protocol": {"prior": "uniform"}, "config": config})
        record.claim.release()
    with pytest.warns(UserWarning, match="2 runs were recorded by older code"):
        frame = load(sweep)
    assert rows(frame) == {"nvil": (2, 1, "")} and uses_of(frame).roles["device"] == "places"
    assert len(frame.attrs["unmapped"]) == 1
