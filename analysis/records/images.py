"""The pictures of a run's record: read within bounds, as their result sealed them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.records import files
from analysis.records.files import UnreadableRecord
from analysis.records.format import BESIDE, IMAGES, RunRecord

MOST_ARRAYS, PIXELS = 32, 16 * files.MEGABYTE
"""Most arrays, and most numbers of all of them."""


def read_images(run: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of the run's pictures, ``[n, height, width]`` or ``[n, classes, height, width]``; ``None`` if it has
    none.

    Raises:
        DamagedRecord: if they cannot be read, or are not what the result sealed.
    """
    path = run / IMAGES
    for changed in RunRecord(run).differences(IMAGES):
        raise changed
    try:
        with files.opened(path, BESIDE[IMAGES]) as file, zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if len(members) > MOST_ARRAYS:
                raise ValueError(f"{len(members)} arrays")
            shapes = [_shape(archive, member) for member in members.values()]
            if sum(int(np.prod([float(each) for each in shape])) for shape in shapes) > PIXELS:
                raise ValueError(f"more than {PIXELS:,} numbers")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in members}
    except FileNotFoundError:
        return None
    except UnreadableRecord:
        raise
    except (OSError, ValueError, KeyError, EOFError, OverflowError, MemoryError, SyntaxError) as error:
        raise UnreadableRecord(f"{path}: not readable as images ({error})") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UnreadableRecord(f"{path}: not readable as images ({error})") from None


def _shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """Of an array of numbers, from its header. Raises ``ValueError`` for anything else."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = reader(file)
    if kind.kind not in "fiu" or kind.itemsize > 8 or len(shape) not in (3, 4) or 0 in shape[-2:]:
        raise ValueError(f"{member.filename} is no array of pictures")
    return tuple(shape)
