"""Gradient variance of several estimators at the same parameters and on the same minibatch.

``python -m training.basket runs/SWEEP/RUN [NAME ...]`` measures the estimators ``NAME`` (by default
``nvil muprop rebar``) at the parameters of the run's checkpoint. The variance that is recorded while estimators train
compares models, too, and contains the spread over minibatches; here only the noise of the estimator is left.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from analysis.records import CHECKPOINT, CONFIG, RunRecord
from estimators import noise_source
from training import checkpoints, optimisers, schema
from training.devices import pick_device
from training.errors import UserError
from training.pack import Config, Pack

NUMBERS = 4_000_000
"""A chunk of draws holds about so many parameters, and about so many pixels of decoded samples."""
MOST_DRAWS = 50
"""In one chunk: there must be several of them for the standard error."""


@dataclass(frozen=True)
class PointVariance:
    """The noise of one estimator's gradient in the encoder's parameters; see :func:`measure`.

    Attributes:
        estimator: its name in ``conf/estimator``.
        variance: the variance of one minibatch's mean gradient, mean over the parameters, in squared units of it.
        standard_error: of ``variance``, from its spread over chunks of draws.
        signal_to_noise: ``|E g| / sqrt(E |g - E g|^2)``, with the squared norm of the mean corrected for its own noise
            (and 0 where that leaves nothing).
        draws: the number of gradients.
        evaluations: of the loss, per gradient and example.
        objective: ``mean`` for E_q[loss(z)]; gradients of another objective are not comparable with those.
    """

    estimator: str
    variance: float
    standard_error: float
    signal_to_noise: float
    draws: int
    evaluations: int
    objective: str

    @property
    def log_variance(self) -> float:
        """Natural logarithm of ``variance``."""
        return math.log(self.variance) if self.variance > 0 else -math.inf

    @property
    def log_standard_error(self) -> float:
        """Of ``log_variance``, to first order."""
        return self.standard_error / self.variance if self.variance > 0 else 0.0


def measure(
    pack: Pack, estimators: Sequence[Config], *, replica: int = 0, draws: int = 1000, warm_up: int = 500
) -> list[PointVariance]:
    """The gradient variance of every one of ``estimators`` at the parameters of one replica of ``pack``.

    All see the pack's next minibatch. Draws are the replicas of a pack whose members have the same parameters, so each
    has the gradient of an ordinary training step, from one backward pass for a whole chunk of them; memory does not
    grow with their number. What an estimator learns or keeps is trained first (Adam, learning rate 0.01, training
    minibatches) while the model stays as it is, and is then frozen. Variance normalisation (NVIL) is switched off: a
    rescaled gradient has no variance that could be compared. Temperatures are those of the estimators' configs.

    Args:
        pack: its state is not changed, but for the minibatch that it has drawn.
        estimators: ``estimator`` nodes of a composed config.
        replica: whose parameters and minibatch.
        draws: at least 4; rounded up to whole chunks.
        warm_up: steps of training for the learned parts.

    Raises:
        UserError: for fewer than 4 draws, or an estimator that does not fit the task.
    """
    if draws < 4:
        raise UserError(f"a variance and its standard error need at least 4 draws, not {draws}")
    config = {**pack.configs[replica], "schedule": {"name": "constant"}}
    model = {name: value[replica] for name, value in pack.task.state_dict().items()}
    batch = pack.batches(pack.step)[replica]
    results = []
    for node in estimators:
        if "variance_normalisation" in node:
            node = {**node, "variance_normalisation": False}
        own = {**config, "estimator": node}
        results.append(_measure(own, model, _warmed_up(own, model, pack.device, warm_up), batch, draws))
    return results


def _warmed_up(config: Config, model: dict[str, Tensor], device: torch.device, steps: int) -> Pack:
    """A pack of one run with the parameters of ``model``, whose estimator alone has been trained."""
    solo = Pack([config], device)
    _spread(model, solo.task)
    parameters = list(solo.estimators.parameters())
    optimizer = optimisers.ReplicaOptimizer(parameters, [asdict(schema.Adam(lr=0.01))])
    cotangent = torch.full((1, config["batch_size"]), 1 / config["batch_size"], device=device)
    noise = solo.streams.fresh("basket/warm-up")
    state = solo.estimators.state_dict()
    start = {name: value.clone() for name, value in state.items()}
    for step in range(steps):
        with noise_source(noise):
            losses = solo.task.loss(solo.batches(step), *solo.estimators)
        if parameters:
            optimizer.step(torch.autograd.grad(losses, parameters, cotangent, allow_unused=True))
        elif all(torch.equal(start[name], value) for name, value in state.items()):
            break  # it neither learns nor keeps anything
    return solo


def _measure(config: Config, model: dict[str, Tensor], solo: Pack, batch: Tensor, draws: int) -> PointVariance:
    parameters = sum(value.numel() for value in (*model.values(), *solo.estimators.state_dict().values()))
    size = max(2, min(MOST_DRAWS, draws // 2, NUMBERS // max(parameters, solo.evaluations * batch.numel())))
    pack = Pack([{**config, "seed": seed} for seed in range(size)], batch.device)
    _spread(model, pack.task)
    _spread({name: value[0] for name, value in solo.estimators.state_dict().items()}, pack.estimators)
    pack.estimators.eval()
    batches = batch.expand(size, *batch.shape)
    cotangent = torch.full(batches.shape[:2], 1 / len(batch), device=batch.device)
    noise = pack.streams.fresh("basket")
    chunks = math.ceil(draws / size)
    total, variances = torch.zeros((), device=batch.device), []
    for _ in range(chunks):
        with noise_source(noise):
            losses = pack.task.loss(batches, *pack.estimators)
        gradients = torch.autograd.grad(losses, pack.task.encoder_parameters(), cotangent)
        gradient = torch.cat([each.flatten(1) for each in gradients], dim=1)
        variances.append(gradient.var(dim=0).mean().item())
        total = total + gradient.sum(dim=0)
    spread = torch.tensor(variances, dtype=torch.float64)
    variance, mean_square = spread.mean().item(), (total / (chunks * size)).square().mean().item()
    signal = max(mean_square - variance / (chunks * size), 0.0)
    return PointVariance(
        estimator=config["estimator"]["name"],
        variance=variance,
        standard_error=(spread.std() / chunks**0.5).item(),
        signal_to_noise=math.sqrt(signal / variance) if variance > 0 else math.inf,
        draws=chunks * size,
        evaluations=pack.evaluations,
        objective=getattr(pack.estimator, "objective", "mean"),
    )


@torch.no_grad()
def _spread(state: dict[str, Tensor], module: nn.Module) -> None:
    """Give every replica of ``module`` the tensors of ``state``, which have no replica dimension."""
    for name, value in module.state_dict(keep_vars=True).items():
        value.copy_(state[name].expand_as(value))


def load_run(path: Path, device: torch.device) -> Pack:
    """The run in a directory as a pack, at its last checkpoint. Raises ``UserError`` if there is none."""
    try:
        config = yaml.safe_load((path / CONFIG).read_text())
    except OSError:
        raise UserError(f"{path}: not a run's directory (it has no {CONFIG})") from None
    state, trouble = checkpoints.load(RunRecord(path), config["steps"])
    if state is None:
        raise UserError(trouble or f"{path}: there is no checkpoint ({CHECKPOINT})")
    pack = Pack([config], device)
    pack.restore([state])
    return pack


def table(results: Sequence[PointVariance]) -> str:
    """The results for the screen, smallest variance last."""
    head = ("log variance", "+-", "signal/noise", "evaluations", "variance x evaluations", "draws")
    widths = (13, 6, 13, 12, 23, 6)
    lines = [f"{'estimator':<28}" + "".join(f"{word:>{width}}" for word, width in zip(head, widths, strict=True))]
    for result in sorted(results, key=lambda result: -result.variance):
        name = result.estimator + ("" if result.objective == "mean" else " *")
        cells = (
            f"{result.log_variance:.2f}",
            f"{2 * result.log_standard_error:.2f}",
            f"{result.signal_to_noise:.3f}",
            f"{result.evaluations}",
            f"{result.variance * result.evaluations:.2e}",
            f"{result.draws}",
        )
        lines.append(f"{name:<28}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    if any(result.objective != "mean" for result in results):
        lines.append("* of another objective (a multi-sample bound): not comparable with the others")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    parser = argparse.ArgumentParser(prog="python -m training.basket", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the directory of a run, with its checkpoint")
    parser.add_argument("names", nargs="*", metavar="NAME", help="estimators (default: nvil muprop rebar)")
    parser.add_argument("--draws", type=int, default=1000, help="gradients per estimator (1000)")
    parser.add_argument("--warm-up", type=int, default=500, help="steps for what an estimator learns (500)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    schema.register()
    pack = load_run(options.run, pick_device(options.device))
    nodes: list[Config] = []
    with initialize_config_module("conf", version_base="1.3"):
        for name in options.names or ("nvil", "muprop", "rebar"):
            composed = compose("config", overrides=[f"estimator={name}"])
            nodes.append(OmegaConf.to_container(composed.estimator, resolve=True))  # type: ignore[arg-type]
    print(f"{options.run.name}, step {pack.step}; natural logarithm of the mean variance per encoder parameter")
    try:
        results = measure(pack, nodes, draws=options.draws, warm_up=options.warm_up)
    except ValueError as error:  # what an estimator says it cannot do
        raise UserError(str(error)) from error
    print(table(results))


if __name__ == "__main__":
    from training.errors import explained

    explained(main)
