"""The command line as a user meets it: sweeps, help, experiments, and mistakes in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from configs import config
from hydra.core.global_hydra import GlobalHydra

from analysis import records
from analysis.statistics.summary import summarise
from training.devices import pick_device
from training.errors import explained
from training.pack.build import build

ROOT = Path(__file__).parents[1]
FAST = ["steps=10", "evaluate_every=10", "test_samples=1", "valid_samples=1", "progress=false", "task.latents=4"]


def call(monkeypatch, *arguments):
    """Run ``train.py`` in this process; returns what ``sys.exit`` was given (``None`` for success)."""
    import train

    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    GlobalHydra.instance().clear()
    try:
        explained(train.main)
    except SystemExit as stopped:
        return stopped.code
    return None


def test_a_sweep_from_the_command_line_to_the_frame(monkeypatch, tmp_path):
    arguments = ["-m", "estimator=nvil,straight_through", "seed=1,4", *FAST, f"runs_dir={tmp_path}", "sweep=grid"]
    assert call(monkeypatch, *arguments, "estimator.nvil.variance_normalisation=true,false") is None
    frame = records.load(tmp_path / "grid")
    assert frame.groupby(["estimator", "seed"]).ngroups == 4 and set(frame["status"]) == {"finished"}
    assert frame["run"].nunique() == 6
    rows = {row.label: row.n for row in summarise(frame).itertuples()}
    normalised = "nvil, estimator.variance_normalisation"
    assert rows == {f"{normalised}=false": 2, f"{normalised}=true": 2, "straight_through": 2}
    overrides = (records.find_runs(tmp_path)[0] / records.OVERRIDES).read_text()
    assert "estimator=nvil" in overrides and "seed=1" in overrides


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["estimator=nvli"], ["'estimator/nvli' (did you mean estimator=nvil?)", "gumbel_softmax"]),
        (["task=vae_bernouli"], ["did you mean task=vae_bernoulli?"]),
        (["+experiment=jang_table"], ["did you mean experiment=jang_table"]),
        (["-m", "estimator=nvli,rloo"], ["(did you mean estimator=nvil?)"]),
        (["-m", "estimator=nvil,rloo", "estimator.nvil.decai=1"], ["'decai' not in 'NVIL' (did you mean decay?)"]),
        (["-m", "estimator.nvil.decay=0.5"], ["it is for estimator=nvil, which is not in this sweep (gumbel_softmax)"]),
        (["estimator=nvil", "estimator.nvil.decay=0.5"], ["with -m; of one run it is estimator.decay"]),
        (["data=cifar"], ["cifar", "binarized_mnist"]),
        (["estimator.temprature=1"], ["temprature", "allowed here", "did you mean temperature?"]),
        (["optimizer.lrr=1"], ["lrr", "allowed here", "lr", "beta1"]),
        (["stepz=1"], ["stepz", "allowed here", "steps"]),
        (["steps=many"], ["steps", "many", "Integer"]),
        (["optimizer.lr=fast"], ["lr", "fast", "Float"]),
        (["task.hidden=wide"], ["hidden", "wide"]),
        (["optimizer.lr=0"], ["optimizer.lr must be positive"]),
        (["estimator.temperature=0"], ["temperature must be positive"]),
        (["batch_size=100000"], ["batch_size=100000 is larger"]),
        (["steps="], ["steps"]),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, tmp_path, arguments, words):
    code = call(monkeypatch, *arguments, *FAST[2:], f"runs_dir={tmp_path}")
    assert isinstance(code, str) and code.startswith("error: ") and "Traceback" not in code and "\n" not in code
    assert all(word in code for word in words), code
    assert not list(tmp_path.rglob("*.json*"))


def test_an_unwritable_runs_directory_is_named(monkeypatch, tmp_path):
    """A file stands where the directory should be (as root, no permission would stop the test)."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    for arguments in ([], ["-m", "seed=0,1"]):
        code = call(monkeypatch, *arguments, *FAST, f"runs_dir={blocked}/runs")
        assert isinstance(code, str) and code.startswith("error: ") and str(blocked) in code and "\n" not in code


def test_mistakes_in_a_real_process(tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True)

    wrong = run("estimator=nvli", f"runs_dir={tmp_path}")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr
    absent = run("device=cuda:99", f"runs_dir={tmp_path}")
    assert absent.returncode == 1 and absent.stderr.splitlines()[-1].startswith("error: device=cuda:99")
    assert "Traceback" not in absent.stderr


def test_a_budget_comes_between_the_experiment_and_the_command_line(monkeypatch, capsys, tmp_path):
    """In full six learning rates and five seeds for each task and estimator; small: one rate, three seeds."""
    common = ["+experiment=jang_table1", "data=digits", "dry_run=true", f"runs_dir={tmp_path}", "estimator=nvil"]

    def planned(*arguments):
        assert call(monkeypatch, *common, *arguments) is None
        return int(capsys.readouterr().out.split()[0])

    assert planned("task=sbn_bernoulli", "steps=1") == 1 * 6 * 5
    assert planned("budget=small", "task=vae_bernoulli") == 1 * 3
    assert planned("budget=small", "task=vae_bernoulli", "replicas=2", "optimizer=sgd", "optimizer.momentum=0.5") == 2
    assert planned("budget=cpu", "race=none", "task=vae_bernoulli") == 4 * 3  # the grid of a budget that races
    code = call(monkeypatch, *common, "budget=tiny")
    assert code == "error: budget=tiny: choose one of those that the experiment has (full, medium, cpu, small)"
    code = call(monkeypatch, "budget=small", f"runs_dir={tmp_path}")
    assert code is not None and "add -m" in code and not list(tmp_path.rglob("*.json"))


def test_exact_trains_where_it_can_enumerate():
    pack = build([config("estimator=exact", "task.latents=4", "steps=1")], pick_device("cpu"))
    assert pack.train_step().isfinite().all()
