"""What a reload tells of the settings that it has changed."""

from __future__ import annotations

from typing import Any

import pytest

from server.settings.schema import Settings
from server.settings.shown import differences

KEY = {"name": "shop", "hash": "sha256:" + "1" * 64}
OTHER = {**KEY, "hash": "sha256:" + "2" * 64}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {}, []),
        ({"threshold": 0.5}, {"threshold": 0.4}, ["threshold: 0.5 -> 0.4"]),
        (
            {"policies": {"strict": {"mode": "block"}}},
            {"policies": {"strict": {"mode": "block", "threshold": 0.25}}},
            ["policies.strict.threshold: not given -> 0.25"],
        ),
        (
            {"keys": [KEY]},
            {"keys": [OTHER]},
            ["keys.shop.hash: sha256:11111111... -> sha256:22222222..."],
        ),
        (
            {"audit": {"url": "file:///var/audit.jsonl"}},
            {"audit": {"url": "file:///var/other.jsonl"}},
            ["audit.url: file:///var/audit.jsonl -> file:///var/other.jsonl"],
        ),
        (
            {"audit": {"url": "postgresql://me:secret@db/audit"}},
            {"audit": {"url": "postgresql://me:other@db2/audit"}},
            ["audit.url: postgresql://me:***@db/audit -> postgresql://me:***@db2/audit"],
        ),
    ],
)
def test_each_value_that_differs_is_told_and_no_secret(old: Any, new: Any, told: list[str]) -> None:
    assert differences(Settings(**old), Settings(**new)) == told
