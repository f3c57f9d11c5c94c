"""A table as texts, and how each format writes it: the screen, Markdown, LaTeX, CSV, HTML.

A cell is plain text. In a column of numbers ``±`` stands before half a width, :data:`MINUS` is a sign that is set as
one, and :data:`NONE` stands where there is no number; each format has its own form of these, and escapes the rest.
"""

from __future__ import annotations

import csv
import html
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.output import visible
from analysis.records.files import write_atomically

NONE, MINUS = "-", "\N{MINUS SIGN}"
BEST, TIE = "best", "tie"
MARKED = "marked (bold, or * in plain text)"
NUMBER = re.compile(r"[-+]?[\d.][\d.,eE ±%()\[\]+-]*|-|[-+]?(inf|nan)")
"""A cell of digits and signs, which no spreadsheet takes for a call."""


def fixed(value: float, digits: int, sign: str = "") -> str:
    """``value`` with so many decimals; what rounds to 0 has no minus sign. ``sign``: ``"+"`` shows that of all others,
    with :data:`MINUS`."""
    text = format(value, f"{sign}.{digits}f")
    if not any(digit in text for digit in "123456789") and text[-1:].isdigit():
        text = text.lstrip("+-")
    return text.replace("-", MINUS) if sign else text


class Marked(NamedTuple):
    """A cell that is the ``best`` of those it is compared with, or a ``tie`` with it; nothing if ``mark`` is empty."""

    text: str
    mark: str


Cell = str | Marked


@dataclass(frozen=True)
class Markup:
    """How one format writes what the tables need.

    Attributes:
        plus_minus, minus, none: what stands for ``±``, :data:`MINUS` and :data:`NONE` in a column of numbers.
        best, tie: mark a cell.
        marked: what a sentence says of the best instead of :data:`MARKED`.
        escape: makes a cell's text safe.
        sentence: makes a title, a caption or a note safe.
    """

    plus_minus: str
    minus: str
    none: str
    best: Callable[[str], str]
    tie: Callable[[str], str]
    marked: str = "in bold"
    escape: Callable[[str], str] = str
    sentence: Callable[[str], str] = str


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    special |= {character: "\\" + character for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def latex_sentence(text: str) -> str:
    """``text`` escaped, with its bounds on ``-log p`` as formulas."""
    text = _escape_latex(text).replace(r"\textasciitilde{}", r"$\sim$")
    text = re.sub(r"-log p\(([xy|]+)\) \$<\$=", r"$-\\log p(\1) \\le$", text)
    return re.sub(r"-log p\(([xy|]+)\)", r"$-\\log p(\1)$", text)


def _escape_markdown(text: str) -> str:
    return _no_links(re.sub(r"[\\|*`]", r"\\\g<0>", text))


def _no_links(text: str) -> str:
    """Without tags, and without links and pictures, which have something right after a bracket."""
    return re.sub(r"<(?=[A-Za-z/!?])|\](?=[(\[:])", r"\\\g<0>", text)


def _no_formula(text: str) -> str:
    """For a spreadsheet: what would be a formula, and is no number, begins with an apostrophe."""
    return f"'{text}" if re.match(r"\s*[=+\-@\t]", text) and not NUMBER.fullmatch(text) else text


PLAIN = Markup("±", "-", "-", best=str, tie=str)
CSV = Markup("±", "-", "-", best=str, tie=str, escape=_no_formula)
TEXT = Markup("±", "-", "-", best=lambda cell: f"{cell} *", tie=lambda cell: f"{cell} ~", marked="marked *")
MARKDOWN = Markup(
    "±", "-", "-", lambda cell: f"**{cell}**", lambda cell: f"{cell} ~", "in bold", _escape_markdown, _no_links
)
LATEX = Markup(
    *(r"$\pm$", "$-$", "--"),
    lambda cell: rf"\textbf{{{cell}}}",
    lambda cell: rf"{cell}$^\sim$",
    "in bold",
    _escape_latex,
    latex_sentence,
)
HTML = Markup(
    *("±", MINUS, "–"),
    lambda cell: f"<strong>{cell}</strong>",
    lambda cell: f"{cell} ~",
    "in bold",
    html.escape,
    html.escape,
)


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header, and what one must know to read them.

    Attributes:
        header: the names of the columns.
        rows: of each row its cells, as many as the header has names.
        notes: sentences below the table.
        title: what the numbers are, without a full stop.
        caption: sentences that belong to the title; Markdown and the screen have them with the notes.
        labels: so many columns, the first ones, hold names and not numbers; of several, the first one groups rows.
        numbers: what the cells were made of, at full precision, for CSV; by default CSV has the cells.
        screen: sentences that only the screen has, for what files say at length in ``whole``.
        whole: sentences that files have below the notes.
        commands: what trains the numbers again: in files, in LaTeX as comments.
        key: what LaTeX calls the table, after ``tab:``; its letters and digits.
        proper: the names that LaTeX has in the place of those of the first columns.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    title: str = ""
    caption: Sequence[str] = ()
    labels: int = 1
    numbers: pd.DataFrame | None = None
    screen: Sequence[str] = ()
    whole: Sequence[str] = ()
    commands: Sequence[str] = ()
    key: str = ""
    proper: Mapping[str, str] = field(default_factory=dict)

    def cells(self, markup: Markup) -> list[list[str]]:
        """The header and the rows as ``markup`` writes them."""
        rows = [[_written(cell, markup, place >= self.labels) for place, cell in enumerate(row)] for row in self.rows]
        return [[_written(name, markup, False) for name in self.header], *rows]

    def to_text(self, width: int = 100) -> str:
        """For the screen. Where the table is wider than ``width`` characters, each row takes a block of lines."""
        title, *about = (
            textwrap.fill(_sentence(line, TEXT), width, subsequent_indent="  ", break_on_hyphens=False)
            for line in [self.title, *self.caption, *self.notes, *self.screen]
        )
        parts = [[title]] if title else []
        parts += [_aligned(self.cells(TEXT), width), *([about] if about else [])]
        return "\n\n".join("\n".join(part) for part in parts)

    def to_markdown(self) -> str:
        """GitHub-flavoured Markdown: a heading, the table, the caption and the notes as a list."""
        header, *rows = self.cells(MARKDOWN)
        rule = ["---" if place < self.labels else "---:" for place in range(len(header))]
        about = [f"- {_sentence(line, MARKDOWN)}" for line in (*self.caption, *self.notes, *self.whole)]
        about += [f"- Command: {_code(line)}" for line in self.commands]
        parts = [[f"### {_sentence(self.title, MARKDOWN)}"]] if self.title else []
        parts += [[f"| {' | '.join(line)} |" for line in (header, rule, *rows)], *([about] if about else [])]
        return "\n\n".join("\n".join(part) for part in parts)

    def to_latex(self, size: str = "") -> str:
        r"""A ``table`` for ``\input``, its numbers in the font ``size``; needs ``\usepackage{booktabs}``."""
        header, *rows = self._proper().cells(LATEX)
        lines = [f"% {_one_line(line)}" for line in self.commands]
        lines += [r"\begin{table}", r"\centering"]
        lines.append(rf"\caption{{{self._latex(' '.join([f'{self.title}.', *self.caption]))}}}")
        lines += [rf"\label{{tab:{key}}}"] if (key := re.sub(r"[^A-Za-z0-9]+", "-", self.key).strip("-")) else []
        lines += [size] if size else []
        lines.append(rf"\begin{{tabular}}{{{'l' * self.labels}{'r' * (len(header) - self.labels)}}}")
        lines += [r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
        for number, row in enumerate(rows):
            if self.labels > 1 and number and row[0]:
                lines.append(r"\addlinespace")
            lines.append(" & ".join(row) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        if about := [*self.notes, *self.whole]:
            lines.append(rf"\par\smallskip\footnotesize\raggedright {self._latex(' '.join(about))}\par")
        return "\n".join([*lines, r"\end{table}"])

    def _proper(self) -> Table:
        names = [[self.proper.get(cell, cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]
        rows = [[*own[: self.labels], *row[self.labels :]] for own, row in zip(names, self.rows, strict=True)]
        return replace(self, rows=rows)

    def _latex(self, text: str) -> str:
        """A sentence with the proper names, but where a name is part of an option or of a value."""
        if names := sorted(filter(None, self.proper), key=len, reverse=True):
            pattern = rf"(?<![\w.=/-])(?:{'|'.join(map(re.escape, names))})(?![\w=/-])"
            text = re.sub(pattern, lambda found: self.proper[found[0]], text)
        return _sentence(text, LATEX)

    def to_html(self) -> str:
        """A ``table`` with its caption, and the notes as a list; every text is escaped."""
        header, *rows = self.cells(HTML)
        kinds = ["text" if place < self.labels else "number" for place in range(len(header))]
        lines = ["<table>", f"<caption>{_sentence(self.title, HTML)}</caption>" if self.title else ""]
        for name, part in (("thead", [header]), ("tbody", rows)):
            tag = "th" if name == "thead" else "td"
            lines.append(f"<{name}>")
            for row in part:
                cells = (f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in zip(kinds, row, strict=True))
                lines.append(f"<tr>{''.join(cells)}</tr>")
            lines.append(f"</{name}>")
        lines.append("</table>")
        commands = [f"Command: {line}" for line in self.commands]
        if about := [*self.caption, *self.notes, *self.whole, *commands]:
            lines += ["<ul>", *(f"<li>{_sentence(line, HTML)}</li>" for line in about), "</ul>"]
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        return self.to_html()  # what a notebook shows


def to_markdown(tables: Sequence[Table]) -> str:
    """A Markdown file of the tables, one below the other."""
    return "\n\n".join(table.to_markdown() for table in tables) + "\n"


def to_latex(tables: Sequence[Table], size: str = "") -> str:
    """A LaTeX file of the tables: see :meth:`Table.to_latex`."""
    return "\n\n".join(["% needs \\usepackage{booktabs}", *(table.to_latex(size) for table in tables)]) + "\n"


def to_csv(tables: Sequence[Table]) -> str:
    """One header and the numbers of all tables at full precision; of a table without ``numbers`` its cells."""
    numbers = [table.numbers for table in tables if table.numbers is not None]
    if len(numbers) == len(tables):
        return frame_to_csv(pd.concat(numbers, ignore_index=True) if numbers else pd.DataFrame())
    text = io.StringIO()
    for table in tables:
        csv.writer(text, lineterminator="\n").writerows(table.cells(CSV))
    return text.getvalue()


def frame_to_csv(frame: pd.DataFrame) -> str:
    """CSV of a frame at full precision; no text in it is a formula."""
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    safe = frame.assign(**{name: frame[name].map(_cell) for name in texts})
    return str(safe.rename(columns=_cell).to_csv(index=False))


def _cell(value: Any) -> Any:
    return _no_formula(_one_line(value)) if isinstance(value, str) else value


def write(
    tables: Sequence[Table], stem: Path, kinds: Sequence[str] = ("md", "tex", "csv"), size: str = ""
) -> list[Path]:
    """Write ``stem.md``, ``stem.tex``, ``stem.csv``, those of them in ``kinds``; returns the files."""
    writers: dict[str, Callable[[], str]] = {
        "md": lambda: to_markdown(tables),
        "tex": lambda: to_latex(tables, size),
        "csv": lambda: to_csv(tables),
    }
    files = []
    for kind in kinds:
        files.append(stem.with_name(f"{stem.name}.{kind}"))
        write_atomically(files[-1], writers[kind]().encode())
    return files


def _written(cell: Cell, markup: Markup, is_number: bool) -> str:
    text, mark = cell if isinstance(cell, Marked) else (cell, "")
    text = markup.escape(_one_line(text))
    if is_number:
        text = markup.none if text == NONE else text.replace("±", markup.plus_minus).replace(MINUS, markup.minus)
    return {BEST: markup.best, TIE: markup.tie}.get(mark, str)(text)


def _sentence(text: str, markup: Markup) -> str:
    return markup.sentence(_one_line(text.replace(MARKED, markup.marked)))


def _code(text: str) -> str:
    """As code in Markdown, where it has no backtick of its own."""
    return _sentence(text, MARKDOWN) if "`" in text else f"`{_one_line(text)}`"


def _one_line(text: str) -> str:
    return visible(re.sub(r"[\r\n]+", " ", text))


def _aligned(table: list[list[str]], width: int) -> list[str]:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        lines = []
        for row in table[1:]:
            lines.append(row[0])
            lines += [f"  {name}: {cell}" for name, cell in zip(table[0][1:], row[1:], strict=True)]
        return lines
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in table]
    return [lines[0], "  ".join("-" * size for size in widths), *lines[1:]]
