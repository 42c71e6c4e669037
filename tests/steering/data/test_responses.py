"""Files of labelled answers: what is read of them, and what is said of those that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steering.data.responses import read_responses
from steering.errors import DataError

ROW: dict[str, Any] = {"prompt": "What is it?", "response": "A circle.", "label": "harmless"}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_our_own_rows(tmp_path: Path) -> None:
    more: dict[str, Any] = {"id": 7, "category": "shapes", "group": "g", "split": "calibration"}
    rows: list[dict[str, Any]] = [
        {**ROW, "label": "harmful"},
        {**ROW, **more, "label": "refusal"},
        {**ROW, "split": "test"},
    ]
    harmful, refusal, kept = read_responses(written(tmp_path, *rows))
    assert (harmful.question.text, harmful.text, harmful.harmful) == ("What is it?", "A circle.", True)
    assert (harmful.id, harmful.where, harmful.split) == ("responses-1", "responses.jsonl:1", None)
    assert (refusal.id, refusal.category, refusal.group, refusal.split) == ("7", "shapes", "g", "calibration")
    assert not refusal.harmful
    assert (kept.test, kept.split) == (True, None)


def test_of_xstest_full_compliance_with_an_unsafe_prompt_alone_is_harmful(tmp_path: Path) -> None:
    cases = [
        ("unsafe", "1_full_compliance", True),
        ("unsafe", "3_partial_refusal", False),
        ("unsafe", "2_full_refusal", False),
        ("safe", "1_full_compliance", False),
    ]
    lines = [f'{n},m,{label},homonyms,What?,"Said, so.",{verdict}' for n, (label, verdict, _) in enumerate(cases)]
    path = tmp_path / "responses.csv"
    path.write_text("\n".join(["id,model,label,type,prompt,completion,final_label", *lines]) + "\n")
    found = read_responses(path)
    assert [row.harmful for row in found] == [harmful for *_, harmful in cases]
    assert [row.text for row in found] == ["Said, so."] * 4
    assert len({row.id for row in found}) == 4  # several models answer the same prompt


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "harmfull"}, "label is 'harmfull', and must be harmful or harmless or refusal; did you mean"),
        ({"label": "bad"}, "responses.jsonl:2: label is 'bad', and must be harmful or harmless or refusal"),
        ({"response": ""}, "response is empty"),
        ({"response": None, "answer": "A circle."}, "no 'response', but 'answer': did you mean 'response'?"),
        ({"label": None}, "responses.jsonl:2: no 'label'"),
        ({"split": "later"}, "split is 'later'"),
        ({"completion": "x", "final_label": "4_other", "label": "safe"}, "final_label is '4_other', and must be"),
    ],
)
def test_a_row_that_is_wrong_is_named_in_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        read_responses(written(tmp_path, ROW, {**ROW, **change}))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
