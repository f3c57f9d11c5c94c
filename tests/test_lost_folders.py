"""A run's folder that goes while it trains costs that run and no other; what cannot be read is not trained over."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from test_training import config, drop_times, rows, train, train_all

from analysis.records import METRICS, RESULT, RunRecord
from training.config.plan import RunPlan, replicated
from training.errors import UserError
from training.pack import run as pack_run
from training.pack.run import train_runs
from training.pack.watchers import UNCLAIMED, Evaluation
from training.sweep import run as sweep_run
from training.sweep.planning import make_plan


def during(monkeypatch, step, happens):
    """``happens(training)`` before the evaluation at ``step``."""
    look = Evaluation.look

    def looks(evaluation):
        if evaluation.training.pack.step == step:
            happens(evaluation.training)
        look(evaluation)

    monkeypatch.setattr(Evaluation, "look", looks)


def pack_of(tmp_path, count=3, **settings):
    return list(replicated(config(runs_dir=str(tmp_path), **settings) | {"replicas": count}))


@pytest.mark.parametrize("step", [20, 40])
def test_a_folder_that_is_deleted_fails_its_run_alone(tmp_path, monkeypatch, step):
    (alone,) = train(tmp_path / "alone")
    runs, events = pack_of(tmp_path / "pack"), []
    during(monkeypatch, step, lambda training: shutil.rmtree(runs[1].path))
    train_runs(runs, events.append)
    failed = [event for event in events if event["event"] == "run" and event["status"] == "failed"]
    assert [event["run"] for event in failed] == [runs[1].name]
    assert "its record cannot be written: No such file or directory" in failed[0]["error"]
    assert [run.record.outcome() for run in runs] == ["finished", None, "finished"] and not runs[1].path.exists()
    assert [row["step"] for row in rows(runs[0].path)] == [row["step"] for row in rows(alone)]
    with pytest.raises(UserError, match="1 of 3 runs failed"):
        sweep_run._summarise(runs, {event["run"]: event["error"] for event in failed})


def test_a_folder_that_cannot_be_begun_fails_its_run_alone(tmp_path):
    runs, events = pack_of(tmp_path, steps=20), []
    runs[0].path.mkdir(parents=True)
    (runs[0].path / ".hydra").touch()
    train_runs(runs, events.append)
    assert [run.record.outcome() for run in runs[1:]] == ["finished", "finished"]
    assert {event["run"] for event in events if event.get("status") == "failed"} == {runs[0].name}
    with pytest.raises(UserError, match=runs[0].name):
        train_all(runs[:1])


def test_a_claim_that_is_removed_is_named(tmp_path, monkeypatch):
    """The run is dropped, as if another process had it; since none has, the sweep does not end as if all were well."""
    lost = set()

    @contextlib.contextmanager
    def heartbeats(records):
        yield lost

    def removed(training):
        (training.records[0].path / "claim").unlink()
        lost.add(training.records[0])

    monkeypatch.setattr(pack_run, "_heartbeats", heartbeats)
    runs, events = pack_of(tmp_path, 2), []
    during(monkeypatch, 20, removed)
    train_runs(runs, events.append)
    assert [event["error"] for event in events if event.get("status") == "failed"] == [UNCLAIMED]
    assert runs[1].record.outcome() == "finished" and runs[0].record.status_word() == "running"
    with pytest.raises(UserError, match="1 of 2 runs failed .*running, and no process trains it"):
        sweep_run._summarise(runs, {})


def test_a_result_that_cannot_be_read_is_not_trained_over(tmp_path, capsys):
    (path,) = train(tmp_path, steps=20)
    before = list(map(drop_times, rows(path)))
    (path / RESULT).write_bytes(b"{")
    run = RunPlan(config(runs_dir=str(tmp_path), steps=20))
    plan = make_plan([run])
    assert plan.todo == 0 and not plan.damaged
    (reason,) = plan.skipped
    assert str(path / RESULT) in reason and "remove the file to train the run again" in reason
    with pytest.raises(UserError, match="left as it is, since it cannot be read"):
        sweep_run.run_sweep([run])
    with pytest.raises(UserError, match="not readable as JSON.*remove it to train the run again"):
        train_all([run])
    assert (path / RESULT).read_bytes() == b"{" and list(map(drop_times, rows(path))) == before
    (path / RESULT).unlink()
    train_all([run])
    assert RunRecord(path).outcome() == "finished" and list(map(drop_times, rows(path))) == before


def test_a_basket_file_that_cannot_be_read_starts_the_run_again(tmp_path):
    (path,) = train(tmp_path, steps=20)
    (path / RESULT).unlink()
    (path / "basket.jsonl").write_bytes(b"garbage\n\n")
    train(tmp_path, steps=20)
    assert RunRecord(path).outcome() == "finished" and not (path / "basket.jsonl").exists()
    assert len(rows(path)) == 1 and (path / METRICS).exists()
