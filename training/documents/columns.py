"""``python -m training.documents.columns FILE.md``: the columns of the frame of :func:`analysis.records.load`, in FILE.

Options, their defaults and roles come from the schema, costs from the format of records; a test holds the file to this
module, and this module to frames of runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from analysis import defaults
from analysis.records import COSTS, write_atomically
from training.config.identity import role as role_of

BEGIN, END = "<!-- written by python -m training.documents.columns, do not edit -->", "<!-- end of what is written -->"
RECORD = {
    "run": "the run's name: estimator, task, data, seed and a hash of what trains",
    "path": "its directory, or that of one of its older results",
    "identity": "hash of the options that train, with those younger than the record at their defaults",
    "status": "`queued`, `running`, `finished`, `diverged`, `failed` or another word of `analysis.records.STATUSES`",
    "error": "the traceback or the reason of a run that failed",
    "family": "the estimator's family, of its class",
    "primary": "the metric that the task is judged by",
    "primary_sign": "1 if more of it is better, -1 if less",
}
COST = {
    "wall_seconds": "seconds of training, of the whole pack, without evaluations",
    "loss_evaluations": "evaluations of the loss per example up to the step",
    "peak_memory_bytes": "most memory of the process, or of the GPU",
    "pack_replicas": "runs that trained together",
    "device": "what it trained on (before it is over: what the config asks for)",
    "commit": "of the code that trained it",
    "diverged_at": "the step at which a loss or a parameter was no longer finite",
}
METRICS = {
    "step": "parameter updates so far; missing in a run without rows",
    "seconds": "seconds of training so far, of the whole pack",
    "train_loss": "mean of the training loss since the row before",
    "gradient_variance": "per-parameter variance of the encoder's gradient of a minibatch's mean loss, as applied: "
    "`m2 - m1^2` of moving moments (decay 0.999), mean over parameters",
    "gradient_variance_unscaled": "of an estimator that divides its gradient by a running scale: times the square "
    "of the scale at the step",
    "temperature": "the estimator's temperature; `temperature_2`, ... are those of further layers",
    "SPLIT_elbo": "ELBO in nats per image (`SPLIT`: `train`, `valid` or `test`), higher is better",
    "SPLIT_bound": "importance-weighted bound of `SPLIT_samples` samples",
    "SPLIT_bound_K": "the same of the first K of these samples",
    "SPLIT_relaxed_elbo": "minus the training objective at relaxed samples, one an image: no bound, where "
    "`SPLIT_elbo` of hard samples is one",
    "SPLIT_pseudo_elbo": "of grey targets, no bound; also `SPLIT_pseudo_bound`",
    "SPLIT_value": "of a toy problem the negative expected loss, exact",
    "SPLIT_METRIC": "another metric of the task, such as `valid_accuracy`",
    "SPLIT_METRIC_standard_error": "its standard error over images",
}


def table() -> str:
    """The Markdown table: a row per column or kind of columns, with its role and what it is."""
    rows = [("column", "role", "what it is"), ("---", "---", "---"), *_rows()]
    return "\n".join(
        f"| {f'`{name}`' if name not in ('column', '---') else name} | {role} | {text} |" for name, role, text in rows
    )


def covers(column: str, role: str) -> bool:
    """Whether the table has a row of ``column`` with this role."""
    return any(kind == role and re.fullmatch(_pattern(name), column) for name, kind, _ in _rows())


def _pattern(name: str) -> str:
    pattern = re.escape(name).replace("SPLIT", "(train|valid|test)").replace("METRIC", r"\w+").replace("_K", r"_\d+")
    pattern = pattern.replace("NAME", r"[\w.]+")
    return rf"{pattern}(_\d+)?" if name == "temperature" else pattern


def _rows() -> Iterator[tuple[str, str, str]]:
    yield from ((name, "record", text) for name, text in RECORD.items())
    known = defaults.defaults()
    for name, default in known["config"].items():
        option = f"{name}.name" if isinstance(default, dict) else name
        shown = default["name"] if isinstance(default, dict) else default
        text = f"option, default `{shown}`" if shown != "" else "option, default empty"
        yield name, role_of(option), "the folder that it is in" if name == "sweep" else text
    for group, text in (("task", "the task's name"), ("estimator", "the estimator's name"), ("optimizer", "its name")):
        yield group, "trains", text
    yield "data", "trains", "the data set's name"
    groups = {
        "optimizer": "adam or sgd",
        "schedule": "the temperature's schedule",
        "data": "the data",
        "basket": "a basket",
    }
    for group, text in groups.items():
        options = dict.fromkeys(name for own in known["names"][group].values() for name in own if isinstance(own, dict))
        for name in options:
            yield f"{group}.{name}", role_of(f"{group}.{name}"), f"option of {text}"
    for group in ("estimator", "task", "data"):
        yield f"{group}.NAME", "trains", f"every option of the {group}'s class, as in `conf/{group}/`"
    for group in ("logger", "cluster"):
        yield f"{group}.NAME", "places", f"every option of the {group}"
    yield "protocol.NAME", "protocol", "what the task says of its data and its evaluation; of one comparison all alike"
    yield from (
        (name, "metric" if name in ("loss_evaluations",) else "cost", COST[name]) for name in COSTS if name != "device"
    )
    yield from ((name, "metric", text) for name, text in METRICS.items())


def main() -> None:
    """Write the table anew between its marks in the file that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.documents.columns FILE.md")
    file = Path(sys.argv[1])
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    write_atomically(file, f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}".encode())


if __name__ == "__main__":
    main()
