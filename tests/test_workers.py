"""Sweeps on worker processes: what can go wrong costs no run and changes no number."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import LAST_RESORT, Processes
from test_training import config, drop_times, rows

from analysis import records
from estimators.memory import Allocations
from training import interrupt
from training.config.plan import RunPlan, replicated
from training.errors import UserError
from training.interrupt import Stopped
from training.pack import memory, run
from training.pack.build import build
from training.pack.pack import Pack
from training.sweep.run import ANSWER, run_sweep

ROOT = Path(__file__).parents[1]
LONG = ["steps=4000", "evaluate_every=200", "checkpoint_seconds=0.1"]
"""Seconds, in which another process can act."""
SHORT = ["steps=1000", "evaluate_every=100", "checkpoint_seconds=0.1"]
"""For what happens at a certain step."""


def plans(runs_dir, *overrides, **settings):
    job = config("device=cpu", "workers=1", *overrides, **settings, runs_dir=str(runs_dir))
    return list(replicated(job, overrides))


def metrics(plan):
    return [drop_times(row) for row in rows(plan.path)]


def log_of(plan):
    return (plan.path / records.LOG).read_text()


PROCESSES = Processes()


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    PROCESSES.close()


def wait_for(condition, seconds=LAST_RESORT):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def workers_of(process):
    """The numbers of a process's workers."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if "training.sweep.worker" in line]


def swept(folder, length):
    """A pack of two runs as it is when nothing happens."""
    runs = plans(folder, *length, "replicas=2")
    run_sweep(runs)
    return [metrics(plan) for plan in runs]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("whole"), LONG)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("short"), SHORT)


def test_a_worker_that_is_killed_is_replaced_and_its_runs_go_on(tmp_path, undisturbed):
    runs = plans(tmp_path, *LONG, "replicas=2")

    def kill():
        wait_for(lambda: all((plan.path / records.CHECKPOINT).exists() for plan in runs))
        os.kill(workers_of(os.getpid())[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run_sweep(runs)
    killer.join()
    assert [metrics(plan) for plan in runs] == undisturbed
    assert log_of(runs[0]).count("goes on at step") == 1 and "starts at step 0" in log_of(runs[0])


def test_a_pack_that_kills_its_workers_fails_and_the_others_go_on(tmp_path, capfd):
    """An estimator that ends its process: tried again ``retries`` times, then recorded as failed with how it died."""
    code = "import os\nfrom estimators import REINFORCE\nclass Deadly(REINFORCE):\n"
    code += "    def signal(self, losses, context):\n        os.kill(os.getpid(), 9)\n"
    (tmp_path / "deadly.py").write_text(code)
    bad, good = plans(tmp_path / "runs", "retries=1"), plans(tmp_path / "runs", "seed=5", "retries=1")
    for plan in bad:
        plan.config["estimator"] = {"name": "deadly", "_target_": "deadly.Deadly"}
    bad = [RunPlan(plan.config) for plan in bad]
    path, sys.path = sys.path, [str(tmp_path), *sys.path]
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        with pytest.raises(UserError, match="1 of 2 runs failed.*died 2 times.*SIGKILL") as caught:
            run_sweep([*bad, *good])
    finally:
        sys.path = path
        del os.environ["PYTHONPATH"]
    assert "retry=failed" in str(caught.value)
    assert good[0].record.outcome() == "finished" and bad[0].record.status_word() == "failed"
    assert "died 2 times" in log_of(bad[0]) and "went" not in capfd.readouterr().out


def test_an_exception_is_that_packs_and_its_traceback_is_in_its_log(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from estimators import REINFORCE\nclass Broken(REINFORCE):\n"
        "    def signal(self, losses, context):\n        raise ZeroDivisionError('out of luck')\n"
    )
    good = plans(tmp_path / "runs", "seed=5")
    bad = RunPlan({**good[0].config, "estimator": {"name": "broken", "_target_": "broken.Broken"}})
    os.environ["PYTHONPATH"] = str(tmp_path)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UserError, match="1 of 2 runs failed.*out of luck"):
            run_sweep([bad, *good])
    finally:
        sys.path.remove(str(tmp_path))
        del os.environ["PYTHONPATH"]
    assert good[0].record.outcome() == "finished"
    assert bad.record.status_word() == "failed" and "ZeroDivisionError: out of luck" in str(bad.record.error())
    assert "Traceback" in log_of(bad) and 'broken.py", line 4' in log_of(bad)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_stopped_or_killed_goes_on_at_once(tmp_path, undisturbed, number):
    """Of a parent that is killed the worker writes checkpoints and ends; a sweep started again waits for it."""
    command = [sys.executable, "train.py", "-m", *LONG, "replicas=2", "workers=1", "device=cpu", "progress=false"]
    command += ["test_samples=3", "valid_samples=2", "task.latents=6", f"runs_dir={tmp_path}"]
    process = PROCESSES.start(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    runs = plans(tmp_path, *LONG, "replicas=2")
    wait_for(lambda: all((plan.path / records.CHECKPOINT).exists() for plan in runs))
    workers = workers_of(process.pid)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait()
    else:
        _, errors = process.communicate(timeout=LAST_RESORT)
        assert process.returncode == 1 and "start the same command again" in errors and "Traceback" not in errors
        assert errors.index(f"\n{ANSWER}\n") < errors.index("start the same command again")
        assert "died" not in errors and len(workers) == 1
        with pytest.raises(ProcessLookupError):
            os.kill(workers[0], 0)
        assert [plan.record.status_word() for plan in runs] == ["queued"] * 2
        assert all("by a signal" in log_of(plan) and not plan.record.claim.is_held() for plan in runs)
    run_sweep(runs)
    assert all(plan.record.outcome() == "finished" and log_of(plan).count("goes on") == 1 for plan in runs)
    assert [metrics(plan) for plan in runs] == undisturbed


def test_a_solo_run_is_stopped_between_steps(tmp_path, short, monkeypatch):
    runs = plans(tmp_path, *SHORT, "replicas=2")
    step = Pack.train_step

    def stopping(self):
        if self.step == 777:
            interrupt.ask()
        return step(self)

    with interrupt.on_signals(), pytest.raises(Stopped, match="stopped at step 778 of 1000"):
        monkeypatch.setattr(Pack, "train_step", stopping)
        run.train_runs(runs, lambda event: None, solo=True)
    monkeypatch.undo()
    assert torch.load(runs[1].path / records.CHECKPOINT, weights_only=True)["step"] == 778
    run.train_runs(runs, lambda event: None, solo=True)
    assert [metrics(plan) for plan in runs] == short


def same(ours, theirs):
    """Rows that agree up to the rounding of another pack."""
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_runs_go_on_in_other_packs(tmp_path, short, monkeypatch):
    """Stopped together, resumed one after the other, each alone."""
    runs = plans(tmp_path, *SHORT, "replicas=2")
    step = Pack.train_step

    def stopping(self):
        if self.step == 555:
            interrupt.ask()
        return step(self)

    with interrupt.on_signals(), monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Pack, "train_step", stopping)
        run.train_runs(runs, lambda event: None)
    for plan, whole in zip(runs, short, strict=True):
        run.train_runs([plan], lambda event: None)
        same(metrics(plan), whole)


def test_out_of_memory_halves_the_pack(tmp_path, monkeypatch):
    runs, whole = plans(tmp_path / "a", "replicas=5"), plans(tmp_path / "b", "replicas=5")
    run.train_runs(whole, lambda event: None, solo=True)
    step, events = Pack.train_step, []

    def hungry(self):
        if self.replicas > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    monkeypatch.setattr(Pack, "train_step", hungry)
    run.train_runs(runs, events.append)
    assert [plan.record.outcome() for plan in runs] == ["finished"] * 5
    sizes = [event["replicas"] for event in events if event["event"] == "pack"]
    assert sizes == [5, 2, 3, 1, 2]
    for ours, theirs in zip(runs, whole, strict=True):
        same(metrics(ours), metrics(theirs))


def test_a_run_whose_pack_cannot_be_built_is_in_the_analysis(tmp_path):
    (plan,) = plans(tmp_path, "estimator=rebar", "estimator.scale=0")
    run.train_runs([plan], lambda event: None)
    frame = records.load(tmp_path)
    assert frame["status"].tolist() == ["failed"] and "scale must be finite and positive" in frame["error"].iloc[0]
    assert frame["estimator.scale"].tolist() == [0]


def test_one_run_that_does_not_fit_fails_with_what_to_do(tmp_path, monkeypatch):
    def hungry(self):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Pack, "train_step", hungry)
    (plan,) = plans(tmp_path)
    run.train_runs([plan], lambda event: None)
    assert plan.record.status_word() == "failed" and "use a smaller model or batch_size" in str(plan.record.error())


def test_a_pack_is_as_large_as_memory_allows(tmp_path, monkeypatch):
    """Measured: peak bytes grow by the same for every replica, and the bound follows the free memory."""
    job = config("estimator=nvil", "task.latents=20")
    device = torch.device("cpu")
    constant, per_replica = memory.bytes_of(job, device)
    with Allocations() as measured:
        pack = memory.trial_pack(job, 6, device)
        for _ in range(2):
            pack.train_step()
        pack.task.evaluate("valid", memory.TRIAL_SAMPLES)
    assert measured.peak == pytest.approx(constant + 6 * per_replica, rel=0.05)
    own = sum(parameter[0].numel() * 4 for parameter in pack.parameters)
    assert per_replica > 3 * own  # parameters and two moments at the least
    monkeypatch.setattr(memory, "free_bytes", lambda _: (constant + 3.5 * per_replica) / memory.USABLE)
    assert memory.largest_pack([{**job, "workers": 1}] * 10, device) == 3
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1.0)
    assert memory.largest_pack([{**job, "workers": 1}] * 10, device) == 1


def test_two_sweeps_at_once_train_every_run_once(tmp_path):
    """Of two processes started together on the same sweep each trains what the other has not claimed."""
    command = [sys.executable, "train.py", "-m", "seed=range(8)", "pack_size=1", "workers=2", "device=cpu"]
    command += ["steps=300", "evaluate_every=100", "progress=false", "test_samples=1", "valid_samples=1"]
    command += [f"runs_dir={tmp_path}", "task.latents=4"]
    both = [PROCESSES.start(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    paths = records.find_runs(tmp_path)
    assert len(paths) == 8
    for path in paths:
        assert records.RunRecord(path).outcome() == "finished"
        assert (path / records.LOG).read_text().count("starts at step 0") == 1
        assert [row["step"] for row in rows(path)] == [100, 200, 300]


def test_a_run_that_another_machine_took_over_is_dropped(tmp_path, monkeypatch):
    """It writes no more, and its neighbour goes on."""
    monkeypatch.setattr(run, "HEARTBEAT_SECONDS", 0.06)
    runs = plans(tmp_path, *SHORT, "replicas=2")
    step = Pack.train_step

    def stolen(self):
        if self.step == 500:
            runs[0].record.claim.file.write_text("another/pid:[1] 1 1\n")
        if self.step > 500:
            time.sleep(0.001)
        return step(self)

    monkeypatch.setattr(Pack, "train_step", stolen)
    run.train_runs(runs, lambda event: None)
    assert runs[0].record.outcome() is None and runs[1].record.outcome() == "finished"
    assert rows(runs[0].path)[-1]["step"] < 1000
    assert runs[0].record.claim.file.read_text() == "another/pid:[1] 1 1\n"


@pytest.mark.parametrize("trouble", ["metrics", "metrics gone", "another run's", "other shapes"])
def test_a_checkpoint_that_does_not_fit_starts_the_run_again(tmp_path, short, monkeypatch, trouble):
    (plan, other) = plans(tmp_path, *SHORT, "replicas=2")
    step = Pack.train_step

    def stopping(self):
        if self.step == 777:
            interrupt.ask()
        return step(self)

    with interrupt.on_signals(), monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Pack, "train_step", stopping)
        run.train_runs([plan, other], lambda event: None)
    file = plan.path / records.METRICS
    if trouble == "metrics":
        file.write_bytes(b"garbage\n" + file.read_bytes())
    elif trouble == "metrics gone":
        file.write_bytes(file.read_bytes().split(b"\n")[0] + b"\n")
    elif trouble == "another run's":
        (plan.path / records.CHECKPOINT).write_bytes((other.path / records.CHECKPOINT).read_bytes())
    else:
        state = torch.load(plan.path / records.CHECKPOINT, weights_only=True)
        state["tensors"] = {name: value.flatten()[:1] for name, value in state["tensors"].items()}
        torch.save(state, plan.path / records.CHECKPOINT)
    events = []
    run.train_runs([plan], events.append)
    same(metrics(plan), short[0])
    (message,) = [event["text"] for event in events if event["event"] == "message"]
    assert str(plan.path) in message and "again" in message


def test_a_divergence_says_where(tmp_path):
    """An exploding learning rate: step, estimator, temperature and the range of the logits; the run is frozen there."""
    healthy = plans(tmp_path / "a", "replicas=3", "estimator.temperature=0.7")
    sick = plans(tmp_path / "b", "replicas=3", "estimator.temperature=0.7")
    for runs, lr in ((healthy, 2e-3), (sick, 1e38)):
        runs[1] = RunPlan({**runs[1].config, "optimizer": {**runs[1].config["optimizer"], "lr": lr}})
    events = []
    run.train_runs(healthy, lambda event: None)
    run.train_runs(sick, events.append)
    for r in (0, 2):
        assert metrics(sick[r]) == metrics(healthy[r])
    assert sick[1].record.outcome() == "diverged"
    result = json.loads((sick[1].path / records.RESULT).read_text())
    assert 1 <= result["diverged_at"] <= 3 and result["temperature"] == pytest.approx(0.7)
    for word in (f"step {result['diverged_at']}", "gumbel_softmax", "temperature 0.7", "logits not finite"):
        assert word in result["divergence"]
    assert sick[1].record.error() == result["divergence"]
    assert [e["status"] for e in events if e["event"] == "run"] == ["diverged", "finished", "finished"]
    frame = records.load(tmp_path / "b")
    assert sorted(frame.groupby("run")["status"].first()) == ["diverged", "finished", "finished"]


def test_a_gradient_that_is_not_finite_freezes_its_replica():
    """The loss is fine, the gradient is not: the parameters stay what they were, the neighbours' are bit-identical."""
    job = config("estimator=gumbel_softmax")
    packs = [build([{**job, "seed": s} for s in range(3)], torch.device("cpu")) for _ in range(2)]
    (weight,) = [p for p in packs[0].parameters if p.shape == packs[0].task.decoders[0].biases[-1].shape][-1:]
    before = [p.detach().clone() for p in packs[0].parameters]

    def poison(gradient):
        gradient = gradient.clone()
        gradient[1, 0, 3] = float("inf")
        return gradient

    handle = weight.register_hook(poison)
    grad = torch.autograd.grad

    def poisoned(outputs, inputs, *arguments, **options):
        gradients = grad(outputs, inputs, *arguments, **options)
        return tuple(poison(g) if p is weight else g for p, g in zip(inputs, gradients, strict=True))

    torch.autograd.grad, losses = poisoned, []
    try:
        losses.append(packs[0].train_step())
    finally:
        torch.autograd.grad = grad
        handle.remove()
    losses.append(packs[1].train_step())
    assert torch.equal(*losses) and packs[0].tensors.health.first_bad.tolist() == [-1, 1, -1]
    for old, ours, theirs in zip(before, packs[0].parameters, packs[1].parameters, strict=True):
        assert torch.equal(old[1], ours[1]) and torch.equal(ours[[0, 2]], theirs[[0, 2]])
    for _ in range(3):
        ours, theirs = packs[0].train_step(), packs[1].train_step()
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
    assert torch.equal(before[0][1], packs[0].parameters[0][1])
    ((replica, details),) = packs[0].divergences([0, 1, 2], everywhere=True)
    assert replica == 1 and details["diverged_at"] == 1 and details["logits_min"] < 0 < details["logits_max"]
    assert f"logits from {details['logits_min']:.4g}" in details["divergence"]


def test_a_folder_that_cannot_be_written_costs_its_run_only(tmp_path):
    """A file stands in the place of one run's folder (permissions would not stop root)."""
    blocked, fine = plans(tmp_path, "replicas=2")
    blocked.path.parent.mkdir(parents=True)
    blocked.path.write_text("")
    with pytest.raises(UserError, match="1 of 2 runs failed.*cannot write to") as caught:
        run_sweep([blocked, fine])
    assert blocked.name in str(caught.value) and fine.record.outcome() == "finished"


def test_status_says_how_a_sweep_stands(tmp_path):
    done, failed, stopped, busy = plans(tmp_path, "replicas=4")
    run.train_runs([done], lambda event: None)
    for plan, word in ((failed, "failed"), (stopped, "running"), (busy, "running")):
        assert plan.record.claim.take()
        plan.record.start("", [])
        plan.record.append({"step": 20})
        plan.record.status(word, **({"error": "no luck"} if word == "failed" else {}))
    failed.record.claim.release()
    stopped.record.claim.release()
    command = [sys.executable, "-m", "training.status", str(tmp_path / "main")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "4 runs: 1 running, 1 interrupted, 1 finished, 1 failed" in shown
    assert f"failed: {failed.name}: no luck" in shown and f"running: {busy.name}: step 20" in shown
    absent = subprocess.run([*command[:3], str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True)
    assert absent.returncode == 1 and absent.stderr.startswith("error: no runs at") and absent.stderr.count("\n") == 1
