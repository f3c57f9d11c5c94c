"""A tutorial's page, followed line by line: the files that it says to write, and its commands."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


class Tutorial:
    """The page ``docs/NAME``."""

    def __init__(self, name):
        self.text = (DOCS / name).read_text()

    def blocks(self, language):
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.M | re.S)

    def write_files(self, folder):
        """The files that the page says to put somewhere: each with the block that follows."""
        found = re.findall(r"^Put this into `([^`\n]*)`[^\n]*:\n\n```\w+\n(.*?)^```", self.text, re.M | re.S)
        assert len(found) == self.text.count("\nPut this into ") > 0
        for name, content in found:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)

    def run(self, folder, environment):
        """What each of the page's commands printed."""
        said = []
        for line in "".join(self.blocks("sh")).splitlines():
            command = line.replace("python ", f'"{sys.executable}" ', 1)
            done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            said.append(done.stdout)
        return said
