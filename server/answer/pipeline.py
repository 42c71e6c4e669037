"""An answer's way from tokens to deltas: token -> detokenizer -> stop scan -> gate -> parser -> delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.answer.delta import Delta, Kind
from server.answer.detokenizer import Detokenizer
from server.answer.gate import Gate, OpenGate
from server.answer.logprobs import LogprobsInStep
from server.answer.parser import Parser, PlainText
from server.answer.stop_scan import StopScan
from server.answer.text_decoder import TextDecoder

if TYPE_CHECKING:
    from models.sampling import Logprobs
    from server.request import Request


class Pipeline:
    """The stages of one answer. `push` every token, `refuse` where the guard acts, then `finish`.

    Once `stopped`, nothing more comes. Log-probabilities follow the text: a token's entry leaves with the last of the
    text that passed the gate.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        stops: Sequence[str] = (),
        *,
        logprobs: bool = False,
        parser: Parser | None = None,
    ) -> None:
        self._decoder = decoder
        self._detokenizer = Detokenizer(decoder)
        self._scan = StopScan(stops)
        self._gate: Gate = OpenGate()
        self._logprobs = LogprobsInStep(decoder) if logprobs else None
        self._parser: Parser = parser or PlainText(Kind.TEXT)

    @classmethod
    def of(
        cls,
        request: Request,
        decoder: TextDecoder,
        stops: Sequence[str],
        parser: Callable[[], Parser] = lambda: PlainText(Kind.TEXT),
    ) -> Pipeline:
        """The stages that a request's answer passes."""
        return cls(decoder, stops, logprobs=request.ask.params.logprobs is not None, parser=parser())

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self._scan.stopped

    def push(self, token: int, logprobs: Logprobs | None) -> Sequence[Delta]:
        """The deltas that are certain now, after one more token; often none."""
        if self._logprobs is not None and logprobs is not None:
            self._logprobs.push(token, logprobs)
        return self._show(self._gate.push(self._scan.push(self._detokenizer.push(token))))

    def refuse(self) -> None:
        """The guard acts: what comes from here on is a refusal, and nothing that is held back is shown any more.

        A refusal is said in full: the stop strings were the client's, for its answer.
        """
        self._detokenizer = Detokenizer(self._decoder)
        self._scan = StopScan(())
        self._gate = OpenGate()
        if self._logprobs is not None:
            self._logprobs = LogprobsInStep(self._decoder)
        self._parser = PlainText(Kind.REFUSAL)

    def say(self, text: str) -> Sequence[Delta]:
        """Text that is not the model's, after all of its own."""
        return self._parser.push(text, ())

    def finish(self) -> Sequence[Delta]:
        """The rest, after the last token."""
        rest = self._scan.push(self._detokenizer.finish()) + self._scan.finish()
        deltas = [*self._show(self._gate.push(rest) + self._gate.finish())]
        if self._logprobs is not None and (cut := self._logprobs.finish()):
            deltas += self._parser.push("", cut)
        return [*deltas, *self._parser.finish()]

    def _show(self, text: str) -> Sequence[Delta]:
        if not text:
            return ()
        return self._parser.push(text, self._logprobs.release(text) if self._logprobs is not None else ())
