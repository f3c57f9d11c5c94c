"""Likelihoods of observations, in nats."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.datasets import Dataset
from tasks.distributions.von_mises_fisher import LogNormaliser

LIKELIHOODS = ("bernoulli", "gaussian", "von_mises_fisher")
VARIANCE_FLOOR = 0.001

LARGEST_GROUP = 100
"""Factors multiplied before a logarithm is taken: each is in [1/2, 1], and 2**-100 is far from underflow."""


@cache
def _group(pixels: int) -> int:
    return next(group for group in range(LARGEST_GROUP, 0, -1) if pixels % group == 0)


def nats_from_sigmoid(logits: Tensor, p: Tensor, x: Tensor) -> Tensor:
    """``sum_d softplus(logits_d) - x_d logits_d`` given ``p = sigmoid(logits)``, without a derivative.

    ``softplus(a) = max(a, 0) - log max(p, 1 - p)``, and the logarithms of up to ``LARGEST_GROUP`` factors are taken at
    once as that of their product. This is the largest elementwise cost of a step and of an evaluation on a CPU.
    """
    factors = 1 - p
    in_place = None if torch.compiler.is_compiling() else factors  # a compiler has no tensor to write into
    factors = torch.maximum(factors, p, out=in_place)
    linear = logits.relu().addcmul_(logits, x, value=-1).sum(-1)
    return linear.sub_(factors.unflatten(-1, (-1, _group(logits.shape[-1]))).prod(-1).log_().sum(-1))


class _BernoulliNats(torch.autograd.Function):
    """:func:`nats_from_sigmoid` with its derivative ``p - x``: one sigmoid serves both."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        p = logits.sigmoid()
        ctx.save_for_backward(logits, x, p)
        return nats_from_sigmoid(logits, p, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, x, p = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        by_x = (-logits * grad).sum_to_size(x.shape) if ctx.needs_input_grad[1] else None
        if torch.is_grad_enabled():  # a second derivative is wanted
            return (logits.sigmoid() - x) * grad, by_x
        return (p - x).mul_(grad), by_x


def bernoulli_nats(logits: Tensor, x: Tensor) -> Tensor:
    """``-log p(x)`` of independent Bernoulli pixels: ``sum_d softplus(logits_d) - x_d logits_d``.

    ``logits`` ``[..., D]`` and ``x`` in [0, 1] that broadcasts to it (a cross-entropy if it is not binary) ->
    ``[...]`` nats; or ``logits`` ``[S, ..., R, 1, D]``, the same for all examples of ``x`` ``[R, E, D]``, ->
    ``[S, ..., R, E]``, without a tensor of samples, examples and pixels. Twice differentiable, and usable under
    ``torch.func``.
    """
    if x.dim() == 3 < logits.dim() and logits.shape[-2] == 1 < x.shape[-2]:
        rows = logits.squeeze(-2).movedim(-2, 0)  # [R, ..., D]
        linear = torch.bmm(rows.flatten(1, -2), x.mT).unflatten(1, rows.shape[1:-1]).movedim(0, -2)
        return F.softplus(logits).sum(-1) - linear
    if torch._C._are_functorch_transforms_active():  # they want a Function of another form, which costs more per call
        return F.softplus(logits).sum(-1) - torch.linalg.vecdot(logits, x.expand_as(logits))
    return _BernoulliNats.apply(logits, x)


def dot(rows: Tensor, vectors: Tensor) -> Tensor:
    """``rows`` ``[R, E, S, D]``, dense, times ``vectors`` ``[R, E, D]`` -> ``[R, E, S]``, in one pass over the rows.

    The vector stands on the left: as a column MKL takes ten times as long.
    """
    return torch.bmm(vectors.flatten(0, 1).unsqueeze(1), rows.flatten(0, 1).mT).view(rows.shape[:-1])


def bernoulli_log_prob_(logits: Tensor, x: Tensor) -> Tensor:
    """``log p(x)`` of independent Bernoulli pixels for evaluation: no derivative, and ``logits`` are overwritten.

    ``logits`` ``[R, E, S, D]``, dense, and ``x`` ``[R, E, D]`` in [0, 1] -> ``[R, E, S]`` nats, by::

        log p(x) = sum_d (x_d - 1/2) a_d - 1/2 |a_d| + log sigmoid(|a_d|)

    whose first term is a product of matrices and whose last takes one logarithm for up to ``LARGEST_GROUP`` pixels:
    half the passes over the pixels that :func:`bernoulli_nats` makes.
    """
    linear = dot(logits, x - 0.5)
    linear.add_(logits.abs_().sum(-1), alpha=-0.5)
    factors = logits.sigmoid_().unflatten(-1, (-1, _group(logits.shape[-1])))
    return linear.add_(factors.prod(-1).log_().sum(-1))


def bernoulli_log_prob_of_pairs(logits: Tensor, x: Tensor) -> Tensor:
    """``log p(x)`` of every x ``[R, E, D]`` for every row of ``logits`` ``[R, S, D]`` -> ``[R, E, S]``, float64."""
    logits = logits.double()
    return torch.bmm(x.double(), logits.mT) - F.softplus(logits).sum(-1).unsqueeze(1)


class Bernoulli(nn.Module):
    """Each pixel is a bit whose log-odds are the decoder's output; of grey pixels a cross-entropy, and no bound."""

    density = ""
    """What this is a density of, in words; empty: it is a probability."""

    def observed(self, x: Tensor) -> Tensor:
        """What is modelled (and seen by the encoder) of intensities ``x`` ``[..., D]`` in [0, 1]: themselves."""
        return x

    def nats(self, outputs: Tensor, x: Tensor) -> Tensor:
        """``-log p(x|z)``: the decoder's outputs ``[..., R, E, D]``, x observed ``[R, E, D]`` -> ``[..., R, E]``."""
        return bernoulli_nats(outputs, x)

    def log_prob_(self, outputs: Tensor, x: Tensor) -> Tensor:
        """For evaluation: outputs ``[R, E, S, D]`` (overwritten), x ``[R, E, D]`` -> ``[R, E, S]``, no derivative."""
        return bernoulli_log_prob_(outputs, x)

    def log_prob_of_pairs(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Of every x for every row of outputs ``[R, S, D]`` -> ``[R, E, S]``, float64, no derivative."""
        return bernoulli_log_prob_of_pairs(outputs, x)

    def protocol(self) -> dict[str, Any]:
        """What an evaluation depends on beyond the data's own protocol."""
        return {}

    def outputs_for(self, mean: Tensor) -> Tensor:
        """The outputs whose prediction is the mean intensity ``[D]``, clipped to [0.001, 0.999]."""
        return mean.clamp(0.001, 0.999).logit()

    def picture(self, outputs: Tensor) -> Tensor:
        """The prediction as intensities in [0, 1], for the eye."""
        return outputs.sigmoid()


class Gaussian(nn.Module):
    r"""Each pixel, scaled to [-1, 1], is Gaussian around the decoder's output with a variance of its own.

    ``-log p(x|z) = sum_d (x_d - mean_d)^2 / (2 var_d) + log(2 pi var_d) / 2``, ``var = max(softplus(a), 0.001)``, a
    learned parameter per pixel that does not depend on z. It is a density: its logarithm may be positive. A variance at
    the floor has no gradient and stays there, as in the authors' code.

    Reference: Titsias, Shi, "Double Control Variates for Gradient Estimation in Discrete Latent Variable Models" (arXiv
    2111.05300), and their code, in which a starts at -0.5.
    """

    density = "pixels scaled to [-1, 1]"

    def __init__(self, pixels: int, replicas: int) -> None:
        super().__init__()
        self.raw_variance = nn.Parameter(torch.full((replicas, 1, pixels), -0.5))

    def variance(self) -> Tensor:
        """``[R, 1, D]``."""
        return F.softplus(self.raw_variance).clamp_min(VARIANCE_FLOOR)

    def observed(self, x: Tensor) -> Tensor:
        """Intensities in [0, 1] scaled to [-1, 1]."""
        return 2 * x - 1

    def nats(self, outputs: Tensor, x: Tensor) -> Tensor:
        """As :meth:`Bernoulli.nats`; may be negative."""
        variance = self.variance()
        squares = ((outputs - x).square() / variance).sum(-1)
        return 0.5 * (squares + (2 * math.pi * variance).log().sum(-1))

    def log_prob_(self, outputs: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Bernoulli.log_prob_`."""
        return -self.nats(outputs.movedim(2, 0), x).movedim(0, 2)

    def log_prob_of_pairs(self, outputs: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Bernoulli.log_prob_of_pairs`."""
        outputs, x, variance = outputs.double(), x.double(), self.variance().double()
        products = torch.bmm(x / variance, outputs.mT)
        of_outputs = (outputs.square() / variance).sum(-1).unsqueeze(1)
        of_x = (x.square() / variance + (2 * math.pi * variance).log()).sum(-1).unsqueeze(-1)
        return products - 0.5 * (of_outputs + of_x)

    def protocol(self) -> dict[str, Any]:
        """See :meth:`Bernoulli.protocol`."""
        return {"likelihood": "gaussian", "variance_floor": VARIANCE_FLOOR, "density": self.density}

    def outputs_for(self, mean: Tensor) -> Tensor:
        """The mean, scaled."""
        return self.observed(mean)

    def picture(self, outputs: Tensor) -> Tensor:
        """The mean, scaled back and clipped to [0, 1]."""
        return ((outputs + 1) / 2).clamp(0, 1)


class VonMisesFisher(nn.Module):
    r"""The image as a direction (scaled to unit length), around the direction of the decoder's output: a cosine loss.

    ``-log p(x|z) = -log C_D(k) - k cos(outputs, x)``, a density on the unit sphere of D dimensions, with one
    concentration k per model. An output of length zero has no direction and counts as ``cos = 0``, without a gradient;
    that is less than a density, so bounds stay bounds.

    Args:
        concentration: k > 0, a number or ``[R, 1, 1, 1]``; ``None``: learned on a log scale, from ``k = D``.

    Raises:
        ValueError: for data with an image of zeros, or with images of one pixel.
    """

    density = "images scaled to unit length"

    def __init__(self, data: Dataset, replicas: int, concentration: float | Tensor | None) -> None:
        super().__init__()
        dimension = math.prod(data.image_shape)
        if dimension < 2:
            raise ValueError("task.likelihood=von_mises_fisher needs images of at least 2 pixels")
        for name in ("train", "valid", "test"):
            dark = int((getattr(data, name).pixels.amax(-1) == 0).sum())
            if dark:
                raise ValueError(
                    f"task.likelihood=von_mises_fisher scales images to unit length, but {dark} of the {name} images "
                    f"of data={data.name} are all zeros; use other data, or task.likelihood=gaussian"
                )
        value = torch.as_tensor(float(dimension) if concentration is None else concentration).float()
        value = value.reshape(-1, 1).expand(replicas, 1).clone()
        self.learned = concentration is None
        self.raw_concentration = nn.Parameter(value.log()) if self.learned else nn.Buffer(value)
        self.log_normaliser = LogNormaliser(dimension)

    def concentration(self) -> Tensor:
        """``[R, 1]``, float64."""
        raw = self.raw_concentration.double()
        return raw.exp() if self.learned else raw

    def observed(self, x: Tensor) -> Tensor:
        """Intensities scaled to unit length."""
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def nats(self, outputs: Tensor, x: Tensor) -> Tensor:
        """As :meth:`Bernoulli.nats`; may be negative."""
        square = outputs.square().sum(-1)
        cosine = (outputs * x).sum(-1) * square.masked_fill(square < 1e-12, math.inf).rsqrt()
        concentration = self.concentration()
        return -self.log_normaliser(concentration).to(cosine.dtype) - concentration.to(cosine.dtype) * cosine

    def log_prob_(self, outputs: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Bernoulli.log_prob_`."""
        return -self.nats(outputs.movedim(2, 0), x).movedim(0, 2)

    def log_prob_of_pairs(self, outputs: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Bernoulli.log_prob_of_pairs`."""
        concentration = self.concentration().unsqueeze(-1)
        cosines = torch.bmm(x.double(), F.normalize(outputs.double(), dim=-1, eps=1e-6).mT)
        return self.log_normaliser(concentration) + concentration * cosines

    def protocol(self) -> dict[str, Any]:
        """See :meth:`Bernoulli.protocol`."""
        return {"likelihood": "von Mises-Fisher", "density": self.density}

    def outputs_for(self, mean: Tensor) -> Tensor:
        """The mean: only its direction matters."""
        return mean

    def picture(self, outputs: Tensor) -> Tensor:
        """The direction, its largest component scaled to 1 and negative ones to 0."""
        return outputs.clamp_min(0) / outputs.amax(-1, keepdim=True).clamp_min(1e-6)


def likelihood_of(
    name: str, data: Dataset, replicas: int, concentration: float | Tensor | None = None
) -> Bernoulli | Gaussian | VonMisesFisher:
    """The likelihood that ``task.likelihood`` names.

    Raises:
        ValueError: as :func:`check_likelihood`, or for data that the likelihood cannot describe.
    """
    check_likelihood(name, data.binarization, concentration)
    if name == "von_mises_fisher":
        return VonMisesFisher(data, replicas, concentration)
    return Gaussian(math.prod(data.image_shape), replicas) if name == "gaussian" else Bernoulli()


def check_likelihood(name: str, binarization: str, concentration: float | Tensor | None = None) -> None:
    """Raise ``ValueError`` for a likelihood that there is not, for a density of data that are bits, and for a
    concentration out of range or beside a likelihood that has none."""
    if name not in LIKELIHOODS:
        raise ValueError(f"task.likelihood must be one of {', '.join(LIKELIHOODS)}, not {name!r}")
    if name != "bernoulli" and binarization != "none":
        raise ValueError(
            f"task.likelihood={name} is a density of grey images, but data.binarization={binarization} makes bits of "
            "them; use data.binarization=none (with data=mnist, not binarized_mnist), or task.likelihood=bernoulli"
        )
    if concentration is None:
        return
    if name != "von_mises_fisher":
        raise ValueError(
            "task.concentration is an option of task.likelihood=von_mises_fisher; "
            f"with task.likelihood={name} leave it null"
        )
    values = torch.as_tensor(concentration)
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"task.concentration must be positive and finite, not {values.flatten().tolist()}")
