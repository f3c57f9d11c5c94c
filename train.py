"""Train a run, or with -m a sweep: ``python train.py estimator=nvil task=vae_categorical data=mnist seed=1``."""

import sys
from typing import Any

from training.documents import manual
from training.errors import explained


def main() -> None:
    """Compose with Hydra, then train: before a run's own folder there is none, and its errors are none of Hydra's."""
    if manual.is_asked_for(sys.argv[1:]):
        return print(manual.text(sys.argv[1:]))
    import hydra  # what takes seconds to import is for those who train
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from training.config import command, schema
    from training.config.compose import composing
    from training.sweep.run import run_sweep, train_job

    schema.register()
    jobs: list[Any] = []
    sweeps: list[Any] = []

    @hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")
    def compose(composed: Any) -> None:
        """With the ``DictConfig`` of a run, or from :mod:`hydra_plugins.packs` the runs of a sweep."""
        if isinstance(composed, list):
            sweeps.append(composed)
        else:
            jobs.append((composed, OmegaConf.to_container(HydraConfig.get().overrides.task)))

    sys.argv[1:] = command.checked(sys.argv[1:])
    with composing():
        compose()
        configs: Any = [OmegaConf.to_container(config, resolve=True) for config, _ in jobs]
    for runs in sweeps:
        run_sweep(runs)
    for config, (_, overrides) in zip(configs, jobs, strict=True):
        train_job(config, overrides)


if __name__ == "__main__":
    explained(main)
