"""Reading a sweep fast gives the frame of a plain reading, to the last value, with and without what is kept."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from fake_runs import make_config, write_run

from analysis import records
from analysis.records import METRICS, RESULT, STATUS, collect, load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of which everything is kept, however small and however new."""
    monkeypatch.setattr(collect, "WORTH", 0)
    monkeypatch.setattr(collect, "SETTLED", -3600.0)
    return tmp_path / "runs" / "sweep"


def quiet(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(path)


def assert_same(one, two):
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert one.attrs == two.attrs and list(one) == list(two)


def random_sweep(folder, seed, runs=14):
    """Runs of every status, with torn lines, rows that stand twice, lost keys, damage and metrics of any type."""
    noise = random.Random(seed)
    values = [
        lambda: noise.gauss(0, 1),
        lambda: noise.randint(-5, 5),
        lambda: None,
        lambda: 10.0 ** noise.randint(-300, 300),
        lambda: 0.1 + 0.2,
        lambda: float("-inf"),
    ]
    odd = [lambda: "text", lambda: True, lambda: [1, {"a": None}], lambda: 10**400]
    for number in range(runs):
        config = make_config(noise.choice(["nvil", "rloo"]), seed=number, optimizer__lr=noise.choice([1e-3, 1, None]))
        if noise.random() < 0.3:
            config["extra"] = noise.choice([1, 1.5, "x", True, None, [1, 2], {"deep": {"er": 3}}])
        mine = [name for name in ("a", "b", "c", "d") if noise.random() < 0.7]
        strange = values + odd if noise.random() < 0.15 else values

        def row(step, mine=mine, strange=strange):
            return {name: noise.choice(strange)() for name in mine if noise.random() < 0.8}

        status = noise.choice(["finished", "finished", "finished", "diverged", "failed", "running"])
        path = write_run(folder, config, status=status, steps=noise.choice([0, 1, 4]) or 1, row=row)
        if status == "failed":
            (path / METRICS).write_bytes(b"")
        if status == "running":
            with open(path / METRICS, "ab") as file:
                twice = b'{"step": 250, "a": 7}\n' if noise.random() < 0.5 else b""
                file.write(twice + noise.choice([b'{"step": 1500, "a', b'{"step": 1500, "a": 1}', b"", b"\n\n"]))
        if noise.random() < 0.15:
            damaged = path / noise.choice([METRICS, RESULT, STATUS])
            damaged.write_bytes(b'{"step": ]\n' + (damaged.read_bytes() if damaged.exists() else b""))


def plainly(path):
    """The frame as one would write it down: every line by ``json.loads``, every row a dict."""
    table = []
    for run in records.find_runs(path):
        try:
            constants, *_ = records.read_constants(run)
            rows = records.read_metrics(run / METRICS)
        except records.DamagedRecord:
            continue
        constants |= {"sweep": run.parent.name, "path": str(run)}
        for row in rows or [{"step": None}]:
            table.append({**constants, **{name: value for name, value in row.items() if value is not None}})
    return pd.DataFrame(table, dtype=object)


@pytest.mark.parametrize("seed", range(10))
def test_the_same_frame_anew_kept_and_read_plainly(sweep, seed):
    random_sweep(sweep, seed)
    anew = quiet(sweep)
    assert (sweep / collect.FILE).exists()
    assert_same(quiet(sweep), anew)
    assert_same(quiet(sweep), anew)
    (sweep / collect.FILE).unlink()
    assert_same(quiet(sweep), anew)
    plain = plainly(sweep)
    assert set(plain) <= set(anew) | {"error"} and len(plain) == len(anew)
    for name in plain:
        for one, two in zip(plain[name], anew[name], strict=True):
            missing = one is None or (isinstance(one, float) and np.isnan(one))
            beyond_float64 = one == 10**400 and two == np.inf
            assert pd.isna(two) if missing else two == one or beyond_float64, (name, one, two)


@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_that_goes_on_is_the_same_as_read_anew(sweep, tmp_path, seed):
    """Runs are added, changed and removed between loads; what is kept never shows."""
    noise = random.Random(seed)
    random_sweep(sweep, seed, runs=6)
    for step in range(5):
        quiet(sweep)
        runs = records.find_runs(sweep)
        shutil.rmtree(noise.choice(runs))
        write_run(sweep, make_config("darn", seed=step), row=lambda at, step=step: {f"new_{step}": at})
        with open(noise.choice(records.find_runs(sweep)) / METRICS, "ab") as file:
            file.write(b'{"step": 5000, "late": 1}\n')
        frame = quiet(sweep)
        shutil.copy(sweep / collect.FILE, tmp_path / "kept")
        (sweep / collect.FILE).unlink()
        assert_same(frame, quiet(sweep))
        shutil.copy(tmp_path / "kept", sweep / collect.FILE)


def test_only_changed_runs_are_read_again(sweep, monkeypatch):
    paths = [write_run(sweep, make_config(seed=seed), status="running") for seed in range(4)]
    load(sweep)
    read = []
    real = collect.read_piece
    monkeypatch.setattr(collect, "read_piece", lambda run, key: (read.append(run), real(run, key))[1])
    load(sweep)
    assert read == []
    with open(paths[2] / METRICS, "ab") as file:
        file.write(b"\n")
    load(sweep)
    load(sweep)
    assert read == [paths[2]]
    load(sweep.parent)
    assert read == [paths[2]]
    load(paths[0])  # a run alone is read itself
    assert read == [paths[2], paths[0]]


def test_a_moved_sweep_tells_where_it_is_now(sweep):
    write_run(sweep)
    load(sweep)
    moved = sweep.with_name("moved")
    sweep.rename(moved)
    frame = load(moved)
    assert set(frame["sweep"]) == {"moved"} and all(path.startswith(str(moved)) for path in frame["path"])


def foreign(file):
    parquet.write_table(pa.table({"step": [1, 2], "valid_bound": [0.0, 0.0]}), file)


def other_code(file):
    table = parquet.read_table(file)
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, b"reader": b"another"}), file)


def wrong_numbers(file):
    """One bit of a page of numbers flipped, in the file's body."""
    content = bytearray(file.read_bytes())
    content[len(content) // 8] ^= 4
    file.write_bytes(bytes(content))


def wrong_config(file):
    content = file.read_bytes()
    assert content.count(b"batch_size") >= 1
    file.write_bytes(content.replace(b'batch_size\\": 100', b'batch_size\\": 999').replace(b"uniform", b"learned"))


def folder_instead(file):
    file.unlink()
    file.mkdir()


SPOILT = {
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"PAR1" + b"\x00" * 100 + b"PAR1"),
    "torn": lambda file: file.write_bytes(file.read_bytes()[:-50]),
    "foreign": foreign,
    "of other code": other_code,
    "wrong numbers": wrong_numbers,
    "wrong config": wrong_config,
    "a folder": folder_instead,
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_file_is_ignored(sweep, kind):
    for seed in range(30):
        write_run(sweep, make_config(seed=seed), test=-100.0 - seed / 7)
    anew = load(sweep)
    SPOILT[kind](sweep / collect.FILE)
    assert_same(load(sweep), anew)
    assert_same(load(sweep), anew)


def test_nothing_is_kept_of_small_sweeps_nor_of_files_that_have_just_changed(tmp_path, monkeypatch):
    write_run(tmp_path)
    load(tmp_path)
    assert not (tmp_path / collect.FILE).exists()
    monkeypatch.setattr(collect, "WORTH", 0)
    load(tmp_path)
    assert not (tmp_path / collect.FILE).exists()
    monkeypatch.setattr(collect, "SETTLED", 0.0)
    load(tmp_path)
    assert (tmp_path / collect.FILE).exists()


def test_several_processes_at_once(sweep):
    for seed in range(20):
        write_run(sweep, make_config(seed=seed), steps=20)
    code = (
        "import sys, pandas as pd; from analysis.records import collect; from analysis.records import load\n"
        "collect.WORTH, collect.SETTLED = 0, -3600.0\n"
        "for _ in range(3):\n"
        "    frame = load(sys.argv[1])\n"
        "    print(len(frame), frame['valid_elbo'].sum(), list(frame.dtypes.astype(str)))\n"
        "    collect.write_cache(__import__('pathlib').Path(sys.argv[1]), collect.read_cache("
        "__import__('pathlib').Path(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", code, str(sweep)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = {line for process in processes for line in process.communicate()[0].splitlines()}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(lines) == 1
    assert len(collect.read_cache(sweep)) == 20 and not list(sweep.glob("*.tmp"))


def test_metrics_lines_that_only_look_right(sweep):
    """What a lenient parser would take for rows is named as damage."""
    for number, (content, sound) in enumerate(
        [
            (b'{"step": 1}{"step": 2}\n', False),
            (b'{"step":\n2}\n', False),
            (b'{"step": 1}\n[{"step": 2}]\n', False),
            (b'{"step": 1}\n{"valid_bound": 2}\n', False),
            (b'{"step": 1e3}\n', True),
            (b'{"step": 1, "a": NaN}\n', True),
            (b'{"step": 9223372036854775808}\n', False),
            (b'{"step": 3}\n{"step": 1}\n', True),
        ]
    ):
        path = write_run(sweep / str(number), status="running")
        (path / METRICS).write_bytes(content)
        frame = quiet(sweep / str(number))
        assert (len(frame.attrs["damaged"]) == 0) == sound, content
        if sound:
            assert frame["step"].tolist() == sorted(int(json.loads(line)["step"]) for line in content.splitlines())
