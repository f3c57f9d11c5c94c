"""One look for every figure: the same colour, marker and line style for the same estimator everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

BLACK, BLUE, SKY, GREEN, ORANGE, RED, PURPLE = (
    *("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"),
)
SOLID, DASHED, DOTTED, DASHDOT = "-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))
DASHDOTDOT = (0, (6, 1.2, 1.2, 1.2, 1.2, 1.2))

RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
STYLE: Any = ["default", RC]
"""For ``matplotlib.style.context``: figures are the same whatever a ``matplotlibrc`` or a notebook has set."""


@dataclass(frozen=True)
class Look:
    """How one estimator is drawn and what a figure calls it."""

    label: str
    color: str
    linestyle: str | tuple[int, tuple[float, ...]]
    marker: str

    def line(self) -> dict[str, Any]:
        """Keyword arguments of a matplotlib line; markers are filled on solid lines and hollow on the others."""
        face = self.color if self.linestyle == SOLID else "white"
        return {
            "color": self.color,
            "linestyle": self.linestyle,
            "marker": self.marker,
            "markerfacecolor": face,
        }


# Colours are Okabe and Ito's, told apart by the colour-blind. No two estimators share colour and line style, nor marker
# and line style, so that a figure can also be read in grey.
LOOKS = {
    "exact": Look("Exact", BLACK, SOLID, "."),
    "reinforce": Look("REINFORCE", RED, DOTTED, "v"),
    "nvil": Look("NVIL", RED, SOLID, "v"),
    "rloo": Look("RLOO", RED, DASHED, "<"),
    "vimco": Look("VIMCO", RED, DASHDOT, ">"),
    "muprop": Look("MuProp", GREEN, SOLID, "D"),
    "darn": Look("DARN", PURPLE, SOLID, "P"),
    "rebar": Look("REBAR", GREEN, DASHED, "s"),
    "relax": Look("RELAX", GREEN, DASHDOT, "^"),
    "arm": Look("ARM", PURPLE, DOTTED, "X"),
    "disarm": Look("DisARM", PURPLE, DASHED, "d"),
    "arms": Look("ARMS", PURPLE, DASHDOT, "P"),
    "carms": Look("CARMS", PURPLE, DASHDOTDOT, "P"),
    "arsm": Look("ARSM", BLACK, DOTTED, "h"),
    "ars": Look("ARS", RED, DASHDOTDOT, "<"),
    "disarm_iw": Look("DisARM-IW", BLUE, DASHED, "H"),
    "disarm_stick_breaking": Look("DisARM-SB", BLUE, DOTTED, "d"),
    "disarm_tree": Look("DisARM-Tree", BLUE, DASHDOTDOT, "d"),
    "straight_through": Look("Straight-Through", ORANGE, SOLID, "^"),
    "annealed_straight_through": Look("Annealed ST", SKY, DASHDOTDOT, "^"),
    "decoupled_straight_through": Look("Decoupled ST", ORANGE, DASHDOT, "v"),
    "identity_straight_through": Look("Identity ST", ORANGE, DASHDOTDOT, ">"),
    "gumbel_softmax": Look("Gumbel-Softmax", BLUE, SOLID, "o"),
    "st_gumbel_softmax": Look("ST Gumbel-Softmax", SKY, DASHED, "o"),
    "gumbel_rao": Look("Gumbel-Rao", BLUE, DASHDOT, "s"),
    "gapped_straight_through": Look("Gapped ST", ORANGE, DASHED, "^"),
    "reinmax": Look("ReinMax", SKY, SOLID, "s"),
    "reinmax_rao": Look("ReinMax-Rao", SKY, DASHDOT, "D"),
    "reinmax_cv": Look("ReinMax-CV", SKY, DOTTED, "s"),
    "spike_and_exponential": Look("Spike-and-exp.", BLACK, DASHDOTDOT, "X"),
    "overlapping_exponential": Look("Overlapping exp.", GREEN, DASHDOTDOT, "p"),
    "double_cv": Look("Double CV", GREEN, DOTTED, "D"),
    "rodeo": Look("RODEO", BLACK, DASHED, "p"),
    "unordered_set": Look("Unordered set", ORANGE, DOTTED, "o"),
    "indecater": Look("IndeCateR", BLACK, DASHDOT, "*"),
}

_COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
_LINES = (SOLID, DASHED, DOTTED, DASHDOT)
_MARKERS = ("H", "d", "8", "X", "*", "p", "<", ">")


def look(estimator: str) -> Look:
    """The estimator's look; an unknown name gets one that depends on the name alone, and stands for itself as label."""
    if estimator in LOOKS:
        return LOOKS[estimator]
    name, _, variant = estimator.partition(", ")
    if variant and name in LOOKS:  # the same colour; the line tells the variants apart
        number = int.from_bytes(hashlib.sha256(variant.encode()).digest()[:4], "big")
        base = LOOKS[name]
        return Look(f"{base.label}, {variant}", base.color, _LINES[number % 4], _MARKERS[number // 4 % 8])
    number = int.from_bytes(hashlib.sha256(estimator.encode()).digest()[:4], "big")
    color, line = _COLORS[number % 7], _LINES[number // 7 % 4]
    return Look(estimator, color, line, _MARKERS[number // 28 % 8])


def in_order(estimators: set[str]) -> list[str]:
    """Known estimators in the order of ``LOOKS``, each with its variants, then the others by name."""
    order = {name: place for place, name in enumerate(LOOKS)}
    return sorted(estimators, key=lambda name: (order.get(name.partition(", ")[0], len(order)), name))
