"""What the documents tell a user to do works: Python snippets run, commands compose, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from configs import config

ROOT = Path(__file__).parents[1]
FOLLOWED = [
    ROOT / "docs" / name
    for name in ("first_hour.md", "tutorial.md", "tutorial_task.md", "tutorial_data.md", "frame.md")
]  # by tests
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "estimators" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
GIVEN = {
    "logits": torch.zeros(4, 3, 2, requires_grad=True),
    "log_odds": torch.zeros(4, 3, requires_grad=True),
    "negative_log_likelihood": lambda z: z.sum((-2, -1)),
}


def blocks(language):
    return list(_blocks(language))


def _blocks(language):
    for document in [each for each in DOCUMENTS if each not in FOLLOWED]:
        for number, code in enumerate(re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S)):
            yield pytest.param(code, id=f"{document.name}-{number}")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_snippets_run(code):
    exec(code, {**GIVEN, "torch": torch})


@pytest.mark.parametrize("code", blocks("sh"))
def test_training_commands_compose(code):
    """Every ``python train.py`` line composes (each choice of a list on its own), and every ``make`` target exists."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= set(targets), line
        if words[:2] == ["python", "train.py"]:
            overrides = [word for word in words[2:] if not word.startswith("-")]
            choices = [re.sub(r"=range\((\d+).*\)$", r"=\1", word) for word in overrides]
            for position in range(3):
                config(*(_choice(word, position) for word in choices))


def _choice(override, position):
    key, _, value = override.partition("=")
    if not value or value.startswith("["):  # a deletion, or one list
        return override
    parts = value.split(",")
    return f"{key}={parts[min(position, len(parts) - 1)]}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
