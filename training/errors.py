"""Mistakes of a user: one sentence that says what, where and what to do, and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from analysis import output
from training.interrupt import Stopped


class UserError(Exception):
    """A mistake in what the user asked for; its text is the sentence that the user reads."""


def explained(app: Callable[[], None]) -> NoReturn:
    """Run the command ``app`` and exit; a user's mistake ends it with one sentence on stderr and exit code 1."""

    def main() -> str | None:
        try:
            app()
        except UserError as error:
            return f"error: {error}"
        except Stopped as stopped:
            return str(stopped)
        except OSError as error:
            if error.filename is None or error.errno in output.MANY_FILES:
                raise
            return (
                f"error: cannot write to {error.filename} ({error.strerror}); choose another folder with runs_dir=PATH"
            )
        except KeyboardInterrupt:
            return "stopped; start the same command again to go on"
        return None

    output.run(main)
