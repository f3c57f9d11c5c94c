"""Data sets: the published ones, and those of one's own."""

from tasks.datasets.dataset import BINARIZATIONS, Dataset, Split
from tasks.datasets.download import DataError
from tasks.datasets.own import check_dataset, make_dataset, split_of
from tasks.datasets.published import CLASSES, DATASETS, blank_dataset, load_dataset

__all__ = [
    "BINARIZATIONS",
    "CLASSES",
    "DATASETS",
    "DataError",
    "Dataset",
    "Split",
    "blank_dataset",
    "check_dataset",
    "load_dataset",
    "make_dataset",
    "split_of",
]
