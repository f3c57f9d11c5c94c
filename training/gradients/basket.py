"""Bias and variance of several estimators' gradients at the same parameters and on the same minibatch.

``python -m training.basket runs/SWEEP/RUN [NAME ...]`` measures the estimators ``NAME`` (by default
``nvil muprop rebar``) at the parameters of the run's checkpoint; ``basket=default`` measures along a run while it
trains (:mod:`training.gradients.watcher`). The variance that is recorded while estimators train compares models, too,
and contains the spread over minibatches; here only the noise of the estimator is left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from analysis.defaults import complete
from analysis.output import Parser
from analysis.records import CHECKPOINT, CONFIG, FACTS, DamagedRecord, RunRecord, read_config
from estimators.certificate import table
from estimators.moments import Figures, Moments, figures
from training.config import targets
from training.config.compose import composed
from training.config.identity import run_name
from training.devices import pick_device
from training.errors import UserError
from training.gradients.point import Point, draw, reference_gradient, warmed_up
from training.pack import checkpoints
from training.pack.build import build
from training.pack.pack import Config, Pack

LEAST_DRAWS = 4
"""A variance with a standard error needs two blocks of two draws."""


@dataclass(frozen=True)
class PointVariance:
    """The gradient of one estimator in the encoder's parameters, of the mean loss of one minibatch.

    Attributes:
        measured: its name in the basket.
        method: its name in ``conf/estimator``.
        method_family: the family it declares.
        objective: ``mean`` for E_q[loss(z)]; gradients of another objective are not comparable with those.
        unbiased: as declared.
        evaluations: of the loss, per gradient and example.
        draws: the number of gradients.
        figures: its bias and variance.
    """

    measured: str
    method: str
    method_family: str | None
    objective: str
    unbiased: bool
    evaluations: int
    draws: int
    figures: Figures

    def row(self) -> dict[str, Any]:
        """The attributes with those of ``figures`` among them, as runs record it and tables read it."""
        own = asdict(self)
        figures = own.pop("figures")
        return {**own, **figures}


def measure(
    point: Point,
    estimators: Mapping[str, Config],
    *,
    draws: int = 1000,
    warm_up: int = 500,
    reference: Moments | None = None,
) -> Iterator[PointVariance]:
    """The gradient moments of every one of ``estimators`` at ``point``, one after the other.

    Draws are the replicas of a pack whose members have the same parameters, so each has the gradient of an ordinary
    training step, from one backward pass for a whole chunk of them; memory does not grow with their number. What an
    estimator learns or keeps is trained first (Adam, learning rate 0.01, training minibatches, from its initial state
    at each point) while the model stays as it is, and is then frozen. Temperatures are those of the estimators'
    configs. The noise depends on the run's seed, the step and the estimator's name here, not on what else is measured.

    Args:
        point: where.
        estimators: ``estimator`` nodes of a composed config, by name.
        draws: at least 4; rounded up to whole chunks.
        warm_up: steps of training for the learned parts.
        reference: what the bias is measured against; see :func:`reference_gradient`.

    Raises:
        UserError: for fewer than 4 draws, or an estimator that does not fit the task.
    """
    if draws < LEAST_DRAWS:
        raise UserError(f"a variance and its standard error need at least {LEAST_DRAWS} draws, not {draws}")
    for name, node in estimators.items():
        own = point.own(node)
        found, pack = draw(point, own, name, draws, warmed_up(point, own, name, warm_up))
        yield PointVariance(
            measured=name,
            method=node["name"],
            method_family=pack.estimator.family,
            objective=getattr(pack.estimator, "objective", "mean"),
            unbiased=bool(pack.estimator.unbiased),
            evaluations=pack.evaluations,
            draws=found.draws,
            figures=figures(found, reference),
        )


def load_run(path: Path, device: torch.device, allowed: Sequence[str] = ()) -> Pack:
    """The run in a directory as a pack, at its last checkpoint.

    It may be somebody else's: its config builds classes of this library and of the modules in ``allowed`` only
    (:func:`training.config.targets.check_record`), and its checkpoint holds tensors and numbers.

    Raises:
        UserError: if there is none, or none that this code can build.
    """
    if not (path / CONFIG).exists():
        raise UserError(f"{path}: not a run's directory (it has no {CONFIG})")
    record = RunRecord(path)
    try:
        config, result = read_config(path), record.result()
    except DamagedRecord as error:
        raise UserError(str(error)) from None
    if not isinstance(config.get("steps"), int):
        raise UserError(f"{path / CONFIG}: not a run's config")
    targets.check_record(config, allowed, str(path / CONFIG))
    if result is None and (path / FACTS).exists() and run_name(complete(config)) != path.name:
        raise UserError(f"{path / CONFIG}: is not the config that the run {path.name} began with")
    state, trouble = checkpoints.load(record)
    if state is None:
        raise UserError(trouble or f"{path}: there is no checkpoint ({CHECKPOINT})")
    config = complete(config)
    try:
        root = config["data"].get("root")  # of a user's data there may be none
        if root and not Path(root).expanduser().is_dir():  # of another machine; a download would make it
            config["data"]["root"] = os.environ.get("DATA_DIR", "data")
        pack = build([{**config, "basket": {"name": "none"}}], device)  # what was measured along it is not asked for
        pack.restore([state])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: the run does not fit this version of the code ({error!r})") from None
    return pack


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m training.basket", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the directory of a run, with its checkpoint")
    parser.add_argument("names", nargs="*", metavar="NAME", help="estimators (default: nvil muprop rebar)")
    parser.add_argument("--draws", type=int, default=1000, help="gradients per estimator (1000)")
    parser.add_argument("--warm-up", type=int, default=500, help="steps for what an estimator learns (500)")
    parser.add_argument(
        "--kl", choices=("analytic", "sampled"), help="the place of the KL (default: the run's task.kl)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    allow = "a module of your own whose classes the run's config may name (repeatable); it is imported"
    parser.add_argument("--allow", action="append", default=[], metavar="MODULE", help=allow)
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with estimator/NAME.yaml of your own")
    options = parser.parse_intermixed_args(arguments)  # --allow MODULE may stand between names
    if options.draws < LEAST_DRAWS or options.warm_up < 0:
        raise UserError(
            f"--draws must be at least {LEAST_DRAWS} and --warm-up at least 0, not {options.draws}, {options.warm_up}"
        )
    torch.set_num_threads(1)
    pack = load_run(options.run, pick_device(options.device), options.allow)
    names = options.names or ("nvil", "muprop", "rebar")
    own = [f"hydra.searchpath=['file://{options.config_dir.absolute()}']"] if options.config_dir else []
    nodes: dict[str, Config] = {name: composed(f"estimator={name}", *own)["estimator"] for name in names}
    unbiased: Config = composed("estimator=indecater")["estimator"]
    with_kl = f", task.kl={options.kl}" if options.kl else ""
    print(f"{options.run.name}, step {pack.step}{with_kl}; variance: mean over the encoder's parameters")
    try:
        point = Point(pack, kl=options.kl)
        name, reference = reference_gradient(point, unbiased, draws=options.draws, warm_up=0, max_states=4096)
        results = list(measure(point, nodes, draws=options.draws, warm_up=options.warm_up, reference=reference))
    except ValueError as error:  # what an estimator says it cannot do
        raise UserError(str(error)) from error
    results.sort(key=lambda result: -result.figures.variance)
    print(table([result.row() for result in results]))
    print(f"rel. bias, rel. var: against {name} ({reference.draws} draws); rel. bias within two standard errors")
