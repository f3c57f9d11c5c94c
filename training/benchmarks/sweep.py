"""``python -m training.benchmarks.sweep``: a sweep in packs on all cores beside the same runs one after the other.

Sixty runs (two estimators, ten seeds, three learning rates) on 8x8 digits, once as ``python train.py -m`` trains them
and once through Hydra's own sweeper and launcher, in turns. Printed are wall times, their ratio, and what a run costs
besides its steps and evaluations. ``--quick`` trains a tenth of the steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from analysis import output
from analysis.records import METRICS, RESULT, find_runs, read_metrics

ROOT = Path(__file__).parents[2]
SWEEP = ["estimator=reinmax,nvil", "seed=range(10)", "optimizer.lr=1e-4,3e-4,1e-3", "progress=false", "device=cpu"]
ONE_BY_ONE = ["hydra/sweeper=basic", "hydra/launcher=basic"]


def timed(arguments: list[str], folder: Path) -> float:
    """Seconds that a whole command takes."""
    began = time.monotonic()
    command = [sys.executable, "train.py", "-m", *SWEEP, *arguments, f"runs_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def busy_seconds(folder: Path) -> tuple[float, float, int]:
    """Seconds of steps and evaluations of all packs and of the longest, and the number of runs."""
    results = [json.loads((run / RESULT).read_text(encoding="utf-8")) for run in find_runs(folder)]
    seconds = [r["wall_seconds"] + r["evaluation_seconds"] for r in results]
    packs = sum(own / r["pack_replicas"] for own, r in zip(seconds, results, strict=True))
    return packs, max(seconds), len(results)


def largest_difference(first: Path, second: Path) -> float:
    """Largest relative difference in final training loss."""
    last = [{run.name: read_metrics(run / METRICS)[-1]["train_loss"] for run in find_runs(f)} for f in (first, second)]
    assert last[0].keys() == last[1].keys(), "not the same runs"
    return max(abs(last[0][name] - last[1][name]) / abs(last[1][name]) for name in last[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*", help="more options of train.py, such as task=...")
    options = parser.parse_args()
    arguments = [f"steps={200 if options.quick else 2000}", *options.overrides]
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name) / "packs", Path(name) / "one_by_one"
        packed = timed(arguments, folders[0])
        single = timed([*ONE_BY_ONE, *arguments], folders[1])
        busy, longest, runs = busy_seconds(folders[0])
        busy_alone, _, _ = busy_seconds(folders[1])
        print(f"{runs} runs: {packed:.1f} s in packs, {single:.1f} s one by one, ratio {packed / single:.2f}")
        print(f"steps and evaluations: {busy:.1f} s in packs, {busy_alone:.1f} s one by one")
        print(f"besides those of the longest pack: {packed - longest:.1f} s, {(packed - longest) / runs:.3f} s a run")
        print(f"largest relative difference of the last training loss: {largest_difference(*folders):.1g}")


if __name__ == "__main__":
    output.run(main)
