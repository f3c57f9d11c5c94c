"""The summary as a table for the screen, for Markdown, for LaTeX and as CSV; numbers are formatted in one place.

``summary`` is always the frame of :func:`analysis.statistics.summary.summarise`. One table per task and data set: only
what was evaluated alike stands in one column.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from analysis.statistics.settings import as_text
from analysis.statistics.summary import COMPARISON

CSV_COLUMNS = ["task", "data", "estimator", "variant", "metric", "mean", "low", "high", "interval", "n"]
CSV_COLUMNS += ["diverged", "failed", "unfinished", "setting", "settings", "valid"]
CSV_COLUMNS += ["cell_diverged", "cell_failed", "cell_unfinished"]
CSV_COLUMNS += ["published", "difference", "published_source", "published_differences", "published_note"]


@dataclass(frozen=True)
class Markup:
    """How one output format writes what the tables need."""

    plus_minus: str
    minus: str
    none: str
    best: Callable[[str], str]
    tie: Callable[[str], str]
    escape: Callable[[str], str] = str


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    special |= {character: "\\" + character for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|")


TEXT = Markup(" ± ", "-", "-", best=lambda cell: f"{cell} *", tie=lambda cell: f"{cell} ~")
MARKDOWN = Markup(" ± ", "-", "-", lambda cell: f"**{cell}**", lambda cell: f"{cell} ~", _escape_markdown)
LATEX = Markup(
    r" $\pm$ ", "$-$", "--", lambda cell: rf"\textbf{{{cell}}}", lambda cell: rf"{cell}$^\sim$", _escape_latex
)


def ties(group: pd.DataFrame) -> list[str]:
    """Per row of one comparison: ``"best"`` (lowest mean), ``"tie"`` (its interval overlaps the best's) or ``""``.

    A mean without interval (one seed) is taken as a point.
    """
    means = group["mean"]
    if means.notna().sum() < 2:
        return [""] * len(group)
    lows, highs = group["low"].fillna(means), group["high"].fillna(means)
    best = means.idxmin()
    words = []
    for index, low, high in zip(group.index, lows, highs, strict=True):
        overlaps = low <= highs[best] and lows[best] <= high
        words.append("best" if index == best else "tie" if overlaps else "")
    return words


def cells(group: pd.DataFrame, markup: Markup) -> list[list[str]]:
    """One comparison as strings: a header and a line per estimator, all of the same length."""
    symmetric = not (group["interval"] == "BCa bootstrap").any()
    lost = [_lost(row) for _, row in group.iterrows()]
    metric = _common(group, "metric")
    exact = metric == "value"
    unit = {"value": "loss"}.get(metric, "nats" if _is_bound(group) else metric.replace("_", " "))
    table = [["estimator", unit, "seeds", "not finished", "published", "difference"]]
    for (_, row), mark, words in zip(group.iterrows(), ties(group), lost, strict=True):
        value = _number(row, markup, symmetric, digits=6 if exact else 2)
        value = {"best": markup.best, "tie": markup.tie}.get(mark, str)(value)
        published = markup.none if math.isnan(row["published"]) else f"{row['published']:.1f}"
        difference = markup.none if math.isnan(row["difference"]) else signed(row["difference"], markup)
        line = [markup.escape(row["label"]), value, str(row["n"]), words or markup.none, published, difference]
        table.append(line)
    keep = [True, True, True, any(lost), group["published"].notna().any(), group["difference"].notna().any()]
    return [[cell for cell, kept in zip(line, keep, strict=True) if kept] for line in table]


def _is_bound(group: pd.DataFrame) -> bool:
    """Whether the numbers are negative bounds in nats; where nothing is finished they would be."""
    return _common(group, "metric") in ("", "bound", "pseudo_bound")


def _number(row: pd.Series, markup: Markup, symmetric: bool, digits: int = 2) -> str:
    if math.isnan(row["mean"]):
        return markup.none
    if row["negated"]:
        low, mean, high = -row["high"], -row["mean"], -row["low"]
    else:
        low, mean, high = row["low"], row["mean"], row["high"]
    text = f"{mean:.{digits}f}"
    if math.isnan(low):
        return text
    if symmetric:
        return f"{text}{markup.plus_minus}{high - mean:.{digits}f}"
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def signed(value: float, markup: Markup) -> str:
    """A difference with its sign, to a tenth."""
    text = f"{value:+.1f}"
    return text.replace("-", markup.minus)


def _lost(row: pd.Series) -> str:
    return ", ".join(f"{row[word]} {word}" for word in ("diverged", "failed", "unfinished") if row[word])


def title(group: pd.DataFrame) -> str:
    """What the numbers of one comparison are, in words."""
    task, data = group[COMPARISON].iloc[0]
    samples = _common(group, "protocol.test_samples", "test_samples")
    kind = f"importance-weighted with {samples} samples" if samples else "importance-weighted"
    quantity = _common(group, "protocol.quantity") or "-log p(x)"
    if _common(group, "metric") == "value":
        return f"{task}: expected loss, exact; lower is better"
    if _common(group, "metric") == "pseudo_bound":
        return f"{task} on {data}: negative test pseudo-bound in nats, {kind}; grey targets, not a bound on {quantity}"
    if not _is_bound(group):
        better = "higher" if group["negated"].all() else "lower"
        return f"{task} on {data}: {_common(group, 'metric').replace('_', ' ')} on test; {better} is better"
    density = _common(group, "protocol.density")
    kind += f"; p is a density of {density}, so numbers may be negative" if density else ""
    return f"{task} on {data}: {quantity} <= negative test bound in nats, {kind}; lower is better"


def caption(group: pd.DataFrame) -> list[str]:
    """What one comparison's numbers mean: the interval and the marks, then the protocol."""
    return [_about_intervals(group), f"Protocol: {protocol(group)}."]


def notes(group: pd.DataFrame) -> list[str]:
    """What else one must know: chosen settings, runs lost elsewhere, the published numbers' settings and traps."""
    uses = {
        use: sorted({name for text in group[use] for name in text.split(", ") if name}) for use in ("tuned", "compared")
    }
    lines = [f"Compared, each value in a row: {', '.join(uses['compared'])}."] if uses["compared"] else []
    if uses["tuned"]:
        lines.append(f"Tuned, the value chosen on validation: {', '.join(uses['tuned'])}.")
    tried = group[group["settings"] > 1]
    for (settings, setting), rows in tried.fillna({"setting": ""}).groupby(["settings", "setting"], sort=False):
        choice = (
            f"{setting} (best of {settings} on validation)" if setting else f"no setting of {settings} has finished"
        )
        lines.append(f"Chosen for {', '.join(rows['label'])}: {choice}.")
    for _, row in tried.iterrows():
        lost = _lost(row[["cell_diverged", "cell_failed", "cell_unfinished"]].rename(lambda name: name[5:]))
        if lost:
            lines.append(f"Over all settings of {row['label']}: {lost}.")
    for (source, different), rows in group.groupby(["published_source", "published_differences"], sort=False):
        among = "" if len(rows) == group["published"].notna().sum() else f" for {', '.join(rows['label'])}"
        lines.append(f"Published{among}: {source}" + (f"; there {different}." if different else "."))
    noted = group[group["published_note"].fillna("") != ""]
    lines += [f"Published for {row['label']}: {row['published_note']}." for _, row in noted.iterrows()]
    return lines


def _about_intervals(group: pd.DataFrame) -> str:
    kinds = [kind for kind in group["interval"].unique() if kind != "none"]
    parts = [f"mean and 95 % interval over seeds ({', '.join(kinds)})"] if kinds else []
    if (group["n"] == 1).any():
        parts.append("a single seed has no interval")
    words = ties(group)
    if "best" in words:
        parts.append("best is marked" + (", ~: its interval overlaps with the best's" if "tie" in words else ""))
    text = "; ".join(parts) or "nothing finished"
    return text[0].upper() + text[1:] + "."


def protocol(group: pd.DataFrame) -> str:
    """The protocol of the rows ``group`` of a summary in words."""
    names = sorted(str(column) for column in group if str(column).startswith("protocol."))
    names += [name for name in ("task.kl", "steps", "optimizer", "batch_size") if name in group]
    stated = {name.split(".")[-1].replace("_", " "): _common(group, name) for name in names}
    return ", ".join(f"{name} {value}" for name, value in stated.items() if value) or "not recorded"


def _common(group: pd.DataFrame, *columns: str) -> str:
    """The values in the first of ``columns`` that has any, as text."""
    for column in columns:
        if column in group and group[column].notna().any():
            return " / ".join(sorted({as_text(value) for value in group[column].dropna()}))
    return ""


def _groups(summary: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, group in summary.groupby(COMPARISON):
        yield group.reset_index(drop=True)


def to_text(summary: pd.DataFrame, width: int = 100) -> str:
    """For the screen. Where a table is wider than ``width`` characters, one estimator takes one block of lines."""
    blocks = []
    for group in _groups(summary):
        table = cells(group, TEXT)
        heading, *about = (
            textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
            for line in [title(group), *caption(group), *notes(group)]
        )
        blocks.append("\n".join([heading, "", *_aligned(table, width), "", *about]))
    return "\n\n\n".join(blocks)


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


def to_markdown(summary: pd.DataFrame) -> str:
    """GitHub-flavoured Markdown: a heading, a table and its notes per task and data set."""
    blocks = []
    for group in _groups(summary):
        header, *body = cells(group, MARKDOWN)
        lines = [f"| {' | '.join(line)} |" for line in ([header, ["---"] + ["---:"] * (len(header) - 1), *body])]
        blocks.append(
            "\n".join([f"### {title(group)}", "", *lines, "", *(f"- {note}" for note in caption(group) + notes(group))])
        )
    return "\n\n".join(blocks) + "\n"


def to_latex(summary: pd.DataFrame) -> str:
    r"""LaTeX for ``\input``; needs ``\usepackage{booktabs}``."""
    blocks = ["% needs \\usepackage{booktabs}"]
    for group in _groups(summary):
        header, *body = cells(group, LATEX)
        about = latex_sentence(" ".join([title(group) + ".", *caption(group)]))
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{about}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", " & ".join(header) + r" \\"]
        lines += [r"\midrule", *(" & ".join(line) + r" \\" for line in body), r"\bottomrule", r"\end{tabular}"]
        if below := notes(group):
            lines.append(rf"\par\smallskip\footnotesize\raggedright {latex_sentence(' '.join(below))}\par")
        blocks.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(blocks) + "\n"


def latex_sentence(text: str) -> str:
    """``text`` escaped, with its bounds on ``-log p`` as formulas."""
    text = _escape_latex(text).replace(r"\textasciitilde{}", r"$\sim$")
    text = re.sub(r"-log p\(([xy|]+)\) \$<\$=", r"$-\\log p(\1) \\le$", text)
    return re.sub(r"-log p\(([xy|]+)\)", r"$-\\log p(\1)$", text)


def to_csv(summary: pd.DataFrame) -> str:
    """One line per cell with every number at full precision, and the protocol."""
    protocol = sorted(str(column) for column in summary if str(column).startswith("protocol."))
    config = [name for name in ("steps", "optimizer", "batch_size", "test_samples") if name in summary]
    return summary.reindex(columns=[*CSV_COLUMNS, *config, *protocol]).to_csv(index=False)
