"""What an estimator's gradient does for labels that it is not shown, in semi-supervised classification.

``python -m training.gradients.labels runs/SWEEP/RUN NAME[,OPTION=VALUE...] ...`` takes the classifier of the run's
checkpoint and some validation images, and compares the mean gradient that each estimator has of their unlabelled term
U(x) with the exact one, and with the gradient of the cross-entropy of their true labels: if the cosine with that is
positive, a small step down U makes the labels more probable.
"""

from __future__ import annotations

import math
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.output import Parser
from estimators import Exact, noise_source
from tasks import SemiSupervised
from training.config import targets
from training.config.compose import composed
from training.devices import pick_device
from training.errors import UserError, explained
from training.gradients.basket import load_run
from training.pack.pack import Pack
from training.replicas.streams import ReplicaSource, derive_seed


@dataclass(frozen=True)
class Direction:
    """The mean gradient of U(x) in the parameters of q(y|x), beside the exact one g and that of true labels.

    Attributes:
        cosine: with g.
        length: over that of g.
        without_kl: the cosine, both without the gradient of ``KL(q(y|x) || p(y))``, which is in closed form.
        labels: the cosine with the gradient of the cross-entropy of the true labels.
        halves: the cosine between the means of odd and even draws, 1 if no noise is left.
    """

    cosine: float
    length: float
    without_kl: float
    labels: float
    halves: float


class Classifier:
    """The classifier of a pack of one run, and the first ``images`` validation images as they are evaluated."""

    def __init__(self, pack: Pack, images: int) -> None:
        self.task, self.seed, split = pack.task, pack.configs[0]["seed"], pack.data.valid
        assert split.labels is not None
        self.x = self.task.shown(split, torch.arange(min(images, len(split))))
        self.labels = split.labels[: self.x.shape[1]].to(self.x.device)
        self.parameters = self.task.encoder_parameters()

    def gradient(self, losses: Tensor) -> Tensor:
        """Of the mean, as a vector in double precision."""
        found = torch.autograd.grad(losses.mean(), self.parameters)
        return torch.cat([each.flatten() for each in found]).double()

    def mean(self, estimator: Any, draws: int) -> tuple[Tensor, Tensor]:
        """The mean gradients of U of the even and of the odd ones among ``draws``, on the same style noise for all."""
        sums = [torch.zeros(()), torch.zeros(())]
        self.task.streams.restart()
        with noise_source(ReplicaSource([derive_seed(self.seed, "labels")])):
            for draw in range(draws):
                losses = self.task.unlabelled_loss(self.x, estimator)
                sums[draw % 2] = sums[draw % 2] + self.gradient(losses) / (draws / 2)
        return sums[0], sums[1]

    def directions(self, estimators: dict[str, Any], draws: int) -> dict[str, Direction]:
        """By name; ``draws`` even."""
        kl = self.gradient(self.task.latents.kl(self.task.classifier(self.x), None))
        logits = self.task.latents.logits(self.task.classifier(self.x)).squeeze(-2)
        labels = self.gradient(F.cross_entropy(logits[0], self.labels, reduction="none"))
        exact = torch.stack(self.mean(Exact(), draws)).mean(0)
        found = {}
        for name, estimator in estimators.items():
            first, second = self.mean(estimator, draws)
            own = (first + second) / 2
            found[name] = Direction(
                cosine=_cosine(own, exact),
                length=(own.norm() / exact.norm()).item(),
                without_kl=_cosine(own - kl, exact - kl),
                labels=_cosine(own, labels),
                halves=_cosine(first, second),
            )
        return found


def _cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def to_markdown(directions: dict[str, Direction]) -> str:
    """A row for each estimator."""
    header = (
        "| estimator | cosine with exact | length / exact | cosine without KL | cosine with labels | between halves |"
    )
    rows = []
    for name, own in directions.items():
        cells = [f"{own.cosine:.2f}", f"{own.length:.2f}", f"{own.without_kl:.2f}", f"{own.labels:+.2f}"]
        rows.append(f"| {' | '.join([name, *cells, f'{own.halves:.2f}'])} |")
    return "\n".join([header, "| --- |" + " ---: |" * 5, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m training.gradients.labels", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the directory of a run of task=semi_supervised, with its checkpoint")
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="estimators, such as st_gumbel_softmax,temperature=0.5"
    )
    parser.add_argument("--draws", type=int, default=100, help="gradients per estimator, even (100)")
    parser.add_argument("--images", type=int, default=500, help="validation images (500)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    if options.draws < 2 or options.draws % 2 or options.images < 1:
        raise UserError(f"--draws must be even and at least 2, --images at least 1: {options.draws}, {options.images}")
    torch.set_num_threads(1)
    pack = load_run(options.run, pick_device(options.device))
    if not isinstance(pack.task, SemiSupervised):
        raise UserError(f"{options.run}: a run of task={pack.configs[0]['task']['name']}, not of task=semi_supervised")
    found = {}
    for name in options.names:
        method, *own = name.split(",")
        node = composed(f"estimator={method}", *(f"estimator.{each}" for each in own))["estimator"]
        offered = {"replicas": 1, "context_features": math.prod(pack.data.image_shape)}
        found[name] = targets.build({"estimator": node}, "estimator", offered).to(pack.device)
    print(f"{options.run.name}, step {pack.step}, {options.images} validation images\n")
    print(to_markdown(Classifier(pack, options.images).directions(found, options.draws)))


if __name__ == "__main__":
    explained(main)
