"""Seals: an edit of what a result stands on is named by whoever reads it, and a resume notices an edited row."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from fake_runs import make_config, write_run
from test_training import config, drop_times, rows, train, train_all

from analysis import records
from analysis.records import BASKET, CHECKPOINT, CONFIG, FACTS, IMAGES, METRICS, RESULT, RunRecord, collect, load, seals
from training import status
from training.config.plan import RunPlan
from training.errors import UserError
from training.gradients import basket
from training.pack import checkpoints
from training.pack.watchers import Evaluation
from training.sweep.planning import make_plan

EDITS = {
    METRICS: lambda text: text.replace(b"-104", b"-103"),  # the same size
    RESULT: lambda text: text.replace(b'"status": "finished"', b'"status": "diverged"'),
    str(CONFIG): lambda text: text.replace(b"lr: 0.001", b"lr: 0.002"),
    FACTS: lambda text: text.replace(b'"optimizer.lr": 0.001', b'"optimizer.lr": 0.002'),
}


def edit(file, change):
    """Change a file and set its times back, as ``touch -r`` does."""
    before, content = file.stat(), file.read_bytes()
    assert change(content) != content
    file.write_bytes(change(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_named(tmp_path, name, monkeypatch):
    monkeypatch.setattr(collect, "WORTH", 0)
    monkeypatch.setattr(collect, "SETTLED", -3600.0)
    path = write_run(tmp_path / "sweep")
    write_run(tmp_path / "sweep", make_config(seed=1))
    assert len(load(tmp_path)) == 8 and (tmp_path / "sweep" / collect.FILE).exists()
    edit(path / name, EDITS[name])
    with pytest.warns(UserWarning, match=f"{name}: was changed after the run"):
        assert set(load(tmp_path)["seed"]) == {1}
    assert "1 finished, 1 damaged" in (text := status.report(tmp_path)) and f"{path / name}: was changed" in text


def test_the_layout_of_a_result_is_not_its_content(tmp_path):
    path = write_run(tmp_path / "sweep")
    result = json.loads((path / RESULT).read_bytes())
    (path / RESULT).write_text(json.dumps(dict(reversed(result.items()))))
    assert RunRecord(path).result() == result


def test_what_lies_beside_is_checked_where_it_is_read(tmp_path):
    path = write_run(tmp_path / "sweep", images=True)
    edit(path / IMAGES, lambda content: content[:-1] + b"!")
    assert [str(each) for each in RunRecord(path).differences()] == [f"{path / IMAGES}: was changed after the run"]
    (path / IMAGES).unlink()
    assert RunRecord(path).differences() == []
    (path / CHECKPOINT).write_bytes(b"another's")
    assert [str(each) for each in RunRecord(path).differences()] == [f"{path / CHECKPOINT}: was added after the run"]


def test_a_result_that_older_code_sealed_by_size(tmp_path):
    path = write_run(tmp_path / "sweep")
    result = json.loads((path / RESULT).read_bytes())
    result["seals"] = {
        str(CONFIG): seals.digest(path / CONFIG, 1 << 20),
        METRICS: (path / METRICS).stat().st_size,
    }
    (path / RESULT).write_text(json.dumps(result))
    with pytest.warns(UserWarning, match="1 results of older code are sealed by size only"):
        assert set(load(tmp_path)["status"]) == {"finished"}
    with open(path / METRICS, "ab") as file:
        file.write(b"\n")
    with pytest.raises(records.DamagedRecord, match="metrics.jsonl: was changed"):
        RunRecord(path).result()
    result["seals"] = {"version": 3}
    (path / RESULT).write_text(json.dumps(result))
    with pytest.raises(records.ForeignRecord, match="version 3"):
        RunRecord(path).result()


def test_an_older_result_is_sealed_as_well(tmp_path):
    (path,) = train(tmp_path, steps=20)
    train(tmp_path, steps=40)
    (older,) = records.format.older_results(path)
    assert RunRecord(older).differences() == [] == RunRecord(path).differences()
    edit(older / METRICS, lambda text: text.replace(b"valid_elbo", b"valid_olbe"))
    with pytest.warns(UserWarning, match="results/.*metrics.jsonl: was changed"):
        assert set(load(tmp_path)["steps"]) == {40}


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run that was stopped at step 30 of 40, with rows at 10, 20 and 30."""
    job = config("evaluate_every=10", runs_dir=str(tmp_path / "torn"))
    run, look = RunPlan(job), Evaluation.look

    def stop(evaluation):
        look(evaluation)
        if evaluation.training.pack.step == 30:
            evaluation.training.save()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "look", stop)
        with pytest.raises(KeyboardInterrupt):
            train_all([run])
    assert [row["step"] for row in rows(run.path)] == [10, 20, 30]
    return run


def test_an_edited_row_of_an_interrupted_run_is_not_gone_on_from(interrupted, tmp_path, capsys):
    (whole,) = train(tmp_path / "whole", "evaluate_every=10")
    state, trouble = checkpoints.load(interrupted.record)
    assert state["step"] == 30 and trouble is None
    edit(interrupted.path / METRICS, lambda text: text.replace(b'"valid_bound": -', b'"valid_bound": -1', 1))
    assert checkpoints.load(interrupted.record)[0] is None
    train_all([interrupted])
    assert "rows before step 30 were changed after its checkpoint was written; the run starts again" in (
        capsys.readouterr().err
    )
    assert list(map(drop_times, rows(interrupted.path))) == list(map(drop_times, rows(whole)))


def test_a_checkpoint_of_older_code_counts_its_rows(interrupted):
    state = torch.load(interrupted.path / CHECKPOINT, weights_only=True)
    for count, sound in ((2, True), (3, False)):
        torch.save({**state, "rows": count}, interrupted.path / CHECKPOINT)
        assert (checkpoints.load(interrupted.record)[1] is None) == sound


def test_an_edited_measurement_is_noticed_and_a_missing_one_measured_again(tmp_path):
    record = RunRecord(tmp_path / "run")
    record.claim.take()
    for step in (1, 2):
        record.append({"step": step, "measured": "nvil", "variance": 1.5}, BASKET)
    state = {"step": 3, "rows": record.rows_before(3)}
    lines = (record.path / BASKET).read_bytes().splitlines(keepends=True)
    assert record.missed(state) is None
    (record.path / BASKET).write_bytes(lines[1])
    assert record.missed(state) is None
    (record.path / BASKET).write_bytes(lines[1].replace(b"1.5", b"0.5"))
    assert "step 2, nvil, None was changed" in record.missed(state)


@pytest.mark.parametrize("name", [METRICS, CHECKPOINT, str(CONFIG)])
def test_an_edited_run_is_redone_from_its_beginning_and_no_basket_trains_on_it(tmp_path, name, capsys):
    (path,) = train(tmp_path)
    expected = list(map(drop_times, rows(path)))
    changes = {METRICS: (b'"valid_bound": -', b'"valid_bound": -1'), CHECKPOINT: (b"digest", b"DIGEST")}
    edit(path / name, lambda content: content.replace(*changes.get(name, (b"temperature: 1.0", b"temperature: 2.0"))))
    with pytest.raises(UserError, match=f"{name}: was changed after the run"):
        basket.load_run(path, torch.device("cpu"))
    run = RunPlan(config(runs_dir=str(tmp_path)))
    if name == CHECKPOINT:  # its numbers stand, but a longer run does not go on from it
        assert make_plan([run]).todo == 0
        run = RunPlan(config(runs_dir=str(tmp_path), steps=60))
    else:
        assert make_plan([run]).damaged == [f"{path / name}: was changed after the run"]
    capsys.readouterr()
    train_all([run])
    assert f"{name}: was changed after the run; the run starts again" in capsys.readouterr().err
    assert list(map(drop_times, rows(path)))[:1] == expected[:1] and RunRecord(path).differences() == []


def test_a_config_that_is_not_that_of_an_unfinished_run(interrupted):
    edit(interrupted.path / CONFIG, lambda text: text.replace(b"temperature: 1.0", b"temperature: 2.0"))
    with pytest.raises(UserError, match="is not the config that the run .* began with"):
        basket.load_run(interrupted.path, torch.device("cpu"))


def test_a_result_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """The run goes on between the reading of its result and of its rows: that is no damage."""
    path, other = write_run(tmp_path / "sweep"), write_run(tmp_path / "other", test=-99.0)
    real, count = seals.differences, []

    def differences(*arguments):
        if not count:
            count.append(1)
            for name in (METRICS, RESULT):
                shutil.copyfile(other / name, path / name)
        return real(*arguments)

    monkeypatch.setattr(seals, "differences", differences)
    assert RunRecord(path).result() == json.loads((other / RESULT).read_bytes())
