"""Every unbiased estimator nested in every other one is unbiased for both layers."""

import pytest
import torch

from estimators import METHODS, NVIL, RELAX, VIMCO, Exact

DRAWS = 4_000
NOT_HERE = (Exact, VIMCO, NVIL, RELAX)  # exact without draws; another objective; built with arguments below


def unbiased():
    made = [method() for method in METHODS if method not in NOT_HERE]
    made += [NVIL(variance_normalisation=False), RELAX(2, 2, hidden=4, layers=1)]
    return {type(estimator).__name__: estimator for estimator in made if estimator.unbiased}


def gradients(outer, inner, lead):
    """Losses and gradients with respect to both layers' logits, one per draw, float64."""
    generator = torch.Generator().manual_seed(0)
    a, b, weights = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((2, 2), (2, 2), (4, 4)))
    logits = a.expand(*lead, 2, 2).contiguous().requires_grad_()
    shift = b.expand(*lead, 2, 2).contiguous().requires_grad_()

    def second(z1):
        inner_logits = (z1.flatten(-2) @ weights).unflatten(-1, (2, 2)) + shift
        return inner(inner_logits, lambda z2: (1 + (z1 * a).sum((-2, -1)) + (z2 * (b - z1)).sum((-2, -1))) ** 2)

    return torch.autograd.grad(outer(logits, second).sum(), (logits, shift))


@pytest.mark.parametrize("outer", unbiased())
def test_nested_in_each_other(outer):
    """8 coordinates a pair and below 400 pairs at 6.5 standard errors: a false alarm has probability below 1e-6."""
    exact = gradients(Exact(), Exact(), ())
    for name, inner in unbiased().items():
        torch.manual_seed(0)
        for got, want, layer in zip(
            gradients(unbiased()[outer].double(), inner.double(), (DRAWS,)), exact, "12", strict=True
        ):
            error = got.std(0) / DRAWS**0.5 + 1e-9
            z = ((got.mean(0) - want) / error).abs().max()
            assert z < 6.5, f"{outer} around {name}, layer {layer}: {z:.1f} standard errors"
