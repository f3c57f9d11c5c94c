"""The pool of worker processes, with workers that train nothing: they are reused, replaced, and end with it."""

import dataclasses
import json
import os
import signal
import sys

import pytest
import torch

from training.sweep import pool as pools
from training.sweep.executor import Died, Ended, Progress, Started

WORKER = """
import json, os, sys

for line in sys.stdin:
    job = json.loads(line)
    config = job["runs"][0]["config"]
    text = json.dumps([os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")])
    print(json.dumps({"event": "message", "text": text, "pack": job["pack"]}), flush=True)
    if "exit" in config:
        sys.exit(config["exit"])
    if "wait" not in config:
        print(json.dumps({"event": "done", "pack": job["pack"]}), flush=True)
"""


@dataclasses.dataclass
class Run:
    config: dict
    overrides: tuple = ()


@pytest.fixture
def pool(monkeypatch, tmp_path):
    """A pool of two, whose workers see one GPU each of those that this process would see."""
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(pools, "python", lambda: [sys.executable, str(tmp_path / "worker.py")])
    monkeypatch.setattr(pools, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    options = {"runs_dir": str(tmp_path / "runs"), "sweep": "main", "workers": 2, "threads": 1, "device": "auto"}
    with pools.worker_pool(options) as made:
        yield made
    assert not (tmp_path / "runs").exists()  # nothing was written: nothing is left


def poll(pool, count):
    """The next ``count`` events."""
    events = []
    while len(events) < count:
        events += pool.poll(60)
    assert len(events) == count, events
    return events


def facts(events):
    """The process and the GPU of each job's worker."""
    return {event.job: tuple(json.loads(event.event["text"])) for event in events if isinstance(event, Progress)}


def test_a_worker_is_reused_and_each_has_its_gpu(pool):
    assert pool.room() == 2 and not pool.workers
    pool.submit({1: [Run({})], 2: [Run({})]})
    events = poll(pool, 6)
    assert {Started(1), Started(2), Ended(1), Ended(2)} <= {each for each in events if not isinstance(each, Progress)}
    first = facts(events)
    assert {gpu for _, gpu in first.values()} == {"4", "7"}
    pool.submit({3: [Run({"wait": True})]})
    assert pool.room() == 1
    pool.submit({4: [Run({})]})
    assert set(facts(poll(pool, 5)).values()) == set(first.values()) and pool.room() == 1


def test_a_worker_that_dies_with_a_job_is_told_and_replaced_on_its_gpu(pool):
    pool.submit({1: [Run({"exit": 3})], 2: [Run({"wait": True})]})
    events = poll(pool, 5)
    assert [each for each in events if isinstance(each, Died)] == [
        Died(1, "a worker", "worker process", "by exit code 3", "workers.log")
    ]
    before = facts(events)
    assert pool.room() == 1
    pool.submit({3: [Run({})]})
    after = facts(poll(pool, 3))
    assert after[3][0] != before[1][0] and after[3][1] == before[1][1]
    os.kill(before[2][0], signal.SIGKILL)
    assert poll(pool, 1) == [Died(2, "a worker", "worker process", "by signal SIGKILL", "workers.log")]


def test_a_worker_that_dies_without_a_job_is_nobodys_death(pool):
    pool.submit({1: [Run({})]})
    ((process, _),) = facts(poll(pool, 3)).values()
    os.kill(process, signal.SIGKILL)
    while pool.workers:
        assert list(pool.poll(60)) == []
    pool.submit({2: [Run({})], 3: [Run({})]})
    assert {Ended(2), Ended(3)} <= {each for each in poll(pool, 6) if isinstance(each, Ended)}


def test_workers_end_when_the_pool_is_left(pool):
    pool.submit({1: [Run({"wait": True})], 2: [Run({"wait": True})]})
    processes = [process for process, _ in facts(poll(pool, 4)).values()]
    assert pool.leave() == "stopped; checkpoints are written; start the same command again to go on"
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
