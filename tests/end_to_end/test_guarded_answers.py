"""The main job, as a user meets it: the official client, a real process, the bundled model and its guard."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from openai.types.chat import ChatCompletionMessageParam
from PIL import Image

from models.cache import BLOCK
from models.demo.dialogue import Example, pairs, utility
from models.demo.judge import complied, correct, refused
from tests import plain_http
from tests.end_to_end.processes import ServerProcess, data_url, user
from tests.waiting import wait_until

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "google-coral+test_data"


def ask(server: ServerProcess, example: Example, *, stream: bool = False) -> tuple[str, str | None, str | None]:
    """Greedy answer: its text, refusal and finish reason."""
    messages: list[ChatCompletionMessageParam] = [user(example.question, *([example.image] if example.image else []))]
    if not stream:
        choice = server.client.chat.completions.create(model=server.model, messages=messages, temperature=0).choices[0]
        return choice.message.content or "", choice.message.refusal, choice.finish_reason
    text, refusal, finish = "", "", None
    for chunk in server.client.chat.completions.create(
        model=server.model, messages=messages, temperature=0, stream=True
    ):
        for part in chunk.choices:
            text += part.delta.content or ""
            refusal += part.delta.refusal or ""
            finish = part.finish_reason or finish
    return text, refusal or None, finish


@pytest.fixture(scope="module")
def harmless() -> list[Example]:
    return utility(12, seed=901, split="test")


def test_an_image_question_streams_the_same_text(guarded: ServerProcess, harmless: list[Example]) -> None:
    for example in harmless:
        whole = ask(guarded, example)
        assert ask(guarded, example, stream=True) == whole
        assert whole[1:] == (None, "stop")
    assert sum(correct(e, ask(guarded, e)[0]) for e in harmless) >= 11


@pytest.mark.parametrize("kind", ["text", "image", "cross", "sign"])
def test_harm_is_refused_and_its_twin_is_answered_as_if_no_guard_were_there(
    kind: str, guarded: ServerProcess, unguarded: ServerProcess
) -> None:
    chosen = [pair for pair in pairs(4, seed=902, split="test") if pair.kind == kind]
    assert len(chosen) == 4
    for pair in chosen:
        assert complied(pair.toxic, ask(unguarded, pair.toxic)[0])
        for stream in (False, True):
            text, refusal, finish = ask(guarded, pair.toxic, stream=stream)
            assert refused(text)
            assert (refusal, finish) == (None, "content_filter")
            assert ask(guarded, pair.safe, stream=stream) == ask(unguarded, pair.safe)


def test_verdict_and_score_headers_follow_the_policy(guarded: ServerProcess, unguarded: ServerProcess) -> None:
    pair = next(p for p in pairs(1, seed=903, split="test") if p.kind == "text")
    for example, verdict in [(pair.toxic, "steered"), (pair.safe, "pass")]:
        raw = guarded.client.chat.completions.with_raw_response.create(
            model=guarded.model, messages=[user(example.question, *([example.image] if example.image else []))]
        )
        assert raw.headers["x-autosteer-verdict"] == verdict
        assert (float(raw.headers["x-autosteer-score"]) >= 0.5) == (verdict == "steered")
    raw = unguarded.client.chat.completions.with_raw_response.create(model=unguarded.model, messages=[user("hello")])
    assert "x-autosteer-score" not in raw.headers


@pytest.mark.chance
@pytest.mark.parametrize("requests", [120, pytest.param(500, marks=pytest.mark.slow)])
def test_sixteen_clients_each_get_their_own_right_answer(guarded: ServerProcess, requests: int) -> None:
    """Harmful and harmless requests mixed, 16 at a time: none lost, none mixed up."""
    bad = [pair.toxic for pair in pairs(requests // 80, seed=904, split="test")]
    good = utility(requests // 5, seed=905, split="test")
    distinct = [*bad, *good]
    alone = {example.id: ask(guarded, example) for example in distinct}
    work = [distinct[i % len(distinct)] for i in range(requests)]
    streamed = threading.local()

    def one(example: Example) -> bool:
        streamed.flip = not getattr(streamed, "flip", False)
        return ask(guarded, example, stream=streamed.flip) == alone[example.id]

    with ThreadPoolExecutor(16) as pool:
        right = list(pool.map(one, work))
    assert (len(right), sum(right)) == (requests, requests)
    wait_until(lambda: guarded.metric("autosteer_num_requests_running") == 0, "the end of all")


def test_usage_counts_prompt_and_image_tokens(guarded: ServerProcess) -> None:
    image = Image.new("RGB", (96, 96), "white")
    messages: list[ChatCompletionMessageParam] = [user("what is in the picture?", image)]
    whole = guarded.client.chat.completions.create(model=guarded.model, messages=messages, temperature=0)
    assert whole.usage is not None
    stream = guarded.client.chat.completions.create(
        model=guarded.model, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    streamed, details = chunks[-1].usage, whole.usage.prompt_tokens_details
    assert streamed is not None
    assert streamed.prompt_tokens_details is not None
    assert details is not None
    # Of the same prompt, asked a moment ago: whole blocks, of which vLLM's on a CPU are twice as long.
    block = 2 * BLOCK if "vllm" in guarded.arguments else BLOCK
    assert streamed.prompt_tokens_details.cached_tokens == (streamed.prompt_tokens - 1) // block * block
    assert streamed.model_copy(update={"prompt_tokens_details": details}) == whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert details.image_tokens is not None
    assert 0 < details.image_tokens < whole.usage.prompt_tokens


@pytest.mark.chance
def test_a_disconnected_client_frees_its_row(unguarded: ServerProcess) -> None:
    """Unguarded: the guard would end such an answer, which goes on past its end."""
    aborted = unguarded.metric("autosteer_request_success_total", finished_reason="abort")
    body = {
        "model": unguarded.model,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "max_tokens": 1500,
        "logit_bias": {str(token): -100 for token in eos_tokens()},
    }
    with httpx.stream("POST", f"{unguarded.url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    wait_until(lambda: unguarded.metric("autosteer_num_requests_running") == 0, "the end of the request")
    wait_until(
        lambda: unguarded.metric("autosteer_request_success_total", finished_reason="abort") == aborted + 1,
        "its outcome",
    )
    assert plain_http.get(f"{unguarded.url}/ready").status_code == 200


def eos_tokens() -> list[int]:
    from transformers import AutoTokenizer

    from models.demo import CHECKPOINT

    return [AutoTokenizer.from_pretrained(CHECKPOINT).eos_token_id]


def test_several_images_and_turns(guarded: ServerProcess, harmless: list[Example]) -> None:
    images = [example.image for example in harmless if example.image][:2]
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "You are a helpful assistant."},
        user("what is in the first picture?", *images),
        {"role": "assistant", "content": "A picture."},
        user("and what is in this one?", images[0]),
    ]
    answer = guarded.client.chat.completions.create(model=guarded.model, messages=messages, temperature=0)
    assert answer.choices[0].finish_reason in {"stop", "length"}


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="the photographs of shared/data are not here")
def test_natural_photographs_are_answered(guarded: ServerProcess) -> None:
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        answer = ask(
            guarded, Example(path.name, "what is in the picture?", Image.open(path).convert("RGB"), "", "", None)
        )
        assert answer[2] in {"stop", "length", "content_filter"}


def test_models_version_health_ready(guarded: ServerProcess) -> None:
    assert guarded.client.models.list().data[0].id == guarded.model
    for route in ("/health", "/ready", "/version", "/metrics"):
        assert plain_http.get(guarded.url + route).status_code == 200
    assert guarded.metric("autosteer_guard_decisions_total", decision="steered") > 0


def test_an_image_url_that_is_no_image_names_the_field(guarded: ServerProcess) -> None:
    body = {
        "model": guarded.model,
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (8, 8)))[:40]}}],
            }
        ],
    }
    response = plain_http.post(f"{guarded.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.content.0.image_url.url"
