"""Mistakes of a user: one sentence that says what, where and what to do, and no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from analysis.printable import make_printable
from training.interrupt import Stopped


class UserError(Exception):
    """A mistake in what the user asked for; its text is the sentence that the user reads."""


def explained(app: Callable[[], None]) -> None:
    """Run the Hydra ``app``; a user's mistake ends it with one sentence on stderr and exit code 1."""
    make_printable()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception instead of printing Hydra's own summary
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        sys.exit(str(stopped))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_explain(error)}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(
            f"error: cannot write to {error.filename} ({error.strerror}); choose another folder with runs_dir=PATH"
        )
    except KeyboardInterrupt:
        sys.exit("stopped; start the same command again to go on")


def _explain(error: BaseException) -> str:
    """Hydra's message and its causes' in one line, with the allowed names where a key is unknown."""
    parts: list[str] = []
    chain: BaseException | None = error
    while isinstance(chain, HydraException | OmegaConfBaseException):
        lines = [line.strip() for line in str(chain).splitlines()]
        parts += [line for line in lines if line and not line.startswith(_NOT_FOR_USERS)]
        node = getattr(chain, "parent_node", None)
        if isinstance(node, DictConfig) and " not in " in str(chain):  # an unknown key
            parts.append(f"allowed here: {', '.join(sorted(map(str, node)))}")
        chain = chain.__cause__
    return "; ".join(dict.fromkeys([*parts, "python train.py --help lists all options"]))


_NOT_FOR_USERS = ("full_key", "object_type", "reference_type", "To append to your config use")
