"""Claims in every order of their calls to the file system: two processes exhaustively, deaths included; three sampled.

The file system is a real one. Processes are threads that hand a baton on before each call, so one call is atomic, and
nothing else is assumed. What is searched for: two processes that live and both believe that they have the run.
"""

import os
import random
import threading
from types import SimpleNamespace

import pytest

from analysis.records import claims
from analysis.records.claims import Claim

CALLS = ("_create", "_read", "_names", "_rename", "_unlink", "_pause")


class Died(BaseException):
    """Kills a thread at its next call."""


class World:
    """Processes that go on one call at a time, in the order that ``choose(options)`` tells.

    An option is ``(process, dies)``. Each program is ``program(claim, world)``.
    """

    def __init__(self, directory, programs, choose, deaths=0):
        self.choose, self.deaths, self.dead = choose, deaths, set()
        self.here = threading.local()
        self.have, self.most = set(), 0
        self.turns = [threading.Semaphore(0) for _ in programs]
        self.back = threading.Semaphore(0)
        self.over = [False] * len(programs)
        self.killed = [False] * len(programs)
        self.results = [None] * len(programs)
        self.threads = [
            threading.Thread(target=self._live, args=(n, program, directory)) for n, program in enumerate(programs)
        ]

    def _live(self, number, program, directory):
        self.here.number = number
        try:
            self.wait()
            self.results[number] = program(Claim(directory), self)
        except Died:
            self.dead.add(number)
        finally:
            self.over[number] = True
            self.back.release()

    def has(self):
        """The process believes from now on that the run is its own."""
        self.have.add(self.here.number)
        self.most = max(self.most, len(self.have - self.dead))

    def has_not(self):
        self.have.discard(self.here.number)

    def wait(self):
        number = self.here.number
        self.turns[number].acquire()
        if self.killed[number]:
            raise Died

    def step(self):
        """Called before each call to the file system."""
        if getattr(self.here, "number", None) is None or self.killed[self.here.number]:
            return  # what a killed process still does on its way out is not done: see `kill`
        self.back.release()
        self.wait()

    def run(self):
        for thread in self.threads:
            thread.start()
        while alive := [n for n, over in enumerate(self.over) if not over]:
            options = [(n, False) for n in alive]
            if self.deaths:
                options += [(n, True) for n in alive]
            number, dies = self.choose(options)
            if dies:
                self.deaths -= 1
                self.killed[number] = True
                self.dead.add(number)
            self.turns[number].release()
            self.back.acquire()
        for thread in self.threads:
            thread.join()

    def is_killed(self):
        number = getattr(self.here, "number", None)
        return number is not None and self.killed[number]


@pytest.fixture
def play(monkeypatch, tmp_path):
    """``play(programs, choose, deaths=0, before=())`` -> what each process returned, in a new directory."""
    current = {}

    def hook(call):
        original = getattr(claims, call)

        def hooked(*arguments):
            world = current["world"]
            world.step()
            if world.is_killed():  # a kill -9 leaves everything as it is
                raise Died
            return None if call == "_pause" else original(*arguments)

        monkeypatch.setattr(claims, call, hooked)

    def identity():
        return f"here {getattr(current['world'].here, 'number', 'nobody')} 1\n"

    monkeypatch.setattr(claims, "_machine", lambda: "here")
    monkeypatch.setattr(claims, "_beaten", {})
    monkeypatch.setattr(claims, "_started", lambda n: "1" if n < 9 and n not in current["world"].dead else "")
    monkeypatch.setattr(claims, "_identity", identity)
    monkeypatch.setattr(claims.uuid, "uuid4", lambda: SimpleNamespace(hex=str(current["world"].here.number)))
    for call in CALLS:
        hook(call)
    count = iter(range(10**9))

    def play(programs, choose, deaths=0, before=()):
        directory = tmp_path / str(next(count))
        directory.mkdir()
        for name, text in before:
            (directory / name).write_text(text)
        world = current["world"] = World(directory, programs, choose, deaths)
        world.run()
        return world

    return play


def every_order(run, limit=200_000):
    """Call ``run(choose)`` once for every sequence of choices; returns how many there were."""
    prefix, runs = [], 0
    while True:
        taken = []

        def choose(options, taken=taken, prefix=prefix):
            position = len(taken)
            index = prefix[position] if position < len(prefix) else 0
            taken.append((index, len(options)))
            return options[index]

        run(choose)
        runs += 1
        assert runs < limit
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return runs
        prefix = [index for index, _ in taken[:-1]] + [taken[-1][0] + 1]


def takes(claim, world):
    got = claim.take()
    if got:
        world.has()
    return got


def takes_and_gives_back(claim, world):
    got = takes(claim, world)
    if got:
        world.has_not()
        claim.release()
    return got


def asks_blindly(claim, world):
    """Without a look at who else asks."""
    claim._is_first = lambda own: True
    return takes(claim, world)


def looks_in_the_other_order(claim, world):
    """At the claim first and at those that ask afterwards."""
    held = claim.is_held()
    claim.is_held = lambda: held
    return takes(claim, world)


def replaces_after_a_look(claim, world):
    """Judge, remove, create exclusively: what a lock would have to protect."""
    if claim.is_held():
        return False
    claims._unlink(claim.file)
    try:
        claims._create(claim.file, claims._identity())
    except FileExistsError:
        return False
    world.has()
    return True


STALE = [(claims.CLAIM, "here 9 1\n")]
LEFT = [*STALE, (".claim.9.asks", "here 9 1\n")]
"""The dead process 9 had the run; another one died when it asked."""


WHOLE = os.environ.get("FULL") == "1"


def orders(run, most):
    """Every order where ``FULL=1`` is set (minutes), else ``most`` of them at random."""
    draws = random.Random(0)
    for _ in range(0 if WHOLE else most):
        run(draws.choice)
    return every_order(run) if WHOLE else most


@pytest.mark.parametrize("before", [(), STALE, LEFT])
@pytest.mark.parametrize("program", [takes, takes_and_gives_back])
def test_two_processes_never_have_a_run_together(play, monkeypatch, before, program):
    """976 orders without a claim, 2,704 with a dead one, and 40,458 with somebody who died asking."""
    monkeypatch.setattr(claims, "PATIENCE", 2)

    def run(choose):
        world = play([program, program], choose, before=before)
        assert world.most <= 1 and None not in world.results

    orders(run, 300)


def test_nor_when_one_of_them_is_killed_at_any_call(play, monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE", 2)
    orders(lambda choose: _alone(play([takes, takes], choose, deaths=1, before=STALE)), 500)


def _alone(world):
    assert world.most <= 1


@pytest.mark.parametrize("program", [asks_blindly, looks_in_the_other_order, replaces_after_a_look])
def test_the_search_finds_what_is_wrong(play, monkeypatch, program):
    monkeypatch.setattr(claims, "PATIENCE", 2)
    most = []
    orders(lambda choose: most.append(play([program, program], choose, before=STALE).most), 500)
    assert max(most) == 2


def test_one_of_three_gets_a_dead_run(play):
    """Unless it is killed then: in orders drawn at random, with up to two deaths."""
    draws = random.Random(0)

    def choose(options):
        lives = [option for option in options if not option[1]]
        return draws.choice(options if draws.random() < 0.05 else lives)

    for number in range(200):
        world = play([takes] * 3, choose, deaths=number % 3, before=LEFT)
        assert world.most <= 1
        assert world.dead or sum(world.results) == 1
