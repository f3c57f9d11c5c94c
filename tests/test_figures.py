"""Every figure with long names: nothing is cut, nothing printed over, and every entry of a legend has data."""

from __future__ import annotations

import math
from itertools import combinations

import pandas as pd
import pytest
from fake_runs import make_config, write_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_variance import measured

from analysis import command, records
from analysis.figures import curves, ranked, sensitivity, variance
from analysis.statistics.summary import summarise
from analysis.statistics.variance import panels

LONG = "an_estimator_of_my_own_with_a_name_that_is_long"
NAMES = ["gumbel_softmax", "nvil", "decoupled_straight_through", LONG]


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Two tasks, names that are long, learning rates of three decades, some runs diverged."""
    sweep = tmp_path_factory.mktemp("runs") / "sweep"
    for name in [*NAMES, f"{LONG}_too"]:
        for task in ("vae_bernoulli", "vae_categorical"):
            for number, lr in enumerate((0.001, 0.0015, 0.1)):
                config = make_config(name, task, optimizer__lr=lr, estimator__temperature=0.5, steps=200_000)

                def row(step, number=number):
                    return {"valid_elbo": -100 - number - 900 / step, "temperature": 1.0 / step}

                lost = lr == 0.1 and name != "nvil"
                write_run(
                    sweep, config, steps=6, row=row, valid=-100 - number, status="diverged" if lost else "finished"
                )
    return records.load(sweep)


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    sweep = tmp_path_factory.mktemp("baskets") / "sweep"
    rows = [{"measured": name, "variance": 10.0**k, "relative_variance": 10.0**k} for k, name in enumerate(NAMES)]
    rows += [{"measured": "exact", "variance": 0.0, "relative_variance": 0.0, "bias_square": 0.0}]
    rows += [{"measured": f"{LONG}_biased", "bias_square": 0.5, "unbiased": False}]
    for task in ("vae_bernoulli", "vae_categorical"):
        measured(sweep, *rows, task=task)
    return panels(records.load_basket(sweep))


def many(number):
    rows = [
        {"task": "vae_bernoulli", "data": "digits", "label": f"{LONG}_{k}", "mean": 100.0 + k} for k in range(number)
    ]
    frame = pd.DataFrame(rows).assign(low=lambda rows: rows["mean"] - 1, high=lambda rows: rows["mean"] + 1)
    frame.loc[3, ["mean", "low", "high"]] = math.nan
    return frame


FIGURES = {
    "learning curves": lambda frame, _: curves.learning_curves(curves.chosen(frame)),
    "gradient variance": lambda frame, _: curves.gradient_variance(curves.chosen(frame)),
    "temperatures": lambda frame, _: curves.temperatures(curves.chosen(frame)),
    "sensitivity": lambda frame, _: sensitivity.figure(sensitivity.sensitivity(frame)),
    "one task": lambda frame, _: curves.learning_curves(curves.chosen(frame[frame["task"] == "vae_bernoulli"])),
    "ranked": lambda frame, _: ranked.ranked(many(33), "negative test bound [nats]"),
    "ranked variances": lambda frame, _: ranked.ranked(ranked.variances(curves.chosen(frame)), "variance", log=True),
    "over training": lambda _, found: variance.over_training(found),
    "bias and variance": lambda _, found: variance.bias_variance(found),
    "bias and variance of one": lambda _, found: variance.bias_variance(found[:1]),
    "costs": lambda _, found: variance.ranking(found),
}


def boxes(figure):
    """The boxes, in pixels, of what is read: all texts and legends; of tick labels alone."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = {}
    ticks = []
    for number, axes in enumerate(figure.axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = [
                tick for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()] if low <= tick.get_loc() <= high
            ]
            labels = [tick.label1 for tick in shown if tick.label1.get_visible() and tick.label1.get_text().strip()]
            ticks += [(label.get_text(), label.get_window_extent(renderer)) for label in labels]
            if axis.label.get_text():
                texts[f"{axis.label.get_text()} {number}"] = axis.label.get_window_extent(renderer)
        for text in (axes.title, axes._left_title, axes._right_title, *axes.texts):
            if text.get_text():
                texts[f"{text.get_text()} {number}"] = text.get_window_extent(renderer)
    for legend in figure.legends:
        texts["legend"] = legend.get_window_extent(renderer)
    return {**texts, **{f"tick {text}": box for text, box in ticks}}, ticks


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_or_printed_over_and_every_entry_of_a_legend_is_drawn(frame, measurements, name):
    figure = FIGURES[name](frame, measurements)
    assert entries_without_data(figure) == []
    texts, ticks = boxes(figure)
    width, height = figure.bbox.width, figure.bbox.height
    outside = {
        text: (box.x0, box.y0, box.x1 - width, box.y1 - height)
        for text, box in texts.items()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    }
    assert outside == {} and len(ticks) > 4
    over = [(one, two) for (one, a), (two, b) in combinations(ticks, 2) if a.padded(-1).overlaps(b.padded(-1))]
    assert over == []
    if "legend" in texts:
        panels = [axes.get_window_extent() for axes in figure.axes]
        assert not any(texts["legend"].padded(-1).overlaps(panel) for panel in panels)
        assert all(panel.width > 60 and panel.height > 60 for panel in panels[: 1 if "bias" in name else None])


def entries_without_data(figure):
    lines = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata())]
    drawn = {(line.get_color(), line.get_marker()) for line in lines}
    pairs = [pair for legend in figure.legends for pair in zip(legend.get_lines(), legend.get_texts(), strict=True)]
    marks = {marker for _, marker in drawn}
    return [
        text.get_text()
        for line, text in pairs
        if (line.get_color(), line.get_marker()) not in drawn
        and not (text.get_text() in ("runs diverged", "chosen") and line.get_marker() in marks)
    ]


def test_a_legend_has_no_mark_that_nothing_has(frame):
    finished = frame[(frame["optimizer.lr"] < 0.1) & (frame["estimator"] == "nvil")]
    finished.attrs = frame.attrs
    table = sensitivity.sensitivity(finished)
    labels = [text.get_text() for text in sensitivity.figure(table).legends[0].get_texts()]
    assert labels == ["NVIL", "chosen"]
    lost = table.assign(chosen=False, diverged=1)
    assert [text.get_text() for text in sensitivity.figure(lost).legends[0].get_texts()] == ["NVIL", "runs diverged"]


def test_many_estimators_are_ranked_dots_and_a_few_are_curves(tmp_path):
    for number in range(ranked.CURVES + 1):
        write_run(tmp_path / "sweep", make_config(f"mine_{number}"), test=-100.0 - number, steps=2)
        if number < 2:
            write_run(tmp_path / "sweep", make_config(f"mine_{number}", "vae_categorical"), steps=2)
    frame = records.load(tmp_path / "sweep")
    summary = summarise(frame)
    written = {file.stem for file in command._write_figures(frame, summary, tmp_path)}
    assert {"ranked", "ranked_gradient_variance", "learning_curves", "gradient_variance"} <= written
    crowd = summary[summary["task"] == "vae_bernoulli"]
    (axes,) = ranked.ranked(crowd, "bound").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"mine_{k}" for k in range(ranked.CURVES + 1)]
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() != "None"] == [
        100.0 + k for k in range(ranked.CURVES + 1)
    ]
