"""The progress of a sweep: what the events of its packs add up to."""

from test_training import config

from training.config.plan import RunPlan
from training.sweep.screen import Screen


def test_of_two_equal_packs_the_one_whose_process_died_is_lost():
    """Packs of one structure look alike; the other one still ends, and steps before the death count as trained."""
    packs = [(RunPlan(config("seed=0")),), (RunPlan(config("seed=1")),)]
    screen = Screen(packs, enabled=False)
    for number, pack in enumerate(packs, start=1):
        screen.begin(number, pack)
        screen.show({"event": "pack", "pack": number, "label": pack[0].label, "replicas": 1, "step": 0, "steps": 40})
        screen.show({"event": "step", "pack": number, "step": 10 * number, "note": ""})
    screen.lose(2, [packs[1]])
    assert screen.trained == 20 and list(screen.active) == [1]
    screen.end(1)
    assert screen.trained == 30 and screen.ended == 1


def test_a_note_stands_in_the_first_line():
    screen = Screen([(RunPlan(config()),)], enabled=False)
    before = screen.lines()[0]
    screen.note = "3 jobs pending"
    assert screen.lines()[0] == f"{before}; 3 jobs pending"
