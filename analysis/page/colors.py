"""Colours of the page: every method its own shade of its family's colour, for a light and for a dark background."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from analysis.figures.style import BLACK, BLUE, COLORS, LOOKS, OTHER, Look

LIGHT, DARK = "#ffffff", "#16191d"
"""Backgrounds."""
ON_DARK = {BLACK: "#ececec", BLUE: "#3b9ad9"}
CONTRAST = {LIGHT: 2.0, DARK: 4.0}
"""Least ratio of luminances between a shade and its background (Okabe's and Ito's orange on white has 2.1)."""
HUES = (0.0, -0.03, 0.03, -0.05, 0.05)
LIGHTNESS = tuple(k / 100 for k in range(20, 84, 4))


def shades(looks: Mapping[str, Look], background: str) -> dict[str, str]:
    """A colour for each of ``looks``, no two alike: the first method of a family has its family's colour where
    that is seen on ``background``, the next ones shades of it. The same for a known method on every page."""
    found: dict[str, str] = {}
    labs = [_lab(_base(color, background)) for color in (*COLORS.values(), OTHER)]
    for name, look in {**LOOKS, **looks}.items():
        if (base := _base(look.color, background)) not in found.values():
            found[name] = base
            continue
        options, places = _near(base, background)
        distances = np.linalg.norm(places[:, None] - np.stack(labs), axis=2).min(axis=1)
        best = int(distances.argmax())
        found[name] = options[best]
        labs.append(places[best])
    return {name: found[name] for name in looks}


def distance(one: str, two: str) -> float:
    """Euclidean distance in CIE Lab: about 2.3 is just seen."""
    return float(np.linalg.norm(_lab(one) - _lab(two)))


def contrast(one: str, two: str) -> float:
    """The ratio of two colours' luminances as WCAG has it, 1 to 21."""
    low, high = sorted(float(_linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, two))
    return (high + 0.05) / (low + 0.05)


def _base(color: str, background: str) -> str:
    return color if contrast(color, background) >= CONTRAST[background] else ON_DARK.get(color, color)


@cache
def _near(color: str, background: str) -> tuple[list[str], NDArray[np.floating]]:
    """Shades of ``color`` that are seen: lighter and darker, and of hues next to it; their places in Lab ``[n, 3]``."""
    hue, _, saturation = colorsys.rgb_to_hls(*_rgb(color))
    hues = HUES if saturation > 0 else (0.0,)
    triples = (colorsys.hls_to_rgb((hue + turn) % 1, light, saturation) for turn in hues for light in LIGHTNESS)
    found = ["#" + "".join(f"{round(255 * part):02x}" for part in triple) for triple in triples]
    found = [shade for shade in found if contrast(shade, background) >= CONTRAST[background]]
    return found, np.stack([_lab(shade) for shade in found])


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue


def _linear(color: str) -> NDArray[np.floating]:
    values = np.array(_rgb(color))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(color: str) -> NDArray[np.floating]:
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(matrix @ _linear(color) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
