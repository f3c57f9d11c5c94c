"""Every task with every estimator: trained, recorded, resumed from a checkpoint, read; or skipped with a reason."""

from pathlib import Path

import configs
import pytest
import torch

from analysis import records
from training.config import validity
from training.config.plan import RunPlan
from training.errors import UserError
from training.pack import checkpoints
from training.pack.build import build
from training.pack.run import train_runs

CONF = Path(__file__).parents[1] / "conf"
ESTIMATORS, TASKS = (sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("estimator", "task"))
TINY = {"latents": 3, "hidden": [6], "labelled": 20, "style": 3}
FEW = ["steps=3", "batch_size=6", "evaluate_every=2", "train_samples=1", "valid_samples=2", "test_samples=2"]
REASONS = (
    "is defined for Bernoulli latents",
    "gradient does not nest",
    "would enumerate",
    "different states",
    "would never be asked",
)


def composed(*overrides):
    return configs.config(*FEW, *overrides)


def config_of(task, estimator):
    """With few latents and narrow nets, on the digits, or on no data for a toy."""
    config = {**composed(), "task": composed(f"task={task}")["task"]}
    config["estimator"] = composed(f"estimator={estimator}")["estimator"]
    toy = task.startswith("toy")
    grey = config["task"].get("likelihood", "bernoulli") != "bernoulli"
    config["data"] = {**config["data"], "name": "none" if toy else "digits", "train_evaluated": 10}
    config["data"]["binarization"] = "none" if toy or grey else "dynamic"
    for name, size in TINY.items():
        if name in config["task"] and not (toy and name == "latents"):
            config["task"][name] = size
    if config["task"].get("categories", 2) > 20:
        config["task"]["categories"] = 20  # of a million: ARSM takes K^2 evaluations
    return config


def without_time(row):
    return {name: value for name, value in row.items() if "seconds" not in name}


def assert_same(first, second, estimator):
    """Bit for bit on a CPU; on a GPU to rounding, since products and sums may go another way each time."""
    for row, other in zip(first, second, strict=True):
        row, other = without_time(row), without_time(other)
        if torch.cuda.is_available():
            assert row == pytest.approx(other, rel=1e-4, abs=1e-4, nan_ok=True), estimator
        else:
            assert row == other, estimator


@pytest.mark.parametrize("task", TASKS)
def test_a_task_with_every_estimator(task, tmp_path):
    """Three steps at once, and one, a checkpoint and the other two: the same numbers, and one frame of all of them."""
    expected = []
    for estimator in ESTIMATORS:
        config = config_of(task, estimator)
        whole, parts = (RunPlan({**config, "runs_dir": str(tmp_path / name)}) for name in ("whole", "parts"))
        if reason := validity.reason_to_skip(config):
            assert any(known in reason for known in REASONS), f"{estimator} {reason}"
            with pytest.raises(UserError, match="estimator="):
                build([config], torch.device("cpu"))
            continue
        expected.append(estimator)
        train_runs([whole], lambda event: None, solo=True)
        pack, record = build([config], torch.device("cpu")), parts.record
        assert record.claim.take()
        record.start("", [])
        pack.train_step()
        checkpoints.save(pack, 0, record)
        record.claim.release()
        train_runs([parts], lambda event: None, solo=True)
        first, second = (records.read_metrics(run.path / records.METRICS) for run in (whole, parts))
        assert [row["step"] for row in first] == [2, 3]
        assert_same(first, second, estimator)
        assert "goes on at step 1" in (parts.path / records.LOG).read_text()
    frame = records.load(tmp_path / "whole")
    assert sorted(frame["estimator"].unique()) == expected and set(frame["status"]) == {"finished"}
    assert set(frame["task"]) == {task} and not frame.attrs["damaged"]
    assert len(expected) >= 20 or task == "labelled_only"
