"""Which source a user's own estimator, task or data have: a run of other code is no repetition of this one.

The library's own code is told by the commit. A fingerprint is kept in the record, and is no part of a run's name: the
same command finds its runs again, and says of which of them the code has changed since.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis.records import RunRecord
from training.config import targets

OURS = (*targets.OURS, "training", "analysis", "conf", "hydra_plugins")
INSTALLED = ("site-packages", "dist-packages")


def fingerprints(config: dict[str, Any]) -> dict[str, str]:
    """``{"estimator": "my_module 0f3a..."}``: the module of each class or function from elsewhere, by group, and the
    SHA-256 of its source, with that of the modules that it imports from its package or its folder."""
    found = {}
    for group in targets.GROUPS:
        node = config[group]
        if str(node.get("_target_", "estimators.")).partition(".")[0] not in OURS:
            made = targets.loader_of(node) if group == "data" else targets.class_of(node, group)
            module = sys.modules.get(made.__module__)
            if module is not None and (digest := _digest(module)):
                found[group] = f"{module.__name__} {digest}"
    return found


def changed(config: dict[str, Any], record: RunRecord) -> str | None:
    """The modules whose source is not what ``record`` began with, to be read after "other code of".

    ``None`` if there are none, or if the record does not say.
    """
    now = fingerprints(config)
    then = record.code() if now else {}
    other = [now[group].partition(" ")[0] for group in now.keys() & then.keys() if now[group] != then[group]]
    return ", ".join(sorted(set(other))) or None


@functools.cache
def _digest(module: ModuleType) -> str | None:
    """Of a module as it was when it was first asked for; ``None`` of one without a file."""
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        path = _file(each)
        if path is not None and each.__name__ not in sources:
            sources[each.__name__] = path.read_bytes()
            waiting += [other for other in _imported(each, sources[each.__name__]) if _is_beside(other, module)]
    content = b"".join(name.encode() + b"\0" + source + b"\0" for name, source in sorted(sources.items()))
    return hashlib.sha256(content).hexdigest()[:16] if sources else None


def _file(module: ModuleType) -> Path | None:
    path = Path(getattr(module, "__file__", None) or "")
    return path if path.suffix == ".py" and path.exists() else None


def _imported(module: ModuleType, source: bytes) -> Iterator[ModuleType]:
    """The modules that the ``source`` names and that are loaded."""
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        yield from (sys.modules[name] for name in names if name in sys.modules)


def _is_beside(other: ModuleType, module: ModuleType) -> bool:
    """Whether ``other`` is the user's, too: of the package of ``module``, or in the folder that it was found in."""
    top, own = other.__name__.partition(".")[0], module.__name__.partition(".")[0]
    theirs, mine = _file(sys.modules.get(top, other)), _file(sys.modules.get(own, module))
    if top == own or theirs is None or mine is None:
        return top == own
    folders = [path.parents[path.name == "__init__.py"] for path in (theirs, mine)]
    return folders[0] == folders[1] and top not in OURS and not set(INSTALLED) & set(folders[0].parts)
