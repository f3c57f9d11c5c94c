"""``python -m analysis.papers.certificates FILE OUTDIR``: tables and figures of bias and variance, of measured points.

FILE is what ``python -m estimators.check --json`` wrote: ``bias_variance`` and ``ranking`` have a panel for each number
of categories, one layer and the certificate's loss of degree 3, everything relative to the exact gradient. An estimator
of another objective (VIMCO) is left out, and so is one that rescales its gradient (NVIL, which has its unscaled form
instead). Or FILE is a ``variance.csv`` of runs with a basket: its tables and figures are drawn again, without the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis import output
from analysis.figures import variance as figures
from analysis.statistics import certificates, variance


def write(file: Path, output: Path) -> Iterator[Path]:
    """Write the tables and figures of ``file`` into the folder ``output``."""
    if file.suffix == ".csv":
        found = variance.read(file)
    else:
        report = json.loads(file.read_text(encoding="utf-8"))
        found = variance.panels(certificates.comparable(certificates.frame(report)))
    if not found:
        raise ValueError("it has no estimator whose figures are comparable")
    output.mkdir(parents=True, exist_ok=True)
    yield from figures.write(found, output)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.papers.certificates", description="Bias and variance tables and figures."
    )
    parser.add_argument("file", type=Path, help="written by python -m estimators.check --json FILE, or a variance.csv")
    parser.add_argument("output", type=Path, help="folder for the figures")
    options = parser.parse_args(arguments)
    try:
        for path in write(options.file, options.output):
            print(f"wrote {path}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(
            f"{options.file}: not a certificate of estimators.check or a variance.csv that can be drawn ({error!r})",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    output.run(main)
