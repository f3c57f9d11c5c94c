"""Results kept as a reference: written from runs, read back, put beside other runs only where they are comparable."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_runs import make_config, write_run

from analysis.papers import reference
from analysis.records import OVERRIDES, load
from analysis.statistics.comparisons import pairs
from analysis.statistics.summary import final_rows, select, summarise, summarise_runs
from analysis.tables import summary as tables


@pytest.fixture
def ours(tmp_path):
    """A sweep with two learning rates of NVIL, of which 0.1 is chosen; one seed of it diverged."""
    sweep = tmp_path / "runs" / "ours"
    for lr, shift in ((0.1, 0.0), (0.2, 9.0)):
        for seed, bound in enumerate((100.0, 102.0, None)):
            status = "finished" if bound else "diverged"
            value = -(bound or 0.0) - shift
            config = make_config("nvil", seed=seed, optimizer__lr=lr)
            path = write_run(sweep, config, test=value, valid=value + 1, status=status, steps=1)
            lines = ["estimator=nvil", f"optimizer.lr={lr}", f"runs_dir={tmp_path}", "data.root=/x y", f"seed={seed}"]
            (path / OVERRIDES).write_text("".join(f"- {json.dumps(line)}\n" for line in [*lines, "task.prior='a b'"]))
    return sweep


@pytest.fixture
def folder(ours, tmp_path):
    reference.write(load(ours), tmp_path / "reference")
    return tmp_path / "reference"


def new_runs(tmp_path, seeds=(99.0, 101.0), **settings):
    sweep = tmp_path / "runs" / "mine"
    for seed, bound in enumerate(seeds):
        write_run(sweep, make_config("my_own", seed=seed, **settings), test=-bound, valid=-bound, steps=1)
    return sweep


def test_what_is_written(folder):
    text = (folder / reference.FILE).read_text()
    (entry,) = json.loads(text)["entries"]
    assert (entry["estimator"], entry["task"], entry["data"]) == ("nvil", "vae_bernoulli", "binarized_mnist")
    assert (entry["mean"], entry["n"], entry["diverged"], entry["settings"]) == (101.0, 2, 1, 2)
    assert entry["setting"] == "optimizer.lr=0.1" and entry["interval"] == "Student t"
    assert entry["seeds"] == [
        {"seed": 0, "status": "finished", "bound": 100.0, "valid": 99.0},
        {"seed": 1, "status": "finished", "bound": 102.0, "valid": 101.0},
        {"seed": 2, "status": "diverged", "bound": None, "valid": None},
    ]
    assert entry["protocol"]["prior"] == "uniform" and entry["protocol"]["sizes"] == [50000, 10000, 10000]
    assert entry["config"]["optimizer.lr"] == 0.1 and entry["config"]["steps"] == 1000
    assert not {"seed", "setting", "device", "data.root", "runs_dir", "step", "valid_bound"} & set(entry["config"])
    assert entry["wall_seconds"] == 1.0
    assert entry["command"].startswith("python train.py -m estimator=nvil optimizer.lr=0.1 ")
    assert entry["command"].endswith(" replicas=1 seed=0,1,2")
    assert "runs_dir" not in text and "/x y" not in text and "NaN" not in text


def test_the_same_runs_give_the_same_bytes(ours, folder, tmp_path):
    again = reference.write(load(ours).sample(frac=1, random_state=0), tmp_path / "again")
    assert again.read_bytes() == (folder / reference.FILE).read_bytes()


def test_a_reference_stands_beside_as_the_runs_would(ours, folder, tmp_path):
    runs, sentences = reference.with_references(final_rows(load(new_runs(tmp_path))), reference.read(folder))
    assert sentences == []
    entries = reference.read(folder)
    summary = reference.restore(summarise_runs(runs), entries).set_index("estimator")
    assert summary.index.tolist() == ["my_own", "nvil (reference)"]
    original = summarise(load(ours)).iloc[0]
    for name in ("mean", "low", "high", "n", "diverged", "settings", "setting", "valid", "metric"):
        assert summary.loc["nvil (reference)", name] == original[name], name
    assert np.isnan(summary.loc["nvil (reference)", "published"])
    (row,) = pairs(select(runs)).to_dict("records")
    assert (row["estimator"], row["other"], row["difference"], row["n"]) == ("my_own", "nvil (reference)", -1.0, 2)
    text = tables.to_text(summary.reset_index())
    assert "nvil (reference)" in text and "1 diverged" in text
    assert "Chosen for nvil (reference): optimizer.lr=0.1 (best of 2 on validation)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 2000}, "steps 1000 (here 2000)"),
        ({"batch_size": 7}, "batch_size 100 (here 7)"),
        ({"optimizer__name": "sgd"}, "optimizer adam (here sgd)"),
        ({"task__kl": "sampled"}, "task.kl analytic (here sampled)"),
    ],
)
def test_another_budget_or_model_is_left_out_and_named(folder, tmp_path, settings, words):
    runs = final_rows(load(new_runs(tmp_path, **settings)))
    both, sentences = reference.with_references(runs, reference.read(folder))
    assert len(both) == len(runs)
    assert sentences == [f"reference left out: nvil on vae_bernoulli, binarized_mnist: {words}"]


def test_another_protocol_is_left_out_and_another_learning_rate_is_not(folder, tmp_path):
    sweep = tmp_path / "runs" / "mine"
    write_run(sweep, make_config("my_own"), protocol={"test_samples": 100, "sizes": [1]}, steps=1)
    both, (sentence,) = reference.with_references(final_rows(load(sweep)), reference.read(folder))
    assert len(both) == 1
    assert "sizes [50000, 10000, 10000] (here [1]); test_samples 1000 (here 100)" in sentence
    sweep = new_runs(tmp_path / "lr", optimizer__lr=0.7)
    assert len(reference.with_references(final_rows(load(sweep)), reference.read(folder))[0]) == 5
    elsewhere = tmp_path / "runs" / "elsewhere"
    write_run(elsewhere, make_config("my_own", "vae_categorical"), steps=1)
    assert reference.with_references(final_rows(load(elsewhere)), reference.read(folder))[1] == []


def test_damage_is_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="no reference at .*--write-reference"):
        reference.read(tmp_path / "nowhere")
    file = folder / reference.FILE
    for content in ("", "[]", "{}", '{"format": 99, "entries": []}', '{"format": 1, "entries": [{"task": 1}]}'):
        file.write_text(content)
        with pytest.raises(ValueError, match="reference.json"):
            reference.read(folder)
    sweep = tmp_path / "runs" / "none"
    write_run(sweep, make_config(), status="diverged")
    with pytest.raises(ValueError, match="no run is finished"):
        reference.write(load(sweep), folder)
