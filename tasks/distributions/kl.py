"""The KL of a negative ELBO as an option: in closed form, at the samples, or of relaxed samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KLS = ("auto", "analytic", "sampled", "relaxed")


def kl_form(estimator: Callable[..., Tensor], kl: str) -> str:
    """What the option ``kl`` is with this estimator: ``analytic``, ``sampled`` or ``relaxed``.

    ``auto`` is sampled for an unbiased estimator and for one that rescales its gradient, and analytic for a biased one
    (pathwise samples, hard or relaxed). In the loss, ``log q(z) - log p(z)`` cancels much of what ``-log p(x|z)``
    varies with z, the more the nearer q is to the posterior, and a signal that weighs samples by their loss has less
    variance (measured: ``docs/results/kl``). Beside a rescaled gradient (NVIL) or a log weight (VIMCO, which is
    unbiased) an analytic KL would be wrong. Biased ones have the KL of their papers (Jang et al., ReinMax), whose own
    gradient has neither noise nor bias; with hard samples ``sampled`` may still be better, because biases cancel, too.

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
    inside = getattr(estimator, "unbiased", False) or getattr(estimator, "rescales", False)
    return "sampled" if inside else "analytic"


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

    At one exact sample ``d log q(z) / d outputs`` with z held fixed is the score, whose mean is zero, whatever the
    estimator does with the loss. One that differentiates the loss in z needs ``d log q / d z``, which the detached
    outputs keep: ``log q`` is linear in z. Relaxed samples are not of q, and in a multi-sample bound the score is
    weighted: these two need it. An estimator that does not say whether it is ``relaxed`` keeps it: never wrong.
    """
    of_weights = getattr(estimator, "objective", "mean") == "multi_sample_bound"
    return outputs if of_weights or getattr(estimator, "relaxed", True) else outputs.detach()
