"""RELAX: REBAR's control variate plus a learned function of the relaxed sample."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators._control_variates import Network, RelaxedControlVariate
from estimators.categorical import Count, NotNegative, Positive

MOST_LAYERS = 100


class RELAX(RelaxedControlVariate):
    r"""The score function with a learned control variate, whose mean is put back by reparameterisation.

    gradient = (loss(z) - c(z~)) * d log q(z) / d logits  +  d/d logits [c(z^) - c(z~)],
    c(x) = scale * loss(y) + r(y, context),  y = softmax(x / temperature),  z^, z, z~ as in :class:`estimators.REBAR`,
    r: a network with ReLU units, whose output layer starts at zero (so that RELAX starts as REBAR).

    Unbiased for every ``c``. The network, temperature and scale are learned by descent on the variance of the gradient,
    through the same ``backward()``, for a caller who minimises. ``use_loss=False`` drops the relaxed loss: one
    evaluation, and ``loss`` need not be differentiable (it starts as REINFORCE).

    Args:
        latents, categories: the last two dimensions of ``logits``, which the network must know.
        context_features: size of the last dimension of ``context``; ``None``: the network sees the relaxed sample only.
        use_loss: whether the control variate contains the relaxed loss.
        hidden, layers: width and number of the network's hidden layers.
        temperature, scale, learn, tied, replicas: as in :class:`estimators.REBAR`; with ``learn=False`` temperature and
            scale stay, the network has no gradient either.

    Raises:
        ValueError: if ``logits`` or ``context`` are of another size than the network.

    Example::

        RELAX(latents=200, context_features=784)(logits, loss, images).mean().backward()

    Reference: Grathwohl, Choi, Wu, Roeder, Duvenaud, "Backpropagation through the void: optimizing control variates for
    black-box gradient estimation", arXiv 1711.00123. Defaults: their best network for the VAE (4 layers of 200 ReLU
    units, to be trained with weight decay 1e-3), REBAR's temperature 0.5 and scale 1. Differences: the output layer
    starts at zero; the network sees the relaxed sample ``y`` as in the paper's ``r(softmax(z / temperature))``, where
    DisARM's re-implementation shows it the unbounded ``z``; LAX is ``use_loss=False`` with a continuous ``z``, this is
    its discrete form.
    """

    has_network = True

    @classmethod
    def examples(
        cls, latents: int = 2, categories: int = 2, context_features: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """With a small network for this shape, added to the relaxed loss and in its place."""
        (shape,) = super().examples(latents, categories, context_features).values()
        small = {**shape, "hidden": 10, "layers": 2}
        return {"": small, "network only": {**small, "use_loss": False}}

    def __init__(
        self,
        latents: int,
        categories: int = 2,
        context_features: int | None = None,
        *,
        use_loss: bool = True,
        hidden: Count = 200,
        layers: Annotated[int, ("range", f"[1, {MOST_LAYERS}]")] = 4,
        temperature: Positive = 0.5,
        scale: NotNegative = 1.0,
        learn: bool = True,
        tied: bool = False,
        replicas: int | None = None,
    ) -> None:
        super().__init__(temperature, scale, learn=learn, tied=tied, use_loss=use_loss, replicas=replicas)
        if hidden < 1 or layers < 1:
            raise ValueError(
                f"RELAX: hidden and layers must be at least 1, not {hidden}, {layers}; REBAR has no network"
            )
        if layers > MOST_LAYERS:
            raise ValueError(f"RELAX: layers must be at most {MOST_LAYERS}, not {layers}")
        self.shape = (latents, categories)
        self.context_features = context_features
        inputs = (latents if categories == 2 else latents * categories) + (context_features or 0)
        self.surrogate = Network((inputs, *(hidden,) * layers, 1), F.relu, replicas, zero_output=True)

    def network(self, y: Tensor, context: Tensor | None) -> Tensor:
        if tuple(y.shape[-2:]) != self.shape:
            raise ValueError(
                f"RELAX: the network was built for latents, categories = {list(self.shape)}, but logits end in "
                f"{list(y.shape[-2:])}; build one with RELAX({y.shape[-2]}, {y.shape[-1]}), or use REBAR"
            )
        x = y[..., 1] if self.shape[1] == 2 else y.flatten(-2)
        if self.context_features is not None:
            if context is None or context.shape[-1] != self.context_features:
                raise ValueError(
                    f"RELAX: the network needs context [*batch, {self.context_features}], not "
                    f"{None if context is None else list(context.shape)}; pass it, or use context_features=None"
                )
            x = torch.cat((x, context.to(x.dtype).expand(*x.shape[:-1], -1)), dim=-1)
        return self.surrogate(x).squeeze(-1)
