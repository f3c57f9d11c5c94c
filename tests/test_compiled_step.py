"""The step as a function of state, rows and noise: pure, traced as one graph, compiled; the numbers are the same."""

import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from training.config import schema
from training.errors import UserError
from training.kernels import compiled
from training.pack import runner
from training.pack.build import build
from training.pack.evaluation import summary
from training.pack.step import flat
from training.replicas.streams import Streams

CPU = torch.device("cpu")
FULL = bool(os.environ.get("FULL"))
NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "estimator").glob("*.yaml"))
TASKS = {
    "vae_bernoulli": ["task.latents=5", "data.binarization=dynamic"],
    "vae_categorical": ["task.latents=3", "task.categories=3"],
    "toy": ["data=none"],
    "semi_supervised": ["task.hidden=[8]", "task.style=3"],
    "deep_vae_bernoulli": ["task.latents=4"],
    "sbn_bernoulli": ["task.latents=4"],
}
FEW = ("gumbel_softmax", "nvil", "rebar")
"""A hook on logits, averages that are written, derivatives within the step; on the other tasks."""
ON_TASKS = [(name, task) for task in TASKS for name in NAMES if FULL or task == "vae_bernoulli" or name in FEW]
needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, runner.COMPILERS)), reason="Inductor compiles by a C++ compiler, which is not here"
)


def configs(*overrides, seeds=(0, 1)):
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        small = ["batch_size=12", "optimizer.lr=1e-3", *overrides]
        config = OmegaConf.to_container(compose("config", overrides=small), resolve=True)
    return [{**config, "seed": seed} for seed in seeds]


def pack(name, task, *overrides, seeds=(0, 1)):
    try:
        return build(configs(f"estimator={name}", f"task={task}", *TASKS[task], *overrides, seeds=seeds), CPU)
    except UserError:
        pytest.skip("not for this task")


def arguments(ours):
    """State, rows and noise of the next step, in memory of their own."""
    ours.train_step()
    rows = ours.batches.rows(ours.step).contiguous()
    return ours.tensors.copied(), rows, ours.streams.draw(ours.program.draws(rows))


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, task in ON_TASKS if name != "arsm" or FULL])
def test_a_step_is_a_function_of_its_arguments(name, task):
    """Twice the same, with nothing changed, be it the arguments or the pack; and what training does in place."""
    ours = pack(name, task)
    state, rows, noise = arguments(ours)
    given = [*state.tensors(), rows, *flat(noise)]
    before, own = [tensor.clone() for tensor in given], [tensor.clone() for tensor in ours.tensors.tensors()]
    (first, losses), (second, again) = ours.program(state, rows, noise), ours.program(state, rows, noise)
    assert torch.equal(losses, again) and equal(first.tensors(), second.tensors())
    assert equal(given, before) and equal(ours.tensors.tensors(), own)
    assert not equal(first.tensors(), before[: len(own)])
    with ours.streams.given(noise):
        assert torch.equal(ours.program.update(ours.tensors, rows), losses)
    assert equal(ours.tensors.tensors(), first.tensors())


@pytest.mark.parametrize("name", ["gumbel_softmax", "relax", "nvil"])
def test_noise_ahead_of_a_step_is_what_it_draws_itself(name):
    ahead, itself = pack(name, "vae_bernoulli"), pack(name, "vae_bernoulli")
    state, rows, noise = arguments(ahead)
    itself.train_step()
    assert torch.equal(ahead.program(state, rows, noise)[1], itself.train_step())
    with pytest.raises(RuntimeError, match="noise that it is given is none"), ahead.streams.given({}):
        ahead.program.update(ahead.tensors, rows)


def in_one_graph(ours, backend):
    """The losses and the state of a step by a compiled program, and by the operators one after the other."""
    state, rows, noise = arguments(ours)
    work = compiled.compiled(ours.program.in_place(ours.program.draws(rows)), example(state, rows, noise), backend)
    mine = example(state, rows, noise)
    losses = work(mine)
    ours.program.looks = False  # as a program, which notes the range of logits in every step
    ours.optimizer.as_one_expression = True
    new, expected = ours.program(state, rows, noise)
    return [losses, *mine[: len(new.tensors())]], [expected, *new.tensors()]


def example(state, rows, noise):
    return [*state.copied().tensors(), rows, *flat(noise)]


@pytest.mark.parametrize(("name", "task"), ON_TASKS)
def test_a_step_is_one_graph(name, task):
    """Traced through torch.compile; by torch's own kernels the numbers are the same bit for bit."""
    torch._dynamo.reset()
    ours, expected = in_one_graph(pack(name, task), "eager")
    assert torch.equal(ours[0], expected[0])
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("name", ["gumbel_softmax", *(NAMES if FULL else ["nvil"])])
def test_a_step_without_writing_in_place(name):
    """As a compiler for CUDA gets it: functional, with what is written as results."""
    torch._dynamo.reset()
    for mine, theirs in zip(*in_one_graph(pack(name, "vae_bernoulli"), "aot_eager"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@needs_a_compiler
@pytest.mark.parametrize(
    ("name", "task"), ON_TASKS if FULL else [("gumbel_softmax", "vae_bernoulli"), ("nvil", "toy"), ("rloo", "toy")]
)
def test_compiled_training_is_training_to_rounding(name, task):
    """And it goes on from a checkpoint bit for bit; packs of one structure share the code, whatever their numbers.

    Adam's eps is large: a gradient that is zero but for rounding (of samples that are all equal) would otherwise become
    a step of full size in either direction.
    """
    torch._dynamo.reset()
    fast, plain = (pack(name, task, f"compile={value}", "optimizer.eps=1e-3") for value in ("true", "false"))
    for _ in range(6):
        torch.testing.assert_close(fast.train_step(), plain.train_step(), rtol=1e-4, atol=1e-5)
    assert fast.runner.not_compiled == "" and plain.runner.not_compiled == "compile=false"
    there = len(compiled._programs)
    resumed = pack(name, task, "compile=true", "optimizer.eps=1e-3")
    resumed.restore([fast.state(replica) for replica in range(2)])
    assert torch.equal(resumed.train_step(), fast.train_step())
    assert equal(resumed.tensors.tensors(), fast.tensors.tensors())
    numbers = ["optimizer.lr=0.01", "optimizer.eps=1e-2"]
    other, alike = (pack(name, task, f"compile={value}", *numbers, seeds=(5, 6)) for value in (True, False))
    for _ in range(3):
        torch.testing.assert_close(other.train_step(), alike.train_step(), rtol=1e-4, atol=1e-5)
    assert len(compiled._programs) == there


@needs_a_compiler
def test_programs_with_one_graph_and_other_tensors_stay_apart():
    """Called in turns, with no guards to tell them: by shapes, strides and dtypes."""
    torch._dynamo.reset()
    a, b = torch.randn(3, 5), torch.randn(5, 3)
    examples = [(a, a + 1), (b, b + 1), (b.T, a), (a.double(), a.double())]
    runs = [compiled.compiled(lambda tensors: tensors[0].exp() * tensors[1], own) for own in examples]
    for _ in range(2):
        for run, (x, y) in zip(runs, examples, strict=True):
            torch.testing.assert_close(run([x, y]), x.exp() * y)


def test_what_cannot_be_compiled_trains_as_it_is(monkeypatch):
    """An estimator that looks at a number: the reason is kept, and the numbers are those without compilation."""
    ours, plain = pack("gumbel_softmax", "toy", "compile=true"), pack("gumbel_softmax", "toy")
    sample = type(ours.estimator).sample
    monkeypatch.setattr(type(ours.estimator), "sample", lambda self, x: sample(self, x * float(x.isfinite().all())))
    for _ in range(3):
        assert torch.equal(ours.train_step(), plain.train_step())
    assert "RuntimeError" in ours.runner.not_compiled
    monkeypatch.setattr(runner.shutil, "which", lambda name: None)
    ours = pack("gumbel_softmax", "toy", "compile=true")
    ours.train_step()
    assert "no C++ compiler" in ours.runner.not_compiled


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["gumbel_softmax", "nvil", "reinmax", "rloo"])
@pytest.mark.parametrize("task", ["vae_bernoulli", "vae_categorical"])
def test_compiled_is_eager_on_cuda(name, task):
    """The same losses and weights, to rounding, from compiled code in a CUDA graph."""
    ours, plain = (
        build(configs(f"estimator={name}", f"task={task}", *TASKS[task], f"compile={value}"), torch.device("cuda"))
        for value in (True, False)
    )
    for _ in range(20):
        torch.testing.assert_close(ours.train_step(), plain.train_step(), rtol=1e-3, atol=1e-3)
    assert ours.runner.not_compiled == "" and ours.runner.not_captured == ""
    torch.testing.assert_close(ours.parameters, plain.parameters, rtol=1e-2, atol=1e-3)


def test_a_diverged_replica_in_a_program(monkeypatch):
    """It is told with its step and logits, and its neighbour does not notice."""
    torch._dynamo.reset()
    monkeypatch.setattr(runner, "compiled", lambda work, examples: compiled.compiled(work, examples, "eager"))
    ours, well = (pack("gumbel_softmax", "vae_bernoulli", "compile=true") for _ in range(2))
    for step in range(4):
        if step == 2:
            with torch.no_grad():
                ours.parameters[0][1].fill_(float("nan"))
        assert torch.equal(ours.train_step()[0], well.train_step()[0])
    ((replica, details),) = ours.divergences([0, 1], everywhere=False)
    assert replica == 1 and details["diverged_at"] == 3 and ours.runner.not_compiled == ""
    assert equal([p[0] for p in ours.parameters], [p[0] for p in well.parameters])


def test_a_program_that_nobody_leads(monkeypatch):
    """Rows, temperatures and noise of the step that the state says: what a GPU compiles, operator by operator here."""
    torch._dynamo.reset()
    monkeypatch.setattr(Streams, "counts", lambda self, device: True)
    monkeypatch.setattr(runner, "compiled", lambda work, examples: compiled.compiled(work, examples, "eager"))
    annealed = ["schedule=exponential", "schedule.every=2", "schedule.rate=0.1"]
    ours, plain = (pack("gumbel_softmax", "vae_bernoulli", f"compile={value}", *annealed) for value in (True, False))
    ours.batches.per_epoch = plain.batches.per_epoch = 3
    for _ in range(8):
        losses = plain.train_step()
    torch.testing.assert_close(ours.train_steps(8), losses, rtol=1e-5, atol=0)
    assert ours.runner.not_compiled == "" and torch.equal(ours.temperatures()[0], plain.temperatures()[0])
    assert ours.temperatures()[0].tolist() == pytest.approx([math.exp(-0.6)] * 2)


def test_a_compiler_that_is_broken(monkeypatch, tmp_path):
    """The pack trains as it would without, and its record says why."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(runner, "COMPILERS", ("true",))
    monkeypatch.setattr(compiled, "_programs", {})
    ours, plain = (pack("straight_through", "toy", f"compile={value}", "batch_size=13") for value in (True, False))
    with torch._inductor.config.patch({"cpp.cxx": ("false",), "compile_threads": 1}):
        for _ in range(3):
            assert torch.equal(ours.train_step(), plain.train_step())
    assert "rror" in ours.runner.not_compiled and not ours.state(0)["compiled"]
    assert summary(ours, 0, "finished", {})["kernels"]["not_compiled"] == ours.runner.not_compiled


GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "steps", "parameters", "first", "compiles"),
    [
        (CPU, 19_999, 1e9, False, False),
        (CPU, 20_000, 1, True, True),
        (GPU, 199_000, 1, True, False),  # launches: .1 ms each
        (GPU, 201_000, 1, True, True),
        (GPU, 12_000, 256 * 315_000, True, False),  # 1.55 ms each
        (GPU, 14_000, 256 * 315_000, True, True),
        (GPU, 3_000, 256 * 315_000, False, False),
        (GPU, 3_500, 256 * 315_000, False, True),
    ],
)
def test_auto_compiles_where_the_steps_are_worth_it(monkeypatch, device, steps, parameters, first, compiles):
    """20 s for the first step that a process compiles for a GPU, 5 s for others; 20,000 steps on a CPU."""
    monkeypatch.setattr(runner, "COMPILERS", ("true",))
    monkeypatch.setattr(compiled, "_programs", {} if first else {"another": None})
    chosen, reason = runner.choice("auto", device, steps, parameters, None)
    assert chosen == compiles and reason.startswith("compile=auto: ")
    for before in (True, False):  # who goes on does as before
        assert runner.choice("auto", device, steps, parameters, before)[0] == before
        for option in ("true", "false"):
            assert runner.choice(option, device, steps, parameters, before)[0] == (option == "true")
    monkeypatch.setattr(runner, "COMPILERS", ())
    assert runner.choice("auto", CPU, 20_000, 1, None) == (False, "compile=auto: there is no C++ compiler")


def test_auto_counts_the_steps_to_the_first_rung_of_a_race(monkeypatch):
    """Most of its runs end there."""
    monkeypatch.setattr(runner, "compiled", lambda work, examples: work)
    monkeypatch.setattr(runner, "COMPILERS", ("true",))
    for rung, compiles in ((19_000, False), (20_000, True)):
        options = ["compile=auto", "steps=50000", "race=halving", f"race.rungs=[{rung}]", "race.over=[optimizer]"]
        ours = pack("gumbel_softmax", "toy", *options)
        ours.train_step()
        assert bool(ours.runner.not_compiled) != compiles


def test_a_run_that_goes_on_is_compiled_as_it_was(monkeypatch):
    """Whatever ``auto`` says of its new length."""
    monkeypatch.setattr(runner, "compiled", lambda work, examples: work)
    monkeypatch.setattr(runner, "COMPILERS", ("true",))
    long, short = (pack("gumbel_softmax", "toy", "compile=auto", f"steps={steps}") for steps in (20_000, 100))
    for ours, other in ((long, short), (short, long)):
        ours.train_step()
        again = pack("gumbel_softmax", "toy", "compile=auto", f"steps={other.configs[0]['steps']}")
        again.restore([ours.state(replica) for replica in range(2)])
        assert torch.equal(again.train_step(), ours.train_step())
        assert bool(again.runner.not_compiled) == bool(ours.runner.not_compiled) == (ours is short)
