"""Importance-weighted bounds from exact samples: the loop over images and samples that every task's evaluation shares.

For each image x and m samples ``z_1 .. z_m ~ q(z|x)`` with weights ``w = p(x, z) / q(z|x)``, in nats::

    bound_m = log (w_1 + ... + w_m) / m,     E[elbo] = E[bound_1] <= E[bound_m] <= log p(x),

rising with m (Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", arXiv 1509.00519).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.base import RandomStreams
from tasks.datasets import Dataset
from tasks.evaluation.chunks import images_per_block, intensities, pieces, samples_per_block

LogWeights = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``log_weights(x, noise) -> (log w, value)``: see :func:`evaluate`."""


IMAGES_AT_ONCE = 50
"""Whose exact quantities are computed together: images x states are in memory."""


def evaluate(
    data: Dataset,
    split: str,
    streams: RandomStreams,
    log_weights: LogWeights,
    *,
    num_samples: int,
    words: int,
    like: Tensor,
    details: bool = False,
    exact: Callable[[Tensor], dict[str, Tensor]] | None = None,
    density: bool = False,
) -> dict[str, Tensor]:
    """Bounds over a split, in nats, means over its images: ``{name: [R]}``, float64.

    ``elbo`` is the mean of ``value`` over samples and images, ``bound`` that of the bound of m = ``num_samples``
    samples. With ``details`` also

    - ``bound_1``, ``bound_10``, ``bound_100``, ...: the bounds of the first 1, 10, 100, ... < m of the same samples;
    - ``elbo_standard_error``, ``bound_standard_error``: of the means over images, ``std / sqrt(images)``: how far they
      may be from those of all images of this kind, the samples' noise included;
    - what ``exact`` gives, if there is one (:mod:`tasks.evaluation.enumeration`).

    Repeatable: the samples depend on each run's seed, the split, m and the kind of device. Weights are summed in
    float64. Memory does not depend on m (:mod:`tasks.evaluation.chunks`). With grey targets nothing is a bound (but of
    a ``density``), and every name begins with ``pseudo_``; the training images of ``binarization: dynamic`` are the
    bits that ``static`` would have.

    Args:
        data, split: ``train``, ``valid`` or ``test``; of ``train`` as many images as ``data.train_evaluated`` says.
        log_weights: a pure function of some images ``x`` ``[R, E, pixels]`` and their noise ``[R, E, S, words]`` (of
            which :meth:`tasks.distributions.latents.Bernoulli.draw` makes exact samples): ``log w`` and the term of
            the ELBO, which may have the KL in closed form, both ``[R, E, S]``. It gets as many rows at once as suit the
            device.
        num_samples: m >= 1.
        words: noise words that one sample of all latents of one image takes.
        like: a parameter: its dtype and device are those of the images.
        exact: images ``[R, E, pixels]`` -> exact quantities ``{name: [R, E]}``.
        density: the likelihood is a density of grey targets: what is computed are bounds.

    Raises:
        ValueError: for less than one sample, or an unknown split.
    """
    if num_samples < 1:
        raise ValueError(f"a bound needs at least 1 sample, not {num_samples}")
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split must be train, valid or test, not {split!r}")
    images, draw = data.evaluated(split), streams.words(f"evaluate/{split}")
    replicas, device, at_once = streams.replicas, like.device, samples_per_block(num_samples)
    prefixes = [10**k for k in range(9) if 10**k < num_samples] if details else []
    per_image: dict[str, list[Tensor]] = {}
    for pixels in images.pixels.split(images_per_block(num_samples, device)):
        x = intensities(pixels, images.levels, replicas, like)
        count = x.shape[1]
        values = torch.zeros(replicas, count, dtype=torch.float64, device=device)
        total = torch.full_like(values, -math.inf)
        found = {f"bound_{m}": torch.empty_like(values) for m in prefixes}
        for start in range(0, num_samples, at_once):
            samples = min(at_once, num_samples - start)
            noise = draw((replicas, count, samples, words), device)
            for some, drawn in pieces(count, samples, replicas, device):
                log_w, value = (part.double() for part in log_weights(x[:, some], noise[:, some, drawn]))
                values[:, some] += value.sum(-1)
                done = start + drawn.start
                for m in prefixes:
                    if done < m <= start + drawn.stop:
                        first = torch.logaddexp(total[:, some], log_w[..., : m - done].logsumexp(-1))
                        found[f"bound_{m}"][:, some] = first - math.log(m)
                total[:, some] = torch.logaddexp(total[:, some], log_w.logsumexp(-1))
            del noise  # before the next is drawn
        found = {"elbo": values / num_samples, "bound": total - math.log(num_samples)} | found
        if details and exact is not None:
            of_some = [exact(some) for some in x.split(IMAGES_AT_ONCE, 1)]
            found |= {name: torch.cat([each[name] for each in of_some], -1) for name in of_some[0]}
        for name, each in found.items():
            per_image.setdefault(name, []).append(each)
    prefix = "" if density or images.levels == 1 else "pseudo_"
    means: dict[str, Tensor] = {}
    for name, parts in per_image.items():
        each = torch.cat(parts, -1)
        means[prefix + name] = each.mean(-1)
        if details and name in ("elbo", "bound"):
            means[f"{prefix}{name}_standard_error"] = each.std(-1) / each.shape[-1] ** 0.5
    return means
