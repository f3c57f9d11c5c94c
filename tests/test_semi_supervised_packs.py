"""Semi-supervised classification in packs: resuming, capture, records; and its baseline."""

import pytest
import torch
from test_capture import Watch, counted, flat  # noqa: F401
from test_semi_supervised import CPU, digits

from analysis import records
from analysis.statistics import summary as statistics
from training.config import validity
from training.config.plan import RunPlan
from training.gradients import basket
from training.pack.build import build
from training.pack.run import train_runs
from training.progress import PackLine
from training.sweep import planning


def pack(*overrides, seeds=(4,)):
    job = digits(*overrides)
    return build([{**job, "seed": seed} for seed in seeds], CPU)


CONV = ["task.network=conv", "task.channels=[2,3,4]", "task.warm_up=5"]


@pytest.mark.parametrize("options", [[], CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("name", ["exact", "gumbel_softmax", "nvil", "rebar", "vimco"])
def test_a_step_can_be_captured(counted, monkeypatch, name, options):  # noqa: F811
    """It neither waits, nor draws, nor copies; and what it writes is known."""
    ours = pack(f"estimator={name}", *options, seeds=(0, 1))
    if name == "exact":  # on a CPU it looks at numbers; on a GPU it does not
        monkeypatch.setattr("estimators._enumeration.may_look", lambda x: False)
    ours.program.looks = False  # as on a GPU
    for _ in range(2):
        ours.train_step()
    state = [ours.state(replica) for replica in range(ours.replicas)]
    written = [(tensor, tensor.detach().clone()) for tensor in ours.tensors.tensors()]
    with Watch() as watch:
        first = ours.program.update(ours.tensors)
    assert not watch.found
    ours.program.update(ours.tensors)
    with torch.no_grad():
        for tensor, before in written:
            tensor.copy_(before)
    assert [flat(own) for own in state] == [flat(ours.state(replica)) for replica in range(ours.replicas)]
    assert torch.equal(ours.train_step(), first)


def test_noise_counted_alone_and_resumed(counted):  # noqa: F811
    together, alone = pack(seeds=(3, 4)), pack(seeds=(4,))
    for _ in range(11):
        assert torch.allclose(together.train_step()[1], alone.train_step()[0], rtol=1e-5)
    resumed = pack(seeds=(4,))
    resumed.restore([alone.state(0)])
    assert torch.equal(resumed.train_step(), alone.train_step())


def test_a_weight_for_each_replica():
    jobs = [digits(f"task.alpha={alpha}") for alpha in (0.0, 5.0)]
    together = build(jobs, CPU)
    for _ in range(3):
        losses = together.train_step()
    for job, loss in zip(jobs, losses, strict=True):
        alone = build([job], CPU)
        for _ in range(3):
            own = alone.train_step()
        assert torch.allclose(own[0], loss, rtol=1e-4)
    assert losses[1] > losses[0] + 5


def test_runs_are_recorded(tmp_path):
    for task in ("semi_supervised", "labelled_only"):
        job = digits(f"task={task}", "estimator=exact", runs_dir=str(tmp_path))
        train_runs([RunPlan({**job, "seed": seed}) for seed in range(2)], PackLine(False), solo=True)
    table = statistics.summarise(records.load(tmp_path))
    assert sorted(table["task"]) == ["labelled_only", "semi_supervised"] and table["mean"].notna().all()
    assert len(list(tmp_path.rglob("images.npz"))) == 4


def test_the_baseline_is_trained_once_and_not_for_each_estimator():
    jobs = [digits("task=labelled_only", f"estimator={name}") for name in ("exact", "gumbel_softmax")]
    assert validity.reason_to_skip(jobs[0]) is None
    plan = planning.make_plan([RunPlan(job) for job in jobs])
    assert plan.todo == 1
    assert any("gumbel_softmax: would never be asked by task=labelled_only" in line for line in plan.lines())


def test_gradient_variance_at_one_point():
    """Style and labelled images are drawn once and for all: only the noise of the estimator is left."""
    trained = pack("estimator=exact")
    for _ in range(5):
        trained.train_step()
    nodes = {name: digits(f"estimator={name}")["estimator"] for name in ("reinforce", "exact")}
    reinforce, exact = basket.measure(basket.Point(trained), nodes, draws=200, warm_up=2)
    assert exact.figures.variance < 1e-12 < reinforce.figures.variance
