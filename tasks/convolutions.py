"""Convolutions with a leading replica dimension: one grouped convolution computes those of all replicas of a pack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.layers import Uniform

KERNEL, STRIDE = 3, 2


class StackedConvolutions(nn.Module):
    """Convolutions of stride 2 with a nonlinearity between them, or their transposes, one network per replica.

    A convolution halves height and width, rounded up: 28, 14, 7, 4 for MNIST. Its transpose leads back, from the last
    size to the first. Weights start uniform within Glorot's bound, ``sqrt(6 / (k^2 inputs + k^2 outputs))`` for kernels
    of k x k = 3 x 3, biases at 0, one for each channel.

    Args:
        image: height and width, >= 1, of the largest images.
        channels: of these images and of those after each convolution, ``[1, 16, 32, 64]``.
        nonlinearity: between the layers.
        replicas: number of networks.
        uniform: noise source for the weights.
        transposed: from the smallest images to the largest.
    """

    def __init__(
        self,
        image: Sequence[int],
        channels: Sequence[int],
        nonlinearity: Callable[[Tensor], Tensor],
        replicas: int,
        uniform: Uniform,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.nonlinearity, self.transposed = nonlinearity, transposed
        self.sizes = [tuple(image)]
        for _ in channels[1:]:
            self.sizes.append(tuple(-(-side // STRIDE) for side in self.sizes[-1]))
        self.channels = list(channels)
        if transposed:
            self.sizes, self.channels = self.sizes[::-1], self.channels[::-1]
        for layer, (inputs, outputs) in enumerate(pairwise(self.channels)):
            rows = inputs * KERNEL**2
            u = uniform((replicas, 1, rows, outputs), torch.float32, torch.device("cpu"), 2).squeeze(1)
            weight = (2 * u - 1) * (6 / (rows + outputs * KERNEL**2)) ** 0.5
            # [replicas, outputs, inputs, k, k], or as torch has transposed ones [replicas, inputs, outputs, k, k]
            weight = weight.unflatten(1, (inputs, KERNEL, KERNEL)).movedim(-1, 2 if transposed else 1)
            self.register_parameter(f"weight{layer}", nn.Parameter(weight.contiguous()))
            self.register_parameter(f"bias{layer}", nn.Parameter(torch.zeros(replicas, outputs)))

    @property
    def inputs(self) -> int:
        """Numbers that an image has before the first layer."""
        return self.channels[0] * math.prod(self.sizes[0])

    @property
    def outputs(self) -> int:
        """And after the last."""
        return self.channels[-1] * math.prod(self.sizes[-1])

    @property
    def biases(self) -> list[nn.Parameter]:
        """``[replicas, outputs]`` per layer."""
        return list(self.parameters())[1::2]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., replicas, examples, channels x height x width]`` -> the same with those after the last layer."""
        own = list(self.parameters())
        replicas, lead = x.shape[-3], (*x.shape[:-3], x.shape[-2])
        # Replicas become groups of channels: [samples x examples, replicas x channels, height, width].
        x = x.movedim(-3, -2).reshape(-1, replicas * self.channels[0], *self.sizes[0])
        for layer, size in enumerate(self.sizes[1:]):
            x = self._layer(x if layer == 0 else self.nonlinearity(x), own[2 * layer], own[2 * layer + 1], size)
        return x.reshape(*lead, replicas, self.outputs).movedim(-2, -3)

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, ...]) -> Tensor:
        options = {"stride": STRIDE, "padding": KERNEL // 2, "groups": len(weight)}
        weight, bias = weight.flatten(0, 1), bias.flatten()
        if not self.transposed:
            return F.conv2d(x, weight, bias, **options)
        # Without more, the transpose of a side s has 2 s - 1.
        more = [after - (STRIDE * before - 1) for after, before in zip(size, x.shape[-2:], strict=True)]
        return F.conv_transpose2d(x, weight, bias, output_padding=more, **options)
