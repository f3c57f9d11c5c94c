"""The schema of the configuration: a typo or a wrong type fails at composition, with the allowed names.

Schemas of estimators and tasks are read off their constructors, so they cannot go stale: every annotated argument that
the harness does not fill in itself is an option with its default.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import re
import types
import typing
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from torch import nn

import conf
import estimators
import tasks

FILLED_IN = ("self", "data", "streams", "replicas", "context_features")
"""Constructor arguments that the harness supplies."""
FOR_ESTIMATORS = (*FILLED_IN, "latents", "categories")
"""And those that an estimator gets from its task."""
TASKS = {
    "vae": tasks.VAE,
    "deep_vae": tasks.VAE,
    "structured": tasks.StructuredPrediction,
    "semi_supervised": tasks.SemiSupervised,
    "toy": tasks.Toy,
    "toy_bernoulli3": tasks.ToyBernoulli3,
    "toy_simplex": tasks.ToySimplex,
}
"""By the name of their schema."""
RECORDED_AS = {"deep_vae": "tasks.DeepVAE"}
"""The ``_target_`` of a schema's runs where it is not the class's own name."""
LATER: dict[str, dict[str, Any]] = {
    "estimators.MuProp": {"input_dependent": False, "variance_normalisation": False, "hidden": 100},
    "estimators.DARN": {"variance_normalisation": False, "decay": 0.8},
    "tasks.VAE": {"layers": 1, "square_hidden": 0, "centred": False},
    "tasks.DeepVAE": {"likelihood": "bernoulli", "concentration": None},
    "tasks.SemiSupervised": {
        "network": "mlp",
        "channels": [16, 32, 64],
        "warm_up": 0,
        "kl_start": 0.0,
        "alpha_start": 1.0,
    },
}
"""By ``_target_``: the neutral values of options that the first recorded runs do not have."""


def option(default: Any, role: str, **metadata: Any) -> Any:
    """A field with its role (:mod:`training.config.identity`)."""
    return field(default=default, metadata={"role": role, **metadata})


def number(default: float, interval: str, role: str = "") -> Any:
    """A field whose value must lie in ``interval`` (:mod:`training.config.ranges`), with a role if not its group's."""
    return field(default=default, metadata={"range": interval, **({"role": role} if role else {})})


@dataclass
class Data:
    """Which images, where they are, and how they become bits.

    ``root``: the folder in which they are looked for (``DATA_DIR`` of the environment, else ``data``).
    ``binarization``: ``dynamic`` (drawn anew each time), ``static`` (drawn once), ``threshold`` (at 1/2) or ``none``
    (grey). ``download``: what is not there. ``train_evaluated``: so many training images are evaluated at the end, at
    most.
    """

    name: str = MISSING
    root: str = option("data", "places")
    binarization: str = "dynamic"
    download: bool = option(True, "places")
    train_evaluated: int = number(10_000, "[1, inf)", "evaluates")


@dataclass
class Adam:
    """Adam (Kingma, Ba, arXiv 1412.6980).

    ``lr``: the learning rate, > 0. ``beta1``: decay of the mean of the gradient, in [0, 1). ``beta2``: decay of the
    mean of its square, in [0, 1). ``eps``: added to the root of that mean, >= 0. ``weight_decay``: times the
    parameters, added to the gradient, >= 0.
    """

    name: str = "adam"
    lr: float = number(3e-4, "(0, inf)")
    beta1: float = number(0.9, "[0, 1)")
    beta2: float = number(0.999, "[0, 1)")
    eps: float = number(1e-8, "[0, inf)")
    weight_decay: float = number(0.0, "[0, inf)")


@dataclass
class SGD:
    """Stochastic gradient descent with momentum.

    ``lr``: the learning rate, > 0. ``momentum``: the share of the last step that is added, in [0, 1). ``weight_decay``:
    times the parameters, added to the gradient, >= 0.
    """

    name: str = "sgd"
    lr: float = number(1e-3, "(0, inf)")
    momentum: float = number(0.9, "[0, 1)")
    weight_decay: float = number(0.0, "[0, inf)")


@dataclass
class Constant:
    """The estimator's temperature stays as it is."""

    name: str = "constant"


@dataclass
class Exponential:
    """temperature(t) = max(minimum, temperature * exp(-rate * t)), refreshed every ``every`` steps.

    ``rate``: of the decay, per step, >= 0. ``minimum``: the temperature at which it ends, > 0. ``every``: so many steps
    the temperature stays as it is. ``only``: the estimators that are annealed, by name or as ``NAME on TASK``, for
    sweeps in which others keep their temperature or have none; empty: the one that is trained, whichever it is.
    """

    name: str = "exponential"
    rate: float = number(1e-4, "[0, inf)")
    minimum: float = number(0.5, "(0, inf)")
    every: int = number(1000, "[1, inf)")
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
    which learned parts are trained. ``reference``: the unbiased estimator whose mean stands in for the exact gradient
    where that cannot be enumerated. ``reference_draws``: gradients in that mean. ``max_states``: joint states that are
    enumerated at most. ``rounds``: in which the time is taken.
    """

    name: str = "default"
    estimators: dict[str, Any] = field(default_factory=dict)
    points: int = number(8, "[1, 1000000]")
    draws: int = number(500, "[4, inf)")
    examples: int = number(100, "[1, inf)")
    warm_up: int = number(300, "[0, inf)")
    reference: Any = MISSING
    reference_draws: int = number(500, "[4, inf)")
    max_states: int = number(4096, "[1, inf)")
    rounds: int = number(20, "[2, inf)")


@dataclass
class NoLogger:
    """Local files only."""

    name: str = "none"


@dataclass
class Wandb:
    """One Weights & Biases run per run, grouped by sweep; the local files stay the truth.

    ``mode``: ``offline`` (files to be synced) or ``online``. ``project``: its name there. ``entity``: the user or team.
    """

    name: str = "wandb"
    mode: str = "offline"
    project: str = "gradient-estimators"
    entity: str | None = None


@dataclass
class TensorBoard:
    """An event file per run, in ``tensorboard/`` of its directory; the local files stay the truth."""

    name: str = "tensorboard"


@dataclass
class NoCluster:
    """Train on this machine."""

    name: str = "none"


@dataclass
class Slurm:
    """Each pack is a job of SLURM, submitted through submitit.

    ``timeout_min``: minutes until a job must make room, and goes on later. ``max_timeouts``: so often at most.
    ``mem_gb``: 0 leaves it to the partition. ``cpus``: of a job. ``gpus``: 1 or 0. ``parallelism``: jobs at once (of an
    array of 1000); 0: no limit. ``setup``: shell lines that run before Python. ``partition``, ``account``, ``qos``,
    ``constraint``: SLURM's; empty words leave the choice to the cluster.
    """

    name: str = "slurm"
    partition: str = ""
    timeout_min: int = number(240, "[1, inf)")
    max_timeouts: int = number(1000, "[0, inf)")
    mem_gb: float = number(4.0, "[0, 1e6]")
    cpus: int = number(1, "[1, 4096]")
    gpus: int = number(0, "[0, 1]")
    account: str = ""
    qos: str = ""
    constraint: str = ""
    parallelism: int = number(0, "[0, inf)")
    setup: list[str] = field(default_factory=list)


@dataclass
class NoRace:
    """Every setting is trained to the end."""

    name: str = "none"


@dataclass
class Halving:
    """Successive halving over the settings of each cell (:mod:`training.config.race`).

    ``rungs``: steps at which settings are compared on validation, multiples of ``evaluate_every``. ``keep``: the share
    of those at a rung that goes on, to the nearest whole number, at least one. ``seeds``: how many of a setting's seeds
    run to a rung; the settings that are left in the end have all. One number in ``keep`` or ``seeds`` is for all rungs.
    ``over``: the options, or groups of them, that make a setting; all else that trains, but the seed, makes a cell.
    ``by``: the metric of validation that is compared, higher is better, or with ``-`` before it lower; empty: the one
    that the task is judged by.
    """

    name: str = "halving"
    rungs: list[int] = field(default_factory=list, metadata={"range": "[1, inf)"})
    keep: list[float] = field(default_factory=lambda: [1 / 3], metadata={"range": "(0, 1]"})
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"range": "[1, inf)"})
    over: list[str] = field(default_factory=lambda: ["optimizer"])
    by: str = ""


@dataclass
class Config:
    """One run (or ``replicas`` runs with the seeds ``seed .. seed + replicas - 1``).

    ``estimator``: whose gradient trains the encoder. ``task``: the model and its objective. ``data``: the images.
    ``optimizer``: of all parameters. ``schedule``: of the estimator's temperature. ``basket``: gradients of other
    estimators that are measured along the run. ``logger``: beside the local files. ``cluster``: where packs train.
    ``race``: which settings of a sweep are trained to the end.

    ``seed``: of the run, from which all that is random in it comes. ``replicas``: so many runs, with the seeds from
    ``seed`` on. ``steps``: gradient steps; more of them later go on from the checkpoint. ``batch_size``: images per
    step. ``evaluate_every``: steps between rows of metrics. ``evaluate_samples``: samples of the bound in such a row.
    ``train_samples``: samples of the final bound on training images; 0: none. ``valid_samples``: on validation images.
    ``test_samples``: on test images.

    ``checkpoint_seconds``: between checkpoints. ``runs_dir``: the folder of all sweeps. ``sweep``: the folder of this
    one in it. ``budget``: a smaller form of an experiment that it has a name for, such as ``small``, which stands
    behind that of the folder, too, unless ``sweep`` is given. ``source``: whose published numbers stand beside the
    run's, a key of ``analysis/papers/published.json``; empty: nobody's. ``tune``: options, or groups of them, of which
    the analysis chooses a value on validation, whatever it does by default (:mod:`analysis.statistics.settings`).
    ``compare``: those of which it shows each value in a row.

    ``device``: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``. ``threads``: of a process on the CPU. ``allow_tf32``: matrix
    products of ten bits on a GPU. ``compile``: the step by ``torch.compile``, ``true`` or ``false``; ``auto``: if it
    saves more time than it takes. ``progress``: shown on the screen. ``workers``: processes of a sweep; 0:
    one for each GPU, or for each core. ``pack_size``: most runs that train together; 0: as many as memory allows.
    ``retries``: so often a pack whose process died is tried again. ``retry``: only runs that are ``failed`` or
    ``diverged``, or that other code of the user's began (``changed``); empty: all that is unfinished. ``dry_run``: show
    the plan and an estimate, and train nothing.
    """

    estimator: Any = option(MISSING, "trains")
    task: Any = option(MISSING, "trains")
    data: Any = option(MISSING, "trains")
    optimizer: Any = option(MISSING, "trains")
    schedule: Any = option(MISSING, "trains")
    basket: Any = option(MISSING, "watches")
    logger: Any = option(MISSING, "places")
    seed: int = number(0, "[0, inf)", "trains")
    replicas: int = number(1, "[1, 100000]", "places")
    steps: int = number(2000, "[1, inf)", "lasts")
    batch_size: int = number(100, "[1, 1000000]", "trains")
    evaluate_every: int = number(500, "[1, inf)", "watches")
    evaluate_samples: int = number(1, "[1, inf)", "watches")
    train_samples: int = number(100, "[0, inf)", "evaluates")
    valid_samples: int = number(100, "[1, inf)", "evaluates")
    test_samples: int = number(100, "[1, inf)", "evaluates")
    checkpoint_seconds: float = number(60.0, "[0, inf)", "places")
    runs_dir: str = option("runs", "places")
    sweep: str = option("main", "places")
    budget: str = option("full", "places")
    source: str = option("jang2017", "places")
    tune: list[str] = field(default_factory=list, metadata={"role": "places"})
    compare: list[str] = field(default_factory=list, metadata={"role": "places"})
    device: str = option("auto", "places")
    threads: int = number(1, "[1, 4096]", "places")
    allow_tf32: bool = option(False, "trains")
    compile: str = option("auto", "places")
    progress: bool = option(True, "places")
    cluster: Any = option(MISSING, "places")
    workers: int = number(0, "[0, 4096]", "places")
    race: Any = option(MISSING, "places")
    pack_size: int = number(0, "[0, inf)", "places")
    retries: int = number(2, "[0, inf)", "places")
    retry: str = option("", "places")
    dry_run: bool = option(False, "places")


GROUPS: dict[str, tuple[type, ...]] = {
    "estimator": (),
    "task": (),
    "data": (Data,),
    "optimizer": (Adam, SGD),
    "schedule": (Constant, Exponential),
    "basket": (NoBasket, Basket),
    "logger": (NoLogger, Wandb, TensorBoard),
    "cluster": (NoCluster, Slurm),
    "race": (NoRace, Halving),
}
"""The schemas of each group; those of estimators and tasks are read off their classes (:func:`schema_of`)."""


@functools.cache
def schema_of(target: Any, filled_in: tuple[str, ...] = FILLED_IN, recorded_as: str | None = None) -> type:
    """A dataclass with ``name``, ``_target_`` and an option per argument of a class's constructor, or of a function.

    What an argument's annotation says besides its type, ``Annotated[float, ("range", "(0, 1]")]``, is the metadata of
    its field. ``open_ended``: whether the constructor takes any other option, too.
    """
    constructor = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    try:
        hints, annotated = (typing.get_type_hints(constructor, include_extras=extras) for extras in (False, True))
    except NameError:  # in a class from elsewhere: a type that is imported for type checkers only
        hints, annotated = {}, {}
    own_name = recorded_as or f"{target.__module__.split('.')[0]}.{target.__name__}"
    fields: list[tuple[str, Any, Any]] = [
        ("name", str, field(default=MISSING)),
        ("_target_", str, field(default=own_name)),
    ]
    neutral = {name: {"neutral": value} for name, value in LATER.get(own_name, {}).items()}
    parameters = inspect.signature(constructor).parameters
    for name, parameter in parameters.items():
        if name not in filled_in and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            metadata = _metadata(annotated.get(name)) | neutral.get(name, {})
            kind, default = _option_type(hints.get(name, Any)), parameter.default
            if default is parameter.empty:
                fields.append((name, kind, field(default=MISSING, metadata=metadata)))
            elif kind == list[int]:
                made: Any = field(default_factory=functools.partial(list, default), metadata=metadata)
                fields.append((name, kind, made))
            else:
                fields.append((name, kind, field(default=default, metadata=metadata)))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    open_ended = takes_any and constructor is not nn.Module.__init__  # which refuses what it gets
    return make_dataclass(target.__name__, fields, namespace={"open_ended": open_ended})


@functools.cache
def schema_of_data(function: Any) -> type:
    """As :func:`schema_of`, of a function that loads a user's data, with the option of all data."""
    of_all = [item for item in dataclasses.fields(Data) if item.name == "train_evaluated"]
    own = schema_of(function, ("name", *(item.name for item in of_all)))
    return make_dataclass(
        own.__name__,
        [(item.name, item.type, field(default=item.default, metadata=item.metadata)) for item in of_all],
        bases=(own,),
    )


def schema_in(group: str, target: Any) -> type:
    """The schema of what a config names with ``_target_`` in the group of estimators, tasks or data."""
    if group == "data":
        return schema_of_data(target)
    return schema_of(target, FILLED_IN if group == "task" else FOR_ESTIMATORS)


def _metadata(hint: Any) -> dict[str, Any]:
    """What an annotation, or a part of a union, says besides its type."""
    if typing.get_origin(hint) is Annotated:
        return dict(extra for extra in hint.__metadata__ if isinstance(extra, tuple))
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    return {key: value for part in parts for key, value in _metadata(part).items()}


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


@functools.cache
def estimator_named(name: str) -> str | None:
    """The class that ``conf/estimator/<name>.yaml`` builds; ``None`` if there is no such file."""
    try:
        text = (Path(conf.__file__).parent / "estimator" / f"{name}.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.search(r"/hydra/schema/estimator/(\w+)@_here_", text)
    return found and found[1]


@functools.cache
def nodes_of(group: str) -> tuple[type, ...]:
    """The schemas that a group of options may have."""
    if group == "estimator":
        return tuple(schema_of(method, FOR_ESTIMATORS) for method in estimators.METHODS)
    if group == "task":
        return tuple(schema_of(task, recorded_as=RECORDED_AS.get(name)) for name, task in TASKS.items())
    return GROUPS.get(group, ())


@functools.cache
def register() -> None:
    """Put all schemas into Hydra's config store, once; ``conf/*/*.yaml`` build on them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for method in estimators.METHODS:
        store.store(group="hydra/schema/estimator", name=method.__name__, node=schema_of(method, FOR_ESTIMATORS))
    for name, node in zip(TASKS, nodes_of("task"), strict=True):
        store.store(group="hydra/schema/task", name=name, node=node)
    for group, nodes in GROUPS.items():
        for node in nodes:
            where = "hydra/schema" if group == "data" else f"hydra/schema/{group}"
            store.store(group=where, name=node.__name__.lower(), node=node)
