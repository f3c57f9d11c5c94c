"""``python -m training.benchmarks.classes FILE``: the semi-supervised step against the number of classes.

Marginalisation (``exact``) evaluates the model once for each class, a sampling estimator once: a comparison of Jang,
Gu, Poole (arXiv 1611.01144, section 4.3), who report Gumbel-Softmax at 2 times the steps per second with 10 classes and
9.9 times with 100 (convolutions, a GTX Titan X). As there, images have random labels. All estimators of one number of
classes are timed in turns, in one process, with one batch size: that of ``--batch-size``, or less where all classes of
all examples together would be more than ``--rows`` evaluations at once, which bounds the memory of marginalisation.
``python -m analysis.papers.class_speed`` draws the table and puts the published ratios beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.datasets import Dataset, Split
from training.benchmark import PIXELS, in_turns, prepare
from training.config.compose import composed
from training.devices import pick_device
from training.pack.build import build
from training.pack.evaluation import device_name
from training.pack.pack import Pack

CLASSES = (5, 10, 50, 100, 500, 1000)
MARGINALISED, SAMPLED = "exact", ("gumbel_softmax", "st_gumbel_softmax", "reinforce")
IMAGES, LABELLED_PER_CLASS = 10_000, 10


def random_labels(categories: int) -> Dataset:
    """Random bits in the shape of binarised MNIST, with random labels, as many of each class."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 2, (IMAGES, PIXELS), dtype=torch.uint8, generator=generator)
    labels = torch.arange(IMAGES)[torch.randperm(IMAGES, generator=generator)] % categories
    split = Split(pixels, 1, labels)
    return Dataset("random labels", (28, 28), "static", split, split, split)


def make_packs(categories: int, batch_size: int, hidden: Sequence[int], device: torch.device) -> dict[str, Pack]:
    """A pack of one run for each estimator, on the same data."""
    own = [f"task.categories={categories}", f"task.labelled={LABELLED_PER_CLASS * categories}"]
    own += [f"batch_size={batch_size}", f"task.hidden={list(hidden)}"]
    packs, data = {}, random_labels(categories)
    for name in (MARGINALISED, *SAMPLED):
        config = composed("task=semi_supervised", f"estimator={name}", *own)
        config["data"]["name"] = data.name
        packs[name] = build([config], device, data)
    return packs


def measure(
    classes: Sequence[int], batch_size: int, rows: int, hidden: Sequence[int], device: torch.device, seconds: float
) -> list[dict[str, Any]]:
    """A row per number of classes and estimator: ``categories``, ``batch_size``, ``estimator``, ``steps_per_second``
    and ``ratio``, its steps per second over those of marginalisation."""
    table = []
    for categories in classes:
        size = max(1, min(batch_size, rows // categories))
        packs = make_packs(categories, size, hidden, device)
        times = in_turns({name: pack.train_step for name, pack in packs.items()}, seconds, calls=3)
        for name, duration in times.items():
            row = {"categories": categories, "batch_size": size, "estimator": name, "steps_per_second": 1 / duration}
            table.append({**row, "ratio": times[MARGINALISED] / duration})
        print(_line(table[-len(times) :]), flush=True)
    return table


def _line(rows: Sequence[dict[str, Any]]) -> str:
    cells = "".join(f"{row['steps_per_second']:>12.3g}{row['ratio']:>7.2f}x" for row in rows)
    return f"{rows[0]['categories']:>7}{rows[0]['batch_size']:>7}{cells}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmarks.classes", description=__doc__)
    parser.add_argument("file", type=Path, help="where to write the table, as JSON")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rows", type=int, default=20_000, help="largest batch size x classes (20000)")
    parser.add_argument("--hidden", type=int, nargs="*", default=(500, 500), help="task.hidden (500 500)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=6.0, help="at least, per number of classes (6)")
    options = parser.parse_args(arguments)
    prepare()
    device = pick_device(options.device)
    about = {"device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    about |= {"hidden": list(options.hidden)}
    print(f"{about['device']}, torch {torch.__version__}; steps per second, and times those of marginalisation\n")
    names = "".join(f"{name:>20}" for name in (MARGINALISED, *SAMPLED))
    print(f"{'classes':>7}{'batch':>7}{names}")
    found = measure(options.classes, options.batch_size, options.rows, options.hidden, device, options.seconds)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text(json.dumps({**about, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    from training.errors import explained

    explained(main)
