"""``python -m analysis.benchmark``: what it takes to load a sweep, read anew and from what is kept: time and memory.

It writes a sweep as training does into a temporary folder and loads it in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from analysis import output
from analysis.records import RunRecord

ESTIMATORS = ("nvil", "darn", "muprop", "straight_through", "gumbel_softmax")
LOAD = """
import resource, sys, time
import pandas, pyarrow.json, pyarrow.parquet, yaml
from analysis.records import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began, cpu = time.perf_counter(), time.process_time()
frame = load(sys.argv[1])
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{seconds:.2f} s ({cpu:.2f} s of CPU), {len(frame)} rows, {frame.shape[1]} columns,", end=" ")
print(f"peak {peak / 1024:.0f} MB ({before / 1024:.0f} MB before)")
"""


def write_sweep(folder: Path, runs: int, rows: int) -> None:
    """``runs`` finished runs of ``rows`` rows of eight metrics, with the config and result that training writes."""
    import yaml

    noise = random.Random(0)
    for number in range(runs):
        config = _config(ESTIMATORS[number % len(ESTIMATORS)], number // len(ESTIMATORS), rows)
        record = RunRecord(folder / f"run-{number}")
        record.claim.take()
        record.start(yaml.safe_dump(config, sort_keys=False), ["seed=0"])
        lines, row = [], {}
        for step in range(100, 100 * rows + 1, 100):
            row = {"step": step, "seconds": step / 1000, "loss_evaluations": step}
            row |= {name: noise.gauss(-100, 5) for name in ("train_loss", "gradient_variance", "temperature")}
            row |= {name: noise.gauss(-100, 5) for name in ("valid_elbo", "valid_bound")}
            if step == 100 * rows:
                row |= {"test_elbo": noise.gauss(-100, 5), "test_bound": noise.gauss(-100, 5)}
            lines.append(json.dumps(row))
        (record.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        protocol = {"data": "digits", "train": 1197, "binarization": "dynamic", "prior": "uniform", "test_samples": 100}
        result = {"status": "finished", "step": 100 * rows, "metrics": row, "config": config, "protocol": protocol}
        record.finish({**result, "wall_seconds": rows / 10, "loss_evaluations": 100 * rows, "device": "cpu"})
        record.claim.release()


def _config(estimator: str, seed: int, rows: int) -> dict[str, Any]:
    groups: dict[str, Any] = {
        "estimator": {"name": estimator, "temperature": 1.0, "num_samples": 1},
        "task": {
            "name": "vae_bernoulli",
            "latents": 200,
            "categories": 2,
            "hidden": [],
            "prior": "uniform",
            "kl": "auto",
        },
        "data": {"name": "digits", "root": "data", "binarization": "dynamic", "download": True},
        "optimizer": {"name": "adam", "lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-08, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
    }
    numbers = {"seed": seed, "steps": 100 * rows, "batch_size": 100, "evaluate_every": 100, "test_samples": 100}
    return {**groups, **numbers, "evaluate_samples": 1, "valid_samples": 100, "threads": 1, "device": "auto"}


def main() -> None:
    """Write, load three times (anew, anew and kept from then on, from what was kept), print."""
    parser = argparse.ArgumentParser(prog="python -m analysis.benchmark", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "runs" / "benchmark"
        write_sweep(sweep, options.runs, options.rows)
        time.sleep(2.5)  # a file that has just changed is not kept
        size = sum(file.stat().st_size for file in sweep.rglob("metrics.jsonl"))
        print(f"{options.runs} runs x {options.rows} rows, {size / 1e6:.0f} MB of metrics, {os.cpu_count()} cores")
        for name in ("first time", "second time", "third time"):
            done = subprocess.run([sys.executable, "-c", LOAD, str(sweep)], capture_output=True, text=True, check=True)
            print(f"{name}: {done.stdout.strip()}")
        print(f"kept: {(sweep / '.frame.parquet').stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    output.run(main)
