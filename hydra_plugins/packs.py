"""The sweeper of ``python train.py -m``: from the overrides of a multirun to its runs, by :mod:`training.config.plan`.

Hydra loads plug-ins from this namespace only, and at every start: nothing slow is imported here. (Annotations stay
unquoted: Hydra runs the file before it is a module, and a dataclass could not look them up.)
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class PackSweeperConfig:
    """``params``: what an experiment file sweeps over, as ``key: values``; the command line comes after it.

    ``cases``: groups of named cases, each of them options that belong together, such as a net, its learning rate and
    the name that keeps its runs apart. One case of each group makes a sweep, the product of ``params`` in it; the
    experiment is all of these. ``budgets``: by the name of another ``budget`` what it changes, in the form of
    ``params``; it comes between the cases and the command line. Under ``cases`` it may have groups of its own instead.
    """

    _target_: str = "hydra_plugins.packs.PackSweeper"
    params: dict[str, Any] | None = field(default=None)
    cases: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/sweeper", name="packs", node=PackSweeperConfig, provider="gradient-estimators"
)


class PackSweeper(Sweeper):
    """Finds all runs of a multirun and hands them, as one list, to the function that Hydra was given."""

    def __init__(self, **of_the_experiment: Any) -> None:
        """``params``, ``cases`` and ``budgets`` are read from the config, beside the rest of it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before :meth:`sweep`."""
        self.context, self.master, self.take = hydra_context, config, task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Compose the product of all choices."""
        from training.config.compose import runs_of_experiment

        runs: Any = runs_of_experiment(arguments, self.master, self.context.config_loader)
        self.take(runs)
