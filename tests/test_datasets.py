"""Datasets: published counts, reference likelihoods, binarization rules.

The real images are read from ``DATA_DIR``; without it only what digits and made files can show is tested.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.datasets import BINARIZATIONS, DATASETS, DataError, Dataset, Split, load_dataset

DATA_DIR = os.environ.get("DATA_DIR", "")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="DATA_DIR is not set: it names the folder of the real images")

SIZES = {
    "digits": (1197, 300, 300),
    "mnist": (50_000, 10_000, 10_000),
    "binarized_mnist": (50_000, 10_000, 10_000),
    "fashion_mnist": (50_000, 10_000, 10_000),
    "omniglot": (23_000, 1_345, 8_070),
}
MNIST_TRAIN_LABELS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST_LABELS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
IMAGES = [name for name in DATASETS if name != "none"]
LARGE = [pytest.param(name, marks=needs_data) for name in IMAGES[1:]]


@functools.cache
def real(name: str, binarization: str) -> Dataset:
    return load_dataset(name, DATA_DIR or "data", binarization, download=False)


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.valid, dataset.test


def intensity_mean(*parts: Split) -> torch.Tensor:
    """Mean intensity per pixel over the images of all ``parts``, float64 ``[pixels]``."""
    total = sum(part.pixels.numpy().sum(0, dtype=np.int64) / part.levels for part in parts)
    return torch.as_tensor(total / sum(map(len, parts)))


def bernoulli_nll(train: torch.Tensor, test: torch.Tensor) -> float:
    """Nats per image under independent pixels: linear in the test images, so their mean intensity ``[pixels]`` does."""
    p = train.clamp(0.001, 0.999)
    return -(test * p.log() + (1 - test) * (1 - p).log()).sum().item()


def label_counts(*parts: Split) -> list[int]:
    return sum(torch.bincount(part.labels) for part in parts if part.labels is not None).tolist()  # type: ignore[union-attr]


# ---- what is in the data sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", *LARGE])
def test_shapes_types_and_sizes(name: str) -> None:
    dataset = real(name, "static" if name == "binarized_mnist" else "dynamic")
    side = 8 if name == "digits" else 28
    assert dataset.name == name and dataset.image_shape == (side, side) and dataset.source
    assert tuple(map(len, splits(dataset))) == SIZES[name]
    for split in splits(dataset):
        assert split.pixels.dtype == torch.uint8 and split.pixels.shape == (len(split), side * side)
        assert split.pixels.max() == split.levels
        if name == "binarized_mnist":
            assert split.labels is None
        else:
            assert split.labels is not None and split.labels.dtype == torch.int64 and len(split.labels) == len(split)
    assert dataset.mean.dtype == torch.float32 and dataset.mean.shape == (side * side,)
    torch.testing.assert_close(dataset.mean.double(), intensity_mean(dataset.train), rtol=0, atol=1e-6)


def test_digits_are_scikit_learns_scaled_to_bytes_each_once() -> None:
    from sklearn.datasets import load_digits

    ours = real("digits", "none")
    pixels = torch.cat([split.pixels for split in splits(ours)]).numpy()
    labels = torch.cat([split.labels for split in splits(ours) if split.labels is not None]).numpy()
    theirs = load_digits()
    scaled = np.floor(theirs.data * 255 / 16 + 0.5)

    def rows(images: np.ndarray, targets: np.ndarray) -> list[tuple[float, ...]]:
        return sorted(map(tuple, np.column_stack([images, targets]).astype(float).tolist()))

    assert rows(pixels, labels) == rows(scaled, theirs.target)
    assert min(label_counts(ours.test)) >= 15  # shuffled: no digit is missing from a split


def test_digits_need_scikit_learn_on_the_disk_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it would be most of the time in which a process reads them."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    assert len(load_dataset("digits").train) == SIZES["digits"][0] and "sklearn" not in sys.modules
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as where it is not installed
    with pytest.raises(DataError, match="scikit-learn, which is not installed: pip install scikit-learn$"):
        load_dataset("digits")


@needs_data
def test_label_counts_are_the_published_ones() -> None:
    mnist, fashion = real("mnist", "dynamic"), real("fashion_mnist", "dynamic")
    assert label_counts(mnist.train, mnist.valid) == MNIST_TRAIN_LABELS
    assert label_counts(mnist.test) == MNIST_TEST_LABELS
    assert label_counts(fashion.train, fashion.valid) == [6000] * 10
    assert label_counts(fashion.test) == [1000] * 10
    omniglot = real("omniglot", "dynamic")
    # 1,623 characters, drawn 15 times for training and 5 times for testing; 4 times for the 45 of Glagolitic.
    assert len(label_counts(omniglot.train, omniglot.valid)) == 50
    assert sum(label_counts(omniglot.train, omniglot.valid)) == 15 * 1623
    train, test = label_counts(omniglot.train, omniglot.valid), label_counts(omniglot.test)
    assert sorted(5 * many - 15 * few for many, few in zip(train, test, strict=True)) == [0] * 49 + [15 * 45]


@needs_data
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("mnist", 0.1307, 0.1325), ("fashion_mnist", 0.2860, 0.2868), ("omniglot", 0.0830, 0.0820)],
)
def test_mean_intensities_are_the_published_ones(name: str, train: float, test: float) -> None:
    grey = real(name, "none")
    assert intensity_mean(grey.train, grey.valid).mean().item() == pytest.approx(train, abs=5e-5)
    assert intensity_mean(grey.test).mean().item() == pytest.approx(test, abs=5e-5)


@needs_data
@pytest.mark.parametrize(
    ("name", "binarization", "published"),
    [
        ("mnist", "none", 205.967),
        ("mnist", "threshold", 206.010),
        ("fashion_mnist", "none", 385.025),
        ("fashion_mnist", "threshold", 383.137),
        ("omniglot", "none", 175.108),
        ("omniglot", "threshold", 172.216),
    ],
)
def test_reference_likelihood(name: str, binarization: str, published: float) -> None:
    """All training images (train and valid); for ``none`` the exact expectation over dynamic binarization."""
    data = real(name, binarization)
    nll = bernoulli_nll(intensity_mean(data.train, data.valid), intensity_mean(data.test))
    assert nll == pytest.approx(published, abs=6e-4)


@needs_data
def test_reference_likelihood_and_means_of_fixed_mnist() -> None:
    data = real("binarized_mnist", "static")
    assert bernoulli_nll(data.mean.double(), intensity_mean(data.test)) == pytest.approx(205.952, abs=6e-4)
    means = [intensity_mean(split).mean().item() for split in splits(data)]
    assert means == pytest.approx([0.13056, 0.13113, 0.13251], abs=5e-6)


def amat_text(bits: np.ndarray) -> bytes:
    """The published text form of ``[images, 784]`` bits: digits separated by spaces, one line per image."""
    text = np.full((len(bits), 2 * 784), ord(" "), np.uint8)
    text[:, ::2] = bits + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()


@needs_data
def test_fixed_mnist_is_the_published_text_bit_for_bit() -> None:
    """In the published order too: nothing is shuffled, sampled or thresholded."""
    published = {
        "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    }
    for (name, digest), split in zip(published.items(), splits(real("binarized_mnist", "static")), strict=True):
        assert hashlib.sha256(amat_text(split.pixels.numpy())).hexdigest() == digest, name


@needs_data
def test_omniglot_splits_are_disjoint_parts_of_the_file() -> None:
    stored = np.load(Path(DATA_DIR) / "omniglot" / "omniglot28.npz")
    grey = real("omniglot", "none")
    order = np.random.RandomState(123).permutation(24345)
    np.testing.assert_array_equal(grey.train.pixels[:9], stored["train_images"][order[:9]].reshape(9, 784))
    np.testing.assert_array_equal(grey.valid.pixels[-9:], stored["train_images"][order[-9:]].reshape(9, 784))
    np.testing.assert_array_equal(grey.valid.labels, stored["train_alphabet"][order[-1345:]])
    np.testing.assert_array_equal(grey.test.pixels, stored["test_images"].reshape(-1, 784))
    together = intensity_mean(grey.train, grey.valid).numpy()
    np.testing.assert_allclose(together, stored["train_images"].reshape(-1, 784).mean(0) / 255, atol=1e-9)


# ---- binarization ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=needs_data)])
def test_which_splits_are_bits(name: str) -> None:
    levels = {rule: [split.levels for split in splits(real(name, rule))] for rule in BINARIZATIONS}
    assert levels == {
        "none": [255, 255, 255],
        "threshold": [1, 1, 1],
        "static": [1, 1, 1],
        "dynamic": [255, 1, 1],
    }
    for rule in BINARIZATIONS:
        for split, grey in zip(splits(real(name, rule)), splits(real(name, "none")), strict=True):
            assert split.levels == 255 or (split.pixels.min(), split.pixels.max()) == (0, 1)
            assert split.labels is not None and grey.labels is not None and torch.equal(split.labels, grey.labels)
    assert torch.equal(real(name, "dynamic").train.pixels, real(name, "none").train.pixels)
    assert torch.equal(real(name, "dynamic").valid.pixels, real(name, "static").valid.pixels)
    assert torch.equal(real(name, "dynamic").test.pixels, real(name, "static").test.pixels)


@pytest.mark.parametrize("name", ["digits", pytest.param("omniglot", marks=needs_data)])
def test_threshold_is_exact(name: str) -> None:
    for split, grey in zip(splits(real(name, "threshold")), splits(real(name, "none")), strict=True):
        np.testing.assert_array_equal(split.pixels.numpy(), grey.pixels.numpy() / 255 > 0.5)


def test_static_bits_are_the_same_in_every_run_and_on_every_platform() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = load_dataset("digits", binarization="static")
    second = load_dataset("digits", binarization="static")
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(splits(first), splits(second), strict=True))
    assert (
        hashlib.sha256(first.train.pixels.numpy().tobytes()).hexdigest()
        == "fc8c9fe9a6f1e6d875534774c937aac8697012a025ff4aa8a5dbf1b88326dafb"
    )


@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=needs_data)])
def test_static_bits_have_the_intensity_as_their_mean(name: str) -> None:
    """Every grey level's share of ones, within 5 standard errors (false alarm below 2e-4; the bits are fixed)."""
    grey, bits = real(name, "none"), real(name, "static")
    for before, after in zip(splits(grey), splits(bits), strict=True):
        count = torch.bincount(before.pixels.flatten().int(), minlength=256).double()
        ones = torch.bincount(before.pixels[after.pixels == 1].int(), minlength=256).double()
        p = torch.arange(256).double() / 255
        assert ones[0] == 0 and ones[255] == count[255]
        assert ((ones - count * p).abs() <= 5 * (count * p * (1 - p)).sqrt()).all()


@pytest.mark.parametrize("first,second", [(0, 1), (0, 2), (1, 2)])
def test_static_bits_of_two_splits_and_pixels_are_independent(first: int, second: int) -> None:
    """Residuals of different splits, row by row: |correlation| < 5 / sqrt(n), false alarm 6e-7 each."""
    grey, bits = real("digits", "none"), real("digits", "static")

    def residual(split: int) -> torch.Tensor:
        p = splits(grey)[split].pixels[:300].double() / 255
        return (splits(bits)[split].pixels[:300] - p) / (p * (1 - p)).sqrt().clamp(min=1e-9)

    one, other = residual(first), residual(second)
    both = (one != 0) & (other != 0)
    assert abs((one * other)[both].mean()) < 5 / both.sum().sqrt()
    neighbours = (one[:, 1:] * one[:, :-1])[(one[:, 1:] != 0) & (one[:, :-1] != 0)]
    assert abs(neighbours.mean()) < 5 / len(neighbours) ** 0.5


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_unknown_names_list_the_allowed_ones() -> None:
    with pytest.raises(DataError, match=", ".join(DATASETS)):
        load_dataset("cifar")
    with pytest.raises(DataError, match=", ".join(BINARIZATIONS)):
        load_dataset("digits", binarization="otsu")


@pytest.mark.parametrize("binarization", ["dynamic", "threshold", "none"])
def test_fixed_mnist_refuses_other_binarizations(binarization: str) -> None:
    with pytest.raises(DataError, match=f"binarization=static, or data=mnist for {binarization}"):
        load_dataset("binarized_mnist", binarization=binarization)


def test_no_data_has_examples_without_pixels() -> None:
    nothing = load_dataset("none", binarization="none", root="unused", download=False)
    assert nothing.image_shape == (0, 0) and nothing.train.pixels.shape[1] == 0 and len(nothing.train) >= 10_000
    assert {path.stem for path in (Path(__file__).parents[1] / "conf" / "data").glob("*.yaml")} == set(DATASETS)


@pytest.mark.parametrize("name", IMAGES)
def test_config_files_name_what_load_dataset_takes(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / f"{name}.yaml").read_text())
    assert config.pop("defaults") == ["/hydra/schema/data@_here_", "_self_"]
    assert config == {
        "name": name,
        "root": "${oc.env:DATA_DIR,data}",
        "binarization": "static" if name == "binarized_mnist" else "dynamic",
        "download": True,
    }
