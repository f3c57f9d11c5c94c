"""Semi-supervised classification: a generative model of images with a class and a style, and labels for a few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Estimator, RandomStreams
from tasks.class_and_style import convolutions, perceptrons
from tasks.datasets import Dataset
from tasks.distributions.kl import for_log_q, kl_form
from tasks.distributions.latents import RESOLUTION, latents_of
from tasks.distributions.likelihoods import bernoulli_nats
from tasks.evaluation.chunks import intensities
from tasks.images import ImageTask
from tasks.options import OUTPUT_BIASES, Categories, Count, NotNegative, Steps, Widths, check_choice, check_widths

NETWORKS = ("mlp", "conv")
IMAGES_AT_ONCE = 1000
"""Whose classes are looked at together."""


class SemiSupervised(ImageTask):
    r"""``p(x) = sum_y p(y) int p(z) p(x|y, z) dz``: class y uniform over K, style z standard normal, Bernoulli pixels.

    The encoder is ``q(y|x) q(z|x, y)``, a categorical and a diagonal Gaussian. Training minimises, in nats per example,

        U(x) + w L(x', y') - alpha log q(y'|x'),
        U(x) = E_q(y|x)[l(x, y)] + KL(q(y|x) || p(y)),    L(x', y') = l(x', y') + log K,
        l(x, y) = E_q(z|x,y)[-log p(x|y, z)] + KL(q(z|x, y) || p(z)),

    with x from all of the training images and (x', y') one of the ``labelled`` ones, drawn with replacement beside each
    x. The expectation over y is the estimator's; ``estimator=exact`` marginalises over the K classes. z is
    reparameterised inside the loss, with one draw of noise for each x, whatever the number of samples of y. The sums
    of a batch are expectations over the two sets. With ``w = 1`` an expected labelled image weighs as much as an
    expected unlabelled one, so that each of the few labelled images weighs hundreds of times as much as another.

    Networks are multi-layer perceptrons, or as published convolutional: three convolutions and a linear layer in the
    encoders, four transposed convolutions in the decoder (:mod:`tasks.class_and_style`). One layer of ``q(z|x, y)``,
    the first or the third convolution, is a sum over x and y, so that the part of x is computed once for all classes.

    With a warm-up the KL terms, that of z and of y, have a weight in training that goes linearly from ``kl_start`` to
    1, and alpha goes from ``alpha_start`` times itself to itself. Above 1 a ``kl_start`` keeps the style from saying
    what the class could. Evaluation has the bound itself at all times.

    Args:
        data: images with labels; grey targets (``binarization: none``) make the likelihood a cross-entropy.
        streams: per-replica randomness (labelled images, initial weights, noise in training, evaluation).
        labelled: number of training images that have a label, as many of each class; the run's seed chooses them, and
            no other label is read from then on.
        categories: number K of classes, >= 2: those of the data.
        style: dimensions of z, >= 1.
        hidden: widths of the hidden layers of each network; the decoder has them reversed. Empty: linear.
        nonlinearity: ``tanh | relu | leaky_relu`` (slope 0.3) ``| leaky_relu_0.1``.
        alpha: >= 0, weight of the classification loss; a tensor ``[replicas, 1, 1, 1]`` has one for each replica.
        labelled_weight: w >= 0, of the labelled images' bound, like alpha.
        unlabelled: False leaves U(x) out. Then ``q(y|x)``, which shares no parameter with the other networks, is an
            ordinary classifier trained on the labelled images alone: the baseline.
        output_bias: initial bias of the pixels: ``zero``, or ``data_mean`` for the logit of the training mean, clipped
            to [0.001, 0.999]; with convolutions all pixels have one bias, and it is that of their common mean.
        network: ``mlp``, with ``hidden``, or ``conv``, with ``channels``.
        channels: after each of the three convolutions; the decoder has them reversed.
        warm_up: steps of the warm-up; 0: none.
        kl_start: >= 0, weight of the KL terms at its first step, like alpha.
        alpha_start: >= 0, factor of alpha there, like alpha.

    Raises:
        ValueError: one sentence for data without labels, or an option that is not one of the above.

    Reference: Kingma, Rezende, Mohamed, Welling (arXiv 1406.5298, model M2), and with an estimator in place of the
    marginalisation Jang, Gu, Poole (1611.01144, section 4.3). Differences from the latter: perceptrons by default, and
    sizes of convolutions of our own, because theirs are in an image of the paper only; labelled images are binarised
    anew at each visit, too, where the data are dynamic; and the labelled images are among the unlabelled.
    """

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        labelled: Count = 100,
        categories: Categories = 10,
        style: Count = 50,
        hidden: Widths = (500, 500),
        nonlinearity: str = "relu",
        alpha: NotNegative = 0.1,
        labelled_weight: NotNegative = 1.0,
        unlabelled: bool = True,
        output_bias: str = "zero",
        network: str = "mlp",
        channels: Widths = (16, 32, 64),
        warm_up: Steps = 0,
        kl_start: NotNegative = 0.0,
        alpha_start: NotNegative = 1.0,
    ) -> None:
        super().__init__(data, streams)
        _check(data, labelled, categories, style, output_bias)
        _check_network(network, hidden, channels, warm_up)
        replicas = streams.replicas
        self.alpha = _weight("alpha", alpha, replicas)
        self.labelled_weight = _weight("labelled_weight", labelled_weight, replicas)
        self.warm_up = warm_up
        if warm_up:
            self.kl_start = _weight("kl_start", kl_start, replicas)
            self.alpha_start = _weight("alpha_start", alpha_start, replicas)
            self.progress = nn.Buffer(torch.zeros(replicas, 1))
        self.labelled, self.unlabelled = labelled, unlabelled
        self.latents = latents_of(1, categories)
        self.style_size = style
        form, sizes = (perceptrons, hidden) if network == "mlp" else (convolutions, channels)
        networks = form(data.image_shape, self.latents.width, style, sizes, nonlinearity, streams)
        self.classifier, self.style_of_x, self.style_of_y, self.style_inner, self.decoder = networks[:5]
        if output_bias == "data_mean":
            with torch.no_grad():
                mean = data.mean if networks.pixel_bias.dim() == 3 else data.mean.mean()
                networks.pixel_bias.copy_(mean.clamp(0.001, 0.999).logit())
        rows = self._labelled_rows()
        labels = data.train.labels
        assert labels is not None
        # In the state: whoever takes a run's parameters over to other replicas takes its labelled images, too.
        self.labelled_pixels = nn.Buffer(data.train.pixels[rows])
        self.labelled_classes = nn.Buffer(self._classes()[labels[rows]])

    def _classes(self) -> Tensor:
        """What the networks see of each class, ``[K, width]``: one-hot, or one bit for K = 2."""
        return self.latents.features(torch.eye(self.latents.categories).unsqueeze(-2))

    def _labelled_rows(self) -> Tensor:
        """``[R, labelled]``: which training images have a label, as many of each class, by each run's seed."""
        labels, categories = self.data.train.labels, self.latents.categories
        assert labels is not None
        shape = (self.streams.replicas, len(labels))
        u = self.streams.fresh("labelled images")(shape, torch.float64, torch.device("cpu"), 0)
        each = [u.masked_fill(labels != category, 2.0).argsort(-1) for category in range(categories)]
        return torch.cat([order[:, : self.labelled // categories] for order in each], -1)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported: those of q(y|x)."""
        return list(self.classifier.parameters())

    @property
    def words(self) -> int:
        return 1 + self.style_size

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "prior": "uniform class, standard normal style",
            "labelled": f"{self.labelled} training images, as many of each class, chosen by the run's seed",
            "evaluation": "ELBO with all classes, bound by hard samples, accuracy of the argmax of q(y|x)",
        }

    def kl_for(self, estimator: Estimator) -> str:
        """``analytic``, or ``sampled``: how :meth:`loss` treats KL(q(y|x) || p(y)) with this estimator.

        As ``task.kl=auto`` of the other tasks (:mod:`tasks.distributions.kl`); for a multi-sample bound (VIMCO), whose
        loss is a log weight, the KL of z is sampled, too.
        """
        return kl_form(estimator, "auto")

    def _style(self, from_x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z|x, y), ``[..., R, E, style]``; ``from_x`` is ``style_of_x(x)``."""
        outputs = from_x + self.style_of_y(y)
        if self.style_inner is not None:
            outputs = self.style_inner(self.style_inner.nonlinearity(outputs))
        mean, log_std = outputs.chunk(2, -1)
        return mean, log_std

    def _decode(self, y: Tensor, z: Tensor) -> Tensor:
        """Logits of the pixels, ``[..., R, E, D]``."""
        return self.decoder(torch.cat((y, z), -1))

    def warm(self, step: Tensor) -> None:
        """The weights of the step after ``step`` others."""
        if self.warm_up:
            self.progress.copy_((step.double() / self.warm_up).clamp_max(1.0))

    def _kl_weight(self) -> Tensor | float:
        """Of the KL terms in training, ``[R, 1]``."""
        return self.kl_start + (1 - self.kl_start) * self.progress if self.warm_up else 1.0

    def _alpha(self) -> Tensor:
        """``[R, 1]``, of this step."""
        if not self.warm_up:
            return self.alpha
        return self.alpha * (self.alpha_start + (1 - self.alpha_start) * self.progress)

    def _nats(
        self,
        x: Tensor,
        from_x: Tensor,
        y: Tensor,
        noise: Tensor,
        weight: Tensor | float = 1.0,
        *,
        sampled: bool = False,
    ) -> Tensor:
        """l(x, y) by one draw of z, ``[..., R, E]``, with this ``weight`` of its KL.

        ``y`` ``[..., R, E, width]``, ``from_x`` ``[R, E, first hidden]``, ``noise`` ``[..., R, E, style]`` normal.
        ``sampled``: with ``log q(z|x, y) - log p(z)`` at the draw in place of its mean, the KL.
        """
        mean, log_std = self._style(from_x, y)
        z = mean + log_std.exp() * noise
        if sampled:
            kl = 0.5 * (z.square() - noise.square()).sum(-1) - log_std.sum(-1)
        else:
            kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1).sum(-1) - log_std.sum(-1)
        return bernoulli_nats(self._decode(y, z), x) + weight * kl

    def loss(self, batch: Tensor, estimator: Estimator) -> Tensor:  # type: ignore[override]
        """The training objective: ``batch`` ``[R, E, D]``, unlabelled -> ``[R, E]`` nats, lower is better."""
        losses = self._labelled_loss(batch)
        return losses + self.unlabelled_loss(batch, estimator) if self.unlabelled else losses

    def _labelled_loss(self, batch: Tensor) -> Tensor:
        """``w L(x', y') - alpha log q(y'|x')``, ``[R, E]``, of as many labelled images as ``batch`` has examples."""
        uniform = self.streams.source("labelled", batch.device)
        shape, like = batch.shape[:2], (batch.dtype, batch.device)
        rows = (uniform(shape, *like, 0) * self.labelled).long().clamp_max(self.labelled - 1).unsqueeze(-1)
        pixels = self.labelled_pixels.gather(1, rows.expand(batch.shape))
        y = self.labelled_classes.gather(1, rows.expand(*shape, self.latents.width))
        levels = self.data.train.levels
        if self.data.binarization == "dynamic":
            x = (uniform(batch.shape, *like, 1) * levels < pixels).to(batch.dtype)
        else:
            x = pixels.to(batch.dtype) / levels
        noise = torch.special.ndtri(uniform((*shape, self.style_size), *like, 1))
        log_k = math.log(self.latents.categories)
        cross_entropy = log_k - self.latents.log_ratio(y, self.classifier(x), None)
        bound = self._nats(x, self.style_of_x(x), y, noise, self._kl_weight()) + log_k
        return self.labelled_weight * bound + self._alpha() * cross_entropy

    def unlabelled_loss(self, x: Tensor, estimator: Estimator) -> Tensor:
        """U(x), ``[R, E]``, through ``estimator``."""
        uniform = self.streams.source("style", x.device)
        noise = torch.special.ndtri(uniform((*x.shape[:2], self.style_size), x.dtype, x.device, 1))
        outputs, from_x = self.classifier(x), self.style_of_x(x)
        sampled = self.kl_for(estimator) == "sampled"
        log_q_from, weight = for_log_q(outputs, estimator), self._kl_weight()

        def loss(z: Tensor) -> Tensor:
            y = self.latents.features(z)
            nats = self._nats(x, from_x, y, noise, weight, sampled=_of_weights(estimator))
            return nats + weight * self.latents.log_ratio(y, log_q_from, None) if sampled else nats

        losses = estimator(self.latents.logits(outputs), loss, context=x)
        return losses if sampled else losses + weight * self.latents.kl(outputs, None)

    @torch.no_grad()
    def evaluate(self, split: str, num_samples: int, details: bool = False) -> dict[str, Tensor]:
        """Bounds on ``log p(x)`` of a split without its labels, and classification, means over images: ``{name: [R]}``.

        ``elbo``: -U(x), with the sum over all classes and one draw of z for each in K samples. ``bound``: the
        importance-weighted bound with ``num_samples`` draws of (y, z), y one-hot. ``accuracy``: per cent of images
        whose label is the most probable class of q(y|x); ``cross_entropy``: their ``-log q(y|x)`` in nats. ``details``
        adds what :mod:`tasks.evaluation.bounds` says, which has the loop. With grey targets no bound is one, and the
        names of the bounds begin with ``pseudo_``.

        Raises:
            ValueError: if ``num_samples < 1`` or the split is none of ``train, valid, test``.
        """
        found = super().evaluate(split, num_samples, details)
        images, log_q = self.data.evaluated(split), []
        assert images.labels is not None
        for pixels in images.pixels.split(IMAGES_AT_ONCE):
            outputs = self.classifier(intensities(pixels, images.levels, self.replicas, self._like))
            log_q.append(self.latents.logits(outputs).squeeze(-2).log_softmax(-1).double())
        every = torch.cat(log_q, 1)
        labels = images.labels[: len(images)].to(every.device).expand(self.replicas, -1)
        accuracy = 100 * (every.argmax(-1) == labels).double().mean(-1)
        cross_entropy = -every.gather(-1, labels.unsqueeze(-1)).mean((-2, -1))
        return found | {"accuracy": accuracy, "cross_entropy": cross_entropy}

    def log_weights(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x, y, z) / q(y, z|x)`` of exact samples, and -U(x), for :func:`tasks.evaluation.bounds.evaluate`."""
        noise = noise.movedim(2, 0)  # samples in front, as of an estimator's
        normal = torch.special.ndtri((noise[..., 1:].double() + 0.5) / RESOLUTION).to(x.dtype)
        outputs, from_x = self.classifier(x), self.style_of_x(x)
        y = self.latents.draw(outputs, noise[..., :1])
        log_w = -self._nats(x, from_x, y, normal, sampled=True) - self.latents.log_ratio(y, outputs, None)
        elbo, normal = -self.latents.kl(outputs, None), normal[: math.ceil(len(noise) / self.latents.categories)]
        q = self.latents.logits(outputs).squeeze(-2).softmax(-1)
        for own, category in zip(q.unbind(-1), self._classes().to(x), strict=True):
            y = category.expand(*normal.shape[:-1], -1)
            elbo = elbo - own * self._nats(x, from_x, y, normal).mean(0)
        return log_w.movedim(0, -1), elbo.unsqueeze(-1).expand(-1, -1, len(noise))

    @torch.no_grad()
    def examples(self, count: int = 10) -> list[dict[str, Tensor]]:
        """Pictures of test images for the figures, per replica, as pixel probabilities.

        ``originals`` ``[n, H, W]``: the first test image of each of the first n = min(``count``, K) classes;
        ``analogies`` ``[n, n, H, W]``: the style of the row's image (the mean of q(z|x, y) at the most probable y) with
        the class of the column; ``reconstructions`` ``[n, H, W]``: with its most probable class; ``samples``: from the
        prior, the k-th of class k.
        """
        split, like = self.data.test, self._like
        assert split.labels is not None
        n = min(count, self.latents.categories)
        rows = [int((split.labels == category).int().argmax()) for category in range(n)]
        x = self.shown(split, torch.tensor(rows))
        classes = self._classes().to(like)
        best = classes[self.latents.logits(self.classifier(x)).squeeze(-2).argmax(-1)]
        z, _ = self._style(self.style_of_x(x), best)
        uniform = self.streams.fresh("examples")
        free = torch.special.ndtri(uniform((self.replicas, n, self.style_size), like.dtype, like.device, 1))
        columns = classes[:n].expand(self.replicas, n, -1, -1)  # [R, rows, columns, width]
        pairs = columns.flatten(1, 2), z.unsqueeze(2).expand(-1, -1, n, -1).flatten(1, 2)
        return self.pictures(
            originals=x,
            reconstructions=self._decode(best, z).sigmoid(),
            samples=self._decode(columns[:, 0], free).sigmoid(),
            analogies=self._decode(*pairs).sigmoid().unflatten(1, (n, n)),
        )


def _of_weights(estimator: Estimator) -> bool:
    """Whether the estimator's loss is a negative log weight."""
    return getattr(estimator, "objective", "mean") == "multi_sample_bound"


def _weight(name: str, value: float | Tensor, replicas: int) -> nn.Buffer:
    """``[R, 1]``; raises ``ValueError`` for a negative weight or one that is not finite."""
    weight = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1)
    if not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError(f"task.{name} must be at least 0 and finite, not {weight.flatten().tolist()}")
    return nn.Buffer(weight.expand(replicas, 1).clone())


def _check_network(network: str, hidden: Sequence[int], channels: Sequence[int], warm_up: int) -> None:
    """Raise ``ValueError`` for networks and a warm-up that there are not."""
    check_choice("network", network, NETWORKS)
    check_widths(hidden)
    if warm_up < 0:
        raise ValueError(f"task.warm_up must be at least 0 steps, not {warm_up}")
    if len(channels) != 3 or min(channels) < 1:
        raise ValueError(
            "task.channels must be three numbers of at least 1, one for each convolution, such as [16,32,64], not "
            f"{list(channels)}"
        )


def _check(data: Dataset, labelled: int, categories: int, style: int, output_bias: str) -> None:
    """Raise ``ValueError`` for what the task cannot be built from."""
    check_choice("output_bias", output_bias, OUTPUT_BIASES)
    if style < 1:
        raise ValueError(f"task.style must be at least 1, not {style}")
    if any(split.labels is None for split in (data.train, data.valid, data.test)):
        raise ValueError(
            f"semi-supervised classification needs labels, and data={data.name} has none; use data=digits or "
            "data=mnist (with data.binarization=static for fixed bits)"
        )
    counts = torch.bincount(data.train.labels)  # type: ignore[arg-type]
    if len(counts) != categories:
        raise ValueError(
            f"data={data.name} has {len(counts)} classes: use task.categories={len(counts)}, not {categories}"
        )
    if labelled < 1 or labelled % categories:
        raise ValueError(
            f"task.labelled must be a positive multiple of the {categories} classes, for as many images of each, "
            f"not {labelled}"
        )
    if labelled // categories > counts.min():
        raise ValueError(
            f"task.labelled={labelled} wants {labelled // categories} images of each class, but data={data.name} has "
            f"only {int(counts.min())} of one for training"
        )
