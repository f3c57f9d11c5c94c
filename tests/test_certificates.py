"""The figures of bias and variance, from what ``estimators.check`` measures and from the committed certificate."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import estimators
from analysis.figures import variance as figures
from analysis.figures.style import LOOKS
from analysis.papers import certificates
from analysis.statistics import certificates as frames
from analysis.statistics import variance
from analysis.statistics.variance import point
from estimators import METHODS, check, moments
from training.gradients.basket import PointVariance

COMMITTED = Path(__file__).parents[1] / "docs" / "results" / "certificates" / "certificates.json"


@pytest.fixture(scope="module")
def report():
    return json.loads(COMMITTED.read_text())


def panels(report):
    return variance.panels(frames.comparable(frames.frame(report)))


def test_figures_of_a_fresh_certificate(tmp_path, capsys):
    file, output = tmp_path / "certificates.json", tmp_path / "figures"
    names = ["exact", "rloo", "disarm", "nvil", "gumbel_softmax", "st_gumbel_softmax", "unordered_set"]
    assert check.main([*names, "--quick", "--draws", "500", "--json", str(file)]) == 0
    assert certificates.main([str(file), str(output)]) == 0
    drawn = {f"{name}.{kind}" for name in ("bias_variance", "ranking") for kind in ("pdf", "png")}
    assert {path.name for path in output.iterdir()} == drawn | {"variance.md", "variance.csv"}
    capsys.readouterr()
    file.write_text("{}")
    assert certificates.main([str(file), str(output)]) == 2
    assert "not a certificate" in capsys.readouterr().err
    (only,) = [each for each in json.loads(COMMITTED.read_text())["estimators"] if each["name"] == "VIMCO"]
    file.write_text(json.dumps({"estimators": [only]}))
    assert certificates.main([str(file), str(output)]) == 2
    assert "no estimator whose figures are comparable" in capsys.readouterr().err


def test_what_the_plane_shows(report):
    """A path has the certificate's points; an unbiased estimator stands on the axis at its variance."""
    figure = figures.bias_variance(panels(report))
    plane, _, strip, _ = figure.axes
    gumbel = next(result for result in report["estimators"] if result["name"] == "GumbelSoftmax")
    points = [point for point in gumbel["bias"] if (point["categories"], point["degree"]) == (2, 3)]
    assert [point["temperature"] for point in points] == list(check.TEMPERATURES)
    biases = [math.sqrt(point["relative_bias"] ** 2 - point["resolution"] ** 2) for point in points]
    expected = [(point["relative_variance"], pytest.approx(bias)) for point, bias in zip(points, biases, strict=True)]
    assert expected in [list(zip(*line.get_data(), strict=True)) for line in plane.get_lines()]
    rows = {label.get_text(): place for place, label in enumerate(strip.get_yticklabels())}
    rloo = next(result for result in report["estimators"] if result["name"] == "RLOO")
    dots = [(x, y) for line in strip.get_lines() for x, y in zip(*line.get_data(), strict=True)]
    assert (rloo["problems"][0]["relative_variance"], rows["RLOO"]) in dots
    assert not {"VIMCO", "NVIL", "Exact"} & set(rows) and "NVIL (unscaled)" in rows


def test_the_ranking_is_in_order_and_no_unbiased_estimator_has_a_bias(report):
    """That is seen, with the certificate's 100,000 draws."""
    for panel in panels(report):
        rows = list(figures._ranked(panel))
        middle = rows.index(None)
        for part in (rows[:middle], rows[middle + 1 :]):
            costs = [row["relative_variance"] * row["evaluations"] for row in part]
            assert len(part) > 5 and costs == sorted(costs)
        assert all(row["unbiased"] for row in rows[:middle]) and not any(row["unbiased"] for row in rows[middle + 1 :])


def test_every_method_has_a_look_of_its_own(report):
    """And one of a user, who says its family."""
    mine = {**report["estimators"][0], "name": "my_file:Mine"}
    mine["declared"] = {**mine["declared"], "family": "coupled samples"}
    frame = frames.frame({"estimators": [*report["estimators"], mine]})
    rows = frame.assign(family=frame["method_family"]).drop_duplicates("measured").to_dict("records")
    drawn = figures._looks(rows)
    assert {row["name"] for row in rows} >= {method.__name__ for method in METHODS}
    unlike = [(each["marker"], each["linestyle"]) for name, each in drawn.items() if " " not in name]  # but of variants
    assert len(set(unlike)) == len(unlike)
    assert {"st_gumbel_softmax", "disarm_stick_breaking", "Mine"} <= set(drawn)
    assert drawn["nvil unscaled"]["color"] == LOOKS["nvil"].color and drawn["Mine"]["color"] == LOOKS["arm"].color


def test_a_file_of_rows_is_drawn_as_the_certificate(report, tmp_path):
    """The tables that are made of ``variance.csv`` are those that it was written with."""
    list(certificates.write(COMMITTED, tmp_path))
    first = (tmp_path / "variance.md").read_bytes()
    assert first == (COMMITTED.parent / "variance.md").read_bytes(), "run: make certificates"
    file = tmp_path / "variance.csv"
    assert {path.name for path in certificates.write(file, tmp_path / "again")} >= {"variance.md", "variance.csv"}
    assert (tmp_path / "again" / "variance.md").read_bytes() == first


def test_a_certificate_is_added_to_those_that_are_there(tmp_path, capsys):
    """In the order of all methods, with nothing measured anew; a second time it is replaced; only alike is added."""
    file = tmp_path / "certificates.json"
    few = ["--quick", "--draws", "500", "--json", str(file)]
    assert check.main(["rloo", "darn", *few]) == 0
    before = json.loads(file.read_text())
    for _ in range(2):
        assert check.main(["exact", *few]) == 0
        after = json.loads(file.read_text())
        assert [each["name"] for each in after["estimators"]] == ["DARN", "Exact", "RLOO"]
        assert [after["estimators"][2], after["estimators"][0]] == before["estimators"]
    capsys.readouterr()
    kept = file.read_bytes()
    assert check.main(["exact", "--quick", "--draws", "600", "--json", str(file)]) == 2
    assert "was measured with --draws 500" in capsys.readouterr().err and file.read_bytes() == kept
    file.write_text("{}")
    assert check.main(["exact", *few]) == 2 and "is no certificate" in capsys.readouterr().err
    assert file.read_text() == "{}"


# --- one pipeline ----------------------------------------------------------------------------------------------------


class Numbered(estimators.Estimator):
    """Its gradients are ``exact + bias + noise``, of noise that is given."""

    unbiased = False

    def __init__(self, gradients):
        super().__init__()
        self.gradients = gradients

    def __deepcopy__(self, memo):
        return self

    def estimate(self, logits, loss, context):
        here, self.gradients = self.gradients[: len(logits)], self.gradients[len(logits) :]
        return (logits * here).sum((-2, -1))


def measured(draws, bias, generator, chunk=None):
    exact = torch.tensor([[[0.6, 0.8]]], dtype=torch.float64)
    noise = torch.randn(draws, 1, 1, 2, generator=generator, dtype=torch.float64)
    gradients = exact + torch.tensor([bias, 0.0], dtype=torch.float64) + noise
    found = moments.gradient_moments(
        Numbered(gradients), torch.zeros_like(exact), lambda z: z.sum((-2, -1)), draws, exact=exact, chunk=chunk
    )
    return found, gradients.flatten(1), exact.flatten()


@pytest.mark.parametrize(("draws", "chunk"), [(200, None), (200, 7), (53, 10), (3, 2)])
def test_certificates_have_the_moments_of_baskets(draws, chunk):
    """The same draws cut into the same blocks, all at once: nothing depends on the chunks."""
    found, gradients, exact = measured(draws, 0.3, torch.Generator().manual_seed(draws), chunk)
    number = max(1, min(moments.BLOCKS, draws // 2))
    ends = [draws * place // number for place in range(number + 1)]
    blocks = [[gradients[start:end]] for start, end in zip(ends, ends[1:], strict=False)]
    expected = moments.figures(moments.collect(blocks), moments.known(exact))
    assert asdict(found.figures) == pytest.approx(asdict(expected), rel=1e-9, nan_ok=True)
    assert found.relative_bias == pytest.approx(math.sqrt(max(expected.bias_square, 0.0)))
    assert found.blocks.mean[0].tolist() == pytest.approx(gradients.mean(0).tolist())


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_relative_bias_has_no_noise_in_it(bias):
    """The mean of 400 corrected squares is the true one within 4.5 standard errors (by chance not: 7e-6); without
    correction it is larger by 2 / 40, more than 10 of them."""
    generator = torch.Generator().manual_seed(1)
    squares = torch.tensor([measured(40, bias, generator)[0].figures.bias_square for _ in range(400)])
    error = squares.std().item() / 20
    assert abs(squares.mean().item() - bias**2) < 4.5 * error and 5 * error < 2 / 40


def test_a_certificate_of_older_code_says_the_same():
    """There the bias had the noise of the mean in it; its square without it is that of today."""
    found, *_ = measured(1000, 0.3, torch.Generator().manual_seed(0))
    older = {"categories": 2, "layers": 1, "resolution": found.resolution, "cosine": 0.9, "relative_variance": 2.0}
    older["relative_bias"] = ((found.mean - found.exact).norm() / found.exact.norm()).item()
    costs = [{"categories": 2, "evaluations": 3, "microseconds": 2.0}]
    result = {"name": "Mine", "declared": {"unbiased": False}, "problems": [older], "bias": [], "costs": costs}
    result["declared"] |= {"objective": "mean", "needs_gradient": False, "rescales": False}
    (row,) = panels({"estimators": [result]})[0].rows.to_dict("records")
    today = point(asdict(found.figures))
    assert today["bias"] == found.relative_bias
    assert row["bias"] == pytest.approx(today["bias"], abs=0.1 * found.resolution)  # the noise, estimated otherwise
    assert row["bias_low"] < 0.3 < row["bias_high"] and today["bias_low"] < 0.3 < today["bias_high"]
    assert (row["evaluations"], row["seconds"]) == (3, 2e-6)


def test_certificates_and_baskets_have_the_same_rows(tmp_path):
    file = tmp_path / "certificate.json"
    assert check.main(["straight_through", "--quick", "--draws", "500", "--json", str(file)]) == 0
    (result,) = json.loads(file.read_text())["estimators"]
    fields = set(asdict(moments.Figures(1.0, 0.1, 1.0)))
    assert all(fields <= set(row) for row in (*result["problems"], *result["bias"]))
    own = PointVariance("rloo", "rloo", "score function", "mean", True, 2, 100, moments.Figures(1.0, 0.1, 1.0)).row()
    frame = frames.frame({"estimators": [result]})
    assert fields < set(own) and set(own) - {"draws"} <= set(frame)
    for panel in panels({"estimators": [result]}):
        for row in panel.rows.to_dict("records"):
            assert set(point({})) <= set(row) and row["bias_low"] <= row["bias"] <= row["bias_high"]
            assert row["variance_low"] < row["variance"] < row["variance_high"] and row["cosine_error"] > 0
