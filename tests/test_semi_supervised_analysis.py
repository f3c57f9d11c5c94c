"""Tables and figures of semi-supervised classification from hand-made records, and the benchmark of its step."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from fake_runs import make_config, seal_again, write_run
from hydra import compose, initialize_config_module

from analysis import records
from analysis.papers import class_speed, own, semi_supervised
from training.benchmarks import classes as benchmark_classes
from training.config import schema

ACCURACY = {"exact": (90.0, 92.0, 91.0), "gumbel_softmax": (88.0, 90.0, 95.0)}
BASELINE = (75.0, 78.0, 78.0)


def write(sweep, task, estimator, seed, accuracy, valid, alpha=1.0, images=False):
    config = make_config(estimator, task, "mnist", seed, task__alpha=alpha, tune=["task.alpha"])

    def row(step):
        return {"valid_accuracy": valid, **({"test_accuracy": accuracy} if step == 1000 else {})}

    path = write_run(sweep, config, row=row, test=-107.0 - seed, protocol={"data": "mnist"})  # its ELBO is 3 nats lower
    if images:
        grid = np.random.default_rng(0).random((3, 3, 14, 14))
        np.savez(path / records.IMAGES, originals=grid[0], reconstructions=grid[1], samples=grid[2], analogies=grid)
        seal_again(path)


@pytest.fixture
def sweep(tmp_path):
    for name, accuracies in ACCURACY.items():
        for seed, accuracy in enumerate(accuracies):
            write(tmp_path, "semi_supervised", name, seed, accuracy, valid=90.0, alpha=0.3, images=True)
            # better on test and by the bound's order, but not on validation
            write(tmp_path, "semi_supervised", name, seed, 99.0, valid=80.0, alpha=0.1)
    for seed, accuracy in enumerate(BASELINE):
        write(tmp_path, "labelled_only", "exact", seed, accuracy, valid=70.0)
    return tmp_path


def test_chosen_by_validation_accuracy_and_paired_by_seed(sweep):
    table = semi_supervised.summary(semi_supervised.chosen(records.load(sweep))).set_index("estimator")
    assert list(table.index) == ["exact", "gumbel_softmax", "labelled_only"]
    assert set(table["setting"][:2]) == {"task.alpha=0.3"} and list(table["n"]) == [3, 3, 3]
    for name, accuracies in ACCURACY.items():
        assert table.loc[name, "accuracy"] == pytest.approx(np.mean(accuracies))
        gains = np.array(accuracies) - BASELINE
        half = 4.302653 * gains.std(ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom
        assert table.loc[name, "gain"] == pytest.approx(gains.mean())
        assert table.loc[name, "gain_high"] - table.loc[name, "gain"] == pytest.approx(half, rel=1e-6)
        assert table.loc[name, "elbo"] == pytest.approx(-111.0)
    assert table.loc["exact", "published_accuracy"] == 92.6 and table.loc["gumbel_softmax", "published_elbo"] == -109.6
    assert math.isnan(table.loc["labelled_only", "gain"]) and math.isnan(table.loc["labelled_only", "elbo"])


def test_a_run_that_went_on_counts_once(sweep):
    """With its last result: the earlier ones stand beside it in the record."""
    frame = records.load(sweep)
    ends = frame["test_accuracy"].notna()
    earlier = frame[ends].assign(step=500, steps=500, test_accuracy=10.0, path=frame["path"] + "/results/500")
    found = semi_supervised.summary(semi_supervised.chosen(pd.concat([earlier, frame], ignore_index=True)))
    pd.testing.assert_frame_equal(found, semi_supervised.summary(semi_supervised.chosen(frame)))


def test_the_command_writes_table_and_figures(sweep, capsys):
    assert semi_supervised.main([str(sweep), "--output", str(sweep / "out")]) == 0
    printed = capsys.readouterr().out
    assert "| exact | 91.0 ± 2.5 (92.6) | 14.0 ± 2.5 | -111.0 ± 2.5 (-106.8)" in printed
    assert "labelled images only | 77.0 ± 4.3 | - | - | - | 3 |" in printed
    assert "exact: task.alpha=0.3, best of 2 by validation accuracy." in printed
    files = {path.name for path in (sweep / "out").iterdir()}
    assert {"accuracy.md", "accuracy.csv", "accuracy.png", "analogies_exact.png"} <= files
    assert semi_supervised.main([str(sweep / "nothing")]) == 1
    assert "no runs at" in capsys.readouterr().err


def test_the_sweep_of_table_2_is_drawn_by_its_name(sweep):
    sweeps = ["jang_table2", "jang_table2_small", "reference", "no_module", "not a name", ".hidden", "_", ""]
    assert own.of_sweeps(sweeps) == dict.fromkeys(["jang_table2", "jang_table2_small"], semi_supervised.draw)


def test_nothing_finished_is_one_sentence(tmp_path, capsys):
    config = make_config("exact", "semi_supervised", "mnist", 0)
    write_run(tmp_path, config, status="failed", row=lambda step: {"valid_accuracy": 50.0})
    assert semi_supervised.main([str(tmp_path)]) == 1
    assert "no run of task=semi_supervised or task=labelled_only is finished" in capsys.readouterr().err


def test_speed_is_measured_tabled_and_drawn(tmp_path, capsys):
    """Two small numbers of classes; the batch shrinks where all classes at once would be too many rows."""
    file = tmp_path / "speed.json"
    benchmark_classes.main(
        [str(file), "--classes", "5", "20", "--rows", "100", "--batch-size", "10", "--hidden", "8", "--seconds", "0"]
    )
    report = json.loads(file.read_text())
    rows = pd.DataFrame(report["rows"])
    assert len(rows) == 8 and (rows["steps_per_second"] > 0).all()
    assert dict(zip(rows["categories"], rows["batch_size"], strict=True)) == {5: 10, 20: 5}
    for _, group in rows.groupby("categories"):
        rate = group.set_index("estimator")["steps_per_second"]
        assert group["ratio"].tolist() == pytest.approx((rate / rate["exact"]).tolist())
    assert class_speed.main([str(file), str(tmp_path)]) == 0
    table = (tmp_path / "speed.md").read_text()
    assert table.startswith("| classes | batch | Exact |") and table.count("\n") == 4
    assert (tmp_path / "speed.png").stat().st_size > 10_000 and len(pd.read_csv(tmp_path / "speed.csv")) == 8
    printed = capsys.readouterr().out
    assert f"{rows['ratio'].iloc[1]:.2f}x" in printed and table.strip() in printed
    assert class_speed.published_ratios() == {10: 2.0, 100: 9.9}


def test_random_labels_are_balanced_and_unrelated_to_the_order():
    data = benchmark_classes.random_labels(100)
    assert data.train.labels.bincount().tolist() == [100] * 100
    assert data.train.labels[:100].unique().numel() < 100


def test_the_experiment_has_the_papers_settings():
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", overrides=["+experiment=jang_table2"], return_hydra_config=True)
    params, schedule = composed.hydra.sweeper.params, composed.schedule
    assert (
        params["task.alpha"] == "0.1,0.2,0.3,0.8,1.0" and params.estimator == "exact,gumbel_softmax,st_gumbel_softmax"
    )
    assert (schedule.rate, schedule.minimum, schedule.every) == (3e-5, 0.5, 2000)
    assert composed.optimizer.name == "sgd" and composed.optimizer.momentum == 0.9
    assert composed.data.name == "mnist" and composed.data.binarization == "dynamic"
