"""The commands and programs that documentation has: what is fenced, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
# Run from their first command to the last in one shell, each by tests of its own.
RUN_WHOLE = {"first-hour-fitting", "first-hour-operating", "kubernetes"}
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """What stands within a fence, and why it is not run, if it is not: a comment before the block says so."""

    text: str
    not_run: str | None

    @property
    def asks_a_server(self) -> bool:
        """Whether it needs one that serves, and nothing else."""
        return self.text.startswith("curl ")


def fenced(page: Path, language: str) -> list[Block]:
    """The blocks of a page in one language."""
    found = BLOCK.finditer(page.read_text())
    return [Block(each["text"], each["why"]) for each in found if each["language"] == language]


def commands(page: Path) -> list[Block]:
    """The blocks of a page that are fenced as shell."""
    return fenced(page, "sh")


def script(page: Path) -> str:
    """All commands of a page that are run, one block after another, as one reader's shell would have them."""
    return "".join(block.text for block in commands(page) if block.not_run is None)
