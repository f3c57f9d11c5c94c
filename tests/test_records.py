"""The run record: round trip, damage that is named and left out, claims, names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fake_runs import make_config, write_run

from analysis import records
from analysis.records import RunRecord, load
from training.config.identity import run_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def sweep(tmp_path):
    return tmp_path / "runs" / "sweep"


def load_warned(path, count):
    """Load ``path``; exactly ``count`` records must be reported as damaged, by warning and in the attributes."""
    with pytest.warns(UserWarning, match="left out") as caught:
        frame = load(path)
    assert len(caught) == count == len(frame.attrs["damaged"])
    return frame, [str(warning.message) for warning in caught]


def test_round_trip(sweep):
    path = write_run(sweep, make_config("rloo", seed=3, optimizer__lr=0.01), test=-101.5, steps=4)
    for level in (path, sweep, sweep.parent):
        frame = load(level)
        assert frame["step"].tolist() == [250, 500, 750, 1000]
        row = frame.iloc[-1]
        assert (row["estimator"], row["task"], row["data"], row["seed"]) == (
            "rloo",
            "vae_bernoulli",
            "binarized_mnist",
            3,
        )
        assert (row["run"], row["sweep"], row["status"], row["optimizer.lr"]) == (path.name, "sweep", "finished", 0.01)
        assert (row["test_bound"], row["protocol.prior"]) == (-101.5, "uniform")
        assert frame["test_bound"].notna().sum() == 1
        assert frame.attrs["damaged"] == []


def test_statuses_and_runs_without_rows(sweep):
    write_run(sweep, make_config(seed=0), status="running", steps=2)
    write_run(sweep, make_config(seed=1), status="failed", steps=0)
    write_run(sweep, make_config(seed=2), status="diverged")
    queued = make_config(seed=3)
    (sweep / run_name(queued) / ".hydra").mkdir(parents=True)
    (sweep / run_name(queued) / records.CONFIG).write_text(yaml.safe_dump(queued))
    frame = load(sweep).drop_duplicates("run").set_index("seed")
    assert frame["status"].to_dict() == {0: "running", 1: "failed", 2: "diverged", 3: "queued"}
    assert "out of memory" in frame.loc[1, "error"]
    assert frame["step"].isna().to_dict() == {0: False, 1: True, 2: False, 3: True}


def test_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs"):
        load(tmp_path)


def test_torn_last_line_is_skipped(sweep):
    path = write_run(sweep, status="running", steps=3)
    with open(path / records.METRICS, "ab") as file:
        file.write(b'{"step": 999, "valid_bo')
    assert load(sweep)["step"].tolist() == [333, 666, 1000]


def test_a_finished_run_without_its_last_row_is_damaged(sweep):
    path = write_run(sweep)
    lines = (path / records.METRICS).read_bytes().splitlines(keepends=True)
    (path / records.METRICS).write_bytes(b"".join(lines[:-1]))
    frame, messages = load_warned(sweep, 1)
    assert frame.empty
    assert f"{records.METRICS}: was changed after the run" in messages[0]


DAMAGE = {
    "garbage in the middle": (records.METRICS, lambda text: text.replace(b'{"step": 500', b"\x00\xff garbage", 1)),
    "a step that is no number": (records.METRICS, lambda text: text.replace(b'"step": 500', b'"step": Infinity', 1)),
    "empty result": (records.RESULT, lambda text: b""),
    "truncated result": (records.RESULT, lambda text: text[: len(text) // 2]),
    "garbage result": (records.RESULT, lambda text: b"\xff\x00 garbage"),
    "result that is a list": (records.RESULT, lambda text: b"[1, 2]"),
    "result of another run": (records.RESULT, lambda text: text.replace(b"-s0-", b"-s7-", 1)),
    "result without a status": (records.RESULT, lambda text: text.replace(b'"status"', b'"stutas"', 1)),
    "result with a broken protocol": (
        records.RESULT,
        lambda text: text.replace(b'"protocol"', b'"protocol": 3, "p"', 1),
    ),
    "garbage config": (records.CONFIG, lambda text: b"{{: \x00"),
    "empty config": (records.CONFIG, lambda text: b""),
    "config of something else": (records.CONFIG, lambda text: b"hello: 1\n"),
    "config tampered": (records.CONFIG, lambda text: text.replace(b"lr: 0.001", b"lr: 0.1")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_left_out(sweep, kind):
    file, damage = DAMAGE[kind]
    broken, sound = write_run(sweep, make_config(seed=0)), write_run(sweep, make_config(seed=1))
    content = (broken / file).read_bytes()
    assert damage(content) != content
    (broken / file).write_bytes(damage(content))
    frame, messages = load_warned(sweep, 1)
    assert set(frame["run"]) == {sound.name}
    assert str(broken / file) in messages[0]


def test_a_lost_config_is_damage_not_silence(sweep):
    path = write_run(sweep)
    (path / records.CONFIG).unlink()
    _, messages = load_warned(sweep, 1)
    assert str(path / records.CONFIG) in messages[0]


def test_killed_between_last_status_and_result_is_not_finished(sweep):
    path = write_run(sweep)
    (path / records.RESULT).unlink()
    assert json.loads((path / records.STATUS).read_text())["status"] == "finished"
    assert set(load(sweep)["status"]) == {"running"}
    assert not RunRecord(path).is_finished()


def test_start_again_keeps_rows_up_to_the_checkpoint(sweep):
    path = write_run(sweep, status="running", steps=4)
    record = RunRecord(path)
    record.start(yaml.safe_dump(make_config()), [], keep_until=500)
    record.append({"step": 750, "valid_bound": -1.0})
    rows = records.read_metrics(path / records.METRICS)
    assert [row["step"] for row in rows] == [250, 500, 750]
    assert rows[-1]["valid_bound"] == -1.0


def test_name_ignores_what_does_not_change_the_training():
    config = make_config()
    places = {"runs_dir": "/x", "sweep": "y", "logger": {"name": "wandb"}, "device": "cuda", "threads": 8}
    places |= {"replicas": 3, "checkpoint_seconds": 1, "progress": True}
    measured = {"steps": 7, "test_samples": 7, "evaluate_every": 3, "basket": {"name": "default", "draws": 4}}
    same = dict(reversed({**config, **places, **measured}.items()))
    same["data"] = {**dict(reversed(config["data"].items())), "root": "/elsewhere"}
    assert run_name(same) == run_name(config)


def test_name_changes_with_everything_else():
    changes = [{}, {"seed": 1}, {"batch_size": 7}, {"optimizer__lr": 0.7}, {"task__prior": "learned"}]
    changes += [{"data__binarization": "dynamic"}, {"task__hidden": [7]}, {"something_new": 1}, {"estimator": "rloo"}]
    assert len({run_name(make_config(**change)) for change in changes}) == len(changes)
