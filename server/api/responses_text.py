"""The objects of the routes beside chat: legacy completions and moderations."""

from __future__ import annotations

import time
from collections.abc import Sequence

from server.answer.choices import Choices
from server.answer.generation import Generation, Piece
from server.answer.logprobs import Entry
from server.api.events import HOLE, Template, event
from server.api.objects import Completion, CompletionChoice, CompletionLogprobs, ModerationResult, ModerationsObject
from server.api.responses import finish_reason, moderation_result, usage_of, verdict_headers
from server.api.schemas_text import CompletionRequest
from server.api.served import Served

# OpenAI's categories. The prober was not trained to tell them apart: they are there, and apply to no type of input.
OPENAI_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


class CompletionAnswer:
    """One answer to a legacy completion request; whole answer and chunk are the same object."""

    def __init__(self, answer_id: str, choices: Choices, completion: CompletionRequest, served: Served) -> None:
        self.choices = choices
        self.streamed = bool(completion.stream)
        self._completion = completion
        self._served = served
        self._id = answer_id
        self._created = int(time.time())
        self._fingerprint = served.fingerprint(choices.generations[0].request.policy)
        self._offsets = [0] * len(choices.generations)  # characters of each choice that are told already
        self._templates: dict[Generation, Template] = {}
        self._echoes = self._echoed() if completion.echo else [""] * len(choices.generations)

    def _echoed(self) -> list[str]:
        texts = [
            prompt if isinstance(prompt, str) else self._served.decoder.decode(prompt)
            for prompt in self._completion.prompts
        ]
        return [text for text in texts for _ in range(self._completion.choices)]

    @property
    def headers(self) -> dict[str, str]:
        """Verdict and score of the worst prompt, where the policy shows them."""
        requests = [leader.request for leader in self.choices.leaders]
        decided = [request.decision for request in requests if request.decision is not None]
        if not decided or not requests[0].policy.expose_scores:
            return {}
        return verdict_headers(max(decided, key=lambda decision: (decision.flagged, decision.score or 0.0)))

    def whole(self, pieces: Sequence[Piece]) -> Completion:
        """The `text_completion` object."""
        choices = [
            self._choice(generation, Piece(echo + piece.text, piece.entries), finished=True)
            for generation, echo, piece in zip(self.choices.generations, self._echoes, pieces, strict=True)
        ]
        return {**self._object(choices), "usage": usage_of(self.choices)}

    def first_chunks(self) -> list[Completion]:
        """The prompts, if they are to be echoed."""
        return [
            self._chunk(generation, Piece(echo, []))
            for generation, echo in zip(self.choices.generations, self._echoes, strict=True)
            if echo
        ]

    def piece(self, generation: Generation, piece: Piece) -> bytes:
        """A piece of a choice."""
        if self._completion.logprobs is not None:
            return event(self._chunk(generation, piece))
        template = self._templates.get(generation)
        if template is None:
            template = self._templates[generation] = Template(self._chunk(generation, Piece(HOLE, [])))
        return template.filled(piece.text)

    def last_chunk(self, generation: Generation) -> Completion:
        """The chunk that says why a choice ended."""
        return self._chunk(generation, Piece("", []), finished=True)

    def usage_chunks(self) -> list[Completion]:
        """The chunk after the last one, if the request wants usage."""
        if not self._completion.include_usage:
            return []
        return [{**self._object([]), "usage": usage_of(self.choices)}]

    def _chunk(self, generation: Generation, piece: Piece, *, finished: bool = False) -> Completion:
        chunk = self._object([self._choice(generation, piece, finished=finished)])
        if self._completion.include_usage:
            chunk["usage"] = None
        return chunk

    def _object(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }

    def _choice(self, generation: Generation, piece: Piece, *, finished: bool) -> CompletionChoice:
        return {
            "index": generation.index,
            "text": piece.text,
            "logprobs": self._logprobs(generation, piece),
            "finish_reason": finish_reason(generation) if finished else None,
        }

    def _logprobs(self, generation: Generation, piece: Piece) -> CompletionLogprobs | None:
        if self._completion.logprobs is None:
            return None
        tokens = [entry.data.decode(errors="replace") for entry in piece.entries]
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[generation.index])
            self._offsets[generation.index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in piece.entries],
            "top_logprobs": [_likeliest(entry) for entry in piece.entries],
            "text_offset": offsets,
        }


def _likeliest(entry: Entry) -> dict[str, float]:
    """The likeliest tokens by their text, and the token itself wherever it is in their order."""
    own = {entry.data.decode(errors="replace"): entry.logprob}
    return {token.decode(errors="replace"): logprob for token, logprob in entry.top} | own


class ModerationAnswer:
    """The answer to a moderation request: a result for each input."""

    def __init__(self, answer_id: str, choices: Choices, served: Served) -> None:
        self.choices = choices
        self.headers: dict[str, str] = {}
        self._id = answer_id
        self._served = served

    def whole(self, pieces: Sequence[Piece]) -> ModerationsObject:
        """The moderations object; nothing was said, so the pieces are empty."""
        assert not any(piece.text for piece in pieces)
        results = [moderation_result(generation.request) for generation in self.choices.generations]
        return {
            "id": self._id,
            "model": self._served.name,
            "results": [_with_openai_s(each) for each in results if each],
        }


def _with_openai_s(result: ModerationResult) -> ModerationResult:
    return {
        "flagged": result["flagged"],
        "categories": {**dict.fromkeys(OPENAI_CATEGORIES, False), **result["categories"]},
        "category_scores": {**dict.fromkeys(OPENAI_CATEGORIES, 0.0), **result["category_scores"]},
        "category_applied_input_types": {
            **{category: [] for category in OPENAI_CATEGORIES},
            **result["category_applied_input_types"],
        },
    }
