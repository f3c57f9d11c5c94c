"""Files of the data sets: damaged, missing, and downloaded.

The real images are read from ``DATA_DIR``. Downloads are served by a local web server or by a replacement of
``pooch.retrieve``, never by the mirrors.
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

from tasks.datasets import DataError, Dataset, Split, download, load_dataset, published
from tasks.datasets.download import SourceFile, fetch

DATA_DIR = os.environ.get("DATA_DIR", "")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="DATA_DIR is not set: it names the folder of the real images")


@functools.cache
def real(name: str, binarization: str) -> Dataset:
    return load_dataset(name, DATA_DIR or "data", binarization, download=False)


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.valid, dataset.test


def amat_text(bits: np.ndarray) -> bytes:
    """The published text form of ``[images, 784]`` bits: digits separated by spaces, one line per image."""
    text = np.full((len(bits), 2 * 784), ord(" "), np.uint8)
    text[:, ::2] = bits + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()


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
    monkeypatch.setattr(published, "CHARDATA", source)
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
