"""ARSM: augment, REINFORCE, swap, merge."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import noise
from estimators._surrogate import with_gradient
from estimators.base import BlackBox, Surrogate
from estimators.categorical import one_hot, softmax


class ARSM(BlackBox):
    r"""All swaps of two coordinates of one Dirichlet variable per latent, and the losses of the samples they give.

    z = argmin_k (log pi_k - logit_k),  pi ~ Dirichlet(1, ..., 1) per latent;  z^{kj}: the same with pi_k and pi_j
    swapped (k = j: not swapped), in all latents at once;
    gradient_k = sum_j (loss(z^{kj}) - 1/K sum_i loss(z^{ij})) (1/K - pi_j).

    ``loss`` is called once with ``z`` of ``[K (K - 1) / 2 + 1, *batch, latents, K]``: the unswapped sample and one
    sample per pair. The value is the mean over them, each of which is an exact sample. Unbiased; ARM for K = 2.
    ``evaluations`` is the number for K = 2; :meth:`evaluations_for` gives it for any K.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Example::

        losses = ARSM()(logits, loss)   # logits [batch, latents, categories]

    Reference: Yin, Yue, Zhou, "ARSM: Augment-REINFORCE-swap-merge estimator for gradient backpropagation through
    categorical variables", ICML 2019, arXiv 1905.01413. Differences from the authors' code: swaps that give the same
    sample are evaluated again, because examples differ in which they are.
    """

    family = "coupled samples"
    unbiased = True
    evaluations = 2

    def evaluations_for(self, logits: Tensor) -> int:
        """The number of loss evaluations per gradient for these ``logits``: ``K (K - 1) / 2 + 1``."""
        return logits.shape[-1] * (logits.shape[-1] - 1) // 2 + 1

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        categories = logits.shape[-1]
        clean = logits.detach()
        dtype = torch.promote_types(clean.dtype, torch.float32)
        gumbel = noise.gumbel(clean.shape, dtype=dtype, device=clean.device)  # -log pi up to a constant
        swaps, pair = _swaps(categories, logits.device)
        index = torch.stack([(clean + gumbel[..., swap]).argmax(dim=-1) for swap in swaps])

        def surrogate(losses: Tensor) -> Tensor:
            table = losses.detach()[pair]  # [K, K, *batch], symmetric
            centred = (table - table.mean(dim=0)).to(dtype)
            # sum_j (loss(z^{kj}) - mean_i loss(z^{ij})) (1/K - pi_j)
            gradient = torch.einsum("kj...,...lj->...lk", centred, 1 / categories - softmax(-gumbel))
            return with_gradient(losses, gradient, logits)

        return one_hot(index, logits), surrogate


def _swaps(categories: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The permutations ``[K (K - 1) / 2 + 1, K]`` and which of them swaps ``k`` and ``j``, ``[K, K]``."""
    first, second = torch.triu_indices(categories, categories, offset=1, device=device)
    number = torch.arange(1, len(first) + 1, device=device)
    swaps = torch.arange(categories, device=device).repeat(len(first) + 1, 1)
    swaps[number, first], swaps[number, second] = second, first
    pair = torch.zeros(categories, categories, dtype=torch.long, device=device)
    pair[first, second] = pair[second, first] = number
    return swaps, pair
