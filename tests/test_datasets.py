"""Datasets: published counts, reference likelihoods, binarization rules, damaged and missing files, downloads.

The real images are read from ``DATA_DIR``; without it only what digits and made files can show is tested. Downloads are
served by a local web server or by a replacement of ``pooch.retrieve``, never by the mirrors.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

from tasks import datasets, download
from tasks.datasets import BINARIZATIONS, DATASETS, DataError, Dataset, Split, load_dataset
from tasks.download import SourceFile, fetch

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
LARGE = [pytest.param(name, marks=needs_data) for name in DATASETS[1:]]


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


@pytest.mark.parametrize("name", DATASETS)
def test_config_files_name_what_load_dataset_takes(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / f"{name}.yaml").read_text())
    assert config.pop("defaults") == ["/schema/data@_here_", "_self_"]
    assert config == {
        "name": name,
        "root": "${oc.env:DATA_DIR,data}",
        "binarization": "static" if name == "binarized_mnist" else "dynamic",
        "download": True,
    }


# ---- damaged files --------------------------------------------------------------------------------------------------


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def garbage(content: bytes) -> bytes:
    return b"not what it says it is\n" * 50


def empty(content: bytes) -> bytes:
    return b""


def other_arrays(content: bytes) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, train=np.zeros((2, 98), np.uint8), valid=np.zeros((2, 98)), test=np.zeros(3))
    return buffer.getvalue()


FIRST_FILE = {
    "mnist": "mnist/train-images-idx3-ubyte.gz",
    "binarized_mnist": "binarized_mnist/binarized_mnist.npz",
    "omniglot": "omniglot/omniglot28.npz",
}


@needs_data
@pytest.mark.parametrize("damage", [truncate, flip, garbage, empty, other_arrays])
@pytest.mark.parametrize("name", FIRST_FILE)
def test_a_damaged_file_is_named_and_left_alone(name: str, damage, tmp_path: Path, retrieve_nothing) -> None:
    path = tmp_path / FIRST_FILE[name]
    path.parent.mkdir()
    content = damage((Path(DATA_DIR) / FIRST_FILE[name]).read_bytes())
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} is truncated or changed.*delete it.*restore it"):
        load_dataset(name, tmp_path, "static")
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


@needs_data
def test_fixed_mnist_is_checked_by_its_bits_not_by_its_archive(tmp_path: Path) -> None:
    arrays = dict(np.load(Path(DATA_DIR) / FIRST_FILE["binarized_mnist"]))
    path = tmp_path / FIRST_FILE["binarized_mnist"]
    path.parent.mkdir()
    np.savez(path, **arrays)
    same = load_dataset("binarized_mnist", tmp_path, "static", download=False)
    assert torch.equal(same.train.pixels, real("binarized_mnist", "static").train.pixels)
    arrays["test"][-1, -1] ^= 1
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="binarized_mnist.npz is truncated or changed"):
        load_dataset("binarized_mnist", tmp_path, "static", download=False)


@needs_data
def test_an_intact_archive_of_other_images_is_not_omniglot(tmp_path: Path) -> None:
    arrays = dict(np.load(Path(DATA_DIR) / FIRST_FILE["omniglot"]))
    arrays["test_images"][-1, -1, -1] ^= 1
    path = tmp_path / FIRST_FILE["omniglot"]
    path.parent.mkdir()
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="omniglot28.npz is truncated or changed"):
        load_dataset("omniglot", tmp_path, download=False)


def test_an_unreadable_file_is_named(tmp_path: Path, retrieve_nothing) -> None:
    (tmp_path / FIRST_FILE["omniglot"]).mkdir(parents=True)
    with pytest.raises(DataError, match="omniglot28.npz cannot be read"):
        load_dataset("omniglot", tmp_path)
    link = tmp_path / FIRST_FILE["mnist"]
    link.parent.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz cannot be read"):
        load_dataset("mnist", tmp_path)
    assert link.is_symlink()


# ---- absent files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def retrieve_nothing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network: every download raises what requests raises; the list collects the addresses asked."""
    asked: list[str] = []

    def retrieve(url: str, *args: object, **kwargs: object) -> str:
        asked.append(url)
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    return asked


@pytest.mark.parametrize(
    ("name", "sought", "mirrors"),
    [
        ("mnist", "mnist/train-images-idx3-ubyte.gz", 3),
        ("fashion_mnist", "fashion_mnist/train-images-idx3-ubyte.gz", 3),
        ("binarized_mnist", "binarized_mnist/binarized_mnist.npz or binarized_mnist/binarized_mnist_train.amat", 1),
        ("omniglot", "omniglot/omniglot28.npz or omniglot/chardata.mat", 1),
    ],
)
def test_offline_and_absent(name: str, sought: str, mirrors: int, tmp_path: Path, retrieve_nothing: list[str]) -> None:
    root = tmp_path / "empty"
    with pytest.raises(DataError) as raised:
        load_dataset(name, root, "static")
    message = str(raised.value)
    assert f"Found no {sought} in {root}" in message
    assert "data.root=PATH or DATA_DIR=PATH" in message and "by hand to" in message and "\n" not in message
    assert len(retrieve_nothing) == mirrors and all(f"{url}: ConnectionError" in message for url in retrieve_nothing)
    assert list(tmp_path.iterdir()) == []  # nothing half-made stays behind

    with pytest.raises(DataError, match="downloading is switched off"):
        load_dataset(name, root, "static", download=False)
    assert len(retrieve_nothing) == mirrors


# ---- downloads ------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 700


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server on this machine: ``good``; ``bad`` with a flipped byte; ``short`` that breaks off; else 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {"/good": CONTENT, "/bad": flip(CONTENT), "/short": truncate(CONTENT)}.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", "0" if body is None else str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def served(server: str, *pages: str) -> SourceFile:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return SourceFile("made/file.bin", f"sha256:{sha256}", tuple(f"{server}/{page}" for page in pages))


def test_download_tries_the_next_mirror(server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "new"
    assert fetch(served(server, "absent", "short", "bad", "good"), root) == CONTENT
    assert [path.name for path in (root / "made").iterdir()] == ["file.bin"]
    assert (root / "made" / "file.bin").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [root]
    assert "100 %" in capfd.readouterr().err  # the progress bar
    assert fetch(served("http://127.0.0.1:9", "down"), root) == CONTENT  # from the folder: no mirror is asked


def test_failed_downloads_leave_nothing_and_say_why(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        fetch(served(server, "absent", "short", "bad"), tmp_path)
    for reason in ("absent: HTTPError", "short: ", "bad: wrong checksum", f"by hand to {tmp_path / 'made/file.bin'}"):
        assert reason in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_port_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Connect(ion|Timeout)"):
        fetch(served("http://127.0.0.1:9", "good"), tmp_path)


def test_a_download_never_replaces_what_is_there(server: str, tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="file.bin is truncated or changed"):
        fetch(served(server, "good"), tmp_path)
    assert path.read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made_is_a_data_error(server: str, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"a file where a folder should be")
    with pytest.raises(DataError, match="file.bin cannot be written"):
        fetch(served(server, "good"), tmp_path)


class FakeMirrors:
    """Stands for ``pooch.retrieve``: serves ``contents`` by file name, after checking them as pooch does."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents, self.asked = contents, list[str]()

    def __call__(self, url: str, known_hash: str, fname: str, path: str, **kwargs: object) -> str:
        self.asked.append(fname)
        algorithm, digest = known_hash.split(":")
        if hashlib.new(algorithm, self.contents[fname]).hexdigest() != digest:
            raise ValueError("hash mismatch")
        Path(path, fname).write_bytes(self.contents[fname])
        return str(Path(path, fname))


@needs_data
def test_idx_files_are_downloaded_once_and_only_if_absent(tmp_path: Path, monkeypatch) -> None:
    name = "mnist"
    theirs = {path.name: path.read_bytes() for path in (Path(DATA_DIR) / name).glob("*.gz")}
    there = tmp_path / name / "t10k-images-idx3-ubyte.gz"
    there.parent.mkdir()
    there.write_bytes(theirs[there.name])
    mirrors = FakeMirrors(theirs)
    monkeypatch.setattr("pooch.retrieve", mirrors)
    loaded = load_dataset(name, tmp_path, "none")
    assert sorted(mirrors.asked) == sorted(set(theirs) - {there.name})
    assert {path.name: path.read_bytes() for path in there.parent.iterdir()} == theirs
    assert torch.equal(loaded.train.pixels, real(name, "none").train.pixels)
    load_dataset(name, tmp_path, "none")
    assert len(mirrors.asked) == 3


@needs_data
def test_fixed_mnist_is_made_from_the_text_files(tmp_path: Path, monkeypatch) -> None:
    wanted = real("binarized_mnist", "static")
    texts = {
        f"binarized_mnist_{part}.amat": amat_text(split.pixels.numpy())
        for part, split in zip(("train", "valid", "test"), splits(wanted), strict=True)
    }
    mirrors = FakeMirrors(texts)
    monkeypatch.setattr("pooch.retrieve", mirrors)
    first = load_dataset("binarized_mnist", tmp_path, "static")
    assert len(mirrors.asked) == 3
    assert [path.name for path in (tmp_path / "binarized_mnist").iterdir()] == ["binarized_mnist.npz"]
    again = load_dataset("binarized_mnist", tmp_path, "static", download=False)
    for loaded in (first, again):
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(splits(loaded), splits(wanted), strict=True))


@pytest.fixture
def chardata(tmp_path: Path, monkeypatch) -> tuple[FakeMirrors, np.ndarray, np.ndarray]:
    """A made ``chardata.mat`` in the authors' layout (columns, images column by column), its images and alphabets."""
    from scipy.io import savemat

    random = np.random.RandomState(0)
    images = random.randint(256, size=(40, 28, 28)).astype(np.uint8)
    alphabets = random.randint(50, size=40)
    columns = np.stack([image.flatten(order="F") for image in images], axis=1) / 255
    columns = (columns - 0.001).clip(0, 1)  # between two bytes, as the authors' intensities are: to be rounded
    onehot = np.eye(50)[:, alphabets]
    index = np.arange(24345) % 40
    path = tmp_path / "made.mat"
    savemat(
        path,
        {
            "data": columns[:, index].astype(np.float32),
            "target": onehot[:, index].astype(np.uint8),
            "testdata": columns[:, :7].astype(np.float32),
            "testtarget": onehot[:, :7].astype(np.uint8),
        },
    )
    content = path.read_bytes()
    path.unlink()
    source = SourceFile(
        "omniglot/chardata.mat", f"md5:{hashlib.md5(content).hexdigest()}", ("http://made/chardata.mat",)
    )
    monkeypatch.setattr(datasets, "CHARDATA", source)
    mirrors = FakeMirrors({"chardata.mat": content})
    monkeypatch.setattr("pooch.retrieve", mirrors)
    return mirrors, images, alphabets


def test_omniglot_falls_back_to_chardata(chardata, tmp_path: Path) -> None:
    mirrors, images, alphabets = chardata
    first = load_dataset("omniglot", tmp_path, "none")
    assert [path.name for path in (tmp_path / "omniglot").iterdir()] == ["chardata.npz"]
    again = load_dataset("omniglot", tmp_path, "none", download=False)
    assert mirrors.asked == ["chardata.mat"]
    valid = np.random.RandomState(123).permutation(24345)[-1345:] % 40
    for loaded in (first, again):
        assert loaded.source == "chardata.mat" and tuple(map(len, splits(loaded)[:2])) == (23_000, 1_345)
        np.testing.assert_array_equal(loaded.test.pixels, images[:7].reshape(7, 784))
        np.testing.assert_array_equal(loaded.test.labels, alphabets[:7])
        np.testing.assert_array_equal(loaded.valid.pixels, images[valid].reshape(-1, 784))
        np.testing.assert_array_equal(loaded.valid.labels, alphabets[valid])

    path = tmp_path / "omniglot" / "chardata.npz"
    arrays = dict(np.load(path))
    arrays["test_images"][0, 0, 0] ^= 1
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="chardata.npz is truncated or changed"):
        load_dataset("omniglot", tmp_path)


def test_a_chardata_put_there_by_hand_is_used_and_kept(chardata, tmp_path: Path, retrieve_nothing: list[str]) -> None:
    path = tmp_path / "omniglot" / "chardata.mat"
    path.parent.mkdir()
    path.write_bytes(chardata[0].contents["chardata.mat"])
    assert load_dataset("omniglot", tmp_path).source == "chardata.mat"
    assert path.exists() and not retrieve_nothing
    (path.parent / "chardata.npz").unlink()
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(DataError, match="chardata.mat is truncated or changed"):
        load_dataset("omniglot", tmp_path)


def test_mirrors_are_web_addresses_and_checksums_are_complete() -> None:
    """pooch takes no file:// address, and a checksum of the wrong length would refuse every download."""
    files = [*sum(download.IDX_FILES.values(), ()), *download.AMAT_FILES.values(), download.CHARDATA]
    assert len(files) == 12
    for file in files:
        algorithm, digest = file.checksum.split(":")
        assert len(digest) == {"sha256": 64, "md5": 32}[algorithm] and file.urls
        assert all(url.startswith(("https://", "http://")) and url.endswith(Path(file.name).name) for url in file.urls)
