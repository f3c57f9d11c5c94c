"""Tasks: models, likelihoods and data. A task receives an estimator and imports none."""

from tasks.base import Primary, Task
from tasks.check import TaskError, check_task
from tasks.datasets import Dataset, Split, check_dataset, make_dataset, split_of
from tasks.images import ImageTask
from tasks.semi_supervised import SemiSupervised
from tasks.structured import StructuredPrediction
from tasks.toys.toy import Toy
from tasks.toys.toy_bernoulli3 import ToyBernoulli3
from tasks.toys.toy_simplex import ToySimplex
from tasks.vae import VAE

DeepVAE = VAE
"""The name by which runs of ``conf/task/deep_vae_*`` are recorded (their ``_target_``); the class is the same."""

__all__ = [
    "VAE",
    "Dataset",
    "DeepVAE",
    "ImageTask",
    "Primary",
    "SemiSupervised",
    "Split",
    "StructuredPrediction",
    "Task",
    "TaskError",
    "Toy",
    "ToyBernoulli3",
    "ToySimplex",
    "check_dataset",
    "check_task",
    "make_dataset",
    "split_of",
]
