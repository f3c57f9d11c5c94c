"""What a command prints, and how it ends: on terminals that lack letters, and where its standard streams are closed,
full, or a pipe that nobody reads."""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

UNREAD = 128 + 13
"""The exit code of a command whose output nobody reads: that of SIGPIPE, of which nothing is said (``| head -1``)."""
OF_STREAMS = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)
MANY_FILES = (errno.EMFILE, errno.ENFILE)


IN_ASCII = {"±": "+-"}
HIDDEN = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
"""What moves the cursor, recolours, or turns the direction of a text around: a name must not do that to a terminal."""
_ESCAPES = {number: ascii(chr(number))[1:-1] for number in HIDDEN if chr(number) != "\t"}


def visible(text: str) -> str:
    """``text`` on one line, with control characters and marks of direction as their escapes."""
    return text.translate(_ESCAPES)


def visible_lines(text: str) -> str:
    """:func:`visible`, of each line of ``text``."""
    return "\n".join(map(visible, text.split("\n")))


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def run(main: Callable[[], int | str | None]) -> NoReturn:
    """Run a command and exit with what ``main`` returns; an ``OSError`` that it leaves is one sentence, exit code 1."""
    _open_streams()
    make_printable()
    code: int | str | None
    try:
        try:
            code = main()
        except SystemExit as stopped:
            code = stopped.code
        sys.stdout.flush()
    except OSError as error:
        of_a_stream = error.filename is None and error.errno in OF_STREAMS
        if of_a_stream and _is_broken(1):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes
            code = UNREAD if isinstance(error, BrokenPipeError) else f"error: the standard output: {error.strerror}"
        elif of_a_stream and _is_broken(2):
            code = 1
        else:
            code = f"error: {in_words(error)}"
    sys.exit(visible_lines(code) if isinstance(code, str) else code)


def in_words(error: OSError) -> str:
    """A sentence: what the system refuses, where, and what to do."""
    reason, where = error.strerror or type(error).__name__, "" if error.filename is None else f" ({error.filename})"
    if error.errno in MANY_FILES:
        return f"{reason}{where}: raise their limit (ulimit -n), or use fewer workers"
    return f"{reason}{where}"


def make_printable() -> None:
    """Let no character end a command that prints it: ``±`` becomes ``+-`` where it must, any other its escape. On the
    standard output none acts on the terminal (on the other stream the progress of training does)."""
    codecs.register_error("in_ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="in_ascii")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout.flush()
        sys.stdout = _Visible(sys.stdout)


class _Visible(io.TextIOWrapper):
    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, "in_ascii", line_buffering=stream.line_buffering)
        self.kept = stream  # which closes the buffer when it goes

    def write(self, text: str) -> int:
        return super().write(visible_lines(text))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(each, ascii(each)[1:-1]) for each in characters), error.end


def _open_streams() -> None:
    """Where a standard stream is closed, put the null device: a file that is opened later must not get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _is_broken(number: int) -> bool:
    """Whether a stream cannot be written to; where it can, it gets an empty line."""
    try:
        os.write(number, b"\n")
    except OSError:
        return True
    return False
