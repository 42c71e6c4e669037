"""What crosses the process boundary arrives as it was, in any pieces, and tensors without a copy in between."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backbone import BackboneInfo
from models.inputs import Prompt
from models.sampling import Logprobs, SamplingParams
from server.engine import wire
from server.engine.wire import Facts, Frames, Kind, Load, News
from server.request import EngineFailed, Finish, GrammarFailed, Timings
from steering.policy import Decision, ShadowDecision, Verdict
from tests.server.fakes import as_any, request
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
    state = (
        Decision(Verdict.STEERED, float("inf"), 2.5),
        ShadowDecision(Verdict.PASS, 0.5, 0.0, "next"),
        Timings(1.0, 2.0, 3.0, 4.0, None, 0.25),
        64,
    )
    news = [
        News(2**40, 7, Logprobs(-0.5, [(7, -0.5), (8, -1.0)]), None, None, state),
        News(5, None, None, Finish.ERROR, GrammarFailed("it leads nowhere")),
    ]
    load, tokens = Load(3, 4, 0.5), [(2**40 + 1, 128_000), (9, 0)]
    frame = wire.step(load, [number for pair in tokens for number in pair], news)
    ((kind, body),) = Frames().feed(frame)
    step = wire.read_step(body)
    assert (kind, step.load, list(step.tokens)) == (Kind.STEP, load, tokens)
    first, second = step.news
    assert first == news[0]
    assert (type(second.error), str(second.error), second.finish) == (GrammarFailed, "it leads nowhere", Finish.ERROR)


def test_a_step_of_tokens_is_sixteen_bytes_for_each() -> None:
    assert len(wire.step(Load(), [1, 2] * 256, [])) < 16 * 256 + 32


def test_facts_and_failures() -> None:
    info = BackboneInfo(
        "name", None, "Some", "llava", 8, 4, 50, 4096, torch.bfloat16, torch.device("cpu"), frozenset({2}), "", 9, ""
    )
    guard = random_guard(info)
    facts = Facts.of(as_any(SimpleNamespace(backbone=SimpleNamespace(info=info), guard=guard)))
    ((_, body),) = Frames().feed(wire.loaded(facts))
    assert wire.read_loaded(body) == facts
    ((_, body),) = Frames().feed(wire.not_loaded(OSError("no\ncheckpoint \udc80")))
    assert wire.read_not_loaded(body) == ("OSError", "no\ncheckpoint \udc80")
    ((_, body),) = Frames().feed(wire.failed(EngineFailed("a step failed \udc80")))
    assert "a step failed" in str(wire.read_failed(body))


# requests ----------------------------------------------------------------------------------------------------------


def crossed(*requests: Any) -> list[Any]:
    """Requests as they arrive."""
    parcel = wire.pack(requests)
    ((kind, body),) = Frames().feed(wire.submit(5, parcel))
    submission = wire.read_submit(body)
    assert (kind, submission.first, submission.count) == (Kind.SUBMIT, 5, len(requests))
    buffers = [] if parcel.memory is None else wire.mapped(parcel.memory.descriptor, submission.lengths)
    return wire.unpack(submission.data, buffers, lambda schema: as_any(f"a grammar of {schema}"))


def test_requests_arrive_with_all_that_the_engine_reads() -> None:
    first = request("a", [1, 2, 3], max_tokens=9, temperature=0.7, seed=11, logit_bias={4: -1.5}, logprobs=3)
    second = request("b", [1, 2, 3], seed=12, repetition_penalty=1.3, temperature=1.0)
    first.schema = '{"type": "object"}'
    second.leader, second.prompt = first, first.prompt
    expected = [[each.sampler.draw() for _ in range(3)] for each in (first, second)]
    arrived = crossed(first, second)
    for before, after in zip((first, second), arrived, strict=True):
        for field in ("id", "max_tokens", "policy", "decision"):
            assert getattr(after, field) == getattr(before, field)
        assert after.sampler.params == before.sampler.params
        assert after.prompt.ids == before.prompt.ids
        assert after.timings.arrived == before.timings.arrived
    assert [[each.sampler.draw() for _ in range(3)] for each in arrived] == expected
    assert arrived[1].sampler.seen == {1, 2, 3}
    assert arrived[1].leader is arrived[0]
    assert arrived[1].prompt is arrived[0].prompt
    assert [each.sampler.grammar for each in arrived] == ['a grammar of {"type": "object"}', None]
    assert arrived[0].sampler.params is not SamplingParams.GREEDY


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def pictures(**tensors: torch.Tensor) -> Prompt:
    return Prompt([1, 2], tensors, 1)


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
    sent = request("a", [1])
    sent.prompt = pictures(**tensors)
    (arrived,) = crossed(sent)
    assert list(arrived.prompt.features) == list(tensors)
    for name, tensor in tensors.items():
        found = arrived.prompt.features[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found, tensor), name
    assert sent.prompt == replace(pictures(), features={})


def test_the_pictures_of_several_choices_are_sent_once() -> None:
    requests = [request(str(i), [1]) for i in range(8)]
    prompt = pictures(pixels=torch.rand(1000))
    for each in requests:
        each.prompt = prompt
    parcel = wire.pack(requests)
    assert list(parcel.lengths) == [4000]
    assert parcel.memory is not None
    assert os.fstat(parcel.memory.descriptor).st_size == 4000
    assert len({id(each.prompt) for each in requests}) == 1


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="counts descriptors")
def test_memory_is_given_back_with_the_last_tensor() -> None:
    process = psutil.Process()
    sent = request("a", [1])
    sent.prompt = pictures(pixels=torch.rand(5_000_000), grid=torch.tensor([1, 2]))
    crossed(sent)  # what is opened once
    before, size = process.num_fds(), process.memory_info().shared
    kept = []
    for _ in range(5):
        sent.prompt = pictures(pixels=torch.rand(5_000_000), grid=torch.tensor([1, 2]))
        kept += crossed(sent)
    assert process.num_fds() > before
    del kept
    assert process.num_fds() == before
    assert process.memory_info().shared < size + 20_000_000
