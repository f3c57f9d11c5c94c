"""``python -m training.benchmarks.evaluation``: the 1000-sample bound beside the matrix products that it needs.

The floor is the time of the decoder's products (of a structured net: of all after its first layer) for every image and
sample, at the shapes in which the evaluation has them, by the kernels that it uses (oneDNN where that is worthwhile,
``training/kernels/matmul.py``); beside it the same by torch's own. All are timed in turns, in processor time, on a few
images: the time is linear in images. Latents of 4 and more categories take sums of rows instead of products, so they
can be faster than their floor.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from dataclasses import replace

import torch

from analysis import output
from estimators.memory import Allocations
from tasks import VAE, StructuredPrediction
from tasks.evaluation.chunks import images_per_block, pieces, samples_per_block
from training.benchmark import in_turns, prepare, synthetic_data
from training.devices import pick_device
from training.kernels import matmul
from training.pack.evaluation import device_name
from training.replicas.streams import Streams

IMAGES = 10_000
MODELS: dict[str, tuple[type[VAE] | type[StructuredPrediction], dict[str, int]]] = {
    "784-200-784": (VAE, {}),
    "784-(20x10)-784": (VAE, {"latents": 20, "categories": 10}),
    "392-200-200-392": (StructuredPrediction, {}),
    "392-(20x10)-(20x10)-392": (StructuredPrediction, {"latents": 20, "categories": 10}),
}


def make_task(name: str, replicas: int, images: int, device: torch.device) -> VAE | StructuredPrediction:
    """A model of ``MODELS`` at its initial weights, with ``images`` test images."""
    data = synthetic_data()
    data = replace(data, test=replace(data.test, pixels=data.test.pixels[:images]))
    model, options = MODELS[name]
    return model(data, Streams(range(replicas)), **options).to(device)  # type: ignore[arg-type]


def products(task: VAE | StructuredPrediction, samples: int, *, own: bool) -> Callable[[], None]:
    """The matrix products of the test images' samples, by torch's kernels or (``own``) as the task has them."""
    weights = task.decoders[0].weights if isinstance(task, VAE) else [net.weights[0] for net in task.networks[1:]]
    replicas, device, images = task.streams.replicas, weights[0].device, len(task.data.test)
    at_once = samples_per_block(samples)
    rows = []
    for start in range(0, images, images_per_block(samples, device)):
        count = min(images_per_block(samples, device), images - start)
        for done in range(0, samples, at_once):
            for some, drawn in pieces(count, min(at_once, samples - done), replicas, device):
                rows.append((some.stop - some.start) * (drawn.stop - drawn.start))
    factors = [torch.rand(replicas, max(rows), weight.shape[1], device=device) for weight in weights]
    results = [torch.empty(replicas, max(rows), weight.shape[2], device=device) for weight in weights]

    @torch.no_grad()
    def run() -> None:
        for count in rows:
            for factor, weight, result in zip(factors, weights, results, strict=True):
                if own:
                    torch.bmm(factor[:, :count], weight)
                else:  # with ``out`` it is always torch's kernel
                    torch.bmm(factor[:, :count], weight, out=result[:, :count])

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmarks.evaluation", description="bounds, measured")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=10.0, help="per line")
    parser.add_argument("--images", type=int, default=20, help="that are evaluated; the time is linear in them")
    parser.add_argument("--samples", type=int, default=1000, help="of the bound")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1], help="sizes of packs, a line for each")
    arguments = parser.parse_args()
    prepare()
    device = pick_device(arguments.device)
    print(
        f"{arguments.samples}-sample bound, {arguments.images} images, float32, {device_name(device)}, "
        f"torch {torch.__version__}, 1 thread; microseconds per image, sample and replica\n"
    )
    names = ("bound", "own", "own/bound", "torch", "torch/bound", f"s per {IMAGES:,}", "MB")
    print(f"{'model':<26}{'replicas':>9}" + "".join(f"{name:>13}" for name in names))
    for model in MODELS:
        for replicas in arguments.replicas:
            task = make_task(model, replicas, arguments.images, device)
            functions: dict[str, Callable[[], object]] = {
                "bound": lambda task=task: task.evaluate("test", arguments.samples),  # type: ignore[misc]
                "own": products(task, arguments.samples, own=device.type == "cuda" or matmul.is_on()),
                "torch": products(task, arguments.samples, own=False),
            }
            with Allocations() as memory:
                functions["bound"]()
            times = in_turns(functions, arguments.seconds, calls=1)
            rows = arguments.images * arguments.samples * replicas
            bound, own, by_torch = (1e6 * times[name] / rows for name in ("bound", "own", "torch"))
            seconds = bound * IMAGES * arguments.samples / 1e6
            print(
                f"{model:<26}{replicas:>9}{bound:>13.3f}{own:>13.3f}{own / bound:>13.2f}{by_torch:>13.3f}"
                f"{by_torch / bound:>13.2f}{seconds:>13.1f}{memory.peak / 2**20:>13.0f}",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"\nMB: the most that an evaluation had allocated; the whole process with its libraries: {peak:.0f} MB")


if __name__ == "__main__":
    output.run(main)
