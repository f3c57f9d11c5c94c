"""``make matrix``: the wheel in empty environments, with every Python that is found and the lowest versions promised.

Pythons are those of ``pyproject.toml``'s ``requires-python`` and newer, on the path or under pyenv. Each gets the wheel
and what it depends on, a gradient in ten lines and ``python -m estimators.check --quick``. The lowest of them does that
again with the lowest versions that ``pyproject.toml`` allows and, with those of the harness, trains and tabulates a
sweep. ``python tests/matrix.py 3.13 lowest`` runs these alone. Needs a network or pip's own settings for a local
folder; torch takes up to 6 GB, which are removed again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
GRADIENT = """
import time; start = time.perf_counter()
import torch; loaded = time.perf_counter()
import estimators; ready = time.perf_counter()
logits = torch.zeros(8, 3, 4, requires_grad=True)
estimators.RLOO(2)(logits, lambda z: z[..., 0].sum(-1)).mean().backward()
assert logits.grad.abs().sum() > 0 and estimators.__file__.startswith({folder!r}), estimators.__file__
print(f"torch {{torch.__version__}}, imported in {{loaded - start:.1f}} s, estimators in {{ready - loaded:.2f}} s more")
"""
SWEEP = [
    [
        "train.py",
        "-m",
        "estimator=nvil,gumbel_softmax",
        "steps=20",
        "evaluate_every=10",
        "task.latents=2",
        "replicas=2",
    ],
    ["-m", "analysis"],
    ["-m", "analysis.report"],
]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def oldest() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", project()["requires-python"]))


def interpreters() -> dict[tuple[int, int], str]:
    """One for each minor version that is found."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*(shutil.which(f"python3.{minor}") for minor in range(oldest()[1], 20)), sys.executable]
    found = {}
    for path in [*candidates, *sorted(map(str, pyenv.glob("*/bin/python")))]:
        words = [str(path), "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"]
        answer = subprocess.run(words, capture_output=True, text=True) if path else None
        if answer and answer.returncode == 0:
            version = tuple(int(part) for part in answer.stdout.split())
            if version >= oldest():
                found.setdefault(version, str(path))
    return dict(sorted(found.items()))


def lowest(requirements: list[str]) -> list[str]:
    """``name>=1.2,<3`` -> ``name==1.2``."""
    found = [re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,<[\w.]+)?", requirement) for requirement in requirements]
    assert all(found), f"a requirement without a lower bound in {requirements}"
    return [f"{match[1]}=={match[2]}" for match in found if match]


def run(*words: str, **options) -> str:
    """The output; its end, and no more of this environment, if the command fails."""
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[1:4])} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def try_environment(python: str, requirements: list[str], folder: Path, harness: bool = False) -> str:
    """Install, take a gradient, certify every estimator; with the ``harness`` also a sweep from the sources."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run(python, "-m", "venv", str(folder))
    own = str(folder / "bin" / "python")
    start = time.perf_counter()
    run(own, "-m", "pip", "install", "--no-cache-dir", *requirements, cwd=folder, env=environment)
    told = [f"installed in {time.perf_counter() - start:.0f} s"]
    told.append(run(own, "-c", GRADIENT.format(folder=str(folder)), cwd=folder, env=environment).splitlines()[-1])
    run(own, "-m", "estimators.check", "--quick", cwd=folder, env=environment)
    told.append("certificates pass")
    if harness:
        runs = folder / "runs"
        for words in SWEEP:
            target = [f"runs_dir={runs}", "sweep=matrix"] if words[0] == "train.py" else [str(runs / "matrix")]
            run(own, *words, *target, cwd=ROOT, env=environment)
        told.append("a sweep was trained, tabulated and reported")
    return ", ".join(told)


def main(asked: list[str]) -> int:
    found, failed = interpreters(), False
    with tempfile.TemporaryDirectory() as scratch:
        dist = Path(scratch) / "dist"
        run(sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT))
        run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
        (wheel,) = dist.glob("*.whl")
        cases = [(version, "newest", [str(wheel)], False) for version in found]
        floor = lowest(project()["dependencies"])
        extra = lowest(project()["optional-dependencies"]["harness"])
        cases.append((min(found), "lowest", [str(wheel), *floor, *extra], True))
        for version, which, requirements, harness in cases:
            if asked and ("lowest" if harness else f"{version[0]}.{version[1]}") not in asked:
                continue
            folder = Path(scratch) / "environment"
            try:
                told = try_environment(found[version], requirements, folder, harness)
            except RuntimeError as error:
                told, failed = f"FAILED: {error}", True
            print(f"Python {version[0]}.{version[1]}, {which} versions: {told}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
