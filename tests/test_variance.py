"""Tables and figures of gradient variance at the same point, from rows whose summary can be computed by hand."""

import math

import pandas as pd
import pytest
from fake_runs import make_config, seal_again, write_run

from analysis import command, records
from analysis.figures import variance as variance_figures
from analysis.page import parts
from analysis.statistics import variance

ROW = {"objective": "mean", "unbiased": True, "evaluations": 2, "draws": 100, "variance_error": 0.1, "cosine": 0.9}
ROW |= {"signal_to_noise": 0.5, "relative_variance": 4.0, "bias_square": 0.0, "bias_square_error": 0.01}
ROW |= {"cosine_error": 0.01, "reference": "exact", "reference_error": 0.0, "examples": 10, "parameters": 5}
ROW |= {"seconds_low": 0.001, "seconds": 0.002, "seconds_high": 0.003, "variance": 1.0}
BASKET = {"name": "default", "reference_draws": 100}


def measured(sweep, *rows, **settings):
    """A run that measured ``rows`` at the steps 1 and 1000."""
    path = write_run(sweep, make_config("rloo", basket=BASKET, **settings))
    record = records.RunRecord(path)
    for step in (1, 1000):
        for row in rows:
            record.append({"step": step, **ROW, "method": row["measured"], **row}, records.BASKET)
    seal_again(path)
    return path


def panel(tmp_path):
    (found,) = variance.panels(records.load_basket(tmp_path))
    return found


def test_runs_that_differ_in_the_seed_are_averaged(tmp_path):
    """Means of values, and half the root of the sum of squared errors: 0.05 and 0.12 from 0.06, 0.08 and 0.1, 0.22."""
    for seed, (value, error, bias) in enumerate([(1.0, 0.06, 0.04), (3.0, 0.08, 0.14)]):
        numbers = {"variance": value, "variance_error": error, "bias_square": bias, "bias_square_error": 0.01}
        measured(tmp_path / "sweep", {"measured": "rloo", **numbers}, seed=seed)
    found = panel(tmp_path)
    (row,) = found.at_the_end().to_dict("records")
    assert (found.runs, row["runs"], row["step"], row["variance"]) == (2, 2, 1000, 2.0)
    assert (row["variance_low"], row["variance_high"]) == (pytest.approx(1.9), pytest.approx(2.1))
    assert (row["relative_low"], row["relative_high"]) == (pytest.approx(3.8), pytest.approx(4.2))
    error = 2 * math.hypot(0.01, 0.01) / 2
    ends = [math.sqrt(0.09 + sign * error) for sign in (-1, 0, 1)]
    assert [row[name] for name in ("bias_low", "bias", "bias_high")] == pytest.approx(ends)
    assert found.reference == "the enumerated gradient"


def test_a_bias_within_its_interval_is_none(tmp_path):
    rows = [{"measured": "rloo", "bias_square": 0.019}, {"measured": "reinmax", "bias_square": 0.021}]
    rows += [{"measured": "exact", "variance": 0.0, "bias_square": 1e-14, "bias_square_error": 0.0}]
    rows += [{"measured": "darn", "bias_square": None, "bias_square_error": None, "cosine": None}]
    measured(tmp_path / "sweep", *rows)
    text = {row["measured"]: variance.bias_text(row) for row in panel(tmp_path).at_the_end().to_dict("records")}
    assert text["rloo"] == "~0 (< 0.2)" and text["exact"] == "0" and text["darn"] == "not measured"
    assert text["reinmax"] == "0.145 (0.0316 .. 0.202)"


def test_settings_make_panels_and_other_objectives_are_left_out(tmp_path):
    for lr in (1e-3, 1e-2):
        measured(
            tmp_path / "sweep", {"measured": "rloo"}, {"measured": "vimco", "objective": "bound"}, optimizer__lr=lr
        )
    found = variance.panels(records.load_basket(tmp_path))
    assert len(found) == len({each.name for each in found}) == 2
    assert all(set(each.rows["measured"]) == {"rloo"} for each in found)
    assert variance.panels(pd.DataFrame()) == [] == list(variance_figures.write([], tmp_path))


def test_a_run_under_way_shows_its_last_whole_step(tmp_path):
    path = measured(tmp_path / "sweep", {"measured": "rloo"}, {"measured": "nvil"})
    (path / records.RESULT).unlink()  # which seals the basket
    records.RunRecord(path).append({"step": 2000, **ROW, "method": "rloo", "measured": "rloo"}, records.BASKET)
    assert panel(tmp_path).at_the_end()["step"].unique().tolist() == [1000]


def test_the_command_writes_tables_and_figures(tmp_path, capsys):
    rows = [
        {"measured": "rloo"},
        {"measured": "rloo_8", "method": "rloo", "evaluations": 8, "variance": 0.5, "relative_variance": 2.0},
    ]
    rows += [{"measured": "reinmax", "unbiased": False, "bias_square": 0.5, "variance": 1.5, "relative_variance": 6.0}]
    measured(tmp_path / "sweep", *rows)
    assert command.main([str(tmp_path / "sweep")]) == 0
    report = tmp_path / "sweep" / "report"
    names = ["variance_over_training", *(f"{what}_vae_bernoulli_binarized_mnist" for what in ("bias_variance",))]
    for name in [*names, "variance_ranking_vae_bernoulli_binarized_mnist"]:
        assert all((report / f"{name}.{kind}").stat().st_size > 5000 for kind in ("pdf", "png"))
    lines = [line for line in (report / "variance.md").read_text().splitlines() if line.startswith("| R")]
    assert [line.split(" |")[0] for line in lines] == ["| RLOO", "| ReinMax \\*", "| RLOO (rloo_8)"]
    assert "0.00 ± 0.20" in lines[0] and "| 16 |" in lines[2] and "2 (1 .. 3)" in lines[0]
    table = pd.read_csv(report / "variance.csv")
    assert len(table) == 6 and table["trainer"].unique() == ["rloo"]


def test_without_a_basket_nothing_is_added(tmp_path):
    write_run(tmp_path / "sweep", make_config("rloo"))
    assert records.load_basket(tmp_path).empty
    assert command.main([str(tmp_path / "sweep")]) == 0
    assert not list((tmp_path / "sweep" / "report").glob("variance*"))


def test_the_page_has_the_table_of_what_was_measured(tmp_path):
    measured(tmp_path / "sweep", {"measured": "rloo"}, {"measured": "nvil", "relative_variance": 5.0})
    write_run(tmp_path / "sweep", make_config("arm", "vae_categorical"))
    ((where, (table,)),) = parts.variance(records.load(tmp_path)).items()
    assert where == ("vae_bernoulli", "binarized_mnist")
    assert [row[0] for row in table["rows"]] == ["RLOO", "NVIL"] and table["rows"][0][1] == "0.00 ± 0.20"
    assert table["header"][:2] == ["estimator", "log variance"] and "two standard errors" in table["notes"][0]
