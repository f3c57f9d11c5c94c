"""The step as a CUDA graph: what of it a CPU can check, and on a GPU, where there is one, that it is the same step."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import configs
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.errors import UserError
from training.gradients.watcher import Basket
from training.pack import watchers
from training.pack.build import build
from training.pack.runner import STEPS_PER_GRAPH
from training.replicas.streams import Streams

CPU = torch.device("cpu")
NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "estimator").glob("*.yaml"))
WAITING = {"carms", "rodeo", "unordered_set"}
"""Estimators that build index tensors in the step, which copies them to the device: they run without a graph."""
EVENTFUL = ["data.binarization=dynamic", "schedule=exponential", "schedule.every=3", "schedule.rate=0.05"]


def pack(*overrides, seeds=(0, 1), device=CPU):
    config = configs.config("task.latents=5", "batch_size=20", "optimizer.lr=1e-3", *overrides)
    return build([{**config, "seed": seed} for seed in seeds], device)


@pytest.fixture
def counted(monkeypatch):
    """On a CPU too, noise and orders of data are counted, and the host leads no step."""
    monkeypatch.setattr(Streams, "counts", lambda self, device: True)


@pytest.mark.parametrize("estimator", ["gumbel_softmax", "relax", "nvil"])
def test_steps_that_nobody_leads(counted, estimator):
    """Alone as in a pack; several at once as one by one, over the ends of epochs, and resumed, bit for bit."""
    overrides = [f"estimator={estimator}", *(EVENTFUL if estimator == "gumbel_softmax" else EVENTFUL[:1])]
    together, alone = pack(*overrides, seeds=(3, 4)), pack(*overrides, seeds=(4,))
    for _ in range(4):
        assert torch.allclose(together.train_step()[1], alone.train_step()[0], rtol=1e-5)
    resumed = pack(*overrides, seeds=(4,))
    resumed.restore([alone.state(0)])
    resumed.batches.per_epoch = alone.batches.per_epoch = 5  # of 20 images each
    for _ in range(STEPS_PER_GRAPH):
        losses = alone.train_step()
    assert torch.equal(resumed.train_steps(STEPS_PER_GRAPH), losses)
    assert flat(resumed.state(0)) == flat(alone.state(0))


@pytest.mark.parametrize("task", ["vae_bernoulli", "sbn_bernoulli"])
def test_memory_goes_with_the_pack(counted, task):
    """At once, and without the collector of circles: the next pack may need it, and a capture what a step has had."""
    pack("estimator=gumbel_softmax", f"task={task}").train_steps(2)  # whatever is imported or kept once
    gc.collect()
    gc.disable()
    try:
        ours = pack("estimator=gumbel_softmax", f"task={task}")
        ours.train_steps(2)
        known = [weakref.ref(part) for part in (ours.task, ours.runner, ours.program, ours.tensors.loss_sum)]
        del ours
        assert not any(part() for part in known)
    finally:
        gc.enable()


def test_nobody_who_is_due_is_passed_by():
    """Whoever says how many steps may be taken, at any step, is not due in between; at the last of them it may be."""
    ours = SimpleNamespace(
        step=0, device=torch.device("cuda"), configs=[{"evaluate_every": 7, "checkpoint_seconds": 0}]
    )
    ours.configs[0]["basket"] = {"name": "default", "points": 5, "estimators": {}}
    training = SimpleNamespace(pack=ours, steps=400)
    evaluation = watchers.Evaluation(training)
    progress = watchers.Progress(training, evaluation)
    progress.reported = float("inf")  # what goes by the clock is another matter
    asked = [evaluation, watchers.Divergence(training), Basket(training), progress]
    assert watchers.Checkpoint(training).ahead() == 1
    for watcher in asked:
        for step in range(401):
            ours.step = step
            ahead, due = watcher.ahead(), []
            for ours.step in range(step + 1, step + ahead):
                due.append(watcher.due())
            assert ahead >= 1 and not any(due)


class Watch(TorchDispatchMode):
    """Notes what cannot be captured: waiting for a number, drawing outside of the streams, copying to the device."""

    WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "repeat_interleave"}
    DRAWS = {
        "random_",
        "uniform_",
        "bernoulli",
        "bernoulli_",
        "normal_",
        "multinomial",
        "exponential_",
        "rand",
        "randn",
    }
    COPIES = {"lift_fresh"}

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if name in self.WAITS | self.DRAWS | self.COPIES or by_mask:
            self.found.add(name)
        return function(*args, **(kwargs or {}))


ON_TASKS = [(name, task) for task in ("vae_bernoulli", "vae_categorical") for name in NAMES]
LAYERED = ("sbn_categorical", "deep_vae_categorical")
ON_TASKS += [(name, task) for task in LAYERED for name in ("gumbel_softmax", "nvil", "muprop", "rebar", "rloo")]


@pytest.mark.parametrize(("name", "task"), ON_TASKS)
def test_a_step_can_be_captured(counted, monkeypatch, name, task):
    """It neither waits, nor draws, nor copies; and what it writes is known, so that a warm-up can be taken back."""
    overrides = [f"estimator={name}", f"task={task}", *(["task.categories=3"] if task == "vae_categorical" else [])]
    try:
        ours = pack(*overrides)
    except UserError:
        pytest.skip("not for this task")
    if name == "exact":  # on a CPU it looks at numbers; on a GPU it does not
        monkeypatch.setattr("estimators._enumeration.may_look", lambda x: False)
    ours.program.looks = False  # as on a GPU
    for _ in range(2):
        ours.train_step()
    state = [ours.state(replica) for replica in range(ours.replicas)]
    written = [(tensor, tensor.detach().clone()) for tensor in ours.tensors.tensors()]
    with Watch() as watch:
        first = ours.program.update(ours.tensors)
    assert not watch.found or name in WAITING
    ours.program.update(ours.tensors)
    with torch.no_grad():
        for tensor, before in written:
            tensor.copy_(before)
    assert [flat(own) for own in state] == [flat(ours.state(replica)) for replica in range(ours.replicas)]
    assert torch.equal(ours.train_step(), first)


def flat(state):
    """A checkpoint as nested lists, for a comparison by ``==``."""
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list) else state


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 1],
        lambda x: torch.empty(3).uniform_(),
        lambda x: x[torch.tensor([1])],
        lambda x: x[[1]],
    ],
)
def test_the_watch_sees_what_it_is_for(step):
    with Watch() as watch:
        step(torch.ones(3))
    assert watch.found


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_gpu
@pytest.mark.parametrize("name", NAMES)
def test_captured_is_eager(name):
    """The same losses from the graph and without it; estimators that wait say why and train without.

    Which ones wait says the device: the list above is what a CPU lets one see.
    """
    device = torch.device("cuda")
    captured, eager = pack(f"estimator={name}", device=device), pack(f"estimator={name}", device=device)
    eager.runner.not_captured = "for comparison"
    for _ in range(2 * STEPS_PER_GRAPH):
        assert torch.allclose(captured.train_step(), eager.train_step(), rtol=1e-4)
    assert not captured.runner.not_captured or name in WAITING, captured.runner.not_captured
    assert torch.allclose(captured.tensors.variance.value(), eager.tensors.variance.value(), rtol=1e-3)
    assert torch.allclose(captured.tensors.loss_sum, eager.tensors.loss_sum, rtol=1e-4)


@on_gpu
@pytest.mark.parametrize("estimator", ["gumbel_softmax", "nvil"])
def test_captured_alone_resumed_and_in_a_pack(estimator):
    device = torch.device("cuda")
    overrides = [f"estimator={estimator}", *(EVENTFUL if estimator == "gumbel_softmax" else EVENTFUL[:1])]
    together, alone = (pack(*overrides, seeds=seeds, device=device) for seeds in ((3, 4), (4,)))
    for _ in range(STEPS_PER_GRAPH + 3):
        assert torch.allclose(together.train_step()[1], alone.train_step()[0], rtol=1e-4)
    resumed = pack(*overrides, seeds=(4,), device=device)
    resumed.restore([alone.state(0)])
    for _ in range(2 * STEPS_PER_GRAPH + 3):
        losses = alone.train_step()
    assert torch.equal(resumed.train_steps(2 * STEPS_PER_GRAPH + 3), losses)
    assert not resumed.runner.not_captured and set(resumed.runner._graphs) == {1, STEPS_PER_GRAPH}


@on_gpu
def test_learning_rates_of_many_replicas_on_a_gpu():
    """More than ``MOST_CALLS`` settings: one expression, the same losses as each run alone."""
    device = torch.device("cuda")
    configs = []
    for seed in range(12):
        (config,) = pack(f"optimizer.lr={1e-4 * (seed + 1)}", seeds=(seed,)).configs
        configs.append(config)
    together, alone = build(configs, device), build(configs[9:10], device)
    for _ in range(10):
        assert torch.allclose(together.train_step()[9], alone.train_step()[0], rtol=1e-4)
    assert together.optimizer.as_one_expression and not alone.optimizer.as_one_expression
