"""The interactive report without a browser: its numbers, its noise, what it refuses, and that no text escapes."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from fake_runs import make_config, write_run

from analysis import report
from analysis.figures.style import LOOKS
from analysis.page import colors
from analysis.page.curves import POINTS
from analysis.page.data import page_data
from analysis.records import load
from analysis.statistics.intervals import interval, student_half_width
from analysis.statistics.summary import curve, final_rows, ranked, select, summarise
from analysis.tables import summary as tables
from estimators import noise
from training.documents.draws import draws

NASTY = "</script><script>alert(1)</script><!-- \"quoted\" & 'ü' \u2028"


@pytest.fixture
def sweep(tmp_path):
    """Two estimators with two learning rates and three seeds, and every kind of loss."""
    sweep = tmp_path / "runs" / "sweep"
    for estimator, offset in (("gumbel_softmax", 0.0), ("nvil", 5.0)):
        for lr in (0.001, 0.01):
            for seed in range(3):
                bound = -100.0 - offset - seed - 100 * lr
                row = {"valid_elbo": bound - 3, "gradient_variance": (1 + seed) * lr}
                config = make_config(estimator, seed=seed, optimizer__lr=lr)
                write_run(sweep, config, valid=bound, test=bound - 1, steps=8, row=lambda step, row=row: row)
    write_run(sweep, make_config("nvil", seed=7), status="diverged")
    write_run(sweep, make_config("rloo", seed=7), status="failed")
    return sweep


def data_of(sweep):
    return page_data(load(sweep), sweep / "report")


def test_rows_are_the_summary_and_further_settings(sweep):
    data = data_of(sweep)
    (comparison,) = data["comparisons"]
    summary = summarise(load(sweep))
    chosen = [row for row in comparison["rows"] if row["place"] == 0]
    assert comparison["header"] == tables.cells(summary, tables.TEXT)[0]
    shown = [
        [cell.removesuffix(" *").removesuffix(" ~") for cell in line] for line in tables.cells(summary, tables.TEXT)
    ]
    assert [row["cells"] for row in chosen] == shown[1:]
    assert [row["mark"] for row in chosen] == tables.ties(summary)
    other = next(row for row in comparison["rows"] if row["place"] == 1 and row["estimator"] == "nvil")
    mean, _, high = interval([100 + 5 + seed + 0.1 + 1 for seed in range(3)])
    assert other["values"] == {"optimizer.lr": "0.001"} and other["cells"][1] == f"{mean:.2f} ± {high - mean:.2f}"
    assert len(comparison["rows"]) == 5 and comparison["filters"][0]["values"] == ["0.001", "0.01"]


def test_the_first_place_is_the_choice(sweep):
    runs = final_rows(load(sweep))
    placed, chosen = ranked(runs), select(runs)
    first = placed[(placed["place"] == 0) & (placed["estimator"] != "rloo")]
    assert set(first["run"]) == set(chosen.loc[chosen["setting"].notna(), "run"])
    # The setting that lost a run comes after the one that lost none, whatever its bound.
    assert first.loc[first["estimator"] == "nvil", "setting"].unique().tolist() == ["optimizer.lr=0.01"]


@pytest.mark.parametrize("metric", ["valid_elbo", "gradient_variance"])
def test_curves_are_those_of_the_statistics(sweep, metric):
    frame = load(sweep)
    (comparison,) = data_of(sweep)["comparisons"]
    row = next(row for row in comparison["rows"] if row["estimator"] == "nvil" and row["place"] == 1)
    assert row["setting"] == "optimizer.lr=0.001"
    runs = frame[(frame["estimator"] == "nvil") & (frame["optimizer.lr"] == 0.001) & (frame["status"] == "finished")]
    steps, values = curve(runs, metric)
    values = np.log(values) if metric == "gradient_variance" else -values
    mean, half = values.mean(axis=0), student_half_width(values)
    back = np.exp if metric == "gradient_variance" else np.asarray
    drawn = row["curves"][metric]["mean"]
    assert comparison["grids"][drawn["grid"]]["step"] == steps.tolist() and drawn["n"] == 3
    for name, expected in (("values", mean), ("low", mean - half), ("high", mean + half)):
        np.testing.assert_allclose(drawn[name], back(expected), rtol=1e-5)
    about = next(each["about"] for each in comparison["metrics"] if each["name"] == metric)
    assert about.startswith("Variance of the encoder's gradient" if metric == "gradient_variance" else "")
    (other,) = row["curves"][metric]["others"].values()  # the diverged run, alone
    assert len(other["values"]) == 3
    assert len(row["curves"][metric]["runs"]) == 3


def test_long_curves_are_thinned_to_exact_points(tmp_path):
    write_run(tmp_path, make_config(steps=5000), steps=500, row=lambda step: {"valid_elbo": -float(step)})
    (comparison,) = page_data(load(tmp_path), tmp_path)["comparisons"]
    drawn = comparison["rows"][0]["curves"]["valid_elbo"]["mean"]
    grid = comparison["grids"][drawn["grid"]]
    assert len(grid["step"]) == POINTS and grid["steps"] == 500 and (grid["step"][0], grid["step"][-1]) == (10, 5000)
    assert drawn["values"] == [float(step) for step in grid["step"]] and "low" not in drawn
    assert grid["loss_evaluations"] == [100.0 * step for step in grid["step"]]


def test_lost_runs_have_their_reasons_and_links_lead_to_the_runs(sweep):
    runs = {run["run"]: run for run in data_of(sweep)["runs"]}
    assert len(runs) == 14
    for name, run in runs.items():
        assert (sweep / "report" / unquote(run["href"])).resolve() == (sweep / name).resolve()
    reasons = {run["status"]: run["reason"] for run in runs.values()}
    assert reasons["failed"] == "RuntimeError: out of memory" and "step" in reasons["diverged"]
    assert "Traceback" in next(run["details"] for run in runs.values() if run["status"] == "failed")


def test_no_text_ends_a_script_and_all_of_it_arrives(tmp_path):
    sweep = tmp_path / "a <b> & {{style}}"
    path = write_run(sweep, make_config(NASTY), status="failed")
    (path / "status.json").write_text(json.dumps({"status": "failed", "error": NASTY}))
    page = report.page(load(sweep), sweep)
    assert "alert(1)</script>" not in page and NASTY not in page and "<b>" not in page.partition("<script")[0]
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    (run,) = json.loads(embedded)["runs"]
    assert run["reason"] == run["reason"].strip() and run["estimator"] == NASTY and run["sweep"] == sweep.name
    assert page.count("<script") == page.count("</script>") == 4


def test_every_method_has_its_own_colour_and_line(tmp_path):
    for estimator in LOOKS:
        write_run(tmp_path, make_config(estimator), steps=1)
    looks = page_data(load(tmp_path), tmp_path)["looks"]
    assert list(looks) == list(LOOKS)
    for theme, background in (("light", colors.LIGHT), ("dark", colors.DARK)):
        shown = [look["colors"][theme] for look in looks.values()]
        assert min(colors.distance(one, two) for one, two in combinations(shown, 2)) > 8  # 2.3 is just seen
        assert all(colors.contrast(color, background) > 2 for color in shown)
    assert (
        colors.shades({"rloo": LOOKS["rloo"]}, colors.LIGHT)["rloo"] == looks["rloo"]["colors"]["light"]
    )  # everywhere
    firsts = {look.color: name for name, look in reversed(LOOKS.items())}
    assert all(looks[name]["colors"]["light"] == color for color, name in firsts.items())
    assert len({tuple(look[key] for key in ("symbol", "size", "dash")) for look in looks.values()}) == len(LOOKS)


def test_the_noise_is_the_librarys_own():
    file = json.loads((report.PAGE / "gumbel_noise.json").read_text())
    assert file == draws(), "run: make noise"
    values = np.array(file["noise"])
    assert values.shape == (1000, 10)
    # Mean 0.5772 and variance 1.6449 of a standard Gumbel; 4 standard errors of 10 000 draws.
    assert abs(values.mean() - 0.5772) < 0.052 and abs(values.var() - 1.6449) < 0.14
    before = torch.random.get_rng_state()
    draws()
    assert torch.equal(before, torch.random.get_rng_state()) and noise._source.get() is None


def test_the_command(sweep, tmp_path, capsys):
    assert report.main([str(sweep)]) == 0
    assert (sweep / "report" / "report.html").stat().st_size > 1e6
    assert f"wrote {sweep / 'report' / 'report.html'}" in capsys.readouterr().out
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"no such path: {tmp_path / 'nowhere'}\n"
    write_run(sweep, make_config("darn"), protocol={"kl": "sampled"})
    assert report.main([str(sweep), "--output", str(tmp_path / "one.html")]) == 1
    assert "kl is analytic" in capsys.readouterr().err and not (tmp_path / "one.html").exists()
    assert report.main([str(sweep), "--output", str(tmp_path / "one.html"), "--where", "estimator=nvil"]) == 0
    assert "gumbel_softmax-vae" not in (tmp_path / "one.html").read_text()
    assert Path(tmp_path / "one.html").exists()
