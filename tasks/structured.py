"""Structured output prediction: the lower half of an image from the upper half, by a stochastic feed-forward net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Estimator, RandomStreams
from tasks.datasets import Dataset
from tasks.distributions.latents import Bernoulli, Categorical, latents_of
from tasks.distributions.likelihoods import bernoulli_log_prob_, bernoulli_nats
from tasks.evaluation import enumeration
from tasks.images import ImageTask
from tasks.layers import StackedMLP, Uniform
from tasks.options import OUTPUT_BIASES, Categories, Count, Layers, check_choice, check_layers

MEAN_OF = 100
"""Samples behind the mean prediction in the pictures."""


class StructuredPrediction(ImageTask):
    r"""``D/2 - L x K - ... - L x K - D/2``: p(y|x) = sum_z p(z_1|x) p(z_2|z_1) ... p(y|z_last), y Bernoulli per pixel.

    x is the upper half of an image (its first ``height // 2`` rows), y the rest. Every layer is linear in the sample of
    the one before (bits, or flattened one-hot codes). There is no recognition net, the prior itself is sampled, so
    there is no KL: training minimises, per example, in nats, ``E[-log p(y|z_last)]`` over the net's own samples, which
    is at least ``-log p(y|x)``. Each layer has an estimator of its own, and they nest.

    Args:
        data: images of at least two rows; grey targets (``binarization: none``) make the likelihood a cross-entropy.
        streams: per-replica randomness (initial weights, evaluation).
        latents: L >= 1, of each layer.
        categories: K >= 2; with 2 a layer has one log-odds output per latent and passes one bit per latent on.
        layers: stochastic layers, 1 to 4.
        initialisation: of the weights, ``glorot`` (uniform, biases 0), ``linear`` (that of
            ``torch.nn.Linear``) or ``variance_scaling`` (TensorFlow's); see :func:`tasks.layers.initial_layer`.
        output_bias: initial bias of y's pixels: ``zero``, or ``data_mean`` for the logit of the training mean, clipped
            to [0.001, 0.999].

    Raises:
        ValueError: one sentence for an option that is not one of the above.

    Reference: Raiko, Berglund, Alain, Dinh (arXiv 1406.2989) and, as here, Gu, Levine, Sutskever, Mnih (1511.05176,
    MuProp), Jang, Gu, Poole (1611.01144: 392-200-200-392 and 392-(20x10)-(20x10)-392) and Maddison, Mnih, Teh
    (1611.00712: ``layers=3 latents=240`` is their 392-240-240-240-392, whose units are -1 and 1).
    """

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        latents: Count = 200,
        categories: Categories = 2,
        layers: Layers = 2,
        initialisation: str = "glorot",
        output_bias: str = "zero",
    ) -> None:
        super().__init__(data, streams)
        check_layers(layers)
        check_choice("output_bias", output_bias, OUTPUT_BIASES)
        height, width = data.image_shape
        if height < 2 or not width:
            raise ValueError(
                f"structured prediction needs images of at least two rows: data={data.name} has {height}; use "
                "data=digits or data=binarized_mnist"
            )
        self.layers = layers
        self.upper = height // 2 * width
        """Pixels of x."""
        self.latents = latents_of(latents, categories)
        uniform = streams.fresh("parameters")
        widths = [self.upper, *(self.latents.width,) * layers, height * width - self.upper]
        networks = [StackedMLP(ends, "tanh", streams.replicas, uniform, initialisation) for ends in pairwise(widths)]
        if output_bias == "data_mean":
            with torch.no_grad():
                networks[-1].biases[-1].copy_(data.mean[self.upper :].clamp(0.001, 0.999).logit())
        self.networks: Any = nn.ModuleList(networks)

    @property
    def layers_of_latents(self) -> list[Bernoulli | Categorical]:
        """Each gets an estimator of its own."""
        return [self.latents] * self.layers

    @property
    def context_features(self) -> int:
        """Size of the context that an input-dependent baseline sees, at every layer: x."""
        return self.upper

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported: of all layers that give logits of latents."""
        return list(self.networks[:-1].parameters())

    def protocol(self) -> dict[str, Any]:
        rows = self.data.image_shape[0]
        return {
            **super().protocol(),
            "quantity": "-log p(y|x)",
            "half": f"y: the lower {rows - rows // 2} of {rows} rows, x: the others",
            "layers": self.layers,
            "evaluation": "hard samples of p(z|x), ELBO: mean of log p(y|z), bound: log of the mean of p(y|z)",
        }

    def _halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """x and y."""
        return images[..., : self.upper], images[..., self.upper :]

    def loss(self, batch: Tensor, *estimators: Estimator) -> Tensor:
        """The training objective: ``batch`` ``[R, E, D]`` -> ``[R, E]`` nats, lower is better.

        ``estimators``: one per layer, the first that of z_1. Raises ``ValueError`` for another number of them.
        """
        if len(estimators) != self.layers:
            raise ValueError(f"{self.layers} layers need as many estimators, not {len(estimators)}")
        x, y = self._halves(batch)

        return self._expected(x, y, estimators, self.networks[0](x), 0)

    def _expected(self, x: Tensor, y: Tensor, estimators: Sequence[Estimator], outputs: Tensor, layer: int) -> Tensor:
        """``E[-log p(y|z_last)]`` over the latents from ``layer`` on, whose network gave ``outputs``."""
        if layer == self.layers:
            return bernoulli_nats(outputs, y)
        network = self.networks[layer + 1]
        return estimators[layer](
            self.latents.logits(outputs),
            lambda z: self._expected(x, y, estimators, network(self.latents.features(z)), layer + 1),
            context=x,
        )

    def log_weights(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(y|z)`` of exact samples, twice: they come from p(z|x), so that their weights have no more.

        The bound is ``log 1/m sum_m p(y|z_m)`` (the papers' negative log-likelihood is its negative). The names are
        those of a VAE: in the mean ``elbo <= bound <= log p(y|x)``, with m = 1 they are equal.
        """
        x, y = self._halves(x)
        outputs = self.networks[0](x).unsqueeze(2)
        for network, own in zip(self.networks[1:], noise.split(self.latents.latents, -1), strict=True):
            outputs = self.latents.through(network, self.latents.draw_codes(outputs, own))
        log_p = bernoulli_log_prob_(outputs, y)
        return log_p, log_p

    def exact(self, x: Tensor) -> dict[str, Tensor]:
        x, y = self._halves(x)
        return enumeration.of_chain(self.latents, self.networks[0](x), list(self.networks[1:]), y)

    def _predict(self, outputs: Tensor, samples: int, uniform: Uniform) -> Tensor:
        """Logits of y ``[samples, R, E, pixels]``, each from a fresh exact sample of all layers.

        ``outputs`` ``[R, E, width]``: of the first network.
        """
        shape = (samples, *outputs.shape[:2], self.latents.latents)
        for network in self.networks[1:]:
            u = uniform(shape, outputs.dtype, outputs.device, 1)
            outputs = network(self.latents.sample(outputs, u))
        return outputs

    @torch.no_grad()
    def examples(self, count: int = 10) -> list[dict[str, Tensor]]:
        """Pictures of validation images for the figures, per replica, each ``[count, H, W]``.

        ``originals``; ``reconstructions``: the upper half as given and the mean prediction of the lower half;
        ``samples``: the prediction of one sample of the latents. Both are pixel probabilities.
        """
        images, uniform = self.shown_of_valid(count), self.streams.fresh("examples")
        x, _ = self._halves(images)
        predicted = self._predict(self.networks[0](x), MEAN_OF, uniform).sigmoid()
        return self.pictures(
            originals=images,
            reconstructions=torch.cat((x, predicted.mean(0)), -1),
            samples=torch.cat((x, predicted[0]), -1),
        )
