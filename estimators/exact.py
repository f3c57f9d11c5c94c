"""The exact expectation by enumeration: the oracle for everything else."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from estimators._enumeration import enumerate_states as enumerate_states
from estimators._enumeration import enumerated
from estimators.base import BlackBox, Surrogate

MOST_STATES = 65536


class Exact(BlackBox):
    r"""``E_q[loss(z)] = sum_z q(z) loss(z)`` over all ``K**L`` joint states, with its exact gradient (marginalisation).

    ``loss`` is called once with ``z`` of ``[K**L, *batch, L, K]`` and must broadcast over the leading dimension. A
    state whose probability is 0 counts as 0 whatever the loss; ``loss`` gets the most probable state in its place.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        max_states: >= 1, refuse beyond this many joint states (memory grows with them).

    Raises:
        ValueError: at construction, if ``max_states < 1``; at the call, if ``K**L > max_states``.
    """

    family = "enumeration"
    unbiased = True
    stochastic = False

    def __init__(self, max_states: Annotated[int, ("range", "[1, inf)")] = MOST_STATES) -> None:
        super().__init__()
        if max_states < 1:
            raise ValueError(f"Exact: max_states must be at least 1, not {max_states}")
        self.max_states = max_states

    @classmethod
    def skip(cls, latents: int, categories: int, layers: int = 1, **others: Any) -> str | None:
        """As of any, and the joint states must be few: one layer's are enumerated within each of the layer before."""
        everything, max_states = latents * layers, others.get("options", {}).get("max_states", MOST_STATES)
        if everything > 63 or categories**everything > max_states:
            return (
                f"would enumerate the {categories}**{everything} joint states of {others.get('task', 'the task')}, "
                f"more than estimator.max_states={max_states}; use fewer latents, or a sampling estimator such as rloo"
            )
        return super().skip(latents, categories, layers, **others)

    def evaluations_for(self, logits: Tensor) -> int:
        """``K**L``."""
        return logits.shape[-1] ** logits.shape[-2]

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        latents, categories = logits.shape[-2:]
        states = categories**latents
        if states > self.max_states:
            raise ValueError(
                f"Exact: {categories}**{latents} joint states are more than max_states={self.max_states}; "
                "use an unbiased sampling estimator (REINFORCE, NVIL) for so many latents"
            )
        return enumerated(logits)
