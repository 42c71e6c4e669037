"""Which records a reviewer wants to see."""

from __future__ import annotations

from typing import Literal

import orjson

from server.api.fields import Number, Strict

WHICH = {"flagged": ["flagged = 1"], "sample": ["sample = 1"], "changed": ["changed = 1"], "all": []}


class Wanted(Strict):
    """Which records are to be reviewed; `since` is a time as ISO 8601 has it."""

    which: Literal["flagged", "sample", "changed", "all"] = "flagged"  # changed: where the shadow says something else
    since: str | None = None
    policy: str | None = None
    key: str | None = None
    decision: str | None = None
    category: str | None = None
    least: Number | None = None
    most: Number | None = None
    shadow: str | None = None
    labelled: bool = False  # also what this reviewer has labelled

    def where(self, reviewer: str) -> tuple[str, dict[str, object]]:
        """The condition in SQL, and its values."""
        values = {**self.__dict__, "reviewer": reviewer}
        parts = [*WHICH[self.which]]
        if self.since is not None:
            parts.append("time >= :since")
        parts += [f"{name} = :{name}" for name in ("policy", "key", "decision", "shadow") if values[name] is not None]
        if self.category is not None:
            values["category"] = orjson.dumps(self.category).decode()
            parts.append("replace(categories, :category, '') <> categories")  # a list in JSON
        if self.least is not None:
            parts.append("score >= :least")
        if self.most is not None:
            parts.append("score <= :most")
        if not self.labelled:
            parts.append(
                "NOT EXISTS (SELECT 1 FROM labels WHERE labels.record_id = records.record_id AND reviewer = :reviewer)"
            )
        return " AND ".join(parts) or "1 = 1", values
