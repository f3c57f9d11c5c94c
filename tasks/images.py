"""What tasks on images share that are evaluated by importance-weighted bounds."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from tasks.base import Primary, Task
from tasks.datasets import Split
from tasks.evaluation import bounds, enumeration
from tasks.evaluation.chunks import intensities


class ImageTask(Task):
    """A task on images that says the log weights of exact samples; the bounds are made of these.

    :meth:`evaluate` gives ``elbo`` and ``bound`` in nats, higher is better. With grey targets (``binarization: none``)
    of pixels that are bits nothing is a bound, and all names begin with ``pseudo_``.
    """

    @property
    def pixels(self) -> int:
        """D, of an image."""
        return math.prod(self.data.image_shape)

    @property
    def is_density(self) -> bool:
        """Whether the likelihood is a density of grey images."""
        return False

    @property
    def is_bound(self) -> bool:
        return self.is_density or self.data.test.levels == 1

    @property
    def primary(self) -> Primary:
        return Primary("bound" if self.is_bound else "pseudo_bound")

    @property
    def words(self) -> int:
        """Words of noise that one sample of all latents of an image takes."""
        return sum(layer.latents for layer in self.layers_of_latents)

    @abstractmethod
    def log_weights(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x, z) / q(z|x)`` of exact samples, and the term of the ELBO (:mod:`tasks.evaluation.bounds`).

        ``x`` ``[R, E, D]``, ``noise`` ``[R, E, S, words]`` -> both ``[R, E, S]``.
        """

    def exact(self, x: Tensor) -> dict[str, Tensor]:
        """``exact_log_likelihood`` and ``exact_elbo`` in nats by summing over all states, or nothing.

        ``x`` ``[R, E, D]`` -> ``[R, E]``, float64. Only for few states (:mod:`tasks.evaluation.enumeration`).
        """
        return {}

    @torch.no_grad()
    def evaluate(self, split: str, num_samples: int, details: bool = False) -> dict[str, Tensor]:
        """Bounds over a split, in nats, mean over its images: ``{name: [R]}`` (:mod:`tasks.evaluation.bounds`).

        With m = ``num_samples`` exact samples of the latents for each image, ``elbo`` is the mean of the ELBO's term
        and ``bound`` the importance-weighted bound ``log 1/m sum_m w_m``. ``details`` adds the bounds of fewer samples,
        standard errors and, where the joint states are few, what :meth:`exact` gives.

        Raises:
            ValueError: if ``num_samples < 1`` or the split is none of ``train, valid, test``.
        """
        return bounds.evaluate(
            self.data,
            split,
            self.streams,
            self.log_weights,
            num_samples=num_samples,
            words=self.words,
            like=self._like,
            details=details,
            exact=self.exact if enumeration.is_feasible(self.latents, len(self.layers_of_latents)) else None,
            density=self.is_density,
        )

    @property
    def _like(self) -> Tensor:
        """With the dtype and the device of the parameters."""
        return next(self.parameters())

    def shown(self, split: Split, rows: Tensor) -> Tensor:
        """Some images of a split as intensities, ``[R, rows, D]``."""
        return intensities(split.pixels[rows], split.levels, self.replicas, self._like)

    def shown_of_valid(self, count: int) -> Tensor:
        """``count`` validation images, from the first to the last."""
        return self.shown(self.data.valid, torch.linspace(0, len(self.data.valid) - 1, count).long())

    def pictures(self, **pixels: Tensor) -> list[dict[str, Tensor]]:
        """What :meth:`examples` returns, from ``[R, ..., D]`` by name."""
        shaped = {name: each.unflatten(-1, self.data.image_shape).cpu() for name, each in pixels.items()}
        return [{name: each[r] for name, each in shaped.items()} for r in range(self.replicas)]
