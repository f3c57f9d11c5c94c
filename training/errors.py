"""Mistakes of a user: one sentence that says what, where and what to do, and no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import NoReturn

from analysis import output
from training.interrupt import Stopped


class UserError(Exception):
    """A mistake in what the user asked for; its text is the sentence that the user reads."""


def did_you_mean(word: str, choices: Iterable[str], form: str = "{}") -> str:
    """`` (did you mean nvil?)``, to stand behind what is wrong with ``word``; empty where none of ``choices`` is close.

    Letters that are doubled, missing or in another order are close, and so is the start of one choice alone.
    """
    known = {choice.lower().replace("-", "_"): choice for choice in choices}
    typed = word.lower().replace("-", "_")
    close = difflib.get_close_matches(typed, known, n=1, cutoff=0.6)
    longer = [choice for choice in known if typed and choice.startswith(typed)]
    found = longer if len(longer) == 1 else close
    return f" (did you mean {form.format(known[found[0]])}?)" if found else ""


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
