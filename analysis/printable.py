"""What a terminal cannot encode is written in letters that it can."""

from __future__ import annotations

import codecs
import io
import sys

IN_ASCII = {"±": "+-"}


def make_printable() -> None:
    """Let no character end a command that prints it: ``±`` becomes ``+-`` where it must, any other its escape."""
    codecs.register_error("in_ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="in_ascii")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(each, ascii(each)[1:-1]) for each in characters), error.end
