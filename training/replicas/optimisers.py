"""torch's optimisers over stacked parameters: a learning rate (and all other numbers) per replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

MOST_CALLS = 8
"""Different settings in a pack up to which a GPU makes a fused call for each."""


Moments = dict[str, list[Tensor]]
"""Of each parameter: ``exp_avg`` and ``exp_avg_sq`` (Adam) or ``momentum_buffer`` (SGD), ``[replicas, ...]``, and
``steps``, the number of its updates, as a tensor, which fused Adam wants."""


class ReplicaOptimizer:
    """Updates parameters ``[replicas, ...]`` from gradients of the same shape, each replica with its own settings.

    The arithmetic is torch's (its fused kernels). Replicas with equal settings are updated in one call, so a pack makes
    as many calls as it has different settings; on a GPU, where each is a kernel, more than ``MOST_CALLS`` become one
    expression over all replicas, and so does everything in a compiled step. What it keeps of the past is an argument.

    Args:
        settings: per replica, the ``optimizer`` node of its config as a dict.
        device: of the parameters.
    """

    def __init__(self, settings: Sequence[dict[str, Any]], device: torch.device) -> None:
        self._settings = list(settings)
        self._numbers = {
            name: torch.tensor([own[name] for own in settings], device=device) for name in settings[0] if name != "name"
        }
        self._used: list[int] = []
        self._grouped: Moments = {}
        self._groups: list[_Group] = []
        different = {tuple(own.items()) for own in self._settings}
        self.as_one_expression = device.type != "cpu" and len(different) > MOST_CALLS

    def start(self, parameters: Sequence[Tensor]) -> Moments:
        """What there is to keep before the first step."""
        names = ("exp_avg", "exp_avg_sq") if self._settings[0]["name"] == "adam" else ("momentum_buffer",)
        kept = {name: [torch.zeros_like(p) for p in parameters] for name in names}
        return kept | {"steps": [torch.zeros((), device=p.device) for p in parameters]}

    @torch.no_grad()
    def update(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        kept: Moments,
        resting: Sequence[int] = (),
    ) -> None:
        """One update, in place, from stacked gradients, aligned with ``parameters`` (``None``: nothing to update).

        The parameters of ``resting`` replicas stay as they are. They are put back: leaving them out of the update would
        divide the others differently into fused calls, which round differently at their ends, and the neighbours of a
        run that diverges must not notice.
        """
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        # The fused updates read memory, not strides: a gradient that is a view of something wider would be garbled.
        present = [gradient.contiguous() for gradient in gradients if gradient is not None]
        before = [(parameter, r, parameter[r].clone()) for r in resting for parameter in parameters]
        torch._foreach_add_([kept["steps"][index] for index in used], 1)
        if self.as_one_expression or torch.compiler.is_compiling():
            for index, gradient in zip(used, present, strict=True):
                moments = [tensors[index] for name, tensors in kept.items() if name != "steps"]
                update_each(self._numbers, parameters[index], gradient, moments, kept["steps"][index])
        else:
            if used != self._used or kept is not self._grouped:
                self._group(parameters, used, kept)
            for group in self._groups:
                group.update([gradient[span] for gradient in present for span in group.spans])
        for parameter, r, value in before:
            parameter[r] = value

    def _group(self, parameters: Sequence[Tensor], used: list[int], kept: Moments) -> None:
        """Slice what does not change from step to step."""
        self._used, self._grouped = used, kept
        by_setting: dict[tuple[Any, ...], list[slice]] = {}
        starts = [r for r, own in enumerate(self._settings) if r == 0 or own != self._settings[r - 1]]
        for start, end in zip(starts, [*starts[1:], len(self._settings)], strict=True):
            by_setting.setdefault(tuple(self._settings[start].items()), []).append(slice(start, end))
        self._groups = [
            _Group(
                dict(setting),
                spans,
                [parameters[index][span] for index in used for span in spans],
                {
                    name: [own[index][span] for index in used for span in spans]
                    for name, own in kept.items()
                    if name != "steps"
                },
                [kept["steps"][index] for index in used for _ in spans],
            )
            for setting, spans in by_setting.items()
        ]

    def mean_squares(self, kept: Moments, decay: float, indices: Sequence[int]) -> list[Tensor] | None:
        """Adam's moving means of the squared gradients of these parameters, if every replica's has this decay."""
        same = all(own.get("beta2") == decay and own["weight_decay"] == 0 for own in self._settings)
        return [kept["exp_avg_sq"][index] for index in indices] if same else None


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
    # A compiler computes a power of two uses once, and one of one use for every element of the parameter.
    powers = (step * torch.stack((number["beta1"], number["beta2"])).log()).exp()
    first_weight, second_weight = (1 - power for power in powers.unbind(0))
    root = second_weight.sqrt()
    spread = second.sqrt().add_(number["eps"] * root)
    parameter.sub_((first * (number["lr"] * root / first_weight)).div_(spread))
