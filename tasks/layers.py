"""Layers with a leading replica dimension: one batched matrix product trains all replicas of a pack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Uniform = Callable[..., Tensor]
"""``uniform(shape, dtype, device, event_dims)``: noise in (0, 1) whose dimension before ``examples`` is replicas."""

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda x: nn.functional.leaky_relu(x, 0.3),
    "leaky_relu_0.1": lambda x: nn.functional.leaky_relu(x, 0.1),
}
"""By name; the slope of ``leaky_relu`` is the 0.3 of the DisARM family's code, the other one that of Kool et al."""
INITIALISATIONS = ("glorot", "linear", "variance_scaling")


def initial_layer(inputs: int, outputs: int, replicas: int, rule: str, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """Initial weight ``[replicas, inputs, outputs]`` and bias ``[replicas, 1, outputs]`` of a linear layer.

    ``rule``: ``glorot``: weights uniform within ``sqrt(6 / (inputs + outputs))``, biases 0; ``linear``: that of
    ``torch.nn.Linear``, weights and biases uniform within ``1 / sqrt(inputs)``; ``variance_scaling``: that of
    TensorFlow's ``variance_scaling_initializer``, weights normal with variance ``2.6 / inputs``, cut at two standard
    deviations (so that ``2 / inputs`` are left), biases 0.
    """

    def drawn(rows: int) -> Tensor:
        return uniform((replicas, 1, rows, outputs), torch.float32, torch.device("cpu"), 2).squeeze(1)

    u, bias = drawn(inputs), torch.zeros(replicas, 1, outputs)
    if rule == "glorot":
        return (2 * u - 1) * (6 / (inputs + outputs)) ** 0.5, bias
    if rule == "linear":
        return (2 * u - 1) * inputs**-0.5, (2 * drawn(1) - 1) * inputs**-0.5
    within = math.erf(2**0.5)  # the mass of a normal variable between -2 and 2
    return torch.special.ndtri(0.5 + within * (u.double() - 0.5)).float() * (2.6 / inputs) ** 0.5, bias


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x @ weight + bias`` per replica.

    ``x`` ``[..., replicas, examples, inputs]``, ``weight`` ``[replicas, inputs, outputs]``, ``bias``
    ``[replicas, 1, outputs]`` -> ``[..., replicas, examples, outputs]``.
    """
    if x.dim() == 3:
        return torch.baddbmm(bias, x, weight)
    # Sample dimensions go beside the examples: broadcasting the weight over them instead would copy it.
    lead = x.shape[:-3]
    rows = x.movedim(-3, 0).reshape(weight.shape[0], -1, weight.shape[1])
    out = torch.baddbmm(bias, rows, weight)
    return out.reshape(weight.shape[0], *lead, x.shape[-2], weight.shape[2]).movedim(0, -3)


def nonlinearity_named(name: str) -> Callable[[Tensor], Tensor]:
    """One of ``NONLINEARITIES``; raises ``ValueError`` for another name."""
    if name not in NONLINEARITIES:
        raise ValueError(f"task.nonlinearity must be one of {', '.join(NONLINEARITIES)}, not {name!r}")
    return NONLINEARITIES[name]


class StackedMLP(nn.Module):
    """Linear layers of the given widths with a nonlinearity between them, one network per replica.

    Args:
        widths: ``[inputs, hidden..., outputs]``.
        nonlinearity: a key of ``NONLINEARITIES``.
        replicas: number of networks.
        uniform: noise source for the weights.
        initialisation: ``glorot | linear | variance_scaling`` (:func:`initial_layer`).
    """

    def __init__(
        self,
        widths: Sequence[int],
        nonlinearity: str,
        replicas: int,
        uniform: Uniform,
        initialisation: str = "glorot",
    ) -> None:
        super().__init__()
        if initialisation not in INITIALISATIONS:
            raise ValueError(f"task.initialisation must be one of {', '.join(INITIALISATIONS)}, not {initialisation!r}")
        self.nonlinearity = nonlinearity_named(nonlinearity)
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            weight, bias = initial_layer(inputs, outputs, replicas, initialisation, uniform)
            self.register_parameter(f"weight{layer}", nn.Parameter(weight))
            self.register_parameter(f"bias{layer}", nn.Parameter(bias))

    @property
    def weights(self) -> list[nn.Parameter]:
        """``[replicas, inputs, outputs]`` per layer."""
        return list(self.parameters())[0::2]

    @property
    def biases(self) -> list[nn.Parameter]:
        """``[replicas, 1, outputs]`` per layer."""
        return list(self.parameters())[1::2]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., replicas, examples, inputs]`` -> ``[..., replicas, examples, outputs]``."""
        return self._layers(x, 0)

    def of_ones(self, ones: Tensor, categories: int) -> Tensor:
        """:meth:`forward` of inputs that are 0 but for ``ones``, the places of the 1s: without a derivative.

        ``ones`` ``[replicas, examples, latents]`` int64, the first below ``categories``, the next below twice that and
        so on -> ``[replicas, examples, outputs]``. The first layer is a sum of rows of its weights.
        """
        weight, bias = self._parameters["weight0"], self._parameters["bias0"]
        assert weight is not None and bias is not None
        replicas, inputs, outputs = weight.shape
        rows = weight.clone()
        rows[:, :categories] += bias  # exactly one of them is taken
        first = torch.arange(0, replicas * inputs, inputs, device=ones.device).view(-1, 1, 1)
        sums = nn.functional.embedding_bag((ones + first).flatten(0, 1), rows.view(-1, outputs), mode="sum")
        x = sums.view(*ones.shape[:2], outputs)
        return self._layers(self.nonlinearity(x), 1) if len(self.weights) > 1 else x

    def _layers(self, x: Tensor, first: int) -> Tensor:
        """The layers from ``first`` on, which is linear in ``x``."""
        # weights and biases in turn, without the cost of walking modules
        own = [parameter for parameter in self._parameters.values() if parameter is not None]
        for layer in range(2 * first, len(own), 2):
            x = stacked_linear(x if layer == 2 * first else self.nonlinearity(x), own[layer], own[layer + 1])
        return x


class Chained(nn.Sequential):
    """Networks one after the other, with a nonlinearity between them."""

    def __init__(self, nonlinearity: Callable[[Tensor], Tensor], *networks: nn.Module) -> None:
        super().__init__(*networks)
        self.nonlinearity = nonlinearity

    def forward(self, x: Tensor) -> Tensor:
        """Of the first network's inputs the last one's outputs."""
        for place, network in enumerate(self):
            x = network(x if place == 0 else self.nonlinearity(x))
        return x
