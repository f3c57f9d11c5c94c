"""A disk that fills up while a sweep writes, then has room again (needs root: it mounts a small tmpfs).

    python tests/faults/disk_full.py

The sweep must end with a sentence and exit code 1, leave no half-written file behind, count nothing as finished that is
not, and, started again with room, give the numbers of an undisturbed sweep. Then the same with a file system that is
mounted read-only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from analysis.records import METRICS, RunRecord, find_runs, read_metrics  # noqa: E402


def train(runs_dir: Path) -> subprocess.CompletedProcess[str]:
    options = ["estimator=nvil,gumbel_softmax", "seed=range(3)", "steps=600", "evaluate_every=100", "pack_size=1"]
    options += ["valid_samples=1", "test_samples=2", "device=cpu", "progress=false", "workers=2"]
    command = [sys.executable, "train.py", "-m", *options, "checkpoint_seconds=0.1", f"runs_dir={runs_dir}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def numbers(runs_dir: Path) -> dict[str, list[dict[str, float]]]:
    found = {}
    for path in find_runs(runs_dir):
        if RunRecord(path).outcome() == "finished":
            rows = read_metrics(path / METRICS)
            found[path.name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return found


def mounted(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", options, "-t", "tmpfs", "tmpfs", str(folder)], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        whole, small = Path(name) / "whole", Path(name) / "small"
        small.mkdir()
        train(whole).check_returncode()
        expected = numbers(whole)
        largest = sum(file.stat().st_size for file in whole.rglob("*"))
        mounted(small, f"size={largest // 2}")
        try:
            full = train(small)
            assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr[-2000:]
            assert "No space left" in full.stderr, full.stderr[-2000:]
            done = numbers(small)
            assert all(done[run] == expected[run] for run in done) and len(done) < len(expected)
            left = [str(file) for file in small.rglob("*.tmp")]
            assert not left, left
            print(
                f"full disk: {len(done)} of {len(expected)} runs finished, exit code 1: {full.stderr.splitlines()[-1]}"
            )
            subprocess.run(["mount", "-o", f"remount,size={4 * largest}", str(small)], check=True)
            train(small).check_returncode()
            assert numbers(small) == expected
            print("with room again: all runs finished, the same numbers bit for bit")
            for path in find_runs(small)[:1]:
                (path / "result.json").unlink()
            subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
            read_only = train(small)
            assert read_only.returncode == 1 and "Traceback" not in read_only.stderr, read_only.stderr[-2000:]
            assert len(numbers(small)) == len(expected) - 1
            print(f"read-only: exit code 1: {read_only.stderr.splitlines()[-1]}")
        finally:
            subprocess.run(["umount", str(small)], check=True)


if __name__ == "__main__":
    main()
