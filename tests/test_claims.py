"""Claims: each run is one process's; dead claims are taken over once; a lost claim is noticed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.records import claims
from analysis.records.claims import Claim

ROOT = Path(__file__).parents[1]

CLAIM_ALL = """
import sys
from pathlib import Path
from analysis.records.claims import Claim
Claim(Path("{sweep}/warm-up-" + sys.argv[1])).take()
print("ready", flush=True); sys.stdin.readline()
print([n for n in range(100) if Claim(Path(f"{sweep}/{{n}}")).take()], flush=True)
sys.stdin.readline()
"""


def claims_of(processes, sweep):
    """Which of the runs 0..99 each of several processes gets that claim them all at the same time."""
    code = CLAIM_ALL.format(sweep=sweep)
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        for n in range(processes)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    got = [json.loads(process.stdout.readline()) for process in started]
    for process in started:  # they live until all have claimed: the claim of a dead process may be taken over
        process.communicate("end\n")
    return got


@pytest.fixture
def dead_identity():
    """The identity of a process of this machine that is gone."""
    code = "from analysis.records import claims; print(claims._identity(), end='')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_run_is_claimed_by_exactly_one_process(tmp_path):
    got = claims_of(2, tmp_path)
    assert sorted(run for runs in got for run in runs) == list(range(100))


def test_dead_claims_are_taken_over_by_exactly_one_process(tmp_path, dead_identity):
    """At once, without waiting for the heartbeat to age; nothing is left behind but the claim."""
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / claims.CLAIM).write_text(dead_identity)
        (tmp_path / str(number) / ".claim.1.asks").write_text(dead_identity)  # it was killed in the middle
    got = claims_of(4, tmp_path)
    assert sorted(run for runs in got for run in runs) == list(range(100))
    assert all([file.name for file in (tmp_path / str(n)).iterdir()] == [claims.CLAIM] for n in range(100))


def test_on_this_machine_a_claim_lives_as_long_as_its_process(tmp_path):
    """Whatever the clock says: it jumped by a year, or the heartbeat is old because the process was suspended."""
    claim = Claim(tmp_path / "run")
    assert claim.take() and claim.is_held() and not Claim(claim.directory).take()
    for jump in (-3e7, -1e3, 1e3, 3e7):
        os.utime(claim.file, (time.time() + jump, time.time() + jump))
        assert claim.is_held() and not Claim(claim.directory).take()
    assert claim.beat() and abs(time.time() - claim.file.stat().st_mtime) < 60
    claim.release()
    assert not claim.is_held() and claim.take()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    claim = Claim(tmp_path / "run")
    assert claim.take()
    machine, process, started = claim.file.read_text().split()
    claim.file.write_text(f"{machine} {process} {int(started) - 1}\n")
    assert not claim.is_held() and claim.take()


@pytest.mark.parametrize("text", ["another/pid:[1] 1 1\n", "another-machine 1\n", "", "\x00\xff garbage"])
def test_elsewhere_a_claim_lives_as_long_as_its_heartbeat(tmp_path, text):
    claim = Claim(tmp_path)
    for age, held in ((0, True), (100, True), (-100, True), (130, False), (-3e7, False)):
        claim.file.write_text(text)
        os.utime(claim.file, (time.time() - age, time.time() - age))
        assert claim.is_held() == held and claim.take() != held
        claim.release()


def test_a_lost_claim_is_noticed_and_neither_touched_nor_released(tmp_path):
    claim = Claim(tmp_path)
    assert claim.take() and claim.beat()
    claim.file.write_text("another/pid:[1] 1 1\n")
    os.utime(claim.file, (1e9, 1e9))
    assert not claim.beat()
    claim.release()
    assert claim.file.read_text() == "another/pid:[1] 1 1\n" and claim.file.stat().st_mtime == 1e9
    claim.file.unlink()
    assert not claim.beat()


def test_another_object_of_the_same_process_releases_it(tmp_path):
    assert Claim(tmp_path).take()
    Claim(tmp_path).release()
    assert not (tmp_path / claims.CLAIM).exists()


def test_a_process_that_was_suspended_for_long_leaves_what_another_may_have_replaced(tmp_path, monkeypatch):
    claim, now = Claim(tmp_path), claims._now()
    assert claim.take()
    monkeypatch.setattr(claims, "_now", lambda: now + claims.HEARTBEAT_SECONDS)
    claim.release()
    assert claim.file.exists()
    assert claim.beat()
    claim.release()
    assert not claim.file.exists()


def test_what_is_no_folder_has_no_claim(tmp_path):
    (tmp_path / "file").write_text("")
    assert not Claim(tmp_path / "file" / "run").is_held()
