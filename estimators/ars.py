"""ARS: augment, REINFORCE, swap, with one reference category."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import noise
from estimators._surrogate import with_gradient
from estimators.base import BlackBox, Surrogate
from estimators.categorical import one_hot, softmax


class ARS(BlackBox):
    r"""One Dirichlet variable per latent; each coordinate is swapped with that of a random reference category.

    z = argmin_k (log pi_k - logit_k),  pi ~ Dirichlet(1, ..., 1) per latent;  z^{kj}: the same with pi_k and pi_j
    swapped (k = j: not swapped), in all latents at once;  j uniform, anew for each example and latent;
    gradient_k = (loss(z^{kj}) - 1/K sum_i loss(z^{ij})) (1 - K pi_j).

    ``loss`` is called once with ``z`` of ``[K, *batch, latents, K]``; the value is the mean over the K samples, each of
    which is exact. Unbiased, for every j. ARSM is the mean over j (one j for all latents), with K (K - 1) / 2 + 1
    evaluations; for K = 2 both are ARM. ``evaluations`` is the number for K = 2; :meth:`evaluations_for` gives it for
    any K.
    Layers of the loss that take dimension 1 for features, such as BatchNorm1d, need care: :mod:`estimators.base`.

    Example::

        losses = ARS()(logits, loss)   # logits [batch, latents, categories]

    Reference: Yin, Yue, Zhou, "ARSM: Augment-REINFORCE-swap-merge estimator for gradient backpropagation through
    categorical variables", ICML 2019, arXiv 1905.01413. Differences from the paper: swaps that give the same sample are
    evaluated again, because examples differ in which they are.
    """

    family = "coupled samples"
    unbiased = True
    evaluations = 2

    def evaluations_for(self, logits: Tensor) -> int:
        """The number of loss evaluations per gradient for these logits: ``K``."""
        return logits.shape[-1]

    def draw(self, logits: Tensor, context: Tensor | None) -> tuple[Tensor, Surrogate]:
        clean, categories = logits.detach(), torch.arange(logits.shape[-1], device=logits.device)
        dtype = torch.promote_types(clean.dtype, torch.float32)
        gumbel = noise.gumbel(clean.shape, dtype=dtype, device=clean.device)  # -log pi up to a constant
        u = noise.uniform(clean.shape[:-1], dtype=dtype, device=clean.device, event_dims=1).unsqueeze(-1)
        reference = (u * len(categories)).long().clamp(max=len(categories) - 1)
        at_reference = gumbel.gather(-1, reference)
        index = []
        for k in range(len(categories)):
            swapped = torch.where(categories == reference, gumbel[..., k : k + 1], gumbel)
            index.append((clean + torch.where(categories == k, at_reference, swapped)).argmax(dim=-1))

        def surrogate(losses: Tensor) -> Tensor:
            centred = (losses.detach() - losses.detach().mean(dim=0)).to(dtype).movedim(0, -1).unsqueeze(-2)
            pi = softmax(-gumbel).gather(-1, reference)
            # (loss(z^{kj}) - mean_i loss(z^{ij})) (1 - K pi_j)
            return with_gradient(losses, centred * (1 - len(categories) * pi), logits)

        return one_hot(torch.stack(index), logits), surrogate
