"""``python -m estimators.check [NAMES...]``: a certificate for estimators, measured against exact enumeration.

For every estimator: the contract (check_estimator); the largest deviation of the mean gradient from the exact one for
K = 2 and 4 categories, in one layer and in two nested ones (unbiased estimators) or the relative bias over temperatures
and degrees of the loss (biased ones); the variance; loss evaluations and time per gradient.

All problems have two examples of two latents per layer, random normal logits and a random polynomial as the loss, in
float64; variance and z are those for degree 3. What an estimator learns or keeps is first trained for 100 steps on the
problem. Everything is deterministic but the times. The exit code is 1 if an estimator breaks what it declares, and 2
for a wrong call. ``docs/estimators.md`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import estimators
from estimators import contract, table
from estimators.base import Estimator, Loss
from estimators.categorical import log_probabilities
from estimators.exact import Exact, enumerate_states
from estimators.moments import GradientMoments, gradient_moments

EXAMPLES, LATENTS, DEGREE = 2, 2, 3
TEMPERATURES = (0.1, 0.5, 1.0, 2.0)
QUICK_TEMPERATURES = (0.5, 1.0)
SPECIAL: dict[str, Callable[[], Estimator]] = {
    "GumbelSoftmax hard": partial(estimators.GumbelSoftmax, hard=True),
    "NVIL unscaled": partial(estimators.NVIL, variance_normalisation=False),
}
ALIASES = {"stgumbelsoftmax": "GumbelSoftmax hard", "gumbelsoftmax(hard=true)": "GumbelSoftmax hard"}
ALIASES |= {"annealedstraightthrough": "StraightThrough"}
BOUND = "multi_sample_bound"
NOTES = {
    "rescales": "divides the gradient by a running scale; its bias and variance are measured after undoing that",
    BOUND: "held to the multi-sample bound, enumerated, in one layer; clauses about E_q[loss(z)] do not apply",
    "unknown": "has another objective than E_q[loss(z)], with which nothing can be compared here",
}


@dataclass(frozen=True)
class Subject:
    """What is certified: ``make(K, **options)`` builds the estimator for K categories."""

    name: str
    make: Callable[..., Estimator]
    note: str | None = None
    per_categories: bool = False


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    draws: int
    temperatures: tuple[float, ...]
    false_alarm: float
    warm_up: int
    seconds: float

    @property
    def contract_draws(self) -> int:
        return min(self.draws, 20_000)


class UsageError(Exception):
    """A wrong call, in one sentence."""


class _PerCategories(Estimator):
    """One estimator for each number of categories, for those that are built for one."""

    unbiased = True

    def __init__(self, make: Callable[[int], Estimator]) -> None:
        super().__init__()
        self.choices = nn.ModuleDict({str(k): make(k) for k in (2, 4)})
        for attribute in ("unbiased", "evaluations", "needs_gradient", "exact_for"):
            setattr(self, attribute, getattr(self.choices["2"], attribute))

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        return self.choices[str(logits.shape[-1])](logits, loss, context)


class Nested(Estimator):
    """Two layers as one: the first half of the latents are the outer layer, the second half's logits are a bias.

    z1 ~ outer logits,  z2 ~ inner logits = bias + z1 W,  loss(z1 and z2 along the latents).
    """

    unbiased = True

    def __init__(self, estimator: Estimator, weights: Tensor) -> None:
        super().__init__()
        self.estimator, self.weights = estimator, nn.Buffer(weights)

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        outer, bias = logits.chunk(2, dim=-2)

        def outer_loss(z1: Tensor) -> Tensor:
            inner = (z1.flatten(-2) @ self.weights).unflatten(-1, z1.shape[-2:]) + bias
            return self.estimator(inner, lambda z2: loss(torch.cat((z1.expand_as(z2), z2), dim=-2)))

        return self.estimator(outer, outer_loss)


def problem(categories: int, degree: int, layers: int = 1) -> tuple[Tensor, Loss]:
    """Logits ``[2, 2 * layers, K]`` and a loss ``0.3 + sum over powers 1..degree of (a_power . z)^power``."""
    generator = torch.Generator().manual_seed(1000 * categories + layers)
    shape = (EXAMPLES, LATENTS * layers, categories)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    weights = torch.randn((DEGREE, *shape), dtype=torch.float64, generator=generator)

    def loss(z: Tensor) -> Tensor:
        projections = ((z * weights[i].to(z.dtype)).sum(dim=(-2, -1)) ** (i + 1) for i in range(degree))
        return sum(projections, torch.full((), 0.3, dtype=z.dtype))

    return logits, loss


def multi_sample_bound(logits: Tensor, loss: Loss, samples: int) -> Tensor:
    """``-E[log 1/S sum_s exp(-loss(z_s))]`` ``[*batch]`` by enumeration of all multisets of S joint states."""
    latents, categories = logits.shape[-2:]
    states = enumerate_states(latents, categories, like=logits)
    z = states.reshape(-1, *(1,) * (logits.dim() - 2), latents, categories).expand(-1, *logits.shape)
    log_q, log_weight = torch.where(z > 0, log_probabilities(logits), 0.0).sum(dim=(-2, -1)), -loss(z)
    sets = torch.combinations(torch.arange(len(states)), samples, with_replacement=True)
    counts = nn.functional.one_hot(sets, len(states)).sum(dim=1).to(logits.dtype)
    orders = math.lgamma(samples + 1) - torch.lgamma(counts + 1).sum(dim=1)
    probability = (log_q[sets].sum(dim=1) + orders.reshape(-1, *(1,) * (logits.dim() - 2))).exp()
    return -(probability * (log_weight[sets].logsumexp(dim=1) - math.log(samples))).sum(dim=0)


def certify(subject: Subject, plan: Plan) -> dict[str, Any]:
    """Everything measured about one estimator, ready for JSON; ``sentences`` say what is broken."""
    estimator = _PerCategories(subject.make) if subject.per_categories else subject.make(2)
    declared = {name: getattr(estimator, name, None) for name in ("unbiased", "exact_for", "evaluations")}
    declared |= {name: getattr(estimator, name, False) for name in ("needs_gradient", "binary_only", "rescales")}
    declared["objective"] = getattr(estimator, "objective", "mean")
    sentences = [sentence.replace("_PerCategories", subject.name) for sentence in _contract(estimator, plan)]
    note = subject.note or (NOTES["rescales"] if declared["rescales"] else None)
    if declared["objective"] != "mean":
        note = NOTES.get(str(declared["objective"]), NOTES["unknown"])
    result: dict[str, Any] = {"name": subject.name, "note": note, "declared": declared}
    result |= {"threshold": _threshold(plan), "problems": [], "costs": [], "bias": []}
    if isinstance(declared["unbiased"], bool):
        for categories in (2,) if declared["binary_only"] else (2, 4):
            try:
                sentences += _measure(subject, plan, categories, declared, result)
            except Exception as error:
                sentences.append(
                    f"{subject.name} (K={categories}): measuring it raised {type(error).__name__}: {error}"
                )
    result["contract"] = {"holds": not sentences, "sentences": sentences}
    return result


def _contract(estimator: Estimator, plan: Plan) -> list[str]:
    """What is broken of the contract; for a multi-sample bound, of the clauses that do not depend on the objective."""
    draws = 2 if isinstance(estimator, Exact) else plan.contract_draws
    if getattr(estimator, "objective", "mean") == "mean":
        try:
            contract.check_estimator(estimator, draws=draws, false_alarm=plan.false_alarm)
        except contract.ContractError as error:
            return str(error).splitlines()
        except Exception as error:
            return [f"{type(estimator).__name__}: the check of the contract raised {type(error).__name__}: {error}"]
        return []
    name = type(estimator).__name__
    checked = contract._Checked(copy.deepcopy(estimator).double(), draws, 0, _threshold(plan), None)
    broken = [f"{name}: {sentence}" for sentence in contract._declarations(estimator)]
    for categories in (2,) if estimator.binary_only else (2, 4):
        for clause in (contract._independence, contract._extremes):
            broken += [f"{name} (K={categories}): {sentence}" for sentence in clause(checked, categories)]
    return broken


def _threshold(plan: Plan) -> float:
    """In standard errors, for all coordinates of an estimator's four problems together (Bonferroni)."""
    coordinates = sum(EXAMPLES * LATENTS * layers * categories for layers in (1, 2) for categories in (2, 4))
    return -torch.special.ndtri(torch.tensor(plan.false_alarm / (2 * coordinates), dtype=torch.float64)).item()


def _measure(
    subject: Subject, plan: Plan, categories: int, declared: dict[str, Any], result: dict[str, Any]
) -> Iterator[str]:
    """Fill ``problems``, ``costs`` and ``bias`` of ``result``; yield what is broken."""
    estimator = subject.make(categories)
    bound = declared["objective"] == BOUND
    for layers in (1, 2) if declared["unbiased"] and not bound else (1,):
        moments = _moments(subject.make(categories), plan, categories, DEGREE, layers)
        max_z = moments.max_z if declared["unbiased"] else None
        row = {"categories": categories, "layers": layers, "draws": moments.draws, "max_z": _finite(max_z)}
        result["problems"].append(row | _figures(moments, declared["rescales"]))
        if max_z is not None and not max_z <= result["threshold"]:
            yield (
                f"{subject.name} (K={categories}, {layers} layer{'s'[: layers - 1]}): declared unbiased, but the mean "
                f"of {moments.draws} gradients is {max_z:.1f} standard errors from the exact one (threshold "
                f"{result['threshold']:.1f}; relative bias {moments.relative_bias:.2g})"
            )
    logits, loss = problem(categories, DEGREE)
    evaluations = estimator.evaluations_for(logits)
    microseconds = _microseconds(estimator, logits.float(), loss, plan.seconds)
    result["costs"].append({"categories": categories, "evaluations": evaluations, "microseconds": microseconds})
    if not declared["unbiased"]:
        for temperature, make in _at_temperatures(subject, plan):
            for degree in range(1, DEGREE + 1):
                moments = _moments(make(categories), plan, categories, degree, 1)
                row = {"categories": categories, "temperature": temperature, "degree": degree}
                result["bias"].append(row | _figures(moments, declared["rescales"]))


def _figures(moments: GradientMoments, rescales: bool) -> dict[str, float | None]:
    """For JSON; what an estimator rescales is brought to the length at which it is closest to the exact gradient."""
    if rescales and moments.exact is not None:
        scale = (moments.mean * moments.exact).sum() / moments.mean.square().sum()
        if scale > 0:
            moments = moments.scaled(scale.item())
    older = {"relative_bias": moments.relative_bias, "resolution": moments.resolution}
    return {name: _finite(figure) for name, figure in {**older, **asdict(moments.figures)}.items()}


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None


def _moments(estimator: Estimator, plan: Plan, categories: int, degree: int, layers: int) -> GradientMoments:
    """Moments on :func:`problem`, after a warm-up of what the estimator learns or keeps."""
    logits, loss = problem(categories, degree, layers)
    subject, draws, exact = estimator.double(), plan.draws, None
    if isinstance(estimator, Exact):
        draws = 2
    if layers == 2:
        weights = torch.randn(LATENTS * categories, LATENTS * categories, generator=torch.Generator().manual_seed(5))
        subject = Nested(subject, weights.double())
    if layers == 2 or getattr(estimator, "objective", "mean") == BOUND:
        leaf = logits.clone().requires_grad_()
        oracle = Nested(Exact(), weights.double()) if layers == 2 else None
        losses = oracle(leaf, loss) if oracle else multi_sample_bound(leaf, loss, estimator.evaluations_for(logits))
        exact = torch.autograd.grad(losses.sum(), leaf)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if any(True for _ in estimator.parameters()) or any(True for _ in estimator.buffers()):
            _warm_up(subject, logits, loss, plan.warm_up)
        return gradient_moments(subject, logits, loss, draws, exact=exact, chunk=10_000)


def _warm_up(estimator: Estimator, logits: Tensor, loss: Loss, steps: int) -> None:
    """Steps of Adam (0.01) on the learned parts at constant logits, 32 draws each; running statistics fill up."""
    parameters = list(estimator.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01) if parameters else None
    for _ in range(steps):
        leaf = logits.expand(32, *logits.shape).clone().requires_grad_()
        total = estimator(leaf, loss).mean()
        if optimizer:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()


def _microseconds(estimator: Estimator, logits: Tensor, loss: Loss, seconds: float) -> float:
    """The fastest forward and backward of a batch of 2048 examples in float32, per example."""
    estimator = copy.deepcopy(estimator).float()
    leaf = logits.expand(2048 // EXAMPLES, *logits.shape).contiguous().requires_grad_()
    times: list[float] = []
    with torch.random.fork_rng(devices=[]):
        while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
            start = time.perf_counter()
            estimator(leaf, loss).sum().backward()
            times.append(time.perf_counter() - start)
    return min(times) / 2048 * 1e6


def _at_temperatures(subject: Subject, plan: Plan) -> Iterator[tuple[float | None, Callable[[int], Estimator]]]:
    """The estimator at each temperature that it accepts (``beta`` is an inverse one), or once if it has none."""
    names = inspect.signature(type(subject.make(2)).__init__).parameters
    option = next((name for name in ("temperature", "backward_temperature", "beta") if name in names), None)
    if option is None:
        yield None, subject.make
        return
    for temperature in plan.temperatures:
        options = {option: 1 / temperature if option == "beta" else temperature}
        try:
            subject.make(2, **options)
        except ValueError:
            continue
        yield temperature, partial(subject.make, **options)


def subjects(names: Sequence[str]) -> list[Subject]:
    """Those of ``names``, or all exported methods. Raises :class:`UsageError`."""
    known: dict[str, Callable[[], Estimator]] = {}
    methods: Sequence[type[Estimator]] = estimators.METHODS
    for method in methods:
        known[method.__name__] = method
        known |= {name: make for name, make in SPECIAL.items() if name.split()[0] == method.__name__}
    return [_subject(name, known) for name in names or known]


def _subject(name: str, known: dict[str, Callable[[], Estimator]]) -> Subject:
    if ":" in name:
        return Subject(name, _without_categories(_user_class(name)))
    plain = name.lower().replace("_", "").replace("-", "")
    plain = ALIASES.get(plain, plain).lower()
    found = next((each for each in known if each.lower() == plain), None)
    if found is None:
        raise UsageError(f"there is no estimator {name!r}; there are {', '.join(known)}, and your own as module:Class")
    if found == "RELAX":
        make = lambda k, **options: estimators.RELAX(LATENTS, k, hidden=10, layers=2, **options)  # noqa: E731
        return Subject(found, make, "a network of 2 layers of 10 units, built for each K", per_categories=True)
    return Subject(found, _without_categories(known[found]))


def _without_categories(make: Callable[..., Estimator]) -> Callable[..., Estimator]:
    return lambda categories, **options: make(**options)


def _user_class(name: str) -> Callable[..., Estimator]:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
        built = found()
    except Exception as error:
        raise UsageError(f"cannot build {name} without arguments: {type(error).__name__}: {error}") from error
    if not isinstance(built, Estimator):
        raise UsageError(f"{name} is not an estimators.Estimator but makes a {type(built).__name__}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that cannot write a class's name
    parser = argparse.ArgumentParser(prog="python -m estimators.check", description=(__doc__ or "").split("\n\n")[1])
    parser.error = lambda message: parser.exit(2, f"estimators.check: {message}\n")  # type: ignore[method-assign]
    parser.add_argument("names", nargs="*", metavar="NAME", help="a method (RLOO, st_gumbel_softmax) or module:Class")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - is the standard output")
    parser.add_argument("--draws", type=int, help="gradients per problem (default 100000; 5000 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer draws and temperatures")
    parser.add_argument("--false-alarm", type=float, default=1e-6, metavar="P", help="of a right estimator (1e-6)")
    options = parser.parse_args(arguments)
    draws = options.draws if options.draws is not None else 5_000 if options.quick else 100_000
    try:
        if draws < 500 or not 0 < options.false_alarm < 1:
            raise UsageError("--draws must be at least 500 and --false-alarm between 0 and 1")
        chosen = subjects(options.names)
        file = Path(options.json or "-")
        if options.json != "-" and (
            file.is_dir() or not os.access(file.parent, os.W_OK)
        ):  # before the minutes it takes
            raise UsageError(f"--json {file} cannot be written; choose a file in a folder that exists")
    except UsageError as error:
        print(f"estimators.check: {error}", file=sys.stderr)
        return 2
    temperatures = QUICK_TEMPERATURES if options.quick else TEMPERATURES
    plan = Plan(draws, temperatures, options.false_alarm, warm_up=100, seconds=0.05 if options.quick else 0.3)
    torch.set_num_threads(1)
    results = []
    for number, subject in enumerate(chosen, start=1):
        start = time.perf_counter()
        print(f"[{number}/{len(chosen)}] {subject.name} ... ", end="", file=sys.stderr, flush=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            results.append(certify(subject, plan))
        verdict = "pass" if results[-1]["contract"]["holds"] else "BROKEN"
        print(f"{verdict} ({time.perf_counter() - start:.1f} s)", file=sys.stderr, flush=True)
    report = {"torch": torch.__version__, "draws": draws, "false_alarm": options.false_alarm, "estimators": results}
    if options.json and options.json != "-":
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1) if options.json == "-" else table.certificate(report))
    return 0 if all(result["contract"]["holds"] for result in results) else 1


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except OSError as failure:  # of the standard output: closed, full, or a pipe that nobody reads (| head -1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(failure, BrokenPipeError):
            print(f"estimators.check: cannot write the certificate ({failure.strerror})", file=sys.stderr)
        code = 2
    raise SystemExit(code)
