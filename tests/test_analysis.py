"""Selection and summaries with answers that can be worked out by hand, tables, figures, and the command line."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import latex
import numpy as np
import pandas as pd
import pytest
from fake_runs import make_config, write_run

import estimators
from analysis import command
from analysis.figures import captions
from analysis.figures import curves as figures
from analysis.figures.style import COLORS, KNOWN, LOOKS, OTHER, look, looks
from analysis.records import IMAGES, load
from analysis.statistics.summary import ProtocolsDiffer, as_text, curve, final_rows, select, summarise
from analysis.tables import summary as tables
from training.config.schema import estimator_named

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def sweep(tmp_path):
    return tmp_path / "runs" / "sweep"


def only_row(sweep):
    summary = summarise(load(sweep))
    assert len(summary) == 1
    return summary.iloc[0]


# --- selection and summary -------------------------------------------------------------------------------------------


def test_selection_is_on_validation_and_the_report_on_test(sweep):
    for seed in range(2):
        write_run(sweep, make_config(seed=seed, optimizer__lr=0.1), valid=-100.0, test=-111.0)
        write_run(sweep, make_config(seed=seed, optimizer__lr=0.2), valid=-101.0, test=-90.0)  # the optimum on test
    row = only_row(sweep)
    assert (row["setting"], row["settings"], row["mean"], row["valid"]) == ("optimizer.lr=0.1", 2, 111.0, 100.0)


def test_selection_is_by_the_mean_over_seeds_not_by_the_best_seed(sweep):
    for lr, valids in ((0.1, (-90.0, -130.0)), (0.2, (-105.0, -105.0))):
        for seed, valid in enumerate(valids):
            write_run(sweep, make_config(seed=seed, optimizer__lr=lr), valid=valid, test=valid)
    assert only_row(sweep)["setting"] == "optimizer.lr=0.2"


@pytest.mark.parametrize("lost", ["diverged", "failed", "running"])
def test_a_setting_does_not_win_by_losing_its_bad_seeds(sweep, lost):
    for seed in range(3):
        status = lost if seed == 2 else "finished"
        write_run(sweep, make_config(seed=seed, optimizer__lr=0.1), valid=-90.0, test=-90.0, status=status)
        write_run(sweep, make_config(seed=seed, optimizer__lr=0.2), valid=-100.0, test=-100.0)
    row = only_row(sweep)
    assert (row["setting"], row["mean"], row["n"]) == ("optimizer.lr=0.2", 100.0, 3)
    word = "unfinished" if lost == "running" else lost
    assert row[word] == 0 and row[f"cell_{word}"] == 1


def test_lost_runs_stand_beside_the_mean(sweep):
    for seed, status in enumerate(["finished", "diverged", "failed", "running", "finished"]):
        write_run(sweep, make_config(seed=seed), test=-100.0 - seed, status=status)
    row = only_row(sweep)
    assert (row["mean"], row["n"], row["diverged"], row["failed"], row["unfinished"]) == (102.0, 2, 1, 1, 1)
    assert "2      1 diverged, 1 failed, 1 unfinished" in tables.to_text(summarise(load(sweep)))


def test_a_cell_without_a_finished_run_has_a_row(sweep):
    write_run(sweep, make_config("rloo"))
    write_run(sweep, make_config("reinforce"), status="diverged")
    summary = summarise(load(sweep)).set_index("estimator")
    assert summary.index.tolist() == ["rloo", "reinforce"]
    assert np.isnan(summary.loc["reinforce", "mean"]) and summary.loc["reinforce", "diverged"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_finished_run_without_a_finite_bound_counts_as_failed(sweep, bad):
    write_run(sweep, make_config(seed=0), test=bad)
    write_run(sweep, make_config(seed=1), test=-100.0)
    row = only_row(sweep)
    assert (row["mean"], row["n"], row["failed"]) == (100.0, 1, 1)


def test_ties_of_settings_are_broken_the_same_way_in_any_order(sweep):
    for lr in (0.2, 0.1):
        write_run(sweep, make_config(optimizer__lr=lr))
    frame = load(sweep)
    for shuffled in (frame, frame.iloc[::-1], frame.sample(frac=1, random_state=0)):
        assert select(final_rows(shuffled))["setting"].tolist() == ["optimizer.lr=0.1"]


def test_unequal_seeds_each_mean_has_its_own_n(sweep):
    for estimator, tests in (("rloo", [-100.0]), ("nvil", [-101.0, -102.0, -103.0])):
        for seed, test in enumerate(tests):
            write_run(sweep, make_config(estimator, seed=seed), test=test)
    summary = summarise(load(sweep)).set_index("estimator")
    assert summary["n"].to_dict() == {"rloo": 1, "nvil": 3}
    assert summary["mean"].to_dict() == {"rloo": 100.0, "nvil": 102.0}
    assert np.isnan(summary.loc["rloo", "low"])


def test_a_run_in_two_sweeps_counts_once(sweep):
    write_run(sweep, make_config(seed=0), test=-100.0)
    write_run(sweep.parent / "another", make_config(seed=0), test=-100.0, status="running")
    write_run(sweep, make_config(seed=1), test=-102.0)
    row = only_row(sweep.parent)
    assert (row["mean"], row["n"], row["unfinished"]) == (101.0, 2, 0)


def test_neither_metrics_nor_unscientific_settings_are_hyperparameters(sweep):
    for seed in range(2):
        config = make_config(seed=seed, device=f"cuda:{seed}", runs_dir=str(seed), data__root=str(seed))
        write_run(sweep, config, row=lambda step, seed=seed: {"temperature": seed, "valid_accuracy": seed}, steps=1)
    assert (only_row(sweep)["settings"], only_row(sweep)["setting"]) == (1, "")


def test_different_protocols_are_refused_with_field_values_and_advice(sweep):
    write_run(sweep, make_config("nvil"), protocol={"prior": "learned", "test_samples": 100})
    write_run(sweep, make_config("rloo"))
    with pytest.raises(ProtocolsDiffer) as refused:
        summarise(load(sweep))
    sentence = str(refused.value)
    assert "vae_bernoulli on binarized_mnist" in sentence
    assert "prior is learned (1 runs) and uniform (1 runs)" in sentence
    assert "test_samples is 100 (1 runs) and 1000 (1 runs)" in sentence
    assert "--where protocol.prior=learned" in sentence
    assert len(summarise(command.where(load(sweep), ["protocol.prior=learned"]))) == 1


def test_protocols_may_differ_between_tasks(sweep):
    write_run(sweep, make_config(task="vae_bernoulli"))
    write_run(sweep, make_config(task="vae_categorical"), protocol={"prior": "learned"})
    assert len(summarise(load(sweep))) == 2


def test_grey_targets_are_named_so_and_get_no_published_number(sweep):
    write_run(sweep, make_config("gumbel_softmax"), pseudo=True, protocol={"is_bound": False})
    summary = summarise(load(sweep))
    assert summary["metric"].tolist() == ["pseudo_bound"] and summary["published"].isna().all()
    assert "not a bound" in tables.to_text(summary)


def test_curve_keeps_steps_that_every_run_has(sweep):
    write_run(sweep, make_config(seed=0), steps=4, row=lambda step: {"valid_elbo": -step})
    write_run(sweep, make_config(seed=1), steps=2, row=lambda step: {"valid_elbo": -2.0 * step})
    steps, values = curve(load(sweep), "valid_elbo")
    assert steps.tolist() == [500, 1000]
    assert sorted(values.tolist()) == [[-1000.0, -2000.0], [-500.0, -1000.0]]


def test_curve_against_evaluations_and_seconds(sweep):
    for seed, slow in enumerate((1.0, 3.0)):
        write_run(sweep, make_config(seed=seed), row=lambda step, slow=slow: {"seconds": slow * step})
    frame = load(sweep)
    assert curve(frame, "valid_elbo", "loss_evaluations")[0].tolist() == [25000, 50000, 75000, 100000]
    seconds, values = curve(frame, "valid_elbo", "seconds")
    assert seconds.tolist() == [500, 1000, 1500, 2000] and values.shape == (2, 4)
    for x, label in figures.X_LABELS.items():
        assert figures.learning_curves(frame, x).axes[0].get_xlabel() == label
    packs = frame.assign(pack_replicas=4)
    assert figures.learning_curves(packs, "seconds").axes[0].get_xlabel().endswith("of packs of 4 runs")
    assert figures.learning_curves(frame.drop(columns="seconds"), "seconds") is None


def test_text_of_values():
    values = [1, 1.0, 1e-4, True, np.float64(0.5), None, float("nan"), pd.NA, "x", [1, 2]]
    assert list(map(as_text, values)) == ["1", "1", "0.0001", "true", "0.5", "none", "none", "none", "x", "[1, 2]"]


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def summary(sweep):
    for estimator, tests in {
        "gumbel_softmax": [-105.0, -106.0, -107.0],
        "st_gumbel_softmax": [-107.0, -108.0, -109.0],  # 108 +- 2.48 overlaps 106 +- 2.48
        "straight_through": [-120.0, -120.0, -120.0],
    }.items():
        for seed, test in enumerate(tests):
            write_run(sweep, make_config(estimator, seed=seed), test=test)
    write_run(sweep, make_config("straight_through", seed=3), status="diverged")
    return summarise(load(sweep))


def test_best_and_ties(summary):
    assert tables.ties(summary) == ["best", "tie", ""]
    text = tables.to_text(summary)
    assert "106.00 ± 2.48 *" in text and "108.00 ± 2.48 ~" in text and "120.00 ± 0.00  " in text
    assert "| **106.00 ± 2.48** |" in tables.to_markdown(summary)
    assert r"\textbf{106.00 $\pm$ 2.48}" in tables.to_latex(summary)


def test_all_formats_agree_on_the_numbers(summary):
    csv = pd.read_csv(io.StringIO(tables.to_csv(summary)))
    markdown = [line.split("|") for line in tables.to_markdown(summary).splitlines() if line.startswith("| ")][2:]
    latex = [line.split("&") for line in tables.to_latex(summary).splitlines() if " & " in line][1:]
    rows = tables.cells(summary, tables.TEXT)[1:]
    assert len(csv) == len(rows) == len(latex) == len(markdown) == 3
    for number, row in csv.iterrows():
        expected = [f"{row['mean']:.2f}", f"{row['high'] - row['mean']:.2f}", str(row["n"]), f"{row['published']:.1f}"]
        for cells in (rows[number], latex[number], markdown[number]):
            line = " ".join(cells)
            assert all(value in re.findall(r"\d+\.?\d*", line) for value in expected)


def test_caption_states_the_protocol(summary):
    for text in (tables.to_text(summary), tables.to_markdown(summary), tables.to_latex(summary).replace("\\_", "_")):
        for words in (
            "binarized_mnist",
            "prior uniform",
            "kl analytic",
            "1000 samples",
            "steps 1000",
            "hard samples true",
        ):
            assert words in re.sub(r"\s+", " ", text)


def test_latex_compiles(summary):
    latex.check(tables.to_latex(summary))


def test_narrow_terminals_get_blocks(summary):
    assert max(map(len, tables.to_text(summary, width=30).split("\n\n")[1].splitlines())) <= 30


# --- figures ---------------------------------------------------------------------------------------------------------


def test_looks_are_distinct_in_colour_and_in_grey():
    """Colour is the family, marker the method; so also with estimators that nobody has heard of."""
    for key in (lambda look: (look.color, look.marker), lambda look: (look.marker, look.linestyle)):
        assert len(set(map(key, LOOKS.values()))) == len(LOOKS)
    assert look("unheard_of") == look("unheard_of") and look("unheard_of").label == "unheard_of"
    unheard = [f"unheard_of_{number}" for number in range(40)]
    variants = [f"nvil, task.latents={latents}" for latents in (10, 20, 50)]
    figure = looks([*unheard, *variants, *LOOKS], {"unheard_of_7": "relaxation", "unheard_of_8": "of my own"})
    assert len(figure) == 78 == len({(each.marker, each.linestyle) for each in figure.values()})
    assert {name: figure[name] for name in LOOKS} == LOOKS
    assert figure["unheard_of_7"].color == LOOKS["gumbel_softmax"].color
    assert {figure[name].color for name in unheard if name != "unheard_of_7"} == {OTHER}
    assert {figure[name].color for name in variants} == {LOOKS["nvil"].color}
    few = looks([*variants, "nvil", "rloo"]).values()
    assert len({each.marker for each in few}) == 2 and len({(each.marker, each.linestyle) for each in few}) == 5
    many = looks([f"unheard_of_{number}" for number in range(80)])
    assert len(set(map(lambda each: (each.color, each.marker, each.linestyle), many.values()))) == 80


def test_the_family_comes_from_the_class_by_way_of_the_record(tmp_path):
    """For a user's own estimator; a record that does not say it is of a method that is known. It is no setting."""
    options = {estimator.stem for estimator in (ROOT / "conf" / "estimator").glob("*.yaml")}
    for name in options & set(KNOWN):
        assert KNOWN[name][1] == getattr(estimators, estimator_named(name)).family, name
    own = make_config("mine")
    own["estimator"]["_target_"] = f"{__name__}.Mine"
    for config in (own, make_config("nvil")):
        write_run(tmp_path, config, steps=2)
    frame = load(tmp_path)
    assert frame.attrs["roles"]["family"] == "record"
    said = dict(zip(frame["estimator"], frame["family"], strict=True))
    assert said.pop("mine") == "control variate" and not isinstance(said.pop("nvil"), str) and not said
    figure = figures.learning_curves(frame)
    lines = {text.get_text(): line for text, line in _legend(figure)}
    assert (
        lines["mine"].get_color() == COLORS["control variate"] and lines["NVIL"].get_color() == COLORS["score function"]
    )


def _legend(figure):
    (legend,) = figure.legends
    return zip(legend.get_texts(), legend.get_lines(), strict=True)


class Mine(estimators.REINFORCE):
    family = "control variate"


def test_images_are_of_the_first_finished_seed_and_damage_is_named(sweep):
    write_run(sweep, make_config("rloo", seed=0), status="diverged", images=True)
    first = write_run(sweep, make_config("rloo", seed=1), images=True)
    write_run(sweep, make_config("rloo", seed=2), images=True)
    broken = write_run(sweep, make_config("nvil"), images=True)
    (broken / IMAGES).write_bytes(b"garbage")
    with pytest.warns(UserWarning, match=re.escape(str(broken / IMAGES))):
        images = figures.read_images(figures.chosen(load(sweep)))
    assert list(images) == ["rloo"]
    np.testing.assert_array_equal(images["rloo"]["samples"], np.load(first / IMAGES)["samples"])


def test_an_unfinished_sweep_has_curves(sweep, tmp_path):
    write_run(sweep, status="running", steps=3)
    figure = figures.learning_curves(figures.chosen(load(sweep)))
    for file in figures.save(figure, tmp_path / "curves.v1"):
        assert file.stat().st_size > 5000 and file.name.startswith("curves.v1.")


def test_analysis_imports_no_training_code():
    code = "import sys, analysis.command, analysis.figures.curves; print(*{name.split('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "tasks", "estimators", "training", "hydra"} & set(modules.split())
    code = "import sys, analysis.command, analysis.figures.curves; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- the command line ------------------------------------------------------------------------------------------------


def test_report_end_to_end(sweep):
    for task in ("vae_bernoulli", "vae_categorical"):
        for estimator in ("gumbel_softmax", "nvil"):
            for seed in range(2):
                write_run(sweep, make_config(estimator, task, seed=seed), test=-105.0 - seed, images=True)
    write_run(sweep, make_config("nvil", seed=7), status="failed", steps=1)
    diverged = write_run(sweep, make_config("nvil", seed=8), status="diverged")
    damaged = write_run(sweep, make_config("nvil", seed=9))
    (damaged / "result.json").write_text("")
    done = subprocess.run([sys.executable, "-m", "analysis", str(sweep)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"damaged, left out: {damaged / 'result.json'}" in done.stdout
    assert "RuntimeError: out of memory" in done.stdout and f"diverged: {diverged.name} (at step 1000)" in done.stdout
    assert "1 diverged, 1 failed" in done.stdout and "105.50 ± 6.35" in done.stdout
    pictures = ["learning_curves", "learning_curves_seconds", "gradient_variance"]
    pictures += [
        f"{kind}_{task}" for kind in ("reconstructions", "samples") for task in ("vae_bernoulli", "vae_categorical")
    ]
    expected = {f"{name}.{kind}" for name in pictures for kind in ("pdf", "png")}
    expected |= {"table.md", "table.tex", "table.csv", "frame.parquet"}
    expected |= {"comparisons.md", "pairs.csv", "across_tasks.csv", "figures.md"}
    written = {file.name: file.stat().st_size for file in (sweep / "report").iterdir()}
    assert set(written) == expected
    assert all(size > 5000 for name, size in written.items() if name.endswith((".pdf", ".png")))
    about = (sweep / "report" / "figures.md").read_text()
    assert all(f"## {name}\n\n{captions.caption(name)}\n" in about for name in pictures)
    assert about.count("- Trained: optimizer adam, learning rate 0.001") == 2
    assert len(pd.read_parquet(sweep / "report" / "frame.parquet")) == len(load_quietly(sweep))


def load_quietly(path):
    with pytest.warns(UserWarning):
        return load(path)


def test_report_refuses_with_one_sentence(sweep, tmp_path, capsys):
    def refusal(*arguments):
        code = command.main([str(argument) for argument in arguments])
        sentence = capsys.readouterr().err
        assert sentence.count("\n") == 1
        return code, sentence

    assert refusal(tmp_path / "nowhere") == (2, f"no such path: {tmp_path / 'nowhere'}\n")
    code, sentence = refusal(tmp_path)
    assert code == 2 and "no runs at" in sentence
    running = write_run(sweep, make_config("rloo"), status="running")
    code, sentence = refusal(sweep, "--output", tmp_path / "elsewhere")
    assert code == 2 and "no run is finished" in sentence
    assert (tmp_path / "elsewhere" / "learning_curves.pdf").exists() and not (sweep / "report").exists()
    assert command.main([str(sweep)]) == 2 and f"running: {running.name}" in capsys.readouterr().out
    write_run(sweep, make_config("nvil"))
    write_run(sweep, make_config("darn"), protocol={"kl": "sampled"})
    code, sentence = refusal(sweep)
    assert code == 1 and "kl is analytic (1 runs) and sampled (1 runs)" in sentence
    assert refusal(sweep, "--where", "nonsense=1")[0] == 2
    assert command.main([str(sweep), "--where", "protocol.kl=sampled"]) == 0


def test_a_sweep_of_damaged_runs_only(sweep, capsys):
    path = write_run(sweep)
    (path / "result.json").write_text("{}")
    assert command.main([str(sweep)]) == 2
    assert "no readable run" in capsys.readouterr().err


def test_the_variance_figure_says_which_gradients_are_rescaled(sweep):
    for scaled in (True, False):
        write_run(
            sweep / str(scaled), make_config(seed=0, estimator__variance_normalisation=scaled), valid=-1.0, test=-1.0
        )
        figure = figures.gradient_variance(load(sweep / str(scaled)))
        assert ("not comparable" in figure.axes[0].get_title()) == scaled
