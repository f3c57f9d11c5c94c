"""The toy problem: its value against enumeration, its optimum, where straight-through goes instead, and mistakes."""

import pytest
import torch
from test_training import config

from analysis import records
from analysis.statistics import summary as statistics
from estimators import Exact
from training.config.plan import RunPlan
from training.errors import UserError
from training.pack.build import build
from training.pack.run import train_runs
from training.progress import PackLine

CPU = torch.device("cpu")
TOY = ["task=toy", "data=none", "task.latents=1", "batch_size=1"]


def pack(*overrides, replicas=1, **settings):
    job = config(*TOY, *overrides, **settings)
    return build([{**job, "seed": seed} for seed in range(replicas)], CPU)


@pytest.mark.parametrize("latents", [1, 3])
@pytest.mark.parametrize("categories", [2, 4])
def test_the_value_is_the_enumerated_expectation(latents, categories):
    toy = pack(f"task.latents={latents}", f"task.categories={categories}", "task.target=0.3", replicas=2).task
    with torch.no_grad():
        toy.outputs.copy_(torch.randn(toy.outputs.shape, generator=torch.Generator().manual_seed(0)))
    expected = toy.loss(torch.zeros(2, 1, 0), Exact()).squeeze(-1)
    for split in ("valid", "test"):
        torch.testing.assert_close(-toy.evaluate(split, 1)["value"].float(), expected)


def test_unbiased_estimators_find_the_optimum_and_straight_through_does_not():
    """t = 0.45, batches of 100: the optimum is the bit 0 with E = t^2; straight-through stays at p = t."""
    for estimator in ("disarm", "rloo", "exact", "reinmax"):
        trained = pack(f"estimator={estimator}", "task.target=0.45", "optimizer.lr=0.05", batch_size=100)
        for _ in range(1000):
            trained.train_step()
        assert -trained.task.evaluate("test", 1)["value"].item() == pytest.approx(0.45**2, abs=2e-3), estimator
    lost = pack("estimator=straight_through", "task.target=0.45", "optimizer.lr=0.05", batch_size=100)
    for _ in range(1000):
        lost.train_step()
    assert lost.task.outputs.sigmoid().item() == pytest.approx(0.45, abs=0.02)


def test_each_replica_has_its_target_and_trains_as_alone():
    jobs = [config(*TOY, "estimator=rebar", f"task.target={target}") for target in (0.2, 0.8)]
    together, alone = build(jobs, CPU), [build([job], CPU) for job in jobs]
    for _ in range(20):
        losses = together.train_step()
        for r, solo in enumerate(alone):
            assert torch.allclose(solo.train_step()[0], losses[r], rtol=1e-5)


def test_a_run_of_the_toy_is_recorded_and_analysed(tmp_path):
    job = config(*TOY, "estimator=nvil", runs_dir=str(tmp_path))
    train_runs([RunPlan({**job, "seed": seed}) for seed in range(2)], PackLine(False), solo=True)
    frame = records.load(tmp_path)
    assert set(frame["status"]) == {"finished"} and frame["protocol.evaluation_is_bound"].eq(False).all()
    (row,) = statistics.summarise(frame).to_dict("records")
    assert row["metric"] == "value" and row["n"] == 2 and 0.2 < row["mean"] < 0.3
    assert not list(tmp_path.rglob("images.npz"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=toy", "data=digits"], "the task has no images: use data=none"),
        (["task=vae_bernoulli", "data=none"], "the task needs images: use data=digits"),
        (["task=toy", "data=none", "task.latents=0"], "latents must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(overrides, words):
    with pytest.raises(UserError, match=words):
        build([config(*overrides)], CPU)
