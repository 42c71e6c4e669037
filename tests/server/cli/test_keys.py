"""Rotating a key: an unknown name is a mistake, and the last use of each is told over all servers' audit logs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from server.access.keys import hash_key, new_key
from server.record.audit.record import AuditRecord
from server.record.audit.sinks import make_sink
from tests.end_to_end.commands import Ended, run
from tests.server.records import audit_settings, record

HEAD = "2 audit logs, records since 2026-01-01 00:00:00 UTC"


def on(day: int, key: str | None) -> AuditRecord:
    return record(day, key=key, time=datetime(2026, 1, day, tzinfo=UTC))


def write(url: str, records: Sequence[AuditRecord]) -> str:
    sink = make_sink(audit_settings(url=url))
    sink.open()
    sink.write(records)
    sink.close()
    return url


@pytest.fixture
def logs(tmp_path: Path) -> list[str]:
    """Two servers', one of them a database: `shop` was used on the first last, `old-shop` on the second."""
    first = write(f"file://{tmp_path}/a.jsonl", [on(2, "shop"), on(5, "shop"), on(3, "old-shop")])
    second = write(f"sqlite:///{tmp_path}/b.db", [on(1, None), on(4, "shop"), on(9, "old-shop"), on(8, "gone")])
    return [first, second]


@pytest.fixture
def config(tmp_path: Path, logs: list[str]) -> Path:
    names = ("shop", "old-shop", "unused")
    file = tmp_path / "autosteer.yaml"
    keys = [{"name": name, "hash": hash_key(new_key())} for name in names]
    file.write_text(yaml.safe_dump({"keys": keys, "revoked_keys": ["leaked"], "audit": {"url": logs[0]}}))
    return file


def usage(*arguments: object) -> Ended:
    return run("keys", "usage", *map(str, arguments))


def test_usage_is_counted_over_all_logs(config: Path, logs: list[str]) -> None:
    found = usage("--config", config, "--url", logs[0], "--url", logs[1])
    head, *lines = found.stdout.splitlines()
    assert head == HEAD
    assert [line.split("  ") for line in [" ".join(line.split()) for line in lines]] == [
        ["shop accepted last 2026-01-05 00:00:00 UTC, requests: 3"],
        ["old-shop accepted last 2026-01-09 00:00:00 UTC, requests: 2"],
        ["unused accepted no request"],
        ["leaked revoked no request"],
        ["gone not in the settings last 2026-01-08 00:00:00 UTC, requests: 1"],
    ]


def test_usage_of_one_log_is_the_configured_one(config: Path) -> None:
    found = usage("--config", config)
    assert found.stdout.startswith("1 audit log, records since 2026-01-02")
    assert "last 2026-01-03" in found.stdout


def test_a_log_that_is_missing_is_a_mistake(config: Path, logs: list[str]) -> None:
    """Or else its server's requests would look as if there were none."""
    found = usage("--config", config, "--url", logs[0], "--url", "file:///nowhere/audit.jsonl")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "autosteer: there is no audit log /nowhere/audit.jsonl\n"


def test_an_unknown_key_is_a_mistake(config: Path, logs: list[str]) -> None:
    for url in logs:
        found = run("audit", "--config", str(config), "--url", url, "--key", "old-shpo")
        assert (found.returncode, found.stdout) == (2, "")
        assert "'old-shpo' is in neither the settings nor the log, did you mean old-shop?" in found.stderr


@pytest.mark.parametrize(("name", "count"), [("shop", 1), ("gone", 1), ("unused", 0), ("leaked", 0)])
def test_a_key_of_the_settings_or_the_log_is_known(config: Path, logs: list[str], name: str, count: int) -> None:
    found = run("audit", "--config", str(config), "--url", logs[1], "--key", name)
    assert (found.returncode, len(found.stdout.splitlines())) == (0, count)


@pytest.mark.parametrize(
    ("option", "word", "meant"), [("--decision", "stered", "steered"), ("--outcome", "complete", "completed")]
)
def test_a_misspelt_word_is_a_mistake_and_not_an_empty_answer(config: Path, option: str, word: str, meant: str) -> None:
    found = run("audit", "--config", str(config), option, word)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"autosteer: {option}: '{word}' is none of ")
    assert found.stderr.endswith(f"did you mean {meant}?\n")
