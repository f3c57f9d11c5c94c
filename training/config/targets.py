"""What configs name with ``_target_``, classes and loaders of data: found, checked, and called with plain options."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from estimators import Estimator
from tasks.base import Task
from tasks.datasets import DATASETS, DataError, Dataset, check_dataset, load_dataset
from tasks.datasets.own import digest
from training.errors import UserError

OURS = ("estimators", "tasks")
KINDS: dict[str, type] = {"estimator": Estimator, "task": Task}
GROUPS = (*KINDS, "data")
"""Groups of options that may have a ``_target_``; estimators and tasks have one always."""


def class_of(node: Mapping[str, Any], key: str) -> type:
    """The class that a config's ``node`` names, which stands there under ``key``: ``task``, or that of an estimator.

    Its module is looked for where Python looks and, last, in the current folder.

    Raises:
        UserError: if there is none, or if it is no estimator or no task.
    """
    where = f"{key}._target_={node.get('_target_')}"
    found = _found(node, where, f"a class as MODULE.CLASS, such as {OURS[key == 'task']}.NAME")
    kind = KINDS.get(key, Estimator)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(
            f"{where} is no {'task' if key == 'task' else 'estimator'}: it must be a class that derives from "
            f"{kind.__module__}.{kind.__name__}"
        )
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{where} does not say all that is asked of it: it lacks {', '.join(lacking)}")
    return found


def loader_of(node: Mapping[str, Any]) -> Any:
    """As :func:`class_of`, the function that loads a user's data."""
    where = f"data._target_={node.get('_target_')}"
    if node.get("name") in DATASETS:
        raise UserError(f"data.name={node['name']} is the name of published data, and {where} is not: use another name")
    found = _found(node, where, "a function as MODULE.FUNCTION")
    if isinstance(found, type) or not callable(found):
        raise UserError(f"{where} is no function: it must be one that returns a tasks.Dataset")
    return found


def load(node: Mapping[str, Any]) -> Dataset:
    """The data of a config: published ones, or what the function that it names returns, checked.

    A user's data have the name of the config, and their source is the function's unless they say another, with a digest
    of the images: records of other images differ in their protocol.

    Raises:
        UserError: if they are not there, not as they must be, or for options that there are not.
    """
    if "_target_" not in node:
        try:
            return load_dataset(**node)
        except DataError as error:
            raise UserError(str(error)) from None
    function, name = loader_of(node), node["name"]
    where = f"data={name} ({node['_target_']})"
    parameters = inspect.signature(function).parameters
    options = {key: value for key, value in node.items() if key not in ("name", "_target_", "train_evaluated")}
    options |= {"name": name} if "name" in parameters else {}
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
    try:
        data = check_dataset(function(**options))
    except (DataError, ValueError, OSError) as error:
        raise UserError(f"{where}: {error}") from None
    source = f"{data.source or node['_target_']}, sha256 {digest(data)}"
    return replace(data, name=name, source=source, train_evaluated=node.get("train_evaluated", data.train_evaluated))


def method_of(node: Mapping[str, Any], key: str = "estimator") -> type[Estimator]:
    """As :func:`class_of`, of an estimator's node."""
    return class_of(node, key)


def _found(node: Mapping[str, Any], where: str, what: str) -> Any:
    module, _, name = str(node.get("_target_")).rpartition(".")
    if not all(word.isidentifier() for word in (*module.split("."), name)):
        raise UserError(f"{where}: name {what}")
    try:
        return getattr(_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where} cannot be found ({error}); see PYTHONPATH") from None


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

    Its ``estimator`` and ``task`` are classes of :mod:`estimators` and :mod:`tasks`, or of a module in ``allowed``, and
    a function that loads data is of a module in ``allowed``; all other options are plain values. Nothing is imported
    before its module is known to be allowed.

    Raises:
        UserError: if that does not hold.
    """
    for group in GROUPS:
        node = config.get(group)
        if not isinstance(node, Mapping):
            raise UserError(f"{where}: not a run's config (it has no {group})")
        trusted = allowed if group == "data" else (*OURS, *allowed)
        named = group != "data" or "_target_" in node
        target = f"{where}: {group}._target_={node.get('_target_')}"
        module = str(node.get("_target_")).rpartition(".")[0]
        if named and not _within(module, trusted):
            trust = f"if you trust it, say --allow {module or 'MODULE'}"
            raise UserError(f"{target} is not of this library and is not imported; {trust}")
        for key, value in node.items():
            if isinstance(value, Mapping):
                raise UserError(f"{where}: {group}.{key} is a mapping, and no option of a run is one")
        if named:
            origin = (loader_of(node) if group == "data" else class_of(node, group)).__module__
            if not _within(origin, trusted):
                raise UserError(f"{target} comes from {origin}; if you trust it, say --allow {origin}")


def _within(module: str, trusted: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in trusted)
