"""Seals: a result holds the SHA-256 of everything that it stands on, and :func:`differences` names what is not that.

``result.json`` has ``"seals": {"version": 2, "result": ..., FILE: ..., ...}``: a digest of its own content, whatever
its layout, and one of the bytes of each other file: rows, config, facts, images, the final checkpoint. A seal finds
mistakes: a stray ``sed``, a merged or half-copied folder, a disk that forgets. It keeps no secret: whoever can edit a
file can compute its digest.

Records of older code hold the sizes of their rows instead of a digest (:func:`kind` is ``size``), or nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from analysis.records import files
from analysis.records.files import DamagedRecord, ForeignRecord

VERSION = 2
RESULT = "result"


def seal(folder: Path, limits: dict[str, int], result: dict[str, Any]) -> dict[str, Any]:
    """``result`` with its seals, of those of the files ``limits`` in ``folder`` that are there.

    ``limits`` maps names to the most bytes that are read of each.
    """
    seals: dict[str, Any] = {"version": VERSION}
    for name, limit in limits.items():
        try:
            seals[name] = digest(folder / name, limit)
        except FileNotFoundError:
            continue
    content = {key: value for key, value in result.items() if key != "seals"}
    return {**content, "seals": {**seals, RESULT: of_content(content)}}


def kind(result: dict[str, Any]) -> str:
    """``content`` if hashes seal it; of older code ``size`` or ``none``.

    Raises:
        ForeignRecord: if newer code sealed it.
    """
    if "seals" not in result:
        return "none"
    seals = result["seals"]
    if not isinstance(seals, dict):
        raise ForeignRecord("has seals that this code does not know")
    version = seals.get("version", 1)
    if version not in (1, VERSION):
        raise ForeignRecord(f"sealed by other code (version {version!r}; this code knows {VERSION})")
    return "content" if version == VERSION else "size"


def differences(
    folder: Path, result: dict[str, Any], limits: dict[str, int], contents: dict[str, bytes] | None = None
) -> list[DamagedRecord]:
    """What is not as the ``result`` in ``folder`` sealed it, an error each: itself, then those of ``limits``.

    Args:
        folder: of the run, or of one of its older results.
        result: the content of its ``result.json``.
        limits: the files to check, by name, and the most bytes that are read of each.
        contents: gets what was read of each file, so that nobody need read it again.

    Raises:
        ForeignRecord: if newer code sealed it.
    """
    how, seals = kind(result), result.get("seals", {})
    found: list[DamagedRecord] = []
    if how == "content" and seals.get(RESULT) != of_content({k: v for k, v in result.items() if k != "seals"}):
        found.append(DamagedRecord(f"{folder / 'result.json'}: was changed after the run"))
    for name, limit in limits.items() if how != "none" else ():
        try:
            now = _now(folder / name, limit, seals.get(name), contents)
        except FileNotFoundError:
            if name in seals:
                found.append(DamagedRecord(f"{folder / name}: was removed after the run"))
            continue
        except DamagedRecord as error:
            found.append(error)
            continue
        if name in seals and now != seals[name]:
            found.append(DamagedRecord(f"{folder / name}: was changed after the run"))
        elif name not in seals and how == "content":
            found.append(DamagedRecord(f"{folder / name}: was added after the run"))
    return found


def _now(path: Path, limit: int, then: str | int | None, contents: dict[str, bytes] | None) -> str | int | None:
    """What to compare with the seal ``then``; nothing is read of a file that has none."""
    if type(then) is int:
        return path.lstat().st_size
    if then is None:
        path.lstat()
        return None
    if contents is None:
        return digest(path, limit)
    contents[path.name] = files.read(path, limit)
    return hashlib.sha256(contents[path.name]).hexdigest()


def digest(path: Path, limit: int) -> str:
    """The SHA-256 of a file. Raises as :func:`analysis.records.files.opened`."""
    found = hashlib.sha256()
    with files.opened(path, limit) as file:
        while part := file.read(files.MEGABYTE):
            found.update(part)
    return found.hexdigest()


def chained(rows: Iterable[dict[str, Any]]) -> str:
    """The SHA-256 of rows one after the other; a checkpoint holds that of the rows before it."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()


def of_content(content: dict[str, Any]) -> str:
    """The SHA-256 of an object of JSON, whatever its layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
