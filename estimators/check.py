"""``python -m estimators.check [NAMES...]``: a certificate for estimators, measured against exact enumeration.

For every estimator: the contract (check_estimator); the largest deviation of the mean gradient from the exact one for
K = 2 and 4 categories, in one layer and in two nested ones (unbiased estimators) or the relative bias over temperatures
and degrees of the loss (biased ones); the variance; loss evaluations and time per gradient.

All problems have two examples of two latents per layer, random normal logits and a random polynomial as the loss, in
float64; variance and z are those for degree 3. What an estimator learns or keeps is first trained for 100 steps on the
problem; an input-dependent baseline sees three random features of each example. A method has a certificate for each of
its ``examples``, the forms in which it is used. Everything is deterministic but the times. The exit code is 1 if an
estimator breaks what it declares, and 2 for a wrong call. ``docs/estimators.md`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import importlib
import inspect
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import estimators
from estimators import contract
from estimators.base import Estimator, Loss
from estimators.certificate import certificate
from estimators.exact import Exact
from estimators.moments import GradientMoments, gradient_moments

EXAMPLES, LATENTS, DEGREE, CONTEXT_FEATURES = 2, 2, 3, 3
TEMPERATURES = (0.1, 0.5, 1.0, 2.0)
QUICK_TEMPERATURES = (0.5, 1.0)
SHAPE = ("latents", "categories", "context_features")
ALIASES = {"stgumbelsoftmax": "GumbelSoftmax hard", "gumbelsoftmax(hard=true)": "GumbelSoftmax hard"}
ALIASES |= {"annealedstraightthrough": "StraightThrough"}
BOUND = "multi_sample_bound"
NOTES = {
    "rescales": "divides the gradient by a running scale; its bias and variance are measured after undoing that",
    BOUND: "held to the multi-sample bound, enumerated, in one layer",
    "unknown": "has another objective than E_q[loss(z)], with which nothing can be compared here",
}


@dataclass(frozen=True)
class Subject:
    """What is certified: ``make(K, **options)`` builds the estimator for K categories.

    Attributes:
        arguments: of the constructor for K = 2, defaults included: the form that is certified.
        context_features: size of the contexts that its calls get; ``None``: none.
    """

    name: str
    make: Callable[..., Estimator]
    note: str | None = None
    per_categories: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context_features(self) -> int | None:
        return self.arguments.get("context_features")

    def assembled(self) -> Estimator:
        """One estimator for 2 and for 4 categories."""
        return PerCategories(self.make) if self.per_categories else self.make(2)


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


class PerCategories(Estimator):
    """One estimator for each number of categories, for those that are built for one."""

    unbiased = True

    def __init__(self, make: Callable[[int], Estimator]) -> None:
        super().__init__()
        self.choices = nn.ModuleDict({str(k): make(k) for k in (2, 4)})
        for attribute in ("unbiased", "evaluations", "needs_gradient", "exact_for", "rescales", "objective", "nests"):
            setattr(self, attribute, getattr(self.choices["2"], attribute))

    def evaluations_for(self, logits: Tensor) -> int:
        return self.choices[str(logits.shape[-1])].evaluations_for(logits)  # type: ignore[operator]

    def expected(self, logits: Tensor, loss: Loss) -> Tensor | None:
        return self.choices[str(logits.shape[-1])].expected(logits, loss)  # type: ignore[operator]

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
            return self.estimator(inner, lambda z2: loss(torch.cat((z1.expand_as(z2), z2), dim=-2)), context)

        return self.estimator(outer, outer_loss, context)


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


def _context(subject: Subject) -> Tensor | None:
    """``[2, features]``, for an input-dependent baseline."""
    if subject.context_features is None:
        return None
    generator = torch.Generator().manual_seed(7)
    return torch.randn(EXAMPLES, subject.context_features, dtype=torch.float64, generator=generator)


def certify(subject: Subject, plan: Plan) -> dict[str, Any]:
    """Everything measured about one estimator, ready for JSON; ``sentences`` say what is broken."""
    estimator = subject.assembled()
    declared = {name: getattr(estimator, name, None) for name in ("unbiased", "exact_for", "evaluations")}
    declared |= {name: getattr(estimator, name, False) for name in ("needs_gradient", "binary_only", "rescales")}
    method = type(subject.make(2))
    declared |= {"objective": estimator.objective, "stochastic": estimator.stochastic, "family": method.family}
    declared |= {"tempered": method.tempered, "inverse_temperature": method.inverse_temperature}
    sentences = [s.replace("PerCategories", subject.name) for s in _contract(subject, estimator, plan)]
    note = subject.note or (NOTES["rescales"] if declared["rescales"] else None)
    if declared["objective"] != "mean":
        note = NOTES.get(str(declared["objective"]), NOTES["unknown"])
    result: dict[str, Any] = {"name": subject.name, "note": note, "arguments": dict(subject.arguments)}
    result["declared"] = declared
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


def _contract(subject: Subject, estimator: Estimator, plan: Plan) -> list[str]:
    """What is broken of the contract; of an unknown objective, of the clauses that do not depend on it."""
    name = type(estimator).__name__
    try:
        if estimator.expected(*problem(2, DEGREE)) is not None:
            contract.check_estimator(
                estimator,
                draws=plan.contract_draws,
                false_alarm=plan.false_alarm,
                context_features=subject.context_features,
            )
            return []
    except contract.ContractError as error:
        return str(error).splitlines()
    except Exception as error:
        return [f"{name}: the check of the contract raised {type(error).__name__}: {error}"]
    own = copy.deepcopy(estimator).double()
    checked = contract._Checked(own, plan.contract_draws, 0, _threshold(plan), subject.context_features)
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
    estimator, context = subject.make(categories), _context(subject)
    for layers in (1, 2) if declared["unbiased"] and estimator.nests else (1,):
        moments = _moments(subject.make(categories), context, plan, categories, DEGREE, layers)
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
    microseconds = _microseconds(estimator, logits.float(), loss, context, plan.seconds)
    result["costs"].append({"categories": categories, "evaluations": evaluations, "microseconds": microseconds})
    if not declared["unbiased"]:
        for temperature, make in _at_temperatures(subject, plan):
            for degree in range(1, DEGREE + 1):
                moments = _moments(make(categories), context, plan, categories, degree, 1)
                row = {"categories": categories, "temperature": temperature, "degree": degree}
                result["bias"].append(row | _figures(moments, declared["rescales"]))


def _figures(moments: GradientMoments, rescales: bool) -> dict[str, float | None]:
    """The figures for JSON; a rescaled gradient gets the length at which it is closest to the exact one."""
    if rescales and moments.exact is not None:
        scale = (moments.mean * moments.exact).sum() / moments.mean.square().sum()
        if scale > 0:
            moments = moments.scaled(scale.item())
    older = {"relative_bias": moments.relative_bias, "resolution": moments.resolution}
    return {name: _finite(figure) for name, figure in {**older, **asdict(moments.figures)}.items()}


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None


def _moments(
    estimator: Estimator, context: Tensor | None, plan: Plan, categories: int, degree: int, layers: int
) -> GradientMoments:
    """Moments on :func:`problem`, after a warm-up of what the estimator learns or keeps."""
    logits, loss = problem(categories, degree, layers)
    subject, oracle = estimator.double(), estimator.expected
    if layers == 2:
        weights = torch.randn(LATENTS * categories, LATENTS * categories, generator=torch.Generator().manual_seed(5))
        subject, oracle = Nested(subject, weights.double()), Nested(Exact(), weights.double())
    leaf = logits.clone().requires_grad_()
    value = oracle(leaf, loss)
    exact = None if value is None else torch.autograd.grad(value.sum(), leaf)[0]
    draws = plan.draws if estimator.stochastic else 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if any(True for _ in estimator.parameters()) or any(True for _ in estimator.buffers()):
            _warm_up(subject, logits, loss, context, plan.warm_up)
        return gradient_moments(subject, logits, loss, draws, context=context, exact=exact, chunk=10_000)


def _warm_up(estimator: Estimator, logits: Tensor, loss: Loss, context: Tensor | None, steps: int) -> None:
    """Steps of Adam (0.01) on the learned parts at constant logits, 32 draws each; running statistics fill up."""
    parameters = list(estimator.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01) if parameters else None
    seen = None if context is None else context.expand(32, *context.shape)
    for _ in range(steps):
        leaf = logits.expand(32, *logits.shape).clone().requires_grad_()
        total = estimator(leaf, loss, seen).mean()
        if optimizer:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()


def _microseconds(estimator: Estimator, logits: Tensor, loss: Loss, context: Tensor | None, seconds: float) -> float:
    """The fastest forward and backward of a batch of 2048 examples in float32, per example, in processor time."""
    estimator = copy.deepcopy(estimator).float()
    leaf = logits.expand(2048 // EXAMPLES, *logits.shape).contiguous().requires_grad_()
    seen = None if context is None else context.float().expand(len(leaf), *context.shape)
    times: list[float] = []
    with torch.random.fork_rng(devices=[]):
        while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
            start = time.process_time()
            estimator(leaf, loss, seen).sum().backward()
            times.append(time.process_time() - start)
    return min(times) / 2048 * 1e6


def _at_temperatures(subject: Subject, plan: Plan) -> Iterator[tuple[float | None, Callable[[int], Estimator]]]:
    """The estimator with its default arguments, and at each temperature that it accepts, if its class declares one."""
    default = subject.make(2)
    if default.tempered is None:
        yield None, subject.make
        return

    def turned(value: float) -> float:
        return 1 / value if default.inverse_temperature else value

    own = turned(float(getattr(default, default.tempered)))
    for temperature in sorted({own, *plan.temperatures}):
        options = {} if temperature == own else {default.tempered: turned(temperature)}
        try:
            subject.make(2, **options)
        except ValueError:
            continue
        yield temperature, partial(subject.make, **options)


def subjects(names: Sequence[str]) -> list[Subject]:
    """Those of ``names``, or every example of all exported methods. Raises :class:`UsageError`."""
    known = {subject.name: subject for method in estimators.METHODS for subject in examples(method)}
    return [_subject(name, known) for name in names or known]


def examples(method: type[Estimator], name: str | None = None) -> list[Subject]:
    """What :meth:`Estimator.examples` of a method says, as subjects; the default one is called as ``name``."""
    found = []
    for variant, options in method.examples(LATENTS, 2, CONTEXT_FEATURES).items():
        per_categories = options != method.examples(LATENTS, 4, CONTEXT_FEATURES)[variant]
        own = {key: value for key, value in options.items() if key not in SHAPE}
        note = f"built for each K, {', '.join(f'{k}={v}' for k, v in own.items())}" if per_categories else None
        made, make = f"{name or method.__name__} {variant}".strip(), partial(_make, method, variant)
        found.append(Subject(made, make, note, per_categories, _arguments(method, options)))
    return found


def _arguments(method: type[Estimator], options: Mapping[str, Any]) -> dict[str, Any]:
    """All named arguments of the constructor, with its defaults where ``options`` has none, as JSON has them."""
    taken = inspect.signature(method).parameters
    whole = {name: own.default for name, own in taken.items() if own.default is not own.empty} | dict(options)
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in whole.items() if isinstance(value, plain)}


def _make(method: type[Estimator], variant: str, categories: int, **options: Any) -> Estimator:
    return method(**{**method.examples(LATENTS, categories, CONTEXT_FEATURES)[variant], **options})


def _subject(name: str, known: dict[str, Subject]) -> Subject:
    if ":" in name:
        return examples(user_class(name), name)[0]
    plain = name.lower().replace("_", "").replace("-", "")
    plain = ALIASES.get(plain, plain).lower()
    found = next((subject for each, subject in known.items() if each.lower() == plain), None)
    if found is None:
        near = difflib.get_close_matches(plain, {each.lower(): each for each in known}, n=1)
        meant = next((f" (did you mean {each}?)" for each in known if each.lower() in near), "")
        there = f"there are {', '.join(known)}, and your own as module:Class"
        raise UsageError(f"there is no estimator {name!r}{meant}; {there}")
    return found


def user_class(name: str) -> type[Estimator]:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
        is_one = isinstance(found, type) and issubclass(found, Estimator)
        built = _make(found, next(iter(found.examples())), 2) if is_one else found()
    except Exception as error:
        needs = isinstance(error, TypeError) and "required" in str(error)
        hint = "; give them defaults, or say in the class's examples() with what it is built" if needs else ""
        raise UsageError(f"cannot build {name} without arguments: {type(error).__name__}: {error}{hint}") from error
    if not is_one:
        raise UsageError(f"{name} is not an estimators.Estimator but makes a {type(built).__name__}")
    return found  # type: ignore[no-any-return]


def _begun(file: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The certificate in ``file``, which is to be added to. Raises :class:`UsageError`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        for result in found["estimators"]:
            result["name"], result["declared"], result["problems"]  # noqa: B018
        asked, had = ((each["draws"], each["false_alarm"]) for each in (report, found))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--json {file} is there and is no certificate ({error!r}); choose another file") from None
    if asked != had:
        raise UsageError(
            f"--json {file} was measured with --draws {had[0]} --false-alarm {had[1]:g}, not {asked[0]} and "
            f"{asked[1]:g}; say the same, or choose another file"
        )
    return dict(found)


def merged(report: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """``report`` with what was ``measured``, in the place of what it had under the same name, the rest unchanged.

    The order is that of :func:`subjects`, a user's own last. What another version of torch measured says so.
    """
    if not report["estimators"]:
        return measured
    order = {subject.name: place for place, subject in enumerate(subjects([]))}
    results = {result["name"]: result for result in report["estimators"]}
    for result in measured["estimators"]:
        own = {} if report["torch"] == torch.__version__ else {"torch": torch.__version__}
        results[result["name"]] = {**result, **own}
    return {**report, "estimators": sorted(results.values(), key=lambda r: order.get(r["name"], len(order)))}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that cannot write a class's name
    parser = argparse.ArgumentParser(prog="python -m estimators.check", description=(__doc__ or "").split("\n\n")[1])
    parser.error = lambda message: parser.exit(2, f"estimators.check: {message}\n")  # type: ignore[method-assign]
    parser.add_argument("names", nargs="*", metavar="NAME", help="a method (RLOO, st_gumbel_softmax) or module:Class")
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures there, those of NAMES into what it holds; - is stdout"
    )
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
        report = {"torch": torch.__version__, "draws": draws, "false_alarm": options.false_alarm, "estimators": []}
        if options.names and options.json not in (None, "-") and file.exists():
            report = _begun(file, report)
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
    measured = {**report, "estimators": results}
    report = merged(report, measured)
    if options.json and options.json != "-":
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1) if options.json == "-" else certificate(measured))
    return 0 if all(result["contract"]["holds"] for result in results) else 1


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except OSError as failure:  # of the standard output: closed, full, or a pipe that nobody reads (| head -1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 128 + 13  # that of SIGPIPE, of which nothing is said
        if not isinstance(failure, BrokenPipeError):
            print(f"estimators.check: cannot write the certificate ({failure.strerror})", file=sys.stderr)
            code = 2
    raise SystemExit(code)
