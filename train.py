"""Train a run, or with -m a sweep: ``python train.py estimator=nvil task=vae_categorical data=mnist seed=1``."""

import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from training import command, schema
from training.errors import composing, explained
from training.plan import RunPlan
from training.sweep import run_sweep, train_job

schema.register()


def main() -> None:
    """Compose with Hydra, then train: before a run's own folder there is none, and its errors are none of Hydra's."""
    composed: list[list[RunPlan] | tuple[Any, list[str]]] = []

    @hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")
    def compose(job: Any) -> None:
        """``job``: the ``DictConfig`` of a run, or from :mod:`hydra_plugins.packs` the runs of a sweep."""
        if not isinstance(job, list):
            job = OmegaConf.to_container(job, resolve=True), list(HydraConfig.get().overrides.task)
        composed.append(job)

    sys.argv[1:] = command.checked(sys.argv[1:])
    with composing():
        compose()
    for job in composed:
        if isinstance(job, list):
            run_sweep(job)
        else:
            train_job(*job)


if __name__ == "__main__":
    explained(main)
