"""The figures of bias and variance, from what ``estimators.check`` measures and from the committed certificate."""

import json
from pathlib import Path

import pytest

from analysis.figures.style import LOOKS
from analysis.papers import certificates
from estimators import METHODS, check

COMMITTED = Path(__file__).parents[1] / "docs" / "results" / "certificates" / "certificates.json"


@pytest.fixture(scope="module")
def report():
    return json.loads(COMMITTED.read_text())


def test_figures_of_a_fresh_certificate(tmp_path, capsys):
    file, output = tmp_path / "certificates.json", tmp_path / "figures"
    names = ["exact", "rloo", "disarm", "nvil", "gumbel_softmax", "st_gumbel_softmax", "unordered_set"]
    assert check.main([*names, "--quick", "--draws", "500", "--json", str(file)]) == 0
    assert certificates.main([str(file), str(output)]) == 0
    assert {path.name for path in output.iterdir()} == {
        f"{name}.{kind}" for name in ("bias_variance", "ranking") for kind in ("pdf", "png")
    }
    capsys.readouterr()
    file.write_text("{}")
    assert certificates.main([str(file), str(output)]) == 2
    assert "not a certificate" in capsys.readouterr().err


def test_what_the_plane_shows(report):
    """A path has the certificate's points; an unbiased estimator stands on the axis at its variance."""
    figure = certificates.bias_variance(report)
    plane, _, strip, _ = figure.axes
    gumbel = next(result for result in report["estimators"] if result["name"] == "GumbelSoftmax")
    expected = [(x, y) for _, x, y, _ in certificates.path(gumbel, 2)]
    paths = [list(zip(*line.get_data(), strict=True)) for line in plane.get_lines()]
    assert len(expected) == len(check.TEMPERATURES) and expected in paths
    rows = {label.get_text(): place for place, label in enumerate(strip.get_yticklabels())}
    rloo = next(result for result in report["estimators"] if result["name"] == "RLOO")
    dots = [(x, y) for line in strip.get_lines() for x, y in zip(*line.get_data(), strict=True)]
    assert (rloo["problems"][0]["relative_variance"], rows["RLOO"]) in dots
    assert not {"VIMCO", "NVIL", "Exact"} & set(rows) and "NVIL unscaled" in rows


def test_the_ranking_is_in_order(report):
    for categories in (2, 4):
        rows = list(certificates._ranked(certificates.compared(report), categories))
        middle = rows.index(None)
        for part in (rows[:middle], rows[middle + 1 :]):
            values = [value for _, value, _ in part]
            assert len(part) > 5 and values == sorted(values)
        assert all(bias is None for *_, bias in rows[:middle]) and all(bias > 0 for *_, bias in rows[middle + 1 :])


def test_every_method_has_a_look_of_its_own(report):
    """And one of a user, who says its family."""
    mine = {"name": "my_file:Mine", "declared": {"family": "coupled samples"}}
    styles = certificates.styles({"estimators": [*report["estimators"], mine]})
    assert {method.__name__ for method in METHODS} <= set(styles)
    unlike = [each for name, each in styles.items() if name != "NVIL unscaled"]
    assert len({(each.marker, each.linestyle) for each in unlike}) == len(unlike)
    assert styles["GumbelSoftmax hard"].label == "ST Gumbel-Softmax"
    assert styles["DisARMStickBreaking"].label == "DisARM-SB"
    assert styles["NVIL unscaled"].color == LOOKS["nvil"].color
    assert styles["my_file:Mine"].label == "Mine" and styles["my_file:Mine"].color == LOOKS["arm"].color


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
