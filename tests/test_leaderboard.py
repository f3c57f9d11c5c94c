"""The leaderboard: what may stand in one table, in which order, and that the committed page is up to date."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_runs import make_config, write_run

from analysis.papers import leaderboard, reference
from analysis.records import load
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
