"""Variational auto-encoders with one layer of Bernoulli or categorical latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Estimator, RandomStreams
from tasks.datasets import Dataset
from tasks.distributions.kl import KLS, check_prior_temperature, for_log_q, kl_form
from tasks.distributions.latents import latents_of, one_row
from tasks.distributions.likelihoods import likelihood_of
from tasks.evaluation import enumeration
from tasks.images import ImageTask
from tasks.layers import StackedMLP
from tasks.options import OUTPUT_BIASES, PRIORS, Categories, Count, Positive, Widths, check_choice, check_widths


class VAE(ImageTask):
    r"""``D - L x K - D``: q(z|x) factorises over L latents of K categories, p(x|z) over pixels, Bernoulli ones or grey.

    Training minimises, per example, in nats, ``E_q[-log p(x|z)] + KL(q(z|x) || p(z))``, the negative ELBO, through the
    estimator; with a soft (relaxed) sample this objective is not a bound. :meth:`evaluate` always uses exact one-hot
    samples and never the estimator. All parameters have a leading replica dimension.

    Args:
        data: images; grey targets (``binarization: none``) make the Bernoulli likelihood a cross-entropy and no bound.
        streams: per-replica randomness (initial weights, evaluation).
        latents: number L of latent variables, >= 1.
        categories: number K of categories, >= 2; with 2 the encoder has one log-odds output per latent and the decoder
            sees one bit per latent.
        hidden: widths of the encoder's hidden layers; the decoder has them reversed. Empty: linear.
        nonlinearity: ``tanh | relu | leaky_relu`` (slope 0.3) ``| leaky_relu_0.1``.
        initialisation: of the weights, ``glorot`` (uniform, biases 0), ``linear`` (that of ``torch.nn.Linear``, as in
            ReinMax's nets) or ``variance_scaling`` (TensorFlow's, as in REBAR's): :func:`tasks.layers.initial_layer`.
        prior: ``uniform`` (1/K each) or ``learned`` (free logits, trained along).
        kl: ``analytic`` (closed form, outside of the estimated expectation), ``sampled`` (``log q(z) - log p(z)`` at
            the sample, as a part of the loss that the estimator sees; hard samples leave out the gradient of ``log q``
            itself, which is noise; for soft samples it is the linear relaxation), or ``auto``: sampled for an unbiased
            estimator, which has less variance with it, and for one that rescales its gradient (NVIL's variance
            normalisation), beside which an analytic KL would weigh as many times too much as the gradient was divided
            by, and collapse the posterior; analytic for a biased one (:mod:`tasks.distributions.kl`). ``relaxed``,
            for soft Gumbel-Softmax only: ``log q(z) - log p(z)`` of the Concrete densities at the relaxed sample, with
            which the objective bounds the model whose latents are the relaxed ones, not the one that is evaluated
            (Maddison, Mnih, Teh, arXiv 1611.00712, appendix C.2: ``relaxed``, ``sampled`` with soft samples and
            ``analytic`` are its equations 20, 21 and 22).
        prior_temperature: > 0, of the prior's Concrete density with ``kl=relaxed`` (the paper has 1/2 beside a
            posterior at 2/3 for Bernoulli latents); a tensor ``[replicas, 1, 1, 1]`` has one for each replica.
            ``None``: the estimator's, annealed with it.
        output_bias: initial bias of the decoder: ``zero``, or ``data_mean`` for the outputs that predict the training
            mean (of Bernoulli pixels its logit, clipped to [0.001, 0.999]).
        likelihood: ``bernoulli``, or a density of grey images (``binarization: none``): ``gaussian``, pixels scaled to
            [-1, 1], a learned variance per pixel; ``von_mises_fisher``, images scaled to unit length, a cosine loss
            with its normaliser (:mod:`tasks.distributions.likelihoods`). The encoder sees the scaled images, too.
        concentration: > 0, of the von Mises-Fisher distribution; a tensor ``[replicas, 1, 1, 1]`` has one for each
            replica. ``None``: learned.

    Raises:
        ValueError: one sentence for an option that is not one of the above.
    """

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        latents: Count = 200,
        categories: Categories = 2,
        hidden: Widths = (),
        nonlinearity: str = "tanh",
        initialisation: str = "glorot",
        prior: str = "uniform",
        kl: str = "auto",
        prior_temperature: Positive | None = None,
        output_bias: str = "zero",
        likelihood: str = "bernoulli",
        concentration: Positive | None = None,
    ) -> None:
        super().__init__(data, streams)
        check_choice("prior", prior, PRIORS)
        check_choice("kl", kl, KLS)
        check_choice("output_bias", output_bias, OUTPUT_BIASES)
        check_widths(hidden)
        check_prior_temperature(prior_temperature, kl)
        if not self.pixels:
            raise ValueError(f"the VAE tasks need images: data={data.name} has none; use data=digits or data=mnist")
        self.prior, self.kl = prior, kl
        self.latents = latents_of(latents, categories)
        replicas = streams.replicas
        self.likelihood = likelihood_of(likelihood, data, replicas, concentration)
        uniform = streams.fresh("parameters")
        widths = [self.pixels, *hidden, self.latents.width]
        self.encoder = StackedMLP(widths, nonlinearity, replicas, uniform, initialisation)
        self.decoder = StackedMLP(widths[::-1], nonlinearity, replicas, uniform, initialisation)
        if output_bias == "data_mean":
            with torch.no_grad():
                self.decoder.biases[-1].copy_(self.likelihood.outputs_for(data.mean))
        prior_outputs = torch.zeros(replicas, 1, self.latents.width)
        self.prior_outputs = nn.Parameter(prior_outputs) if prior == "learned" else nn.Buffer(prior_outputs)
        self.prior_temperature = (
            nn.Buffer(prior_temperature) if isinstance(prior_temperature, Tensor) else prior_temperature
        )

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported: those of q(z|x)."""
        return list(self.encoder.parameters())

    @property
    def is_density(self) -> bool:
        return bool(self.likelihood.density)

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "prior": self.prior,
            "evaluation": "hard samples, analytic KL in the ELBO",
            **self.likelihood.protocol(),
        }

    def reconstruction(self, features: Tensor, x: Tensor) -> Tensor:
        """``-log p(x|z)`` in nats: features ``[..., R, E, width]``, x observed ``[R, E, D]`` -> ``[..., R, E]``."""
        return self.likelihood.nats(self.decoder(features), x)

    def loss(self, batch: Tensor, estimator: Estimator) -> Tensor:  # type: ignore[override]
        """The training objective through ``estimator``: ``batch`` ``[R, E, D]`` -> ``[R, E]`` nats, lower is better."""
        batch = self.likelihood.observed(batch)
        outputs = self.encoder(batch)
        logits = self.latents.logits(outputs)
        kl = self.kl_for(estimator)
        if kl == "relaxed":
            z, log_q, log_prob = estimator.sample_with_log_prob(logits)  # type: ignore[attr-defined]
            log_p = log_prob(self.latents.logits(self.prior_outputs), self.prior_temperature)
            return self.reconstruction(self.latents.features(z), batch) + log_q - log_p
        sampled = kl == "sampled"
        log_q_from = for_log_q(outputs, estimator)

        def loss(z: Tensor) -> Tensor:
            features = self.latents.features(one_row(z))
            nats = self.reconstruction(features, batch)
            return nats + self.latents.log_ratio(features, log_q_from, self._prior) if sampled else nats

        losses = estimator(logits, loss, context=batch)
        return losses if sampled else losses + self.latents.kl(outputs, self._prior)

    @property
    def _prior(self) -> Tensor | None:
        return self.prior_outputs if self.prior == "learned" else None  # None: uniform, in closed form

    def kl_for(self, estimator: Estimator) -> str:
        """``analytic``, ``sampled`` or ``relaxed``: the KL that :meth:`loss` uses with this estimator.

        Raises:
            ValueError: for ``kl=relaxed`` with an estimator whose samples have no Concrete density.
        """
        return kl_form(estimator, self.kl)

    def log_likelihood(self, codes: Tensor, x: Tensor) -> Tensor:
        """``log p(x|z)`` without a derivative: codes ``[R, E, S, ...]``, x observed -> ``[R, E, S]`` nats."""
        return self.likelihood.log_prob_(self.latents.through(self.decoder, codes), x)

    def log_weights(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x, z) / q(z|x)`` and ``log p(x|z) - KL`` of exact samples, the KL in closed form."""
        x = self.likelihood.observed(x)
        outputs = self.encoder(x)
        codes = self.latents.draw_codes(outputs.unsqueeze(2), noise)
        log_p = self.log_likelihood(codes, x)
        slope, constant = self.latents.log_ratio_terms(outputs, self._prior)
        log_ratio = self.latents.dot(codes, slope).add_(constant.unsqueeze(-1))
        return log_p - log_ratio, log_p - self.latents.kl(outputs, self._prior).unsqueeze(-1)

    def exact(self, x: Tensor) -> dict[str, Tensor]:
        x, log_prob = self.likelihood.observed(x), self.likelihood.log_prob_of_pairs
        return enumeration.of_auto_encoder(self.latents, self.encoder(x), self.prior_outputs, self.decoder, x, log_prob)

    @torch.no_grad()
    def examples(self, count: int = 10) -> list[dict[str, Tensor]]:
        """Pictures for the figures, per replica: ``originals``, ``reconstructions``, ``samples`` ``[count, H, W]``.

        Reconstructions decode one exact sample of q(z|x) for validation images; samples decode codes from the prior.
        Both are the likelihood's predictions (of Bernoulli pixels their probabilities).
        """
        uniform = self.streams.fresh("examples")
        x = self.shown_of_valid(count)
        outputs = self.encoder(self.likelihood.observed(x))

        def decode(outputs: Tensor) -> Tensor:
            u = uniform((*outputs.shape[:2], self.latents.latents), outputs.dtype, outputs.device, 1)
            return self.likelihood.picture(self.decoder(self.latents.sample(outputs, u)))

        return self.pictures(
            originals=x,
            reconstructions=decode(outputs),
            samples=decode(self.prior_outputs.expand(-1, count, -1)),
        )
