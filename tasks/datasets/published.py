"""Image data sets as tensors of bytes: digits, MNIST, Larochelle's binarized MNIST, Fashion-MNIST and Omniglot 28x28.

``load_dataset`` reads, checks, splits and binarizes. Log-likelihoods are comparable only within one data set, one
source of it and one binarization, so all three are fields of the ``Dataset``.
"""

from __future__ import annotations

import gzip
import io
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from tasks.datasets.dataset import BINARIZATION_SEED, BINARIZATIONS, Dataset, Split
from tasks.datasets.download import (
    AMAT_FILES,
    CHARDATA,
    IDX_FILES,
    OMNIGLOT28,
    DataError,
    damaged,
    fetch,
    load_npz,
    save_npz,
    sha256,
)
from tasks.datasets.own import make_dataset, split_of

DATASETS = ("digits", "mnist", "binarized_mnist", "fashion_mnist", "omniglot", "none")
EMPTY = 100_000
"""Training examples of ``none``, the data of tasks that have none: images without pixels."""
CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "omniglot": 50}
"""Labels of the images that have them."""

BINARIZED_MNIST_SHA256 = "c462f82a020638a4d5d8d44e4c83242ee0145ee1d125869d0e030c35011837e6"
"""SHA-256 of the packed rows of train, valid and test, one after the other; it covers every bit since 784 = 98 * 8."""


Splits: TypeAlias = tuple[Split, Split, Split]


def load_dataset(
    name: str,
    root: str | Path = "data",
    binarization: str = "dynamic",
    download: bool = True,
    train_evaluated: int = 10_000,
) -> Dataset:
    """Read a data set from ``root``, or download it to there, and split and binarize it.

    ===============  ======================  =============================================================
    name             train / valid / test    split
    ===============  ======================  =============================================================
    digits           1,197 / 300 / 300       a fixed shuffle; 8x8, comes with scikit-learn, needs no file
    mnist            50,000/10,000/10,000    first 50,000 and last 10,000 of the training set
    binarized_mnist  50,000/10,000/10,000    its own; the test rows are sorted by digit
    fashion_mnist    50,000/10,000/10,000    as mnist
    omniglot         23,000/1,345/8,070      the last 1,345 of ``RandomState(123).permutation(24345)`` valid
    ===============  ======================  =============================================================

    ``omniglot/omniglot28.npz`` (rebuilt from the 105x105 images) is taken if it is there, otherwise ``chardata.mat`` of
    the IWAE authors (rounded to 8 bits, at most 0.002 off), whose rows are others; ``Dataset.source`` says which it is.

    Args:
        name: one of ``DATASETS``.
        root: folder of the files, laid out as ``<root>/mnist/train-images-idx3-ubyte.gz``; ``~`` is expanded.
        binarization: ``dynamic``: training images stay grey, for the training loop to sample anew at every visit; valid
            and test are sampled once. ``static``: all are sampled once, ``bit ~ Bernoulli(pixel / 255)``, with a fixed
            seed. ``threshold``: ``bit = pixel / 255 > 0.5``. ``none``: all stay grey. Valid and test bits are the same
            under ``dynamic`` and ``static``. ``binarized_mnist`` is bits already and takes only ``static``.
        download: whether to download files that are absent; those that are there are never changed.
        train_evaluated: >= 1, how many of the training images, from the first, an evaluation of ``train`` takes.

    Raises:
        DataError: an unknown name or binarization, ``train_evaluated`` below 1, or a file that is damaged, or absent
            and not to be had.
    """
    _check_options(name, binarization, train_evaluated)
    if name == "none":
        nothing, one = (Split(torch.empty(size, 0, dtype=torch.uint8), 1) for size in (EMPTY, 1))
        return Dataset(name, _shape(name), "none", nothing, one, one, "", train_evaluated)
    root = Path(root).expanduser().absolute()
    if name == "digits":
        splits, source = _read_digits(), "scikit-learn load_digits"
    elif name == "binarized_mnist":
        splits, source = _read_binarized_mnist(root, download), "binarized_mnist_*.amat"
    elif name == "omniglot":
        splits, source = _read_omniglot(root, download)
    else:
        splits, source = _read_idx(name, root, download), "idx archives"
    if name == "binarized_mnist":
        return Dataset(name, _shape(name), binarization, *splits, source, train_evaluated)
    return make_dataset(name, _shape(name), binarization, *splits, source, train_evaluated)


def blank_dataset(name: str, binarization: str, train_evaluated: int = 1, images: int = 1000) -> Dataset:
    """The form of a data set without reading it: ``images`` white images in each split, with as many of each label.

    What a task makes of its options can be tried with it before anything is read or downloaded.

    Raises:
        DataError: as :func:`load_dataset`, for the options.
    """
    _check_options(name, binarization, train_evaluated)
    labels = torch.arange(images) % CLASSES[name] if name in CLASSES else None
    white = torch.ones(1, math.prod(_shape(name)), dtype=torch.uint8).expand(images, -1)
    bits, grey = Split(white, 1, labels), Split(white, 255, labels)
    if name == "none" or binarization in ("static", "threshold"):
        train, others = bits, bits
    else:
        train, others = grey, grey if binarization == "none" else bits
    return Dataset(name, _shape(name), binarization, train, others, others)


def _shape(name: str) -> tuple[int, int]:
    side = {"none": 0, "digits": 8}.get(name, 28)
    return side, side


def _check_options(name: str, binarization: str, train_evaluated: int) -> None:
    if name not in DATASETS:
        raise DataError(f"There is no dataset {name!r}: use one of {', '.join(DATASETS)}.")
    if binarization not in BINARIZATIONS:
        raise DataError(f"There is no binarization {binarization!r}: use one of {', '.join(BINARIZATIONS)}.")
    if train_evaluated < 1:
        raise DataError(
            f"data.train_evaluated must be at least 1, not {train_evaluated}; train_samples=0 leaves the training "
            "images out of the last evaluation"
        )
    if name == "binarized_mnist" and binarization != "static":
        raise DataError(
            f"binarized_mnist is bits already, so data.binarization={binarization} cannot be applied to it: use "
            f"data.binarization=static, or data=mnist for {binarization}."
        )


def _read_digits() -> Splits:
    """The file that ``sklearn.datasets.load_digits`` reads: importing scikit-learn takes more than a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("data=digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    digits = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    order = np.random.RandomState(BINARIZATION_SEED).permutation(len(digits))
    pixels, classes = digits[order, :-1], digits[order, -1]
    images, labels = np.rint(pixels * 255 / 16).astype(np.uint8), classes.astype(np.int64)
    return (
        split_of(images[:1197], labels[:1197]),
        split_of(images[1197:1497], labels[1197:1497]),
        split_of(images[1497:], labels[1497:]),
    )


def _read_idx(name: str, root: Path, download: bool) -> Splits:
    images, labels, test_images, test_labels = (_parse_idx(fetch(file, root, download)) for file in IDX_FILES[name])
    return (
        split_of(images[:50_000], labels[:50_000]),
        split_of(images[50_000:], labels[50_000:]),
        split_of(test_images, test_labels),
    )


def _parse_idx(archive: bytes) -> np.ndarray:
    """The uint8 array of a gzipped idx file: two zeros, the type, the number of axes, the axes as int32, the data."""
    raw = gzip.decompress(archive)
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", count=axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_binarized_mnist(root: Path, download: bool) -> Splits:
    path = root / "binarized_mnist" / "binarized_mnist.npz"
    stored = os.path.lexists(path)
    if stored:
        packed = load_npz(path, tuple(AMAT_FILES))
    else:
        packed = {}
        for split, file in AMAT_FILES.items():
            text = fetch(file, root, download, keep=False, others=("binarized_mnist/binarized_mnist.npz",))
            digits = np.frombuffer(text, np.uint8)[::2]  # rows of 784 digits, each followed by one space or newline
            packed[split] = np.packbits((digits == ord("1")).reshape(-1, 784), axis=1)
    if sha256(packed.values()) != BINARIZED_MNIST_SHA256:
        raise damaged(path)
    if not stored:
        save_npz(path, packed)
    train, valid, test = (np.unpackbits(rows.reshape(-1, 98), axis=1) for rows in packed.values())
    return split_of(train == 1), split_of(valid == 1), split_of(test == 1)


def _read_omniglot(root: Path, download: bool) -> tuple[Splits, str]:
    keys = ("train_images", "train_alphabet", "test_images", "test_alphabet")
    if os.path.lexists(root / OMNIGLOT28.name):
        arrays, source = load_npz(root / OMNIGLOT28.name, keys, OMNIGLOT28), "omniglot28.npz"
    else:
        arrays, source = _read_chardata(root, download, keys), "chardata.mat"
    images, alphabets, test_images, test_alphabets = (arrays[key] for key in keys)
    order = np.random.RandomState(123).permutation(24345)  # the rows of omniglot28.npz are sorted by character
    train, valid = order[:-1345], order[-1345:]
    return (
        split_of(images[train], alphabets[train]),
        split_of(images[valid], alphabets[valid]),
        split_of(test_images, test_alphabets),
    ), source


def _read_chardata(root: Path, download: bool, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The IWAE authors' ``chardata.mat`` in the layout of ``omniglot28.npz``, kept as such in ``chardata.npz``.

    The converted file has no published checksum, so it carries its own.
    """
    path = root / "omniglot" / "chardata.npz"
    if os.path.lexists(path):
        arrays = load_npz(path, (*keys, "sha256"))
        if str(arrays.pop("sha256")) != sha256(arrays.values()):
            raise damaged(path)
        return arrays
    from scipy.io import loadmat

    matrices = loadmat(io.BytesIO(fetch(CHARDATA, root, download, keep=False, others=(OMNIGLOT28.name,))))
    arrays = {}
    for split, pixels, alphabets in (("train", "data", "target"), ("test", "testdata", "testtarget")):
        # [pixels, images] in [0, 1], each image stored column by column; the alphabets are one-hot [alphabets, images].
        upright = matrices[pixels].T.reshape(-1, 28, 28).transpose(0, 2, 1)
        arrays[f"{split}_images"] = np.rint(255 * upright).astype(np.uint8)
        arrays[f"{split}_alphabet"] = matrices[alphabets].argmax(0).astype(np.uint8)
    save_npz(path, arrays | {"sha256": np.array(sha256(arrays.values()))})
    return arrays
