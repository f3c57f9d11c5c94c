"""One look for every figure: the same colour, marker and line style for the same estimator everywhere."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

Line = str | tuple[int, tuple[float, ...]]

BLACK, BLUE, SKY, GREEN, ORANGE, RED, PURPLE = (
    *("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"),
)
YELLOW, GREY = "#B8A900", "#7F7F7F"
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
    "axes.formatter.limits": (-6, 7),
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
MARGIN = 0.1
"""Inches beside a legend."""
STYLE: Any = ["default", RC]
"""Argument of ``matplotlib.style.context``: figures are the same whatever a ``matplotlibrc`` or a notebook has set."""


@dataclass(frozen=True)
class Look:
    """How one estimator is drawn and what a figure calls it."""

    label: str
    color: str
    linestyle: Line
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


COLORS = {
    "enumeration": BLACK,
    "score function": RED,
    "multi-sample": YELLOW,
    "coupled samples": PURPLE,
    "control variate": GREEN,
    "first order": GREY,
    "relaxation": BLUE,
    "straight-through": ORANGE,
}
"""Colours of the families: Okabe and Ito's, which the colour-blind can tell apart."""
OTHER = SKY
"""Colour of an estimator without a family, or with one that is not in ``COLORS``."""
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "<", ">", "*", "d", "p", "h", "8", "H", ".")
"""Those that are alike last."""
STARTS = {
    "relaxation": "o",
    "straight-through": "o",
    "coupled samples": "s",
    "control variate": "^",
    "score function": "X",
    "first order": "*",
    "enumeration": "d",
    "multi-sample": "h",
}
"""The marker of a family's first method; the next ones have those that follow."""
LINES = (SOLID, DASHED, DOTTED, DASHDOT, DASHDOTDOT)

KNOWN = {
    "exact": ("Exact", "enumeration"),
    "reinforce": ("REINFORCE", "score function"),
    "nvil": ("NVIL", "score function"),
    "rloo": ("RLOO", "score function"),
    "vimco": ("VIMCO", "multi-sample"),
    "muprop": ("MuProp", "control variate"),
    "darn": ("DARN", "first order"),
    "rebar": ("REBAR", "control variate"),
    "relax": ("RELAX", "control variate"),
    "arm": ("ARM", "coupled samples"),
    "disarm": ("DisARM", "coupled samples"),
    "arms": ("ARMS", "coupled samples"),
    "carms": ("CARMS", "coupled samples"),
    "arsm": ("ARSM", "coupled samples"),
    "ars": ("ARS", "coupled samples"),
    "disarm_iw": ("DisARM-IW", "coupled samples"),
    "disarm_stick_breaking": ("DisARM-SB", "coupled samples"),
    "disarm_tree": ("DisARM-Tree", "coupled samples"),
    "straight_through": ("Straight-Through", "straight-through"),
    "annealed_straight_through": ("Annealed ST", "straight-through"),
    "decoupled_straight_through": ("Decoupled ST", "straight-through"),
    "identity_straight_through": ("Identity ST", "straight-through"),
    "gumbel_softmax": ("Gumbel-Softmax", "relaxation"),
    "st_gumbel_softmax": ("ST Gumbel-Softmax", "relaxation"),
    "gumbel_rao": ("Gumbel-Rao", "straight-through"),
    "gapped_straight_through": ("Gapped ST", "straight-through"),
    "reinmax": ("ReinMax", "straight-through"),
    "reinmax_rao": ("ReinMax-Rao", "straight-through"),
    "reinmax_cv": ("ReinMax-CV", "straight-through"),
    "spike_and_exponential": ("Spike-and-exp.", "relaxation"),
    "overlapping_exponential": ("Overlapping exp.", "relaxation"),
    "double_cv": ("Double CV", "control variate"),
    "rodeo": ("RODEO", "control variate"),
    "unordered_set": ("Unordered set", "score function"),
    "indecater": ("IndeCateR", "enumeration"),
}
"""Labels, in a figure's order, and the families of records that do not say theirs. A method that is not here has its
name for a label and the family of its record: none is ever added."""


def looks(estimators: Iterable[str], families: Mapping[str, str | None] | None = None) -> dict[str, Look]:
    """The looks of the estimators of one figure, in its order: no two alike, in colour or in grey.

    Colour = family, marker = method; the line tells apart what shares a marker. Known methods look the same in every
    figure; another one looks as the figure's others leave room, wherever it is alone the same. A variant
    (``"nvil, task.latents=20"``) has its method's colour and, while there are lines, marker.

    Args:
        estimators: names, each with its variant.
        families: of the estimators, by name; those of ``None`` and those that are missing are looked up in ``KNOWN``.
    """
    families = families or {}
    names = in_order(set(estimators))
    found = {name: LOOKS[name] for name in names if name in LOOKS}
    for name in (name for name in names if name not in LOOKS):
        method, _, variant = name.partition(", ")
        label, known = KNOWN.get(method, (method, None))
        said = next((each for each in (families.get(name), families.get(method)) if isinstance(each, str)), known)
        color = COLORS.get(said or "", OTHER)
        base = LOOKS.get(method) or found.get(method)
        place = _places().index((base.marker, base.linestyle)) if base else _hash(method)
        drawn = list(found.values())
        kept = drawn if variant else [*LOOKS.values(), *drawn]
        marker, line = _free(place, _hash(variant) if variant else 0, kept, [x for x in drawn if x.color == color])
        found[name] = Look(f"{label}, {variant}" if variant else label, color, line, marker)
    return {name: found[name] for name in names}


def _places() -> list[tuple[str, Line]]:
    """Every marker and line; neighbours, in a circle, share the marker."""
    return [(marker, line) for marker in MARKERS for line in LINES]


def _free(place: int, shift: int, *kept: list[Look]) -> tuple[str, Line]:
    """The first marker and line from ``place`` on, with the lines of its marker first, that none of the first of
    ``kept`` has; if there is none left, that none of the next has."""
    places = _places()
    first = place % len(places) // len(LINES) * len(LINES)
    lines = [places[first + (place + shift + number) % len(LINES)] for number in range(len(LINES))]
    others = [places[(first + number) % len(places)] for number in range(len(LINES), len(places))]
    for each in kept:
        taken = {(drawn.marker, drawn.linestyle) for drawn in each}
        if free := [pair for pair in [*lines, *others] if pair not in taken]:
            return free[0]
    return lines[0]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _of_known() -> dict[str, Look]:
    """Each method of a family the next marker; families that share a marker differ in the line, too."""
    found: dict[str, Look] = {}
    taken: set[tuple[str, Line]] = set()
    for family, start in STARTS.items():
        members = [name for name, (_, own) in KNOWN.items() if own == family]
        for place, name in enumerate(members):
            marker = MARKERS[(MARKERS.index(start) + place) % len(MARKERS)]
            lines = [LINES[(place + shift) % len(LINES)] for shift in range(len(LINES))]
            line = next(line for line in lines if (marker, line) not in taken)
            taken.add((marker, line))
            found[name] = Look(KNOWN[name][0], COLORS[family], line, marker)
    return {name: found[name] for name in KNOWN}


LOOKS = _of_known()


def look(estimator: str, family: str | None = None) -> Look:
    """The look of an estimator that stands alone; in one figure with others: :func:`looks`."""
    return looks([estimator], {estimator: family})[estimator]


def families_of(frame: pd.DataFrame, name: str = "estimator") -> dict[str, str | None]:
    """The families by the names in the column ``name`` of a frame of records, for :func:`looks`."""
    if "family" not in frame:
        return {}
    said = frame[[name, "family"]].drop_duplicates().dropna().drop_duplicates(name)
    return dict(zip(said[name], said["family"], strict=True))


def with_looks(frame: pd.DataFrame, name: str = "label") -> pd.DataFrame:
    """``frame`` with the column ``look``, that of the estimator in the column ``name`` among all of the frame."""
    found = looks(set(frame[name].unique()), families_of(frame, name))
    return frame.assign(look=frame[name].astype(object).map(found))


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], most: int, **options: Any) -> None:
    """A legend below (``loc``: elsewhere outside of) the panels, in at most ``most`` columns and as few as it takes
    not to be cut; the figure grows by its height, and in width where a single column is wider."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not handles:
        return
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    options.setdefault("loc", "outside lower center")
    for columns in range(max(1, min(most, len(handles))), 0, -1):
        legend = figure.legend(handles, labels, ncols=columns, **options)
        box = legend.get_window_extent(renderer)
        if columns == 1 or box.width / figure.dpi < figure.get_figwidth() - MARGIN:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, box.width / figure.dpi + MARGIN), height + box.height / figure.dpi + MARGIN)


def fit_titles(figure: Figure) -> None:
    """Break the panels' titles, at spaces where they have some, so that each is no wider than its panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for axes in figure.axes:
        title, text = axes.title, axes.get_title()
        room, width = axes.get_window_extent(renderer).width, title.get_window_extent(renderer).width
        if text and width > room:
            letters = max(8, int(max(map(len, text.splitlines())) * room / width))
            title.set_text("\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, letters)))


def in_order(estimators: set[str]) -> list[str]:
    """Known estimators in the order of ``KNOWN``, each with its variants, then the others by name."""
    order = {name: place for place, name in enumerate(KNOWN)}
    return sorted(estimators, key=lambda name: (order.get(name.partition(", ")[0], len(order)), name))
