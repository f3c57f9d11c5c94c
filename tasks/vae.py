"""Variational auto-encoders with one layer of Bernoulli or categorical latents and Bernoulli pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tasks.chunks import check_samples, image_chunks, sample_chunks
from tasks.datasets import Dataset
from tasks.latents import latents_of, log_mean_exp_update, once
from tasks.layers import StackedMLP, Uniform
from tasks.likelihoods import bernoulli_nats

PRIORS, KLS, OUTPUT_BIASES = ("uniform", "learned"), ("auto", "analytic", "sampled", "relaxed"), ("zero", "data_mean")


class RandomStreams(Protocol):
    """Per-replica randomness: ``fresh(purpose)`` starts a stream that depends on each run's seed and the purpose."""

    @property
    def replicas(self) -> int: ...

    def fresh(self, purpose: str) -> Uniform: ...


def kl_beside(estimator: Callable[..., Tensor], kl: str) -> str:
    """What the option ``kl`` is with this estimator: ``analytic``, ``sampled`` or ``relaxed``.

    Raises:
        ValueError: for ``relaxed`` with an estimator whose samples have no Concrete density.
    """
    has_density = hasattr(estimator, "sample_with_log_prob") and getattr(estimator, "relaxed", False)
    if kl == "relaxed" and not has_density:
        raise ValueError(
            "task.kl=relaxed needs relaxed samples with a Concrete density: use estimator=gumbel_softmax with "
            "estimator.hard=false, or keep this estimator with task.kl=auto"
        )
    if kl != "auto":
        return kl
    of_weights = getattr(estimator, "objective", "mean") == "multi_sample_bound"
    return "sampled" if of_weights or getattr(estimator, "rescales", False) else "analytic"


def check_prior_temperature(temperature: float | Tensor | None, kl: str) -> None:
    """Raise ``ValueError`` for one that is not positive, or that the KL has no use for."""
    if temperature is None:
        return
    if kl != "relaxed":
        raise ValueError(f"task.prior_temperature is an option of task.kl=relaxed; with task.kl={kl} leave it null")
    values = torch.as_tensor(temperature)
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"task.prior_temperature must be positive and finite, not {values.flatten().tolist()}")


def for_log_q(outputs: Tensor, estimator: Callable[..., Tensor]) -> Tensor:
    """The ``outputs`` from which a sampled KL takes ``log q``, without their gradient where it is noise alone.

    At one exact sample the gradient of ``log q`` itself is the score, of mean zero. An estimator that differentiates
    the loss in the sample, or one of log weights, needs it.
    """
    is_noise = getattr(estimator, "objective", "mean") == "mean" and not getattr(estimator, "needs_gradient", True)
    return outputs.detach() if is_noise else outputs


class VAE(nn.Module):
    r"""``D - L x K - D``: q(z|x) factorises over L latents of K categories, p(x|z) is Bernoulli per pixel.

    Training minimises, per example, in nats, ``E_q[-log p(x|z)] + KL(q(z|x) || p(z))``, the negative ELBO, through the
    estimator; with a soft (relaxed) sample this objective is not a bound. :meth:`evaluate` always uses exact one-hot
    samples and never the estimator. All parameters have a leading replica dimension.

    Args:
        data: images; grey targets (``binarization: none``) make the likelihood a cross-entropy and no bound.
        streams: per-replica randomness (initial weights, evaluation).
        latents: number L of latent variables, >= 1.
        categories: number K of categories, >= 2; with 2 the encoder has one log-odds output per latent and the decoder
            sees one bit per latent.
        hidden: widths of the encoder's hidden layers; the decoder has them reversed. Empty: linear.
        nonlinearity: ``tanh | relu | leaky_relu``.
        prior: ``uniform`` (1/K each) or ``learned`` (free logits, trained along).
        kl: ``analytic`` (closed form, outside of the estimated expectation), ``sampled`` (``log q(z) - log p(z)`` at
            the sample, as a part of the loss that the estimator sees; for soft samples it is the linear relaxation), or
            ``auto``: analytic, but sampled for an estimator of a multi-sample bound (VIMCO), whose loss is the log
            weight, and for one that rescales its gradient (NVIL's variance normalisation), beside which an analytic KL
            would weigh as many times too much as the gradient was divided by, and collapse the posterior. ``relaxed``,
            for soft Gumbel-Softmax only: ``log q(z) - log p(z)`` of the Concrete densities at the relaxed sample, with
            which the objective bounds the model whose latents are the relaxed ones, not the one that is evaluated
            (Maddison, Mnih, Teh, arXiv 1611.00712, appendix C.2: ``relaxed``, ``sampled`` with soft samples and
            ``analytic`` are its equations 20, 21 and 22).
        prior_temperature: > 0, of the prior's Concrete density with ``kl=relaxed`` (the paper has 1/2 beside a
            posterior at 2/3 for Bernoulli latents); a tensor ``[replicas, 1, 1, 1]`` has one for each replica.
            ``None``: the estimator's, annealed with it.
        output_bias: initial bias of the pixels: ``zero``, or ``data_mean`` for the logit of the training mean, clipped
            to [0.001, 0.999].

    Raises:
        ValueError: one sentence for an option that is not one of the above.
    """

    def __init__(
        self,
        data: Dataset,
        streams: RandomStreams,
        *,
        latents: int = 200,
        categories: int = 2,
        hidden: Sequence[int] = (),
        nonlinearity: str = "tanh",
        prior: str = "uniform",
        kl: str = "auto",
        prior_temperature: float | Tensor | None = None,
        output_bias: str = "zero",
    ) -> None:
        super().__init__()
        for option, value, allowed in (
            ("prior", prior, PRIORS),
            ("kl", kl, KLS),
            ("output_bias", output_bias, OUTPUT_BIASES),
        ):
            if value not in allowed:
                raise ValueError(f"task.{option} must be one of {', '.join(allowed)}, not {value!r}")
        if any(width < 1 for width in hidden):
            raise ValueError(f"task.hidden must be widths of at least 1, not {list(hidden)}")
        check_prior_temperature(prior_temperature, kl)
        if not math.prod(data.image_shape):
            raise ValueError(f"the VAE tasks need images: data={data.name} has none; use data=digits or data=mnist")
        self.data, self.streams = data, streams
        self.prior, self.kl = prior, kl
        self.latents = latents_of(latents, categories)
        pixels, replicas = math.prod(data.image_shape), streams.replicas
        uniform = streams.fresh("parameters")
        widths = [pixels, *hidden, self.latents.width]
        self.encoder = StackedMLP(widths, nonlinearity, replicas, uniform)
        self.decoder = StackedMLP(widths[::-1], nonlinearity, replicas, uniform)
        if output_bias == "data_mean":
            with torch.no_grad():
                self.decoder.biases[-1].copy_(data.mean.clamp(0.001, 0.999).logit())
        prior_outputs = torch.zeros(replicas, 1, self.latents.width)
        self.prior_outputs = nn.Parameter(prior_outputs) if prior == "learned" else nn.Buffer(prior_outputs)
        self.prior_temperature = (
            nn.Buffer(prior_temperature) if isinstance(prior_temperature, Tensor) else prior_temperature
        )

    @property
    def replicas(self) -> int:
        return self.streams.replicas

    @property
    def context_features(self) -> int:
        """Size of the context that an input-dependent baseline sees: the image."""
        return math.prod(self.data.image_shape)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradient variance is reported."""
        return list(self.encoder.parameters())

    def protocol(self) -> dict[str, Any]:
        """What an evaluation of this task depends on; numbers of different protocols must not be compared."""
        return {
            **self.data.protocol(),
            "prior": self.prior,
            "evaluation": "hard samples, analytic KL in the ELBO",
            "evaluation_is_bound": self.data.test.levels == 1,
        }

    def reconstruction(self, features: Tensor, x: Tensor) -> Tensor:
        """``-log p(x|z)`` in nats: features ``[..., R, E, width]``, x ``[R, E, D]`` -> ``[..., R, E]``."""
        return bernoulli_nats(self.decoder(features), x)

    def loss(self, batch: Tensor, estimator: Callable[..., Tensor]) -> Tensor:
        """The training objective through ``estimator``: ``batch`` ``[R, E, D]`` -> ``[R, E]`` nats, lower is better."""
        outputs = self.encoder(batch)
        logits = self.latents.logits(outputs)
        kl = self.kl_for(estimator)
        if kl == "relaxed":
            z, log_ratio = estimator.sample_with_log_ratio(  # type: ignore[attr-defined]
                logits, self.latents.logits(self.prior_outputs), self.prior_temperature
            )
            return self.reconstruction(self.latents.features(z), batch) + log_ratio
        sampled = kl == "sampled"
        log_q_from = for_log_q(outputs, estimator)

        def loss(z: Tensor) -> Tensor:
            features = self.latents.features(once(z))
            nats = self.reconstruction(features, batch)
            return nats + self.latents.log_ratio(features, log_q_from, self._prior) if sampled else nats

        losses = estimator(logits, loss, context=batch)
        return losses if sampled else losses + self.latents.kl(outputs, self._prior)

    @property
    def _prior(self) -> Tensor | None:
        return self.prior_outputs if self.prior == "learned" else None  # None: uniform, in closed form

    def kl_for(self, estimator: Callable[..., Tensor]) -> str:
        """``analytic``, ``sampled`` or ``relaxed``: the KL that :meth:`loss` uses with this estimator.

        Raises:
            ValueError: for ``kl=relaxed`` with an estimator whose samples have no Concrete density.
        """
        return kl_beside(estimator, self.kl)

    @torch.no_grad()
    def evaluate(self, split: str, num_samples: int) -> dict[str, Tensor]:
        """Bounds on ``log p(x)`` over a split, in nats, mean over its images: ``{name: [R]}``.

        ``elbo``: ``E_q[log p(x|z)]`` by ``num_samples`` exact samples, minus the analytic KL. ``bound``:
        the importance-weighted bound ``log 1/m sum_m p(x, z_m) / q(z_m|x)`` with ``m = num_samples``. Repeatable: the
        samples depend on each run's seed and the split alone. With grey targets neither is a bound, and the names are
        ``pseudo_elbo`` and ``pseudo_bound``. Memory is bounded (:mod:`tasks.chunks`).

        Raises:
            ValueError: if ``num_samples < 1`` or the split is none of ``train, valid, test``.
        """
        check_samples(num_samples)
        uniform = self.streams.fresh(f"evaluate/{split}")
        elbo, bound = torch.zeros(2, self.replicas, dtype=torch.float64, device=self.prior_outputs.device)
        count = 0
        for x in image_chunks(self.data, split, self.replicas, self.prior_outputs):
            outputs = self.encoder(x)
            kl = self.latents.kl(outputs, self._prior)
            log_likelihood, log_total = torch.zeros_like(kl), None
            for samples in sample_chunks(num_samples, x.shape[1]):
                shape = (samples, *outputs.shape[:2], self.latents.latents)
                features = self.latents.sample(outputs, uniform(shape, outputs.dtype, outputs.device, 1))
                log_p = -self.reconstruction(features, x)
                log_likelihood += log_p.sum(0)
                log_ratio = self.latents.log_ratio(features, outputs, self._prior)
                log_total = log_mean_exp_update(log_total, log_p - log_ratio)
            assert log_total is not None
            elbo += (log_likelihood / num_samples - kl).double().sum(-1)
            bound += (log_total - math.log(num_samples)).double().sum(-1)
            count += x.shape[1]
        prefix = "" if getattr(self.data, split).levels == 1 else "pseudo_"
        return {f"{prefix}elbo": elbo / count, f"{prefix}bound": bound / count}

    @torch.no_grad()
    def examples(self, count: int = 10) -> list[dict[str, Tensor]]:
        """Pictures for the figures, per replica: ``originals``, ``reconstructions``, ``samples`` ``[count, H, W]``.

        Reconstructions decode one exact sample of q(z|x) for validation images; samples decode codes from the prior.
        Both are the decoder's pixel probabilities.
        """
        uniform = self.streams.fresh("examples")
        split, device = self.data.valid, self.prior_outputs.device
        rows = torch.linspace(0, len(split) - 1, count).long()
        x = (split.pixels[rows].to(device).float() / split.levels).expand(self.replicas, -1, -1)
        outputs = self.encoder(x)

        def decode(outputs: Tensor) -> Tensor:
            u = uniform((*outputs.shape[:2], self.latents.latents), outputs.dtype, device, 1)
            return self.decoder(self.latents.sample(outputs, u)).sigmoid()

        pictures = {
            "originals": x,
            "reconstructions": decode(outputs),
            "samples": decode(self.prior_outputs.expand(-1, count, -1)),
        }
        shaped = {name: images.unflatten(-1, self.data.image_shape).cpu() for name, images in pictures.items()}
        return [{name: images[r] for name, images in shaped.items()} for r in range(self.replicas)]
