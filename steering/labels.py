"""What reviewers say of verdicts. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Label = Literal["rightly flagged", "wrongly flagged", "missed", "rightly passed"]
# Whether a prompt of each label is harmful.
HARMFUL: Mapping[Label, bool] = {
    "rightly flagged": True,
    "missed": True,
    "wrongly flagged": False,
    "rightly passed": False,
}
