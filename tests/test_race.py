"""A race over settings: what it keeps and costs on made-up curves, and a sweep that races, is killed and goes on."""

import json
import math
import random
import shlex

import numpy as np
import pytest
from fake_runs import make_config, seal_again, write_run
from test_training import rows

from analysis import records
from analysis.figures import sensitivity
from analysis.statistics.summary import summarise
from training import paper, status
from training.config import validity
from training.config.compose import runs_of_command
from training.config.plan import RunPlan
from training.config.race import Race, legs, stage
from training.errors import UserError
from training.pack import loop
from training.progress import PackLine
from training.sweep import estimate
from training.sweep import run as sweep
from training.sweep.rungs import Rungs, lines_of, rungs_of


def follow(race, settings, seeds, steps, curve, killed=None):
    """Run a race on ``curve(setting, seed, step)``; returns its last stage and how far each run got.

    ``killed``: what picks the runs that are trained in a round, as if the rest had been lost with the process.
    """
    runs = {name: [(name, seed) for seed in range(seeds)] for name in settings}
    reached = {}

    def value(run, step):
        return curve(*run, step) if reached.get(run, 0) >= step else None

    while True:
        where = stage(race, runs, value)
        missing = [run for run in where.asked if reached.get(run, 0) < (where.step or steps)]
        if not missing:
            return where, reached
        for run in killed(missing) if killed else missing:
            reached[run] = where.step or steps


def steady(order):
    """Curves that never cross: settings in ``order``, the best first."""
    return lambda name, seed, step: -order.index(name) - 1 / step + 0.01 * seed


RACE = Race((1000, 4000), (1 / 3, 1 / 3), (1, 2), ("optimizer",))


def test_the_best_go_on_and_the_cost_is_what_is_said():
    names = [*"abcdef"]
    where, reached = follow(RACE, names, 5, 50_000, steady([*"edcbaf"]))
    assert where.left == ["e"] and where.step == 0
    assert where.out == {"a": 1000, "b": 1000, "c": 1000, "f": 1000, "d": 4000}
    assert reached[("a", 0)] == 1000 and ("a", 1) not in reached
    assert [reached[("d", seed)] for seed in range(2)] == [4000, 4000]
    assert [reached[("e", seed)] for seed in range(5)] == [50_000] * 5
    told = legs(RACE, 6, 5, 50_000)
    assert [(leg.step, leg.settings, leg.seeds) for leg in told] == [(1000, 6, 1), (4000, 2, 2), (50_000, 1, 5)]
    assert sum(leg.replica_steps for leg in told) == sum(reached.values())
    assert lines_of({tuple(told): 2}, RACE.over)[1:] == [
        "2 cells: step 1000: 6 settings x 1 seed, then step 4000: 2 settings x 2 seeds, then step 50000: 1 setting x 5 "
        "seeds",
        f"{2 * sum(reached.values()):,} replica-steps at most, 17.5% of the 3,000,000 of the full grid",
    ]


@pytest.mark.parametrize("case", range(60))
def test_any_race_keeps_the_best_of_each_rung_at_its_cost_wherever_it_is_killed(case):
    """On random curves, some of which diverge: a kill changes nothing, and without divergence the cost is exact."""
    draw = random.Random(case)
    count, seeds, rungs = draw.randint(1, 9), draw.randint(1, 4), draw.randint(1, 4)
    numbers = sorted(draw.randint(1, 5) for _ in range(rungs))
    race = Race(
        tuple(10 * rung for rung in sorted(draw.sample(range(1, 20), rungs))),
        tuple(draw.choice([0.1, 1 / 3, 0.5, 0.8, 1.0]) for _ in range(rungs)),
        tuple(numbers),
        ("optimizer",),
    )
    names = [f"s{number}" for number in range(count)]
    runs = [(name, seed) for name in names for seed in range(seeds)]
    diverging = {run: draw.choice([math.inf, math.inf, 55]) if case % 2 else math.inf for run in runs}
    values = {}

    def curve(name, seed, step):
        known = values.setdefault((name, seed, step), draw.choice([draw.gauss(0, 1), 0.0]))
        return math.nan if step >= diverging[name, seed] else known

    where, reached = follow(race, names, seeds, 200, curve)
    again, other = follow(race, names, seeds, 200, curve, lambda some: draw.sample(some, draw.randint(1, len(some))))
    assert (again.left, again.out, other) == (where.left, where.out, reached)
    for rung, means in where.means.items():
        own = range(min(seeds, race.seeds[race.rungs.index(rung)]))
        lost = {name: sum(math.isnan(curve(name, seed, rung)) for seed in own) for name in means}
        kept = [name for name in means if where.out.get(name, math.inf) > rung]
        for name in means:
            if name not in kept and kept:
                worst = max((lost[each], -means[each]) for each in kept)
                assert math.isnan(means[name]) or (lost[name], -means[name]) >= worst
        assert not any(math.isnan(means[name]) for name in kept)
    assert {*where.left, *where.out} == {*names} and not {*where.left} & where.out.keys()
    cost, full = sum(reached.values()), count * seeds * 200
    told = sum(leg.replica_steps for leg in legs(race, count, seeds, 200))
    assert cost <= told <= full and (case % 2 or cost == told)


def test_ties_divergence_and_the_end_of_a_cell():
    race = Race((10,), (0.5,), (2,), ("optimizer",))
    where, _ = follow(race, [*"abcd"], 2, 20, lambda *_: 1.0)
    assert where.left == ["a", "b"]  # of equals the first of the sweep
    lost = {"a": 2, "b": 1, "c": 0, "d": 0}
    where, _ = follow(race, [*"abcd"], 2, 20, lambda name, seed, _: math.nan if seed < lost[name] else -ord(name))
    assert where.left == ["c", "d"]  # whatever the bounds of those that lost a seed
    where, _ = follow(race, [*"ab"], 2, 20, lambda name, *_: math.nan if name == "a" else -1e9)
    assert where.left == ["b"]
    where, reached = follow(race, [*"ab"], 2, 20, lambda *_: math.nan)
    assert where.left == where.asked == [] and where.out == {"a": 10, "b": 10} and max(reached.values()) == 10


def test_where_the_winner_diverges_in_the_end_the_next_goes_on():
    """Large learning rates win early: the cell has a result all the same, unless all settings diverge."""
    race, names, late = Race((10,), (0.5,), (1,), ("optimizer",)), [*"abcd"], {*"ab"}
    runs = {name: [(name, seed) for seed in range(2)] for name in names}
    reached: dict[tuple[str, int], int] = {}

    def value(run, step):
        return -float(names.index(run[0])) if reached.get(run, 0) >= step else None

    def diverged(run):
        return run[0] in late and reached.get(run, 0) > 15

    def to_the_end():
        while True:
            where = stage(race, runs, value, None, diverged)
            asked = [run for run in where.asked if reached.get(run, 0) < (where.step or 20)]
            if not asked:
                return where
            reached.update({run: where.step or 20 for run in asked})

    where = to_the_end()
    assert (where.left, where.lost, where.out) == (["c"], ["a", "b"], {"d": 10})
    assert reached == {**{run: 20 for name in "abc" for run in runs[name]}, ("d", 0): 10}
    late |= {*"cd"}
    where = to_the_end()
    assert (where.left, where.asked, where.lost) == ([], [], ["a", "b", "c", "d"])
    late -= {"b"}
    assert to_the_end().left == ["a", "b"]  # a cell with one healthy winner is decided


BASE = (
    "python train.py -m estimator=gumbel_softmax,nvil optimizer.lr=1e-4,1e-2,1e-3,3e-2 seed=0,1,2 task.latents=4 "
    "steps=30 evaluate_every=5 valid_samples=1 test_samples=1 train_samples=0 progress=false sweep=raced"
)
RACED = "race=halving race.rungs=[5,15] race.keep=[0.5] race.seeds=[1,2]"


def in_process(packs):
    for pack in packs:
        sweep.train_runs(pack, PackLine(False))
    return {}


@pytest.fixture
def raced(tmp_path, monkeypatch):
    """``runs(*options)`` of the command, and a race that trains in this process."""
    monkeypatch.setattr(sweep, "_train", in_process)
    monkeypatch.setattr(estimate, "BUDGET_SECONDS", 0.01)
    return lambda *options, race=RACED: runs_of_command(
        shlex.join([*f"{BASE} {race}".split(), f"runs_dir={tmp_path}", *options])
    )


def end_of(runs):
    found = {}
    for run in runs:
        if run.path.exists():
            result = run.record.result()
            found[run.name] = result["status"], result["step"], [row["valid_bound"] for row in rows(run.path)]
    return found


def assert_same(one, two):
    """But for what another pack rounds otherwise."""
    assert {name: own[:2] for name, own in one.items()} == {name: own[:2] for name, own in two.items()}
    assert all(own[2] == pytest.approx(two[name][2], rel=1e-6) for name, own in one.items())


def test_a_sweep_races_and_is_resumed_after_a_kill(raced, tmp_path, monkeypatch, capsys):
    runs = raced("estimator=nvil")
    sweep.run_sweep(raced("dry_run=true"))
    dry = capsys.readouterr().out
    assert "2 cells: step 5: 4 settings x 1 seed, then step 15: 2 settings x 2 seeds, then step 30: 1 setting" in dry
    assert "260 replica-steps at most, 36.1% of the 720 of the full grid" in dry and not any(tmp_path.iterdir())
    steps, save, through = 0, records.RunRecord.status, loop.run_through

    class Killed(BaseException):
        """Like SIGKILL: nothing that expects errors sees it."""

    def counted(training, *watchers):
        nonlocal steps
        before = training.pack.step
        through(training, *watchers)
        steps += (training.pack.step - before) * training.pack.replicas

    def killed(record, word, **details):
        if word in ("waiting", "eliminated", "finished") and len(kills) < 4 and (record.name, word) not in kills:
            kills.add((record.name, word))
            raise Killed
        return save(record, word, **details)

    monkeypatch.setattr(loop, "run_through", counted)
    sweep.run_sweep(runs)
    assert steps == 130
    whole = end_of(runs)
    assert sorted(word for word, *_ in whole.values()) == ["eliminated"] * 4 + ["finished"] * 3
    said = capsys.readouterr().out
    assert said.count("go on: optimizer.lr=") == 2 and "3 finished" in said
    sweep.run_sweep(runs)
    assert steps == 130 and paper.unfinished(runs) == []
    again, kills = raced("estimator=nvil", "sweep=killed"), set()
    monkeypatch.setattr(records.RunRecord, "status", killed)
    for _ in range(5):
        try:
            sweep.run_sweep(again)
        except Killed:
            assert paper.unfinished(again)
    assert len(kills) == 4
    assert_same(end_of(again), whole)


def test_what_the_analysis_says_of_a_race(raced, tmp_path):
    runs = raced("estimator=nvil")
    sweep.run_sweep(runs)
    assert "3 finished, 4 eliminated" in status.report(tmp_path / "raced")
    frame = records.load(tmp_path / "raced")
    assert frame.attrs["damaged"] == [] and frame["test_bound"].notna().sum() == 3
    (row,) = summarise(frame).to_dict("records")
    assert (row["n"], row["settings"], row["cell_unfinished"]) == (3, 4, 0)
    assert row["raced"] == "optimizer, compared on validation at 5, 15 steps" and row["tuned"] == "optimizer.lr"
    table = sensitivity.sensitivity(frame).set_index("optimizer.lr")
    assert sorted(table["eliminated"]) == [0, 1, 1, 2] and sorted(table["rung"].dropna()) == [5, 5, 15]
    out = [run for run in runs if run.path.exists() and run.record.outcome() == "eliminated"]
    twice = [run for run in out if run.record.result()["step"] == 15]
    at_rung = -np.mean([rows(run.path)[-1]["valid_bound"] for run in twice])
    assert table["at_rung"][twice[0].config["optimizer"]["lr"]] == pytest.approx(at_rung)
    assert sensitivity.figure(table.reset_index()) is not None
    assert all(run.record.differences() == [] for run in out)


def test_what_lost_goes_on_without_the_race_and_with_another(raced):
    runs = raced("estimator=nvil")
    sweep.run_sweep(runs)
    wider = raced("estimator=nvil", "race.keep=[0.5,1.0]")
    assert {(run.name, run.until) for run in paper.unfinished(wider)} < {(run.name, 0) for run in wider}
    sweep.run_sweep(wider)
    assert sorted(word for word, *_ in end_of(runs).values()) == ["eliminated"] * 2 + ["finished"] * 6
    full = raced("estimator=nvil", race="")
    sweep.run_sweep(full)
    (row,) = summarise(records.load(full[0].path.parent)).to_dict("records")
    assert (row["raced"], row["settings"]) == ("", 4)  # nothing was ended
    alone = raced("estimator=nvil", "sweep=alone", race="")
    sweep.run_sweep(alone)
    assert_same(end_of(full), end_of(alone))
    assert {word for word, *_ in end_of(full).values()} == {"finished"}
    assert not any(records.format.older_results(run.path) for run in full)


def test_a_rung_at_which_a_run_was_not_measured_is_a_sentence(raced):
    """Without a race, or with other rungs, it went past this one: nothing would ever be compared there."""
    sweep.run_sweep(raced("estimator=nvil", "evaluate_every=15", "optimizer.lr=1e-4,1e-2", "seed=0", race=""))
    for more in ([], ["dry_run=true"], ["steps=45"]):
        with pytest.raises(UserError, match="is past step 5, and was not measured there, but at 15, 30; and 1 more; "):
            sweep.run_sweep(raced("estimator=nvil", "optimizer.lr=1e-4,1e-2", "seed=0", *more))
    only = raced("estimator=nvil", "optimizer.lr=1e-4,1e-2", "seed=0", race="race=halving race.rungs=[15]")
    sweep.run_sweep(only)
    assert {word for word, *_ in end_of(only).values()} == {"finished"}


def test_a_run_without_a_row_is_not_eliminated(raced):
    """As a kill before its first row leaves it, in a sweep that was begun without the race."""
    runs = raced("estimator=nvil")
    begun = [run for run in runs if run.config["seed"] == 2]
    for run in begun:
        assert run.record.claim.take()
        run.record.start("{}", [])
        run.record.claim.release()
    sweep.run_sweep(runs)
    assert sorted(run.record.outcome() or "none" for run in begun) == ["finished", "none", "none", "none"]


def test_cells_of_one_method_are_told_apart_and_a_finished_race_says_so(raced, capsys):
    options = ["estimator=gumbel_softmax", "estimator.temperature=0.5,1.0", "optimizer.lr=1e-4,1e-2", "seed=0"]
    sweep.run_sweep(raced(*options))
    said = capsys.readouterr().out
    for value in (0.5, 1.0):
        assert f"gumbel_softmax on vae_bernoulli, estimator.temperature={value}: step 5: 1 of 2 settings" in said
    sweep.run_sweep(raced(*options))
    assert "2 runs: 0 to do in 0 packs, 2 finished" in capsys.readouterr().out
    sweep.run_sweep(raced(*options, "steps=20"))
    assert "2 runs skipped: gumbel_softmax: trained further in this sweep" in capsys.readouterr().out


def test_what_diverged_is_tried_again_and_the_race_goes_on(raced, monkeypatch):
    options = ["estimator=nvil", "optimizer.lr=1e-3,1e30,1e-2", "seed=0"]
    runs = raced(*options)
    sweep.run_sweep(runs)
    (lost,) = [run for run in runs if run.record.outcome() == "diverged"]
    asked = []
    monkeypatch.setattr(
        sweep, "_train", lambda packs: asked.append({r.name for p in packs for r in p}) or in_process(packs)
    )
    sweep.run_sweep(raced(*options, "retry=diverged"))
    assert asked == [{lost.name}] and lost.record.outcome() == "diverged"
    asked.clear()
    sweep.run_sweep(raced(*options, "retry=failed", "steps=40"))
    (winner,) = [run.name for run in runs if run.record.outcome() == "finished"]
    assert asked == [{winner}]


def test_where_everything_diverges_the_cell_ends_with_a_sentence(raced, capsys):
    with pytest.raises(UserError, match="in each cell all settings diverged"):
        sweep.run_sweep(raced("estimator=nvil", "optimizer.lr=1e30,1e31"))
    assert (
        "nvil on vae_bernoulli: step 5: all 2 settings diverged, and the race of this cell ends"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("race.rungs=[]", "race.rungs=[] must be rising numbers of steps below steps=30"),
        ("race.rungs=[15,5]", "must be rising"),
        ("race.rungs=[5,30]", "below steps=30"),
        ("race.rungs=[7,15]", "race.rungs: 7 is no multiple of evaluate_every=5"),
        ("race.rungs=[0,15]", "race.rungs must be numbers at least 1"),
        ("race.keep=[0.5,0.5,0.5]", "race.keep=[0.5, 0.5, 0.5] must have one number, or one for each of race.rungs"),
        ("race.keep=[1.5]", "race.keep must be numbers in (0, 1]"),
        ("race.seeds=[2,1]", "race.seeds=[2, 1] must not fall"),
        ("race.over=[]", "race.over=[] names nothing to choose among"),
    ],
)
def test_a_race_that_cannot_be_run_is_one_sentence(raced, options, sentence):
    with pytest.raises(UserError) as error:
        validity.check(raced("estimator=nvil", options)[0].config)
    assert sentence in str(error.value)


def test_what_is_raced_over_trains(raced):
    for name in ("seed", "optimiser", "steps", "estimator.temperature"):
        with pytest.raises(UserError, match=f"race.over: {name} is no option, or group of options, that trains one"):
            rungs_of(raced("estimator=nvil", f"race.over=[{name}]"))


def test_a_run_is_asked_for_one_thing(raced):
    with pytest.raises(UserError, match="is asked for several steps or evaluations"):
        rungs_of(raced("estimator=nvil", "steps=30,40"))


def test_cells_are_all_but_what_is_raced_over_and_the_seed(raced):
    runs = raced("estimator=nvil,reinmax", "task.latents=3,4", "race.over=[optimizer.lr]")
    assert [(len(cell), {len(own) for own in cell.values()}) for cell in rungs_of(runs).cells] == [(4, {3})] * 4
    assert len(rungs_of(raced("race.over=[optimizer,estimator]", "estimator=nvil,reinmax")).cells) == 1


def test_another_metric_decides_if_it_is_asked_for(tmp_path):
    """Of three settings the bound says 1, the accuracy 2, and the cross-entropy, of which less is better, 3."""
    place = {"runs_dir": str(tmp_path.parent), "sweep": tmp_path.name}
    runs = [RunPlan({**make_config(optimizer__lr=lr), **place}) for lr in (1.0, 2.0, 3.0)]
    for run in runs:
        lr = run.config["optimizer"]["lr"]
        row = {"valid_accuracy": -abs(lr - 2.0), "valid_cross_entropy": abs(lr - 3.0)}
        write_run(tmp_path, run.config, valid=-lr, row=lambda step, row=row: row)
        told = records.files.read_json(run.path / records.FACTS)
        told["primary"] = {"metric": "bound", "higher_is_better": True}
        records.write_atomically(run.path / records.FACTS, json.dumps(told).encode())
        seal_again(run.path)
    for by, best in (("", 1.0), ("accuracy", 2.0), ("-cross_entropy", 3.0)):
        (line,) = Rungs(Race((500,), (0.34,), (1,), ("optimizer",), by), runs).eliminate()
        assert f"1 of 3 settings go on: optimizer.lr={best} (" in line
    with pytest.raises(UserError, match="race.by=speed: the task measures accuracy, bound, .*cross_entropy"):
        Rungs(Race((500,), (0.34,), (1,), ("optimizer",), "speed"), runs).eliminate()


def test_a_finished_run_that_lost_stays_finished(tmp_path):
    place = {"runs_dir": str(tmp_path.parent), "sweep": tmp_path.name}
    runs = [RunPlan({**make_config(optimizer__lr=lr), **place}) for lr in (1.0, 2.0)]
    for run in runs:
        write_run(tmp_path, run.config, valid=-run.config["optimizer"]["lr"])
        told = records.files.read_json(run.path / records.FACTS)
        told["primary"] = {"metric": "bound", "higher_is_better": True}
        records.write_atomically(run.path / records.FACTS, json.dumps(told).encode())
        seal_again(run.path)
    rungs = Rungs(Race((500,), (0.5,), (1,), ("optimizer",)), runs)
    (line,) = rungs.eliminate()
    assert line.endswith("step 500: 1 of 2 settings go on: optimizer.lr=1.0 (-1)")
    assert [run.record.outcome() for run in runs] == ["finished"] * 2
