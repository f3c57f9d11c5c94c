"""``python -m training.documents.entry MODULE:CLASS --by NAME [OVERRIDE ...]``: a row of the leaderboard.

It writes a folder ``docs/results/entries/NAME``: the option file ``estimator/NAME.yaml`` (yours, if it is there
already), the certificate, the class's module, and in ``EXPERIMENT_BUDGET/`` the ``reference.json``, which it draws from
the runs of an experiment (``--experiment``, ``--budget``) with a basket at the last step. Then it writes the
leaderboard anew and says what to commit. Each step is a command of this project, which is printed: started again, it
goes on where it was stopped.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.output import Parser
from estimators import METHODS
from estimators.check import UsageError, user_class
from training.config.compose import runs_of_command
from training.errors import UserError
from training.processes import ROOT, python

RESULTS = ROOT / "docs" / "results"
NAME = re.compile(r"[a-z][a-z0-9_]*")
BROKEN = "the estimator is not what it declares (see above): mend it, or declare what holds; nothing was trained"


def option_name(text: str) -> str:
    """The name that ``module:ClassName`` has in the harness: ``class_name``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text.rpartition(":")[2]).lower()


def check(experiment: str, budget: str, overrides: Sequence[str]) -> None:
    """Raise :class:`UserError` for an experiment, a budget or options that training would refuse, before the
    certificate takes its time. Options of the estimator are not known yet."""
    others = [word for word in overrides if not word.startswith("estimator.")]
    words = [f"+experiment={experiment}", f"budget={budget}", "estimator=rloo", "basket=own", *others]
    runs_of_command(shlex.join(["python", "train.py", "-m", *words]))


def prepare(text: str, name: str, folder: Path) -> Path:
    """Write the option file and the module of the class ``text`` (``module:Class``) into ``folder``.

    Returns the folder for ``--config-dir``. Raises :class:`UserError` if there is no such class, or if its name is not
    free.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name}: use small letters, digits and _, with a letter first")
    if name in {option_name(method.__name__) for method in METHODS} or (ROOT / f"conf/estimator/{name}.yaml").exists():
        raise UserError(f"{name} is the name of an estimator of the library; choose another with --name")
    try:
        method = user_class(text)
    except UsageError as error:
        raise UserError(str(error)) from error
    options = folder / "estimator" / f"{name}.yaml"
    options.parent.mkdir(parents=True, exist_ok=True)
    if not options.exists():
        options.write_text(f"name: {name}\n_target_: {text.replace(':', '.')}\n", encoding="utf-8")
    source = inspect.getsourcefile(method)
    if source and Path(source).parent != folder:
        shutil.copy(source, folder)
    return folder


def call(module: str, *words: str, broken: str = "") -> None:
    """Print and run a command of this project; raises :class:`UserError` if it fails, with what exit code 1 means."""
    is_file = module.endswith(".py")
    print(f"\n$ python {shlex.join([*([] if is_file else ['-m']), module, *words])}", flush=True)
    command = [sys.executable, str(ROOT / module)] if is_file else [*python(), "-m", module]
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = subprocess.run([*command, *words], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}).returncode
    if code == 1 and broken:
        raise UserError(broken)
    if code:
        raise UserError(f"{module} ended with exit code {code} (see above); start the same command again to go on")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m training.documents.entry", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("estimator", metavar="MODULE:CLASS", help="your estimator, importable from here")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="further options of train.py, such as a cluster"
    )
    parser.add_argument("--by", required=True, help="who ran it, as the leaderboard shall say")
    parser.add_argument("--name", help="in the leaderboard (default: the class's, as in class_name)")
    parser.add_argument("--experiment", default="jang_table1", help="whose protocol it follows (jang_table1)")
    parser.add_argument("--budget", default="medium", help="of the experiment (medium); full: as the paper has it")
    parser.add_argument("--draws", type=int, default=100_000, help="of the certificate (100000)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="docs/results of this project")
    options = parser.parse_intermixed_args(arguments)
    if not all(options.estimator.partition(":")):
        raise UserError(f"{options.estimator!r} is no class: name it as MODULE:CLASS, such as my_module:MyEstimator")
    if not options.by.strip():
        raise UserError('--by is empty; it says who ran it, such as BY="A. Name"')
    name = options.name or option_name(options.estimator)
    check(options.experiment, options.budget, options.overrides)
    folder = prepare(options.estimator, name, options.results / "entries" / name)
    certificate = folder / "certificate.json"
    draws = ["--draws", str(options.draws)]
    call("estimators.check", options.estimator, *draws, "--json", str(certificate), broken=BROKEN)
    protocol = f"{options.experiment}_{options.budget}"
    sweep = f"entry_{name}_{protocol}"
    budget = [] if options.budget == "full" else [f"budget={options.budget}"]
    words = [f"+experiment={options.experiment}", *budget, f"estimator={name}", "basket=own", f"sweep={sweep}"]
    call("train.py", "-m", "--config-dir", str(folder), *words, *options.overrides)
    runs = next((word.partition("=")[2] for word in options.overrides if word.startswith("runs_dir=")), "runs")
    call("analysis", str(Path(runs) / sweep), "--write-reference", str(folder / protocol), "--by", options.by)
    call("analysis.papers.leaderboard", str(options.results))
    print(f"commit {folder} and {options.results}/leaderboard.*; CONTRIBUTING.md says what a reviewer asks")


if __name__ == "__main__":
    from training.errors import explained

    explained(main)
