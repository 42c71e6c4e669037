"""OpenAI's object of a legacy completion, whole or as chunks."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar, NamedTuple

from server.answer.choices import Choices
from server.answer.delta import Delta
from server.answer.generation import Generation
from server.answer.logprobs import Entry
from server.api.answer import finish_reason, ignored_headers, usage_of, verdict_headers
from server.api.completion_request import CompletionRequest
from server.api.events import DONE, HOLE, KEEP_ALIVE, Template, event
from server.api.objects import Completion, CompletionChoice, CompletionLogprobs, FinishReason
from server.api.served import Served
from server.errors import ApiError


class Token(NamedTuple):
    """A token of a prompt or of an answer as `logprobs` tells it; without numbers where there are none."""

    text: str
    logprob: float | None = None
    likeliest: dict[str, float] | None = None

    @classmethod
    def of(cls, data: bytes, logprob: float, top: Sequence[tuple[bytes, float]]) -> Token:
        """A token with the likeliest ones by their text, itself among them wherever it is in their order."""
        text = data.decode(errors="replace")
        return cls(text, logprob, {token.decode(errors="replace"): log for token, log in top} | {text: logprob})


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
        self._begun: set[Generation] = set()  # of whose answers a token's log-probability is told
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
        """The answer itself, which frames its chunks; None where none are asked for."""
        return self if self._completion.stream else None

    def whole(self) -> Completion:
        """The `text_completion` object."""
        choices: list[CompletionChoice] = []
        for generation, echo in zip(self.choices.generations, self._echoes, strict=True):
            deltas = generation.take()
            text = echo + "".join(delta.text for delta in deltas)
            entries = [entry for delta in deltas for entry in delta.entries]
            tokens = [*self._echoed_tokens(generation), *self._tokens(generation, entries, finished=True)]
            choices.append(self._choice(generation, text, tokens, finished=True))
        return {**self._object(choices), "usage": usage_of(self.choices)}

    def opening(self) -> bytes:
        """The prompts, if they are to be echoed."""
        each = zip(self.choices.generations, self._echoes, strict=True)
        chunks = [
            self._chunk(generation, echo, [*self._echoed_tokens(generation)]) for generation, echo in each if echo
        ]
        return b"".join(event(chunk) for chunk in chunks)

    def delta(self, generation: Generation, delta: Delta) -> bytes:
        """A chunk with a piece of a choice; a refusal is text like any other."""
        if self._completion.logprobs is not None or self._completion.usage_in_chunks:
            return event(self._chunk(generation, delta.text, self._tokens(generation, delta.entries)))
        template = self._templates.get(generation)
        if template is None:
            template = self._templates[generation] = Template(self._chunk(generation, HOLE))
        return template.filled(delta.text)

    def choice_end(self, generation: Generation) -> bytes:
        """The chunk that says why a choice ended."""
        tokens = self._tokens(generation, (), finished=True)
        return event(self._chunk(generation, "", tokens, finished=True))

    def end(self) -> bytes:
        """Usage, if the request wants it, and `[DONE]`."""
        if not self._completion.include_usage:
            return DONE
        return event({**self._object([]), "usage": usage_of(self.choices)}) + DONE

    def failed(self, failure: ApiError) -> bytes:
        """The error object, and `[DONE]`."""
        return event(failure.body) + DONE

    def _chunk(
        self, generation: Generation, text: str, tokens: Sequence[Token] = (), *, finished: bool = False
    ) -> Completion:
        chunk = self._object([self._choice(generation, text, tokens, finished=finished)])
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
        self, generation: Generation, text: str, tokens: Sequence[Token], *, finished: bool
    ) -> CompletionChoice:
        return {
            "index": generation.index,
            "text": text,
            "logprobs": self._logprobs(generation, tokens),
            "finish_reason": self._finish_reason(generation) if finished else None,
        }

    def _finish_reason(self, generation: Generation) -> FinishReason:
        reason = finish_reason(generation)
        return "length" if reason == "stop" and self._completion.max_tokens == 0 else reason

    def _tokens(self, generation: Generation, entries: Sequence[Entry], *, finished: bool = False) -> list[Token]:
        """Tokens of an answer. Beside an echo, an empty one stands for an answer that ends before its first.

        Harnesses ask for one token after a prompt, and cut one off.
        """
        if entries:
            self._begun.add(generation)
        echoing = self._completion.prompt_logprobs is not None and self._completion.max_tokens != 0
        if finished and echoing and generation not in self._begun:
            return [Token("")]
        return [Token.of(entry.data, entry.logprob, entry.top) for entry in entries]

    def _echoed_tokens(self, generation: Generation) -> Iterator[Token]:
        """Tokens of the prompt: no number for the first, nor for any of a prompt that the guard has blocked."""
        if self._completion.prompt_logprobs is None:
            return
        decoder = self._served.decoder
        request = self.choices.generations[generation.index - generation.index % self._completion.choices].request
        ids, found = request.prompt.ids, request.prompt_logprobs
        texts = [b"" if token in decoder.special else decoder.bytes_of(token) for token in ids]
        yield Token(texts[0].decode(errors="replace"))
        for place, text in enumerate(texts[1:]):
            if found is None:
                yield Token(text.decode(errors="replace"))
            else:
                yield Token.of(text, found[place].token, [(decoder.bytes_of(i), log) for i, log in found[place].top])

    def _logprobs(self, generation: Generation, tokens: Sequence[Token]) -> CompletionLogprobs | None:
        if self._completion.logprobs is None:
            return None
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[generation.index])
            self._offsets[generation.index] += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [token.likeliest for token in tokens],
            "text_offset": offsets,
        }
