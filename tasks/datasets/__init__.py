"""Data sets: the published ones, and what a data set is."""

from tasks.datasets.dataset import BINARIZATIONS, Dataset, Split
from tasks.datasets.download import DataError
from tasks.datasets.published import CLASSES, DATASETS, blank_dataset, load_dataset

__all__ = ["BINARIZATIONS", "CLASSES", "DATASETS", "DataError", "Dataset", "Split", "blank_dataset", "load_dataset"]
