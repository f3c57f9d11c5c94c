"""Files of a record, read as somebody else's and written whole: type and size are known before anything is parsed.

A reader gets a regular file of a bounded size, or one sentence (:class:`DamagedRecord`): not a pipe or a device, which
would keep it waiting, not a link, which leads out of the record, and no JSON or YAML that is larger than it looks.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

MEGABYTE = 1 << 20
DOCUMENT = 16 * MEGABYTE
"""Most bytes of a JSON document; a result has some ten thousand."""
CONFIG = MEGABYTE // 4
"""Most bytes of a config; one has some four thousand."""
ROWS = 64 * MEGABYTE
"""Most bytes of rows; of eight metrics a quarter of a million."""
NODES = 50_000
"""Most values of a config, counted where each of them stands: an alias stands for all that it names."""

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFSOCK: "a socket"}
_KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class DamagedRecord(ValueError):
    """A file of a run record that cannot be what this module wrote; the message names the file."""

    kind = "changed"


class UnreadableRecord(DamagedRecord):
    """A file that cannot be read at all: it is not what it was, and nobody knows what it was."""

    kind = "unreadable"


class ForeignRecord(DamagedRecord):
    """A record of a version that this code does not know."""

    kind = "foreign"


@contextmanager
def opened(path: Path, limit: int) -> Iterator[IO[bytes]]:
    """A regular file of at most ``limit`` bytes, to be read.

    Raises:
        FileNotFoundError: if there is none.
        UnreadableRecord: if it is something else, larger, or not ours to read.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        reason = "is a link, not a file" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise UnreadableRecord(f"{path}: {reason}") from None
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):
        os.close(number)
        raise UnreadableRecord(f"{path}: is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, not a file")
    with open(number, "rb") as file:
        if found.st_size > limit:
            raise UnreadableRecord(f"{path}: has {found.st_size:,} bytes; at most {limit:,} are read")
        yield file


def read(path: Path, limit: int = DOCUMENT) -> bytes:
    """The content of a file. Raises as :func:`opened`."""
    with opened(path, limit) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise UnreadableRecord(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > limit:  # it grew
        raise UnreadableRecord(f"{path}: has more than the {limit:,} bytes that are read")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds as JSON. Raises as :func:`read`; what is no object is unreadable, too."""
    return parse_json(path, read(path))


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """The object that ``content``, that of the file ``path``, is as JSON."""
    try:
        found = json.loads(content, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise UnreadableRecord(f"{path}: expected a JSON object")
    return found


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ``ValueError`` if a name stands twice: readers differ in which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def read_yaml(path: Path) -> Any:
    """What a file holds as YAML, built of plain values. Raises as :func:`read`."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = read(path, CONFIG)
    try:
        _count_nodes(yaml.parse(content, Loader=loader))
        return yaml.load(content, Loader=loader)
    except (ValueError, yaml.YAMLError, RecursionError, TypeError) as error:  # a list as a key is a TypeError
        sentence = " ".join(str(error).split())
        raise UnreadableRecord(f"{path}: not readable as YAML ({type(error).__name__}: {sentence})") from None


def _count_nodes(events: Iterator[Any]) -> None:
    """Raise ``ValueError`` if the document of these events has too many values or a key that stands twice."""
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[
        tuple[str | None, int, list[str] | None]
    ] = []  # anchor, nodes before, keys and values of a mapping
    total = 0
    for event in events:
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before, texts = open_nodes.pop()
            keys = (texts or [])[::2]
            if len(set(keys)) < len(keys):
                raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice")
            if anchor:
                sizes[anchor] = total - before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if open_nodes and (texts := open_nodes[-1][2]) is not None:
            texts.append(event.value if isinstance(event, yaml.ScalarEvent) else f"\0{len(texts)}")
        if isinstance(event, yaml.AliasEvent):
            total += sizes.get(str(event.anchor), NODES)  # one that stands in itself has no end
        else:
            total += 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total - 1, [] if isinstance(event, yaml.MappingStartEvent) else None))
        elif isinstance(event, yaml.ScalarEvent) and event.anchor:
            sizes[event.anchor] = 1
        if total > NODES:
            raise ValueError(f"more than {NODES:,} values")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to instead of ``path``, which it replaces in the end: a reader sees the old file or the new one
    and never a part, and where the writing fails (a full disk) the old one stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` (:func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, which is made if it is missing. A pipe or a link in its place is an ``OSError``."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags, 0o666), "ab") as file:
        file.write(content)
