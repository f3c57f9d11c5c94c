"""Mistakes of a user: one sentence that says what, where and what to do, and no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException


class UserError(Exception):
    """A mistake in what the user asked for; its text is the sentence that the user reads."""


def explained(app: Callable[[], None]) -> None:
    """Run the Hydra ``app``; a user's mistake ends it with one sentence on stderr and exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception instead of printing Hydra's own summary
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_explain(error)}")
    except KeyboardInterrupt:
        sys.exit("stopped; start the same command again to go on")


def _explain(error: BaseException) -> str:
    """Hydra's message and its cause's in one line, with the allowed names where a key is unknown."""
    parts: list[str] = []
    chain: BaseException | None = error
    while chain is not None and isinstance(chain, HydraException | OmegaConfBaseException):
        first = [line.strip() for line in str(chain).splitlines() if line.strip()]
        if first and first[0] not in parts:
            parts += [line for line in first if not line.startswith(("full_key", "object_type", "reference_type"))]
        if isinstance(chain, ConfigKeyError) and chain.parent_node is not None:
            allowed = sorted(str(key) for key in chain.parent_node)  # type: ignore[attr-defined]
            parts.append(f"allowed here: {', '.join(allowed)}")
        chain = chain.__cause__
    if isinstance(error, ConfigCompositionException):
        parts.append("`python train.py --help` lists all options")
    return "; ".join(dict.fromkeys(parts))
