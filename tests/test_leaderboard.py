"""The leaderboard: what may stand in one table, in which order, and that the committed page is up to date."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_runs import make_config, write_run

from analysis.papers import leaderboard, reference
from analysis.records import load
from analysis.statistics.forms import certificate, forms
from training.processes import ROOT


def kept(folder: Path, name: str, bounds: dict[str, tuple[float, ...]], by: str = "", **settings: object) -> Path:
    """``folder/NAME/reference.json`` of runs with these negative test bounds, a tuple of seeds for each estimator."""
    runs = folder.parent / "runs" / name
    for estimator, seeds in bounds.items():
        for seed, bound in enumerate(seeds):
            write_run(runs, make_config(estimator, seed=seed, **settings), test=-bound, valid=-bound, steps=2)
    return reference.write(load(runs), folder / name, by)


def test_one_protocol_is_one_table_whoever_ran_it(tmp_path):
    kept(tmp_path / "results", "ours", {"nvil": (110.0, 110.2), "rloo": (100.0, 100.2)})
    kept(tmp_path / "results", "theirs", {"my_own": (105.0, 105.2)}, by="A. Guest")
    (board,) = leaderboard.boards(tmp_path / "results")
    names = [str(row[1]) for row in board.rows]
    assert names == ["RLOO", "my_own", "NVIL"] and [row[0] for row in board.rows] == ["1", "2", "3"]
    assert board.rows[1][-1] == "theirs, by A. Guest"
    assert board.rows[0][2].mark == "best" and not board.rows[2][2].mark  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "settings", [{"steps": 2000}, {"batch_size": 50}, {"task__latents": 100}, {"task__prior": "learned"}]
)
def test_another_protocol_is_another_table(tmp_path, settings):
    kept(tmp_path / "results", "ours", {"nvil": (110.0, 110.2)})
    kept(tmp_path / "results", "others", {"rloo": (100.0, 100.2)}, **settings)
    assert [[str(row[1]) for row in board.rows] for board in leaderboard.boards(tmp_path / "results")] in (
        [["NVIL"], ["RLOO"]],
        [["RLOO"], ["NVIL"]],
    )


def test_a_tuned_result_does_not_stand_beside_an_untuned_one(tmp_path):
    folder = tmp_path / "results"
    kept(folder, "ours", {"nvil": (110.0, 110.2)})
    runs = tmp_path / "runs" / "tuned"
    for rate, bound in ((0.1, 100.0), (0.2, 101.0)):
        config = make_config("rloo", seed=0, optimizer__lr=rate)
        write_run(runs, config, test=-bound, valid=-bound, steps=2)
    reference.write(load(runs), folder / "tuned")
    titles = [board.title for board in leaderboard.boards(folder)]
    assert len(titles) == 2
    assert sum("nothing tuned" in title for title in titles) == 1
    assert sum("chosen on validation: optimizer.lr" in title for title in titles) == 1


def test_an_estimator_without_a_finished_run_is_not_ranked(tmp_path):
    runs = tmp_path / "runs" / "ours"
    write_run(runs, make_config("nvil", seed=0), test=-100.0, valid=-100.0, steps=2)
    write_run(runs, make_config("rloo", seed=0), status="diverged", test=-100.0, valid=-100.0, steps=2)
    reference.write(load(runs), tmp_path / "results" / "ours")
    (board,) = leaderboard.boards(tmp_path / "results")
    assert [str(row[1]) for row in board.rows] == ["NVIL"]


def test_a_changed_number_is_not_ranked(tmp_path):
    file = kept(tmp_path / "results", "ours", {"nvil": (110.0, 110.2)})
    content = json.loads(file.read_text())
    content["entries"][0]["mean"] = 90.0
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was changed after it was written"):
        leaderboard.write(tmp_path / "results")


def result(name, arguments, unbiased=True, bias=0.0, temperatures=(), **declared):
    """What a certificate says of one estimator with two categories."""
    declared = {"unbiased": unbiased, "objective": "mean", "needs_gradient": False, "rescales": False} | declared
    measured = {"categories": 2, "bias_square": bias**2, "bias_square_error": 1e-6, "relative_variance": 1.0}
    return {
        **{"name": name, "arguments": arguments, "declared": declared},
        "problems": [measured | {"layers": 1}],
        "bias": [
            measured | {"degree": 3, "temperature": t, "bias_square": own**2} for t, own in temperatures if not unbiased
        ],
        "costs": [{"categories": 2, "evaluations": 2, "microseconds": 1.0}],
    }


MUPROP = {"context_features": 3, "centring": True, "input_dependent": False, "variance_normalisation": False}
MUPROP |= {"hidden": 100, "decay": 0.8, "replicas": None}
CERTIFIED = [
    result("MuProp", MUPROP),
    result("MuProp scaled", MUPROP | {"variance_normalisation": True}, False, rescales=True),
    result("StraightThrough", {"temperature": 1.0}, False, 0.4, [(1.0, 0.4), (0.5, 0.6)], tempered="temperature"),
    result("GumbelRao", {"temperature": 1.0, "num_inner": 10}, False, 0.2, [(1.0, 0.2)], tempered="temperature"),
    result("OverlappingExponential", {"beta": 8.0}, False, 0.3, [(0.125, 0.3), (0.5, 0.7)], tempered="beta"),
    result("VIMCO", {"num_samples": 5}, objective="multi_sample_bound"),
]
CERTIFIED[-2]["declared"]["inverse_temperature"] = True


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("MuProp", {"hidden": 20.0, "variance_normalisation": False}, "unbiased"),
        ("MuProp", {"variance_normalisation": True}, "rescaled; its direction has bias < 0.0014 (K = 2)"),
        ("MuProp", {"centring": False}, "default form: unbiased"),
        ("MuProp", {"later": 1}, "default form: unbiased"),
        ("StraightThrough", {"temperature": 1}, "bias 0.4 at temperature 1 (K = 2)"),
        ("StraightThrough", {"temperature": 0.5}, "bias 0.6 at temperature 0.5 (K = 2)"),
        ("StraightThrough", {"temperature": 0.7}, "bias 0.4 at temperature 1 (K = 2)"),
        ("GumbelRao", {"num_inner": 100, "temperature": 1.0}, "default form: bias 0.2 at temperature 1 (K = 2)"),
        ("OverlappingExponential", {"beta": 2.0}, "bias 0.7 at temperature 0.5 (K = 2)"),
        ("VIMCO", {"num_samples": 50}, "of another objective (multi_sample_bound)"),
        ("RLOO", {}, "none"),
    ],
)
def test_a_row_has_the_certificate_of_its_options(method, options, said):
    own = [form for form in forms({"estimators": CERTIFIED}) if form.name.split()[0] == method]
    assert certificate(own, options) == said


def test_rows_of_one_method_have_the_certificates_of_their_forms(tmp_path):
    folder, runs = tmp_path / "results", tmp_path / "runs" / "ours"
    for number, scaled in enumerate((False, True)):
        node = {"estimator___target_": "estimators.MuProp", "estimator__variance_normalisation": scaled}
        write_run(runs, make_config("muprop", **node), test=-100.0 - number, valid=-100.0, steps=2)
    (folder / "certificates").mkdir(parents=True)
    (folder / "certificates" / "certificates.json").write_text(json.dumps({"estimators": CERTIFIED}))
    mine = result("my_file:Mine", {"gain": 1.0, "form": "b"})
    (folder / "entries" / "mine").mkdir(parents=True)
    (folder / "entries" / "mine" / "certificate.json").write_text(json.dumps({"estimators": [mine]}))
    reference.write(load(runs), folder / "ours")
    (board,) = leaderboard.boards(folder)
    assert list(board.numbers["certificate"]) == ["unbiased", "rescaled; its direction has bias < 0.0014 (K = 2)"]
    assert certificate(leaderboard.certified(folder)["mine"], {"gain": 2.0}) == "unbiased"
    assert certificate(leaderboard.certified(folder)["mine"], {"form": "a"}) == "default form: unbiased"


def test_every_committed_result_is_of_a_certified_form():
    certified = leaderboard.certified(ROOT / leaderboard.RESULTS)
    for entry in leaderboard.entries(ROOT / leaderboard.RESULTS):
        said = leaderboard._certificate(entry, certified)
        assert said != "none" and not said.startswith("default form"), (entry["estimator"], entry["source"])


def test_a_result_without_its_seal_is_not_ranked(tmp_path):
    """What removes the seal may have changed the number."""
    file = kept(tmp_path / "results", "ours", {"nvil": (110.0, 110.2)})
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps(content))
    assert reference.read(file.parent)[0]["mean"] == pytest.approx(110.1)
    with pytest.raises(ValueError, match="has no seal"):
        leaderboard.write(tmp_path / "results")


@pytest.mark.parametrize("content", ["[]", "{}", '{"estimators": [{}]}', '{"estimators": 1}', "no"])
def test_what_is_no_certificate_is_a_sentence(tmp_path, content, capsys):
    file = kept(tmp_path / "results", "ours", {"nvil": (110.0, 110.2)}).parent / "certificate.json"
    file.write_text(content)
    assert leaderboard.main([str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err.startswith(f"{file}: ")


def test_the_published_number_is_of_the_source_that_the_runs_name(tmp_path):
    net = {"task__latents": 200, "task__categories": 2, "task__layers": 1, "task__square_hidden": 0}
    for source in ("jang2017", "gu2016", ""):
        kept(tmp_path / "results", source or "nobody", {"nvil": (113.0, 113.2)}, source=source, **net)
    (board,) = leaderboard.boards(tmp_path / "results")
    shown = {str(row[-1]): str(row[board.header.index("difference to published")]) for row in board.rows}
    assert shown == {"jang2017": "+0.9 (112.2)", "gu2016": "\N{MINUS SIGN}0.4 (113.5)", "nobody": "-"}


def test_no_published_probability_stands_beside_a_density(tmp_path):
    net = {"task__latents": 200, "task__categories": 2, "task__layers": 1, "task__square_hidden": 0}
    runs = tmp_path / "runs" / "ours"
    for likelihood in ("bernoulli", "continuous_bernoulli"):
        config = make_config("nvil", seed=len(likelihood), **net)
        write_run(runs, config, test=-113.0, steps=2, protocol={"likelihood": likelihood})
        reference.write(load(runs), tmp_path / "results" / likelihood)
        shutil.rmtree(runs)
    shown = [board.numbers["published"].iloc[0] for board in leaderboard.boards(tmp_path / "results")]  # type: ignore[index]
    assert sorted(map(str, shown)) == ["112.2", "nan"]


def test_a_row_says_of_how_many_settings_it_was_raced(tmp_path):
    runs, race = tmp_path / "runs", {"name": "halving", "rungs": [500], "over": ["optimizer"]}
    for name, options in (("raced", {"race": race}), ("full", {})):
        for rate, status in ((0.1, "finished"), (0.2, "eliminated" if options else "finished")):
            config = make_config("nvil", optimizer__lr=rate, **options)
            write_run(runs / name, config, test=-110.0 - rate, valid=-110.0 - rate, steps=2, status=status)
        reference.write(load(runs / name), tmp_path / "results" / name)
    (board,) = leaderboard.boards(tmp_path / "results")
    assert {str(row[-2]) for row in board.rows} == {
        "optimizer.lr=0.1 (best of 2)",
        "optimizer.lr=0.1 (best of 2, raced)",
    }


def test_no_results_are_a_sentence(tmp_path, capsys):
    assert leaderboard.main([str(tmp_path)]) == 2
    assert "--write-reference" in capsys.readouterr().err


def test_the_committed_page_is_of_the_committed_results(tmp_path):
    folder = ROOT / leaderboard.RESULTS
    for file in folder.rglob("*.json"):
        if file.name in (reference.FILE, "certificate.json", "certificates.json"):
            copy = tmp_path / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for page in leaderboard.write(tmp_path):
        assert page.read_text() == (folder / page.name).read_text(), "make leaderboard writes it anew"
