"""Sensitivity to the learning rate on hand-made runs."""

import numpy as np
import pytest
from fake_runs import make_config, write_run

from analysis.figures import curves as figures
from analysis.figures import sensitivity
from analysis.records import load
from analysis.statistics.summary import ProtocolsDiffer, summarise


@pytest.fixture
def sweep(tmp_path):
    """NVIL: 101 at 1e-4, 100 at 1e-3 (chosen), 150 of one seed at 1e-2 where another diverged, nothing at 1e-1."""
    for lr, bounds in {1e-4: (100.0, 102.0), 1e-3: (99.0, 101.0), 1e-2: (150.0, None), 1e-1: (None, None)}.items():
        for seed, bound in enumerate(bounds):
            status = "diverged" if bound is None else "finished"
            config = make_config("nvil", seed=seed, optimizer__lr=lr)
            write_run(tmp_path, config, test=-(bound or 0.0), valid=-(bound or 0.0), status=status)
    return tmp_path


def test_a_row_per_value_with_interval_and_lost_runs(sweep):
    table = sensitivity.sensitivity(load(sweep)).set_index("optimizer.lr")
    assert table.index.tolist() == [1e-4, 1e-3, 1e-2, 1e-1]
    assert table["mean"].tolist()[:3] == [101.0, 100.0, 150.0] and np.isnan(table["mean"].iloc[3])
    assert table["n"].tolist() == [2, 2, 1, 0] and table["diverged"].tolist() == [0, 0, 1, 2]
    assert table["chosen"].tolist() == [False, True, False, False]
    # two values 1 apart from their mean: t(.975, 1) * sqrt(2) / sqrt(2)
    assert table["high"].iloc[0] - 101.0 == pytest.approx(12.7062, abs=1e-4)
    assert summarise(load(sweep))["mean"].tolist() == [100.0]


def test_other_hyperparameters_are_chosen_on_validation_at_each_value(tmp_path):
    for lr, temperature, valid, test in [
        (1, 0.5, -90, -95),
        (1, 1.0, -91, -80),
        (2, 0.5, -93, -70),
        (2, 1.0, -92, -96),
    ]:
        config = make_config("gumbel_softmax", optimizer__lr=lr, estimator__temperature=temperature)
        write_run(tmp_path, config, valid=valid, test=test)
    table = sensitivity.sensitivity(load(tmp_path))
    assert table["mean"].tolist() == [95.0, 96.0] and table["chosen"].tolist() == [True, False]
    assert table["setting"].tolist() == ["estimator.temperature=0.5", "estimator.temperature=1"]
    by_temperature = sensitivity.sensitivity(load(tmp_path), "estimator.temperature")
    assert by_temperature["mean"].tolist() == [95.0, 80.0]  # of temperature 1 the validation bound is best at lr = 1


def test_figure(sweep, tmp_path):
    write_run(sweep, make_config("rloo", task="vae_categorical"))  # one value: no panel
    table = sensitivity.sensitivity(load(sweep))
    drawn = sensitivity.figure(table)
    (axes,) = drawn.axes
    assert axes.get_xscale() == "log" and [text.get_text() for text in axes.texts] == ["1", "2"]
    assert all(file.stat().st_size > 5000 for file in figures.save(drawn, tmp_path / "sensitivity"))


def test_nothing_varies_and_protocols_differ(tmp_path):
    write_run(tmp_path, make_config("nvil"))
    assert sensitivity.sensitivity(load(tmp_path)).empty and sensitivity.sensitivity(load(tmp_path), "nothing").empty
    assert sensitivity.figure(sensitivity.sensitivity(load(tmp_path))) is None
    write_run(tmp_path, make_config("rloo"), protocol={"kl": "sampled"})
    with pytest.raises(ProtocolsDiffer):
        sensitivity.sensitivity(load(tmp_path))
