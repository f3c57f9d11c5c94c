"""What every config must be, checked before anything is read, composed in bulk or built: its form, and its numbers'
ranges as the schemas state them.

A range is an interval in the usual notation, ``"(0, 1]"``, in the metadata of a dataclass's field or of an annotated
constructor argument, under the key ``range``. The infinite end of an integer's range is that of 64 bits.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.config import schema, targets
from training.errors import UserError, did_you_mean

Config = dict[str, Any]
LARGEST = 2**63 - 1
"""Of an integer: PyTorch, NumPy and the frame's file have 64 bits."""
EVERYTHING = "(-inf, inf)"
"""Of a number for which a class from elsewhere states no range."""
MISSING = "???"


@dataclass(frozen=True)
class Range:
    """An interval of the integers (``whole``) or the reals, infinity excluded."""

    low: float
    high: float
    with_low: bool
    with_high: bool
    whole: bool

    @classmethod
    def of(cls, text: str, whole: bool) -> Range:
        """From ``"[low, high)"``. Raises ``ValueError`` for other text."""
        low, high = (float(end) for end in text[1:-1].split(","))
        if text[0] not in "[(" or text[-1] not in ")]" or not low < high:
            raise ValueError(f"not an interval: {text!r}")
        return cls(low, high, text[0] == "[", text[-1] == "]", whole)

    def __contains__(self, value: float) -> bool:
        """Also in single precision, in which reals are used: no positive number may become 0 there."""
        if self.whole:
            return abs(value) <= LARGEST and self.holds(value)
        return self.holds(value) and abs(value) < 4e38 and self.holds(ctypes.c_float(value).value)

    def holds(self, value: float) -> bool:
        """In exact arithmetic."""
        above = self.low <= value if self.with_low else self.low < value
        return above and (value <= self.high if self.with_high else value < self.high) and abs(value) < math.inf

    def __str__(self) -> str:
        """What a value must be, to be read after "must be"."""
        if self.whole and math.isinf(self.high):
            return f"at least {self.low:.0f}"
        if self.whole:
            return (
                f"{self.low:.0f} or {self.high:.0f}"
                if self.high - self.low == 1
                else f"from {self.low:.0f} to {self.high:.0f}"
            )
        if not math.isinf(self.high):
            return f"in {'(['[self.with_low]}{self.low:g}, {self.high:g}{')]'[self.with_high]}"
        bound = f"at least {self.low:g}" if self.with_low else "positive" if self.low == 0 else f"above {self.low:g}"
        return "finite" if math.isinf(self.low) else f"{bound} and finite"


@functools.cache
def ranges_of(node: type) -> dict[str, Range]:
    """The range of each number among the fields of a schema, by name; lists are those of their elements."""
    hints, found = typing.get_type_hints(node), {}
    for field in dataclasses.fields(node):
        kinds = _kinds(hints[field.name])
        if int in kinds or float in kinds:
            found[field.name] = Range.of(field.metadata.get("range", EVERYTHING), whole=float not in kinds)
    return found


def _kinds(hint: Any) -> set[Any]:
    """The types that a value may have: those of a union or of a list's elements."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, list):
        return set().union(*(_kinds(argument) for argument in typing.get_args(hint)))
    return {hint}


def check(config: Config) -> None:
    """Raise ``UserError`` for a config that has not the form of the schema, or a number out of its range.

    A key that is not there is not missed: a record may be older than an option.
    """
    for prefix, node, kind in _nodes(config):
        allowed = [field.name for field in dataclasses.fields(kind)]
        for key, value in node.items():
            if key not in allowed and not getattr(kind, "open_ended", False):
                raise UserError(
                    f"{prefix}{key}: there is no such option{did_you_mean(key, allowed)}; allowed here: "
                    f"{', '.join(sorted(allowed))}"
                )
            if prefix or key not in schema.GROUPS:
                _check_text(prefix + key, value)
        for name, limits in ranges_of(kind).items():
            _check_number(prefix + name, node.get(name), limits)
    if config.get("seed", 0) + config.get("replicas", 1) - 1 > LARGEST:
        raise UserError(f"seed={config['seed']}: the last of {config['replicas']} seeds must be at most 2**63 - 1")


def _check_number(key: str, value: Any, limits: Range) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and number not in limits:
            what = {"task.hidden": "widths of "}.get(key, "numbers ") if isinstance(value, list) else ""
            size = f" in {'64 bits' if limits.whole else 'single precision'}" if limits.holds(number) else ""
            raise UserError(f"{key} must be {what}{limits}{size}, not {value}")


def _check_text(key: str, value: Any) -> None:
    if value == MISSING:
        raise UserError(f"{key} has no value: give it one with {key}=VALUE")
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{key}={value!a} is not UTF-8, in which records are written; use another name") from None


def _nodes(config: Config) -> Iterator[tuple[str, Config, type]]:
    """Every part of a config: the prefix of its keys, its options, and their schema."""
    yield "", config, schema.Config
    for group in schema.GROUPS:
        if group in config:
            node = config[group]
            yield f"{group}.", node, _schema(group, group, node)
    basket = config.get("basket", {"name": "none"})
    if basket["name"] != "none":
        if basket.keys() == {"name"}:
            raise UserError(f"basket.name={basket['name']}: choose a basket with its options, with basket=NAME")
        own = {f"basket.estimators.{name}": node for name, node in basket["estimators"].items()}
        for key, node in {**own, "basket.reference": basket["reference"]}.items():
            yield f"{key}.", node, _schema("estimator", key, node)


def _schema(group: str, key: str, node: Any) -> type:
    """The schema of a group's options, which the config has under ``key``."""
    name = node.get("name") if isinstance(node, dict) else None
    if not isinstance(name, str) or not name.strip() or name == MISSING:
        raise UserError(f"{key} is missing: choose one with {group}=NAME; python train.py --help lists the names")
    if group in ("estimator", "task"):
        return schema.schema_in(group, targets.class_of(node, key))
    if group == "data" and "_target_" in node:
        return schema.schema_in(group, targets.loader_of(node))
    kinds = schema.GROUPS[group]
    by_name = {str(getattr(kind, "name", "")): kind for kind in kinds}
    if name not in by_name and len(kinds) > 1 and group != "basket":  # whose names are free, like those of data
        raise UserError(f"{key}.name must be one of {', '.join(by_name)}, not {name!r}{did_you_mean(name, by_name)}")
    return by_name.get(name, kinds[-1])
