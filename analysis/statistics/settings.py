"""What a sweep varies, by the roles of its options, which come from the records.

An option that varies within one estimator, task and data set is

- **repeated**: the seed; means and intervals are over it;
- **tuned**: its best value is chosen on validation; by default a number of the optimiser, the schedule or the
  estimator;
- **compared**: each value has a row and a curve; by default all else that trains, and how long it does.

Options that only watch, evaluate or place a run are none of these. ``tune`` and ``compare`` name options, or groups of
them, that are used otherwise than by default: a run's own config says so (an experiment file sets them), and the
command line after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

SEED = "seed"
TUNED_GROUPS = ("optimizer", "schedule", "estimator")
TUNED, COMPARED = "tuned", "compared"
WITHIN = ["estimator", "task", "data"]


@dataclass(frozen=True)
class Uses:
    """How the columns of a frame are used.

    Attributes:
        roles: of every column (``frame.attrs["roles"]`` of :func:`analysis.records.load`).
        tune, compare: options, or groups of them, that are used so whatever they are by default.
    """

    roles: Mapping[str, str]
    tune: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()

    def of(self, column: str, values: Iterable[Any]) -> str | None:
        """``tuned`` or ``compared``, for a column that varies; ``None`` for one that is no setting.

        An option that is named itself is used as its name says, whatever is said of its group.

        Raises:
            ValueError: if it is asked to be both.
        """
        if column in (SEED, *WITHIN) or self.roles.get(column) not in ("trains", "lasts"):
            return None
        tune, compare = _nearest(column, self.tune), _nearest(column, self.compare)
        if tune and tune == compare:
            raise ValueError(f"{column} cannot be both tuned and compared: name it in one of tune and compare only")
        if tune or compare:
            return TUNED if len(tune) > len(compare) else COMPARED
        tunable = column.split(".")[0] in TUNED_GROUPS and all(map(_is_number, values))
        return TUNED if tunable else COMPARED


def uses_of(frame: pd.DataFrame) -> Uses:
    """The uses of the options in a frame of :func:`analysis.records.load`, as its runs' configs and ``attrs`` say. What
    was raced over is tuned."""
    said = {}
    for use, columns in {"tune": ("tune", "race.over"), "compare": ("compare",)}.items():
        of_runs = [
            name
            for column in columns
            for text in frame.get(column, pd.Series(dtype=object)).dropna().unique()
            for name in _list(text)
        ]
        said[use] = tuple(dict.fromkeys([*of_runs, *frame.attrs.get(use, ())]))
    # What the command line names is used as it says, whatever the runs' configs say of it.
    tune, compare = frame.attrs.get("tune", ()), frame.attrs.get("compare", ())
    return Uses(
        frame.attrs.get("roles", {}),
        tuple(name for name in said["tune"] if name not in compare),
        tuple(name for name in said["compare"] if name not in tune),
    )


def with_settings(runs: pd.DataFrame, uses: Uses) -> pd.DataFrame:
    """``runs`` with ``variant``, the compared options that vary within its estimator, task and data set, ``setting``,
    the tuned ones that vary within that, both as text (``"optimizer.lr=0.001"``; empty if none does), ``label``, the
    estimator with its variant, and ``tuned`` and ``compared``, the names of these options."""
    runs = runs.assign(variant="", setting="", tuned="", compared="")
    columns = [column for column in map(str, runs) if uses.roles.get(column) in ("trains", "lasts")]
    for _, cell in runs.groupby(WITHIN):
        varying = {column: use for column in columns if (use := _use(cell[column], column, uses))}
        compared = sorted(column for column, use in varying.items() if use == COMPARED)
        tuned = sorted(column for column, use in varying.items() if use == TUNED)
        runs.loc[cell.index, "variant"] = _texts(cell, compared)
        runs.loc[cell.index, ["tuned", "compared"]] = ", ".join(tuned), ", ".join(compared)
        for _, alike in cell.groupby(runs.loc[cell.index, "variant"]):
            within = [column for column in tuned if alike[column].map(as_text).nunique() > 1]
            runs.loc[alike.index, "setting"] = _texts(alike, within)
    return runs.assign(label=[labelled(*pair) for pair in zip(runs["estimator"], runs["variant"], strict=True)])


def labelled(estimator: str, variant: str) -> str:
    """The name of a row, or of a curve, of an estimator."""
    return f"{estimator}, {variant}" if variant else estimator


def varying(runs: pd.DataFrame, uses: Uses) -> list[str]:
    """The options that vary within some estimator, task and data set of ``runs``."""
    columns = [column for column in map(str, runs) if uses.roles.get(column) in ("trains", "lasts")]
    cells = [cell for _, cell in runs.groupby(WITHIN)]
    return sorted(column for column in columns if any(_use(cell[column], column, uses) for cell in cells))


def _use(values: pd.Series, column: str, uses: Uses) -> str | None:
    texts = values.map(as_text)
    if texts.nunique() < 2:
        return None
    return uses.of(column, values[texts != "none"])


def _texts(runs: pd.DataFrame, columns: list[str]) -> list[str]:
    # Of no columns pandas 2.2 makes no records at all.
    return [_text(run, columns) for run in runs[columns].to_dict("records")] if columns else [""] * len(runs)


def _text(run: Mapping[Any, Any], columns: list[str]) -> str:
    texts = {name: as_text(run[name]) for name in columns}
    given = {name: text for name, text in texts.items() if text != "none"}
    return ", ".join(f"{name}={text}" for name, text in (given or texts).items())


def _nearest(column: str, names: Iterable[str]) -> str:
    """The longest of ``names`` that is an option or a group that it is in; empty if none is."""
    own = [name for name in names if column == name or column.startswith(f"{name}.")]
    return max(own, key=len, default="")


def _list(text: Any) -> list[str]:
    found = json.loads(text) if isinstance(text, str) and text.startswith("[") else []
    return [str(name) for name in found]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))


def as_text(value: Any) -> str:
    """One text per value: the same for ``1`` and ``1.0``, which pandas mixes up, and ``none`` for every missing one."""
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, sort_keys=True, default=str)
    if value is None or value is pd.NA or value != value:
        return "none"
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return str(value)
