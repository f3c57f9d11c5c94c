"""``python -m analysis.papers.leaderboard [FOLDER]``: every committed result in one ranking per task and protocol.

The sources are each ``reference.json`` below FOLDER (``docs/results``), and the certificates of ``estimators.check``:
``certificates/certificates.json``, and ``certificate.json`` beside the ``reference.json`` of an entry of somebody
else's estimator. They give ``leaderboard.md`` and ``leaderboard.csv``. Results stand in one table if task, model, data,
evaluation, number of steps, batch size and the options that were chosen on validation agree; all others stand apart,
because a difference between them could be one of the protocol.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import output
from analysis.figures.style import look
from analysis.papers import reference
from analysis.records import files
from analysis.records.files import write_atomically
from analysis.statistics import variance
from analysis.statistics.forms import Form, certificate, forms
from analysis.statistics.settings import as_text, labelled
from analysis.statistics.summary import COMPARISON, published_bound
from analysis.tables import summary, table
from analysis.tables.table import NONE, Cell, Marked, Table

RESULTS = Path("docs") / "results"
NAME = "leaderboard"
CERTIFICATES = ("certificates/certificates.json", "**/certificate.json")
STUDIES = "studies"
"""Below it are results that answer a question (:mod:`analysis.papers.agreement`), and are not ranked."""
APART = ("steps", "batch_size")
COLUMNS = ["place", "estimator", "nats", "seeds", "difference to published", "loss evaluations per step", "variance"]
COLUMNS += ["bias", "variance x evaluations", "certificate", "seconds per run", "setting", "from"]

ABOUT = """# Leaderboard

One table per task and protocol. A row is an estimator with the setting that was best on validation; its number is the
mean over seeds on test with its 95 % interval. **Bold** is the best mean of a table, and ~ marks one whose interval
overlaps the interval of the best: the two are not told apart. Results of different protocols are not comparable: they
stand in different tables.

- `place`: by the mean.
- `setting`: what was chosen on validation, and of how many; raced: those that lost were not trained to the end. The
  seeds that chose are among those that are reported.
- `loss evaluations per step`: forward passes of the loss per example and training step.
- `variance`, `bias`: of the encoder's gradient at the end of training, from the runs' basket, relative to the squared
  norm and to the norm of the reference gradient ([how](../variance.md)). `variance x evaluations` is the number of loss
  evaluations per example after which the noise of an average of gradients is as long as the gradient. The bias stays.
- `certificate`: what exact enumeration says of the estimator by itself, with the row's options
  ([all certificates](../estimators.md)). `default form`: they were not certified, what follows is the default's. A
  temperature that is annealed is the one at the start.
- `from`: the folder with the record, and who ran it if it is not this project. Its `reference.json` has every seed's
  number, the config, the commit, the machine and the command.

`make leaderboard` writes this page. [CONTRIBUTING](../../CONTRIBUTING.md#enter-the-leaderboard) says how to add a row.
"""


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries with a result of every ``reference.json`` below ``folder``, with ``source``: the name of its folder.

    Those below ``folder/studies`` are left out.

    Raises ``ValueError``, with one sentence, for a file that cannot be read, has no seal, or was changed after it was
    written.
    """
    for file in sorted(folder.rglob(reference.FILE)):
        source = file.parent.relative_to(folder).as_posix()
        if source.startswith(f"{STUDIES}/"):
            continue
        for entry in reference.read(file.parent, sealed=True):
            if entry["n"]:  # somebody finished
                yield {**entry, "source": source}


def protocol(entry: Mapping[str, Any]) -> str:
    """What entries of one table agree in, as text."""
    config = {name: value for name, value in entry["config"].items() if name in APART or name.startswith("task.")}
    about = {name: entry[name] for name in (*COMPARISON, "metric")} | {"tuned": entry.get("tuned") or ""}
    texts = {name: as_text(value) for name, value in {**entry["protocol"], **config, **about}.items()}
    return json.dumps({name: text for name, text in texts.items() if text != "none"}, sort_keys=True)


def certified(folder: Path) -> dict[str, list[Form]]:
    """The certified forms of each method, by its class in the library, or by an entry's folder for one of its own.

    Raises ``ValueError`` for a file that is no certificate.
    """
    found: dict[str, list[Form]] = {}
    for file in sorted(file for pattern in CERTIFICATES for file in folder.glob(pattern)):
        try:
            measured = list(forms(files.read_json(file)))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: no certificate ({type(error).__name__}: {error})") from None
        for form in measured:
            own = file.parent.name if file.name == "certificate.json" else f"estimators.{form.name.split()[0]}"
            found.setdefault(own, []).append(form)
    return found


def _certificate(entry: Mapping[str, Any], found: Mapping[str, list[Form]]) -> str:
    options = {
        name.removeprefix("estimator."): value
        for name, value in entry["config"].items()
        if name.startswith("estimator.") and name != "estimator._target_"
    }
    own = found.get(entry["estimator"]) or found.get(str(entry["config"].get("estimator._target_")), [])
    return certificate(own, options)


def boards(folder: Path) -> list[Table]:
    """The tables of what is committed below ``folder``: per task, those with more steps first."""
    of_methods = certified(folder)
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries(folder):
        groups.setdefault(protocol(entry), []).append(entry)
    found = [_board(pd.DataFrame([_row(entry, of_methods) for entry in own])) for own in groups.values()]
    return [board for _, board in sorted(found, key=lambda pair: pair[0])]


def _row(entry: Mapping[str, Any], found: Mapping[str, list[Form]]) -> dict[str, Any]:
    theirs = published_bound(entry, entry["config"], entry["metric"], entry["protocol"].get("likelihood"))
    gradient, seconds = entry.get("gradient") or {}, entry.get("wall_seconds")
    device = ", ".join(entry.get("device", []))
    setting = (entry.get("setting") or "").removesuffix(" (chosen)")
    if entry["settings"] > 1:
        setting += f" (best of {entry['settings']}{', raced' if entry.get('raced') else ''})"
    return {
        **{name: entry[name] for name in (*COMPARISON, "estimator", "variant", "metric", "interval", "n")},
        **{name: math.nan if entry[name] is None else entry[name] for name in ("mean", "low", "high")},
        **{f"protocol.{name}": value for name, value in entry["protocol"].items()},
        **{name: entry["config"].get(name) for name in APART},
        "tuned": entry.get("tuned") or "",
        "negated": bool(entry.get("negated")),
        "label": labelled(entry["estimator"], entry["variant"]),
        "published": theirs.nats if theirs else math.nan,
        "evaluations": entry.get("loss_evaluations_per_step"),
        **{name: gradient.get(name) for name in ("relative_variance", "bias", "bias_low", "bias_high")},
        "work": gradient["relative_variance"] * gradient["evaluations"] if gradient else None,
        "certificate": _certificate(entry, found),
        "seconds": NONE if seconds is None else f"{seconds:.0f} ({device})",
        "setting": setting.strip(),
        "settings": entry["settings"],
        "from": f"{entry['source']}, by {entry['by']}" if entry.get("by") else entry["source"],
    }


def _board(rows: pd.DataFrame) -> tuple[tuple[Any, ...], Table]:
    """A table and its place among the others."""
    rows = rows.sort_values(["mean", "label"], ignore_index=True)
    symmetric = not (rows["interval"] == "BCa bootstrap").any()
    marks = summary.ties(rows)
    lines = [
        _line(place, row, mark, symmetric, summary.digits(rows))
        for place, ((_, row), mark) in enumerate(zip(rows.iterrows(), marks, strict=True), 1)
    ]
    header = [{"nats": summary.unit(rows)}.get(name, name) for name in COLUMNS]
    kept = [any(line[place] != NONE for line in lines) for place in range(len(header))]
    first = rows.iloc[0]
    steps, batch = (int(first[name]) for name in APART)
    tuned = f"chosen on validation: {first['tuned']}" if first["tuned"] else "nothing tuned"
    title = f"{summary.title(rows)}; {steps:,} steps of {batch} examples, {tuned}"
    key = (*first[COMPARISON], -steps, title)
    return key, Table(
        [name for name, keep in zip(header, kept, strict=True) if keep],
        [[cell for cell, keep in zip(line, kept, strict=True) if keep] for line in lines],
        title=title,
        caption=[f"Protocol: {summary.protocol(rows)}."],
        labels=2,
        numbers=rows.assign(place=range(1, len(rows) + 1)),
    )


def _line(place: int, row: pd.Series, mark: str, symmetric: bool, digits: int) -> list[Cell]:
    def number(name: str, form: str) -> str:
        return NONE if row[name] is None or math.isnan(row[name]) else format(row[name], form)

    distance = row["mean"] - row["published"]
    bias = NONE if row["bias"] is None or math.isnan(row["bias"]) else variance.bias_text(row.to_dict())
    return [
        str(place),
        look(row["estimator"]).label + (f" ({row['variant']})" if row["variant"] else ""),
        Marked(summary.number(row, symmetric, digits), mark),
        str(row["n"]),
        NONE if math.isnan(distance) else f"{summary.signed(distance)} ({table.fixed(row['published'], 1)})",
        number("evaluations", ".3g"),
        number("relative_variance", ".3g"),
        bias,
        number("work", ".3g"),
        row["certificate"],
        row["seconds"],
        row["setting"] or NONE,
        row["from"],
    ]


def write(folder: Path) -> list[Path]:
    """Write ``leaderboard.md`` and ``leaderboard.csv`` into ``folder`` and return their paths.

    The same committed files give the same bytes. Raises ``ValueError`` if there is no ``reference.json``, or one that
    cannot be read.
    """
    found = boards(folder)
    if not found:
        raise ValueError(
            f"no {reference.FILE} below {folder}: python -m analysis RUNS --write-reference FOLDER writes one"
        )
    page = folder / f"{NAME}.md"
    write_atomically(page, f"{ABOUT}\n{table.to_markdown(found)}".encode())
    return [page, *table.write(found, folder / NAME, kinds=("csv",))]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.papers.leaderboard", description="Every committed result in one ranking per protocol."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=RESULTS, help="with reference.json files (docs/results)"
    )
    try:
        for path in write(parser.parse_args(arguments).folder):
            print(f"wrote {path}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    output.run(main)
