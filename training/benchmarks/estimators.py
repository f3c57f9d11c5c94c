"""``python -m training.benchmarks.estimators``: what a gradient costs, relative to others in the same run.

Whatever is compared is timed in turns in one process, so that a machine that changes speed changes both; printed are
ratios of medians. Peak memory is what is alive at once beyond the inputs: on a CPU what torch's operators return
(:mod:`estimators.memory`), on a CUDA device what its allocator says. ``docs/cost.md`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import estimators
from analysis import output
from estimators import REINFORCE, RELAX, GumbelSoftmax, StraightThrough, look_up
from estimators.base import Estimator, Loss
from estimators.categorical import is_binary
from estimators.memory import Allocations

SHAPES = ((100, 20, 10), (100, 200, 2))
GROWTH = (10, 1_000, 100_000, 1_000_000)
TABLES = (100, 1_000, 10_000, 100_000, 1_000_000)
MOST_BYTES, MOST_SECONDS = 2**29, 10.0
"""Nothing is run whose samples take more memory, or that at this rate would take longer for a gradient."""


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device, so that a clock sees its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(
    functions: Sequence[Callable[[], object]], seconds: float, device: torch.device, calls: int = 10, least: int = 20
) -> list[float]:
    """Median seconds of each function, in turns of ``calls`` calls for about ``seconds``, at least ``least`` calls."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < least:
        for function, record in zip(functions, times, strict=True):
            for call in range(calls + 1):
                start = time.perf_counter()
                function()
                synchronize(device)
                if call:  # the first after the other's turn finds the caches cold
                    record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``function`` has alive at once, beyond what there was before."""
    function()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with Allocations() as allocations:
        function()
    return allocations.peak


def cheap_loss(logits: Tensor) -> Loss:
    """``x + 0.1 x^2`` of one weighted sum ``x`` over the latents' categories: one pass over ``z``, none stored."""
    weights = torch.randn(logits.shape[-2] * logits.shape[-1], device=logits.device)

    def loss(z: Tensor) -> Tensor:
        x = (z.mT if is_binary(z) else z).flatten(-2) @ weights  # of two categories the halves lie one after the other
        return x + 0.1 * x**2

    return loss


def gradient(estimator: Estimator, logits: Tensor, loss: Loss) -> Callable[[], object]:
    """Forward and backward, into the gradients of the logits and of what the estimator learns."""
    inputs = [logits, *estimator.parameters()]
    return lambda: torch.autograd.grad(estimator(logits, loss).sum(), inputs, allow_unused=True)


def methods(logits: Tensor) -> Iterator[tuple[str, Estimator]]:
    """Every method with its default arguments that takes logits of this shape."""
    latents, categories = logits.shape[-2:]
    for method in estimators.METHODS:
        options = (latents, categories) if method is RELAX else ()
        estimator: Estimator = method(*options)  # type: ignore[operator]
        if not estimator.binary_only or categories == 2:
            yield method.__name__, estimator.to(logits.device)
            if method is GumbelSoftmax:
                yield "GumbelSoftmax hard", GumbelSoftmax(hard=True)


def too_much(estimator: Estimator, logits: Tensor) -> str | None:
    """Why this cannot be run here, or ``None``."""
    evaluations = estimator.evaluations_for(logits)
    if evaluations * logits.nbytes <= MOST_BYTES:
        return None
    digits = len(str(evaluations)) - 1
    number = str(evaluations) if digits < 9 else f"10^{digits}"
    return f"not run: {number} evaluations per gradient do not fit in memory"


def every_estimator(shape: tuple[int, int, int], seconds: float, device: torch.device) -> None:
    """Time and peak memory per gradient, relative to GumbelSoftmax."""
    logits = torch.randn(shape, device=device, requires_grad=True)
    loss, reference = cheap_loss(logits), GumbelSoftmax()
    base = gradient(reference, logits, loss)
    z = reference.sample(logits).detach().requires_grad_()
    own, whole = medians([lambda: torch.autograd.grad(loss(z).sum(), z), base], seconds, device)
    base_bytes = peak_bytes(base, device)
    print(f"\nOne gradient, {' x '.join(map(str, shape))} (examples x latents x categories), float32.")
    print(f"GumbelSoftmax: {whole * 1e6:.0f} us and {base_bytes / logits.nbytes:.1f} times the bytes of the logits;")
    print(f"the loss's own part in that: {own / whole:.2f} of the time.\n")
    print(f"{'estimator':<26}{'evaluations':>12}{'time':>8}{'memory':>8}   (GumbelSoftmax = 1)")
    for name, estimator in methods(logits):
        if reason := too_much(estimator, logits):
            print(f"{name:<26}{reason}")
            continue
        one = gradient(estimator, logits, loss)
        ours, theirs = medians([one, base], seconds, device, calls=5, least=10)
        memory = peak_bytes(one, device) / base_bytes
        evaluations = estimator.evaluations_for(logits)
        print(f"{name:<26}{evaluations:>12}{ours / theirs:>8.2f}{memory:>8.2f}", flush=True)


def sampling(seconds: float, device: torch.device) -> None:
    """GumbelSoftmax.sample beside torch's function; at most 1 is no slower."""
    print("\nGumbelSoftmax.sample / torch.nn.functional.gumbel_softmax, time\n")
    print(f"{'shape':<18}{'samples':<10}{'forward':>10}{'and backward':>14}")
    for shape in (*SHAPES, (4, 1, 100_000)):
        for hard in (False, True):
            forward, both = sampling_ratios(shape, hard, seconds, device)
            label, kind = " x ".join(map(str, shape)), "one-hot" if hard else "relaxed"
            print(f"{label:<18}{kind:<10}{forward:>10.2f}{both:>14.2f}", flush=True)


def sampling_ratios(shape: tuple[int, ...], hard: bool, seconds: float, device: torch.device) -> tuple[float, float]:
    """Time of our sample over that of torch's: forward, and forward and backward."""
    logits = torch.randn(shape, device=device, requires_grad=True)
    weights = torch.randn(shape, device=device)
    estimator = GumbelSoftmax(0.7, hard=hard)
    draws: list[Callable[[], Tensor]] = [
        lambda: estimator.sample(logits),
        lambda: F.gumbel_softmax(logits, 0.7, hard),
    ]
    with torch.no_grad():
        ours, theirs = medians(draws, seconds, device)
    both = [partial(lambda draw: torch.autograd.grad(draw(), logits, weights), draw) for draw in draws]
    ours_both, theirs_both = medians(both, seconds, device)
    return ours / theirs, ours_both / theirs_both


def growth(seconds: float, device: torch.device) -> None:
    """Time and memory of one gradient for one latent of 10 to 1,000,000 categories."""
    print("\nOne gradient, 4 examples of one latent of K categories:")
    print("time relative to GumbelSoftmax | peak memory in bytes of the logits\n")
    print(f"{'estimator':<26}" + "".join(f"{f'K={categories:,}':>18}" for categories in GROWTH))
    problems = []
    for categories in GROWTH:
        logits = torch.randn(4, 1, categories, device=device, requires_grad=True)
        loss = cheap_loss(logits)
        problems.append((logits, loss, gradient(GumbelSoftmax(), logits, loss)))
    for name, estimator in methods(problems[0][0]):
        if isinstance(estimator, RELAX):
            print(f"{name:<26}not run: its network has a weight for every category and hidden unit")
            continue
        cells, pace = [], 0.0
        for logits, loss, base in problems:
            if too_much(estimator, logits) or pace * logits.shape[-1] > MOST_SECONDS:
                cells.append("-")
                continue
            one = gradient(estimator, logits, loss)
            ours, theirs = medians([one, base], seconds / 2, device, calls=1, least=3)
            pace = ours / logits.shape[-1]
            cells.append(f"{ours / theirs:.2f} | {peak_bytes(one, device) / logits.nbytes:.1f}")
        print(f"{name:<26}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    print("\n-: K or more evaluations of K numbers do not fit in memory; CARMS: its K (K - 1) / 2 orders take too long")


def look_ups(seconds: float, device: torch.device, features: int = 64) -> None:
    """Reading a table by look_up beside the product with one-hot rows, alone and within a whole gradient."""
    print(f"\nTime with z @ table / time with look_up(z, table), {features} features, 40 latents")
    print("alone, forward and backward: z without and with a gradient; then in an estimator's whole gradient\n")
    print(f"{'categories':>10}{'alone':>10}{'with z':>10}{'REINFORCE':>12}{'StraightThrough':>18}")
    for categories in TABLES:
        logits = torch.randn(10, 4, categories, device=device, requires_grad=True)
        table = torch.randn(categories, features, device=device, requires_grad=True)
        hard = StraightThrough().sample(logits).detach()
        tracked = hard.clone().requires_grad_()
        cells = [
            _speed_up(partial(_at, hard), (table,), table, seconds),
            _speed_up(partial(_at, tracked), (table, tracked), table, seconds),
            _speed_up(partial(REINFORCE(), logits), (table, logits), table, seconds),
            _speed_up(partial(StraightThrough(), logits), (table, logits), table, seconds),
        ]
        print(f"{categories:>10,}{cells[0]:>10.2f}{cells[1]:>10.2f}{cells[2]:>12.2f}{cells[3]:>18.2f}", flush=True)


def _at(z: Tensor, loss: Loss) -> Tensor:
    return loss(z)


def _speed_up(run: Callable[[Loss], Tensor], inputs: Sequence[Tensor], table: Tensor, seconds: float) -> float:
    def one(read: Callable[[Tensor, Tensor], Tensor]) -> object:
        return torch.autograd.grad(run(lambda z: read(z, table).square().sum((-2, -1))).sum(), inputs)

    product, ours = medians([partial(one, torch.matmul), partial(one, look_up)], seconds, table.device, 2, least=4)
    return product / ours


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.estimators", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=0.6, help="per comparison (0.6)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "one thread of a CPU"
    print(f"torch {torch.__version__}, {name}")
    sampling(options.seconds, device)
    for shape in SHAPES:
        every_estimator(shape, options.seconds, device)
    growth(options.seconds, device)
    look_ups(options.seconds, device)


if __name__ == "__main__":
    output.run(main)
