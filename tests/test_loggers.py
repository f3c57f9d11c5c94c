"""One run of a logger for each of ours, whatever happens in between. Offline, with the real packages."""

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
from test_training import config, rows

from analysis import records
from training import interrupt, loggers
from training.config.plan import replicated
from training.errors import UserError
from training.interrupt import Stopped
from training.pack.pack import Pack
from training.pack.run import train_runs
from training.progress import PackLine

STEPS = [10, 20, 30, 40]


def plans(tmp_path, *overrides):
    own = ["logger=wandb", "estimator=nvil", "evaluate_every=10", "task.latents=2", f"runs_dir={tmp_path}"]
    return list(replicated(config(*own, *overrides)))


def kept(run):
    """The id and, read with wandb's own reader, the steps of the one offline run that a run has."""
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    (started,) = (entry["run"] for entry in entries if entry["type"] == "run")
    history = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    assert [item["train_loss"] for item in history] == [row["train_loss"] for row in rows(run.path)]
    return started["run_id"], [item["step"] for item in history]


def events(run):
    """Steps and texts of the one event file that a run has, read by the format: length, its sum, an event, its sum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (run.path / "tensorboard").iterdir()
    content, scalars, texts = file.read_bytes(), {}, {}
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts[value.tag.removesuffix("/text_summary")] = value.tensor.string_val[0].decode()
            else:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    losses = [(row["step"], pytest.approx(row["train_loss"])) for row in rows(run.path)]
    assert scalars["train_loss"] == losses and "step" not in scalars
    assert all(steps == sorted(set(steps)) for steps in ([at for at, _ in found] for found in scalars.values()))
    assert json.loads(texts["config"].removeprefix("```json").removesuffix("```"))["seed"] == run.config["seed"]
    return [step for step, _ in losses], texts.get("status")


def stop_after(steps, monkeypatch, how):
    """Let training call ``how`` after so many steps."""
    original = Pack.train_step

    def step(pack):
        losses = original(pack)
        if pack.step == steps:
            how()
        return losses

    monkeypatch.setattr(Pack, "train_step", step)


def test_a_run_that_is_stopped_and_goes_on_is_one_run_with_all_its_history(tmp_path, monkeypatch):
    runs = plans(tmp_path, "replicas=2")
    with monkeypatch.context() as patch, interrupt.on_signals():
        stop_after(25, patch, interrupt.ask)
        with pytest.raises(Stopped):
            train_runs(runs, PackLine(False), solo=True)
    before = [kept(run) for run in runs]
    assert [steps for _, steps in before] == [STEPS[:2]] * 2 and before[0][0] != before[1][0]
    train_runs(runs, PackLine(False), solo=True)
    assert [kept(run) for run in runs] == [(name, STEPS) for name, _ in before]
    known = [json.loads((run.path / records.LOGGERS).read_text()) for run in runs]
    assert known == [{"wandb": name} for name, _ in before]


def test_a_run_that_failed_after_its_checkpoint_has_each_step_once(tmp_path, monkeypatch):
    (run,) = plans(tmp_path, "checkpoint_seconds=1e-9")

    def fail():
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        stop_after(35, patch, fail)
        with pytest.raises(ZeroDivisionError):
            train_runs([run], PackLine(False), solo=True)
    name, steps = kept(run)
    assert steps == STEPS[:3]
    train_runs([run], PackLine(False), solo=True)
    assert kept(run) == (name, STEPS)


def test_a_run_that_starts_again_keeps_its_id(tmp_path, monkeypatch):
    """Its checkpoint is lost, and the folder of an earlier process is there."""
    (run,) = plans(tmp_path)
    train_runs([run], PackLine(False), solo=True)
    name, _ = kept(run)
    (run.path / records.RESULT).unlink()
    (run.path / records.CHECKPOINT).unlink()
    train_runs([run], PackLine(False), solo=True)
    assert kept(run) == (name, STEPS)


def test_a_pack_of_thirty(tmp_path):
    runs = plans(tmp_path, "replicas=30")
    train_runs(runs, PackLine(False), solo=True)
    found = [kept(run) for run in runs[::10]]
    assert [steps for _, steps in found] == [STEPS] * 3
    names = [json.loads((run.path / records.LOGGERS).read_text())["wandb"] for run in runs]
    assert len(set(names)) == 30 and [name for name, _ in found] == names[::10]
    for run in runs:
        assert len(list((run.path / "wandb").glob("offline-run-*"))) == 1


def test_online_a_run_is_gone_on_with_where_the_server_has_it(tmp_path, monkeypatch):
    """The server's run stands at step 21: it gets what comes after, and what was logged without it."""
    wandb = pytest.importorskip("wandb")
    asked, sent = [], []

    def init(**options):
        asked.append(options)
        return SimpleNamespace(
            step=21, summary={}, finish=lambda exit_code: None, log=lambda row, step: sent.append(step)
        )

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    runs = plans(tmp_path, "logger.mode=online")
    train_runs(runs, PackLine(False), solo=True)
    (options,) = asked
    assert (
        options["resume"] == "allow"
        and options["id"] == json.loads((runs[0].path / records.LOGGERS).read_text())["wandb"]
    )
    assert sent == [30, 40]
    shutil.rmtree(tmp_path / "main" / runs[0].name)
    train_runs(runs, PackLine(False), solo=True)
    assert asked[1]["id"] != options["id"]  # another record is another run


def test_tensorboard_has_each_step_once_however_often_a_run_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    runs = plans(tmp_path, "logger=tensorboard", "replicas=30")
    with monkeypatch.context() as patch, interrupt.on_signals():
        stop_after(25, patch, interrupt.ask)
        with pytest.raises(Stopped):
            train_runs(runs, PackLine(False), solo=True)
    assert [events(run) for run in runs] == [(STEPS[:2], "interrupted")] * 30
    train_runs(runs, PackLine(False), solo=True)
    assert [events(run) for run in runs] == [(STEPS, "finished")] * 30


@pytest.mark.parametrize(("logger", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_without_the_package(logger, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=f"logger={logger} needs the package {package}: pip install {package}"):
        loggers.check({"name": logger, "mode": "offline"})
