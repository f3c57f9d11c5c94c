"""``python -m analysis.verify``: a word for every record, exit codes, and what lies beside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from fake_runs import make_config, write_run

from analysis import verify
from analysis.papers import reference
from analysis.records import CHECKPOINT, IMAGES, METRICS, RESULT, RunRecord, find_runs, load
from training import status


@pytest.fixture
def sweep(tmp_path):
    for seed in range(6):
        write_run(tmp_path / "runs", make_config(seed=seed), images=True)
    return tmp_path / "runs"


def said(capsys, path):
    code = verify.main([str(path)])
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


def test_a_word_for_every_record(sweep, capsys):
    assert said(capsys, sweep) == (0, ["6 records: 6 sound", f"6 of the sound records are without {CHECKPOINT}"])
    edited, torn, foreign, older, going, sound = find_runs(sweep)
    for name in (METRICS, IMAGES):
        (edited / name).write_bytes((edited / name).read_bytes() + b"\n")
    os.truncate(torn / RESULT, 50)
    for run, own in ((foreign, {"seals": {"version": 99}}), (older, {})):
        result = json.loads((run / RESULT).read_bytes())
        del result["seals"]
        (run / RESULT).write_text(json.dumps(result | own))
    (going / RESULT).unlink()
    code, lines = said(capsys, sweep)
    assert code == 1
    assert "6 records: 1 sound, 1 changed, 1 unreadable, 1 foreign, 1 older, 1 unfinished" in lines
    assert f"changed: {edited / METRICS}: was changed after the run" in lines
    assert f"changed: {edited / IMAGES}: was changed after the run" in lines
    assert any(line.startswith(f"unreadable: {torn / RESULT}: not readable as JSON") for line in lines)
    assert f"unfinished: {going}" in lines and f"older: {older}" in lines
    assert not any(str(sound) in line for line in lines)


def test_what_is_no_folder_and_what_holds_nothing(tmp_path, capsys):
    archive = tmp_path / "runs.tar"
    archive.touch()
    assert said(capsys, archive) == (2, [f"{archive}: no folder; unpack an archive into an empty folder first"])
    assert said(capsys, tmp_path)[0] == 2


def test_references_are_checked_when_they_are_read(sweep, tmp_path, capsys):
    file = reference.write(load(sweep), tmp_path / "kept")
    assert said(capsys, tmp_path / "kept") == (0, ["1 references: 1 sound"])
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text)))  # another layout
    assert len(reference.read(tmp_path / "kept")) == 1
    file.write_text(text.replace('"bound": 105.0', '"bound": 104.0', 1))
    with pytest.raises(ValueError, match="reference.json: was changed after it was written"):
        reference.read(tmp_path / "kept")
    code, lines = said(capsys, tmp_path)
    assert code == 1 and "1 references: 1 changed" in lines
    file.write_text("{")
    assert "1 references: 1 unreadable" in said(capsys, tmp_path / "kept")[1]


def test_the_committed_references_are_sound(capsys):
    code, lines = said(capsys, "docs/results")
    assert code == 0 and lines[-1].endswith("sound")


AS_NOBODY = """
import contextlib, os, sys, warnings
from pathlib import Path
import pandas, pyarrow.json, pyarrow.parquet, scipy.stats, matplotlib.style, torch
from analysis import verify
from analysis.records import load
from training import status
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # imports what is imported late
    load(sys.argv[2]), status.report(Path(sys.argv[2])), verify.main([sys.argv[2]])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(len(load(sys.argv[1])["path"].unique()), *[str(each.message) for each in caught])
print(status.report(Path(sys.argv[1])))
print("exit code", verify.main([sys.argv[1]]))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody and be refused something")
def test_a_folder_that_cannot_be_read_is_named(sweep, tmp_path):
    other = shutil.copytree(sweep, tmp_path / "other")
    closed, half, *_ = find_runs(sweep)
    for folder in (sweep, *sweep.parents):
        folder.chmod(folder.stat().st_mode | 0o755) if str(folder).startswith("/tmp/") else None
    closed.chmod(0o700)
    (half / METRICS).chmod(0o600)
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, sweep, other], capture_output=True, text=True)
    closed.chmod(0o755)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("4 ") and "exit code 1" in done.stdout
    for part in (f"left out: {closed}", f"damaged: {closed.name}: {closed}", f"unreadable: {closed}", str(half)):
        assert part in done.stdout
    assert "6 runs: 4 finished, 2 damaged" in done.stdout
    assert "6 records: 4 sound, 2 unreadable" in done.stdout


def test_a_link_to_itself_and_links_to_the_same_run(sweep, tmp_path):
    """One odd entry of a folder hides none of the others, and no run counts twice."""
    (sweep / "loop").symlink_to("loop")
    (sweep / "again").symlink_to(sweep)
    (sweep / "twice").symlink_to(find_runs(sweep)[0])
    (sweep / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(sweep / "pipe")
    assert len(find_runs(sweep)) == 6 and len(find_runs(tmp_path)) == 6
    assert status.report(sweep).startswith("6 runs: 6 finished")


def test_a_folder_that_lost_its_config_and_its_result_is_still_a_run(sweep):
    run = find_runs(sweep)[0]
    (run / RESULT).unlink()
    (run / ".hydra" / "config.yaml").unlink()
    assert run in find_runs(sweep) and RunRecord(run).result() is None
