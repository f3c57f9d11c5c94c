"""How commands end: streams that are closed, full or not read, too few files, sweeps that came to nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import make_config, write_run
from test_cli import FAST, call

from analysis import records
from training import processes, progress
from training.config import command, compose
from training.config.compose import runs_of_command
from training.errors import UserError
from training.sweep import planning
from training.sweep.run import run_sweep

ROOT = Path(__file__).parents[1]
TINY = ["steps=2", "evaluate_every=2", "test_samples=1", "valid_samples=1", "task.latents=4", "device=cpu"]
TRAIN, PLAN = f"{ROOT}/train.py {' '.join(TINY)}", f"{ROOT}/train.py -m dry_run=true workers=1 {' '.join(TINY)}"


def shell(line, folder):
    """``PY`` stands for the interpreter; the exit code is that of the first command of a pipe."""
    line = "set -o pipefail; " + re.sub(r"\bPY\b", sys.executable, line)
    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=own, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (f"PY {PLAN} > /dev/full", 1, "error: the standard output: No space left on device"),
        ("PY -m training.status . > /dev/full", 1, "error: the standard output: No space left on device"),
        (
            "PY -m estimators.check arm --quick --draws=500 2>&1 >/dev/full | tail -1 >&2",
            2,
            "cannot write the certificate",
        ),
        ("PYTHONIOENCODING=ascii COLUMNS=40 NO_COLOR=1 PY -m training.status . | true", 141, ""),
        ("PYTHONIOENCODING=ascii COLUMNS=40 NO_COLOR=1 PY -m analysis.verify . | true", 141, ""),
        (f"PY {PLAN} 'seed=range(3)' pack_size=1 | head -1", 141, ""),
        (f"PY {PLAN} >&-", 0, ""),
        (f"ulimit -n 12; PY {ROOT}/train.py -m workers=2 seed=1,2 progress=false {' '.join(TINY)}", 1, "Too many open"),
    ],
)
def test_streams_that_cannot_be_written_are_a_sentence_or_silence(tmp_path, line, code, words):
    """``true`` may end before or after the writer: what it does not read is lost, and nothing is said of it."""
    write_run(tmp_path / "sweep", make_config())
    before = sorted(tmp_path.rglob("*"))
    done = shell(line, tmp_path)
    allowed = (code, 0) if code == 141 else (code,)
    assert done.returncode in allowed and words in done.stderr, done.stderr
    assert done.stderr.count("\n") == (1 if words else 0), done.stderr
    assert sorted(tmp_path.rglob("*")) == before


BY_OTHER_PROCESSES = ("training/start.py", "training/sweep/worker.py")
FOR_THE_REPOSITORY = ("training/config/defaults.py", "analysis/papers/relaxation.py")
"""And all of ``training/documents``: they write files, of this repository."""


def test_every_command_ends_in_one_way():
    """By ``output.run``, or ``explained``, which calls it: no traceback for a pipe that nobody reads."""
    commands = {}
    for folder in ("training", "analysis"):
        for path in (ROOT / folder).rglob("*.py"):
            _, main, end = path.read_text().partition('if __name__ == "__main__":\n')
            if main:
                commands[str(path.relative_to(ROOT))] = end
    others = {*BY_OTHER_PROCESSES, *FOR_THE_REPOSITORY}
    assert others < commands.keys() and len(commands) > 12
    for name, end in commands.items():
        exempt = name in others or name.startswith("training/documents/")
        assert exempt or re.search(r"^ +(?:output\.)?(?:run|explained)\(main\)$", end, re.M), name


@pytest.mark.parametrize("width", ["20", "40"])
def test_lines_that_rewrite_themselves_fit_the_terminal(monkeypatch, capsys, width):
    """And on one that cannot move its cursor (``TERM=dumb``) there are none."""
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for terminal in ("xterm", "dumb"):
        monkeypatch.setenv("TERM", terminal)
        line = progress.PackLine(True)
        line({"event": "pack", "label": "nvil on vae_bernoulli", "replicas": 3, "step": 0, "steps": 9})
        line({"event": "step", "step": 9, "note": "valid_bound -90.5"})
        shown = capsys.readouterr().err
        assert ("\033" in shown) == (terminal == "xterm") and "nvil on" in shown
        assert terminal == "dumb" or len(shown.replace("\033[K", "").strip()) < int(width)


def test_a_run_trains_without_its_streams_and_its_files_are_its_own(tmp_path):
    """A file that is opened in the place of a closed stream would get what is printed."""
    done = shell(f"PY {TRAIN} -m seed=1,2 workers=1 <&- >&- 2>&-; echo $?", tmp_path)
    assert done.stdout == "0\n"
    runs = records.find_runs(tmp_path / "runs")
    assert [records.RunRecord(run).outcome() for run in runs] == ["finished"] * 2
    shell(f"PY {TRAIN} seed=3 2> /dev/full", tmp_path)
    assert len(records.find_runs(tmp_path / "runs")) == 3


def test_minus_m_may_stand_anywhere():
    assert command.checked(["seed=1", "-m", "steps=2"]) == ["-m", "seed=1", "steps=2"]
    assert command.checked(["seed=1", "--multirun"]) == ["--multirun", "seed=1"]
    assert command.checked(["hydra/sweeper=basic", "hydra.sweep.dir=x"])  # another sweeper heeds it


def test_a_sweep_that_diverged_before_it_was_evaluated_is_an_error(monkeypatch, tmp_path, capsys):
    """Also when it is started again; with one run that came to its end it is none."""
    options = [*FAST[1:], "steps=20", f"runs_dir={tmp_path}", "workers=1", "device=cpu"]
    for arguments in (["optimizer.lr=1e38"], ["-m", "optimizer.lr=1e38", "seed=0,1"], ["-m", "optimizer.lr=1e38"]):
        code = call(monkeypatch, *arguments, *options, "evaluate_every=20")
        assert isinstance(code, str) and "diverged before the first evaluation" in code and "\n" not in code
    assert call(monkeypatch, "-m", "optimizer.lr=1e38,1e-3", *options, "evaluate_every=20") is None
    assert "diverged" in capsys.readouterr().out


def test_a_run_whose_worker_dies_before_its_folder_is_there_has_failed_and_is_tried_again(monkeypatch, tmp_path):
    runs = runs_of_command(
        f"python train.py -m {' '.join(TINY)} workers=1 retries=0 progress=false runs_dir={tmp_path}"
    )
    with monkeypatch.context() as patch:
        patch.setattr(processes.sys, "executable", "/bin/false")
        with pytest.raises(UserError, match="1 of 1 runs failed .*died 1 times .*exit code 1"):
            run_sweep(runs)
    (run,) = runs
    assert (
        run.record.status_word() == "failed"
        and "died 1 times" in str(run.record.error())
        and not run.record.claim.is_held()
    )
    again = runs_of_command(f"python train.py -m {' '.join(TINY)} workers=1 retry=failed runs_dir={tmp_path}")
    assert planning.make_plan(again).todo == 1
    run_sweep(again)
    assert run.record.outcome() == "finished"


@pytest.mark.parametrize("options", ["seed=range(10000000)", "seed=range(500) optimizer.lr=range(0.001,1.001,0.001)"])
def test_a_sweep_that_is_too_large_is_refused_at_once(options, monkeypatch):
    monkeypatch.setattr(compose._Composer, "__call__", lambda *_: pytest.fail("planning them would take minutes"))
    with pytest.raises(UserError, match="at most 100000 runs"):
        runs_of_command(f"python train.py -m {options}")


def test_a_large_sweep_says_that_it_is_planned(monkeypatch, capsys):
    monkeypatch.setattr(compose, "MANY_RUNS", 4)
    assert len(runs_of_command("python train.py -m seed=range(2) optimizer.lr=1e-3,1e-4")) == 4
    assert capsys.readouterr().err == "planning at least 4 runs ...\n"


@pytest.mark.parametrize("options", ["sweep=a,b", "runs_dir=a,b", "threads=1,2", "logger=none,wandb", "data.root=a,b"])
def test_what_does_not_name_a_run_cannot_be_swept_over(options):
    """A second value would have been dropped: the runs have the same name."""
    key = options.partition("=")[0]
    with pytest.raises(UserError, match=f"{key} cannot be swept over: with .* it is the same run"):
        runs_of_command(f"python train.py -m {options}")
    assert len(runs_of_command("python train.py -m seed=1,1,1 replicas=2,3")) == 3


def test_no_folder_is_left_by_a_run_that_cannot_begin(monkeypatch, tmp_path):
    place = tmp_path / "deep" / "runs"
    code = call(monkeypatch, *FAST, f"runs_dir={place}", "data=mnist", f"data.root={tmp_path}", "data.download=false")
    assert isinstance(code, str) and "Found no mnist" in code and not list(tmp_path.iterdir())
