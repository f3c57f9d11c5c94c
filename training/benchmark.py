"""``python -m training.benchmark``: the training step beside its floor, in one process.

The floor of a step on a CPU is the time of its matrix products: encoder and decoder forward, their weights' gradients,
and the decoder's input's gradient (five for a linear auto-encoder). Steps and products are timed in turns, so that a
machine that changes speed changes both; what is printed are medians and the ratio floor / step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from estimators.benchmark import medians
from tasks.datasets import Dataset, Split
from training.heap import keep_freed_memory
from training.loop import device_name
from training.pack import Pack
from training.run import pick_device

PIXELS, LATENTS, BATCH = 784, 200, 100


def synthetic_data() -> Dataset:
    """Random bits in the shape of binarised MNIST: a step's time does not depend on the pixels."""
    pixels = torch.randint(0, 2, (10_000, PIXELS), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(pixels, 1)
    return Dataset("synthetic", (28, 28), "static", split, split, split)


def make_pack(estimator: str, replicas: int, device: torch.device) -> Pack:
    """784-200-784 with Bernoulli latents, batch 100, Adam."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from training import pack, schema

    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=[f"estimator={estimator}"]), resolve=True)
    configs = [{**config, "seed": seed} for seed in range(replicas)]  # type: ignore[dict-item]
    data = synthetic_data()
    original, pack.load_once = pack.load_once, lambda **_: data  # type: ignore[assignment]
    try:
        return Pack(configs, device)
    finally:
        pack.load_once = original


def matrix_products(replicas: int, device: torch.device) -> Callable[[], None]:
    """The five matrix products of a step of 784-200-784 with batch 100."""
    x, wide = (torch.rand(replicas, BATCH, PIXELS, device=device) for _ in range(2))
    h, narrow = (torch.rand(replicas, BATCH, LATENTS, device=device) for _ in range(2))
    encoder = torch.rand(replicas, PIXELS, LATENTS, device=device)
    decoder = torch.rand(replicas, LATENTS, PIXELS, device=device)

    def run() -> None:
        x @ encoder
        h @ decoder
        wide @ decoder.mT
        h.mT @ wide
        x.mT @ narrow

    return run


def main(seconds: float = 6.0) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    keep_freed_memory()
    device = pick_device("auto")
    print(f"784-200-784, batch {BATCH}, Adam, float32, {device_name(device)}, torch {torch.__version__}, 1 thread")
    print("ms per replica-step; floor = the step's five matrix products in the same process\n")
    print(f"{'estimator':<20}{'replicas':>9}{'step':>9}{'floor':>9}{'floor/step':>12}")
    for estimator in ("gumbel_softmax", "st_gumbel_softmax", "straight_through", "nvil"):
        for replicas in (1, 8):
            functions = (make_pack(estimator, replicas, device).train_step, matrix_products(replicas, device))
            step, floor = medians(functions, seconds, device)
            each = f"{1e3 * step / replicas:>9.3f}{1e3 * floor / replicas:>9.3f}"
            print(f"{estimator:<20}{replicas:>9}{each}{floor / step:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
