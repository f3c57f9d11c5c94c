"""The exact expectation by enumeration: the oracle for everything else."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from estimators import noise
from estimators.base import Estimator, Loss, may_look
from estimators.categorical import log_probabilities, one_hot


class Exact(Estimator):
    r"""``E_q[loss(z)] = sum_z q(z) loss(z)`` over all ``K**L`` joint states, with its exact gradient (marginalisation).

    ``loss`` is called once with ``z`` of ``[K**L, *batch, L, K]`` and must broadcast over the leading dimension. A
    state whose probability is 0 counts as 0 whatever the loss; ``loss`` gets the most probable state in its place.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Args:
        max_states: >= 1, refuse beyond this many joint states (memory grows with them).

    Raises:
        ValueError: at construction, if ``max_states < 1``; at the call, if ``K**L > max_states``.
    """

    unbiased = True

    def __init__(self, max_states: Annotated[int, ("range", "[1, inf)")] = 65536) -> None:
        super().__init__()
        if max_states < 1:
            raise ValueError(f"Exact: max_states must be at least 1, not {max_states}")
        self.max_states = max_states

    def evaluations_for(self, logits: Tensor) -> int:
        """``K**L``."""
        return logits.shape[-1] ** logits.shape[-2]

    def estimate(self, logits: Tensor, loss: Loss, context: Tensor | None) -> Tensor:
        latents, categories = logits.shape[-2:]
        states = categories**latents
        if states > self.max_states:
            raise ValueError(
                f"Exact: {categories}**{latents} joint states are more than max_states={self.max_states}; "
                "use an unbiased sampling estimator (REINFORCE, NVIL) for so many latents"
            )
        z = enumerate_states(latents, categories, like=logits)
        z = z.reshape(states, *(1,) * (logits.dim() - 2), latents, categories)
        # where, not a product: 0 * -inf of an impossible category would be NaN
        log_prob = torch.where(z > 0, log_probabilities(logits), 0.0).sum(dim=(-2, -1))
        q = log_prob.exp()
        shown, impossible = z.expand(states, *logits.shape), q.detach() == 0
        if self._replaces(impossible):
            mode = one_hot(logits.detach().argmax(dim=-1), logits)
            shown = torch.where(impossible[..., None, None], mode, z)
        return (q * loss(shown).masked_fill(impossible, 0.0)).sum(dim=0)

    def _replaces(self, impossible: Tensor) -> bool:
        """Whether impossible states are to be replaced: not if there are none, as states that are one tensor for all
        examples save memory and time. A harness on a GPU, which does not wait for the answer, has no logits of -inf.
        """
        if may_look(impossible):
            return bool(impossible.any())
        return torch.compiler.is_compiling() or not noise.supplied()


def enumerate_states(latents: int, categories: int, like: Tensor) -> Tensor:
    """All joint one-hot states, ``[categories**latents, latents, categories]``, in the dtype and device of ``like``."""
    digits = torch.cartesian_prod(*[torch.arange(categories, device=like.device)] * latents)
    return torch.nn.functional.one_hot(digits.reshape(-1, latents), categories).to(like.dtype)
