"""Kill a sweep again and again at random moments, start it again, and compare with an undisturbed one.

    python tests/faults/kill_at_random.py --kills 50

Each time either a worker, the parent, or all processes get SIGKILL. Checkpoints are written after every step, so many
kills fall into the writing of one; the last steps of the runs are spread, so some fall into the writing of a result.
With one run to a pack (the default) the numbers must agree bit for bit, otherwise up to rounding.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from analysis import records  # noqa: E402
from analysis.records import METRICS, RunRecord  # noqa: E402

RATES = "optimizer.lr=1e-3,2e-3,3e-3"


def command(runs_dir: Path, steps: int, pack_size: int, checkpoint_seconds: float, device: str) -> list[str]:
    options = ["estimator=nvil,gumbel_softmax", RATES, f"steps={steps},{steps + 37}", "evaluate_every=50"]
    options += [
        "valid_samples=1",
        "test_samples=2",
        "task.latents=8",
        f"device={device}",
        "progress=false",
        "workers=2",
    ]
    options += [f"pack_size={pack_size}", f"checkpoint_seconds={checkpoint_seconds}", f"runs_dir={runs_dir}"]
    return [sys.executable, "train.py", "-m", *options]


def processes(parent: int) -> list[int]:
    shown = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(number) for number in shown.split()]


def kill_something(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill a worker, the parent, or the whole group; the group must be gone before the next start."""
    kind = chance.choice(["worker", "parent", "all"])
    workers = processes(process.pid)
    if kind == "worker" and workers:
        os.kill(chance.choice(workers), signal.SIGKILL)
        return kind
    if kind == "parent":
        process.kill()
        process.wait()
        return kind
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "all"


def numbers(runs_dir: Path) -> dict[str, list[dict[str, float]]]:
    found = {}
    for path in records.find_runs(runs_dir):
        rows = records.read_metrics(path / METRICS)
        assert RunRecord(path).outcome() == "finished", f"{path} is not finished"
        found[path.name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return found


def disturbed(arguments: list[str], kills: int, seed: int, longest: float) -> dict[str, int]:
    """Start, kill after a random time, start again, until ``kills`` have hit; then let it finish."""
    chance, count, process = random.Random(seed), {"worker": 0, "parent": 0, "all": 0}, None
    while sum(count.values()) < kills:
        if process is None or process.poll() is not None:
            process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(0.5, longest))
        if process.poll() is not None:
            if process.returncode == 0:
                break  # done before all kills had hit
            continue
        count[kill_something(process, chance)] += 1
    if process is not None and process.poll() is None:
        process.wait()
    for _ in range(5):  # workers of a killed parent end by themselves, and hold their claims until then
        if subprocess.run(arguments, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0 and not _held(arguments):
            break
        time.sleep(1)
    return count


def _held(arguments: list[str]) -> bool:
    runs_dir = next(Path(argument.split("=")[1]) for argument in arguments if argument.startswith("runs_dir="))
    return any(RunRecord(path).outcome() is None for path in records.find_runs(runs_dir))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pack-size", type=int, default=1)
    parser.add_argument("--checkpoint-seconds", type=float, default=0.0)
    parser.add_argument("--longest", type=float, default=6.0, help="longest time between two kills in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="on a GPU numbers must agree up to rounding")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole, torn = Path(folder) / "whole", Path(folder) / "torn"
        subprocess.run(command(whole, options.steps, options.pack_size, 1e9, options.device), cwd=ROOT, check=True)
        arguments = command(torn, options.steps, options.pack_size, options.checkpoint_seconds, options.device)
        count = disturbed(arguments, options.kills, options.seed, options.longest)
        expected, got = numbers(whole), numbers(torn)
        assert expected.keys() == got.keys(), "runs are missing"
        worst = 0.0
        for name, rows in expected.items():
            assert [row["step"] for row in rows] == [row["step"] for row in got[name]], f"{name}: rows are missing"
            for a, b in zip(rows, got[name], strict=True):
                for key in a:
                    worst = max(worst, abs(a[key] - b[key]) / max(abs(a[key]), 1e-9))
        logs = "".join((path / records.LOG).read_text() for path in records.find_runs(torn))
        left = [str(path) for path in torn.rglob("*.tmp")]
    print(f"{sum(count.values())} kills ({count}), {len(expected)} runs, {logs.count('goes on')} resumes")
    print(f"largest relative difference {worst:g}; left behind {left}; {time.monotonic() - began:.0f} s")
    assert not left and (worst == 0 if (options.pack_size, options.device) == (1, "cpu") else worst < 1e-3)


if __name__ == "__main__":
    main()
