"""``python -m training.benchmark``: the training step beside its floor and beside its peers, in one process.

The floor of a step on a CPU is the time of its matrix products, and the time to move the bytes that it cannot avoid.
Products: encoder and decoder forward, their weights' gradients and the decoder's input's gradient (five for a linear
auto-encoder), and for NVIL the two of its baseline, by the fastest library at hand: torch's own or, where the harness
has it (``training/kernels/matmul.py``), oneDNN. Bytes: parameters, gradients and moments, at the bandwidth of a copy of
as many. On a GPU the floor is the time of the bytes alone.

Everything that is compared is timed in turns, so that a machine that changes speed changes all of it. Printed are lower
quartiles (other processes share the caches, which only ever adds) and ratios.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis import output
from tasks.datasets import Dataset, Split
from training.benchmarks import peers
from training.config.compose import composed
from training.devices import pick_device
from training.kernels import matmul
from training.kernels.heap import keep_freed_memory
from training.pack.build import build
from training.pack.evaluation import device_name
from training.pack.pack import Pack
from training.pack.runner import STEPS_PER_GRAPH

PIXELS, LATENTS, BATCH, BASELINE = 784, 200, 100, 100
ON_CPU = ("gumbel_softmax", "st_gumbel_softmax", "straight_through", "nvil")
ON_GPU = ("gumbel_softmax", "st_gumbel_softmax", "reinmax", "nvil", "rloo", "disarm")


def synthetic_data() -> Dataset:
    """Random bits in the shape of binarised MNIST: a step's time does not depend on the pixels."""
    pixels = torch.randint(0, 2, (10_000, PIXELS), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(pixels, 1)
    return Dataset("synthetic", (28, 28), "static", split, split, split)


def make_pack(estimator: str, replicas: int, device: torch.device, *overrides: str) -> Pack:
    """784-200-784 with Bernoulli latents, batch 100, Adam, not compiled, or what ``overrides`` make of it."""
    config = composed(f"estimator={estimator}", "compile=false", *overrides)
    configs = [{**config, "seed": seed} for seed in range(replicas)]
    return build(configs, device, synthetic_data())


def matrix_products(estimator: str, replicas: int, device: torch.device, *, own: bool) -> Callable[[], None]:
    """The matrix products of a step of 784-200-784, by torch's kernels or (``own``) as the step has them."""

    def random(*shape: int) -> Tensor:
        return torch.rand(replicas, *shape, device=device)

    x, wide, h, narrow = random(BATCH, PIXELS), random(BATCH, PIXELS), random(BATCH, LATENTS), random(BATCH, LATENTS)
    encoder, decoder = random(PIXELS, LATENTS), random(LATENTS, PIXELS)
    pairs = [(x, encoder), (h, decoder), (wide, decoder.mT), (h.mT, wide), (x.mT, narrow)]
    if estimator == "nvil":
        pairs += [(x, random(PIXELS, BASELINE)), (x.mT, random(BATCH, BASELINE))]
    results = [torch.empty(a.shape[0], a.shape[1], b.shape[2], device=device) for a, b in pairs]

    def run() -> None:
        for (a, b), result in zip(pairs, results, strict=True):
            if own:
                torch.bmm(a, b)
            else:  # with ``out`` it is always torch's kernel
                torch.bmm(a, b, out=result)

    return run


def copied_bytes(replicas: int, estimator: str) -> int:
    """Bytes that a step of Adam cannot avoid to move.

    Parameters and both moments in and out, gradients out and in; of the encoder the gradient's first moment (of the
    online variance, whose second one is Adam's) in and out.
    """
    encoder = (PIXELS + 1) * LATENTS
    numbers = 4 * (encoder + (LATENTS + 1) * PIXELS) + encoder
    if estimator == "nvil":
        numbers += 4 * ((PIXELS + 2) * BASELINE + 1)
    return 2 * 4 * numbers * replicas


def copy_of(count: int, device: torch.device) -> Callable[[], object]:
    """A copy that moves ``count`` bytes: half of them in, half out."""
    source = torch.rand(count // 8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def in_turns(functions: Mapping[str, Callable[[], object]], seconds: float, calls: int = 10) -> dict[str, float]:
    """Seconds per call of each function (lower quartile), in turns of ``calls`` for about ``seconds`` in all.

    On a CPU every call is timed, in seconds of the processor (with one thread those of the clock, less what other
    processes took, which would hit the long calls of a pack more often than short ones). A GPU works behind the program
    that feeds it, so there a turn is timed, by the clock.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    end, turns = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turns < 3:
        turns += 1
        for name, function in functions.items():
            function()  # the first after the others' turns finds the caches cold
            for _ in range(1 if on_gpu else calls):
                if on_gpu:
                    torch.cuda.synchronize()
                start = clock()
                for _ in range(calls if on_gpu else 1):
                    function()
                if on_gpu:
                    torch.cuda.synchronize()
                times[name].append((clock() - start) / (calls if on_gpu else 1))
    return {name: statistics.quantiles(own, n=4)[0] for name, own in times.items()}


def floors(estimator: str, replicas: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """The parts of a step's floor on a CPU: ``torch`` and ``own`` (products), ``bytes``."""
    return {
        "torch": matrix_products(estimator, replicas, device, own=False),
        "own": matrix_products(estimator, replicas, device, own=matmul.is_on()),
        "bytes": copy_of(copied_bytes(replicas, estimator), device),
    }


def steps_and_floors(device: torch.device, seconds: float) -> None:
    """The table of steps, as they are and compiled, beside the parts of their floor (CPU)."""
    library = "torch or oneDNN, whichever is faster" if matmul.is_on() else "torch"
    print(f"ms per replica-step; products: by {library}; bytes: a copy of as many; floor: their sum\n")
    names = ("products", "bytes", "floor", "eager", "compiled")
    print(f"{'estimator':<20}{'replicas':>9}" + "".join(f"{name:>10}" for name in names) + "  floor/eager /compiled")
    for estimator in ON_CPU:
        for replicas in (1, 8):
            functions = floors(estimator, replicas, device)
            for name, compiles in (("eager", False), ("compiled", True)):
                functions[name] = make_pack(estimator, replicas, device, f"compile={compiles}").train_step
            t = {name: 1e3 * value / replicas for name, value in in_turns(functions, seconds).items()}
            t["products"] = min(t["torch"], t["own"])
            t["floor"] = t["products"] + t["bytes"]
            print(
                f"{estimator:<20}{replicas:>9}"
                + "".join(f"{t[name]:>10.3f}" for name in names)
                + f"{t['floor'] / t['eager']:>13.2f}{t['floor'] / t['compiled']:>10.2f}",
                flush=True,
            )


def compare_with_peers(device: torch.device, seconds: float) -> None:
    """Replica-steps per second of packs and of peers, in turns; the products of all are by the same library."""
    functions: dict[str, Callable[[], object]] = dict(peers.all_peers(synthetic_data().train.pixels.to(device)))
    replicas = dict.fromkeys(functions, 1)
    best = {}
    for estimator in ("gumbel_softmax", "nvil"):
        for count, compiles in itertools.product((1, 8), (False, True)):
            name = f"pack of {count}, {estimator}" + ", compiled" * compiles
            functions[name] = make_pack(estimator, count, device, f"compile={compiles}").train_step
            replicas[name], best[estimator, count] = count, name
    rates = {name: replicas[name] / duration for name, duration in in_turns(functions, seconds).items()}
    print(f"\n{'replica-steps per second':<40}{'':>9}{'compiled: pack of 8 is':>24}{'solo is':>10}")
    for name, rate in rates.items():
        same = (
            "nvil" if "NVIL" in name or "REINFORCE" in name or "nvil" in name or "Trace" in name else "gumbel_softmax"
        )
        packed, solo = (rates[best[same, count]] / rate for count in (8, 1))
        print(f"{name:<40}{rate:>9.1f}{packed:>23.2f}x{solo:>9.2f}x")


def _rate(barrier: Any, seconds: float, rates: Any) -> None:
    prepare()
    step = make_pack("gumbel_softmax", 8, torch.device("cpu")).train_step
    for _ in range(5):
        step()
    barrier.wait()
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        step()
        count += 1
    rates.put(8 * count / seconds)


def processes_together(count: int, seconds: float, rounds: int = 3) -> None:
    """Replica-steps per second of ``count`` processes at once, each with a pack of 8, against one, in turns."""
    context = multiprocessing.get_context("spawn")
    totals: dict[int, list[float]] = {1: [], count: []}
    for _ in range(rounds):
        for number, total in totals.items():
            barrier, rates = context.Barrier(number), context.Queue()
            workers = [context.Process(target=_rate, args=(barrier, seconds, rates)) for _ in range(number)]
            for worker in workers:
                worker.start()
            total.append(sum(rates.get() for _ in workers))
            for worker in workers:
                worker.join()
    one, together = (statistics.median(total) for total in totals.values())
    print(f"\n{count} processes: {together:.0f} replica-steps/s, one: {one:.0f}, ratio {together / one:.2f}")


def on_gpu(device: torch.device, seconds: float, compiles: bool) -> None:
    """Replica-steps per second of packs of growing size, beside the time to move their bytes."""
    bandwidth = 2**31 / in_turns({"copy": copy_of(2**31, device)}, 1.0)["copy"]
    print(f"copy bandwidth {bandwidth / 1e9:.0f} GB/s; bytes: parameters, gradients and moments of one update\n")
    print(f"{'estimator':<20}{'replicas':>9}{'replica-steps/s':>17}{'bytes/step':>12}  path")
    for estimator in ON_GPU:
        for replicas in (1, 8, 64, 256):
            pack = make_pack(estimator, replicas, device, f"compile={compiles}")
            pack.train_step()
            steps = functools.partial(pack.train_steps, STEPS_PER_GRAPH)
            duration = in_turns({"steps": steps}, seconds)["steps"] / STEPS_PER_GRAPH
            floor = copied_bytes(replicas, estimator) / bandwidth
            path = f"eager: {pack.runner.not_captured}" if pack.runner.not_captured else "CUDA graph"
            path += ", not compiled: " + pack.runner.not_compiled if pack.runner.not_compiled else ", compiled"
            print(
                f"{estimator:<20}{replicas:>9}{replicas / duration:>17.0f}{floor / duration:>12.2f}  {path}", flush=True
            )


def processor() -> str:
    """Name, family and model in ``/proc/cpuinfo`` (a virtual machine may hide the name)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    said = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    return f"{said.get('model name', platform.machine())} (family {said.get('cpu family')}, model {said.get('model')})"


def prepare() -> None:
    """The settings of a process that trains."""
    torch.set_num_threads(1)
    keep_freed_memory()
    matmul.use_onednn()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description="the training step, measured")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=6.0, help="per line")
    parser.add_argument("--processes", type=int, default=0, help="also: so many packs at once against one (CPU)")
    parser.add_argument(
        "--compile", action="store_true", help="on a GPU: the steps by torch.compile, as with compile=true"
    )
    arguments = parser.parse_args()
    prepare()
    device = pick_device(arguments.device)
    name = processor() if device.type == "cpu" else device_name(device)
    print(f"784-200-784, batch {BATCH}, Adam, float32, {name}, torch {torch.__version__}, 1 thread")
    if device.type == "cuda":
        on_gpu(device, arguments.seconds, arguments.compile)
    else:
        steps_and_floors(device, arguments.seconds)
    compare_with_peers(device, 5 * arguments.seconds)
    if arguments.processes > 1 and device.type == "cpu":
        processes_together(arguments.processes, arguments.seconds)


if __name__ == "__main__":
    output.run(main)
