"""What a task is to those who train, evaluate and compare."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Primary:
    """The metric by which runs of a task are compared, as :meth:`evaluate` names it, and its direction."""

    metric: str
    higher_is_better: bool = True


def primary_bound(is_bound: bool) -> Primary:
    """Of a task that is evaluated by :func:`tasks.bounds.evaluate`; with grey targets it is no bound."""
    return Primary("bound" if is_bound else "pseudo_bound")
