"""torch's optimisers over stacked parameters: a learning rate (and all other numbers) per replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from training.errors import UserError

MOST_CALLS = 8
"""Different settings in a pack up to which a GPU makes a fused call for each."""


class ReplicaOptimizer:
    """Updates parameters ``[replicas, ...]`` from gradients of the same shape, each replica with its own settings.

    The arithmetic is torch's (its fused kernels). Replicas with equal settings are updated in one call, so a pack makes
    as many calls as it has different settings; on a GPU, where each is a kernel, more than ``MOST_CALLS`` become one
    expression over all replicas.

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
        self._frozen: dict[int, list[Tensor]] = {}
        self._used: list[int] = []
        self._groups: list[_Group] = []
        self._numbers: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One update from stacked gradients, aligned with ``parameters`` (``None``: nothing to update)."""
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        if used != self._used:
            self._prepare(used)
        # The fused updates read memory, not strides: a gradient that is a view of something wider would be garbled.
        present = [gradient.contiguous() for gradient in gradients if gradient is not None]
        torch._foreach_add_([self._steps[index] for index in used], 1)
        if self._numbers:
            for index, gradient in zip(used, present, strict=True):
                moments = [tensors[index] for tensors in self._moments.values()]
                update_each(self._numbers, self._parameters[index], gradient, moments, self._steps[index])
            return
        for group in self._groups:
            group.update([gradient[span] for gradient in present for span in group.spans])
        for replica, frozen in self._frozen.items():
            for parameter, value in zip(self._parameters, frozen, strict=True):
                parameter[replica] = value

    def freeze(self, replicas: Sequence[int]) -> None:
        """Leave these replicas' parameters as they are from now on.

        They are put back after each update: leaving them out of it would divide the others differently into fused
        calls, which round differently at their ends, and the neighbours of a run that diverges must not notice.
        """
        for replica in replicas:
            self._frozen[replica] = [parameter[replica].clone() for parameter in self._parameters]

    def _prepare(self, used: list[int]) -> None:
        """Slice what does not change from step to step."""
        self._used = used
        by_setting: dict[tuple[Any, ...], list[slice]] = {}
        starts = [r for r, own in enumerate(self._settings) if r == 0 or own != self._settings[r - 1]]
        for start, end in zip(starts, [*starts[1:], len(self._settings)], strict=True):
            by_setting.setdefault(tuple(self._settings[start].items()), []).append(slice(start, end))
        self._groups = [
            _Group(
                dict(setting),
                spans,
                [self._parameters[index][span] for index in used for span in spans],
                {name: [own[index][span] for index in used for span in spans] for name, own in self._moments.items()},
                [self._steps[index] for index in used for _ in spans],
            )
            for setting, spans in by_setting.items()
        ]
        device = self._parameters[0].device
        many = device.type != "cpu" and len(self._groups) > MOST_CALLS
        names = [name for name in self._settings[0] if name != "name"] if many else []
        self._numbers = {name: torch.tensor([own[name] for own in self._settings], device=device) for name in names}

    def mean_squares(self, decay: float, indices: Sequence[int]) -> list[Tensor] | None:
        """Adam's moving means of the squared gradients of these parameters, if every replica's has this decay."""
        same = all(own.get("beta2") == decay and own["weight_decay"] == 0 for own in self._settings)
        return [self._moments["exp_avg_sq"][index] for index in indices] if same else None

    def tensors(self) -> list[Tensor]:
        """All state that a step writes."""
        return [*self._steps, *(tensor for tensors in self._moments.values() for tensor in tensors)]

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


@dataclass
class _Group:
    """The parts of parameters and state that belong to the replicas of one setting."""

    setting: dict[str, Any]
    spans: list[slice]
    parameters: list[Tensor]
    moments: dict[str, list[Tensor]]
    steps: list[Tensor]

    def update(self, gradients: list[Tensor]) -> None:
        setting = self.setting
        if setting["name"] == "adam":
            # What torch.optim.Adam(fused=True) calls in the end; its own way there costs a solo step two percent.
            torch._fused_adam_(
                self.parameters,
                gradients,
                self.moments["exp_avg"],
                self.moments["exp_avg_sq"],
                [],
                self.steps,
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
                self.parameters,
                gradients,
                list(self.moments["momentum_buffer"]),
                fused=True,
                weight_decay=setting["weight_decay"],
                momentum=setting["momentum"],
                lr=setting["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )


def update_each(
    numbers: dict[str, Tensor], parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], step: Tensor
) -> None:
    """The same update as one expression, with a number ``[replicas]`` per replica for each setting.

    ``moments``: ``(exp_avg, exp_avg_sq)`` for Adam, ``(momentum_buffer,)`` for SGD; ``step``: number of this update.
    """
    number = {name: value.reshape(-1, *(1,) * (parameter.dim() - 1)) for name, value in numbers.items()}
    gradient = torch.addcmul(gradient, parameter, number["weight_decay"])
    if len(moments) == 1:
        (buffer,) = moments
        buffer.mul_(number["momentum"]).add_(gradient)
        parameter.sub_(buffer * number["lr"])
        return
    first, second = moments
    first.lerp_(gradient, 1 - number["beta1"])
    second.lerp_(gradient.square(), 1 - number["beta2"])
    scale = number["lr"] / (1 - number["beta1"] ** step)
    spread = (second / (1 - number["beta2"] ** step)).sqrt_().add_(number["eps"])
    parameter.sub_((first * scale).div_(spread))


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
