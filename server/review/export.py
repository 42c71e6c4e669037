"""Labels as rows that a fit reads: what was wrongly flagged, what was missed, and what was right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

HARD, BENIGN = "hard-negatives.jsonl", "benign.jsonl"  # as the options of `autosteer fit` are called
HARMFUL = {"rightly flagged": True, "missed": True, "wrongly flagged": False, "rightly passed": False}


@dataclass
class Exported:
    """Rows by the name of their file, and how many labels gave none, by why."""

    rows: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {HARD: [], BENIGN: []})
    left_out: Counter[str] = field(default_factory=Counter)


def exported(labels: Iterable[Mapping[str, Any]]) -> Exported:
    """The rows of all labels that hold; a record that reviewers do not agree on gives none."""
    by_record: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for label in labels:
        by_record[label["record_id"]].append(label)
    found = Exported()
    for record_id, said in by_record.items():
        text, record = _text_of(said[0]["record"]), said[0]["record"]
        if len({HARMFUL[each["label"]] for each in said}) > 1:
            found.left_out["reviewers do not agree"] += 1
        elif isinstance(text, _Reason):
            found.left_out[text] += 1
        elif said[0]["label"] == "rightly passed":
            # The same request again is never on both sides of a split.
            group = {"group": record["content_hash"][:16]} if record.get("content_hash") else {}
            found.rows[BENIGN].append({"id": record_id, "text": text, "category": "reviewed", **group})
        else:
            kind = "unsafe" if HARMFUL[said[0]["label"]] else "safe"  # in the shape of XSTest, which has both sides
            found.rows[HARD].append({"id": record_id, "prompt": text, "type": "reviewed", "label": kind})
    return found


class _Reason(str):
    """Why a record is no row."""

    __slots__ = ()


def _text_of(record: Mapping[str, Any] | None) -> str:
    """The one text of a request, or why it is none that a row could hold."""
    if record is None or record.get("content") is None:
        return _Reason("no text was kept (audit.content)")
    asked = orjson.loads(record["content"])
    turns = asked.get("messages")
    if turns is None:
        text = asked.get("prompt", asked.get("input"))
        return text if isinstance(text, str) else _Reason("not one text")
    if len(turns) != 1:
        return _Reason("several turns")
    content = turns[0].get("content")
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content or ()):
        return _Reason("pictures, which are not kept")
    return "\n".join(part["text"] for part in content or ())
