"""``python -m training.paper [NAMES...]``: every committed table and figure anew from its runs, or what is missing.

``docs/results/paper.yaml`` has for each name the command (or commands, of one sweep) that train its runs, the commands
that draw (in which ``{runs}`` is the sweep's directory and ``{out}`` an empty folder), the files to keep of what they
write (``FILE``, or ``FILE: NEW NAME``), and their folder, if that is not the name. Nothing is trained here: where not
all runs are over the files stay as they are, and the commands that make the runs are printed. ``--records ARCHIVE``
reads records that ``python -m training.reference`` packed, mostly on another machine, instead of those in ``runs/``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis.records import DamagedRecord, archive
from training.config import validity
from training.config.compose import runs_of_command
from training.config.plan import RunPlan
from training.errors import UserError
from training.processes import ROOT, python
from training.sweep.rungs import rungs_of

RESULTS = ROOT / "docs" / "results"


def unfinished(runs: Sequence[RunPlan]) -> list[RunPlan]:
    """Those without a result that can be trusted; of a race those that it asks for next."""
    if runs and (rungs := rungs_of(runs)):
        return rungs.missing()

    def is_over(run: RunPlan) -> bool:
        try:
            return run.is_over()
        except DamagedRecord:
            return False

    return [run for run in runs if not is_over(run)]


def regenerate(name: str, entry: dict[str, Any], runs_dir: str = "runs") -> str:
    """Draw one folder anew if its runs are in ``runs_dir``; returns what was done or what is missing, in a sentence.

    Raises:
        UserError: if a drawing command fails or does not write a file that is to be kept.
    """
    runs_directory, commands = "", entry.get("train", [])
    if commands := [commands] if isinstance(commands, str) else commands:
        where = shlex.quote(f"runs_dir={runs_dir}")
        asked = [run for command in commands for run in runs_of_command(f"{command} {where}")]
        runs = [run for run in asked if validity.reason_to_skip(run.config) is None]
        if missing := unfinished(runs):
            some = ", ".join(run.name for run in missing[:3]) + (", ..." if len(missing) > 3 else "")
            return (
                f"left as it is: {len(missing)} of {len(runs)} runs are missing ({some}); make them:\n    "
                + "\n    ".join(commands)
            )
        runs_directory = str(runs[0].path.parent)
    folder = RESULTS / entry.get("folder", name)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as out:
        for line in entry["draw"]:
            words = [word.format(runs=runs_directory, out=out) for word in shlex.split(line)]
            whole = [*(python() if words[0] == "python" else words[:1]), *words[1:]]
            done = subprocess.run(whole, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
            if done.returncode:
                raise UserError(f"{name}: {shlex.join(words)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
        for file, kept in files(entry).items():
            if not (Path(out) / file).exists():
                raise UserError(f"{name}: {line} has not written {file}, which docs/results/paper.yaml keeps")
            shutil.copyfile(Path(out) / file, folder / kept)
    return f"{len(entry['keep'])} files written to {folder}"


def files(entry: dict[str, Any]) -> dict[str, str]:
    """What an entry keeps: the name that is drawn, and the name in the folder."""
    names: dict[str, str] = {}
    for file in entry["keep"]:
        names |= file if isinstance(file, dict) else {file: file}
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    content: dict[str, Any] = yaml.safe_load((RESULTS / "paper.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(prog="python -m training.paper", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(content)} (default: all)")
    parser.add_argument("--records", type=Path, metavar="ARCHIVE", help="of training.reference, instead of runs/")
    options = parser.parse_args(arguments)
    names = options.names or list(content)
    if unknown := [name for name in names if name not in content]:
        raise UserError(f"docs/results/paper.yaml has no {', '.join(unknown)}; it has {', '.join(content)}")
    with tempfile.TemporaryDirectory() as folder:
        runs_dir = os.environ.get("RUNS_DIR", "runs")
        if options.records:
            runs_dir = folder
            try:
                print(f"{archive.unpack(options.records, Path(folder))} runs in {options.records}", flush=True)
            except DamagedRecord as error:
                raise UserError(str(error)) from None
            except OSError as error:
                raise UserError(f"{options.records}: cannot be unpacked ({error.strerror or error})") from None
        for name in names:
            print(f"{name}: {regenerate(name, content[name], runs_dir)}", flush=True)


if __name__ == "__main__":
    from training.errors import explained

    explained(main)
