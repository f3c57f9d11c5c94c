"""A strict reading of the LaTeX that the tables are made of, and a real compilation where there is a compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile

COMMANDS = {
    "begin",
    "end",
    "centering",
    "caption",
    "label",
    "toprule",
    "midrule",
    "bottomrule",
    "addlinespace",
    "textbf",
    "pm",
}
COMMANDS |= {
    "par",
    "smallskip",
    "scriptsize",
    "footnotesize",
    "small",
    "raggedright",
    "setlength",
    "tabcolsep",
    "sim",
    "log",
    "le",
}
COMMANDS |= {"mid", "textbackslash", "textasciitilde", "textasciicircum", "\\", *"&%$#_{}"}


def check(text: str) -> None:
    """Every command known, braces and environments nested, mathematics closed, rows as wide as the table."""
    assert text.isascii()
    text = re.sub(r"(?<!\\)%.*", "", text)
    open_environments, depth, mathematics = [], 0, False
    for token in re.finditer(r"\\([A-Za-z]+|.)|([{}$&#_^~])", text):
        command, special = token.groups()
        if command is not None:
            assert command in COMMANDS, token
            name = re.match(r"\{(\w+)\}", text[token.end() :])
            if command == "begin":
                open_environments.append(name[1])
            if command == "end":
                assert open_environments.pop() == name[1]
            assert command not in ("pm", "sim", "log", "le", "mid") or mathematics, token
        elif special in "{}":
            depth += 1 if special == "{" else -1
            assert depth >= 0
        elif special == "$":
            mathematics = not mathematics
        else:
            assert special != "&" or open_environments[-1] == "tabular", text[token.start() - 20 : token.end()]
            assert special == "&" or (special == "^" and mathematics), text[token.start() - 20 : token.end()]
    assert not open_environments and depth == 0 and not mathematics
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        rows = [line for line in body.split("\n") if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}
    compile_it(text)


def compile_it(text: str) -> None:
    """Run ``pdflatex`` or ``tectonic`` over it, if there is one. Without booktabs its rules are plain."""
    plain = r"\let\toprule\hline\let\midrule\hline\let\bottomrule\hline\newcommand\addlinespace{\hline}"
    rules = r"\IfFileExists{booktabs.sty}{\usepackage{booktabs}}{" + plain + "}"
    document = "\n".join([r"\documentclass{article}", rules, r"\begin{document}", text, r"\end{document}", ""])
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/table.tex", "w") as file:
            file.write(document)
        if shutil.which("pdflatex"):
            command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
        elif shutil.which("tectonic"):
            command = ["tectonic", "--only-cached", "table.tex"]
        else:
            return
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
