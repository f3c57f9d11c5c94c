"""Results that are kept in the repository, so that a new estimator stands beside ours without training ours again.

``reference.json`` in a folder of ``docs/results`` holds one entry per estimator, task and data set: the summary, the
bound of every seed, the protocol, the config, and with which command, on which machine, how long and from which commit
it was trained. Its runs are put beside those of another sweep, under the name ``ESTIMATOR (reference)``, where the
protocol, the model and the budget (steps, batch size, optimiser) agree; otherwise a sentence says in what they differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.defaults import complete
from analysis.records import files, flat_config, load_basket, seals, write_atomically
from analysis.statistics.settings import as_text, labelled, uses_of
from analysis.statistics.summary import CELL, COMPARISON, SOFT, final_rows, select, summarise_runs
from analysis.statistics.variance import panels
from analysis.tables import trained

FILE, SEAL = "reference.json", "sha256"
FORMAT = 1
BUDGET = ("steps", "batch_size", "optimizer")
NUMBERS = ["mean", "low", "high", "interval", "n"]
SUMMARY = ["metric", *NUMBERS, "diverged", "failed", "unfinished", "valid"]
SUMMARY += ["setting", "settings", "tuned", "raced", "negated", *SOFT]
GRADIENT = ["step", "runs", "evaluations", "unbiased", "relative_variance", "relative_low", "relative_high"]
GRADIENT += ["bias", "bias_low", "bias_high"]
OWN = "own"
"""What ``basket=own`` calls the estimator that trains."""
MARK = " (reference)"


def write(frame: pd.DataFrame, folder: Path, by: str = "") -> Path:
    """Write the chosen settings of the long ``frame`` as ``folder/reference.json`` and return its path.

    ``by`` says who ran them, if that is not this project.

    The same runs give the same bytes. Raises ``ValueError`` if no run is finished, and
    :class:`~analysis.statistics.summary.ProtocolsDiffer`.
    """
    runs, uses = final_rows(frame), uses_of(frame)
    summary, chosen = summarise_runs(runs), select(runs)
    if not (chosen["status"] == "finished").any():
        raise ValueError("no run is finished: there is no reference to write")
    entries = []
    for row in summary.to_dict("records"):
        kept = chosen[(chosen[CELL] == [row[name] for name in CELL]).all(axis=1)].sort_values("seed")
        about = {**{name: row[name] for name in (*CELL, *SUMMARY)}, **({"by": by} if by else {})}
        entries.append({**about, **_details(kept, uses.roles), **_measured(kept)})
    content = {"format": FORMAT, "unit": "negative test bound in nats, lower is better", "entries": entries}
    folder.mkdir(parents=True, exist_ok=True)
    plain = _plain(content)
    text = json.dumps(plain | {SEAL: seals.of_content(plain)}, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / FILE, (text + "\n").encode())
    return folder / FILE


def _details(kept: pd.DataFrame, roles: Mapping[str, str]) -> dict[str, Any]:
    finished = kept[kept["status"] == "finished"]
    of_all = finished if len(finished) else kept
    constant = {str(name): of_all[name].iloc[0] for name in of_all if of_all[name].map(as_text).nunique() == 1}
    protocol = {
        name.removeprefix("protocol."): value for name, value in constant.items() if name.startswith("protocol.")
    }
    config = {
        name: value
        for name, value in constant.items()
        if roles.get(name) in ("trains", "lasts", "evaluates", "watches") and name not in ("seed", *CELL)
    } | {name: constant[name] for name in ("source",) if name in constant}
    seconds = finished["wall_seconds"].dropna().tolist() if "wall_seconds" in finished else []
    known = [name for name in ("device", "commit", "pack_replicas") if name in of_all]
    return {
        "seeds": [
            {"seed": run["seed"], "status": run["status"], "bound": -run["test"], "valid": -run["valid"]}
            for run in kept.to_dict("records")
        ],
        "protocol": {name: value for name, value in protocol.items() if as_text(value) != "none"},
        "config": {name: value for name, value in config.items() if as_text(value) != "none"},
        "wall_seconds": round(sum(seconds) / len(seconds), 3) if seconds else None,
        **{name: sorted(set(of_all[name].dropna().map(as_text))) for name in known},
        "command": trained.command(kept["path"].tolist()),
    }


def _measured(kept: pd.DataFrame) -> dict[str, Any]:
    """What a row's estimator costs per step, and its gradient's bias and variance at the end of training, if known."""
    finished = kept[(kept["status"] == "finished") & (kept["step"] > 0)]
    found: dict[str, Any] = {}
    if "loss_evaluations" in finished and (each := (finished["loss_evaluations"] / finished["step"]).dropna()).size:
        found["loss_evaluations_per_step"] = each.mean()
    baskets = [load_basket(path) for path in finished["path"]]
    rows = [
        row
        for panel in (panels(pd.concat(baskets, ignore_index=True)) if baskets else [])
        for row in panel.at_the_end().to_dict("records")
        if row["method"] == panel.trainer and row["measured"] in (panel.trainer, OWN)
    ]
    return found | ({"gradient": {name: rows[0][name] for name in GRADIENT}} if rows else {})


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: numpy's numbers as Python's, what is missing or not finite as ``None``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if as_text(value) == "none" or (isinstance(value, float) and not np.isfinite(value)) else value


def read(folder: Path, sealed: bool = False) -> list[dict[str, Any]]:
    """The entries of ``folder/reference.json``, with options that are younger than it at their defaults.

    Raises ``ValueError``, with one sentence, if it cannot be read, or is not what was sealed when it was written; older
    code did not seal it, which is refused if it is to be ``sealed``.
    """
    file = folder / FILE if folder.is_dir() else folder
    try:
        content = files.read_json(file)
        if SEAL in content and content[SEAL] != seals.of_content({k: v for k, v in content.items() if k != SEAL}):
            raise ValueError(f"{file}: was changed after it was written")
        if sealed and SEAL not in content:
            raise ValueError(
                f"{file}: has no seal ({SEAL}); python -m analysis RUNS --write-reference writes it with one"
            )
        if content["format"] != FORMAT:
            raise ValueError(f"{file}: has format {content['format']}, this code reads {FORMAT}")
        entries: list[dict[str, Any]] = content["entries"]
        for entry in entries:
            entry.setdefault("variant", "")
            missing = {*CELL, *NUMBERS, "metric", "seeds", "protocol", "config", "settings"} - set(entry)
            if missing:
                raise ValueError(f"{file}: an entry lacks {', '.join(sorted(missing))}")
            entry["config"] = _complete({name: entry[name] for name in CELL} | entry["config"])
    except FileNotFoundError:
        raise ValueError(
            f"no reference at {file}: python -m analysis RUNS --write-reference {folder} writes one"
        ) from None
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a reference ({type(error).__name__}: {error})") from None
    return entries


def _complete(fields: dict[str, Any]) -> dict[str, Any]:
    """:func:`analysis.defaults.complete` of a config that is as flat as in the frame."""
    groups = {name.partition(".")[0] for name in fields if "." in name}
    config: dict[str, Any] = {group: {} for group in groups}
    for name, value in fields.items():
        group, _, option = name.partition(".")
        if group in groups:
            config[group][option or "name"] = value
        else:
            config[name] = value
    return flat_config(complete(config))


def with_references(runs: pd.DataFrame, entries: Sequence[dict[str, Any]]) -> tuple[pd.DataFrame, list[str]]:
    """The ``runs`` (of :func:`~analysis.statistics.summary.final_rows`) with those of the ``entries`` that agree
    with them.

    Returns the runs and one sentence per entry of the same task and data set that does not agree: it says in what.
    """
    added: list[dict[str, Any]] = []
    sentences = []
    for entry in entries:
        ours = runs[(runs[COMPARISON] == [entry[name] for name in COMPARISON]).all(axis=1)]
        ours = ours[ours["status"] == "finished"]
        if ours.empty:
            continue
        if different := differences(entry, ours):
            where = f"{entry['estimator']} on {entry['task']}, {entry['data']}"
            sentences.append(f"reference left out: {where}: {'; '.join(different)}")
            continue
        protocol = {f"protocol.{name}": value for name, value in entry["protocol"].items()}
        shared = {**entry["config"], **protocol, "task": entry["task"], "data": entry["data"]}
        name = entry["estimator"] + MARK
        shared |= {"metric": entry["metric"], "estimator": name, "sweep": "reference"}
        shared |= {
            "variant": entry["variant"],
            "setting": "",
            "tuned": "",
            "compared": "",
            "label": labelled(name, entry["variant"]),
        }
        for seed in entry["seeds"]:
            own = {"seed": seed["seed"], "status": seed["status"]}
            own |= {
                name: np.nan if seed[key] is None else -seed[key] for name, key in (("test", "bound"), ("valid",) * 2)
            }
            run = f"reference-{entry['estimator']}-{entry['task']}-{entry['data']}{entry['variant']}-s{seed['seed']}"
            added.append({**shared, **own, "run": run, "path": run})
    both = pd.concat([runs, pd.DataFrame(added)], ignore_index=True) if added else runs
    return both, sentences


def restore(summary: pd.DataFrame, entries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The summary of runs :func:`with_references` others, with the settings that were tried for the reference's
    rows."""
    summary = summary.copy()
    for entry in entries:
        names = [entry["estimator"] + MARK, entry["variant"], *(entry[name] for name in COMPARISON)]
        own = (summary[CELL] == names).all(axis=1)
        summary.loc[own, ["setting", "settings"]] = [entry.get("setting") or "", entry["settings"]]
    return summary


def differences(entry: Mapping[str, Any], ours: pd.DataFrame) -> list[str]:
    """In what an entry differs from the finished runs ``ours`` of its task and data set, a text each.

    Compared are the metric, the protocol, the budget, and the fields of the task that both have.
    """
    found = []
    theirs = {"metric": entry["metric"], **{f"protocol.{name}": value for name, value in entry["protocol"].items()}}
    compared = {name for name in [*ours, *theirs] if str(name).startswith("protocol.")} | {"metric"}
    config = entry["config"]
    compared |= {name for name in config if name in BUDGET or name.startswith("task.")} & set(ours)
    theirs |= {name: config[name] for name in compared & set(config)}
    for name in sorted(compared):
        values = sorted({as_text(value) for value in ours[name]}) if name in ours else ["none"]
        if values != [as_text(theirs.get(name))]:
            found.append(f"{name.removeprefix('protocol.')} {as_text(theirs.get(name))} (here {' and '.join(values)})")
    return found
