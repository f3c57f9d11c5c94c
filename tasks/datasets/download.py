"""Data files: looked for below a root folder, checked against a published checksum, otherwise downloaded.

A file of the user's is never overwritten or deleted; a download appears under its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DataError(Exception):
    """One sentence: what is wrong with the data, where, and what to do about it."""


@dataclass(frozen=True)
class SourceFile:
    """One published file.

    Args:
        name: where it lies below the root, such as ``mnist/t10k-labels-idx1-ubyte.gz``.
        checksum: ``"sha256:<hexadecimal>"`` or ``"md5:<hexadecimal>"`` of its bytes.
        urls: public mirrors, in the order in which they are tried.
    """

    name: str
    checksum: str
    urls: tuple[str, ...]

    def matches(self, content: bytes) -> bool:
        """Whether ``content`` has the published checksum."""
        algorithm, digest = self.checksum.split(":")
        return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == digest


def _idx_files(folder: str, mirrors: tuple[str, ...], checksums: tuple[str, ...]) -> tuple[SourceFile, ...]:
    """The four idx archives of MNIST and its relatives: train images, train labels, test images, test labels."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        SourceFile(f"{folder}/{name}-ubyte.gz", f"sha256:{sha256}", tuple(f"{url}/{name}-ubyte.gz" for url in mirrors))
        for name, sha256 in zip(names, checksums, strict=True)
    )


IDX_FILES = {
    "mnist": _idx_files(
        "mnist",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "http://yann.lecun.com/exdb/mnist",
        ),
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion_mnist": _idx_files(
        "fashion_mnist",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
        ),
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
}

AMAT_FILES = {
    split: SourceFile(
        f"binarized_mnist/binarized_mnist_{split}.amat",
        f"sha256:{sha256}",
        (f"http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{split}.amat",),
    )
    for split, sha256 in {
        "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    }.items()
}

OMNIGLOT28 = SourceFile(  # no mirror: a reconstruction that is handed around as a file
    "omniglot/omniglot28.npz", "sha256:34a18b8fedb1c2da209a8b6661ef26661e5159988ccd5d5a0fef606a0a6ae540", ()
)
CHARDATA = SourceFile(
    "omniglot/chardata.mat",
    "md5:21ecaf34373511aa7691cf2e0802aa3d",
    ("https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",),
)


def read(path: Path) -> bytes:
    """The content of ``path``; a ``DataError`` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it a readable file or remove it.") from error


def damaged(path: Path) -> DataError:
    """The error for a file whose content is not what was published."""
    return DataError(
        f"{path} is truncated or changed (its checksum is not the expected one): delete it, so that it is downloaded "
        "again, or restore it from its source."
    )


def store(content: bytes, path: Path) -> None:
    """Write a file that appears under its name complete or not at all; a ``DataError`` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            partial = Path(folder) / path.name
            partial.write_bytes(content)
            os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): set data.root=PATH or DATA_DIR=PATH to a writable folder."
        ) from error


def fetch(
    file: SourceFile, root: Path, download: bool = True, keep: bool = True, others: tuple[str, ...] = ()
) -> bytes:
    """The content of ``file``, from below ``root`` if it is there, otherwise from the first mirror that delivers it.

    Args:
        root: the folder that ``file.name`` is relative to.
        download: whether to ask the mirrors.
        keep: whether a downloaded file is stored below ``root``; one that was there already is left alone.
        others: names of files that would have done instead, for the error message.

    Raises:
        DataError: the file is there but damaged or unreadable, or it is absent and no mirror delivers it.
    """
    path = root / file.name
    if os.path.lexists(path):
        content = read(path)
        if not file.matches(content):
            raise damaged(path)
        return content
    failures: list[str] = []
    if download and (delivered := _download(file, path, failures)) is not None:
        if keep:
            store(delivered, path)
        return delivered
    sought = " or ".join((*others, file.name))
    why = f"the download failed ({'; '.join(failures)})" if download else "downloading is switched off (download=false)"
    raise DataError(
        f"Found no {sought} in {root}, and {why}: set data.root=PATH or DATA_DIR=PATH to a folder that has it, "
        f"or download {file.urls[0]} by hand to {path}."
    )


def sha256(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of the arrays' bytes, one array after the other."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def load_npz(path: Path, keys: tuple[str, ...], published: SourceFile | None = None) -> dict[str, np.ndarray]:
    """The arrays ``keys`` of an npz file; a ``DataError`` if it is damaged or is not the ``published`` file."""
    content = read(path)
    if published is not None and not published.matches(content):
        raise damaged(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types on bytes that are not theirs
        raise damaged(path) from error


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keep ``arrays`` in ``path`` if the folder can be written; if it cannot, the next load converts again."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    with contextlib.suppress(DataError):
        store(buffer.getvalue(), path)


def _download(file: SourceFile, path: Path, failures: list[str]) -> bytes | None:
    """The content of ``file`` from its first mirror that works; None, and a reason per mirror, if none does."""
    import pooch
    from urllib3.exceptions import HTTPError

    # The temporary folder lies on the data's own file system (the system's may be too small), in the nearest folder
    # that exists: a failed download leaves no empty folders. pooch never sees the user's folder: it replaces files.
    parent = next(folder for folder in path.parents if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".download-") as folder:
            for url in file.urls:
                downloader = pooch.HTTPDownloader(progressbar=_Bar(file.name), chunk_size=2**16, timeout=(10, 30))
                try:
                    local = pooch.retrieve(url, file.checksum, fname=path.name, path=folder, downloader=downloader)
                    return Path(local).read_bytes()
                except ValueError:
                    failures.append(f"{url}: wrong checksum")
                except (OSError, HTTPError) as error:
                    failures.append(f"{url}: {getattr(error, 'strerror', None) or type(error).__name__}")
    except OSError as error:
        failures.append(f"{parent} is not writable: {error.strerror}")
    return None


class _Bar:
    """A progress bar on standard error with the methods that pooch calls, so that it needs no further package."""

    def __init__(self, label: str) -> None:
        self.label, self.total, self.done, self.shown = label, 0, 0, -1

    def update(self, count: int) -> None:
        self.done += count
        percent = min(100, 100 * self.done // max(self.total, 1))
        if percent != self.shown and (sys.stderr.isatty() or percent == 100):
            self.shown = percent
            print(f"\r{self.label} [{'#' * (percent // 4):25}] {percent:3d} %", end="", file=sys.stderr, flush=True)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        print(file=sys.stderr)
