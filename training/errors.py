"""Mistakes of a user: one sentence that says what, where and what to do, and no traceback."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NoReturn

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

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


@contextlib.contextmanager
def composing() -> Iterator[None]:
    """While inside, Hydra reads a command line: what it refuses is a ``UserError``.

    It raises errors of every kind for a line that it cannot make sense of. With ``HYDRA_FULL_ERROR=1`` in the
    environment they are left as they are.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception instead of printing Hydra's own summary
    try:
        yield
    except Exception as error:
        of_the_disk = isinstance(error, OSError) and not isinstance(error, HydraException)
        if before or of_the_disk or isinstance(error, UserError):
            raise
        raise UserError(_explain(error)) from None
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ |= {"HYDRA_FULL_ERROR": before} if before else {}


def _explain(error: BaseException) -> str:
    """Hydra's message and its causes' in one line, with the allowed names where a key is unknown."""
    parts: list[str] = []
    chain: BaseException | None = error
    while chain is not None:
        lines = [" ".join(line.split()) for line in str(chain).splitlines()]
        if isinstance(chain, OverrideParseException):
            parts = [
                f"{chain.override!r} cannot be read: an option is KEY=VALUE, and a value with other characters than "
                "letters, digits and -_./:%+@ stands in quotes of its own, 'KEY=\"VALUE\"'"
            ]
        elif isinstance(chain, MissingConfigException) and chain.options:
            parts += [lines[0], f"choose one of {', '.join(chain.options)}"]
        elif isinstance(chain, HydraException | OmegaConfBaseException):
            parts += [line.rstrip(".") for line in lines if line and not line.startswith(_NOT_FOR_USERS)]
        elif not parts:
            parts.append(f"the command line cannot be read ({type(chain).__name__}: {' '.join(lines)})")
        node = getattr(chain, "parent_node", None)
        if isinstance(node, DictConfig) and " not in " in str(chain):  # an unknown key
            parts.append(f"allowed here: {', '.join(sorted(map(str, node)))}")
        chain = chain.__cause__
    return "; ".join(dict.fromkeys([*parts, "python train.py --help lists all options"]))


_NOT_FOR_USERS = (
    "full_key",
    "object_type",
    "reference_type",
    "To append to your config use",
    "Config search path",
    "provider=",
)
