"""Train a run, or with -m a sweep: ``python train.py estimator=nvil task=vae_categorical data=mnist seed=1``."""

import hydra
from omegaconf import DictConfig

from training.config import schema
from training.errors import explained
from training.sweep.scheduler import train_job

schema.register()


@hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    train_job(config)


if __name__ == "__main__":
    explained(main)
