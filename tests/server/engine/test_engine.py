"""The engine over a fake backbone: joining, leaving, the four modes, and failures that stay with their request."""

from collections import defaultdict

import pytest

from models.row_sampler import SamplingParams
from models.schema import source_of
from server.engine.grammars import Grammars
from server.engine.own import OwnEngine
from server.engine.own_request import OwnRequest
from server.engine.scheduler import Scheduler
from server.request import Event, Finish, Schema
from steering.policy import Mode, Verdict
from steering.shadow import Shadow
from tests.server.fakes import EOS, REFUSAL_TOKEN, FakeBackbone, FakeGuard, as_any, ask, next_token, own, request

HARMFUL = [40, 3]  # the fake guard reads its score, 40 / 50, from the first token
HARMLESS = [10, 3]


def engine_of(
    backbone: FakeBackbone, guard: FakeGuard | None = None, max_running: int = 8, shadow: Shadow | None = None
) -> OwnEngine:
    return OwnEngine(as_any(backbone), as_any(guard), Scheduler(max_running, prefill_tokens=1000), shadow)


def run(
    engine: OwnEngine, *requests: OwnRequest, joining: dict[int, OwnRequest] | None = None
) -> dict[str, list[Event]]:
    """Step until nothing lives; `joining` maps a step number to a request that arrives then."""
    for r in requests:
        engine.add(r)
    waiting = dict(joining or {})
    events: dict[str, list[Event]] = defaultdict(list)
    step = 0
    while waiting or not engine.idle:
        if step in waiting:
            engine.add(waiting.pop(step))
        for event in engine.step():
            events[event.request.id].append(event)
        step += 1
        assert step < 200
    return events


def expected(ids: list[int], count: int) -> list[int]:
    history = list(ids)
    for _ in range(count):
        history.append(next_token(history))
    return history[len(ids) :]


def test_rows_that_join_and_leave_get_their_own_tokens() -> None:
    first, second, third = (
        request("a", [1, 2], max_tokens=9),
        request("b", [3], max_tokens=2),
        request("c", [4], max_tokens=5),
    )
    backbone = FakeBackbone()
    events = run(engine_of(backbone), first, second, joining={3: third})
    for r, ids in [(first, [1, 2]), (second, [3]), (third, [4])]:
        assert r.output_ids == expected(ids, r.max_tokens)
        assert [e.finish for e in events[r.id]] == [None] * (r.max_tokens - 1) + [Finish.LENGTH]
    assert backbone.rows == []


def test_a_step_is_one_prefill_and_one_decode() -> None:
    backbone = FakeBackbone()
    engine = engine_of(backbone)
    run(engine, request("a", [1]), request("b", [2]), joining={1: request("c", [3])})
    assert backbone.prefills == [2, 1]
    assert backbone.decodes == [2, 3, 3, 3, 1]


@pytest.mark.parametrize(
    ("mode", "verdict", "tokens", "finish"),
    [
        (Mode.OFF, Verdict.PASS, expected(HARMFUL, 5), Finish.LENGTH),
        (Mode.MONITOR, Verdict.MONITORED, expected(HARMFUL, 5), Finish.LENGTH),
        (Mode.STEER, Verdict.STEERED, [REFUSAL_TOKEN] * 5, Finish.CONTENT_FILTER),
        (Mode.BLOCK, Verdict.BLOCKED, [], Finish.CONTENT_FILTER),
    ],
)
def test_modes_side_by_side_leave_neighbours_alone(
    mode: Mode, verdict: Verdict, tokens: list[int], finish: Finish
) -> None:
    flagged, neighbour = request("bad", HARMFUL, mode=mode), request("good", HARMLESS, mode=mode)
    events = run(engine_of(FakeBackbone(), FakeGuard()), flagged, neighbour)
    assert flagged.decision is not None
    assert flagged.decision.verdict is verdict
    assert flagged.output_ids == tokens
    assert events["bad"][-1].finish is finish
    assert neighbour.output_ids == expected(HARMLESS, 5)
    assert neighbour.decision is not None
    assert neighbour.decision.verdict is Verdict.PASS


def test_a_block_alone_in_its_step_runs_no_decode() -> None:
    backbone = FakeBackbone()
    run(engine_of(backbone, FakeGuard()), request("bad", HARMFUL, mode=Mode.BLOCK))
    assert (backbone.decodes, backbone.rows) == ([], [])


def test_logit_bias_cannot_talk_a_refusal_away() -> None:
    flagged = request("bad", HARMFUL, temperature=2.0, logit_bias={REFUSAL_TOKEN: -100.0, EOS: 100.0})
    run(engine_of(FakeBackbone(), FakeGuard()), flagged)
    assert flagged.output_ids == [REFUSAL_TOKEN] * 5
    assert SamplingParams.GREEDY.temperature == 0


def test_end_of_sequence_ends_a_row_without_a_token() -> None:
    stopped = request("a", [1, 2], logit_bias={EOS: 100.0})
    events = run(engine_of(FakeBackbone()), stopped)
    assert (stopped.output_ids, events["a"][0].finish, events["a"][0].token) == ([], Finish.STOP, None)


def test_an_end_of_sequence_waits_for_so_many_tokens_and_a_refusal_does_not() -> None:
    late = request("late", [1, 2], max_tokens=5, min_tokens=3, logit_bias={EOS: 100.0})
    never = request("never", [1, 3], max_tokens=5, min_tokens=2**63, logit_bias={EOS: 100.0})
    refused = request("refused", HARMFUL, max_tokens=5, min_tokens=2**63)
    events = run(engine_of(FakeBackbone(), FakeGuard()), late, never, refused)
    assert (len(late.output_ids), events["late"][-1].finish) == (3, Finish.STOP)
    assert (len(never.output_ids), events["never"][-1].finish) == (5, Finish.LENGTH)
    assert not refused.sampler.lacking


def test_a_batch_that_fails_beside_decoding_rows_lets_no_harmful_prompt_through() -> None:
    """Rows are then run one by one; the decoding ones need no tap, the new ones still do."""
    backbone = FakeBackbone()
    backbone.poison = 34
    engine = engine_of(backbone, FakeGuard())
    decoding = request("decoding", HARMLESS, max_tokens=6)
    engine.add(decoding)
    engine.step()
    bad, harmful = request("bad", [34]), request("harmful", HARMFUL)
    events = run(engine, bad, harmful)
    assert events["bad"][-1].finish is Finish.ERROR
    assert harmful.decision is not None
    assert harmful.decision.verdict is Verdict.STEERED
    assert harmful.output_ids == [REFUSAL_TOKEN] * 5
    assert decoding.output_ids == expected(HARMLESS, 6)


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_failing_row_fails_alone(when: str) -> None:
    backbone = FakeBackbone()
    backbone.poison = 34 if when == "prefill" else expected([20], 2)[1]
    bad, good = request("bad", [34] if when == "prefill" else [20]), request("good", [2])
    assert backbone.poison not in expected([2], 5)
    events = run(engine_of(backbone), bad, good)
    assert events["bad"][-1].finish is Finish.ERROR
    assert "poisoned" in str(events["bad"][-1].error)
    assert good.output_ids == expected([2], 5)
    assert events["good"][-1].finish is Finish.LENGTH
    assert backbone.rows == []


def test_a_batch_whose_rows_all_fail_ends_the_engine_after_their_events() -> None:
    backbone = FakeBackbone()
    engine = engine_of(backbone)
    engine.add(request("a", [1]))
    engine.add(request("b", [2]))
    backbone.broken = True
    events = engine.step()
    assert [(e.request.id, e.finish) for e in events] == [("a", Finish.ERROR), ("b", Finish.ERROR)]
    assert engine.failure is not None


def test_a_request_that_finds_no_storage_waits_for_it() -> None:
    backbone = FakeBackbone(max_rows=1)
    first, second = request("a", [1], max_tokens=3), request("b", [2], max_tokens=3)
    events = run(engine_of(backbone), first, second)
    assert (first.output_ids, second.output_ids) == (expected([1], 3), expected([2], 3))
    assert [e.finish for e in events["b"]] == [None, None, Finish.LENGTH]


def test_a_request_that_fits_nowhere_fails_instead_of_waiting_for_ever() -> None:
    events = run(engine_of(FakeBackbone(max_rows=0)), request("a", [1]))
    assert [e.finish for e in events["a"]] == [Finish.ERROR]


def test_abort_frees_the_row_at_once() -> None:
    backbone = FakeBackbone()
    engine = engine_of(backbone, max_running=1)
    engine.add(request("a", [1]))
    engine.add(request("b", [2]))
    engine.step()
    for name in "ba":
        event = engine.abort(name)
        assert event is not None
        assert event.finish is Finish.ABORT
    assert engine.abort("a") is None
    assert (backbone.rows, engine.idle) == ([], True)


def test_prepared_requests_draw_as_their_seeds_say_and_follow_grammars_of_their_own() -> None:
    schema = Schema(source_of({"type": "object"}))
    first = ask("a", [1, 2, 3], temperature=0.7, seed=11)
    second = ask("b", [1, 2, 3], temperature=1.0, seed=12, leader="a", repetition_penalty=1.3)
    compiled: list[object] = []

    class Compiler:
        def compile_source(self, schema: object) -> "Compiler":
            compiled.append(schema)
            return self

        def fresh(self) -> str:
            return f"grammar {len(compiled)}"

    engine = engine_of(FakeBackbone())
    engine._grammars = Grammars(as_any(Compiler()))
    shaped = [ask(name, [1], schema=schema) for name in "cd"]
    made = engine.prepare([first, second, *shaped])
    assert [[each.sampler.draw() for _ in range(3)] for each in made[:2]] == [
        [each.sampler.draw() for _ in range(3)] for each in (own(first), own(second))
    ]
    assert made[1].sampler.seen == {1, 2, 3}
    assert (made[0].source, made[1].source) == (None, made[0])
    assert [as_any(each.sampler.grammar) for each in made] == [None, None, "grammar 1", "grammar 1"]
    assert compiled == [schema.source]
