"""What the settings say of a shadow, and what metrics and audit tell of it; the engine is a small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.backbone import Backbone as RealBackbone
from server.app import create_app
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.engine.shadow import load_shadow
from server.settings.groups import ShadowSettings
from server.settings.schema import Settings
from steering.answers import AnswerReader
from steering.bundle import save_bundle
from steering.errors import BundleError
from steering.policy import PolicyError
from steering.shadow import Shadow
from tests.exposition import metric_of
from tests.server.fakes import as_any
from tests.server.guards import random_answers, random_guard, token_reader
from tests.server.in_thread import engine_client
from tests.server.records import MemorySink, audit_settings
from tests.server.scripted import MODEL, chat
from tests.server.test_app_on_engine import HARMFUL, HARMLESS, Backbone, Guard, loaded


def write(folder: Path, backbone: RealBackbone, answers: AnswerReader | None = None, **changes: Any) -> Path:
    guard = random_guard(backbone.info, 1, 1, answers)
    model = guard.manifest.model.model_copy(update=changes)
    manifest = guard.manifest.model_copy(update={"model": model, "threshold": 0.25})
    save_bundle(folder, manifest, guard.reader, guard.head, {}, answers)
    return folder


def test_a_shadow_has_a_bundle_or_a_threshold_of_its_own(backbone: RealBackbone, tmp_path: Path) -> None:
    acting = random_guard(backbone.info)
    folder = write(tmp_path, backbone)
    cases: list[tuple[dict[str, Any], float, bool]] = [
        ({"threshold": 0.7}, 0.7, False),
        ({"target_fpr": 0.01}, 0.5, False),
        ({"guard": str(folder)}, 0.25, True),
        ({"guard": str(folder), "threshold": 0.9}, 0.9, True),
    ]
    for given, threshold, own in cases:
        shadow = load_shadow(ShadowSettings.model_validate({"name": "next", **given}), acting, backbone.info)
        assert (shadow.name, shadow.threshold, shadow.guard is not acting) == ("next", threshold, own)


def test_a_shadow_with_a_reader_of_answers_judges_them_too(backbone: RealBackbone, tmp_path: Path) -> None:
    acting = random_guard(backbone.info, answers=random_answers(backbone.info))
    folder = str(write(tmp_path, backbone, random_answers(backbone.info)))
    cases: list[tuple[dict[str, Any], float | None]] = [
        ({"guard": folder}, 0.5),
        ({"guard": folder, "answer_threshold": 0.9}, 0.9),
        ({"answer_threshold": 0.7}, 0.7),
        ({"threshold": 0.7}, None),
    ]
    for given, threshold in cases:
        shadow = load_shadow(ShadowSettings.model_validate(given), acting, backbone.info)
        assert shadow.answer_threshold == threshold
        assert (shadow.answers is None) == (threshold is None)
    without = random_guard(backbone.info)
    with pytest.raises(PolicyError, match=r"^shadow: answer_threshold: .* reads prompts alone"):
        load_shadow(ShadowSettings(answer_threshold=0.7), without, backbone.info)


def test_a_shadow_that_does_not_fit_is_refused_as_a_guard_is(backbone: RealBackbone, tmp_path: Path) -> None:
    acting = random_guard(backbone.info)
    folder = write(tmp_path, backbone, template_hash="another")
    with pytest.raises(BundleError, match=r"^shadow: the guard was fitted on .* template_hash another"):
        load_shadow(ShadowSettings(guard=str(folder)), acting, backbone.info)
    with pytest.raises(BundleError, match=r"^shadow: cannot read"):
        load_shadow(ShadowSettings(guard=str(tmp_path / "none")), acting, backbone.info)
    with pytest.raises(PolicyError, match=r"^shadow: target_fpr 0.2 is not calibrated in this bundle; it has 0.01"):
        load_shadow(ShadowSettings(target_fpr=0.2), acting, backbone.info)
    with pytest.raises(PolicyError, match=r"^shadow: needs a guard"):
        load_shadow(ShadowSettings(threshold=0.2), None, backbone.info)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"name": "next"},
        {"threshold": 0.5, "target_fpr": 0.01},
        {"threshold": 1.5},
        {"answer_threshold": 1.5},
        {"threshold": 0.5, "eps": 1.0},
        {"threshold": 0.5, "name": 'x"} 1\n'},
    ],
)
def test_what_a_shadow_may_not_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"shadow": wrong})


async def test_metrics_and_audit_tell_what_a_shadow_would_have_decided() -> None:
    guard = Guard()
    sink = MemorySink()

    def make() -> OwnEngine:
        guard.answers = token_reader(0.0)
        # Flags no prompt that the model can score, and every answer.
        shadow = Shadow("candidate", as_any(guard), threshold=0.999, answer_threshold=0.5)
        return OwnEngine(as_any(Backbone()), as_any(guard), Scheduler(4, 1000), shadow)

    settings = Settings(audit=audit_settings())
    app = create_app(settings, engine_client(make), name=MODEL, sink=sink)
    async with loaded(app) as client:
        plain = {"temperature": 0, "max_tokens": 3}
        answers = [await chat(client, text + "hello", **plain) for text in (HARMFUL, HARMLESS)]
        await chat(client, HARMFUL, guard={"threshold": 0.0}, **plain)
        text = (await client.get("/metrics")).text
    assert [a.json()["choices"][0]["finish_reason"] for a in answers] == ["content_filter", "length"]
    name = "autosteer_shadow_decisions_total"
    labels = {"policy": "default", "shadow": "candidate", "modality": "text"}
    assert metric_of(text, name, acting="steered", decision="pass", **labels) == 2
    assert metric_of(text, name, acting="pass", decision="pass", **labels) == 1
    assert metric_of(text, "autosteer_shadow_score_count", policy="default", shadow="candidate") == 3
    first = sink.records[0]
    assert (first.decision, first.shadow) == ("steered", "candidate")
    assert first.shadow_score == first.score
    assert first.shadow_decision == "pass"
    name = "autosteer_shadow_answer_decisions_total"
    labels = {"policy": "default", "shadow": "candidate"}
    assert metric_of(text, name, decision="monitored", acting="off", **labels) == 1
    assert metric_of(text, "autosteer_shadow_answer_score_count", **labels) == 1
    assert [each.shadow_answer_decision for each in sink.records] == [None, "monitored", None]
    assert first.shadow_answer_score is None


async def test_without_a_shadow_nothing_is_told_of_one() -> None:
    sink = MemorySink()

    def make() -> OwnEngine:
        return OwnEngine(as_any(Backbone()), as_any(Guard()), Scheduler(4, 1000))

    runner = engine_client(make)
    async with loaded(create_app(Settings(audit=audit_settings()), as_any(runner), name=MODEL, sink=sink)) as client:
        await chat(client, HARMLESS, temperature=0, max_tokens=3)
        text = (await client.get("/metrics")).text
    assert "autosteer_shadow_decisions_total{" not in text
    assert (sink.records[0].shadow, sink.records[0].shadow_decision, sink.records[0].shadow_score) == (None,) * 3
