"""What crosses the process boundary arrives as it was, in any pieces, and tensors without a copy in between."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backbone import BackboneInfo
from models.row_sampler import SamplingParams
from models.sampling import Logprobs
from server.engine import buffers, wire
from server.engine.own import OwnEngine
from server.engine.protocol import Facts, Load
from server.engine.scheduler import Scheduler
from server.engine.wire import Frames, Kind, State, Update
from server.request import Ask, EngineFailed, Finish, GrammarFailed, Schema, Timings
from steering.policy import AnswerDecision, Decision, Fallback, ShadowDecision, Verdict
from tests.server.fakes import as_any, ask
from tests.server.guards import random_guard


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=200))), st.data())
@settings(max_examples=50, deadline=None)
def test_frames_that_arrive_in_any_pieces(sent: list[tuple[Kind, bytes]], data: st.DataObject) -> None:
    stream = b"".join(wire.frame(kind, body[:7], body[7:]) for kind, body in sent)
    frames, found = Frames(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += frames.feed(stream[:size])
        stream = stream[size:]
    assert found == sent


def test_a_step() -> None:
    state = State(
        Decision(Verdict.STEERED, float("inf"), 2.5),
        ShadowDecision(Verdict.PASS, 0.5, 0.0, shadow="next"),
        AnswerDecision(Verdict.BLOCKED, float("inf"), 40, Fallback.GRAMMAR),
        Timings(1.0, 2.0, 3.0, 4.0, None, 0.25),
        64,
    )
    updates = [
        Update(2**40, 7, Logprobs(-0.5, [(7, -0.5), (8, -1.0)]), None, None, state),
        Update(5, None, None, Finish.ERROR, GrammarFailed("it leads nowhere")),
    ]
    load, tokens = Load(3, 4, 0.5), [(2**40 + 1, 128_000), (9, 0)]
    frame = wire.step(load, [number for pair in tokens for number in pair], updates)
    ((kind, body),) = Frames().feed(frame)
    step = wire.read_step(body)
    assert (kind, step.load, list(step.tokens)) == (Kind.STEP, load, tokens)
    first, second = step.updates
    assert first == updates[0]
    assert (type(second.error), str(second.error), second.finish) == (GrammarFailed, "it leads nowhere", Finish.ERROR)


def test_a_step_of_tokens_is_sixteen_bytes_for_each() -> None:
    assert len(wire.step(Load(), [1, 2] * 256, [])) < 16 * 256 + 32


def test_facts_and_failures() -> None:
    info = BackboneInfo(
        "name", None, "Some", "llava", 8, 4, 50, 4096, torch.bfloat16, torch.device("cpu"), frozenset({2}), "", 9, ""
    )
    guard = random_guard(info)
    methods = dict.fromkeys(("read_prompts", "watch_answers"), lambda _: None)
    backbone = SimpleNamespace(info=info, tokenizer=None, inputs=SimpleNamespace(layout=None), **methods)
    facts = OwnEngine(as_any(backbone), guard, Scheduler(1, 1)).facts
    known = guard.calibration_scores, guard.answer_calibration_scores
    assert facts == Facts(info, guard.manifest, guard.layer, *known)
    ((_, body),) = Frames().feed(wire.loaded(facts))
    assert wire.read_loaded(body) == facts
    ((_, body),) = Frames().feed(wire.not_loaded(OSError("no\ncheckpoint \udc80")))
    assert wire.read_not_loaded(body) == ("OSError", "no\ncheckpoint \udc80")
    ((_, body),) = Frames().feed(wire.failed(EngineFailed("a step failed \udc80")))
    assert "a step failed" in str(wire.read_failed(body))


# requests ----------------------------------------------------------------------------------------------------------


def crossed(*asks: Ask) -> list[Ask]:
    """Asks as they arrive."""
    parcel = wire.pack(asks)
    assert [each.id for each in parcel.requests] == [each.id for each in asks]
    ((kind, body),) = Frames().feed(wire.submit(5, parcel))
    submission = wire.read_submit(body)
    assert (kind, submission.first, submission.count) == (Kind.SUBMIT, 5, len(asks))
    tensors = [] if parcel.buffer is None else buffers.mapped(parcel.buffer.descriptor, submission.lengths)
    return wire.unpack(submission.data, tensors)


def test_asks_arrive_as_they_were() -> None:
    first = ask(
        "a", [1, 2, 3], max_tokens=9, temperature=0.7, seed=11, logit_bias={4: -1.5}, logprobs=3,
        schema=Schema('{"type": "object"}', 0.25, 1024),
    )  # fmt: skip
    second = replace(first, id="b", params=SamplingParams(seed=12, repetition_penalty=1.3), schema=None, leader="a")
    arrived = crossed(first, second)
    for before, after in zip((first, second), arrived, strict=True):
        assert {each.name: getattr(after, each.name) for each in fields(Ask)} == {
            each.name: getattr(before, each.name) for each in fields(Ask)
        }
    assert arrived[1].prompt is arrived[0].prompt


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def test_tensors_of_every_kind_arrive_bit_for_bit_and_leave_the_sender() -> None:
    torch.manual_seed(0)
    tensors = {str(dtype): (torch.rand(3, 5, 7) * 100).to(dtype) for dtype in DTYPES}
    tensors |= {
        "transposed": torch.rand(4, 6).T,
        "slice": torch.rand(10, 4)[::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "gradient": torch.rand(3, requires_grad=True),
    }
    sent = ask("a", [1, 2], features=tensors)
    (arrived,) = crossed(sent)
    assert list(arrived.prompt.features) == list(tensors)
    for name, tensor in tensors.items():
        found = arrived.prompt.features[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found, tensor), name
    (kept,) = wire.pack([sent]).requests
    assert kept.prompt == replace(sent.prompt, features={})


def test_the_pictures_of_several_choices_are_sent_once() -> None:
    first = ask("0", [1], features={"pixels": torch.rand(1000)})
    parcel = wire.pack([first, *(replace(first, id=str(number), leader="0") for number in range(1, 8))])
    assert list(parcel.lengths) == [4000]
    assert parcel.buffer is not None
    assert os.fstat(parcel.buffer.descriptor).st_size == 4000
    assert len({id(each.prompt) for each in parcel.requests}) == 1


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="counts descriptors")
def test_memory_is_given_back_with_the_last_tensor() -> None:
    process = psutil.Process()

    def sent() -> Ask:
        return ask("a", [1], features={"pixels": torch.rand(5_000_000), "grid": torch.tensor([1, 2])})

    crossed(sent())  # what is opened once
    before, size = process.num_fds(), process.memory_info().shared
    kept = []
    for _ in range(5):
        kept += crossed(sent())
    assert process.num_fds() > before
    del kept
    assert process.num_fds() == before
    assert process.memory_info().shared < size + 20_000_000


def test_tensors_cross_where_memory_without_a_name_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, which has no memfd."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    tensors = {"a": torch.arange(5000.0), "b": torch.arange(7)}
    (arrived,) = crossed(ask("a", [1], features=tensors))
    assert all(torch.equal(arrived.prompt.features[name], tensor) for name, tensor in tensors.items())
