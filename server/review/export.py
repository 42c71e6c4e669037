"""Labels as rows that a fit reads; one in four is held out of it, the same ones each time."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from steering.labels import HARMFUL, Label

# For `autosteer fit --add`, with all rows; and as its other options are called, those to fit on.
LABELS, HARD, BENIGN = FILES = ("labels.jsonl", "hard-negatives.jsonl", "benign.jsonl")
HELD_OUT = 4  # of labels, one in so many


@dataclass
class Exported:
    """Rows by the name of their file, and how many labels gave none, by why."""

    rows: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {name: [] for name in FILES})
    left_out: Counter[str] = field(default_factory=Counter)

    def data(self, name: str) -> bytes:
        """A file as JSON lines."""
        return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in self.rows[name])

    @property
    def fit(self) -> int:
        """How many labels are to be fitted on."""
        return len(self.rows[LABELS]) - self.held_out

    @property
    def held_out(self) -> int:
        """How many labels are not to be fitted on."""
        return sum("split" in row for row in self.rows[LABELS])


def exported(labels: Iterable[Mapping[str, Any]]) -> Exported:
    """The rows of all labels that hold; a record that reviewers do not agree on gives none."""
    by_record: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for label in labels:
        by_record[label["record_id"]].append(label)
    found = Exported()
    for record_id, said in by_record.items():
        text = text_of(said[0]["record"])
        if len({HARMFUL[each["label"]] for each in said}) > 1:
            found.left_out["reviewers do not agree"] += 1
        elif isinstance(text, Reason):
            found.left_out[text] += 1
        else:
            _add(found, record_id, text, said[0]["label"])
    return found


def _add(found: Exported, record_id: str, text: str, label: Label) -> None:
    # The same words again are never on both sides of a split.
    digest = hashlib.sha256(text.encode()).hexdigest()
    row = {"id": record_id, "text": text, "label": label, "group": digest[:16]}
    if int(digest, 16) % HELD_OUT == 0:
        found.rows[LABELS].append({**row, "split": "test"})
        return
    found.rows[LABELS].append(row)
    if label == "rightly passed":
        found.rows[BENIGN].append({"id": record_id, "text": text, "category": "reviewed", "group": row["group"]})
    else:
        kind = "unsafe" if HARMFUL[label] else "safe"  # in the shape of XSTest, which has both sides
        found.rows[HARD].append({"id": record_id, "prompt": text, "type": "reviewed", "label": kind})


class Reason(str):
    """Why a record is no row."""

    __slots__ = ()


def text_of(record: Mapping[str, Any] | None) -> str:
    """The one text of a request, or the `Reason` why it is none that a row could hold."""
    asked = None if record is None else _decoded(record.get("content"))
    if not isinstance(asked, dict):
        return Reason("no text was kept (audit.content)")
    turns = asked.get("messages")
    if turns is None:
        text = asked.get("prompt", asked.get("input"))
        return text if isinstance(text, str) else Reason("not one text")
    if len(turns) != 1:
        return Reason("several turns")
    content = turns[0].get("content")
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content or ()):
        return Reason("pictures, which are not kept")
    return "\n".join(part["text"] for part in content or ())


def _decoded(kept: object) -> object:
    try:
        return orjson.loads(kept) if isinstance(kept, str) else None
    except orjson.JSONDecodeError:  # a line that was changed by hand
        return None
