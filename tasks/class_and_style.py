"""The networks of semi-supervised classification: perceptrons, or convolutions as published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from tasks.base import RandomStreams
from tasks.convolutions import StackedConvolutions
from tasks.layers import Chained, StackedMLP, nonlinearity_named


class Networks(NamedTuple):
    """For images of D pixels, a class of ``width`` numbers and a style of S dimensions.

    ``classifier``: D -> width. Mean and log standard deviation of q(z|x, y), 2 S numbers, are ``style_inner`` of the
    nonlinearity of ``style_of_x(x) + style_of_y(y)``, or that sum: the part of x is computed once for all classes.
    ``decoder``: width + S -> D. ``pixel_bias``: the decoder's last, ``[R, 1, D]``, or one for all pixels ``[R, 1]``.
    """

    classifier: nn.Module
    style_of_x: nn.Module
    style_of_y: nn.Module
    style_inner: StackedMLP | None
    decoder: nn.Module
    pixel_bias: Tensor


def perceptrons(
    image: Sequence[int], width: int, style: int, hidden: Sequence[int], nonlinearity: str, streams: RandomStreams
) -> Networks:
    """Multi-layer perceptrons with hidden layers of these widths, reversed in the decoder; none: linear."""
    uniform, pixels, inner = streams.fresh("parameters"), math.prod(image), [*hidden, 2 * style]

    def network(*widths: int) -> StackedMLP:
        return StackedMLP(widths, nonlinearity, streams.replicas, uniform)

    classifier = network(pixels, *hidden, width)
    of_x, of_y = network(pixels, inner[0]), network(width, inner[0])
    style_inner = network(*inner) if hidden else None
    decoder = network(width + style, *hidden[::-1], pixels)
    return Networks(classifier, of_x, of_y, style_inner, decoder, decoder.biases[-1])


def convolutions(
    image: Sequence[int], width: int, style: int, channels: Sequence[int], nonlinearity: str, streams: RandomStreams
) -> Networks:
    """Three convolutions and a linear layer in the encoders, the class beside the third one's outputs; in the decoder
    four transposed convolutions, of which the first, from an image of 1 x 1, is a linear layer with a bias for each of
    its outputs (:mod:`tasks.convolutions`)."""
    uniform, replicas, between = streams.fresh("parameters"), streams.replicas, nonlinearity_named(nonlinearity)

    def convolved(transposed: bool = False) -> StackedConvolutions:
        return StackedConvolutions(image, (1, *channels), between, replicas, uniform, transposed=transposed)

    def linear(inputs: int, outputs: int) -> StackedMLP:
        return StackedMLP((inputs, outputs), nonlinearity, replicas, uniform)

    first, of_x = convolved(), convolved()
    classifier = Chained(between, first, linear(first.outputs, width))
    of_y, style_inner = linear(width, of_x.outputs), linear(of_x.outputs, 2 * style)
    last = convolved(transposed=True)
    decoder = Chained(between, linear(width + style, last.inputs), last)
    return Networks(classifier, of_x, of_y, style_inner, decoder, last.biases[-1])
