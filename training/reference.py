"""``python -m training.reference [EXPERIMENT ...]``: train what is missing of experiments, in the time that there is.

The order is such that whatever has been trained when the time is over is of use: of each experiment the race, if its
budget has one, and every cell with one seed, before any cell gets its second. Then the records are packed, without
checkpoints, into one archive, from which ``python -m training.paper --records ARCHIVE`` draws on another machine, and
what is missing is printed. The same command goes on with it.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.records import archive
from training import interrupt
from training.config import validity
from training.config.compose import runs_of_command
from training.config.plan import RunPlan
from training.config.race import Race, race_of
from training.errors import UserError
from training.interrupt import Stopped
from training.pack.run import leaving_nothing_empty
from training.progress import clock
from training.sweep.run import run_sweep
from training.sweep.rungs import Rungs

EXPERIMENTS = ("jang_table1", "every_estimator")
RESERVED = 0.05
"""The share of the time that is kept for the last checkpoints and the archive."""
SHOWN = 20
LONGEST = 1_000_000
"""Most minutes: two years."""


@dataclass(frozen=True)
class Part:
    """The runs that an experiment asks for at a budget, of those that make sense."""

    name: str
    runs: list[RunPlan]

    def seeds(self) -> list[int]:
        return sorted({run.config["seed"] for run in self.runs})

    def train(self, seeds: int) -> None:
        """Every cell to its end with the first ``seeds`` seeds. Raises as :func:`training.sweep.run.run_sweep`."""
        first = self.seeds()[:seeds]
        runs = self.runs if race_of(self.runs[0].config) else [r for r in self.runs if r.config["seed"] in first]
        run_sweep(runs, seeds)


def part(name: str, budget: str, options: Sequence[str]) -> Part:
    """An experiment, ``NAME`` or ``NAME:BUDGET``. Raises ``UserError`` if nothing in it makes sense."""
    name, _, own = name.partition(":")
    words = [f"+experiment={name}", f"budget={own or budget}", *options]
    runs = runs_of_command(shlex.join(["python", "train.py", "-m", *words]))
    able = [run for run in runs if not validity.reason_to_skip(run.config)]
    if not able:
        raise UserError(f"{name}: none of its runs makes sense with {' '.join(options)}")
    cells_of(able)  # what has no cells is told before anything trains
    return Part(f"{name} ({own or budget})", able)


def cells_of(runs: Sequence[RunPlan]) -> Rungs:
    """The cells of an experiment, each of one setting where it has no race. Raises ``UserError`` if there are none."""
    return Rungs(race_of(runs[0].config) or Race((), (), (), ()), runs)


def train_in_order(parts: Sequence[Part], left: Callable[[], float]) -> list[str]:
    """Train ``parts`` seed by seed while there is time ``left`` [s]; returns what went wrong, in sentences.

    Raises:
        Stopped: if the time is over, or a signal asked for it.
    """
    troubles: list[str] = []
    for seeds in range(1, max(len(part.seeds()) for part in parts) + 1):
        for each in parts:
            if seeds > len(each.seeds()):
                continue
            if left() <= 0:
                raise Stopped("the time is over")
            print(f"\n{each.name}: {seeds} of {len(each.seeds())} seeds, {clock(left())} left", flush=True)
            try:
                each.train(seeds)
            except UserError as error:  # other parts go on
                trouble = f"{each.name}: {error}"
                troubles += [trouble] if trouble not in troubles else []
    return troubles


def report(parts: Sequence[Part]) -> list[str]:
    """What there is and what is missing, for people."""
    lines = []
    for each in parts:
        cells = cells_of(each.runs).progress()
        there, asked = (sum(numbers) for numbers in zip(*(cell[1:] for cell in cells), strict=True))
        least = min(done for _, done, _ in cells)
        lines.append(f"{each.name}: {there} of {asked} runs are at their end, at least {least} of each cell")
        missing = [f"  {label}: {asked - done} of {asked} are missing" for label, done, asked in cells if done < asked]
        lines += missing[:SHOWN] + ([f"  ... and some of {len(missing) - SHOWN} more"] if len(missing) > SHOWN else [])
    return lines


def check_writable(archive_file: Path) -> None:
    """Raise ``UserError`` if the archive could not be written when all is trained; a file that is there stays."""
    try:
        if archive_file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with leaving_nothing_empty(archive_file.parent):
            archive_file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=archive_file.parent):
                pass
    except OSError as error:
        raise UserError(f"--archive {archive_file} cannot be written ({error.strerror}); choose another file") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.reference", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="NAME or NAME:BUDGET, most useful first")
    parser.add_argument("--budget", default="medium", help="of experiments that name none (default: medium)")
    parser.add_argument("--minutes", type=float, default=8.0, help="in which all is done (default: 8)")
    runs_dir = os.environ.get("RUNS_DIR", "runs")
    parser.add_argument("--archive", type=Path, default=Path(runs_dir, "reference.tar.gz"), help="where records go")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of all, as workers=1"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= LONGEST:
        raise UserError(f"--minutes must be positive and at most {LONGEST:,}, not {options.minutes:g}")
    check_writable(options.archive)
    end = time.monotonic() + 60 * options.minutes * (1 - RESERVED)
    settings = [f"runs_dir={runs_dir}", *options.set]
    parts = [part(name, options.budget, settings) for name in options.experiments or EXPERIMENTS]
    troubles: list[str] = []
    timer = threading.Timer(max(end - time.monotonic(), 0.0), interrupt.ask)
    timer.daemon = True
    timer.start()
    try:
        with interrupt.on_signals(signal.SIGINT, signal.SIGTERM):
            troubles = train_in_order(parts, lambda: end - time.monotonic())
    except Stopped as stopped:
        print(stopped, flush=True)
    finally:
        timer.cancel()
    sweeps = dict.fromkeys(each.runs[0].path.parent for each in parts)
    print("\n" + "\n".join(report(parts)), flush=True)
    try:
        count = archive.pack([sweep for sweep in sweeps if sweep.exists()], options.archive)
    except OSError as error:
        why = (
            f"{options.archive} is not written ({error.strerror}), the runs are kept" if error.strerror else str(error)
        )
        raise UserError("; ".join([*troubles, why])) from None
    megabytes = options.archive.stat().st_size / 2**20
    print(f"{count} runs, without checkpoints, in {options.archive} ({megabytes:.1f} MB)", flush=True)
    if troubles:
        raise UserError("; ".join(troubles))


if __name__ == "__main__":
    from training.errors import explained

    explained(main)
