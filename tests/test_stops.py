"""A stop that is asked for: it is answered at once, and what takes long within a step gives way to it."""

import os
import signal

import pytest
from test_training import config, drop_times, rows, train

from analysis import records
from training import interrupt
from training.gradients import point
from training.interrupt import Stopped
from training.pack import loop
from training.pack.build import build
from training.pack.pack import Pack
from training.sweep import run

SHORT = ["estimator=rloo", "task.latents=4", "steps=4", "evaluate_every=2", "valid_samples=2", "test_samples=3"]


@pytest.fixture(autouse=True)
def nobody_asks():
    yield
    interrupt._asked.clear()


def test_a_signal_is_answered_at_once_whatever_goes_on(capfd):
    """In the handler itself: nothing else has to come to an end before."""
    with interrupt.on_signals(*run.SIGNALS, answer=run.ANSWER):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked() and capfd.readouterr().err == f"\n{run.ANSWER}\n"
        with pytest.raises(Stopped):
            interrupt.check()
    interrupt.check()


def test_a_last_evaluation_gives_way_and_is_made_when_the_run_goes_on(tmp_path, monkeypatch):
    (whole,) = train(tmp_path / "whole", *SHORT)
    evaluate = loop.evaluate_last

    def asked_on_the_way(pack):
        interrupt.ask()
        evaluate(pack)
        pytest.fail("it went to its end")

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped at step 4 of 4"):
        patch.setattr(loop, "evaluate_last", asked_on_the_way)
        train(tmp_path / "on", *SHORT)
    interrupt._asked.clear()
    path = tmp_path / "on" / "main" / whole.name
    record = records.RunRecord(path)
    assert record.status_word() == "queued" and record.outcome() is None and not record.claim.is_held()
    with monkeypatch.context() as patch:
        patch.setattr(Pack, "train_step", lambda self: pytest.fail("there is no step left"))
        train(tmp_path / "on", *SHORT)
    assert list(map(drop_times, rows(path))) == list(map(drop_times, rows(whole)))


def test_gradients_of_a_basket_are_given_up_between_two_draws(monkeypatch):
    here = point.Point(build([config("estimator=rloo", "task.latents=4")], point.torch.device("cpu")), examples=5)
    node = config("estimator=rloo")["estimator"]
    gradient, drawn = point._gradient, []

    def counted(*arguments, **options):
        found = gradient(*arguments, **options)
        drawn.append(interrupt.asked())
        if len(drawn) == 3:
            interrupt.ask()
        return found

    monkeypatch.setattr(point, "_gradient", counted)
    monkeypatch.setattr(point, "MOST_DRAWS", 2)
    with pytest.raises(Stopped):
        point.draw(here, here.own(node), "x", 500, point.warmed_up(here, here.own(node), "x", 1))
    assert drawn == [False] * 3
    for begin in (
        lambda: point.warmed_up(here, here.own(node), "x", 10),
        lambda: point.seconds(here, {"rloo": node}, 5),
    ):
        with pytest.raises(Stopped):
            begin()
