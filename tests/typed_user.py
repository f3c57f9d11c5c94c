"""A user's file, whose types ``mypy`` checks as strictly as it can: what comes out is typed, what is wrong is found.

An ``ignore`` that nothing needs is an error itself, so the wrong lines must stay wrong.
"""

from typing import assert_type

import torch
from torch import Tensor

from estimators import NVIL, RLOO, Pending, ReinMax, ScoreFunction, category, check_estimator
from estimators.distributions import Bernoulli, OneHotCategorical
from estimators.functional import gumbel_softmax


class Own(ScoreFunction):
    def signal(self, losses: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return losses, None


class Wrong(ScoreFunction):
    def signal(self, losses: Tensor) -> Tensor:  # type: ignore[override]
        return losses


def loss(z: Tensor) -> Tensor:
    return z[..., 0].sum(-1)


def use(logits: Tensor) -> Tensor:
    z, pending = RLOO(4).propose(logits)
    assert_type(z, Tensor)
    assert_type(pending, Pending)
    assert_type(category(z), Tensor)
    assert_type(OneHotCategorical(logits=logits, estimator=ReinMax()).rsample(), Tensor)
    assert_type(Bernoulli(logits=logits, estimator=ReinMax()).rsample(), Tensor)
    assert_type(gumbel_softmax(logits, tau=0.5, hard=True, generator=torch.Generator()), Tensor)
    assert_type(pending.surrogate(loss(z)), Tensor)
    return NVIL()(logits, loss)


def misuse(logits: Tensor) -> None:
    check_estimator(Own)  # type: ignore[arg-type]
    OneHotCategorical(logits=logits)  # type: ignore[call-arg]
    OneHotCategorical(logits=logits, estimator="reinmax")  # type: ignore[arg-type]
    gumbel_softmax(logits, temperature=0.5)  # type: ignore[call-arg]
    NVIL()(logits)  # type: ignore[call-arg]
    RLOO(num_samples="4")  # type: ignore[arg-type]
