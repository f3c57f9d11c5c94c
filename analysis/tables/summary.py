"""The summary as a table for the screen, for Markdown, for LaTeX and as CSV; numbers are formatted in one place.

``summary`` is always the frame of :func:`analysis.statistics.summary.summarise`. One table per task and data set: only
what was evaluated alike stands in one column.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, compress

import pandas as pd

from analysis.figures.style import look
from analysis.statistics.settings import as_text
from analysis.statistics.summary import COMPARISON
from analysis.tables import table, trained
from analysis.tables.table import BEST, MARKED, NONE, TIE, Cell, Marked, Markup, Table, fixed
from analysis.tables.table import LATEX as LATEX
from analysis.tables.table import MARKDOWN as MARKDOWN
from analysis.tables.table import TEXT as TEXT

KL_AUTO = "kl auto: sampled for unbiased estimators and those that rescale their gradient, analytic for biased ones."
CSV_COLUMNS = ["task", "data", "estimator", "variant", "metric", "mean", "low", "high", "interval", "n"]
CSV_COLUMNS += ["diverged", "failed", "unfinished", "setting", "settings", "raced", "valid"]
CSV_COLUMNS += ["cell_diverged", "cell_failed", "cell_unfinished"]
CSV_COLUMNS += ["published", "difference", "published_source", "published_differences", "published_note"]


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
        words.append(BEST if index == best else TIE if overlaps else "")
    return words


def comparisons(summary: pd.DataFrame) -> list[Table]:
    """One table per task and data set, a row per estimator; ``numbers`` are the rows at full precision."""
    protocol_of = sorted(str(column) for column in summary if str(column).startswith("protocol."))
    config = [name for name in ("steps", "optimizer", "batch_size", "test_samples") if name in summary]
    columns = [*CSV_COLUMNS, *config, *protocol_of]
    return [_table(group, group.reindex(columns=columns)) for _, group in summary.groupby(COMPARISON)]


def _table(group: pd.DataFrame, numbers: pd.DataFrame) -> Table:
    group = group.reset_index(drop=True)
    intervals, *about = caption(group)
    short = trained.brief(group)
    return replace(
        _cells(group),
        title=title(group),
        caption=[intervals],
        notes=[*about, *notes(group)],
        screen=[short] if short else [],
        whole=trained.whole(group),
        commands=trained.commands(group),
        key="-".join(group[COMPARISON].iloc[0]),
        proper={label: _proper(label) for label in group["label"]},
        numbers=numbers,
    )


def _proper(label: str) -> str:
    """What a paper calls the estimator of a row."""
    name, mark, rest = label.partition(" (reference)")
    return look(name).label + mark + rest


def cells(group: pd.DataFrame, markup: Markup) -> list[list[str]]:
    """One comparison as strings: a header and a line per estimator, all of the same length."""
    return _cells(group).cells(markup)


def _cells(group: pd.DataFrame) -> Table:
    symmetric = not (group["interval"] == "BCa bootstrap").any()
    lost = [_lost(row) for _, row in group.iterrows()]
    header = ["estimator", unit(group), "seeds", "not finished", "published", "difference"]
    lines: list[list[Cell]] = []
    for (_, row), mark, words in zip(group.iterrows(), ties(group), lost, strict=True):
        published = NONE if math.isnan(row["published"]) else fixed(row["published"], 1)
        difference = NONE if math.isnan(row["difference"]) else signed(row["difference"])
        value = Marked(number(row, symmetric, digits(group)), mark)
        lines.append([row["label"], value, str(row["n"]), words or NONE, published, difference])
    keep = [True, True, True, any(lost), group["published"].notna().any(), group["difference"].notna().any()]
    rows = [list(compress(line, keep)) for line in lines]
    return Table(list(compress(header, keep)), rows)


def _is_bound(group: pd.DataFrame) -> bool:
    """Whether the numbers are negative bounds in nats; where nothing is finished they would be."""
    return _common(group, "metric") in ("", "bound", "pseudo_bound")


def unit(group: pd.DataFrame) -> str:
    """What one comparison's numbers count, in a word or two."""
    metric = _common(group, "metric")
    return {"value": "loss"}.get(metric, "nats" if _is_bound(group) else metric.replace("_", " "))


def digits(group: pd.DataFrame) -> int:
    """Digits behind the point of one comparison's numbers: an exact loss has more than an estimated bound."""
    return 6 if _common(group, "metric") == "value" else 2


def number(row: pd.Series, symmetric: bool, digits: int) -> str:
    """The mean of ``row`` with its interval: as half a width if all of the table are ``symmetric``, or by its ends."""
    if math.isnan(row["mean"]):
        return NONE
    if row["negated"]:
        low, mean, high = -row["high"], -row["mean"], -row["low"]
    else:
        low, mean, high = row["low"], row["mean"], row["high"]
    text = fixed(mean, digits)
    if math.isnan(low):
        return text
    if symmetric:
        return f"{text} ± {fixed(high - mean, digits)}"
    return f"{text} [{fixed(low, digits)}, {fixed(high, digits)}]"


def signed(value: float) -> str:
    """A difference with its sign, to a tenth."""
    return fixed(value, 1, "+")


def _lost(row: pd.Series) -> str:
    return ", ".join(f"{row[word]} {word}" for word in ("diverged", "failed", "unfinished") if row[word])


def quantity(group: pd.DataFrame) -> str:
    """The numbers of some comparisons in a few words, for an axis; those of a table are :func:`title`."""
    if _common(group, "metric") == "value":
        return "expected loss"
    if _is_bound(group):
        pseudo = "pseudo-" if _common(group, "metric") == "pseudo_bound" else ""
        return f"negative test {pseudo}bound [nats]"
    return _common(group, "metric").replace("_", " ")


def title(group: pd.DataFrame) -> str:
    """The quantity of one comparison, in words."""
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
    """Sentences below the table: chosen settings, runs lost elsewhere, the published numbers' settings and traps."""
    uses = {
        use: sorted({name for text in group[use] for name in text.split(", ") if name}) for use in ("tuned", "compared")
    }
    lines = [f"Compared, each value in a row: {', '.join(uses['compared'])}."] if uses["compared"] else []
    if uses["tuned"]:
        lines.append(f"Tuned, the value chosen on validation: {', '.join(uses['tuned'])}.")
    lines += [raced_note(raced, rows) for raced, rows in group.groupby("raced", sort=False) if raced]
    if "auto" in _common(group, "task.kl"):
        lines.append(KL_AUTO)
    lines += [*_orders(group), *_relaxed(group)]
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


def raced_note(raced: str, rows: pd.DataFrame) -> str:
    """The sentence for the rows that a race decided."""
    return f"Raced over {raced}; the settings that lost ended there ({', '.join(dict.fromkeys(rows['label']))})."


def _orders(group: pd.DataFrame) -> list[str]:
    """A sentence where the curves of validation end in another order than that of the table."""
    known = group.dropna(subset=["mean", "curve"]) if "curve" in group else group.iloc[:0]
    rows = list(zip(known["label"], known["mean"], known["curve"] if len(known) else [], strict=True))
    swapped = [(one, two) for (one, a, c), (two, b, d) in combinations(rows, 2) if (a - b) * (c - d) < 0]
    if not swapped:
        return []
    names = "; ".join(f"{one} and {two}" for one, two in swapped[:3]) + (
        f" and {len(swapped) - 3} more pairs" if len(swapped) > 3 else ""
    )
    curve = _common(known, "curve_metric").removeprefix("valid_").replace("_", "-").replace("elbo", "ELBO")
    return [
        f"The learning curves show the validation {curve} and the table the test {_common(group, 'metric')}: they end "
        f"in another order for {names}."
    ]


def _relaxed(group: pd.DataFrame) -> list[str]:
    """What was trained on relaxed samples, and that its objective is no bound."""
    known = group.dropna(subset=["relaxed_elbo", "elbo"]) if "relaxed_elbo" in group else group.iloc[:0]
    return [
        f"{row['label']} trained on relaxed samples: their objective is {fixed(row['relaxed_elbo'], 2)} nats on test, "
        f"and no bound; the negative ELBO of hard samples is {fixed(row['elbo'], 2)}."
        for _, row in known.iterrows()
    ]


def _about_intervals(group: pd.DataFrame) -> str:
    kinds = [kind for kind in group["interval"].unique() if kind != "none"]
    parts = [f"mean and 95 % interval over seeds ({', '.join(kinds)})"] if kinds else []
    if (group["n"] == 1).any():
        parts.append("a single seed has no interval")
    words = ties(group)
    if "best" in words:
        overlap = ", ~: its interval overlaps with the best's" if "tie" in words else ""
        parts.append(f"best is {MARKED}: the lowest mean{overlap}")
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


def to_text(summary: pd.DataFrame, width: int = 100) -> str:
    """For the screen: :meth:`analysis.tables.table.Table.to_text` of each task and data set."""
    return "\n\n\n".join(each.to_text(width) for each in comparisons(summary))


def to_markdown(summary: pd.DataFrame) -> str:
    """GitHub-flavoured Markdown: a heading, a table and its notes per task and data set."""
    return table.to_markdown(comparisons(summary))


def to_latex(summary: pd.DataFrame) -> str:
    r"""LaTeX for ``\input``; needs ``\usepackage{booktabs}``."""
    return table.to_latex(comparisons(summary))


def to_csv(summary: pd.DataFrame) -> str:
    """One line per cell with every number at full precision, and the protocol."""
    return table.to_csv(comparisons(summary))
