"""The classes that configs name with ``_target_``: found, checked, and built with plain options."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from estimators import Estimator
from tasks.base import Task
from training.errors import UserError

OURS = ("estimators", "tasks")
KINDS: dict[str, type] = {"estimator": Estimator, "task": Task}


def class_of(node: Mapping[str, Any], key: str) -> type:
    """The class that a config's ``node`` names, which stands there under ``key``: ``task``, or that of an estimator.

    Its module is looked for where Python looks and, last, in the current folder.

    Raises:
        UserError: if there is none, or if it is no estimator or no task.
    """
    target = node.get("_target_")
    module, _, name = str(target).rpartition(".")
    where = f"{key}._target_={target}"
    if not all(word.isidentifier() for word in (*module.split("."), name)):
        raise UserError(f"{where}: name a class as MODULE.CLASS, such as {OURS[key == 'task']}.NAME")
    try:
        found = getattr(_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where} cannot be found ({error}); see PYTHONPATH") from None
    kind = KINDS.get(key, Estimator)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(
            f"{where} is no {'task' if key == 'task' else 'estimator'}: it must be a class that derives from "
            f"{kind.__module__}.{kind.__name__}"
        )
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{where} does not say all that is asked of it: it lacks {', '.join(lacking)}")
    return found


def method_of(node: Mapping[str, Any], key: str = "estimator") -> type[Estimator]:
    """As :func:`class_of`, of an estimator's node."""
    return class_of(node, key)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name != name.partition(".")[0] or here in sys.path:
            raise
    sys.path.append(here)  # last: nothing there stands in for what is somewhere else
    try:
        return importlib.import_module(name)
    except BaseException:
        sys.path.remove(here)
        raise


def build(config: Mapping[str, Any], group: str, offered: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
    """Build a config's ``estimator`` or ``task``: its options as they are, and over them the ``arguments``.

    Nothing within the options is built. Of the ``offered`` arguments it gets those that its constructor takes.

    Raises:
        UserError: for an option or a value that it does not accept.
    """
    made = class_of(config[group], group)
    signature = inspect.signature(made)
    options = {key: value for key, value in config[group].items() if key not in ("name", "_target_")}
    options |= arguments | {key: value for key, value in (offered or {}).items() if key in signature.parameters}
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(f"{group}={config[group].get('name')}: {made.__name__} {error}") from None
    try:
        return made(**options)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_record(config: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    """Refuse to open a config, read from the record ``where``, that names code which nobody here asked for.

    Its ``estimator`` and ``task`` are classes of :mod:`estimators` and :mod:`tasks`, or of a module in ``allowed``; all
    other options are plain values. Nothing is imported before its module is known to be allowed.

    Raises:
        UserError: if that does not hold.
    """

    def within(module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in (*OURS, *allowed))

    for group in KINDS:
        node = config.get(group)
        if not isinstance(node, Mapping):
            raise UserError(f"{where}: not a run's config (it has no {group})")
        module = str(node.get("_target_")).rpartition(".")[0]
        if not within(module):
            raise UserError(
                f"{where}: {group}._target_={node.get('_target_')} is not of this library and is not imported; "
                f"if you trust it, say --allow {module or 'MODULE'}"
            )
        for key, value in node.items():
            if isinstance(value, Mapping):
                raise UserError(f"{where}: {group}.{key} is a mapping, and no option of a run is one")
        origin = class_of(node, group).__module__
        if not within(origin):
            raise UserError(
                f"{where}: {group}._target_={node['_target_']} comes from {origin}; "
                f"if you trust it, say --allow {origin}"
            )
