"""``python train.py --help``: choices and options, each with its default and what its schema's docstring says of it.

Read off the sources, so that nothing is imported that takes long: ``conf/`` has the choices, ``analysis/defaults.json``
the defaults, the docstrings of ``schema.py``, ``estimators/`` and ``tasks/`` the explanations.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis.defaults import defaults
from training.errors import UserError, did_you_mean
from training.processes import ROOT

CONF, SCHEMA = ROOT / "conf", ROOT / "training" / "config" / "schema.py"
COLUMN, LONGEST = 34, 240
INTRODUCTION = """\
Train discrete latent variable models with gradient estimators, and record every run.

  python train.py estimator=nvil task=vae_categorical data=mnist optimizer.lr=3e-4 seed=1 steps=50000
  python train.py -m estimator=nvil,gumbel_softmax task=vae_bernoulli,vae_categorical replicas=5
  python train.py -m estimator=nvil,rloo estimator.nvil.decay=0.9 optimizer.lr=1e-4,1e-3 sweep=mine
  python train.py -m +experiment=demo
  python -m analysis runs/demo

A run is written to runs_dir/sweep/<run>; what is finished is skipped, what was interrupted goes on.
With -m every option takes a list (seed=1,2,3) or a range (seed=range(1,4)), and an option of one estimator
stands with its name (estimator.nvil.decay=0.9). --config-dir FOLDER adds choices of your own, as
FOLDER/estimator/NAME.yaml."""
END = """\
estimator=NAME --help, task=NAME --help, ... show the options of that choice; docs/ has the whole text.
--cfg job prints the config of a command without running it."""


def _chosen_by_default() -> dict[str, str]:
    """The choice in each group."""
    files: Any = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [pair for each in files if isinstance(each, Mapping) for pair in each.items()]
    return {group: name for group, name in pairs if not group.startswith("override")}


GROUPS = tuple(_chosen_by_default())


def is_asked_for(arguments: Sequence[str]) -> bool:
    return bool({"--help", "-h"} & set(arguments))


def text(arguments: Sequence[str], width: int | None = None) -> str:
    """The help, for the choices that ``arguments`` make.

    Raises:
        UserError: for a choice that there is not.
    """
    width = max(width or shutil.get_terminal_size().columns, 20)
    folders = [CONF, *_own_folders(arguments)]
    chosen = _chosen(arguments)
    lines = [_wrapped(line, "  ", width) for line in INTRODUCTION.split("\n")]
    lines += ["", "== Choices (option=name) ==", ""]
    for group in (*GROUPS, "experiment"):
        lines.append(_wrapped(f"{group}: {', '.join(_names(group, folders))}", "    ", width))
    lines += ["", _wrapped("== Options and their defaults (option=value) ==", "", width), ""]
    explained = _entries(_docstring(SCHEMA, "Config") or "")
    for group in GROUPS:
        lines.append(_wrapped(f"{group}={chosen[group]}: {explained[group]}", "    ", width))
        lines += [_option(f"{group}.{name}", value, said, width) for name, value, said in _of(group, chosen, folders)]
        lines.append("")
    known = defaults()["config"]
    lines += [_option(name, known[name], explained.get(name, ""), width) for name in explained if name not in GROUPS]
    return "\n".join([*lines, "", *(_wrapped(line, "  ", width) for line in END.split("\n"))])


def _own_folders(arguments: Sequence[str]) -> Iterator[Path]:
    for place, argument in enumerate(arguments):
        flag, equals, folder = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            yield Path(folder if equals else "".join(arguments[place + 1 : place + 2]))


def _chosen(arguments: Sequence[str]) -> dict[str, str]:
    """The choice in each group; of several the first."""
    found = _chosen_by_default()
    found |= {
        key: value.split(",")[0] for key, _, value in (each.partition("=") for each in arguments) if key in GROUPS
    }
    return {group: str(found[group]) for group in GROUPS}


def _names(group: str, folders: Sequence[Path]) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _of(group: str, chosen: Mapping[str, str], folders: Sequence[Path]) -> Iterator[tuple[str, Any, str]]:
    """The options of a choice: name, default and explanation."""
    name = chosen[group]
    file = next((path for folder in folders if (path := folder / group / f"{name}.yaml").exists()), None)
    if file is None:
        names = _names(group, folders)
        near = did_you_mean(name, names, f"{group}={{}}")
        raise UserError(f"there is no {group}={name}{near}; choose one of {', '.join(names)}")
    content = file.read_text(encoding="utf-8")
    own = {key: value for key, value in yaml.safe_load(content).items() if key not in ("defaults", "name", "_target_")}
    schema = re.search(rf"/hydra/schema/{group}(?:/(\w+))?@_here_", content)
    if schema is None:
        yield from ((key, value, "") for key, value in own.items())
        return
    names = defaults()["names"].get(group, {})
    known, docstring = names.get(name, names.get("*")), _docstring(SCHEMA, schema[1] or group)
    if known is None:  # another choice with the options of one that has the schema's own name
        text = SCHEMA.read_text(encoding="utf-8")
        named = re.search(rf'^class {schema[1]}\b.*?^    name: str = "(\w+)"', text, re.M | re.S | re.I)
        known = names[named[1]] if named else {}
    if isinstance(known, str):
        docstring = _docstring_in(ROOT / f"{group}s", known.partition(".")[2])
        known = defaults()["classes"][known]
    entries = _entries(docstring or "")
    for key, value in {**known, **own}.items():
        yield key, value, entries.get(key, "")


def _docstring(file: Path, name: str) -> str | None:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == name.lower():
            return ast.get_docstring(node)
    return None


def _docstring_in(folder: Path, name: str) -> str | None:
    """Of a class in one of a package's files, maybe under another name there."""
    for file in sorted(folder.rglob("*.py")):
        content = file.read_text(encoding="utf-8")
        if other := re.search(rf"^{name} = (\w+)$", content, re.M):
            return _docstring_in(folder, other[1])
        if re.search(rf"^class {name}\b", content, re.M):
            return _docstring(file, name)
    return None


def _entries(docstring: str) -> dict[str, str]:
    """The explanations in a docstring: what follows ``name:`` in its ``Args``, or without these "``name``: "."""
    before, arguments, after = inspect.cleandoc(docstring).partition("\nArgs:\n")
    if arguments:
        block = re.split(r"\n(?=\S)", after)[0]
        pattern = r"(?m)^    ((?:\w+, )*\w+): "
    else:
        block, pattern = " ".join(before.split()), r"(?:^|(?<=\. ))((?:``\w+``, )*``\w+``): "
    _, *parts = re.split(pattern, block)
    return {
        name: _short(said)
        for names, said in zip(parts[::2], parts[1::2], strict=True)
        for name in re.findall(r"\w+", names)
    }


def _short(said: str) -> str:
    """The first sentence, without markup."""
    plain = re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(said.split())).replace("``", "")
    first = re.split(r"\.(?: |$)", plain)[0].rstrip(" .;")
    return first if len(first) <= LONGEST else first[:LONGEST].rpartition(" ")[0] + " ..."


def _option(name: str, value: Any, said: str, width: int) -> str:
    written = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    head = f"  {name}={written}"
    if width < 2 * COLUMN or not said:
        return "\n".join([head, *textwrap.wrap(said, width - 1, initial_indent="      ", subsequent_indent="      ")])
    indent = " " * COLUMN
    first = f"{head:<{COLUMN}}" if len(head) < COLUMN else f"{head}\n{indent}"
    return first + textwrap.fill(said, width - COLUMN - 1).replace("\n", f"\n{indent}")


def _wrapped(line: str, indent: str, width: int) -> str:
    if len(line) < width:
        return line
    start = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.strip(), width - 1, initial_indent=start, subsequent_indent=start + indent, break_on_hyphens=False
    )
