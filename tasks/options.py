"""Annotations of the options of tasks: a type, with the range that a task accepts as data, which the harness reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

MOST_LAYERS = 4
"""Of nested latents."""

Count = Annotated[int, ("range", "[1, inf)")]
Categories = Annotated[int, ("range", "[2, inf)")]
Layers = Annotated[int, ("range", f"[1, {MOST_LAYERS}]")]
HiddenLayers = Annotated[int, ("range", "[0, 100]")]
Widths = Annotated[Sequence[int], ("range", "[1, inf)")]
Positive = Annotated[float | Tensor, ("range", "(0, inf)")]
NotNegative = Annotated[float | Tensor, ("range", "[0, inf)")]
Finite = Annotated[float | Tensor, ("range", "(-inf, inf)")]
