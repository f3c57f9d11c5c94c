"""A data set of one's own: from images to a :class:`Dataset`, and what every one must be."""

from __future__ import annotations

import hashlib
import math
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from tasks.datasets.dataset import BINARIZATIONS, Dataset, Split, binarize
from tasks.datasets.download import DataError

SPLITS = ("train", "valid", "test")


def split_of(images: Any, labels: Any = None) -> Split:
    """The split of some images, which owns its memory.

    Args:
        images: array or tensor ``[images, height, width]`` or ``[images, height * width]``, upright, row by row, 0 is
            background: floats, intensities in [0, 1], which become 255 grey levels; bytes, 255 grey levels; or bools,
            bits.
        labels: integers ``[images]``, the first class is 0; ``None``: there are none.

    Raises:
        DataError: one sentence for images or labels that are not so.
    """
    array = np.asarray(images)
    kind, levels = array.dtype.kind, 1 if array.dtype == bool else 255
    if array.ndim < 2 or not (kind == "f" or array.dtype in (np.uint8, bool)):
        raise DataError(
            f"images must be [images, height, width] of floats in [0, 1], bytes or bools, not {list(array.shape)} of "
            f"{array.dtype}"
        )
    if kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{int((~np.isfinite(array)).sum())} values of the images are not finite")
    if kind == "f" and array.size and not 0 <= array.min() <= array.max() <= 1:
        raise DataError(f"images of floats must be intensities in [0, 1], not from {array.min():g} to {array.max():g}")
    pixels = np.array(np.rint(array * 255.0) if kind == "f" else array, np.uint8)
    classes = None if labels is None else np.asarray(labels)
    if classes is not None and (classes.dtype.kind not in "iu" or classes.shape != array.shape[:1]):
        raise DataError(
            f"labels must be {len(array)} integers, one for each image, not {list(classes.shape)} of {classes.dtype}"
        )
    return Split(
        torch.from_numpy(pixels.reshape(len(array), math.prod(array.shape[1:]))),
        levels,
        None if classes is None else torch.from_numpy(classes.astype(np.int64)),
    )


def make_dataset(
    name: str,
    image_shape: tuple[int, int],
    binarization: str,
    train: Split,
    valid: Split,
    test: Split,
    source: str = "",
    train_evaluated: int = 10_000,
) -> Dataset:
    """The data set of three splits, grey or of bits, under one of ``BINARIZATIONS`` (:class:`Dataset`).

    Raises:
        DataError: for another binarization, or if bits shall be binarized at each visit.
    """
    if binarization not in BINARIZATIONS:
        raise DataError(f"There is no binarization {binarization!r}: use one of {', '.join(BINARIZATIONS)}.")
    if train.levels == 1 and binarization in ("dynamic", "none"):
        raise DataError(f"the images are bits already, so binarization={binarization} cannot be applied: use static")
    rules = ("none", "static", "static") if binarization == "dynamic" else (binarization,) * 3
    splits = enumerate((train, valid, test))
    train, valid, test = (binarize(split, rules[stream], stream) for stream, split in splits)
    return Dataset(name, image_shape, binarization, train, valid, test, source, train_evaluated)


def check_dataset(data: Any) -> Dataset:
    """``data``, if it is a data set that tasks can be trained and evaluated on.

    Raises:
        DataError: one sentence for the first thing that is wrong.
    """
    if not isinstance(data, Dataset):
        raise DataError(f"must be a tasks.Dataset, not a {type(data).__name__}")
    shape = data.image_shape
    if len(shape) != 2 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise DataError(f"has image_shape {shape!r}: it must be (height, width), both at least 1")
    if data.binarization not in BINARIZATIONS:
        raise DataError(f"has binarization {data.binarization!r}: it must be one of {', '.join(BINARIZATIONS)}")
    for name in SPLITS:
        _check_split(name, getattr(data, name), shape, bits=_are_bits(data.binarization, name))
    unlike = {getattr(data, name).labels is None for name in SPLITS}
    if len(unlike) > 1:
        raise DataError("has labels in some splits and none in others: give them to all, or to none")
    return data


def _are_bits(binarization: str, name: str) -> bool:
    return binarization in ("static", "threshold") or (binarization == "dynamic" and name != "train")


def _check_split(name: str, split: Any, shape: tuple[int, int], bits: bool) -> None:
    if not isinstance(split, Split):
        raise DataError(f"has a {name} that is a {type(split).__name__}: make it with tasks.split_of(images)")
    pixels, levels, labels = split.pixels, split.levels, split.labels
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.device.type != "cpu":
        raise DataError(
            f"has {name} pixels of {getattr(pixels, 'dtype', type(pixels).__name__)}: they must be torch.uint8 on the "
            "CPU; tasks.split_of(images) makes them of intensities in [0, 1]"
        )
    if pixels.dim() != 2 or pixels.shape[1] != shape[0] * shape[1]:
        raise DataError(
            f"has {name} pixels of shape {list(pixels.shape)}: with image_shape {tuple(shape)} it must be "
            f"[images, {shape[0] * shape[1]}]"
        )
    if not len(pixels):
        raise DataError(f"has no {name} images: each split needs at least one")
    if not isinstance(levels, int) or not 1 <= levels <= 255 or int(pixels.max()) > levels:
        raise DataError(
            f"has {name} pixels up to {int(pixels.max())} with levels={levels!r}: intensities are pixels / levels and "
            "must be in [0, 1]; levels is 1 for bits, 255 for grey"
        )
    if bits != (levels == 1):
        raise DataError(
            f"has {name} images of {levels} level{'s' * (levels > 1)}, which does not go with its binarization: "
            "tasks.make_dataset binarizes grey images; bits are binarization='static' from the start"
        )
    if labels is not None and (
        not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]
    ):
        raise DataError(f"has {name} labels that are no torch.int64 [{len(pixels)}], one for each image")
    if labels is not None and int(labels.min()) < 0:
        raise DataError(f"has a {name} label {int(labels.min())}: the first class is 0")


def digest(data: Dataset) -> str:
    """Eight digits that tell images, labels and their order from others."""
    found = hashlib.sha256()
    for name in SPLITS:
        split = getattr(data, name)
        for tensor in (getattr(split, field.name) for field in fields(split)):
            if isinstance(tensor, torch.Tensor):
                found.update(tensor.numpy().tobytes())
            found.update(b"/")
    return found.hexdigest()[:8]
