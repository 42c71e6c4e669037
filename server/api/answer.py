"""What every API's answer is to the HTTP side, and what OpenAI's answers share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol, cast

from server.answer.choices import Choices
from server.answer.delta import Delta
from server.answer.generation import Generation
from server.api.objects import FinishReason, InputType, ModerationResult, Usage
from server.errors import ApiError
from server.request import Request
from steering.policy import Decision
from steering.specs import UNSAFE


class Stream(Protocol):
    """An answer's own framing: the bytes of its stream, in the order of the methods."""

    keep_alive: ClassVar[bytes]  # what is sent where there is nothing to send

    def opening(self) -> bytes:
        """What opens a stream, once the guard has decided."""

    def delta(self, generation: Generation, delta: Delta) -> bytes:
        """A piece of a choice. Called for every token."""

    def choice_end(self, generation: Generation) -> bytes:
        """Why a choice ended."""

    def end(self) -> bytes:
        """What ends a stream whose choices have all ended."""

    def failed(self, failure: ApiError) -> bytes:
        """What ends a stream instead, at any time."""


class Answer(Protocol):
    """One answer in the shape of its API. Only for the event loop's thread."""

    choices: Choices

    @property
    def stream(self) -> Stream | None:
        """The framing of a streamed answer; None where it is sent as a whole."""

    @property
    def headers(self) -> dict[str, str]:
        """The hints that were ignored, and what the guard decided, where that is shown, once `choices` have begun."""

    def whole(self) -> Mapping[str, Any]:
        """The one object that is not streamed, once `choices` are over. Takes their deltas."""


def finish_reason(generation: Generation) -> FinishReason:
    """Why a choice that was answered ended."""
    assert generation.finish is not None
    return cast(FinishReason, generation.finish.value)  # a failure is an error, and never gets here


def usage_of(choices: Choices) -> Usage:
    """Token counts: each prompt's once, the tokens of all choices; of a prompt that is blocked, none."""
    prompts = [leader.request.prompt for leader in choices.leaders]
    prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": choices.tokens,
        "total_tokens": prompt_tokens + choices.tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(leader.request.cached_tokens or 0 for leader in choices.leaders),
            "image_tokens": sum(prompt.image_tokens for prompt in prompts),
        },
    }


def verdict_headers(decision: Decision | None) -> dict[str, str]:
    """A decision as headers."""
    if decision is None:
        return {}
    headers = {"x-autosteer-verdict": decision.verdict.value}
    if decision.score is not None:
        headers["x-autosteer-score"] = f"{decision.score:.6f}"
    return headers


def ignored_headers(names: Collection[str]) -> dict[str, str]:
    """The hints of a request that nothing was made of, as a header."""
    return {"x-autosteer-ignored": ", ".join(sorted(names))} if names else {}


def answer_result(generation: Generation) -> ModerationResult | None:
    """What the guard found in an answer that is over; `None` where its score is not known."""
    answer = generation.request.answer
    if answer is None:
        return None
    flagged = answer.flagged or generation.fallback is not None
    return {
        "flagged": flagged,
        "categories": {UNSAFE: flagged},
        "category_scores": {UNSAFE: answer.score},
        "category_applied_input_types": {UNSAFE: ["text"]},
    }


def moderation_result(request: Request) -> ModerationResult | None:
    """What the guard found in a prompt; `None` where nothing scored it."""
    decision = request.decision
    if decision is None or decision.score is None:
        return None
    kinds = decision.kinds
    types: list[InputType] = ["text", "image"] if request.prompt.image_tokens else ["text"]
    return {
        "flagged": decision.flagged,
        "categories": {UNSAFE: decision.flagged} | {each.name: each.name in kinds for each in decision.categories},
        "category_scores": {UNSAFE: decision.score} | {each.name: each.score for each in decision.categories},
        "category_applied_input_types": dict.fromkeys([UNSAFE, *(each.name for each in decision.categories)], types),
    }
