"""The scheduler alone, over an executor in this process that does what processes and clusters can do."""

import random

import pytest
from test_training import config

from training import interrupt
from training.config.plan import RunPlan
from training.interrupt import Stopped
from training.sweep import scheduler
from training.sweep.executor import Died, Ended, Failed, Note, Progress, Started
from training.sweep.screen import Screen


class Jobs:
    """An executor whose jobs do what a test says.

    ``act(job, pack)`` is called for each living job at each poll, and gives its events. ``over`` has the runs whose
    records hold what is asked for.
    """

    def __init__(self, act, places=2):
        self.act, self.places = act, places
        self.alive, self.over, self.deaths, self.failed = {}, set(), {}, set()
        self.submitted, self.ends, self.left = [], [], 0

    def room(self):
        return self.places - len(self.alive)

    def submit(self, packs):
        assert packs and len(packs) <= self.room() and not self.left and not interrupt.asked()
        for number, pack in packs.items():
            assert number not in [each for each, _ in self.submitted], "a number is given once"
            names = {run.name for run in pack}
            assert not names & self.over and not names & self.failed, "what is over is not trained again"
            assert not any(names & {run.name for run in other} for other in self.alive.values()), "a run is in one job"
            self.submitted.append((number, names))
            self.alive[number] = pack

    def poll(self, seconds):
        for number, pack in list(self.alive.items()):
            for event in self.act(number, pack):
                if isinstance(event, Ended | Died | Failed) and event.job in self.alive:
                    self._end(event, self.alive.pop(event.job))
                yield event
        yield Note(f"{len(self.alive)} jobs running")

    def _end(self, event, pack):
        self.ends.append(event.job)
        for run in pack:
            if isinstance(event, Died) and event.counts and not interrupt.asked():
                self.deaths[run.name] = self.deaths.get(run.name, 0) + 1
            given_up = isinstance(event, Failed) or self.deaths.get(run.name, 0) > run.config["retries"]
            if given_up and run.name not in self.over:
                self.failed.add(run.name)

    def leave(self):
        self.left += 1
        return "left"

    def finish(self, number, pack):
        """The events of a job that trains its pack to the end."""
        return [*(event for run in pack for event in self.finish_run(number, run)), Ended(number)]

    def finish_run(self, number, run):
        if run.name not in self.over:
            self.over.add(run.name)
            yield Progress(number, {"event": "run", "run": run.name, "status": "finished", "error": None})


def died(number, counts=True):
    return Died(number, "a worker", "worker process", "by signal SIGKILL", "workers.log", counts)


@pytest.fixture(scope="module")
def one():
    return config("progress=false")


@pytest.fixture
def screens(monkeypatch):
    """The screens that schedulers made."""
    made = []

    def make(*arguments):
        made.append(Screen(*arguments))
        return made[-1]

    monkeypatch.setattr(scheduler, "Screen", make)
    return made


def packs_of(one, folder, sizes, retries):
    seeds = iter(range(sum(sizes)))
    common = {**one, "runs_dir": str(folder), "retries": retries}
    return [tuple(RunPlan({**common, "seed": next(seeds)}) for _ in range(size)) for size in sizes]


def train(monkeypatch, jobs, packs):
    monkeypatch.setattr(RunPlan, "is_over", lambda run: run.name in jobs.over)
    with interrupt.on_signals():
        return scheduler.run_packs(packs, jobs)


def random_jobs(chance, stop_at=None):
    """Jobs that begin, finish runs, end, die, are preempted or fail, and speak again when they are over."""
    polls = 0

    def act(number, pack):
        nonlocal polls
        polls += 1
        if polls == stop_at:
            interrupt.ask()
        what = chance.choices(["wait", "begin", "run", "end", "die", "preempted", "fail"], [2, 2, 4, 3, 2, 2, 0.3])[0]
        if what == "begin":
            yield Started(number)
            label = {"event": "pack", "label": "x", "replicas": len(pack), "step": 0, "steps": 40}
            yield Progress(number, label)
        elif what == "run":
            yield from jobs.finish_run(number, chance.choice(pack))
        elif what == "end":
            yield from jobs.finish(number, pack)
        elif what in ("die", "preempted"):
            yield died(number, counts=what == "die")
        elif what == "fail":
            yield Failed(number, "nothing would help")
        if jobs.ends and chance.random() < 0.3:
            old = chance.choice(jobs.ends)
            said = {"event": "run", "run": "old", "status": "failed", "error": "late"}
            yield chance.choice([Started(old), Ended(old), died(old), Failed(old, "late"), Progress(old, said)])

    jobs = Jobs(act, places=chance.randint(1, 4))
    return jobs


@pytest.mark.parametrize("seed", range(40))
def test_every_job_ends_once_and_every_run_is_over_or_failed(monkeypatch, tmp_path, one, screens, seed):
    chance = random.Random(seed)
    sizes = [chance.randint(1, 5) for _ in range(chance.randint(1, 5))]
    packs = packs_of(one, tmp_path, sizes, retries=chance.randint(0, 3))
    jobs = random_jobs(chance)
    failures = train(monkeypatch, jobs, packs)
    runs = [run for pack in packs for run in pack]
    assert failures.keys() == jobs.failed and jobs.failed | jobs.over == {run.name for run in runs}
    assert not jobs.failed & jobs.over and not jobs.left
    assert sorted(jobs.ends) == sorted(number for number, _ in jobs.submitted) and not jobs.alive
    for run in runs:
        assert (run.name in failures) == (run.record.status_word() == "failed") and not run.record.claim.is_held()
        tries = sum(run.name in names for _, names in jobs.submitted)
        assert tries >= 1 and jobs.deaths.get(run.name, 0) <= 1 + run.config["retries"]
    (screen,) = screens
    assert screen.ended == screen.packs and not screen.active and screen.note == "0 jobs running"
    assert screen.words["finished"] == len(jobs.over) and screen.failures == failures


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_leaves_the_jobs_once_and_queues_nothing(monkeypatch, tmp_path, one, screens, seed):
    """A job that dies when it is told to end has not failed."""
    chance = random.Random(seed)
    packs = packs_of(one, tmp_path, [3] * 6, retries=0)
    jobs = random_jobs(chance, stop_at=chance.randint(1, 6))
    with pytest.raises(Stopped, match="left"):
        train(monkeypatch, jobs, packs)
    assert jobs.left == 1  # and submit refuses what comes afterwards
    (screen,) = screens
    assert screen.failures.keys() == jobs.failed
    failed = {run.name for pack in packs for run in pack if run.record.status_word() == "failed"}
    assert failed == jobs.failed


def test_a_pack_is_tried_again_at_once_from_the_second_death_on_in_halves(monkeypatch, tmp_path, one, capsys):
    packs = packs_of(one, tmp_path, [4, 1], retries=2)
    jobs = Jobs(lambda number, pack: [died(number)] if number <= 2 else jobs.finish(number, pack), places=1)
    assert train(monkeypatch, jobs, packs) == {}
    names = [run.name for run in packs[0]]
    whole, last = set(names), {packs[1][0].name}
    assert [each for _, each in jobs.submitted] == [whole, whole, set(names[:2]), set(names[2:]), last]
    said = "a worker died by signal SIGKILL; its 4 unfinished runs go on from their checkpoints"
    assert capsys.readouterr().err.splitlines().count(said) == 2


def test_what_a_dying_job_had_finished_is_not_tried_again(monkeypatch, tmp_path, one):
    (pack,) = packs_of(one, tmp_path, [3], retries=1)

    def act(number, pack):
        return [*jobs.finish_run(number, pack[0]), died(number)] if number == 1 else jobs.finish(number, pack)

    jobs = Jobs(act)
    assert train(monkeypatch, jobs, [pack]) == {}
    assert [names for _, names in jobs.submitted] == [{run.name for run in pack}, {run.name for run in pack[1:]}]


@pytest.mark.parametrize("retries", [0, 2])
def test_after_its_last_retry_a_pack_has_failed_and_says_how(monkeypatch, tmp_path, one, retries):
    packs = packs_of(one, tmp_path, [1, 1], retries)
    bad = packs[0][0]
    jobs = Jobs(lambda number, pack: [died(number)] if bad in pack else jobs.finish(number, pack))
    error = f"its worker process died {retries + 1} times (the last time by signal SIGKILL); see workers.log"
    assert train(monkeypatch, jobs, packs) == {bad.name: error}
    assert bad.record.status_word() == "failed" and bad.record.error() == error
    assert sum(bad.name in names for _, names in jobs.submitted) == retries + 1


def test_a_preemption_is_not_counted(monkeypatch, tmp_path, one):
    packs = packs_of(one, tmp_path, [2], retries=0)
    jobs = Jobs(lambda number, pack: [died(number, False)] if number < 100 else jobs.finish(number, pack))
    assert train(monkeypatch, jobs, packs) == {} and len(jobs.submitted) == 100


def test_what_would_fail_again_is_not_tried_again(monkeypatch, tmp_path, one):
    (pack,) = packs_of(one, tmp_path, [2], retries=5)
    jobs = Jobs(lambda number, pack: [*jobs.finish_run(number, pack[0]), Failed(number, "it was cancelled")])
    assert train(monkeypatch, jobs, [pack]) == {pack[1].name: "it was cancelled"}
    assert len(jobs.submitted) == 1


def test_a_run_that_somebody_else_trains_is_not_recorded_as_failed(monkeypatch, tmp_path, one):
    ((run,),) = packs_of(one, tmp_path, [1], retries=0)
    assert run.record.claim.take()
    jobs = Jobs(lambda number, pack: [died(number)])
    assert train(monkeypatch, jobs, [(run,)]) == {}
    assert run.record.status_word() != "failed"
