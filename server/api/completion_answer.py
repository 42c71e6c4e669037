"""OpenAI's object of a legacy completion, whole or as chunks."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import ClassVar

from server.answer.choices import Choices
from server.answer.delta import Delta
from server.answer.generation import Generation
from server.answer.logprobs import Entry
from server.api.answer import finish_reason, ignored_headers, usage_of, verdict_headers
from server.api.completion_request import CompletionRequest
from server.api.events import DONE, HOLE, KEEP_ALIVE, Template, event
from server.api.objects import Completion, CompletionChoice, CompletionLogprobs
from server.api.served import Served
from server.errors import ApiError


class CompletionAnswer:
    """One answer to a legacy completion request; whole answer and chunk are the same object."""

    keep_alive: ClassVar[bytes] = KEEP_ALIVE

    def __init__(
        self,
        answer_id: str,
        choices: Choices,
        completion: CompletionRequest,
        served: Served,
        ignored: Collection[str],
    ) -> None:
        self.choices = choices
        self._ignored = ignored_headers(ignored)
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
        """Verdict and score of the worst prompt, where the policy shows them; the hints that were given."""
        requests = [leader.request for leader in self.choices.leaders]
        decided = [request.decision for request in requests if request.decision is not None]
        if not decided or not requests[0].policy.expose_scores:
            return self._ignored
        worst = max(decided, key=lambda decision: (decision.flagged, decision.score or 0.0))
        return verdict_headers(worst) | self._ignored

    @property
    def stream(self) -> CompletionAnswer | None:
        """Itself, where chunks are asked for."""
        return self if self._completion.stream else None

    def whole(self) -> Completion:
        """The `text_completion` object."""
        choices: list[CompletionChoice] = []
        for generation, echo in zip(self.choices.generations, self._echoes, strict=True):
            deltas = generation.take()
            text = echo + "".join(delta.text for delta in deltas)
            entries = [entry for delta in deltas for entry in delta.entries]
            choices.append(self._choice(generation, text, entries, finished=True))
        return {**self._object(choices), "usage": usage_of(self.choices)}

    def opening(self) -> bytes:
        """The prompts, if they are to be echoed."""
        each = zip(self.choices.generations, self._echoes, strict=True)
        return b"".join(event(self._chunk(generation, echo)) for generation, echo in each if echo)

    def delta(self, generation: Generation, delta: Delta) -> bytes:
        """A chunk with a piece of a choice; a refusal is text like any other."""
        if self._completion.logprobs is not None or self._completion.usage_in_chunks:
            return event(self._chunk(generation, delta.text, delta.entries))
        template = self._templates.get(generation)
        if template is None:
            template = self._templates[generation] = Template(self._chunk(generation, HOLE))
        return template.filled(delta.text)

    def choice_end(self, generation: Generation) -> bytes:
        """The chunk that says why a choice ended."""
        return event(self._chunk(generation, "", finished=True))

    def end(self) -> bytes:
        """Usage, if the request wants it, and `[DONE]`."""
        if not self._completion.include_usage:
            return DONE
        return event({**self._object([]), "usage": usage_of(self.choices)}) + DONE

    def failed(self, failure: ApiError) -> bytes:
        """The error object, and `[DONE]`."""
        return event(failure.body) + DONE

    def _chunk(
        self, generation: Generation, text: str, entries: Sequence[Entry] = (), *, finished: bool = False
    ) -> Completion:
        chunk = self._object([self._choice(generation, text, entries, finished=finished)])
        if self._completion.usage_in_chunks:
            chunk["usage"] = usage_of(self.choices)
        elif self._completion.include_usage:
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

    def _choice(
        self, generation: Generation, text: str, entries: Sequence[Entry], *, finished: bool
    ) -> CompletionChoice:
        return {
            "index": generation.index,
            "text": text,
            "logprobs": self._logprobs(generation, entries),
            "finish_reason": finish_reason(generation) if finished else None,
        }

    def _logprobs(self, generation: Generation, entries: Sequence[Entry]) -> CompletionLogprobs | None:
        if self._completion.logprobs is None:
            return None
        tokens = [entry.data.decode(errors="replace") for entry in entries]
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[generation.index])
            self._offsets[generation.index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [_likeliest(entry) for entry in entries],
            "text_offset": offsets,
        }


def _likeliest(entry: Entry) -> dict[str, float]:
    """The likeliest tokens by their text, and the token itself wherever it is in their order."""
    own = {entry.data.decode(errors="replace"): entry.logprob}
    return {token.decode(errors="replace"): logprob for token, logprob in entry.top} | own
