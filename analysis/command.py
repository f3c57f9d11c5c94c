"""The command ``python -m analysis``: statuses and tables on the screen, tables, figures and the frame in a folder."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis import records
from analysis.figures import captions
from analysis.output import Parser, visible, visible_lines
from analysis.papers import own, reference
from analysis.papers.layouts import layouts, of_sweeps
from analysis.papers.layouts import write as write_layout
from analysis.records.collect import collect
from analysis.records.files import replacing
from analysis.statistics.settings import as_text
from analysis.statistics.summary import COMPARISON, ProtocolsDiffer, final_rows, plain, summarise_runs
from analysis.tables import comparisons, table
from analysis.tables import summary as tables

OK, DIFFERENT, NOTHING = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on the runs at a path; exit code 0, 1 if protocols differ, or 2 if there is nothing to report."""
    parser = Parser(
        prog="python -m analysis", description="Tables, figures and statuses of a sweep; no run is changed."
    )
    add_runs(parser)
    parser.add_argument("--output", type=Path, help="where the report is written (default: PATH/report)")
    kept_results = "results kept by --write-reference, shown beside these where protocol, model and budget agree"
    parser.add_argument("--reference", type=Path, action="append", default=[], metavar="DIR", help=kept_results)
    parser.add_argument("--write-reference", type=Path, metavar="DIR", help="keep these results as DIR/reference.json")
    parser.add_argument(
        "--by", default="", metavar="NAME", help="who ran what --write-reference keeps, if not this project"
    )
    parser.add_argument("--table", choices=sorted(layouts()), help="a paper's layout (default: that of the experiment)")
    options = parser.parse_args(arguments)
    try:
        kept = read(options.path, options.where, options.tune, options.compare)
    except ValueError as error:
        return refuse(str(error), NOTHING)
    for sentence in kept.attrs["damaged"]:
        print(visible(f"damaged, left out: {sentence}"))
    output = options.output or options.path / "report"
    try:
        output.mkdir(parents=True, exist_ok=True)
        _store(kept, output / "frame.parquet")
        entries = [entry for folder in options.reference for entry in reference.read(folder)]
        code = report(kept, output, entries, options.table)
        if options.write_reference and code == OK:
            print(f"wrote {reference.write(kept, options.write_reference, options.by)}")
    except ValueError as error:
        return refuse(str(error), NOTHING)
    except OSError as error:
        return refuse(unwritable(error), NOTHING)
    return code


def add_runs(parser: Parser) -> None:
    """The arguments that say which runs, and how their options are used."""
    parser.add_argument("path", type=Path, help="a sweep (runs/NAME), one run, or a folder of sweeps")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="only these runs")
    chosen, shown = "choose its value on validation", "a row and a curve for each of its values"
    parser.add_argument("--tune", action="append", default=[], metavar="OPTION", help=f"{chosen} (also a group: task)")
    parser.add_argument("--compare", action="append", default=[], metavar="OPTION", help=shown)


def report(frame: pd.DataFrame, output: Path, entries: Sequence[dict[str, Any]] = (), table: str | None = None) -> int:
    """Print the statuses and tables of the long ``frame``, write tables and figures into ``output``; exit code.

    ``entries`` are those of references (:func:`analysis.papers.reference.read`) to show beside; ``table`` names a
    paper's layout (:mod:`analysis.papers.layouts`), by default that of the experiment.
    """
    runs = final_rows(frame)
    print("\n".join(statuses(frame, runs)))
    together, left_out = reference.with_references(runs, entries)
    try:
        summary = reference.restore(summarise_runs(together), entries)
    except ProtocolsDiffer as error:
        return refuse(str(error), DIFFERENT)
    _write_tables(summary, output)
    sentences, files = comparisons.write(together, output)
    for sentence in [*left_out, *sentences]:
        print(textwrap.fill(sentence, shutil.get_terminal_size((100, 24)).columns, subsequent_indent="  "))
    for layout in [layouts()[table]] if table else of_sweeps(frame["sweep"].unique()):
        try:
            files += write_layout(layout, frame, output)
        except ValueError as error:
            print(f"no table {layout.name}: {error}")
    for name, draw in own.of_sweeps(frame["sweep"].unique()).items():
        try:
            files += draw(frame[frame["sweep"] == name], output)
        except ValueError as error:
            print(f"no figures of {name}: {error}")
    files += [*_write_figures(frame, summary, output), *_write_variance(frame, output)]
    for file in [*files, *captions.write(files, summary, output)]:
        print(f"wrote {file}")
    if not (runs["status"] == "finished").any():
        return refuse("no run is finished: there are no numbers to report yet", NOTHING)
    return OK


def read(path: Path, conditions: Sequence[str], tune: Sequence[str] = (), compare: Sequence[str] = ()) -> pd.DataFrame:
    """The long frame of the runs at ``path`` for which every condition (:func:`where`) holds.

    ``tune`` and ``compare`` name options that are used so (:mod:`analysis.statistics.settings`). Older results
    that were evaluated otherwise than their runs are now are read only if a condition is about that.

    Raises ``ValueError``, with one sentence, if there is none. ``attrs["damaged"]`` tells what could not be read.
    """
    if not path.exists():
        raise ValueError(f"no such path: {path}")
    try:
        frame = collect(path, compact=True)
        roles = frame.attrs["roles"]
        if any(roles.get(text.partition("=")[0]) in ("evaluates", "protocol") for text in conditions):
            frame = collect(path, superseded=True, compact=True)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    for option in (*tune, *compare):
        if not any(column == option or column.startswith(f"{option}.") for column in map(str, frame)):
            raise ValueError(f"--tune and --compare take options of the runs, and {option} is none")
    frame.attrs |= {"tune": tuple(tune), "compare": tuple(compare)}
    kept = where(frame, conditions)
    if kept.empty:
        damaged = "".join(f"damaged, left out: {visible(sentence)}\n" for sentence in frame.attrs["damaged"])
        raise ValueError(f"{damaged}no readable run at {path}" + (" with this --where" if conditions else ""))
    return kept


def where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows of the runs for which every ``COLUMN=VALUE`` holds. Raises ``ValueError`` for an unknown column.

    Values are compared and not their spelling: ``1e-3`` is ``0.001``, ``True`` is ``true``, ``[8,8]`` is ``[8, 8]``.
    """
    for condition in conditions:
        column, separator, value = condition.partition("=")
        if not separator or column not in frame:
            raise ValueError(f"--where {condition}: expected COLUMN=VALUE with one of {', '.join(map(str, frame))}")
        codes, values = pd.factorize(frame[column].astype(object).map(as_text))
        same = [text == value or _value(text) == _value(value) for text in values]
        frame = frame[np.array(same, dtype=bool)[codes]]
    return frame


def _value(text: str) -> Any:
    """The value that a text of the command line or of :func:`~analysis.statistics.summary.as_text` stands for."""
    word = text.strip()
    if word.lower() in ("true", "false", "none", "null"):
        return word.lower().replace("null", "none")
    if word[:1] in ("[", "{"):
        with suppress(yaml.YAMLError):
            return _values(yaml.safe_load(word))
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return word


def _values(content: Any) -> Any:
    if isinstance(content, list):
        return [_values(each) for each in content]
    if isinstance(content, dict):
        return {key: _values(value) for key, value in content.items()}
    return _value(as_text(content))


def statuses(frame: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Lines for the screen: how many runs have which status, then every run that should have come further, with the
    reason."""
    counts = runs["status"].value_counts()
    lines = [f"{len(runs)} runs: " + ", ".join(f"{counts[word]} {word}" for word in records.STATUSES if word in counts)]
    repeated = frame["path"].nunique() - len(runs)
    if repeated:
        lines.append(f"{repeated} runs were recorded more than once and count once")
    for _, run in runs[~runs["status"].isin(["finished", "eliminated"])].iterrows():
        lines.append(visible(f"{run['status']}: {run['run']} ({reason(run)})"))
    return [*lines, ""]


def reason(run: pd.Series) -> str:
    """Why a run, a row of :func:`~analysis.statistics.summary.final_rows`, is not finished, in words; or how far it
    is."""
    error = as_text(run["error"])
    if run["status"] == "diverged" and as_text(run.get("diverged_at")) != "none":
        return f"at step {as_text(run['diverged_at'])}"
    if error != "none":
        return error.splitlines()[-1]
    return f"at step {as_text(run['step'])}" if as_text(run["step"]) != "none" else "no step yet"


def unwritable(error: OSError) -> str:
    """The sentence for a folder that cannot be written. Raises ``error`` if it is not of a file."""
    if error.filename is None:
        raise error
    return f"cannot write to {error.filename} ({error.strerror}); choose another place with --output"


def refuse(sentence: str, code: int) -> int:
    """Say why there is nothing, and return the exit code ``code``."""
    print(visible_lines(sentence), file=sys.stderr)
    return code


def _write_tables(summary: pd.DataFrame, output: Path) -> None:
    print(tables.to_text(summary, width=shutil.get_terminal_size((100, 24)).columns), end="\n\n")
    for file in table.write(tables.comparisons(summary), output / "table"):
        print(f"wrote {file}")


def _write_figures(frame: pd.DataFrame, summary: pd.DataFrame, output: Path) -> list[Path]:
    from analysis.figures import curves as figures
    from analysis.figures import ranked

    shown = figures.chosen(frame)
    crowded = ranked.many(shown)
    few, crowd = shown[~crowded], shown[crowded]
    drawn = {"learning_curves": figures.learning_curves(few), "gradient_variance": figures.gradient_variance(few)}
    drawn["temperatures"] = figures.temperatures(few)
    drawn["learning_curves_seconds"] = figures.learning_curves(few, "seconds")
    if (few["loss_evaluations"] / few["step"].astype(float)).dropna().round(6).nunique() > 1:
        drawn["learning_curves_evaluations"] = figures.learning_curves(few, "loss_evaluations")
    of_crowd = summary.merge(crowd[COMPARISON].drop_duplicates().astype(object))
    drawn["ranked"] = ranked.ranked(of_crowd, tables.quantity(of_crowd))
    drawn["ranked_gradient_variance"] = ranked.ranked(ranked.variances(crowd), "gradient variance at the end", log=True)
    tasks = shown.drop_duplicates(COMPARISON)["task"].tolist()
    for (task, data), group in shown.groupby(COMPARISON, observed=True):
        images, name = figures.read_images(group), f"{task}_{data}" if tasks.count(task) > 1 else task
        drawn[f"reconstructions_{name}"] = figures.reconstructions(images, f"{task}, {data}")
        drawn[f"samples_{name}"] = figures.samples(images, f"{task}, {data}")
    files = [file for name, figure in drawn.items() if figure for file in figures.save(figure, output / name)]
    return files + comparisons.write_sensitivity(frame, output)


def _write_variance(frame: pd.DataFrame, output: Path) -> list[Path]:
    """Write the tables and figures of runs that measured gradients (``basket=``)."""
    from analysis.figures import variance as variance_figures
    from analysis.statistics.variance import panels

    measured = [records.load_basket(path) for path in frame["path"].unique()]
    return list(variance_figures.write(panels(pd.concat(measured, ignore_index=True)), output))


def _store(frame: pd.DataFrame, file: Path) -> None:
    """Write the long frame as parquet. What is constant over a run is written once for each run and referred to."""
    import pyarrow as pa
    from pyarrow import parquet

    codes, paths = pd.factorize(frame["path"])
    roles = frame.attrs["roles"]
    constant = [name for name in frame if name != "step" and roles.get(name) != "metric"]
    runs = plain(frame[constant].iloc[np.unique(codes, return_index=True)[1]])
    of_run = pa.Table.from_pandas(_storable(runs), preserve_index=False)
    columns = {}
    for name in map(str, constant):
        values = of_run[name].combine_chunks()
        known = values.is_valid().to_numpy(zero_copy_only=False)
        places = pa.array((np.cumsum(known) - 1).astype(np.int32)[codes], mask=~known[codes])
        columns[name] = (
            pa.DictionaryArray.from_arrays(places, values.drop_null()) if known.any() else pa.nulls(len(codes))
        )
    of_row = pa.Table.from_pandas(_storable(frame.drop(columns=constant)), preserve_index=False)
    columns |= {name: of_row[name] for name in of_row.column_names}
    with replacing(file) as temporary:
        table = pa.table({str(name): columns[str(name)] for name in frame})
        parquet.write_table(table, temporary, store_schema=False)


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns of mixed types as JSON text: parquet holds one type per column."""
    stored = frame.copy(deep=False)
    stored.attrs = {}
    for column in stored:
        if not pd.api.types.is_object_dtype(stored[column]):
            continue
        values = stored[column].dropna()
        if values.map(type).nunique() > 1 or values.map(lambda value: isinstance(value, (dict, list))).any():
            stored[column] = stored[column].map(_json_text)
    return stored


def _json_text(value: Any) -> str | None:
    return None if as_text(value) == "none" else json.dumps(value, default=str)
