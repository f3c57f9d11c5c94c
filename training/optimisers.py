"""torch's optimisers over stacked parameters: a learning rate (and all other numbers) per replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import UserError


class ReplicaOptimizer:
    """Updates parameters ``[replicas, ...]`` from gradients of the same shape, each replica with its own settings.

    The optimiser sees every replica's slice as a parameter of its own (a view of the same memory); replicas with equal
    settings share a parameter group, so that a fused kernel updates them together.

    Args:
        parameters: leaves with a leading replica dimension.
        settings: per replica, the ``optimizer`` node of its config as a dict.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: Sequence[dict[str, Any]]) -> None:
        for setting in settings:
            check(setting)
        # Slices along the leading dimension of contiguous parameters are contiguous views.
        self._views = [[nn.Parameter(parameter.detach()[r]) for parameter in parameters] for r in range(len(settings))]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for r, setting in enumerate(settings):
            groups.setdefault(tuple(sorted(setting.items())), []).append(r)
        self._optimizer = _make(
            [
                {"params": [view for r in members for view in self._views[r]], **_options(settings[members[0]])}
                for members in groups.values()
            ],
            settings[0]["name"],
        )
        self.frozen: set[int] = set()

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One update from stacked gradients, aligned with ``parameters``; frozen replicas stay as they are."""
        slices = [None if gradient is None else gradient.unbind(0) for gradient in gradients]
        for r, views in enumerate(self._views):
            for view, gradient in zip(views, slices, strict=True):
                view.grad = None if gradient is None or r in self.frozen else gradient[r]
        self._optimizer.step()

    def state(self, replica: int) -> list[dict[str, Tensor]]:
        """The optimiser's state of one replica, a dict per parameter (a part of a checkpoint)."""
        return [dict(self._optimizer.state.get(view, {})) for view in self._views[replica]]

    def restore(self, replica: int, state: list[dict[str, Tensor]]) -> None:
        """Go on from :meth:`state`."""
        for view, entry in zip(self._views[replica], state, strict=True):
            if entry:
                self._optimizer.state[view] = {key: value.clone() for key, value in entry.items()}


def check(setting: dict[str, Any]) -> None:
    """Raise ``UserError`` for numbers out of range."""
    if not setting["lr"] > 0:
        raise UserError(f"optimizer.lr must be positive, not {setting['lr']}")
    for name in ("beta1", "beta2", "momentum"):
        if name in setting and not 0 <= setting[name] < 1:
            raise UserError(f"optimizer.{name} must be in [0, 1), not {setting[name]}")
    if setting["weight_decay"] < 0:
        raise UserError(f"optimizer.weight_decay must not be negative, not {setting['weight_decay']}")


def _options(setting: dict[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in setting.items() if key not in ("name", "beta1", "beta2")}
    if setting["name"] == "adam":
        options["betas"] = (setting["beta1"], setting["beta2"])
    return options


def _make(groups: list[dict[str, Any]], name: str) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(groups, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, fused=True)
    raise UserError(f"optimizer.name must be adam or sgd, not {name!r}")
