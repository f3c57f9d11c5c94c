"""``make gpu``: all that is measured and tested on a GPU, in at most eight minutes, as one JSON and one Markdown file.

It needs no network, and no package besides those that train (the tests need pytest). Each part has a share of the time,
most useful first, and is written when it is done: what is stopped half-way has given what it got until then. What did
not fit or failed is named in both files.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from analysis import output
from training.benchmark import copied_bytes, in_turns, make_pack, prepare
from training.benchmarks.evaluation import MODELS, make_task, products
from training.devices import pick_device
from training.kernels import philox
from training.kernels.matmul import use_tf32
from training.pack.evaluation import commit, device_name
from training.pack.runner import STEPS_PER_GRAPH
from training.processes import ROOT

ESTIMATORS = ("gumbel_softmax", "st_gumbel_softmax", "reinmax", "nvil", "rloo", "disarm")
REPLICAS = (256, 64, 1, 1024, 8)
TOGETHER, STEPS = (1, 8, 64), 40
"""Packs that are compared, and for how long."""
TASKS = ("vae_categorical", "sbn_bernoulli", "sbn_categorical")
ON_TASKS = ("gumbel_softmax", "reinmax", "nvil", "rloo")
TARGETED = (*ON_TASKS, "disarm")
TESTS = {
    "tests/test_philox.py": "cuda",
    "tests/test_precision.py": "cuda",
    "tests/test_capture.py": "captured_is or captured_alone or on_a_gpu",
    "tests/test_compiled_step.py": "cuda",
    "tests/test_every_combination.py": "",
}
"""The files, and which of their tests."""
PROFILED = (True, False)
"""Steps whose kernels are counted: compiled or not."""
SECONDS = 0.4
"""For one line of the table of speeds."""
TARGETS = {(256, False): 105e3, (256, True): 180e3, (64, False): 95e3, (64, True): 150e3, (1, False): 9e3}
"""Replica-steps per second of 784-200-784 with ``ESTIMATORS[0]``, by replicas and TF32; of the
others of ``TARGETED`` 1 / 1.4 of it."""
Row = dict[str, Any]
Part = Callable[["Deadline"], Iterator[Row]]


def cases() -> list[tuple[str, str, int, bool, bool]]:
    """``(task, estimator, replicas, tf32, compile)``, the most telling first: compilation takes seconds for each."""
    bits, first = "vae_bernoulli", ESTIMATORS[0]
    found = [(bits, first, replicas, tf32, True) for tf32 in (False, True) for replicas in (256, 64, 1)]
    found += [(bits, first, replicas, False, False) for replicas in (256, 64, 1)]
    found += [(bits, estimator, 256, False, True) for estimator in ESTIMATORS]
    found += [(task, first, 256, False, True) for task in TASKS]
    found += [(bits, estimator, 64, False, True) for estimator in ESTIMATORS]
    found += [(task, estimator, 64, False, False) for task in TASKS for estimator in ON_TASKS]
    everything = product((bits,), ESTIMATORS, REPLICAS, (False, True), (True, False))
    return list(dict.fromkeys([*found, *everything]))


class Deadline:
    """A part's time: ``left`` seconds of it."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(self.end - time.monotonic(), 0.0)


def rates(device: torch.device) -> Part:
    """Bytes and products per second, on which the floors are built."""

    def part(deadline: Deadline) -> Iterator[Row]:
        n = 2**28 if device.type == "cuda" else 2**22
        source = torch.empty(n, device=device)
        target = torch.empty_like(source)
        copied = in_turns({"copy": lambda: target.copy_(source)}, 0.5)["copy"]
        yield {"what": "copy, read and written", "unit": "GB/s", "rate": 8 * n / copied / 1e9}
        side = 8192 if device.type == "cuda" else 512
        a, b = (torch.rand(side, side, device=device) for _ in range(2))
        for tf32 in (False, True):
            use_tf32(tf32)
            seconds = in_turns({"product": lambda: a @ b}, 0.5, calls=3)["product"]
            name = f"product of {side}^3, {'TF32' if tf32 else 'float32'}"
            yield {"what": name, "unit": "TFLOP/s", "rate": 2 * side**3 / seconds / 1e12}

    return part


def speeds(device: torch.device, bandwidth: Callable[[], float | None]) -> Part:
    """Replica-steps per second of 784-200-784 by estimator, pack and precision; then of other tasks."""

    def part(deadline: Deadline) -> Iterator[Row]:
        for case in cases():
            if deadline.left < 5:
                return
            row: Row = dict(zip(("task", "estimator", "replicas", "tf32", "compile"), case, strict=True))
            try:
                row |= _speed(device, *case, bandwidth())
            except Exception as trouble:  # one line's trouble costs no other line
                row["error"] = _in_words(trouble)
            yield row

    return part


def _speed(
    device: torch.device, task: str, estimator: str, replicas: int, tf32: bool, compile: bool, bandwidth: float | None
) -> Row:
    use_tf32(tf32)
    began = time.perf_counter()
    pack = make_pack(estimator, replicas, device, f"task={task}", f"compile={compile}")
    pack.train_step()
    _wait(device)
    prepared = time.perf_counter() - began
    steps = partial(pack.train_steps, STEPS_PER_GRAPH)
    duration = in_turns({"steps": steps}, SECONDS, calls=3)["steps"] / STEPS_PER_GRAPH
    began = time.perf_counter()
    for _ in range(3):
        steps()
    host = (time.perf_counter() - began) / (3 * STEPS_PER_GRAPH)
    _wait(device)
    row: Row = {"replica_steps_per_second": replicas / duration}
    if task == "vae_bernoulli" and (replicas, tf32) in TARGETS:
        slower = 1.0 if estimator == ESTIMATORS[0] else 1.4
        row["target"] = TARGETS[replicas, tf32] / slower if estimator in TARGETED else ""
    row |= {"step_ms": 1e3 * duration, "host_ms": 1e3 * host, "prepared_s": prepared}
    row |= {"not_compiled": pack.runner.not_compiled, "not_captured": pack.runner.not_captured}
    if task == "vae_bernoulli" and bandwidth:
        row["share_of_bytes"] = copied_bytes(replicas, estimator) / bandwidth / duration
    return row


def kernels(device: torch.device) -> Part:
    """Where the time of one step of 256 replicas goes, by kernel, and how often each is launched, without a graph."""

    def part(deadline: Deadline) -> Iterator[Row]:
        use_tf32(False)
        for compiles in PROFILED:
            if deadline.left > 5:
                yield from _profiled(device, compiles)

    return part


def _profiled(device: torch.device, compiles: bool) -> Iterator[Row]:
    from torch.profiler import ProfilerActivity, profile

    pack = make_pack("gumbel_softmax", 256 if device.type == "cuda" else 8, device, f"compile={compiles}")
    pack.runner.not_captured = "it is profiled"
    for _ in range(3):
        pack.train_step()
    _wait(device)
    steps = 16
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        pack.train_steps(steps)
        _wait(device)
    launched, total = 0.0, 0.0
    for event in profiler.key_averages():
        if event.device_type.name != device.type.upper():  # an operator, whose kernels stand for themselves
            continue
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        row = {"compile": compiles, "kernel": event.key[:120]}
        yield row | {"us_per_step": own / steps, "calls_per_step": event.count / steps}
        launched, total = launched + event.count / steps, total + own / steps
    yield {"compile": compiles, "kernel": "all of them", "us_per_step": total, "calls_per_step": launched}


def together(device: torch.device) -> Part:
    """The largest relative difference of a run's losses alone and in packs, over the first steps."""

    def part(deadline: Deadline) -> Iterator[Row]:
        use_tf32(False)
        for estimator in ESTIMATORS:
            if deadline.left < 5:
                return
            packs = [make_pack(estimator, replicas, device) for replicas in TOGETHER]
            losses = [torch.stack([pack.train_step()[0].clone() for _ in range(STEPS)]) for pack in packs]
            worst = max(float(((other - losses[0]) / losses[0]).abs().max()) for other in losses[1:])
            yield {"estimator": estimator, "largest_difference": worst}

    return part


def bounds(device: torch.device) -> Part:
    """The evaluation of bounds beside the products that it needs."""

    def part(deadline: Deadline) -> Iterator[Row]:
        use_tf32(False)
        replicas, images, samples = (16, 100, 1000) if device.type == "cuda" else (1, 2, 100)
        for model in MODELS:
            if deadline.left < 5:
                return
            task = make_task(model, replicas, images, device)
            functions: dict[str, Callable[[], object]] = {
                "bound": lambda task=task: task.evaluate("test", samples),  # type: ignore[misc]
                "products": products(task, samples, own=True),
            }
            times = in_turns(functions, 2.0, calls=1)
            each = {f"{name}_us": 1e6 * times[name] / (images * samples * replicas) for name in functions}
            yield {"model": model, **each, "share": times["products"] / times["bound"], "target": 0.6}

    return part


def killed(device: torch.device) -> Part:
    """Runs that are killed again and again, beside undisturbed ones."""

    def part(deadline: Deadline) -> Iterator[Row]:
        command = [sys.executable, "tests/faults/kill_at_random.py", "--kills", "2", "--steps", "200"]
        command += ["--device", str(device)]
        yield _called(command, deadline)

    return part


def tests(device: torch.device) -> Part:
    """The tests that do something else on a GPU than on a CPU, a file each."""

    def part(deadline: Deadline) -> Iterator[Row]:
        for file, chosen in TESTS.items():
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", chosen]
            if deadline.left < 5:
                yield {"command": " ".join(command[1:]), "exit_code": "not reached", "seconds": 0.0, "output": ""}
            else:
                yield _called(command, deadline)

    return part


def a_sweep(device: torch.device) -> Part:
    """``+experiment=jang_table1`` at 3,000 steps: 28 packs of 30 runs, where the images are there."""

    def part(deadline: Deadline) -> Iterator[Row]:
        options = ["steps=3000", "evaluate_every=1000", "train_samples=0", "valid_samples=10", "test_samples=10"]
        options += ["compile=auto", "progress=false", f"device={device}"]
        with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as folder:
            row = _called(
                [sys.executable, "train.py", "+experiment=jang_table1", *options, f"runs_dir={folder}"], deadline
            )
            row["finished_runs"] = len(list(Path(folder).glob("*/*/result.json")))
        yield row | {"target_seconds": 70}

    return part


def _called(command: list[str], deadline: Deadline) -> Row:
    """The last lines of a command, its exit code and seconds; out of time, all that it started ends with it."""
    began = time.monotonic()
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, text=True, errors="replace", start_new_session=True, **streams)
    try:
        output, _ = process.communicate(timeout=max(deadline.left, 1))
        code = str(process.returncode)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code = "out of time"
    shown = " ".join(word for word in command[1:] if not word.startswith("runs_dir="))
    lines = [line for line in output.strip().splitlines() if line.strip()][-12:]
    return {"command": shown, "exit_code": code, "seconds": time.monotonic() - began, "output": "\n".join(lines)}


def _in_words(trouble: Exception) -> str:
    return f"{type(trouble).__name__}: {trouble}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def markdown(report: Row) -> str:
    """The report as a page: a table for each part."""
    lines = [f"# {report['device']}, torch {report['torch']}, commit {report['commit']}", ""]
    if report["noise_without_a_kernel"]:
        lines += [f"Noise was drawn without Triton, in many launches: {report['noise_without_a_kernel']}", ""]
    for name, part in report["parts"].items():
        lines += [f"## {name}", "", f"{part['about']} ({part['seconds']:.0f} s)", ""]
        if part["error"]:
            lines += [f"**failed**: {part['error']}", ""]
        rows = part["rows"]
        if name == "kernels":
            rows = sorted(rows, key=lambda row: (not row["compile"], -row["us_per_step"]))
            rows = [row for compiles in PROFILED for row in [r for r in rows if r["compile"] == compiles][:25]]
        if rows:
            header = list(dict.fromkeys(key for row in rows for key in row))
            lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
            lines += ["| " + " | ".join(_text(row.get(key, "")) for key in header) + " |" for row in rows]
            lines.append("")
    lines += [
        f"Not reached: {', '.join(report['not_reached'])}." if report["not_reached"] else "All parts were reached."
    ]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "<br>")


def measure(device: torch.device, seconds: float, output: Path, names: list[str]) -> Row:
    """Do the parts ``names``, and write ``gpu.json`` and ``gpu.md`` into ``output`` after each."""
    report: Row = {"device": device_name(device), "torch": torch.__version__, "commit": commit(), "parts": {}}

    def bandwidth() -> float | None:
        rows = report["parts"].get("rates", {}).get("rows", [])
        return float(rows[0]["rate"]) * 1e9 if rows else None

    parts: dict[str, tuple[Part, float]] = {
        "rates": (rates(device), 0.02),
        "speeds": (speeds(device, bandwidth), 0.32),
        "together": (together(device), 0.05),
        "kernels": (kernels(device), 0.05),
        "bounds": (bounds(device), 0.05),
        "a_sweep": (a_sweep(device), 0.22),
        "killed": (killed(device), 0.12),
        "tests": (tests(device), 0.33),
    }
    whole = Deadline(seconds)
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        part, share = parts[name]
        began, rows, error = time.monotonic(), list[Row](), ""
        print(f"{name}: at most {min(share * seconds, whole.left):.0f} s", flush=True)
        if whole.left > 5:
            try:
                for row in part(Deadline(min(share * seconds, whole.left))):
                    rows.append(row)
                    if name != "kernels":  # hundreds; the page has the largest
                        print("   " + ", ".join(f"{key}={_text(value)}" for key, value in row.items()), flush=True)
            except Exception as trouble:  # one part's trouble costs no other part
                error = _in_words(trouble)
                print(f"   {error}", flush=True)
        about = " ".join((globals()[name].__doc__ or "").split())
        report["parts"][name] = {"about": about, "rows": rows, "error": error, "seconds": time.monotonic() - began}
        report["not_reached"] = [each for each in parts if not report["parts"].get(each, {}).get("rows")]
        report["noise_without_a_kernel"] = philox.no_kernel
        (output / "gpu.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        (output / "gpu.md").write_text(markdown(report), encoding="utf-8")
    return report


PARTS = ("rates", "speeds", "together", "kernels", "bounds", "a_sweep", "killed", "tests")


def main() -> None:
    """Measure, and say where it is written; exit code 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmarks.gpu", description="all that is for a GPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=460.0, help="for all parts together")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    prepare()
    report = measure(pick_device(arguments.device), arguments.seconds, arguments.output, arguments.parts)
    print(f"wrote {arguments.output}/gpu.json and {arguments.output}/gpu.md")
    failed = [name for name, part in report["parts"].items() if part["error"]]
    called = [row for part in report["parts"].values() for row in part["rows"] if "exit_code" in row]
    failed += [row["command"] for row in called if row["exit_code"] not in ("0", "not reached")]
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    output.run(main)
