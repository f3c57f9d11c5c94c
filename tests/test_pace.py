"""The pace of a sweep, and the time that is left, from the events of its packs and a clock of one's own."""

import json
import time

import pytest
from test_training import config

from training import progress, status
from training.config.plan import RunPlan
from training.progress import EVALUATING, FINAL, MEASURING
from training.sweep.pace import Active, Pace
from training.sweep.screen import Screen


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def started(pace, clock, replicas=2, steps=1000, step=0):
    pack = Active("nvil on toy", replicas, start=step, step=step, steps=steps)
    clock.now += 7  # importing, building
    pace.begins(pack)
    clock.now += 5  # compiling
    pace.steps(pack, step + 1)
    return pack


def test_the_time_left_counts_from_the_first_report_of_steps(clock):
    """Not from the start: 2 replicas x 10 steps in a second are 20 replica-steps/s, and 989 steps take 98.9 s."""
    pace = Pace(clock)
    pack = started(pace, clock)
    assert pace.rate([pack]) == 0 and pace.left([pack], 0, 0) is None
    clock.now += 1
    pace.steps(pack, 11)
    assert pace.rate([pack]) == pytest.approx(20) and pace.left([pack], 0, 0) == pytest.approx(98.9)


def test_after_a_resume_it_is_right_at_once(clock):
    pace = Pace(clock)
    pack = started(pace, clock, step=900)
    clock.now += 1
    pace.steps(pack, 911)
    assert pace.left([pack], 0, 0) == pytest.approx(8.9)


def test_packs_that_wait_take_the_mean_pace_and_share_the_processes(clock):
    pace = Pace(clock)
    packs = [started(pace, clock, replicas=1) for _ in range(2)]
    clock.now += 1
    for pack in packs:
        pack.reported = clock.now - 1
        pace.steps(pack, 101)
    assert pace.left(packs, 2000, 2) == pytest.approx((2 * 8.99 + 20) / 2)


def test_evaluation_and_measuring_have_a_time_of_their_own(clock):
    """A basket does not slow the pace down; an evaluation along the run does; the last one is counted for each run."""
    pace = Pace(clock)
    pack = started(pace, clock, replicas=1, steps=101)
    pace.turns(pack, MEASURING, 10, 40)
    clock.now += 10
    pace.turns(pack, MEASURING, 20, 40)
    clock.now += 0.5
    pace.steps(pack, 2)
    clock.now += 1
    pace.turns(pack, EVALUATING, 0, 9)
    clock.now += 1
    pace.steps(pack, 12)
    assert pack.seconds == 2 and pace.left([pack], 0, 0) == pytest.approx(89 * 0.2)
    pace.steps(pack, 101)
    pace.turns(pack, FINAL, 0, 100)
    clock.now += 3
    pace.turns(pack, FINAL, 25, 100)
    assert pace.left([pack], 0, 0) == pytest.approx(9) and not pace.knows_evaluations
    clock.now += 9
    pace.ends(pack)
    other = started(pace, clock, replicas=1, steps=1)
    assert pace.knows_evaluations and pace.left([other], 0, 1) == pytest.approx(24)


def test_a_run_alone_stands_there_too_and_its_pace_counts_from_its_first_report(tmp_path, monkeypatch, capsys):
    now = 50.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    line = progress.PackLine(True, tmp_path)
    line({"event": "pack", "label": "a on b", "replicas": 2, "step": 900, "steps": 1000})
    now += 40
    line({"event": "step", "step": 901, "note": ""})
    assert "left" not in capsys.readouterr().err
    now += 1
    line({"event": "step", "step": 911, "note": ""})
    now += 30
    line({"event": "phase", "phase": FINAL, "done": 1, "total": 4})
    assert "last evaluation 25 %" in capsys.readouterr().err
    assert "last evaluation 25 %" in status.screens(tmp_path)[0]
    line({"event": "step", "step": 1000, "note": ""})
    assert "step 1000/1000" in capsys.readouterr().err
    progress.withdraw(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_screen_names_phases_and_shows_bars_and_status_says_the_same(tmp_path):
    runs = [RunPlan(config(f"seed={seed}", "steps=40", runs_dir=str(tmp_path), sweep="s")) for seed in range(3)]
    screen = Screen([tuple(runs[:2]), (runs[2],)], enabled=False)
    screen.begin(1, tuple(runs[:2]))
    first, pack = screen.lines()
    assert "1 not started" in first and "the time left is known after the first steps" in first
    assert pack.endswith("x 2: starting")

    def show(**event):
        screen.show({"pack": 1, **event})
        return screen.lines()[1]

    assert "building" in show(event="phase", phase=progress.BUILDING, done=0, total=0)
    assert "first steps (0:00)" in show(event="pack", label="a on b", replicas=2, step=10, steps=40)
    assert "step 20/40, valid_bound -9" in show(event="step", step=20, note="valid_bound -9")
    assert "last evaluation [#####...............] 25 %" in show(event="phase", phase=FINAL, done=1, total=4)
    (tmp_path / "s").mkdir()
    screen.draw()
    shown = status.screens(tmp_path / "s")
    assert shown[0].startswith("0/2 packs, 3 runs: ") and "25 %" in shown[1] and status.screens(tmp_path) == shown
    (file,) = (tmp_path / "s").iterdir()
    file.write_text(json.dumps({"time": time.time() - 60, "lines": ["long ago"]}))
    assert status.screens(tmp_path) == []
    for damage in ("{", "[]", '{"time": "x", "lines": []}', '{"time": 1e999, "lines": 3}'):
        file.write_text(damage)
        assert status.screens(tmp_path) == []
    screen.close()
    assert not list((tmp_path / "s").iterdir())
