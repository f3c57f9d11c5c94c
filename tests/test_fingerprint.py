"""Code of a user's own that changes between runs: it is told, and nothing is trained again unless it is asked for."""

import json
import sys

import pytest
from test_cli import FAST
from test_cli import call as train_py
from test_training import train

from analysis import records
from training.config.compose import composed, runs_of_command
from training.pack import fingerprint
from training.sweep import planning

SOURCE = "from estimators import REINFORCE\nfrom helper import SCALE\n\n\nclass Mine(REINFORCE):\n    pass\n"
YAML = "name: mine\n_target_: mine.Mine\n"
OWN = ["estimator._target_=mine.Mine", "estimator.name=mine", "task=toy", "data=none"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "helper.py").write_text("SCALE = 1\n")
    (tmp_path / "beside.py").write_text("raise RuntimeError('nobody imports it')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    forget()


def forget():
    """As if this were a new process."""
    for name in ("mine", "helper", "package", "package.inner", "package.mine"):
        sys.modules.pop(name, None)


def test_built_in_classes_have_no_fingerprint_and_no_names_change():
    config = composed("estimator=nvil")
    assert fingerprint.fingerprints(config) == {}


def test_a_fingerprint_is_that_of_the_module_and_what_it_imports_beside_it(folder):
    """Not of the library, nor of what only lies there."""

    def digest():
        forget()
        (run,) = runs_of_command(f"python train.py -m {' '.join(OWN)}")
        return run.name, fingerprint.fingerprints(run.config)

    name, first = digest()
    assert first.keys() == {"estimator"} and first["estimator"].startswith("mine ")
    (folder / "beside.py").write_text("raise RuntimeError('changed')\n")
    assert digest() == (name, first)
    (folder / "helper.py").write_text("SCALE = 2\n")
    _, second = digest()
    (folder / "mine.py").write_text(SOURCE + "# more\n")
    again, third = digest()
    assert again == name and len({each["estimator"] for each in (first, second, third)}) == 3


def test_a_package_counts_with_its_own_modules(folder):
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("SCALE = 1\n")
    (package / "mine.py").write_text(SOURCE.replace("from helper", "from .inner"))
    line = "python train.py -m estimator._target_=package.mine.Mine estimator.name=mine task=toy data=none"
    found = []
    for scale in (1, 2):
        forget()
        (package / "inner.py").write_text(f"SCALE = {scale}\n")
        (run,) = runs_of_command(line)
        found.append(fingerprint.fingerprints(run.config)["estimator"])
    assert found[0].startswith("package.mine ") and found[0] != found[1]


def test_finished_runs_of_other_code_are_named_kept_and_trained_again_where_that_is_asked_for(
    folder, monkeypatch, capsys
):
    """A record of older code, which does not say what it ran, is left alone."""
    arguments = [*OWN, *FAST, "task.latents=1", "device=cpu", f"runs_dir={folder}/runs"]
    (path,) = train(folder / "runs", *arguments[:-1])
    facts = json.loads((path / records.FACTS).read_text())
    assert facts["code"]["estimator"].startswith("mine ") and "code" not in json.dumps(facts["options"])
    capsys.readouterr()

    def plan(*more):
        forget()
        return planning.make_plan(runs_of_command(f"python train.py -m {' '.join([*arguments, *more])}"))

    assert plan().lines() == ["1 runs: 0 to do in 0 packs, 1 finished"]
    assert plan("retry=changed").todo == 0
    (folder / "helper.py").write_text("SCALE = 2\n")
    assert plan().lines()[1:] == [
        "1 run of mine began with other code of mine than it has now; retry=changed trains it again"
    ]
    assert plan().todo == 0 and plan("retry=changed").todo == 1 and plan("retry=failed").todo == 0
    assert train_py(monkeypatch, *arguments) is None
    assert "finished already with other code of mine than now; retry=changed trains it again" in capsys.readouterr().out

    plan("steps=20")
    train(folder / "runs", *arguments[:-1], "steps=20")  # goes on, and stays what the other code began
    assert plan("steps=20").lines()[1:] and plan("steps=20").todo == 0

    runs = runs_of_command(f"python train.py -m {' '.join(arguments)} steps=20 retry=changed")
    assert planning.make_plan(runs, take_back=True).todo == 1
    train(folder / "runs", *arguments[:-1], "steps=20")
    assert plan("steps=20").lines() == ["1 runs: 0 to do in 0 packs, 1 finished"]
    assert "goes on" not in (path / records.LOG).read_text().split("\n")[-3]

    old = json.loads((path / records.FACTS).read_text())
    del old["code"]
    (path / records.FACTS).write_text(json.dumps(old))
    assert records.RunRecord(path).code() == {}
