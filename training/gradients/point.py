"""Many draws of an estimator's gradient at one point: the parameters of a run, and a minibatch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from estimators import moments, noise_source
from estimators.moments import Moments
from training import interrupt
from training.config import schema, validity
from training.errors import UserError
from training.pack.build import build
from training.pack.pack import Config, Pack
from training.replicas import optimisers
from training.replicas.batches import Batches
from training.replicas.streams import ReplicaSource, Streams, derive_seed

NUMBERS = 4_000_000
"""A chunk of draws holds about so many parameters, and about so many pixels of decoded samples."""
MOST_DRAWS = 50
"""In one chunk."""
BLOCKS = 20
"""Draws are divided into so many blocks, whose spread gives the standard errors."""


class Point:
    """A point at which gradients are measured: the parameters of one replica of a pack, and a minibatch.

    The minibatch is the first one of the run's seed, with the first bits where they are drawn: the same at every step
    of a run, at which only the parameters differ. Nothing of the pack is changed, its random streams included.

    Args:
        pack: it is read only.
        replica: which one.
        examples: size of the minibatch; by default the run's ``batch_size``.
        kl: with this ``task.kl`` in place of the run's: the mean gradient of an unbiased estimator is the same.

    Raises:
        UserError: for more examples than the data have, or a ``kl`` for a task that has no such option.
    """

    def __init__(self, pack: Pack, replica: int = 0, examples: int | None = None, kl: str | None = None) -> None:
        self.step, self.device = pack.step, pack.device
        self.config = {**pack.configs[replica], "schedule": {"name": "constant"}}
        if kl is not None:
            if "kl" not in self.config["task"]:
                raise UserError(f"task={self.config['task']['name']} has no option kl, so leave --kl={kl} out")
            self.config["task"] = {**self.config["task"], "kl": kl}
        self.model = {name: value[replica].clone() for name, value in pack.task.state_dict().items()}
        examples = examples or self.config["batch_size"]
        if examples > len(pack.data.train):
            raise UserError(
                f"basket.examples={examples} is larger than the {len(pack.data.train)} training images of "
                f"data={pack.data.name}"
            )
        self.batch = Batches(pack.data, examples, Streams([self.config["seed"]]), self.device)(0)[0]

    def own(self, node: Config) -> Config:
        """The config of a run that trains with the estimator ``node``.

        Variance normalisation (NVIL) is off: a rescaled gradient has no variance that could be compared.
        """
        unscaled = {"variance_normalisation": False} if "variance_normalisation" in node else {}
        return {**self.config, "estimator": {**node, **unscaled}}

    def noise(self, purpose: str, count: int) -> ReplicaSource:
        """``count`` streams that depend on the run's seed, the step and the purpose alone."""
        seed = self.config["seed"]
        return ReplicaSource([derive_seed(seed, f"basket/{self.step}/{purpose}/{draw}") for draw in range(count)])


def reason_to_leave_out(point: Point, node: Config) -> str | None:
    """Why the estimator ``node`` cannot be measured on the run's task; ``None`` if it can."""
    own = point.own(node)
    if reason := validity.reason_to_skip(own):
        return reason
    try:
        build([own], point.device)
    except UserError as error:
        return f"cannot be used: {error}"
    return None


def reference_gradient(point: Point, node: Config, *, draws: int, warm_up: int, max_states: int) -> tuple[str, Moments]:
    """The gradient that bias refers to, and its name: ``exact`` if the joint states can be enumerated, else ``node``'s.

    The exact gradient is enumerated over at most ``max_states`` joint states; a sampled one is the mean of ``draws``
    gradients of the unbiased estimator ``node``, independent of those that are measured.
    """
    exact = {"name": "exact", "_target_": "estimators.Exact", "max_states": max_states}
    if reason_to_leave_out(point, exact) is None:
        return "exact", moments.known(_enumerated(point, point.own(exact)))
    own = point.own(node)
    return node["name"], draw(point, own, "reference", draws, warmed_up(point, own, "reference", warm_up))[0]


def _enumerated(point: Point, config: Config) -> Tensor:
    """The exact gradient, a few examples at a time: memory grows with states x examples."""
    pack = build([config], point.device)
    _spread(point.model, pack.task)
    size = max(1, NUMBERS // (pack.evaluations * max(point.batch[0].numel(), 1)))
    return sum(  # type: ignore[return-value]
        _gradient(pack, part[None], weight=1 / len(point.batch))[0].double() for part in point.batch.split(size)
    )


def _gradient(pack: Pack, batches: Tensor, weight: float) -> Tensor:
    """``[replicas, parameters]``: of ``weight`` times the losses of ``batches`` in the encoder's parameters."""
    interrupt.check()
    pack.streams.restart()  # what a task draws itself belongs to the point: the same in every gradient
    losses = pack.task.loss(batches, *pack.estimators)
    gradients = torch.autograd.grad(losses, pack.task.encoder_parameters(), torch.full_like(losses, weight))
    return torch.cat([each.flatten(1) for each in gradients], dim=1)


def draw(point: Point, config: Config, purpose: str, draws: int, solo: Pack) -> tuple[Moments, Pack]:
    """The moments of at least ``draws`` gradients of an estimator in the state of ``solo``'s, and a pack of it."""
    parameters = sum(
        value.numel() for value in (*point.model.values(), *solo.estimators.state_dict(keep_vars=True).values())
    )
    blocks = min(BLOCKS, draws // 2)
    per_block = -(-draws // blocks)
    most = NUMBERS // max(parameters, solo.evaluations * point.batch.numel(), 1)
    size = max(2, min(MOST_DRAWS, per_block, most))
    pack = build([config] * size, point.device)
    _spread(point.model, pack.task)
    _spread({name: value[0] for name, value in solo.estimators.state_dict(keep_vars=True).items()}, pack.estimators)
    pack.estimators.eval()
    batches = point.batch.expand(size, *point.batch.shape)
    noise = point.noise(purpose, size)

    def block() -> Iterator[Tensor]:
        for _ in range(-(-per_block // size)):
            with noise_source(noise):
                yield _gradient(pack, batches, 1 / len(point.batch))

    return moments.collect(block() for _ in range(blocks)), pack


def warmed_up(point: Point, config: Config, purpose: str, steps: int) -> Pack:
    """A pack of one run with the parameters of ``point``, whose estimator alone has been trained."""
    solo = build([config], point.device)
    _spread(point.model, solo.task)
    parameters = list(solo.estimators.parameters())
    optimizer = optimisers.ReplicaOptimizer([asdict(schema.Adam(lr=0.01))], point.device)
    moments = optimizer.start(parameters)
    cotangent = torch.full((1, config["batch_size"]), 1 / config["batch_size"], device=point.device)
    noise = point.noise(f"{purpose}/warm-up", 1)
    state = solo.estimators.state_dict(keep_vars=True)
    start = {name: value.clone() for name, value in state.items()}
    for step in range(steps):
        interrupt.check()
        with noise_source(noise):
            losses = solo.task.loss(solo.batches(step), *solo.estimators)
        if parameters:
            gradients = torch.autograd.grad(losses, parameters, cotangent, allow_unused=True)
            optimizer.update(parameters, gradients, moments)
        elif all(torch.equal(start[name], value) for name, value in state.items()):
            break  # it neither learns nor keeps anything
    return solo


def seconds(point: Point, estimators: Mapping[str, Config], rounds: int) -> dict[str, list[float]]:
    """The time of one gradient of one run in all its parameters: lower quartile, median and upper quartile.

    All take turns, ``rounds`` of them, so that a machine that changes speed changes all. On a CPU with one thread it is
    the process's own time. These numbers are a measurement, and differ from run to run.
    """
    packs = {name: build([point.own(node)], point.device) for name, node in estimators.items()}
    on_gpu = point.device.type == "cuda"
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    found: dict[str, list[float]] = {name: [] for name in packs}
    for turn in range(rounds + 1):
        for name, pack in packs.items():
            interrupt.check()
            if turn == 0:
                _spread(point.model, pack.task)
            start = clock()
            with noise_source(pack.streams.source("estimator", point.device)):
                losses = pack.task.loss(point.batch[None], *pack.estimators)
            torch.autograd.grad(losses.mean(), pack.parameters, allow_unused=True)
            if on_gpu:
                torch.cuda.synchronize()
            if turn > 0:  # the first one warms up
                found[name].append(clock() - start)
    return {name: statistics.quantiles(own, n=4) for name, own in found.items()}


@torch.no_grad()
def _spread(state: dict[str, Tensor], module: nn.Module) -> None:
    """Give every replica of ``module`` the tensors of ``state``, which have no replica dimension."""
    for name, value in module.state_dict(keep_vars=True).items():
        value.copy_(state[name].expand_as(value))
