"""What the committed results reach of the literature: verdicts, reasons beside their base, and the committed page."""

import pytest
from test_leaderboard import kept

from analysis.papers import agreement, leaderboard, reference
from training.processes import ROOT

JANG = {"data": "binarized_mnist", "task": "vae_bernoulli", "task__latents": 200}


def test_a_number_is_judged_by_the_longest_result(tmp_path):
    kept(tmp_path / "results", "longer", {"gumbel_softmax": (106.5, 106.7)}, **JANG, steps=30000)
    kept(tmp_path / "results", "short", {"gumbel_softmax": (112.0, 112.2), "nvil": (120.0, 120.2)}, **JANG, steps=10000)
    rows = {str(row[1]): [str(cell) for cell in row] for row in agreement.numbers(tmp_path / "results").rows}
    assert rows["Gumbel-Softmax"][4:8] == ["30,000, untuned", "105.0", "+1.6", "reached"]
    assert rows["NVIL"][4:8] == ["10,000, untuned", "112.2", "+7.9", "not reached"]


@pytest.mark.parametrize(
    ("distance", "verdict"),
    [(0.0, "reached"), (2.0, "reached"), (-2.0, "reached"), (2.01, "not reached"), (-2.01, "better than published")],
)
def test_verdicts(distance, verdict):
    assert agreement.verdict(distance) == verdict


def test_a_reason_is_paired_by_seed_with_its_base(tmp_path):
    results = tmp_path / "results"
    kept(results, "ours", {"gumbel_softmax": (110.0, 111.0, 112.0)}, **JANG, steps=300)
    kept(results, "studies/prior", {"gumbel_softmax": (106.0, 107.5)}, **JANG, steps=300, task__prior="learned")
    kept(results, "studies/again", {"gumbel_softmax": (110.0,)}, **JANG, steps=300)  # differs in nothing
    (row,) = agreement.reasons(results).rows
    name, changed, nats, seeds, change, distance = map(str, row[1:7])
    assert (name, changed, seeds) == ("Gumbel-Softmax", "task.prior=learned (uniform)", "2")
    assert nats.startswith("106.75") and change == "−3.75" and distance == "+1.8"
    assert not any("studies" in entry["source"] for entry in leaderboard.entries(results)), "a study is not ranked"


def test_a_reason_without_a_base_is_a_sentence(tmp_path, capsys):
    kept(tmp_path, "studies/prior", {"gumbel_softmax": (106.0,)}, **JANG, steps=300)
    (tmp_path / agreement.PAGE).write_text("")
    assert agreement.main([str(tmp_path)]) == 2
    assert "has no result to stand beside" in capsys.readouterr().err
    kept(tmp_path, "ours", {"gumbel_softmax": (106.0,)}, **JANG, steps=300)
    assert agreement.main([str(tmp_path)]) == 2
    assert "has no place for numbers" in capsys.readouterr().err


def test_the_committed_page_is_of_the_committed_results(tmp_path):
    folder = ROOT / leaderboard.RESULTS
    for file in [folder / agreement.PAGE, *folder.rglob(reference.FILE)]:
        copy = tmp_path / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert agreement.write(tmp_path).read_text() == (folder / agreement.PAGE).read_text(), "make leaderboard writes it"
