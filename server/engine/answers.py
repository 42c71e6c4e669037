"""What is done about answers while they are generated: each token's score, and what follows where one is flagged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from models.layout import Layout
from models.reading import PromptReader
from server.engine.judged import JudgedRequest
from steering.answers import AnswerReader
from steering.policy import AnswerDecision, Fallback, Mode, Verdict, is_flagged
from steering.refusals import REFUSAL_TOKENS
from steering.shadow import Beside, Shadow

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=JudgedRequest)


class Answers:
    """Reads the answers whose policies say so, each token in the pass that computes it. Keeps nothing of a request.

    `layout`: finds the layout of a prompt's token ids. `shadow`: may read them as well, whatever the policies say.
    """

    def __init__(
        self, reader: AnswerReader | None, layout: Callable[[Sequence[int]], Layout], shadow: Shadow | None = None
    ) -> None:
        self._reader = reader
        self._layout = layout
        self._shadow = shadow
        self._reading = read_beside(reader, shadow)

    @property
    def layers(self) -> Sequence[int] | None:
        """The layers whose states are read; None: nothing is read."""
        return None if self._reading is None else self._reading.layers

    def watched(self, requests: Iterable[JudgedRequest]) -> bool:
        """Whether the next pass, of these, computes a token that is to be read."""
        if self._reading is None:
            return False
        return any(each.output_ids and (each.watch or each.shadow_watch) is not None for each in requests)

    def read(self, states: Tensor) -> Tensor:
        """What is read of tokens, `[N, width]`, of their states `[N, layers, d]`: no numbers where reading fails.

        The acting guard's number first, the shadow's last; there may be one of them alone.
        """
        assert self._reading is not None, "nothing is read"
        return read_answers(self._reading, states)

    def decide(self, requests: Sequence[R], read: Sequence[Sequence[float]]) -> Mapping[R, AnswerDecision]:
        """What follows for those that are flagged now, after one more token each, of which these values were read."""
        decisions = {}
        for request, values in zip(requests, read, strict=True):
            if not request.output_ids:
                continue  # the last token is of the prompt
            if request.shadow_watch is not None:
                request.shadow_watch.push(values[-1])
            watch = request.watch
            if watch is None:
                continue
            assert watch.tokens == len(request.output_ids) - 1, f"{watch.tokens} of {len(request.output_ids)} were read"
            score = watch.push(values[0])
            if request.ask.scores:
                request.answer_scores.append(watch.alone(values[0]))
            known = request.answer is not None and request.answer.verdict is Verdict.MONITORED
            if not known and is_flagged(score, request.policy.output.threshold):
                decisions[request] = self._decided(request, score)
        return decisions

    def begin_refusal(self, request: JudgedRequest) -> None:
        """A flagged answer goes on as a refusal: bent, and read anew, by the shadow no more."""
        assert self._reader is not None, "nothing is read"
        assert request.decision is not None, f"request {request.id} has no decision"
        score = request.decision.score
        assert score is not None, f"the prompt of request {request.id} was not scored"
        self.end_shadow(request)
        request.kept += _shown(request)
        request.bent = request.policy.eps
        request.output_ids.clear()
        request.be_refused()
        request.watch = self._reader.watch(score)

    def end_shadow(self, request: JudgedRequest) -> None:
        """Keep what the shadow would have decided on an answer as far as it has read it; it reads no more of it."""
        watch, request.shadow_watch = request.shadow_watch, None
        # What it could not read it does not judge, which the log has told.
        if watch is not None and self._shadow is not None and watch.tokens and not math.isnan(watch.score):
            request.shadow_answer = self._shadow.judge_answer(watch.score, watch.tokens)

    def _decided(self, request: JudgedRequest, score: float) -> AnswerDecision:
        tokens = len(request.output_ids)
        if request.policy.output.mode is Mode.MONITOR:
            return AnswerDecision(Verdict.MONITORED, score, tokens)
        fallback = self._fallback(request, score)
        return AnswerDecision(Verdict.STEERED if fallback is None else Verdict.BLOCKED, score, tokens, fallback)

    def _fallback(self, request: JudgedRequest, score: float) -> Fallback | None:
        """Why a flagged answer cannot go on as a refusal in the model's words; None where it can."""
        output = request.policy.output
        reasons = {
            Fallback.MODE: output.mode is Mode.BLOCK,
            Fallback.AGAIN: request.eps != 0,
            Fallback.UNREADABLE: math.isnan(score),
            Fallback.CERTAIN: output.certain is not None and score >= output.certain,
            Fallback.GRAMMAR: request.ask.schema is not None,
            Fallback.SHORT: request.max_tokens - _shown(request) < REFUSAL_TOKENS,
            Fallback.PREFILL: self._layout(request.prompt.ids).begun,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)


def read_beside(reader: AnswerReader | None, shadow: Shadow | None) -> PromptReader | None:
    """What reads answers for an acting guard and a shadow, one of them, or None for neither."""
    shadowing = None if shadow is None else shadow.answers
    if reader is None or shadowing is None:
        return reader or shadowing
    return Beside(reader, shadowing)


def read_answers(reader: PromptReader, states: Tensor) -> Tensor:
    """What is read of tokens, `[N, width]`, of their states `[N, layers, d]`: no numbers where reading fails."""
    try:
        return reader.read(states)
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.exception("the answers of %d rows could not be read", len(states))
        return states.new_full((len(states), reader.width), math.nan, dtype=torch.float32)


def final(request: JudgedRequest) -> AnswerDecision | None:
    """What became of a watched answer that ends and was not flagged before; else what is known."""
    if request.watch is None or request.answer is not None:
        return request.answer
    return AnswerDecision(Verdict.PASS, request.watch.score, request.watch.tokens)


def _shown(request: JudgedRequest) -> int:
    """How many of its tokens have been shown at most."""
    tokens, hold = len(request.output_ids), request.policy.output.hold
    if isinstance(hold, int):
        return max(0, tokens - hold)
    return 0 if hold == "all" else tokens
