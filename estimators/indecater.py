"""IndeCateR: one latent at a time is summed out exactly, the others are sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators._autograd import with_term
from estimators.base import BlackBox, Surrogate
from estimators.categorical import probabilities, sample_with_log_prob


class IndeCateR(BlackBox):
    r"""The CatLog-derivative trick for independent categoricals (also: local expectation gradients).

    gradient = sum_l sum_k d q(z_l = k) / d logits * loss(z with z_l = k),  z ~ q, one exact sample for all latents;
    value = 1/L sum_l sum_k q(z_l = k) loss(z with z_l = k), whose mean is E_q[loss(z)].

    Unbiased, with lower variance than REINFORCE for the same sample; a loss that is a sum of one term per latent has an
    exact gradient. The price is ``latents * categories`` evaluations per gradient: ``loss`` is called once with ``z``
    ``[latents * categories, *batch, latents, categories]`` and must broadcast over the leading dimension. Because that
    number belongs to the logits and not to the estimator, ``evaluations`` (which is 1, the number of joint samples)
    does not count it; :meth:`evaluations_for` does.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Example::

        IndeCateR()(logits, loss).mean().backward()

    References: De Smet, Sansone, Zuidberg Dos Martires, "Differentiable sampling of categorical distributions using the
    CatLog-derivative trick", arXiv 2311.12569; Titsias, Lazaro-Gredilla, "Local expectation gradients for black box
    variational inference", arXiv 1503.01494. Differences: one joint sample instead of N (average calls for more); an
    impossible category (probability exactly 0) is not shown to ``loss``, the sample itself stands in its place.
    """

    family = "enumeration"
    unbiased = True

    def evaluations_for(self, logits: Tensor) -> int:
        """The number of loss evaluations per gradient for these ``logits``: ``latents * categories``."""
        return logits.shape[-2] * logits.shape[-1]

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        latents, categories = logits.shape[-2:]
        z, _ = sample_with_log_prob(logits.detach())
        q = probabilities(logits)
        weights = q.movedim((-2, -1), (0, 1)).flatten(0, 1)  # [L*K, *batch]
        possible = (weights.detach() > 0)[..., None, None]
        lead = (1,) * (logits.dim() - 2)
        # Row l * K + k: which latent is replaced, and by which category.
        latent = torch.eye(latents, dtype=torch.bool, device=logits.device).repeat_interleave(categories, dim=0)
        category = torch.eye(categories, dtype=logits.dtype, device=logits.device).repeat(latents, 1)
        replaced = torch.where(
            latent.reshape(-1, *lead, latents, 1) & possible, category.reshape(-1, *lead, 1, categories), z
        )

        def surrogate(losses: Tensor) -> Tensor:
            losses = losses.masked_fill(weights.detach() == 0, 0.0)
            value = (weights.detach() * losses).sum(dim=0) / latents
            return with_term(value, (weights * losses.detach()).sum(dim=0))

        return replaced, surrogate
