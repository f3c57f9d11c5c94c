"""``python -m analysis``: what a report has beside its tables, references, and tables in a paper's layout."""

from __future__ import annotations

import pytest
from fake_runs import make_config, write_run

from analysis import command


@pytest.fixture
def sweep(tmp_path):
    """Table 1 of Jang et al. in part: three seeds, two learning rates, one estimator with two evaluations per step."""
    folder = tmp_path / "runs" / "jang_table1"
    for place, estimator in enumerate(("gumbel_softmax", "muprop")):
        for seed in range(3):
            for lr in (0.1, 0.2):
                config = make_config(estimator, seed=seed, optimizer__lr=lr)
                test = -105.0 - 5 * place - seed - lr

                def row(step, evaluations=place + 1):
                    return {"loss_evaluations": evaluations * step}

                write_run(folder, config, test=test, valid=test, row=row)
    return folder


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_the_report_of_a_papers_table(sweep, capsys):
    assert run(sweep) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 of 1 pairs of estimators differ" in printed and "none can with 3 shared seeds" in printed
    written = {file.name for file in (sweep / "report").iterdir()}
    expected = {"comparisons.md", "pairs.csv", "sensitivity.csv", "sensitivity.pdf", "learning_curves_evaluations.png"}
    expected |= {"jang_table1.md", "jang_table1.tex", "jang_table1.csv", "learning_curves_seconds.png"}
    assert expected <= written and "across_tasks.csv" not in written
    comparisons = (sweep / "report" / "comparisons.md").read_text()
    assert "| muprop | -5.00 | [-5.00, -5.00] | 3 | 0.250 | 0.250 | 1.00 | [0.29, 1.00] |" in comparisons
    assert "| VAE (Bern.) | ours | - | - | 111.10 | - | - | **106.10** | - |" in (
        (sweep / "report" / "jang_table1.md").read_text()
    )


def test_another_layout_may_be_named_and_one_without_runs_is_said_to_be_so(sweep, tmp_path, capsys):
    output = tmp_path / "output"
    assert run(sweep, "--output", output, "--table", "muprop_table2") == 0
    assert "no table muprop_table2: no run stands in a cell" in " ".join(capsys.readouterr().out.split())
    assert not list(output.glob("jang_table1.*"))


def test_references_are_written_and_shown(sweep, tmp_path, capsys):
    folder = tmp_path / "reference"
    assert run(sweep, "--write-reference", folder) == 0
    mine = tmp_path / "runs" / "mine"
    for seed in range(3):
        write_run(mine, make_config("my_own", seed=seed), test=-100.0 - seed)
    write_run(mine, make_config("my_own", "vae_categorical", steps=7), test=-100.0)
    capsys.readouterr()
    assert run(mine, "--reference", folder) == 0
    printed = capsys.readouterr().out
    assert "gumbel_softmax (reference)  106.10 ± 2.48" in printed and "my_own" in printed
    assert "| my_own | 100.00" not in printed and "0 of 3 pairs" in " ".join(printed.split())
    longer = tmp_path / "runs" / "longer"
    write_run(longer, make_config("my_own", steps=2000), test=-100.0)
    assert run(longer, "--reference", folder) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "reference left out: muprop on vae_bernoulli, binarized_mnist: steps 1000 (here 2000)" in printed
    assert run(longer, "--reference", tmp_path / "nowhere") == 2
    assert "no reference at" in capsys.readouterr().err


def test_nothing_finished_writes_no_reference(tmp_path, capsys):
    write_run(tmp_path / "runs" / "sweep", make_config(), status="diverged")
    assert run(tmp_path / "runs" / "sweep", "--write-reference", tmp_path / "reference") == 2
    assert not (tmp_path / "reference").exists()
