"""torch's optimisers over stacked parameters: a learning rate (and all other numbers) per replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from training.errors import UserError


class ReplicaOptimizer:
    """Updates parameters ``[replicas, ...]`` from gradients of the same shape, each replica with its own settings.

    The arithmetic is torch's (its fused kernels). Neighbouring replicas with equal settings are updated in one
    call, so a pack that is sorted by settings makes as many calls as it has different ones.

    Args:
        parameters: leaves with a leading replica dimension.
        settings: per replica, the ``optimizer`` node of its config as a dict.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: Sequence[dict[str, Any]]) -> None:
        for setting in settings:
            check(setting)
        self._parameters = [parameter.detach() for parameter in parameters]
        moments = ("exp_avg", "exp_avg_sq") if settings[0]["name"] == "adam" else ("momentum_buffer",)
        self._moments = {name: [torch.zeros_like(p) for p in self._parameters] for name in moments}
        # Fused Adam wants its step count as a tensor per parameter.
        self._steps = [torch.zeros((), device=p.device) for p in self._parameters]
        self._settings = list(settings)
        self._used: list[int] = []
        self._prepared: list[tuple[Any, ...]] = []

    def freeze(self, replicas: Sequence[int]) -> None:
        """Leave these replicas as they are from now on, as long as their gradients are given as zero."""
        for replica in replicas:
            self._settings[replica] = self._settings[replica] | {"lr": 0.0}
        self._used, self._prepared = [], []

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One update from stacked gradients, aligned with ``parameters`` (``None``: nothing to update)."""
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        if used != self._used:
            self._prepare(used)
        # The fused updates read memory, not strides: a gradient that is a view of something wider would be garbled.
        present = [gradient.contiguous() for gradient in gradients if gradient is not None]
        for span, setting, parameters, moments, steps in self._prepared:
            own = present if len(self._prepared) == 1 else [gradient[span] for gradient in present]
            _update(setting, parameters, own, moments, steps)

    def _prepare(self, used: list[int]) -> None:
        """Slice what does not change from step to step."""
        self._used = used
        settings = self._settings
        starts = [r for r in range(len(settings)) if r == 0 or settings[r] != settings[r - 1]]
        spans = [(slice(a, b), settings[a]) for a, b in zip(starts, [*starts[1:], len(settings)], strict=True)]
        self._prepared = [
            (
                span,
                setting,
                [self._parameters[index][span] for index in used],
                {name: [tensors[index][span] for index in used] for name, tensors in self._moments.items()},
                [self._steps[index] if number == 0 else self._steps[index].clone() for index in used],
            )
            for number, (span, setting) in enumerate(spans)
        ]

    def state(self, replica: int) -> dict[str, list[Tensor]]:
        """The optimiser's state of one replica (a part of a checkpoint)."""
        return {
            **{name: [t[replica] for t in tensors] for name, tensors in self._moments.items()},
            "steps": self._steps,
        }

    @torch.no_grad()
    def restore(self, replica: int, state: dict[str, list[Tensor]]) -> None:
        """Go on from :meth:`state`."""
        for name, tensors in self._moments.items():
            for tensor, saved in zip(tensors, state[name], strict=True):
                tensor[replica] = saved
        for count, saved in zip(self._steps, state["steps"], strict=True):
            count.copy_(saved)


def _update(
    setting: dict[str, Any],
    parameters: list[Tensor],
    gradients: list[Tensor],
    moments: dict[str, list[Tensor]],
    steps: list[Tensor],
) -> None:
    if setting["name"] == "adam":
        # What torch.optim.Adam(fused=True) calls in the end; its own way there costs a solo step on a CPU two percent.
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            gradients,
            moments["exp_avg"],
            moments["exp_avg_sq"],
            [],
            steps,
            lr=setting["lr"],
            beta1=setting["beta1"],
            beta2=setting["beta2"],
            weight_decay=setting["weight_decay"],
            eps=setting["eps"],
            amsgrad=False,
            maximize=False,
        )
    else:
        sgd(
            parameters,
            gradients,
            list(moments["momentum_buffer"]),
            fused=True,
            weight_decay=setting["weight_decay"],
            momentum=setting["momentum"],
            lr=setting["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def check(setting: dict[str, Any]) -> None:
    """Raise ``UserError`` for numbers out of range."""
    if setting["name"] not in ("adam", "sgd"):
        raise UserError(f"optimizer.name must be adam or sgd, not {setting['name']!r}")
    if not setting["lr"] > 0:
        raise UserError(f"optimizer.lr must be positive, not {setting['lr']}")
    for name in ("beta1", "beta2", "momentum"):
        if name in setting and not 0 <= setting[name] < 1:
            raise UserError(f"optimizer.{name} must be in [0, 1), not {setting[name]}")
    if setting["weight_decay"] < 0:
        raise UserError(f"optimizer.weight_decay must not be negative, not {setting['weight_decay']}")
