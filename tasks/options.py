"""Annotations of the options of tasks: a type, with the range that a task accepts as data, which the harness reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

MOST_LAYERS = 4
"""Of nested latents."""

Count = Annotated[int, ("range", "[1, inf)")]
Steps = Annotated[int, ("range", "[0, inf)")]
Categories = Annotated[int, ("range", "[2, inf)")]
Layers = Annotated[int, ("range", f"[1, {MOST_LAYERS}]")]
HiddenLayers = Annotated[int, ("range", "[0, 100]")]
Widths = Annotated[Sequence[int], ("range", "[1, inf)")]
Positive = Annotated[float | Tensor, ("range", "(0, inf)")]
NotNegative = Annotated[float | Tensor, ("range", "[0, inf)")]
Finite = Annotated[float | Tensor, ("range", "(-inf, inf)")]

PRIORS, OUTPUT_BIASES = ("uniform", "learned"), ("zero", "data_mean")


def check_choice(option: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ``ValueError`` for a word that is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"task.{option} must be one of {', '.join(allowed)}, not {value!r}")


def check_widths(hidden: Sequence[int]) -> None:
    """Raise ``ValueError`` for a hidden layer without units."""
    if any(width < 1 for width in hidden):
        raise ValueError(f"task.hidden must be widths of at least 1, not {list(hidden)}")


def check_layers(layers: int) -> None:
    """Raise ``ValueError`` for no stochastic layer, or too many."""
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"task.layers must be from 1 to {MOST_LAYERS}, not {layers}")
