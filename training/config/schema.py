"""The schema of the configuration: a typo or a wrong type fails at composition, with the allowed names.

Schemas of estimators and tasks are read off their constructors, so they cannot go stale: every annotated argument that
the harness does not fill in itself is an option with its default.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

import estimators
import tasks

FILLED_IN = ("self", "data", "streams", "replicas", "context_features")
"""Constructor arguments that the harness supplies."""
FILLED_IN_FOR_ESTIMATORS = ("latents", "categories")
"""And those that an estimator gets from its task."""
TASKS = {
    "vae": tasks.VAE,
    "deep_vae": tasks.DeepVAE,
    "structured": tasks.StructuredPrediction,
    "semi_supervised": tasks.SemiSupervised,
    "toy": tasks.Toy,
    "toy_bernoulli3": tasks.ToyBernoulli3,
    "toy_simplex": tasks.ToySimplex,
}
"""By the name of their schema."""


def option(default: Any, role: str, **metadata: Any) -> Any:
    """A field with its role (:mod:`training.config.identity`)."""
    return field(default=default, metadata={"role": role, **metadata})


@dataclass
class Data:
    """Which images, where they are, and how they become bits."""

    name: str = MISSING
    root: str = option("data", "places")
    binarization: str = "dynamic"
    download: bool = option(True, "places")
    train_evaluated: int = option(10_000, "evaluates")


@dataclass
class Adam:
    """Adam (Kingma, Ba, arXiv 1412.6980)."""

    name: str = "adam"
    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass
class SGD:
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass
class Constant:
    """The estimator's temperature stays as it is."""

    name: str = "constant"


@dataclass
class Exponential:
    """temperature(t) = max(minimum, temperature * exp(-rate * t)), refreshed every ``every`` steps.

    ``only``: the estimators that are annealed, by name or as ``NAME on TASK``, for sweeps in which others keep their
    temperature or have none; empty: the one that is trained, whichever it is.
    """

    name: str = "exponential"
    rate: float = 1e-4
    minimum: float = 0.5
    every: int = 1000
    only: list[str] = field(default_factory=list)


@dataclass
class NoBasket:
    """Nothing is measured beside training."""

    name: str = "none"


@dataclass
class Basket:
    """Which gradients are measured along a run (:mod:`training.gradients.watcher`).

    ``estimators``: by name, ``estimator`` nodes. ``points``: at so many steps, from 1 to the last, log spaced.
    ``draws``: gradients per estimator and point. ``examples``: in the minibatch. ``warm_up``: steps at each point in
    which learned parts are trained. ``reference``: the unbiased estimator whose mean of ``reference_draws`` gradients
    stands in for the exact one where there are more than ``max_states`` joint states. ``rounds``: in which the time is
    taken.
    """

    name: str = "default"
    estimators: dict[str, Any] = field(default_factory=dict)
    points: int = 8
    draws: int = 500
    examples: int = 100
    warm_up: int = 300
    reference: Any = MISSING
    reference_draws: int = 500
    max_states: int = 4096
    rounds: int = 20


@dataclass
class NoLogger:
    """Local files only."""

    name: str = "none"


@dataclass
class Wandb:
    """One Weights & Biases run per run, grouped by sweep; the local files stay the truth."""

    name: str = "wandb"
    mode: str = "offline"
    project: str = "gradient-estimators"
    entity: str | None = None


@dataclass
class NoCluster:
    """Train on this machine."""

    name: str = "none"


@dataclass
class Local:
    """Each pack is a job of submitit in a process on this machine: a trial of ``cluster=slurm``.

    ``parallelism``: jobs at once; 0: as many as ``workers``.
    """

    name: str = "local"
    parallelism: int = 0


@dataclass
class Slurm:
    """Each pack is a job of SLURM, submitted through submitit.

    ``timeout_min``: minutes until a job must make room; it goes on later, at most ``max_timeouts`` times. ``mem_gb``: 0
    leaves it to the partition. ``gpus``: 1 or 0. ``parallelism``: jobs at once (of an array of 1000); 0: no limit.
    ``setup``: shell lines that run before Python. Empty words leave the choice to the cluster.
    """

    name: str = "slurm"
    partition: str = ""
    timeout_min: int = 240
    max_timeouts: int = 1000
    mem_gb: float = 4.0
    cpus: int = 1
    gpus: int = 0
    account: str = ""
    qos: str = ""
    constraint: str = ""
    parallelism: int = 0
    setup: list[str] = field(default_factory=list)


@dataclass
class Config:
    """One run (or ``replicas`` runs with the seeds ``seed .. seed + replicas - 1``).

    ``source``: whose published numbers stand beside the run's, a key of ``analysis/papers/published.json``; empty:
    nobody's. ``tune``, ``compare``: options, or groups of them, of which the analysis chooses a value on validation, or
    shows each in a row, whatever it does by default (:mod:`analysis.statistics.settings`).
    """

    estimator: Any = option(MISSING, "trains")
    task: Any = option(MISSING, "trains")
    data: Data = field(default_factory=Data, metadata={"role": "trains"})
    optimizer: Any = option(MISSING, "trains")
    schedule: Any = option(MISSING, "trains")
    basket: Any = option(MISSING, "watches")
    logger: Any = option(MISSING, "places")
    seed: int = option(0, "trains")
    replicas: int = option(1, "places")
    steps: int = option(2000, "lasts")
    batch_size: int = option(100, "trains")
    evaluate_every: int = option(500, "watches")
    evaluate_samples: int = option(1, "watches")
    train_samples: int = option(100, "evaluates")
    valid_samples: int = option(100, "evaluates")
    test_samples: int = option(100, "evaluates")
    checkpoint_seconds: float = option(60.0, "places")
    runs_dir: str = option("runs", "places")
    sweep: str = option("main", "places")
    budget: str = option("full", "places")
    source: str = option("jang2017", "places")
    tune: list[str] = field(default_factory=list, metadata={"role": "places"})
    compare: list[str] = field(default_factory=list, metadata={"role": "places"})
    device: str = option("auto", "places")
    threads: int = option(1, "places")
    allow_tf32: bool = option(False, "trains")
    progress: bool = option(True, "places")
    cluster: Any = option(MISSING, "places")
    workers: int = option(0, "places")
    pack_size: int = option(0, "places")
    retries: int = option(2, "places")
    retry: str = option("", "places")
    dry_run: bool = option(False, "places")


def schema_of(target: type, filled_in: Sequence[str] = FILLED_IN) -> type:
    """A dataclass with ``name``, ``_target_`` and an option per argument of ``target``'s constructor."""
    constructor = inspect.getattr_static(target, "__init__")
    hints = typing.get_type_hints(constructor)
    fields: list[tuple[str, Any, Any]] = [
        ("name", str, field(default=MISSING)),
        ("_target_", str, field(default=f"{target.__module__.split('.')[0]}.{target.__name__}")),
    ]
    for name, parameter in inspect.signature(constructor).parameters.items():
        if name not in filled_in and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            kind, default = _option_type(hints[name]), parameter.default
            if kind == list[int]:
                fields.append((name, kind, field(default_factory=functools.partial(list, default))))
            else:
                fields.append((name, kind, field(default=default)))
    return make_dataclass(target.__name__, fields)


def _option_type(hint: Any) -> Any:
    """What a config can hold: ``float | Tensor`` -> float (or None, if allowed), with a literal -> a number or str,
    ``Sequence[int]`` -> list[int], a literal -> str, all else as it is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        optional = type(None) in arguments
        kind = float if float in arguments else _option_type(next(kind for kind in arguments if kind is not type(None)))
        if kind is float and any(typing.get_origin(argument) is typing.Literal for argument in arguments):
            kind = int | float | str  # int: a union does not turn "gap=1" into 1.0
        return kind | None if optional else kind
    if origin is typing.Literal:
        return str
    return list[int] if origin is collections.abc.Sequence else hint


GROUPS: dict[str, tuple[type, ...]] = {
    "data": (Data,),
    "optimizer": (Adam, SGD),
    "schedule": (Constant, Exponential),
    "basket": (NoBasket, Basket),
    "logger": (NoLogger, Wandb),
    "cluster": (NoCluster, Local, Slurm),
}


@functools.cache
def nodes_of(group: str) -> tuple[type, ...]:
    """The schemas that a group of options may have."""
    if group == "estimator":
        return tuple(schema_of(method, (*FILLED_IN, *FILLED_IN_FOR_ESTIMATORS)) for method in estimators.METHODS)
    return tuple(map(schema_of, TASKS.values())) if group == "task" else GROUPS.get(group, ())


def register() -> None:
    """Put all schemas into Hydra's config store; ``conf/*/*.yaml`` build on them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="hydra/schema", name="data", node=Data)
    for_estimators = (*FILLED_IN, *FILLED_IN_FOR_ESTIMATORS)
    for method in estimators.METHODS:
        store.store(group="hydra/schema/estimator", name=method.__name__, node=schema_of(method, for_estimators))
    for name, task in TASKS.items():
        store.store(group="hydra/schema/task", name=name, node=schema_of(task))
    for group, nodes in {
        "optimizer": (Adam, SGD),
        "schedule": (Constant, Exponential),
        "basket": (NoBasket, Basket),
        "logger": (NoLogger, Wandb),
        "cluster": (NoCluster, Local, Slurm),
    }.items():
        for node in nodes:
            store.store(group=f"hydra/schema/{group}", name=node.__name__.lower(), node=node)
