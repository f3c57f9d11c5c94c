"""``check_task``: the contract of :mod:`tasks.base`, run against any task, a user's own included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Estimator, Primary, Task
from tasks.datasets import Dataset, Split, blank_dataset

CPU = torch.device("cpu")
SEEDS = (3, 1, 2)
"""Of the replicas of a pack; the last is also built alone."""
EXAMPLES = 3
GROUPS, DRAWS = 64, 256
"""Draws behind a mean: so many means of so many."""
STANDARD_ERRORS = 7.0
"""That a mean of ``GROUPS`` may be off: Student's t with 63 degrees of freedom is with probability 2e-9."""
STEP = 1e-5
"""Of a difference quotient, in float64."""


class TaskError(AssertionError):
    """A task breaks its contract; the message says in words what is broken."""


@dataclass(frozen=True)
class SeededStreams:
    """:class:`tasks.base.RandomStreams` from torch's generators on a CPU: each replica's noise is that of its seed."""

    seeds: Sequence[int]

    @property
    def replicas(self) -> int:
        return len(self.seeds)

    def fresh(self, purpose: str) -> Callable[..., Tensor]:
        generators = self._generators(purpose)

        def uniform(shape: Sequence[int], dtype: torch.dtype, device: torch.device, event_dims: int = 2) -> Tensor:
            dim = len(shape) - event_dims - 2
            own = [length for place, length in enumerate(shape) if place != dim]
            drawn = [torch.rand(own, generator=each, dtype=torch.float64) for each in generators]
            return torch.stack(drawn, dim).clamp(1e-7, 1 - 1e-7).to(device, dtype)

        return uniform

    def source(self, purpose: str, device: torch.device) -> Callable[..., Tensor]:
        """Each call starts it anew: a step's noise is the same in every step of a check."""
        return self.fresh(f"source of {purpose}")

    def words(self, purpose: str) -> Callable[..., Tensor]:
        generators = self._generators(purpose)

        def words(shape: Sequence[int], device: torch.device) -> Tensor:
            drawn = [torch.randint(2**31, list(shape[1:]), generator=each) for each in generators]
            return torch.stack(drawn).to(device, torch.int32)

        return words

    def _generators(self, purpose: str) -> list[torch.Generator]:
        hashes = (hashlib.sha256(f"{seed}/{purpose}".encode()).digest() for seed in self.seeds)
        return [torch.Generator().manual_seed(int.from_bytes(each[:7], "little")) for each in hashes]


@dataclass
class Mean:
    """Shows the loss the mean of ``z``: an estimator without noise, biased, that any task can be trained with."""

    context_features: int | None
    unbiased: bool = False
    relaxed: bool = True
    calls: int = 0

    def __call__(self, logits: Tensor, loss: Callable[[Tensor], Tensor], context: Tensor | None = None) -> Tensor:
        self.calls += 1
        if context is not None and context.shape[-1] != self.context_features:
            raise TaskError(
                f"gives its estimator a context of {context.shape[-1]} numbers, but context_features is "
                f"{self.context_features}"
            )
        z = logits.softmax(-1)
        losses = loss(z)
        if losses.shape != logits.shape[:-2]:
            raise TaskError(
                f"gives its estimator a loss that returns {list(losses.shape)} for z of {list(z.shape)}: it must be "
                f"one value for each example and replica, {list(logits.shape[:-2])}"
            )
        with torch.no_grad():
            both = torch.stack((z, 0.5 * z + 0.5 / z.shape[-1]))
            values, second = loss(both), loss(both[1])
        if values.shape != (2, *losses.shape):
            raise TaskError(
                f"gives its estimator a loss that returns {list(values.shape)} for z with a dimension of 2 samples in "
                f"front: it must be {[2, *losses.shape]}"
            )
        if not torch.allclose(values, torch.stack((losses.detach(), second)), rtol=1e-4, atol=1e-5):
            raise TaskError("gives its estimator a loss whose value at a sample depends on the samples beside it")
        return losses


@dataclass
class Sampled:
    """One exact sample, by the score function: unbiased in the value and in the gradient."""

    generator: torch.Generator
    unbiased: bool = True
    relaxed: bool = False

    def __call__(self, logits: Tensor, loss: Callable[[Tensor], Tensor], context: Tensor | None = None) -> Tensor:
        log_q = logits.log_softmax(-1)
        u = torch.rand(logits.shape, generator=self.generator, dtype=torch.float64)
        index = (log_q.detach().double() - (-u.log()).log()).argmax(-1)
        z = nn.functional.one_hot(index, logits.shape[-1]).to(logits.dtype)
        losses, log_prob = loss(z), (z * log_q).sum((-2, -1))
        return losses + losses.detach() * (log_prob - log_prob.detach())


@dataclass
class _Checked:
    """A task under check, built anew for each use."""

    make: Callable[..., Any]
    data: Dataset

    def build(self, seeds: Sequence[int] = SEEDS, dtype: torch.dtype = torch.float32) -> Any:
        """With parameters away from their start, which may be a point where gradients vanish."""
        task = self.make(data=self.data, streams=SeededStreams(seeds))
        if isinstance(task, nn.Module):
            move = SeededStreams(seeds).fresh("moved by the check")
            with torch.no_grad():
                for parameter in task.parameters():
                    if parameter.shape[:1] == (len(seeds),):
                        noise = move((len(seeds), 1, *parameter.shape[1:]), torch.float64, CPU, parameter.dim() - 1)
                        parameter.add_(0.4 * (noise.squeeze(1) - 0.5))
            task = task.to(dtype)
        return task

    def batch(self, replicas: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The first training images, the same for every replica, ``[R, EXAMPLES, D]``."""
        split = self.data.train
        return (split.pixels[:EXAMPLES].to(dtype) / split.levels).expand(replicas, -1, -1)


def small_data(categories: int = 2) -> Dataset:
    """Random bits, 40 images of 4x3 pixels in each split, with labels of ``categories`` classes."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(40) % categories
    train, valid, test = (
        Split(torch.randint(2, (40, 12), generator=generator, dtype=torch.uint8), 1, labels) for _ in range(3)
    )
    return Dataset("small", (4, 3), "static", train, valid, test)


def check_task(
    task: Callable[..., Task],
    data: Dataset | None = None,
    *,
    exact: Estimator | None = None,
) -> None:
    """Run the whole contract on a task; return ``None`` if it holds.

    Clauses: what is declared; the shape of losses, for each example and replica and for samples in front; that
    examples and replicas do not depend on each other; the mean of the loss over exact samples, and its gradient,
    against enumeration (with ``exact``); the same numbers alone and in a pack; an evaluation that is repeatable and
    draws from its streams alone; pictures; the state, which another task of the same runs goes on from.

    Args:
        task: the class, or ``functools.partial`` of it with options: it is called with ``data`` and ``streams``. Few
            latents make the check fast, and ``exact`` possible.
        data: what it is built on: if it is not given, :func:`small_data` or, for a task without images, ``none``.
        exact: an estimator that enumerates all states (``estimators.Exact()``); without it the loss is not compared.

    Raises:
        TaskError: naming every broken clause.
    """
    made: Any = getattr(task, "func", task)
    name = getattr(made, "__name__", type(made).__name__)
    checked = _Checked(
        task, data or (small_data() if getattr(made, "needs_images", True) else blank_dataset("none", "static"))
    )
    clauses: list[Callable[[_Checked], Iterator[str]]] = [_declarations]
    clauses += [_losses, _independence, _packs, _evaluation, _pictures, _state]
    broken: list[str] = []
    for clause in clauses:
        broken += _found(clause, checked)
        if broken and clause is _declarations:
            break
    if exact is not None and not broken:
        broken += _found(lambda each: _expectation(each, exact), checked, "the loss against enumeration")
    if broken:
        raise TaskError("\n".join(f"{name}: {sentence}" for sentence in broken))


def _found(clause: Callable[[_Checked], Iterator[str]], checked: _Checked, words: str | None = None) -> list[str]:
    found: list[str] = []
    try:
        for sentence in clause(checked):
            found.append(sentence)
    except TaskError as error:
        found.append(str(error))
    except Exception as error:
        found.append(f"the clause '{words or clause.__doc__}' raised {type(error).__name__}: {error}")
    return found


def _declarations(checked: _Checked) -> Iterator[str]:
    """what is declared"""
    task = checked.build()
    if not isinstance(task, Task):
        yield f"is no task: it must derive from {Task.__module__}.{Task.__name__}"
        return
    if task.replicas != len(SEEDS):
        yield f"has {task.replicas} replicas, but its streams have {len(SEEDS)}"
    layers = task.layers_of_latents
    if not layers or not all(hasattr(layer, each) for layer in layers for each in ("latents", "categories")):
        yield "has no latents: set self.latents = latents_of(latents, categories), or write layers_of_latents"
    if not isinstance(task.context_features, int | None):
        yield f"has context_features {task.context_features!r}: say how many numbers a context has, or None"
    own = {id(parameter): name for name, parameter in task.named_parameters()}
    encoder = list(task.encoder_parameters())
    if not encoder or not {id(parameter) for parameter in encoder} <= own.keys():
        yield "has encoder_parameters() that are not some of its parameters"
    for name, parameter in task.named_parameters():
        if parameter.shape[:1] != (len(SEEDS),):
            yield (
                f"has a parameter {name} of shape {list(parameter.shape)}: its first dimension must be the replicas, "
                f"{len(SEEDS)} here"
            )
    if not isinstance(task.kl_for(Mean(task.context_features)), str):
        yield "has a kl_for(estimator) that returns no name"
    if not isinstance(task.primary, Primary):
        yield "has a primary that is no tasks.base.Primary"
    yield from _declared_protocol(task)


def _declared_protocol(task: Task) -> Iterator[str]:
    protocol, plain = task.protocol(), {}
    for key, value in protocol.items():
        if not isinstance(value, Tensor):
            plain[key] = value
        elif value.shape != (task.replicas,):
            yield f"has a protocol whose {key} is a tensor {list(value.shape)}: it must have a number for each replica"
    try:
        json.dumps(plain)
    except (TypeError, ValueError) as error:
        yield f"has a protocol that cannot be written as JSON ({error})"
    if not isinstance(protocol.get("evaluation_is_bound"), bool):
        yield "has a protocol that does not say evaluation_is_bound: begin with super().protocol()"


def _loss(task: Task, batch: Tensor, estimator: Estimator | None = None) -> Tensor:
    layers = len(task.layers_of_latents)
    losses = task.loss(batch, *[estimator or Mean(task.context_features)] * layers)
    if losses.shape != batch.shape[:2]:
        raise TaskError(
            f"has a loss of shape {list(losses.shape)}: it must be one value for each replica and example, "
            f"{list(batch.shape[:2])} here"
        )
    return losses


def _losses(checked: _Checked) -> Iterator[str]:
    """the loss for each example and replica"""
    task = checked.build()
    losses = _loss(task, checked.batch(task.replicas))
    if not bool(losses.isfinite().all()):
        yield "has losses that are not finite"
    if not losses.requires_grad:
        yield "has a loss without a gradient"


def _independence(checked: _Checked) -> Iterator[str]:
    """independence of examples and replicas"""
    task = checked.build()
    batch = checked.batch(task.replicas)
    before, changed = _loss(task, batch), batch.clone()
    changed[0, 0] = 1 - changed[0, 0]
    others = torch.ones(before.shape, dtype=torch.bool)
    others[0, 0] = False
    if not torch.allclose(_loss(task, changed)[others], before[others], rtol=1e-5, atol=1e-6):
        yield "couples examples: with another image in one place the losses of others changed"
    parameters = list(task.parameters())
    gradients = torch.autograd.grad(before[0].sum(), parameters, allow_unused=True)
    if any(gradient is not None and bool(gradient[1:].ne(0).any()) for gradient in gradients):
        yield "couples replicas: the loss of one has a gradient in the parameters of another"


def _packs(checked: _Checked) -> Iterator[str]:
    """the same alone and in a pack"""
    together, alone = checked.build(), checked.build(SEEDS[-1:])
    for (name, ours), theirs in zip(alone.named_parameters(), together.parameters(), strict=True):
        if not torch.allclose(ours[0], theirs[-1], rtol=1e-6, atol=1e-7):
            yield f"starts {name} from other numbers alone than in a pack: draw them from streams.fresh('parameters')"
            return
    ours, theirs = (_loss(task, checked.batch(task.replicas))[-1] for task in (together, alone))
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
        yield (
            "has another loss alone than in a pack: noise of its own in training must come from "
            "streams.source(purpose, batch.device)"
        )
    found = [task.evaluate("valid", 4) for task in (together, alone)]
    for name, value in found[1].items():
        if not torch.allclose(value[0], found[0][name][-1], rtol=1e-4, atol=1e-5):
            yield f"evaluates another {name} alone than in a pack: its noise must come from its streams"
    pictures = [task.examples(2)[-1] for task in (together, alone)]
    if any(not torch.allclose(each, pictures[0][name], atol=1e-4) for name, each in pictures[1].items()):
        yield "draws other pictures alone than in a pack"


def _evaluation(checked: _Checked) -> Iterator[str]:
    """evaluation"""
    task = checked.build()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    probe = Mean(task.context_features)
    _loss(task, checked.batch(task.replicas), probe)
    calls = probe.calls
    for split in ("train", "valid", "test"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = task.evaluate(split, 4)
            torch.manual_seed(1)
            second = task.evaluate(split, 4)
        detailed = task.evaluate(split, 4, details=True)
        if task.primary.metric not in first:
            yield f"declares {task.primary.metric} as its primary metric, but evaluate() on {split} has {sorted(first)}"
        for name, value in detailed.items():
            if not isinstance(value, Tensor) or value.shape != (task.replicas,):
                yield f"evaluates a {name} that is not one number for each replica"
            elif value.requires_grad:
                yield f"evaluates a {name} with a gradient: use @torch.no_grad()"
            elif not bool(value.isfinite().all()):
                yield f"evaluates a {name} on {split} that is not finite"
        if any(name not in second or not torch.equal(value, second[name]) for name, value in first.items()):
            yield f"evaluates other numbers on {split} when it is asked again: its noise must come from its streams"
        if any(name not in detailed or not torch.equal(value, detailed[name]) for name, value in first.items()):
            yield f"evaluates other numbers on {split} with details than without"
    if probe.calls != calls:
        yield "evaluates through its estimator"
    if any(not torch.equal(value, before[name]) for name, value in task.state_dict().items()):
        yield "is changed by its own evaluation"


def _pictures(checked: _Checked) -> Iterator[str]:
    """pictures"""
    task = checked.build()
    found = task.examples(2)
    if len(found) != task.replicas:
        yield f"has examples() of {len(found)} replicas instead of {task.replicas}"
    for name, images in found[0].items() if found else ():
        shape = task.data.image_shape
        if images.shape[-2:] != shape or images.dim() < 3 or len(images) > 2:
            yield f"has examples(2) whose {name} is {list(images.shape)}: at most 2 images of {list(shape)} pixels"
        elif images.requires_grad or images.device.type != "cpu":
            yield f"has examples() whose {name} has a gradient or is not on the CPU"


def _state(checked: _Checked) -> Iterator[str]:
    """the state"""
    first, second = checked.build(), checked.build()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter += 0.1
    second.load_state_dict(first.state_dict())
    ours, theirs = (_loss(task, checked.batch(task.replicas)) for task in (first, second))
    found = [task.evaluate("valid", 4) for task in (first, second)]
    if not torch.equal(ours, theirs) or any(not torch.equal(value, found[1][name]) for name, value in found[0].items()):
        yield "does not go on from its state_dict(): what changes in training must be a parameter or a buffer"


def _expectation(checked: _Checked, exact: Estimator) -> Iterator[str]:
    """Deterministic: the gradient against difference quotients; and the mean of draws, values and gradients."""
    seeds = SEEDS[:1]
    task = checked.build(seeds, torch.float64)
    batch = checked.batch(1, torch.float64)
    losses = _loss(task, batch, exact)
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    directions = [_directions(parameter) for parameter in parameters]
    for (name, parameter), gradient, direction in zip(task.named_parameters(), gradients, directions, strict=True):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * STEP * direction
                ends.append(_loss(task, batch, exact).mean().item())
                parameter -= sign * STEP * direction
        right = (ends[0] - ends[1]) / (2 * STEP)
        found = 0.0 if gradient is None else float((gradient * direction).sum())
        if abs(found - right) > 1e-5 * (1 + abs(right)):
            yield (
                f"has a loss whose gradient in {name}, with all states enumerated, is not that of its value "
                f"({found:.6g} instead of {right:.6g} in one direction): a term is detached, or counted twice"
            )
    values, sums = [], []
    sampled = Sampled(torch.Generator().manual_seed(0))
    many = batch.repeat_interleave(DRAWS, 1)
    for _ in range(GROUPS):
        drawn = _loss(task, many, sampled).mean()
        own = torch.autograd.grad(drawn, parameters, allow_unused=True)
        values.append(drawn.detach())
        sums.append(
            torch.stack([_derivative(each, direction) for each, direction in zip(own, directions, strict=True)])
        )
    expected = _loss(task, many, exact).mean()
    enumerated = torch.autograd.grad(expected, parameters, allow_unused=True)
    right_sums = torch.stack(
        [_derivative(each, direction) for each, direction in zip(enumerated, directions, strict=True)]
    )
    if _is_off(torch.stack(values), expected.detach()):
        yield (
            f"has a loss whose mean over exact samples is {torch.stack(values).mean():.6g}, and {expected:.6g} with "
            "all states enumerated: it must be the estimator's value plus what does not depend on z"
        )
    if _is_off(torch.stack(sums), right_sums):
        yield "has a loss whose gradient by the score function is not in the mean that of enumeration"


def _directions(parameter: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)


def _derivative(gradient: Tensor | None, direction: Tensor) -> Tensor:
    return direction.new_zeros(()) if gradient is None else (gradient * direction).sum()


def _is_off(means: Tensor, right: Tensor) -> bool:
    """Whether the mean of ``means`` ``[GROUPS, ...]`` is not ``right``."""
    error = means.std(0) / len(means) ** 0.5
    return bool(((means.mean(0) - right).abs() > STANDARD_ERRORS * error + 1e-9 * (1 + right.abs())).any())
