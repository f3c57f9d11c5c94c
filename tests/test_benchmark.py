"""The benchmark runs to its end on small problems, and its claims about sampling hold here."""

import re

import pytest
import torch

import estimators
from training.benchmarks import estimators as benchmark

CPU = torch.device("cpu")


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", benchmark.SHAPES)
def test_sampling_is_not_slower_than_torchs(shape, hard):
    """Ratios of medians in turns; they are 0.05 to 0.35 on an idle machine, so that a busy one cannot reach 1."""
    assert max(benchmark.sampling_ratios(shape, hard, 0.1, CPU)) <= 1


def test_all_tables_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SHAPES", ((4, 3, 3), (4, 3, 2)))
    monkeypatch.setattr(benchmark, "GROWTH", (5, 50))
    monkeypatch.setattr(benchmark, "TABLES", (7,))
    monkeypatch.setattr(benchmark, "MOST_BYTES", 2**11)
    benchmark.main(["--seconds", "0", "--device", "cpu"])
    printed = capsys.readouterr().out
    for method in estimators.METHODS:
        rows = [line for line in printed.splitlines() if line.split() and line.split()[0] == method.__name__]
        assert len(rows) >= (1 if method().binary_only else 3) if method is not estimators.RELAX else rows
    assert re.search(r"Exact +not run: 27 evaluations per gradient do not fit in memory\n", printed)
    assert re.search(r"\n +7( +\d+\.\d\d){4}\n", printed), "the table of look-ups"


def test_an_estimator_against_itself_costs_the_same():
    logits = torch.randn(50, 20, 10, requires_grad=True)
    loss = benchmark.cheap_loss(logits)
    one, same, several = (
        benchmark.gradient(make, logits, loss)
        for make in (estimators.REINFORCE(), estimators.REINFORCE(), estimators.RLOO(8))
    )
    times = benchmark.medians([one, same, several], 0.2, CPU)
    assert times[0] / times[1] == pytest.approx(1, abs=0.5) and times[2] > 2 * times[0]
    assert benchmark.peak_bytes(one, CPU) == benchmark.peak_bytes(same, CPU)
    assert benchmark.peak_bytes(several, CPU) == pytest.approx(8 * benchmark.peak_bytes(one, CPU), rel=0.1)
