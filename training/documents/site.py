"""The documentation as a site: ``python -m training.documents.site build/site`` (``make docs``).

The pages are ``README.md``, ``CONTRIBUTING.md``, ``docs/`` and ``examples/`` as they stand, one page for each
estimator, made of its docstring, its formula (``docs/formulas.yaml``) and its certificate, and a gallery of the figures
that the pages show. Sphinx builds them, and a warning is an error; then every link is followed, and nothing may be
loaded from elsewhere.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

import estimators
from analysis.statistics import certificates
from estimators.base import FAMILIES, Estimator
from estimators.certificate import certificate
from training.documents import notebook, table

ROOT = Path(__file__).parents[2]
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "estimators/README.md": "library.md"}
MOVED |= {"CHANGELOG.md": "changelog.md", "examples": "examples.md", "examples/variance.ipynb": "notebook.md"}
SYMBOLS = (
    "*A*: the logits, *f*: the loss, *p*: the probabilities, *K*: the number of categories, *a*: the log-odds of a "
    "bit. The text below has the same formula, in the names of the code."
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def lay_out(target: Path) -> None:
    """Write all pages' sources into the folder ``target``."""
    shutil.copytree(ROOT / "docs", target, ignore=shutil.ignore_patterns("*.pdf", "__pycache__"))
    origins = {target / page: ROOT / source for source, page in MOVED.items() if source != "examples"}
    for page, origin in origins.items():
        text = origin.read_text(encoding="utf-8")
        page.write_text(notebook.markdown(json.loads(text)) if origin.suffix == ".ipynb" else text, encoding="utf-8")
    for page in target.rglob("*.md"):
        origin = origins.get(page, ROOT / "docs" / page.relative_to(target))
        text = moved_links(page.read_text(encoding="utf-8"), origin, page, target)
        if page == target / "estimators.md":  # the table of methods leads to their pages
            text = re.sub(r"(?m)^\| (`(\w+)`) (?=\| `)", r"| [\1](methods/\2.md) ", text)
        page.write_text(text, encoding="utf-8")
    with (target / "index.md").open("a", encoding="utf-8") as index:
        index.write("\n" + (ROOT / "docs" / "contents.md").read_text(encoding="utf-8"))
    (target / "contents.md").unlink()
    (target / "examples.md").write_text(examples(), encoding="utf-8")
    (target / "gallery.md").write_text(gallery(target), encoding="utf-8")
    (target / "methods").mkdir()
    report = json.loads((ROOT / "docs/results/certificates/certificates.json").read_text(encoding="utf-8"))
    for name, text in method_pages(certificates.up_to_date(report)):
        (target / "methods" / f"{name}.md").write_text(text, encoding="utf-8")


def moved_links(text: str, origin: Path, page: Path, target: Path) -> str:
    """``text`` of ``origin`` with links that are right on ``page``; what has no page is named, not linked."""

    def moved(match: re.Match[str]) -> str:
        picture, words, link = match.groups()
        path, _, anchor = link.partition("#")
        if not path or "//" in path:
            return match[0]
        place = Path(os.path.normpath(origin.parent / path)).relative_to(ROOT).as_posix()
        new = MOVED.get(place) or place.removeprefix("docs/")
        if place not in MOVED and not place.startswith("docs/"):
            return words
        if (target / new).is_dir():
            new += "/README.md"
        new = os.path.relpath(target / new, page.parent)
        return f"{picture}[{words}]({new}{'#' + anchor if anchor else ''})"

    return LINK.sub(moved, text)


def examples() -> str:
    """The programs of ``examples/``, each with its docstring above it."""
    parts = ["# Examples", "Programs of at most forty lines. Each runs in seconds: `python examples/bandit.py`."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        _, about, code = path.read_text(encoding="utf-8").split('"""', 2)
        parts += [f"## {path.stem.replace('_', ' ').capitalize()}", about.replace("``", "`").strip()]
        parts.append(f"```python\n{code.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def gallery(target: Path) -> str:
    """Every figure that a page of results shows, once, with its own words and a link to where it is discussed."""
    parts, shown = ["# Gallery", "The figures of the results; each leads to the page that discusses it."], set()
    for page in [target / "index.md", *sorted((target / "results").rglob("README.md")), target / "variance.md"]:
        for picture, words, link in LINK.findall(page.read_text(encoding="utf-8")):
            path = Path(os.path.normpath(page.parent / link))
            if picture and path not in shown and path.suffix == ".png":
                shown.add(path)
                place, source = path.relative_to(target), page.relative_to(target)
                parts += [f"![{words}]({place})", f"{words} ([where it is discussed]({source}))"]
    return "\n\n".join(parts) + "\n"


def method_pages(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of a page for each estimator, and of ``index``, which lists them by family."""
    lists = [
        "# The estimators one by one",
        "What each is, what it declares, its formula and its certificate, by family.",
    ]
    for family in FAMILIES:
        members = [method for method in estimators.METHODS if method.family == family]
        about = [f"- [{method.__name__}]({method.__name__}.md): {_first_sentence(method)}" for method in members]
        lists += [f"## {family.capitalize()}", "\n".join(about)]
    pages = "\n".join(sorted(method.__name__ for method in estimators.METHODS))
    yield "index", "\n\n".join([*lists, f"```{{toctree}}\n:hidden:\n\n{pages}\n```"]) + "\n"
    for method in estimators.METHODS:
        yield method.__name__, method_page(method, report)


def _first_sentence(method: type[Estimator]) -> str:
    return " ".join((method.__doc__ or "").strip().split("\n\n")[0].split()).replace("``", "`")


def method_page(method: type[Estimator], report: dict[str, Any]) -> str:
    """One estimator: its formula, docstring, what it declares and, from a ``report``, its certificate."""
    name = method.__name__
    facts = [f"| {head} | {cell} |" for head, cell in table.facts(method).items()]
    formulas = [f"```{{math}}\n{part.strip()}\n```" for part in re.split(r",\s*\\qquad", formulas_of_methods()[name])]
    own = [result for result in report["estimators"] if result["name"].split()[0] == name]
    figures = certificate({**report, "estimators": own}) if own else "not measured yet: make certificates"
    parts = [f"# {name}", *formulas, SYMBOLS, f"```{{eval-rst}}\n.. autoclass:: estimators.{name}\n```"]
    parts += ["## What it declares", "\n".join(["| | |", "| --- | --- |", *facts])]
    parts += [
        "## Certificate",
        f"```text\n{figures}\n```",
        "[How to read it](../estimators.md#how-to-read-the-certificate).",
    ]
    return "\n\n".join(parts) + "\n"


@functools.cache
def formulas_of_methods() -> dict[str, str]:
    """The gradient of each method, by its name, in LaTeX."""
    found: dict[str, str] = yaml.safe_load((ROOT / "docs" / "formulas.yaml").read_text(encoding="utf-8"))
    return found


class _Page(HTMLParser):
    """The links, what is loaded, and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attrs if value}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given and given.get("rel") not in ("canonical", "author"):
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


def faults(site: Path) -> Iterator[str]:
    """A sentence for each link of the built ``site`` that leads nowhere, and each thing that comes from elsewhere."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(site)
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    yield f"{where}: loads {link} from elsewhere"
                continue
            to = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            if not to.is_file():
                yield f"{where}: {link} leads nowhere"
            elif parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].anchors:
                yield f"{where}: {link} leads to no such place of the page"
    for path in site.rglob("*.css"):
        for link in re.findall(r"(?:url\(|@import)\s*[\"']?(https?:[^\"')\s]+)", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: loads {link} from elsewhere"


def main(site: Path) -> int:
    """Build the site into ``site``, which is replaced; 1 if Sphinx warns or a link is broken."""
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch) / "pages"
        lay_out(sources)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2", "-c", str(ROOT / "docs")]
        command += ["-d", str(Path(scratch) / "doctrees"), str(sources), str(site)]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode:
            return 1
    found = list(faults(site))
    print(*found, sep="\n", end="\n" if found else "")
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"{len(list(site.rglob('*.html')))} pages, {size:.1f} MiB, broken links: {len(found)}; {site / 'index.html'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
