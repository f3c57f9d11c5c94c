"""Variational auto-encoders with one to four layers of Bernoulli or categorical latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Estimator, RandomStreams
from tasks.datasets import Dataset
from tasks.distributions.kl import KLS, check_prior_temperature, for_log_q, kl_form
from tasks.distributions.latents import Bernoulli, Categorical, latents_of, one_row
from tasks.distributions.likelihoods import likelihood_of
from tasks.evaluation import enumeration
from tasks.images import ImageTask
from tasks.layers import StackedMLP
from tasks.options import (
    OUTPUT_BIASES,
    PRIORS,
    Categories,
    Count,
    HiddenLayers,
    Layers,
    Positive,
    Widths,
    check_choice,
    check_layers,
    check_widths,
)


class VAE(ImageTask):
    r"""``D - L x K - ... - L x K - D``: q(z_1|x) q(z_2|z_1) ... and p(z_N) p(z_{N-1}|z_N) ... p(x|z_1), N = ``layers``.

    Every conditional factorises over its L latents of K categories, or over pixels, and is linear in what it depends
    on, or has hidden layers. Training minimises, per example, in nats, the negative ELBO

        E_q[-log p(x|z_1) + sum_{n<N} (log q(z_n|z_{n-1}) - log p(z_n|z_{n+1})) + log q(z_N|z_{N-1}) - log p(z_N)]

    with z_0 = x; of one layer it is ``E_q[-log p(x|z)] + KL(q(z|x) || p(z))``. Each layer has an estimator of its own,
    and they nest: the loss of z_n's estimator contains only terms that depend on z_n: ``-log p(z_{n-1}|z_n)`` and the
    expectation over the layers above (NVIL's local signals). With soft (relaxed) samples the objective is not a bound.
    :meth:`evaluate` always uses exact samples and never the estimator.

    Args:
        data: images; grey targets (``binarization: none``) make the Bernoulli likelihood a cross-entropy and no bound.
        streams: per-replica randomness (initial weights, evaluation).
        latents: number L of latent variables of each layer, >= 1.
        categories: number K of categories, >= 2; with 2 a layer has one log-odds output per latent and passes one bit
            per latent on.
        layers: stochastic layers N, 1 to 4.
        hidden: widths of the hidden layers of each q(z_n|z_{n-1}); the p have them reversed. Empty: linear.
        square_hidden: in place of ``hidden``, so many hidden layers in each conditional of q and p, as wide as what
            enters it (Concrete's recipe: 784 in q(z_1|x), L in p(x|z_1)).
        nonlinearity: ``tanh | relu | leaky_relu`` (slope 0.3) ``| leaky_relu_0.1``.
        initialisation: of the weights, ``glorot`` (uniform, biases 0), ``linear`` (that of ``torch.nn.Linear``, as in
            ReinMax's nets) or ``variance_scaling`` (TensorFlow's, as in REBAR's): :func:`tasks.layers.initial_layer`.
        prior: of z_N, ``uniform`` (1/K each) or ``learned`` (free logits, trained along).
        kl: ``analytic`` (closed form, outside of the estimated expectation), ``sampled`` (``log q(z) - log p(z)`` at
            the sample, as a part of the loss that the estimator sees; hard samples leave out the gradient of ``log q``
            itself, which is noise; for soft samples it is the linear relaxation), or ``auto``: sampled for an unbiased
            estimator, which has less variance with it, and for one that rescales its gradient (NVIL's variance
            normalisation), beside which an analytic KL would weigh as many times too much as the gradient was divided
            by, and collapse the posterior; analytic for a biased one (:mod:`tasks.distributions.kl`). Of several
            layers, what is analytic, given the sample of the layer below, is the mean of ``log q(z_n|z_{n-1})`` (the
            negative entropy) and the top layer's KL; ``-log p(z_n|z_{n+1})`` depends on the sample above as well and
            is always taken at the samples. ``relaxed``, for soft Gumbel-Softmax only: ``log q - log p`` of the Concrete
            densities at the relaxed samples, with which the objective bounds the model whose latents are the relaxed
            ones, not the one that is evaluated (Maddison, Mnih, Teh, arXiv 1611.00712, appendix C.2: ``relaxed``,
            ``sampled`` with soft samples and ``analytic`` are its equations 20, 21 and 22).
        prior_temperature: > 0, with ``kl=relaxed``, of the Concrete densities p(z_N) and p(z_n|z_{n+1}) (the paper has
            1/2 beside a posterior at 2/3 for Bernoulli latents); a tensor ``[replicas, 1, 1, 1]`` has one for each
            replica. ``None``: that of the layer's estimator, annealed with it.
        output_bias: initial bias of the pixels: ``zero``, or ``data_mean`` for the outputs that predict the training
            mean (of Bernoulli pixels its logit, clipped to [0.001, 0.999]).
        likelihood: ``bernoulli``, or a density of grey images (``binarization: none``): ``gaussian``, pixels scaled to
            [-1, 1], a learned variance per pixel; ``von_mises_fisher``, images scaled to unit length, a cosine loss
            with its normaliser (:mod:`tasks.distributions.likelihoods`). The encoder sees the scaled images, too.
        concentration: > 0, of the von Mises-Fisher distribution; a tensor ``[replicas, 1, 1, 1]`` has one for each
            replica. ``None``: learned.
        centred: networks see images minus the training mean (both scaled as the likelihood says) and samples as -1 and
            +1 (one-hot codes, too) instead of 0 and 1: the recipe of REBAR's code and, for the samples, of Concrete.
            The models are the same; training is not.

    Raises:
        ValueError: one sentence for an option that is not one of the above, or two that exclude each other.

    References: Mnih, Gregor (arXiv 1402.0030, NVIL); Gu et al. (1511.05176, MuProp: 784-200-200-784 and
    784-200-200-200-784); Jang, Gu, Poole (1611.01144: 784-200-784 and 784-(20x10)-784); Tucker et al. (1703.07370,
    REBAR: "linear-2"); Maddison, Mnih, Teh (1611.00712, whose ``~`` is ``hidden=200,200``). MuProp's mean and REBAR's
    relaxation are those of one layer at a time here.
    """

    renamed = {"encoder.": "encoders.0.", "decoder.": "decoders.0."}

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        latents: Count = 200,
        categories: Categories = 2,
        layers: Layers = 1,
        hidden: Widths = (),
        square_hidden: HiddenLayers = 0,
        nonlinearity: str = "tanh",
        initialisation: str = "glorot",
        prior: str = "uniform",
        kl: str = "auto",
        prior_temperature: Positive | None = None,
        output_bias: str = "zero",
        likelihood: str = "bernoulli",
        concentration: Positive | None = None,
        centred: bool = False,
    ) -> None:
        super().__init__(data, streams)
        check_choice("prior", prior, PRIORS)
        check_choice("kl", kl, KLS)
        check_choice("output_bias", output_bias, OUTPUT_BIASES)
        check_layers(layers)
        check_prior_temperature(prior_temperature, kl)
        check_widths(hidden)
        if square_hidden < 0 or (square_hidden and hidden):
            raise ValueError(
                f"task.square_hidden must be at least 0, and 0 beside task.hidden, not {square_hidden} beside "
                f"{list(hidden)}: give one of the two"
            )
        if not self.pixels:
            raise ValueError(f"the VAE tasks need images: data={data.name} has none; use data=digits or data=mnist")
        self.layers, self.prior, self.kl, self.centred = layers, prior, kl, centred
        self.latents = latents_of(latents, categories)
        uniform, replicas = streams.fresh("parameters"), streams.replicas
        self.likelihood = likelihood_of(likelihood, data, replicas, concentration)
        ends = list(pairwise([self.pixels, *(self.latents.width,) * layers]))

        def network(entering: int, inner: Sequence[int], leaving: int) -> StackedMLP:
            widths = [entering, *(inner or [entering] * square_hidden), leaving]
            return StackedMLP(widths, nonlinearity, replicas, uniform, initialisation)

        # encoders[n] gives q(z_{n+1}|z_n), decoders[n] gives p(z_n|z_{n+1}), where z_0 is x
        self.encoders: Any = nn.ModuleList(network(below, hidden, above) for below, above in ends)
        decoders = [network(above, hidden[::-1], below) for below, above in ends]
        self.decoders: Any = nn.ModuleList(decoders)
        if output_bias == "data_mean":
            with torch.no_grad():
                decoders[0].biases[-1].copy_(self.likelihood.outputs_for(data.mean))
        prior_outputs = torch.zeros(replicas, 1, self.latents.width)
        self.prior_outputs = nn.Parameter(prior_outputs) if prior == "learned" else nn.Buffer(prior_outputs)
        self.prior_temperature = (
            nn.Buffer(prior_temperature) if isinstance(prior_temperature, Tensor) else prior_temperature
        )
        self.observed_mean = nn.Buffer(self.likelihood.observed(data.mean), persistent=False)

    @property
    def layers_of_latents(self) -> list[Bernoulli | Categorical]:
        """Each gets an estimator of its own."""
        return [self.latents] * self.layers

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported: those of q, of all layers."""
        return list(self.encoders.parameters())

    @property
    def is_density(self) -> bool:
        return bool(self.likelihood.density)

    def kl_for(self, estimator: Estimator) -> str:
        """``analytic``, ``sampled`` or ``relaxed``: the KL that :meth:`loss` uses with this estimator.

        Raises:
            ValueError: for ``kl=relaxed`` with an estimator whose samples have no Concrete density.
        """
        return kl_form(estimator, self.kl)

    def protocol(self) -> dict[str, Any]:
        several = {
            "layers": self.layers,
            "evaluation": "hard samples of every layer; entropies and the top layer's KL analytic in the ELBO",
        }
        return {
            **super().protocol(),
            "prior": self.prior,
            **(several if self.layers > 1 else {"evaluation": "hard samples, analytic KL in the ELBO"}),
            **self.likelihood.protocol(),
        }

    def loss(self, batch: Tensor, *estimators: Estimator) -> Tensor:
        """The training objective: ``batch`` ``[R, E, D]`` -> ``[R, E]`` nats, lower is better.

        ``estimators``: one per layer, the first that of z_1. Raises ``ValueError`` for another number of them.
        """
        if len(estimators) != self.layers:
            raise ValueError(f"{self.layers} layers need as many estimators, not {len(estimators)}")
        x = self.likelihood.observed(batch)
        if self.kl == "relaxed":
            return self._relaxed_loss(x, estimators)

        return self._expected(x, estimators, self.encoders[0](self._centred(x)), None, 0)

    def _expected(
        self, x: Tensor, estimators: Sequence[Estimator], outputs: Tensor, below: Tensor | None, layer: int
    ) -> Tensor:
        """Of what ``layer`` and those above it contribute, given the sample ``below`` (``None``: the image)."""
        estimator = estimators[layer]
        sampled = self.kl_for(estimator) == "sampled"
        log_q_from = for_log_q(outputs, estimator)

        def loss(z: Tensor) -> Tensor:
            features = self.latents.features(one_row(z) if self.layers == 1 else z)
            entering = self._entering(features)
            nats = self._nats(self.decoders[layer](entering), below, x)
            if sampled:
                nats = nats + self._log_ratio(features, log_q_from, layer)
            if layer + 1 < self.layers:
                above = self.encoders[layer + 1](entering)
                nats = nats + self._expected(x, estimators, above, features, layer + 1)
            return nats

        losses = estimator(self.latents.logits(outputs), loss, context=x)
        return losses if sampled else losses + self._mean_log_ratio(outputs, layer)

    def _relaxed_loss(self, x: Tensor, estimators: Sequence[Any]) -> Tensor:
        """The loss with Concrete densities at relaxed samples, layer by layer: there is nothing to estimate."""
        nats: Callable[[Tensor], Tensor] = partial(self._nats, below=None, x=x)
        entering, losses = self._centred(x), torch.zeros_like(x[..., 0])
        for estimator, encoder, decoder in zip(estimators, self.encoders, self.decoders, strict=True):
            self.kl_for(estimator)  # or it has no density
            z, log_q, density = estimator.sample_with_log_prob(self.latents.logits(encoder(entering)))
            entering = self._entering(self.latents.features(z))
            losses = losses + log_q + nats(decoder(entering))
            nats = partial(self._relaxed_nats, density)
        return losses + nats(self.prior_outputs)

    def _relaxed_nats(self, density: Callable[..., Tensor], outputs: Tensor) -> Tensor:
        """``-log p`` of a relaxed sample under the Concrete distribution of a decoder's or the prior's ``outputs``."""
        return -density(self.latents.logits(outputs), self.prior_temperature)

    def _centred(self, x: Tensor) -> Tensor:
        """Observed images as the first encoder sees them."""
        return x - self.observed_mean if self.centred else x

    def _entering(self, features: Tensor) -> Tensor:
        """Samples as the networks see them."""
        return 2 * features - 1 if self.centred else features

    def _nats(self, generated: Tensor, below: Tensor | None, x: Tensor) -> Tensor:
        """``-log p(z_{n-1}|z_n)`` from a decoder's outputs; below z_1 is the observed image."""
        return self.likelihood.nats(generated, x) if below is None else self.latents.nats(below, generated)

    def _log_ratio(self, features: Tensor, outputs: Tensor, layer: int) -> Tensor:
        """``log q(z_n|z_{n-1})`` at a sample; at the top minus ``log p(z_n)``."""
        if layer + 1 == self.layers:
            return self.latents.log_ratio(features, outputs, self._prior)
        return self.latents.log_ratio(features, outputs, None) - self._log_states

    def _mean_log_ratio(self, outputs: Tensor, layer: int) -> Tensor:
        """The mean of :meth:`_log_ratio` over z_n, in closed form: the negative entropy; at the top the KL."""
        if layer + 1 == self.layers:
            return self.latents.kl(outputs, self._prior)
        return self.latents.kl(outputs, None) - self._log_states

    @property
    def _log_states(self) -> float:
        """A layer's entropy at most: what its KL to a uniform distribution has beyond the negative entropy."""
        return self.latents.latents * math.log(self.latents.categories)

    @property
    def _prior(self) -> Tensor | None:
        return self.prior_outputs if self.prior == "learned" else None  # None: uniform, in closed form

    def log_weights(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x, z) / q(z|x)`` of exact samples of all layers, and the same with entropies and the top KL in closed
        form given the samples below."""
        x = self.likelihood.observed(x)
        outputs = self.encoders[0](self._centred(x))
        return (self._log_weights_of_one if self.layers == 1 else self._log_weights_of_several)(x, outputs, noise)

    def _log_weights_of_one(self, x: Tensor, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As of several, in fewer passes: all samples of an image have the same ``outputs`` ``[R, E, width]``."""
        draw = self.latents.draw if self.centred else self.latents.draw_codes
        codes = draw(outputs.unsqueeze(2), noise)
        log_p = self.likelihood.log_prob_(self.latents.through(self.decoders[0], self._entering(codes)), x)
        slope, constant = self.latents.log_ratio_terms(outputs, self._prior)
        log_ratio = self.latents.dot(codes, slope).add_(constant.unsqueeze(-1))
        return log_p - log_ratio, log_p - self.latents.kl(outputs, self._prior).unsqueeze(-1)

    def _log_weights_of_several(self, x: Tensor, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``outputs`` of the first encoder ``[R, E, width]``."""
        shape = noise.shape[1:3]  # images and samples
        outputs = outputs.repeat_interleave(shape[1], 1)  # a row is a sample of an image
        log_p = log_ratio = mean_log_ratio = torch.zeros_like(outputs[..., 0])
        below: Tensor | None = None
        for layer, own in enumerate(noise.flatten(1, 2).split(self.latents.latents, -1)):
            outputs = outputs if below is None else self.encoders[layer](self._entering(below))
            features = self.latents.draw(outputs, own)
            generated = self.decoders[layer](self._entering(features))
            if below is None:
                log_p = self.likelihood.log_prob_(generated.unflatten(1, shape), x).flatten(1)
            else:
                log_p = log_p - self.latents.nats(below, generated)
            log_ratio = log_ratio + self._log_ratio(features, outputs, layer)
            mean_log_ratio = mean_log_ratio + self._mean_log_ratio(outputs, layer)
            below = features
        return (log_p - log_ratio).unflatten(1, shape), (log_p - mean_log_ratio).unflatten(1, shape)

    @torch.no_grad()
    def exact(self, x: Tensor) -> dict[str, Tensor]:
        """``exact_log_likelihood``, ``log p(x)``, and ``exact_elbo`` in nats, by summing over all states of all layers.

        ``x`` ``[R, E, D]`` -> ``[R, E]``, float64. Time and memory grow with the square of a layer's ``K**L`` states.
        """
        x, log_prob = self.likelihood.observed(x), self.likelihood.log_prob_of_pairs
        states = enumeration.all_states(self.latents, like=x)
        entering = self._entering(states).expand(self.replicas, -1, -1)

        def conditional(network: StackedMLP) -> Tensor:
            return enumeration.log_probs(self.latents, network(entering), states)

        return enumeration.of_auto_encoder(
            enumeration.log_probs(self.latents, self.encoders[0](self._centred(x)), states),
            [conditional(encoder) for encoder in self.encoders[1:]],
            enumeration.log_likelihoods(lambda some: self.decoders[0](self._entering(some)), states, x, log_prob),
            [conditional(decoder) for decoder in self.decoders[1:]],
            enumeration.log_probs(self.latents, self.prior_outputs, states),
        )

    @torch.no_grad()
    def examples(self, count: int = 10) -> list[dict[str, Tensor]]:
        """Pictures for the figures, per replica: ``originals``, ``reconstructions``, ``samples`` ``[count, H, W]``.

        Reconstructions decode one exact sample of q(z_1|x) for validation images; samples come from the prior through
        all layers. Both are the likelihood's predictions (of Bernoulli pixels their probabilities).
        """
        uniform = self.streams.fresh("examples")
        x = self.shown_of_valid(count)

        def decode(outputs: Tensor, decoder: StackedMLP) -> Tensor:
            u = uniform((*outputs.shape[:2], self.latents.latents), outputs.dtype, outputs.device, 1)
            return decoder(self._entering(self.latents.sample(outputs, u)))

        reconstructions = decode(self.encoders[0](self._centred(self.likelihood.observed(x))), self.decoders[0])
        outputs = self.prior_outputs.expand(-1, count, -1)
        for decoder in reversed(self.decoders):
            outputs = decode(outputs, decoder)
        picture = self.likelihood.picture
        return self.pictures(originals=x, reconstructions=picture(reconstructions), samples=picture(outputs))
