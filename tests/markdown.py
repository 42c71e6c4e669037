"""The commands that documentation has: what is fenced as shell, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Commands, and why they are not run, if they are not: a comment before the block says so."""

    text: str
    not_run: str | None


def commands(page: Path) -> list[Block]:
    """The blocks of a page that are fenced as shell."""
    found = BLOCK.finditer(page.read_text())
    return [Block(each["text"], each["why"]) for each in found if each["language"] == "sh"]


def script(page: Path) -> str:
    """All commands of a page that are run, one block after another, as one reader's shell would have them."""
    return "".join(block.text for block in commands(page) if block.not_run is None)
