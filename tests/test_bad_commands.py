"""A hundred wrong command lines: one sentence on stderr, an exit code that is not 0, and nothing written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import make_config, write_run
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[1]
MODULES = {
    "train": "train.py",
    "analysis": "-m analysis",
    "report": "-m analysis.report",
    "status": "-m training.status",
    "basket": "-m training.basket",
    "check": "-m estimators.check",
}
"""What follows ``python``, by the first word of a line below. ``RUN`` is a run of the sweep ``runs/sweep``."""

LINES = r"""
train estimator=nvli | choose one of annealed_straight_through
train task=vae | choose one of
train data=cifar | choose one of binarized_mnist
train optimizer=none | choose one of adam, sgd
train estimator= | choose one of
train estimator={name:nvil} | write estimator=NAME
train -m estimator.name=rloo | is the name of RLOO
train ~estimator | estimator is missing
train ~basket | basket is missing
train -m ~task | task is missing
train basket=null | basket is one of default, none, own; write basket=NAME, such as basket=none
train -m schedule=null | schedule=null: schedule is one of constant, exponential; write schedule=NAME
train -m race=null | race is one of halving, none; write race=NAME, such as race=none
train -m race=none race.rungs=[1] | rungs
train -m task=toy,3 | task is one of deep_vae_bernoulli
train optimizer=3 | optimizer is one of adam, sgd
train data=true | data is one of binarized_mnist
train +experiment=null | experiment is one of arm_tables
train estimator=[] | estimator is one of annealed_straight_through
train estimator=[nvil,rloo] | estimator is one of annealed_straight_through
train estimator.name= | estimator is missing
train basket.name=mine | choose a basket
train cluster.name=mine | cluster.name must be one of none, slurm
train estimator._target_=estimators.NVIL | name it with estimator.name=NAME
train -m estimator=straight_through estimator._target_=estimators.ReinMax | name it with estimator.name=NAME
train task._target_=tasks.Toy task.name=mine | the task has no images: use data=none
train task._target_=tasks.Toy task.name=mine data=none task.hidden=[3] | task.hidden: there is no such option
train task._target_=tasks.Task task.name=mine | it lacks encoder_parameters, evaluate, loss, primary
train estimator._target_=nowhere.Nothing estimator.name=mine | cannot be found
train estimator._target_=os.path.join estimator.name=mine | is no estimator
train estimator.temprature=1 | allowed here
train stepz=1 | allowed here
train +foo=1 | foo: there is no such option
train -m +foo=1,2 | foo: there is no such option
train +optimizer.foo=1 | foo
train ++basket.foo=1 | foo
train steps=many | Integer
train steps=1.5 | Integer
train steps= | steps
train seed=null | Optional
train seed=[1,2] | Integer
train seed=1,2 | multirun
train seed=-1 | seed must be at least 0, not -1
train seed=9223372036854775808 | in 64 bits
train seed=9223372036854775807 replicas=2 | 2\*\*63
train -m seed=0,99999999999999999999 | in 64 bits
train -m 'seed=range(0)' | nothing in it to sweep over
train -m 'seed=range(1,5,0)' | its step is not 0
train -m 'optimizer.lr=range(0.1,1.0,0.0)' | its step is not 0
train -m 'optimizer.lr=interval(0.1,1)' | not over an interval
train -m 'seed=range(1000000000000)' | at most 100000 runs
train -m 'seed=shuffle(range(1000000000))' | at most 100000 runs
train -m 'seed=range(1000)' 'optimizer.lr=range(0.001,1.0,0.001)' | at most 100000 runs
train -m 'estimator=glob(zzz*)' | nothing in it to sweep over
train replicas=1000000 dry_run=true | from 1 to 100000
train replicas=0 | from 1 to 100000
train threads=0 | from 1 to 4096
train -m workers=-1 | from 0 to 4096
train -m pack_size=-1 | at least 0
train checkpoint_seconds=nan | at least 0 and finite
train checkpoint_seconds=-1 | at least 0 and finite
train batch_size=0 | from 1 to 1000000
train batch_size=100000 | larger than the 1197 training images
train evaluate_samples=0 | at least 1
train data.train_evaluated=0 | at least 1
train optimizer.lr=inf | positive and finite
train -m optimizer.lr=1e-3,-1 dry_run=true | positive and finite
train optimizer.lr=1e-60 | in single precision
train optimizer.eps=-1 | at least 0 and finite
train optimizer.weight_decay=nan | at least 0 and finite
train optimizer.beta2=1 | in \[0, 1\)
train optimizer=sgd optimizer.momentum=-0.1 | in \[0, 1\)
train schedule=exponential schedule.minimum=inf | positive and finite
train schedule=exponential schedule.rate=nan | at least 0 and finite
train schedule=exponential schedule.every=0 | at least 1
train schedule=exponential estimator=nvil | has none
train -m schedule=constant,exponential estimator=rebar | estimator=rebar is learned, so nothing would change
train basket=default basket.points=1000000000 | from 1 to 1000000
train basket=default basket.estimators.nvil.decay=2 | in \[0, 1\)
train estimator.temperature=inf | positive and finite
train estimator=reinmax estimator.temperature=0.5 | at least 1 and finite
train estimator=relax estimator.layers=1000000000 | from 1 to 100
train estimator=rebar estimator.scale=0 | finite and positive
train estimator=gapped_straight_through estimator.gap=q | or 'p'
train estimator=arms estimator.copula=clayton | copula must be
train task.hidden=[0] | widths of at least 1
train task.hidden=[1000000000] | takes at least .* GiB
train -m task.latents=1000000000 dry_run=true | take at least .* GiB
train estimator=rloo estimator.num_samples=1000000000 | take at least .* GiB
train task=deep_vae_bernoulli task.layers=5 | from 1 to 4
train task=toy | use data=none
train estimator=disarm task=vae_categorical | defined for Bernoulli latents
train runs_dir= | names no folder
train -m runs_dir=here,there | runs_dir cannot be swept over
train sweep= | names a folder in runs_dir
train sweep=../../x | names a folder in runs_dir
train -m sweep=/tmp/x | names a folder in runs_dir
train 'sweep="a\nb"' | cannot be read|names a folder in runs_dir
train -m sweep=a,b | sweep cannot be swept over
train -m device=cpu,auto | device cannot be swept over
train -m +experiment=demo,jang_table1 | a sweep of its own
train hydra.run.dir=elsewhere | use runs_dir=PATH
train -m hydra.sweep.dir=elsewhere | use runs_dir=PATH
train 'sweep=a(b' | in quotes
train 'source=a;b' | in quotes
train estimator | in quotes
train 'sweep=${nothing}' | Interpolation key 'nothing' not found
train --multi-run | unrecognized arguments
train --cfg job --info | exclude each other
train --config-name=other | Cannot find primary config 'other'
train budget=small | add -m
train -m +experiment=demo budget=tiny | choose one of those
train retry=sometimes | failed, diverged or changed
train device=abacus | device must be
train logger=wandb logger.mode=loud | offline or online
train source=nobody2020 | no published numbers
train cluster=slurm cluster.parallelism=-1 | at least 0
train -m cluster=local cluster.parallelism=2 | the worker pool is what trains on this machine; leave cluster out
train data=mnist data.root=nowhere data.download=false | nowhere
analysis | required: path
analysis nowhere | no such path
analysis . --where | expected one argument
analysis runs/sweep --where nothing=1 | expected COLUMN=VALUE
analysis runs/sweep --table nothing | invalid choice
analysis runs/sweep other | unrecognized arguments
analysis empty | no runs at
report | required: path
report nowhere | no such path
report runs/sweep --where seed | expected COLUMN=VALUE
report empty --output page.html | no runs at
report runs/sweep --page | unrecognized arguments
status | required: path
status nowhere | no runs at
status runs sweep | unrecognized arguments
status --all | required: path
basket | required: run
basket nowhere | not a run's directory
basket empty nvil | not a run's directory
basket RUN | is not of this library
basket RUN --draws=3 | at least 4
basket RUN --warm-up=-1 | at least 0
basket RUN --draws=many | invalid int value
basket RUN --device=abacus | device must be
check nothing | there is no estimator 'nothing'
check nowhere:Nothing | cannot build
check json:loads | cannot build
check nvil --draws=10 | at least 500
check nvil --draws=many | invalid int value
check nvil --false-alarm=nan | between 0 and 1
check nvil --json=nowhere/file | cannot be written
check --slow | unrecognized arguments
"""
CASES = [
    line.rsplit(" | ", 1) if line.count(" | ") == 1 else line.split(" | ", 1) for line in LINES.strip().splitlines()
]
IN_PROCESSES = [
    "train sweep=../",
    "train -m +foo",
    "analysis nowhere",
    "report nowhere",
    "status --all",
    "basket nowhere",
]
IN_PROCESSES += ["check nothing"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder, with a sweep of one run and an empty folder in it."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "runs" / "sweep", make_config())
    (folder / "empty").mkdir()
    return folder


def listing(folder):
    return sorted((str(path), path.is_file() and path.stat().st_mtime_ns) for path in folder.rglob("*"))


def words_of(line, place):
    entry, *words = shlex.split(line)
    (run,) = (place / "runs" / "sweep").iterdir()
    return entry, [str(run) if word == "RUN" else word for word in words]


def judge(code, stderr, words, line):
    assert code not in (0, None), line
    text = stderr.strip()
    assert text and "\n" not in text and "Traceback" not in text, (line, stderr)
    assert re.search(words, text), (line, stderr)


def main_of(entry):
    """The command, as its module runs it."""
    import train
    from analysis import command, output, report
    from estimators import check
    from training import basket, status
    from training.errors import explained

    return {
        "train": lambda: explained(train.main),
        "analysis": lambda: output.run(command.main),
        "report": lambda: output.run(report.main),
        "status": lambda: output.run(status.main),
        "basket": lambda: explained(basket.main),
        "check": lambda: sys.exit(check.main()),
    }[entry]


def test_there_are_a_hundred_lines():
    assert len({line for line, _ in CASES}) == len(CASES) >= 100
    assert {line.split()[0] for line, _ in CASES} == MODULES.keys()


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_a_wrong_line_is_one_sentence_and_writes_nothing(monkeypatch, capfd, place, line, words):
    entry, arguments = words_of(line, place)
    main = main_of(entry)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", [MODULES[entry], *arguments])
    GlobalHydra.instance().clear()
    before = listing(place)
    with pytest.raises(SystemExit) as stopped:
        main()
    code = stopped.value.code
    printed = capfd.readouterr().err + (code if isinstance(code, str) else "")
    judge(code, printed, words, line)
    assert listing(place) == before


@pytest.mark.parametrize("start", IN_PROCESSES)
def test_and_so_in_a_process_of_its_own(place, start):
    ((line, words),) = [(line, words) for line, words in CASES if line.startswith(start)]
    entry, arguments = words_of(line, place)
    before = listing(place)
    command = [sys.executable, *MODULES[entry].replace("train.py", str(ROOT / "train.py")).split(), *arguments]
    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=own, capture_output=True, text=True)
    judge(done.returncode, done.stderr, words, line)
    assert listing(place) == before
