"""Code that lies about: in the current folder of a sweep, and in the records of somebody else's run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fake_slurm import FakeSlurm
from processes import MARK, Processes
from test_training import config, train

from analysis import records
from training.config import command as command_line
from training.config.compose import runs_of_command
from training.config.plan import packs_of
from training.errors import UserError
from training.gradients import basket
from training.pack import evaluation
from training.pack.build import build

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TOY = ["estimator=reinforce", "task=toy", "data=none", "steps=200", "evaluate_every=200", "progress=false"]
TOY += ["valid_samples=1", "test_samples=1", "workers=1", "device=cpu", "task.latents=1"]


def command(*arguments, folder, environment=None):
    """``train.py`` of this checkout, started in another folder."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, ROOT / "train.py", *arguments]
    return subprocess.run(line, cwd=folder, env=own | (environment or {}), capture_output=True, text=True)


def results(folder):
    return [json.loads((run / records.RESULT).read_text()) for run in records.find_runs(folder)]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder in which every module that a sweep could import has a namesake that leaves a trace and raises."""
    folder = tmp_path_factory.mktemp("hostile")
    ours = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists() or list(path.glob("*.py"))}
    theirs = {"yaml", "numpy", "torch", "omegaconf", "hydra", "submitit", "cloudpickle", "typing_extensions", "wandb"}
    for name in {*sys.stdlib_module_names, *ours, *theirs}:
        text = f"open({str(folder / 'executed')!r}, 'a').write(__name__ + ' ')\nraise RuntimeError('hostile')\n"
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def expected():
    """The gradient variance of the code of this checkout, in this process."""
    pack = build([config(*TOY)], CPU)
    for _ in range(200):
        pack.train_step()
    (value,) = pack.tensors.variance.value().tolist()
    return value


@pytest.mark.parametrize("cluster", ["none", "slurm"])
def test_a_sweep_runs_the_code_that_was_started(hostile, expected, cluster, tmp_path):
    pytest.importorskip("submitit")
    processes = Processes()
    environment = FakeSlurm(tmp_path / "slurm").environment(os.environ["PATH"]) | {MARK: processes.mark}
    try:
        done = command(
            "-m", *TOY, f"cluster={cluster}", f"runs_dir={tmp_path}", folder=hostile, environment=environment
        )
    finally:
        processes.close()
    assert done.returncode == 0, done.stderr
    assert not (hostile / "executed").exists(), (hostile / "executed").read_text()
    (result,) = results(tmp_path)
    assert result["metrics"]["gradient_variance"] == pytest.approx(expected, rel=1e-5)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert head.returncode or result["commit"].rstrip("+") == head.stdout.strip()


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    """Not of a repository that the environment names, and none for a copy within somebody else's repository."""
    theirs = tmp_path / "theirs"
    (theirs / "copy" / "training").mkdir(parents=True)
    (theirs / "copy" / "training" / "loop.py").touch()
    for line in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"):
        subprocess.run(["git", *line.split()], cwd=theirs, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))
    monkeypatch.chdir(theirs)
    commit = evaluation.commit.__wrapped__
    assert str(commit()).rstrip("+") == ("None" if head.returncode else head.stdout.strip())
    monkeypatch.setattr(evaluation, "ROOT", theirs / "copy")
    monkeypatch.setattr(evaluation, "__file__", str(theirs / "copy" / "training" / "loop.py"))
    assert commit() is None
    subprocess.run(["git", "add", "."], cwd=theirs, check=True, env=os.environ | {"GIT_DIR": str(theirs / ".git")})
    assert str(commit()).endswith("+")


def test_an_estimator_in_the_current_folder_is_found_and_stands_in_for_nothing(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from estimators import REINFORCE\nclass Mine(REINFORCE):\n    pass\n")
    (tmp_path / "yaml.py").write_text("raise RuntimeError('hostile')\n")
    (tmp_path / "conf" / "estimator").mkdir(parents=True)
    (tmp_path / "conf" / "estimator" / "mine.yaml").write_text("name: mine\n_target_: mine.Mine\n")
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    done = command("-m", "estimator=mine", *TOY[1:], "seed=0,1", "runs_dir=runs", search, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [result["config"]["estimator"]["name"] for result in results(tmp_path / "runs")] == ["mine", "mine"]

    (run, _) = records.find_runs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match="mine.Mine is not of this library.*--allow mine$"):
        basket.load_run(run, CPU)
    assert "mine" not in sys.modules
    basket.main([str(run), "--allow", "mine", "reinforce", "--draws=20", "--warm-up=1"])
    assert "mine" in sys.modules and sys.modules["mine"].__file__ == str(tmp_path / "mine.py")
    del sys.modules["mine"]


MINE = """
from tasks import Toy


class Mine(Toy):
    def __init__(self, data, streams, *, latents: int = 3, target: float = 0.25, extra: float = 1.0):
        super().__init__(data, streams, latents=latents, target=target)
        assert extra.shape == (streams.replicas, 1, 1, 1)
"""


def test_a_task_in_the_current_folder_brings_its_own_options(tmp_path, monkeypatch):
    """Its defaults, where no task was chosen, and those of the choice that it has, where one was; numbers for each
    replica; words that it does not know are refused."""
    (tmp_path / "own_task.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    line = "python train.py -m task._target_=own_task.Mine task.name=mine data=none estimator=rloo"
    (run,) = runs_of_command(line)
    own = {"name": "mine", "_target_": "own_task.Mine"}
    assert run.config["task"] == {**own, "latents": 3, "target": 0.25, "extra": 1.0}
    runs = runs_of_command(f"{line} ++task.extra=2,3 task.latents=4")
    assert [job.config["task"] for job in runs] == [
        {**own, "latents": 4, "target": 0.25, "extra": extra} for extra in (2.0, 3.0)
    ]
    assert len(packs_of(runs, 1, 10)) == 1
    assert build([job.config for job in runs], CPU).train_step().shape == (2,)
    (chosen,) = runs_of_command(f"{line} task=toy_polynomial")
    assert chosen.config["task"] == {**own, "latents": 128, "target": 0.45, "extra": 1.0}
    with pytest.raises(UserError, match="task.hidden: there is no such option"):
        runs_of_command(f"{line} task.hidden=[3]")
    del sys.modules["own_task"]


def test_an_option_of_a_class_that_is_named_is_added():
    given = ["task._target_=own_task.Mine", "task.name=mine", "task.extra=2", "estimator.num_samples=3", "-m"]
    assert command_line.checked(given) == ["-m", *given[:2], "++task.extra=2", "estimator.num_samples=3"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Somebody's run."""
    return train(tmp_path_factory.mktemp("theirs"), "task.latents=2")[0]


@pytest.mark.parametrize(
    ("group", "changed", "words"),
    [
        (
            "task",
            {"hidden": {"_target_": "builtins.open", "file": "executed", "mode": "w"}},
            "task.hidden is a mapping",
        ),
        ("task", {"hidden": [{"_target_": "builtins.open", "file": "executed", "mode": "w"}]}, "does not fit"),
        ("estimator", {"temperature": {"_target_": "builtins.open", "file": "executed", "mode": "w"}}, "is a mapping"),
        ("estimator", {"_target_": "builtins.open", "file": "executed", "mode": "w"}, "--allow builtins"),
        ("task", {"_target_": "pandas.read_pickle", "filepath_or_buffer": "x.pkl"}, "--allow pandas"),
        ("task", {"_target_": "evil.Task"}, "--allow evil"),
        ("estimator", {"_target_": "training.paper.regenerate", "name": "x", "entry": {}}, "--allow training.paper"),
        ("estimator", {"_target_": "estimators.check.Path"}, "is no estimator"),
        ("estimator", {"_target_": "estimators.check.main"}, "is no estimator"),
        ("estimator", {"_target_": "tasks.VAE"}, "is no estimator"),
        ("estimator", {"_target_": "estimators.nothing.Class"}, "cannot be found"),
        ("task", {"_target_": "tasks.vae.nn.Linear", "in_features": 1}, "cannot be found"),
        ("estimator", {"_target_": "estimatorsevil.Class"}, "--allow estimatorsevil"),
        ("estimator", {"_target_": None}, "--allow MODULE"),
        ("estimator", {"_args_": [1]}, "estimator._args_: there is no such option"),
        ("task", {"_partial_": True}, "task._partial_: there is no such option"),
    ],
)
def test_opening_somebodys_run_executes_nothing_of_it(theirs, group, changed, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')\n")
    (tmp_path / "estimatorsevil.py").write_text("open('executed', 'w')\n")
    copy = tmp_path / theirs.name
    (copy / records.CONFIG).parent.mkdir(parents=True)
    for name in (records.METRICS, records.CHECKPOINT):
        (copy / name).write_bytes((theirs / name).read_bytes())
    options = yaml.safe_load((theirs / records.CONFIG).read_text())
    options[group] |= changed
    (copy / records.CONFIG).write_text(yaml.safe_dump(options))
    with pytest.raises(UserError, match=words) as caught:
        basket.load_run(copy, CPU)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists() and not {"evil", "estimatorsevil"} & set(sys.modules)


@pytest.mark.parametrize("text", ["", "[", "a: b", "!!python/object/apply:os.system ['touch executed']", "steps: 1"])
def test_what_is_no_config_is_said_to_be_none(theirs, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / records.CONFIG).parent.mkdir(parents=True)
    (tmp_path / records.CONFIG).write_text(text)
    with pytest.raises(UserError, match="config.yaml: (not a run's config|not readable as YAML)"):
        basket.load_run(tmp_path, CPU)
    assert not (tmp_path / "executed").exists()
