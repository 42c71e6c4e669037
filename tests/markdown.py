"""The commands that documentation has: what is fenced as shell, in order."""

from __future__ import annotations

import re
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(page: Path, language: str = "sh") -> list[str]:
    """The text of each block of a language."""
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]
