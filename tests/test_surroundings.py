"""Commands in surroundings that they did not choose: terminals, notebooks, disks; sweeps that have just begun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import make_config, write_run

from analysis import command, records, report
from analysis.command import NOTHING, OK, where
from analysis.statistics import summary as statistics

ROOT = Path(__file__).parents[1]
SMALL = [
    "steps=4",
    "evaluate_every=2",
    "valid_samples=1",
    "test_samples=1",
    "task.latents=2",
    "device=cpu",
    "workers=1",
]


def run(*words, **environment):
    own = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"} | environment
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=own, capture_output=True)
    assert b"Traceback" not in done.stderr and b"Traceback" not in done.stdout, done.stderr.decode()
    return done


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "größe"
    for estimator in ("nvil", "rloo"):
        for rate in (1e-3, 2.0):
            for seed in range(2):
                own = make_config(estimator, seed=seed, optimizer__lr=rate, task__hidden=[200, 100])
                write_run(folder, own, test=-100.0 - seed - rate)
    return folder


# A sweep without numbers


@pytest.mark.parametrize("statuses", [["running"], ["queued"], ["failed"], ["running", "failed", "queued"]])
@pytest.mark.parametrize("options", [[], ["--table", "jang_table1"], ["--where", "estimator=nvil"]])
def test_a_sweep_without_an_evaluated_row_is_reported(tmp_path, capsys, statuses, options):
    for seed, status in enumerate(statuses):
        write_run(tmp_path / "jang_table1", make_config(seed=seed), status=status, steps=0)
    assert command.main([str(tmp_path / "jang_table1"), *options]) == NOTHING
    said = capsys.readouterr()
    assert said.out.startswith(f"{len(statuses)} runs: ")
    assert said.err == "no run is finished: there are no numbers to report yet\n"
    assert report.main([str(tmp_path / "jang_table1")]) == OK
    frame = records.load(tmp_path / "jang_table1")
    assert frame["step"].isna().all() and set(records.COSTS) <= set(frame)


def test_a_sweep_whose_first_run_is_finished_before_the_others_begin(tmp_path):
    write_run(tmp_path / "main", make_config(seed=0))
    write_run(tmp_path / "main", make_config("rloo", seed=1), status="running", steps=0)
    assert command.main([str(tmp_path / "main")]) == OK


# Disks


@pytest.mark.parametrize("main", [command.main, report.main])
def test_a_folder_that_cannot_be_written_is_a_sentence(sweep, tmp_path, capsys, main, monkeypatch):
    (tmp_path / "file").touch()
    assert main([str(sweep), "--output", str(tmp_path / "file" / "x")]) == NOTHING
    assert capsys.readouterr().err.startswith(f"cannot write to {tmp_path}/file")

    def read_only(path, *arguments, **options):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert main([str(sweep)]) == NOTHING
    said = capsys.readouterr().err
    assert said == f"cannot write to {sweep}/report (Read-only file system); choose another place with --output\n"


# Notebooks and matplotlibrc


@pytest.fixture(scope="module")
def figures(sweep, tmp_path_factory):
    """The figures of a command in plain surroundings."""
    folder = tmp_path_factory.mktemp("plain")
    run("-m", "analysis", str(sweep), "--output", str(folder))
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


ODD = "text.usetex: True\nfont.family: Nonexistent\naxes.facecolor: red\nfigure.autolayout: True\nsavefig.bbox: tight\n"


@pytest.mark.parametrize(
    ("backend", "style", "in_the_folder"),
    [
        ("module://matplotlib_inline.backend_inline", ODD.encode(), False),
        ("nonsense", b"\xff\xfe", False),
        ("", b"", True),
    ],
)
def test_figures_are_the_same_in_every_surroundings(sweep, figures, tmp_path, backend, style, in_the_folder):
    (tmp_path / "matplotlibrc").write_bytes(style or ODD.encode())
    own = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    line = [sys.executable, "-m", "analysis", str(sweep), "--output", str(tmp_path / "report")]
    here = tmp_path if in_the_folder else ROOT
    done = subprocess.run(line, cwd=here, env=own, capture_output=True, text=True)
    assert done.returncode == OK, done.stderr
    assert {file.name: file.read_bytes() for file in (tmp_path / "report").glob("*.png")} == figures and figures


def test_a_notebook_keeps_its_own_look(sweep):
    import matplotlib

    from analysis.figures import curves as figures

    with matplotlib.rc_context({"axes.facecolor": "red", "text.usetex": True}):
        drawn = figures.learning_curves(figures.chosen(records.load(sweep)))
        assert drawn.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0) and not drawn.axes[0].title.get_usetex()
        assert matplotlib.rcParams["axes.facecolor"] == "red" and matplotlib.rcParams["text.usetex"]


# --where


@pytest.mark.parametrize(
    ("column", "values", "same", "other"),
    [
        ("optimizer.lr", [0.001, 0.01], ["0.001", "1e-3", "1.0E-03", ".001", "+0.0010"], ["0.0011", "1e-03x", "none"]),
        ("steps", [1000, 2000], ["1000", "1e3", "1000.0"], ["100", "1000.5"]),
        ("seed", [2**63 - 1, 2**53], [str(2**63 - 1)], [str(2**63)]),
        ("estimator.hard", [True, False], ["true", "True", "TRUE"], ["1", "yes"]),
        ("task.hidden", ["[200, 100]", "[]"], ["[200,100]", "[ 200, 1e2 ]", "[200.0, 100]"], ["[100,200]", "200,100"]),
        ("schedule.only", ['["nvil", "rloo"]', "[]"], ["[nvil,rloo]", "['nvil', \"rloo\"]"], ["[rloo,nvil]", "[nvil"]),
        ("task.scale", [None, 1.0], ["none", "null", "None"], ["0", ""]),
        ("protocol.sizes", [{"a": [1, 2]}, {}], ['{"a": [1, 2]}', "{a: [1.0, 2]}"], ["{a: [2, 1]}"]),
        ("estimator", ["nvil", "rloo"], ["nvil"], ["NVIL", "nvi"]),
    ],
)
def test_where_compares_values_and_not_their_spelling(column, values, same, other):
    frame = pd.DataFrame({column: pd.Series(values, dtype=object), "run": ["first", "second"]})
    for text in same:
        assert where(frame, [f"{column}={text}"])["run"].tolist() == ["first"], text
    for text in other:
        assert where(frame, [f"{column}={text}"])["run"].tolist() == [], text


def test_the_command_takes_any_spelling(sweep, capsys):
    for text in ("0.001", "1e-3"):
        assert command.main([str(sweep), "--where", f"optimizer.lr={text}", "--where", "task.hidden=[200,100]"]) == OK
        assert "4 runs: 4 finished" in capsys.readouterr().out
    assert set(statistics.final_rows(records.load(sweep))["optimizer.lr"]) == {0.001, 2.0}


# Terminals


@pytest.mark.parametrize("locale", ["streams", "system"])
def test_a_terminal_that_knows_ascii_only(sweep, tmp_path, locale):
    """Every command says what it says: ``±`` as ``+-``, and what has no such form as its escape."""
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    if locale == "system":  # the system's files have no other names then either
        ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        sweep = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    shown = run("-m", "analysis", str(sweep), "--output", str(tmp_path), **ascii_only)
    assert shown.returncode == OK and b" +- " in shown.stdout and shown.stdout.isascii()
    shown = run("-m", "analysis.report", str(sweep), "--output", str(sweep / f"{sweep.name}.html"), **ascii_only)
    assert shown.returncode == OK and shown.stdout.isascii() and b".html" in shown.stdout
    shown = run("-m", "training.status", str(sweep / "none"), **ascii_only)
    assert shown.returncode == 1 and shown.stderr.startswith(b"error: no runs at") and shown.stderr.isascii()
    shown = run("-m", "training.basket", str(sweep / "none"), **ascii_only)
    assert shown.returncode == 1 and b"not a run's directory" in shown.stderr and shown.stderr.isascii()


def test_training_at_a_terminal_that_knows_ascii_only(tmp_path):
    """The sweep's name is printed, with the plan and at the end."""
    own = [*SMALL, f"runs_dir='{tmp_path}/größe'", "sweep='größe'", "estimator=nvil"]
    for more in (["dry_run=true"], [], ["seed=1,2", "-m"], ["--help"]):
        shown = run("train.py", *own, *more, PYTHONIOENCODING="ascii")
        assert shown.returncode == 0 and shown.stdout.isascii() and shown.stderr.isascii(), shown.stderr
    assert len(records.find_runs(tmp_path / "größe" / "größe")) == 3
    shown = run("-m", "training.status", f"{tmp_path}/größe", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0 and b"3 finished" in shown.stdout


def test_an_estimator_whose_name_is_not_ascii(tmp_path):
    (tmp_path / "eigene.py").write_text(
        "from estimators import REINFORCE\nclass Größe(REINFORCE):\n    pass\n", "utf-8"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(tmp_path)}
    shown = run("-m", "estimators.check", "eigene:Größe", "--quick", "--draws=500", **environment)
    assert shown.returncode == 0 and b"Gr\\xf6\\xdfe" in shown.stdout
