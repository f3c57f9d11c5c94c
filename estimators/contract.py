"""``check_estimator``: the contract of :mod:`estimators.base`, run against any estimator.

Gradients are compared with exact enumeration in float64, with many draws as a leading dimension. Statistical clauses
use one threshold for all coordinates of all problems (Bonferroni), so that a right estimator fails the whole check with
probability at most ``false_alarm``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from estimators.base import Estimator, Loss
from estimators.exact import Exact

EXAMPLES, LATENTS = 2, 2
TESTS = 4096
"""An upper limit for the number of coordinates tested, which the threshold is corrected for."""


class ContractError(AssertionError):
    """An estimator breaks its contract; the message says in words what is broken."""


@dataclass(frozen=True)
class _Checked:
    """An estimator under check: every call works on a fresh copy from a fixed seed, so state cannot leak."""

    estimator: Estimator
    draws: int
    seed: int
    threshold: float
    context_features: int | None

    def __call__(self, logits: Tensor, loss: Loss, seed: int = 0) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + seed)
            context = None
            if self.context_features is not None:
                context = torch.rand(*logits.shape[:-2], self.context_features, dtype=logits.dtype)
            return self.copy()(logits, loss, context)

    def copy(self) -> Estimator:
        return copy.deepcopy(self.estimator)

    def expected(self, logits: Tensor, loss: Loss) -> Tensor:
        value = self.estimator.expected(logits, loss)
        assert value is not None
        return value


def check_estimator(
    estimator: Estimator,
    *,
    draws: int = 20_000,
    seed: int = 0,
    false_alarm: float = 1e-6,
    context_features: int | None = None,
) -> None:
    """Run the whole contract on ``estimator``; return ``None`` if it holds.

    Clauses: declared data; output shape; value; ordinary gradients to what ``loss`` closes over; independence of
    examples and leading dimensions; the declared mean of the gradient against enumeration for K = 2 and K = 4, with one
    layer and with two nested ones; the number of evaluations; extreme logits; no use of gradients under ``no_grad``.

    Args:
        draws: Monte-Carlo draws per problem.
        seed: of the random problems and the draws; the check is deterministic given it.
        false_alarm: bound on the probability that an estimator that keeps its contract fails.
        context_features: pass random contexts of this size (for an input-dependent baseline).

    Raises:
        ContractError: naming every broken clause.
        ValueError: for an estimator whose objective is unknown (:meth:`estimators.Estimator.expected` is ``None``).
    """
    threshold = -torch.special.ndtri(torch.tensor(false_alarm / (2 * TESTS), dtype=torch.float64)).item()
    name = type(estimator).__name__
    if not estimator.stochastic:
        draws = min(draws, 2)
    # Converted once: torch.func, inside which copies are made, does not let a module change its dtype.
    checked = _Checked(copy.deepcopy(estimator).double(), draws, seed, threshold, context_features)
    if checked.estimator.expected(_logits(checked, 2), _polynomial(checked, 2, 1)) is None:
        raise ValueError(
            f"{name} estimates the gradient of another objective ({estimator.objective}) than E_q[loss(z)], and its "
            "`expected` does not say the exact value of that"
        )
    broken = [f"{name}: {sentence}" for sentence in _declarations(estimator)]
    if not broken:
        for categories in (2,) if estimator.binary_only else (2, 4):
            for clause in (_shapes_and_values, _closures, _independence, _mean, _nested, _extremes):
                if clause is _nested and not estimator.nests:
                    continue
                try:
                    found = list(clause(checked, categories))
                except ContractError:
                    raise
                except Exception as error:
                    found = [f"the clause '{clause.__doc__}' raised {type(error).__name__}: {error}"]
                broken += [f"{name} (K={categories}): {sentence}" for sentence in found]
        if estimator.binary_only:
            broken += [f"{name}: {sentence}" for sentence in _refuses_categorical(checked)]
    if broken:
        raise ContractError("\n".join(broken))


def _declarations(estimator: Estimator) -> Iterator[str]:
    for attribute, kinds in {
        "unbiased": bool,
        "evaluations": int,
        "needs_gradient": bool,
        "binary_only": bool,
        "exact_for": int | None,
    }.items():
        if not isinstance(getattr(estimator, attribute, ...), kinds):
            yield f"declares no `{attribute}` of type {kinds}; tests and tables read it from the class"
    name = estimator.tempered
    if name is not None and not (name in inspect.signature(type(estimator)).parameters and hasattr(estimator, name)):
        yield f"declares tempered = {name!r}, which is not an argument of its constructor and an attribute of that name"


def _logits(checked: _Checked, categories: int, stream: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(checked.seed + 1000 * categories + stream)
    return torch.randn(EXAMPLES, LATENTS, categories, dtype=torch.float64, generator=generator)


def _polynomial(checked: _Checked, categories: int, degree: int) -> Callable[..., Tensor]:
    """``f(z, w) = sum over powers 1..degree of (a_power . z + w . z)^power``, ``[*batch]``, neither even nor odd."""
    generator = torch.Generator().manual_seed(checked.seed + 17 + degree)
    weights = torch.randn(degree, EXAMPLES, LATENTS, categories, dtype=torch.float64, generator=generator)

    def loss(z: Tensor, w: Tensor | float = 0.0) -> Tensor:
        total = torch.full(z.shape[:-2], 0.3, dtype=z.dtype)
        for power in range(degree):
            total = total + (z * (weights[power] + w)).sum((-2, -1)) ** (power + 1)
        return total

    return loss


def _shapes_and_values(checked: _Checked, categories: int) -> Iterator[str]:
    """output shape and value"""
    logits = _logits(checked, categories).expand(checked.draws, -1, -1, -1).contiguous().requires_grad_()
    f = _polynomial(checked, categories, 3)
    seen: list[Tensor] = []

    def loss(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return f(z)

    losses = checked(logits, loss)
    if losses.shape != logits.shape[:-2]:
        yield f"returns shape {list(losses.shape)} instead of [*batch] = {list(logits.shape[:-2])}"
        return
    samples = sum(z.numel() for z in seen) // logits.numel()
    declared = checked.estimator.evaluations_for(logits)
    if samples != declared:
        yield f"evaluates the loss at {samples} samples per gradient but declares evaluations = {declared}"
    if (
        checked.estimator.unbiased
        and any(((z != 0) & (z != 1)).any() for z in seen)
        and not checked.estimator.needs_gradient
    ):
        yield "shows the loss a z that is not one-hot but declares needs_gradient = False"
    if samples == 1 and not torch.equal(losses.detach(), f(seen[0])):
        yield "does not preserve the value: the losses returned are not the losses at the sample that it drew"
    hard = all(((z == 0) | (z == 1)).all() for z in seen)
    if samples == 1 and not hard and not checked.estimator.relaxed:
        yield "returns the loss of a z that is not one-hot, which is not E_q[loss(z)], but declares relaxed = False"
    if hard or checked.estimator.unbiased:
        of = "E_q[loss(z)]" if checked.estimator.objective == "mean" else checked.estimator.objective
        expected = checked.expected(logits[0], f).detach()
        yield from _z_test(checked, losses.detach(), expected, "the value", f"is not the mean of {of}")


def _closures(checked: _Checked, categories: int) -> Iterator[str]:
    """ordinary gradients to what the loss closes over"""
    f = _polynomial(checked, categories, 2)
    logits = _logits(checked, categories).expand(checked.draws, -1, -1, -1).contiguous().requires_grad_()
    w = torch.zeros_like(logits).requires_grad_()
    direct = torch.linspace(-1, 1, logits[0].numel(), dtype=logits.dtype).reshape(logits[0].shape)
    seen: list[Tensor] = []

    def plain(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return f(z, w)

    # The same value with and without its gradient: all the rest of the two estimates is equal.
    def gradient_with(used: Tensor) -> Tensor:
        losses = checked(logits, lambda z: f(z, w) + (direct * used).sum((-2, -1)))
        return torch.autograd.grad(losses.sum(), logits)[0]

    if not torch.allclose(
        gradient_with(logits) - gradient_with(logits.detach()), direct.expand_as(logits), rtol=1e-9, atol=1e-9
    ):
        yield "does not pass the ordinary gradient to logits that the loss itself uses (a KL term, say)"
    losses = checked(logits, plain)
    estimated = torch.autograd.grad(losses.sum(), w, allow_unused=True)[0] if losses.requires_grad else None
    if estimated is None:
        yield "passes no gradient to parameters that the loss closes over (a term is detached too many times)"
    elif len(seen) == 1 and seen[0].shape == logits.shape:
        right = torch.autograd.grad(f(seen[0], w).sum(), w)[0]
        if not torch.allclose(estimated, right, rtol=1e-9, atol=1e-9):
            yield "passes a wrong gradient to parameters that the loss closes over"
    else:
        v = torch.zeros_like(logits[0]).requires_grad_()
        right = torch.autograd.grad(checked.expected(logits[0].detach(), lambda z: f(z, v)).sum(), v)[0]
        yield from _z_test(checked, estimated, right, "the gradient to closed-over parameters", "has the wrong mean")


def _independence(checked: _Checked, categories: int) -> Iterator[str]:
    """independence of examples and leading dimensions"""
    f = _polynomial(checked, categories, 3)
    base = _logits(checked, categories).expand(8, 3, -1, -1, -1).clone()
    changed = base.clone()
    changed[1, 2, 0] = 5 * base[1, 2, 0].flip(-1)  # moves the samples, too
    gradients = []
    for logits in (base, changed):
        logits.requires_grad_()
        losses = checked(logits, f)
        if losses.shape != logits.shape[:-2]:
            yield f"does not work with more leading dimensions: it returns {list(losses.shape)}"
            return
        gradients.append(torch.autograd.grad(losses.sum(), logits)[0])
    others = torch.ones(base.shape[:-2], dtype=torch.bool)
    others[1, 2, 0] = False
    if not torch.equal(gradients[0][others], gradients[1][others]):
        yield "couples examples: changing one example's logits changed the gradients of others"
    with torch.no_grad():
        if checked(base, f).requires_grad:
            yield "records a graph under no_grad"


def _mean(checked: _Checked, categories: int) -> Iterator[str]:
    """the declared mean of the gradient"""
    estimator = checked.estimator
    degree = 3 if estimator.unbiased else estimator.exact_for
    if degree is None:
        return
    for power in range(1, degree + 1):
        f = _polynomial(checked, categories, power)
        single = _logits(checked, categories).requires_grad_()
        exact = torch.autograd.grad(checked.expected(single, f).sum(), single)[0]
        logits = single.detach().expand(checked.draws, -1, -1, -1).contiguous().requires_grad_()
        losses = checked(logits, f, seed=power)
        if not losses.requires_grad:
            yield "returns losses without a gradient"
            return
        estimated = torch.autograd.grad(losses.sum(), logits, allow_unused=True)[0]
        if estimated is None:
            yield "passes no gradient to logits"
            return
        claim = "unbiased" if estimator.unbiased else f"exact in the mean for losses of degree {degree}"
        yield from _z_test(
            checked,
            estimated,
            exact,
            f"the gradient (loss of degree {power})",
            f"is biased, but it is declared {claim}",
        )


def _nested(checked: _Checked, categories: int) -> Iterator[str]:
    """two nested layers"""
    f = _polynomial(checked, categories, 2)
    weights = torch.randn(
        LATENTS * categories, LATENTS * categories, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    bias = _logits(checked, categories, stream=1)

    def value(estimator: Callable[..., Tensor], outer_logits: Tensor, shift: Tensor, seeds: tuple[int, int]) -> Tensor:
        def outer_loss(z1: Tensor) -> Tensor:
            inner_logits = (z1.flatten(-2) @ weights).unflatten(-1, z1.shape[-2:]) + bias + shift
            return estimator(inner_logits, lambda z2: f(z2 - 0.5 * z1) + 0.2 * f(z1, z2), seeds[0])

        return estimator(outer_logits, outer_loss, seeds[1])

    draws = (checked.draws,)
    single = _logits(checked, categories)

    def gradients(estimator: Callable[..., Tensor], lead: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        logits = single.expand(*lead, -1, -1, -1).contiguous().requires_grad_()
        shift = torch.zeros_like(logits).requires_grad_()
        losses = value(estimator, logits, shift, (101, 102))
        outer, inner = torch.autograd.grad(losses.sum(), (logits, shift))
        return losses.detach(), outer, inner

    enumerate_all = Exact()
    exact = gradients(lambda logits, loss, _: enumerate_all(logits, loss), ())
    estimated = gradients(checked, draws)
    if estimated[0].shape != (*draws, EXAMPLES):
        yield f"does not nest: two layers return {list(estimated[0].shape)}"
        return
    if not all(bool(g.isfinite().all()) for g in estimated):
        yield "gives non-finite gradients when nested"
    if checked.estimator.unbiased:
        for got, want, layer in zip(estimated[1:], exact[1:], ("outer", "inner"), strict=True):
            yield from _z_test(checked, got, want, f"nested in itself, the gradient of the {layer} layer", "is biased")


def _extremes(checked: _Checked, categories: int) -> Iterator[str]:
    """extreme logits"""
    f = _polynomial(checked, categories, 2)
    for dtype in (torch.float32, torch.float64):
        for scale, label in ((1e3, "+-1e3"), (float("inf"), "-inf for impossible categories")):
            logits = torch.zeros(64, EXAMPLES, LATENTS, categories, dtype=dtype)
            logits[..., 0] = -scale
            logits[..., 0, 1] = min(scale, 1e3)
            logits.requires_grad_()
            impossible: list[bool] = []

            def loss(z: Tensor, impossible: list[bool] = impossible) -> Tensor:
                hard = ((z == 0) | (z == 1)).all()
                if hard and checked.estimator.stochastic:
                    impossible.append(bool(z.detach()[..., 0].gt(0.5).any()))
                return f(z).to(z.dtype)

            torch.manual_seed(checked.seed)
            estimator = copy.deepcopy(checked.estimator).to(dtype)
            context = None
            if checked.context_features is not None:
                context = torch.rand(*logits.shape[:-2], checked.context_features, dtype=dtype)
            losses = estimator(logits, loss, context)
            gradient = torch.autograd.grad(losses.sum(), logits)[0]
            if losses.dtype != dtype:
                yield f"returns {losses.dtype} losses for {dtype} logits"
            if not bool(losses.isfinite().all() and gradient.isfinite().all()):
                yield f"gives non-finite losses or gradients with logits of {label} in {dtype}"
            if any(impossible):
                yield f"drew an impossible category with logits of {label} in {dtype}"


def _refuses_categorical(checked: _Checked) -> Iterator[str]:
    """a binary-only estimator refuses K > 2"""
    try:
        checked(_logits(checked, 3), lambda z: z.sum((-2, -1)))
    except ValueError:
        return
    yield "is declared binary_only but accepts 3 categories instead of raising a ValueError"


def _z_test(checked: _Checked, draws: Tensor, expected: Tensor, what: str, verdict: str) -> Iterator[str]:
    """Compare the mean of ``draws`` ``[draws, ...]`` with ``expected`` ``[...]``, coordinate by coordinate."""
    mean = draws.mean(0)
    # An estimator without variance must hit the value up to rounding.
    rounding = 1e-9 * (1 + expected.abs().max() + draws.abs().max())
    error = draws.std(0) / draws.shape[0] ** 0.5 + rounding / checked.threshold
    z = ((mean - expected) / error).abs().max().item()
    if not z <= checked.threshold:
        relative = ((mean - expected).norm() / expected.norm()).item()
        cosine = torch.nn.functional.cosine_similarity(mean.flatten(), expected.flatten(), dim=0).item()
        yield (
            f"{what} {verdict}: the mean of {draws.shape[0]} draws is {z:.1f} standard errors from the exact one "
            f"(threshold {checked.threshold:.1f}; relative error {relative:.2g}, cosine {cosine:.3f})"
        )
