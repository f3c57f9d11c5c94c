"""The command line of ``train.py``: what Hydra would take in silence, or answer at length, is one sentence here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException

import conf
from training.config import of_one
from training.config.targets import GROUPS
from training.errors import UserError

MULTIRUN = ("-m", "--multirun")
OURS = ("hydra.sweeper.", "hydra.searchpath")
"""The options of Hydra's own that do something here."""
INSTEAD = {
    "hydra.run.dir": "runs_dir=PATH sweep=NAME",
    "hydra.sweep.dir": "runs_dir=PATH sweep=NAME",
    "hydra.mode": "-m",
    "hydra.launcher": "cluster=slurm or workers=N",
    "hydra/launcher": "cluster=slurm or workers=N",
}


def checked(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command as Hydra takes them: ``-m`` may stand anywhere.

    Raises:
        UserError: for a flag that there is not, flags that exclude each other, options of Hydra's that nothing here
            would heed, and a group of options without a name.
    """
    ordered = sorted(arguments, key=lambda argument: argument not in MULTIRUN)
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    options = parser.parse_args(ordered)
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    if len(given := [mode for mode in modes if getattr(options, mode)]) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other")
    if options.resolve and not options.cfg:
        raise UserError("--resolve goes with --cfg")
    if options.experimental_rerun:
        raise UserError("--experimental-rerun is not supported: the same command again goes on with its runs")
    for override in options.overrides:
        with contextlib.suppress(HydraException):  # what cannot be read is refused with all the others
            check_choice(OverridesParser.create().parse_override(override))
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in options.overrides]
    if "hydra/sweeper" not in keys:  # another one heeds what it likes
        for key in keys:
            _check_key(key)
    if not options.multirun:
        for key in keys:
            if part := of_one.parted(key):
                group, name, option = part
                raise UserError(
                    f"{key} is the option of {group}={name} in a sweep over several, with -m; of one run it is "
                    f"{group}.{option}"
                )
    return [_added(argument, keys) for argument in ordered]


def check_choice(override: Override) -> None:
    """Raise ``UserError`` for a group of options of which not a name is chosen, as in ``race=null``."""
    group, chosen = str(override.key_or_group), override.value()
    if isinstance(chosen, ChoiceSweep):
        values: Sequence[object] = chosen.list or []
    else:
        values = [] if override.is_delete() or override.is_sweep_override() else [chosen]
    if group not in _groups() or all(isinstance(value, (str, QuotedString)) for value in values):
        return
    options = _groups()[group]
    raise UserError(
        f"{override.input_line}: {group} is one of {', '.join(options)}; write {group}=NAME"
        f"{f', such as {group}=none' if 'none' in options else ''}"
    )


@functools.cache
def _groups() -> dict[str, list[str]]:
    """The groups of options and the names in each."""
    folders = (folder for folder in Path(conf.__file__).parent.iterdir() if folder.is_dir())
    found = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    return {group: names for group, names in found.items() if names}


def _added(argument: str, keys: Sequence[str]) -> str:
    """An option of what ``task._target_`` names: the schema of the task that it stands in for has it not."""
    group, _, option = argument.partition("=")[0].partition(".")
    known = ("", "name") if group == "data" else ("", "name", "_target_")
    if of_one.parted(f"{group}.{option}"):
        return of_one.as_sweep(argument)
    own = group in GROUPS and f"{group}._target_" in keys and option not in known
    return f"++{argument}" if own else argument


def _check_key(key: str) -> None:
    if key.replace("/", ".").split(".")[0] == "hydra" and not key.startswith(OURS):
        instead = next((f"; use {words}" for start, words in INSTEAD.items() if key.startswith(start)), "")
        raise UserError(f"{key} is an option of Hydra's that has no effect here{instead}")


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; options are KEY=VALUE, and python train.py --help lists them")
