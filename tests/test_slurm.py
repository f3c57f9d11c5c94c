"""Sweeps on SLURM through submitit: real jobs of a fake SLURM, some of them killed, and what the user reads.

A real SLURM is tried by ``tests/slurm/run.sh``; the scheduler alone by ``test_scheduler.py``.
"""

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from fake_slurm import FakeSlurm
from processes import MARK, Processes
from test_cli import call

import training.sweep
from analysis import records
from training.config.compose import runs_of_command
from training.config.plan import RunPlan
from training.errors import UserError
from training.pack.run import train_runs
from training.sweep.executor import Died, Failed, Note
from training.sweep.run import run_sweep

pytest.importorskip("submitit")
slurm = importlib.import_module("training.sweep.slurm")

SMALL = ["evaluate_every=20", "test_samples=1", "valid_samples=1", "task.latents=4", "pack_size=1", "device=cpu"]
SIGNALLING = """
import os
from pathlib import Path
from estimators import REINFORCE

class Signalling(REINFORCE):
    calls = 0

    def signal(self, losses, context):
        Signalling.calls += 1
        if Signalling.calls == 30 and os.environ.get("SLURM_JOB_ID") in {jobs}:
            marker = Path({marker!r} + os.environ["SLURM_JOB_ID"])
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), {number})
        return super().signal(losses, context)
"""
"""An estimator that sends its process a signal, in each of some jobs once; a job starts again under its name."""


@contextlib.contextmanager
def fake_slurm(folder):
    """A SLURM whose jobs end with it; what it says holds at once."""
    processes = Processes()
    slurm_here = FakeSlurm(folder / "slurm")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**slurm_here.environment(os.environ["PATH"]), MARK: processes.mark}.items():
            patch.setenv(key, value)
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(str(folder))
        patch.setattr(slurm, "QUEUE_SECONDS", 0.0)
        patch.setattr(slurm, "GRACE_SECONDS", 0.0)
        try:
            yield slurm_here
        finally:
            processes.close()


@pytest.fixture
def cluster(tmp_path):
    with fake_slurm(tmp_path) as found:
        yield found


def plans(folder, *options):
    words = ["python train.py -m cluster=slurm", *SMALL, *options, f"runs_dir={folder}"]
    return runs_of_command(" ".join(words))


def signalling(folder, number, jobs, *options):
    """Runs whose estimator sends the signal ``number`` in each of ``jobs``."""
    name = f"signalling_{number}"
    text = SIGNALLING.format(jobs=set(jobs), marker=str(folder / "sent_"), number=number)
    (folder / f"{name}.py").write_text(text)
    own = {"name": name, "_target_": f"{name}.Signalling"}
    options = ["checkpoint_seconds=0", "steps=60", *options]
    return [RunPlan({**run.config, "estimator": own}) for run in plans(folder / "runs", *options)]


def run(runs):
    """What the sweep's command prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        run_sweep(runs)
    return output.getvalue()


def log(run):
    return (run.path / records.LOG).read_text()


def numbers(run):
    rows = records.read_metrics(run.path / records.METRICS)
    return json.dumps([{key: value for key, value in row.items() if key != "seconds"} for row in rows])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two packs as jobs, the second of which is killed: (runs, output)."""
    folder = tmp_path_factory.mktemp("swept")
    before = os.umask(0o002)
    try:
        with fake_slurm(folder):
            runs = signalling(folder, 9, ["1_1"], "seed=0,1")
            yield runs, run(runs)
    finally:
        os.umask(before)


def test_a_killed_job_is_submitted_again_and_goes_on(swept):
    runs, text = swept
    assert "2 finished" in text and " died without a result; its 1 unfinished runs go on from their ch" in text
    assert "2/2 packs, 2 runs: 2 finished, 0 failed" in text.splitlines()[-2]  # the screen, which the jobs' events feed
    for plan, killed in zip(runs, (False, True), strict=True):
        assert log(plan).count(" starts at step 0") == 1 and log(plan).count(" finished at step 60") == 1
        assert killed == (" goes on at step " in log(plan)) and not (plan.path / "claim").exists()


def test_jobs_give_the_numbers_of_this_process(swept, tmp_path):
    for there in swept[0]:
        config = yaml.safe_load((there.path / records.CONFIG).read_text())
        here = RunPlan(config | {"runs_dir": str(tmp_path)})
        train_runs([here], report=lambda event: None)
        assert here.name == there.name and numbers(here) == numbers(there)


def test_files_of_jobs_that_went_well_are_removed(swept):
    folder = swept[0][0].path.parent / slurm.FOLDER
    assert {file.name.rpartition("_")[0] for file in folder.glob("*_log.err")} == {"1_1_0"}  # the killed job's
    assert not list(folder.glob("*_result.pkl")) and not list(folder.glob("1_0_*"))


def test_nobody_else_can_put_a_job_into_the_folder(swept, tmp_path):
    """A job executes the pickle that it finds there."""
    sweep = swept[0][0].path.parent
    assert sweep.stat().st_mode & 0o777 == 0o775 and (sweep / slurm.FOLDER).stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    assert slurm.closed(tmp_path / "open").stat().st_mode & 0o777 == 0o700
    for mode in (0o775, 0o757):
        (tmp_path / "open").chmod(mode)
        with pytest.raises(UserError, match="others than you can write"):
            slurm.closed(tmp_path / "open")
    (tmp_path / "link").symlink_to(sweep / slurm.FOLDER)
    with pytest.raises(UserError, match="others than you can write"):
        slurm.closed(tmp_path / "link")


def test_the_warning_before_a_time_out_writes_checkpoints_and_the_same_job_goes_on(cluster, tmp_path):
    """SIGUSR2 goes through submitit's own handler, which requeues the job, as often as it may be."""
    (plan,) = signalling(tmp_path, 12, ["1"])
    text = run([plan])
    assert "1 finished" in text and "job 1 was stopped by SIGUSR2; checkpoints are written" in text
    assert "died" not in text and not (cluster.folder / "2").exists()
    stopped = next(line for line in log(plan).splitlines() if "by a signal; its checkpoint is written" in line)
    step = stopped.split("stopped at step ")[1].split()[0]
    assert f" goes on at step {step} " in log(plan)


def test_a_job_that_was_warned_too_often_has_failed(cluster, tmp_path):
    """submitit takes a warning for a time-out where the limit is below ten minutes."""
    (plan,) = signalling(tmp_path, 12, ["1"], "cluster.max_timeouts=0", "cluster.timeout_min=5")
    with pytest.raises(UserError, match="1 of 1 runs failed .*its job 1 timed out 1 times"):
        run([plan])
    assert "timed out 1 times" in plan.record.error() and "by a signal; its checkpoint is written" in log(plan)


def test_a_run_whose_jobs_always_die_has_failed_with_the_reason(cluster, tmp_path):
    (plan,) = signalling(tmp_path, 9, ["1", "2"], "retries=1")
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        run([plan])
    error = plan.record.error()
    assert "its job died 2 times (the last time without a result)" in error and error.endswith("2_0_log.err")
    assert Path(error.rpartition("; see ")[2]).exists() and plan.record.status_word() == "failed"


@pytest.fixture
def pending(cluster, tmp_path):
    """Two packs in jobs that wait in the queue: (executor, packs)."""
    (cluster.folder / "held").touch()
    packs, jobs = slurm.prepare([(plan,) for plan in plans(tmp_path / "runs", "seed=0,1")])
    jobs.submit(dict(enumerate(packs, start=7)))
    return jobs, packs


def test_jobs_that_wait_are_left_and_not_submitted_twice(cluster, pending, capsys, tmp_path):
    jobs, packs = pending
    assert list(jobs.poll(0)) == [Note("2 jobs pending")] and cluster.queue() == {"1_0": "PENDING", "1_1": "PENDING"}
    assert jobs.leave().startswith("stopped waiting; 2 jobs go on. To cancel: scancel 1. ")
    both = tuple(plan for plan in plans(tmp_path / "runs", "seed=0,1,2"))
    (left,), _ = slurm.prepare([both])
    assert [plan.config["seed"] for plan in left] == [2]
    assert "2 runs are in jobs of an earlier command and not submitted again: 1_0, 1_1" in capsys.readouterr().out
    assert slurm.prepare(packs)[0] == []
    (cluster.folder / "queue" / "1_0").unlink()
    assert slurm.prepare(packs)[0] == [packs[0]]


@pytest.mark.parametrize(
    ("accounts", "ends"),
    [
        ("", {"how": "without a result", "counts": True}),
        ("RUNNING|0:0", {"how": "without a result", "counts": True}),
        ("FAILED|0:0\nOUT_OF_MEMORY|0:9", {"how": "with state OUT_OF_MEMORY, signal 9", "counts": True}),
        ("NODE_FAIL|1:0", {"how": "with state NODE_FAIL, exit code 1", "counts": True}),
        ("PREEMPTED|0:15", {"how": "with state PREEMPTED, signal 15", "counts": False}),
        ("CANCELLED by 0|0:15", None),
    ],
)
def test_how_a_job_ended_that_left_the_queue(cluster, pending, accounts, ends):
    jobs, _ = pending
    (cluster.folder / "accounts").write_text(accounts)
    (cluster.folder / "queue" / "1_1").unlink()
    end, note = list(jobs.poll(0))
    if ends is None:
        assert end == Failed(8, "its job 1_1 was cancelled")
    else:
        log = jobs.folder / "1_1_0_log.err"
        assert end == Died(8, f"job 1_1 (log: {log})", "job", log=str(log), **ends)
    assert note == Note("1 jobs pending") and list(jobs.poll(0)) == [note]


def test_without_an_answer_of_squeue_and_within_the_grace_nothing_has_ended(cluster, pending, monkeypatch):
    jobs, packs = pending
    (cluster.folder / "broken").touch()
    assert list(jobs.poll(0)) == [Note("2 jobs ending")]
    (cluster.folder / "broken").unlink()
    for file in (cluster.folder / "queue").iterdir():
        file.unlink()
    monkeypatch.setattr(slurm, "GRACE_SECONDS", 1e9)
    assert list(jobs.poll(0)) == [Note("2 jobs ending")]
    monkeypatch.setattr(slurm, "GRACE_SECONDS", 0.0)
    assert packs[0][0].record.claim.take()  # it may live on unseen
    died, note = list(jobs.poll(0))
    assert isinstance(died, Died) and died.job == 8 and note == Note("1 jobs ending")


def test_a_refusal_is_one_sentence(cluster, tmp_path, monkeypatch):
    (cluster.commands / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(UserError, match="^SLURM refused the jobs: .*invalid partition.*; see cluster") as error:
        run(plans(tmp_path / "runs"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cluster=pbs"], ["pbs", "choose one of none, slurm"]),
        (["cluster=local"], ["worker pool", "leave cluster out"]),
        (["cluster=none,local"], ["worker pool", "leave cluster out"]),
        (["cluster=none", "cluster.partition=x"], ["partition"]),
        (["cluster=slurm", "cluster.parallelism=-1"], ["cluster.parallelism must be at least 0, not -1"]),
        (["cluster=slurm", "cluster.timeout_min=0"], ["cluster.timeout_min must be at least 1, not 0"]),
        (["cluster=slurm", "cluster.gpus=2"], ["cluster.gpus must be 0 or 1"]),
        (["cluster=slurm", "cluster.timeout_min=long"], ["timeout_min", "long"]),
        (["cluster=slurm"], ["sbatch", "leave cluster out"]),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, tmp_path, arguments, words):
    monkeypatch.setenv("PATH", "/nowhere")  # as on a machine without SLURM
    code = call(monkeypatch, "-m", *arguments, *SMALL, f"runs_dir={tmp_path}")
    assert isinstance(code, str) and code.startswith("error: ") and "Traceback" not in code and "\n" not in code
    assert all(word in code for word in words), code
    assert not records.find_runs(tmp_path)


def test_submitit_is_needed_for_slurm_only_and_the_user_is_told_how_to_get_it(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("submitit")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("run", "slurm", "slurm_job"):
        monkeypatch.delitem(sys.modules, f"training.sweep.{name}", raising=False)
        monkeypatch.delattr(training.sweep, name, raising=False)
    monkeypatch.setitem(sys.modules, "submitit", None)
    importlib.import_module("training.sweep.run")
    code = call(monkeypatch, "-m", "cluster=slurm", *SMALL, f"runs_dir={tmp_path}")
    assert isinstance(code, str) and "pip install submitit" in code and "\n" not in code
