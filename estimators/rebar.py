"""REBAR: the score function with the relaxed loss as control variate."""

from __future__ import annotations

from typing import Any

from estimators._control_variates import RelaxedControlVariate
from estimators.categorical import NotNegative, Positive


class REBAR(RelaxedControlVariate):
    r"""The score function minus the Gumbel-Softmax loss, whose mean is put back by reparameterisation.

    gradient = (loss(z) - c(z~)) * d log q(z) / d logits  +  d/d logits [c(z^) - c(z~)],
    c(x) = scale * loss(softmax(x / temperature)),  z^ = logits + Gumbel,  z = one_hot(argmax z^),
    z~ drawn from the conditional distribution of z^ given z (in log space; one logistic variable per latent for K = 2).

    Unbiased for every temperature and scale. Both are learned by descent on the variance of the gradient: their
    gradient is that of the squared norm of the single-sample estimate (in the log-odds for K = 2), it comes from the
    same ``backward()`` through a term of value zero, and it is right for a caller who *minimises*. Scale 0 is
    REINFORCE.

    Args:
        temperature: > 0, where it starts; with ``learn=False`` a float or a tensor that broadcasts against ``logits``.
        scale: eta > 0, likewise (>= 0 with ``learn=False``).
        learn: learn temperature and scale (parameters ``log_temperature`` and ``log_scale``) or keep them.
        tied: use the same relaxed sample for ``z^`` and ``z~``, which saves one of the three evaluations.
        replicas: if given, ``logits`` are ``[..., replicas, examples, latents, categories]`` and there is one
            temperature and scale per replica; otherwise one for all.

    Raises:
        ValueError: at construction, for a temperature or scale out of range.

    Example::

        estimator = REBAR()
        optimizer = torch.optim.Adam([*model.parameters(), *estimator.parameters()])
        estimator(logits, loss).mean().backward()

    Within a ``torch.func`` transform the learned parts get no gradient. If ``loss`` calls an estimator itself, the
    gradient of the temperature leaves out how that estimator's variance changes.

    Reference: Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein, "REBAR: low-variance, unbiased gradient estimates for
    discrete latent variable models", arXiv 1703.07370. Differences: the authors' code always ties the noise of ``z~``
    to that of ``z^`` (``tied=True``), here they are independent by default as in RELAX's code; it learns scale as
    ``2 sigmoid(.)`` with an optimiser of its own; its modified relaxation, which makes the limit of high temperature
    MuProp, is not used; categorical latents follow RELAX's appendix.
    """

    has_network = False

    @classmethod
    def examples(
        cls, latents: int = 2, categories: int = 2, context_features: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """With independent and with tied noise."""
        return {"": {}, "tied": {"tied": True}}

    def __init__(
        self,
        temperature: Positive = 0.5,
        scale: NotNegative = 1.0,
        *,
        learn: bool = True,
        tied: bool = False,
        replicas: int | None = None,
    ) -> None:
        super().__init__(temperature, scale, learn=learn, tied=tied, use_loss=True, replicas=replicas)
