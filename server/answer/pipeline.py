"""An answer's way from tokens to deltas: token -> detokenizer -> stop scan -> gate -> parser -> delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.answer.delta import Delta, Kind
from server.answer.detokenizer import Detokenizer
from server.answer.gate import OpenGate, RefusalGate, gate_of
from server.answer.logprobs import LogprobsInStep
from server.answer.parser import Parser, PlainText
from server.answer.stop_scan import StopScan
from server.answer.text_decoder import TextDecoder
from steering.policy import UNWATCHED, OutputPolicy

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
        output: OutputPolicy = UNWATCHED,
        refusal: str = "",
    ) -> None:
        self._decoder = decoder
        self._parser: Parser = parser or PlainText(Kind.TEXT)
        self._detokenizer = Detokenizer(decoder, self._parser.marks)
        self._scan = StopScan(stops)
        self._output = output
        self._refusal = refusal
        self._gate = gate_of(output)
        self._logprobs = LogprobsInStep(decoder) if logprobs else None

    @classmethod
    def of(
        cls,
        request: Request,
        decoder: TextDecoder,
        stops: Sequence[str],
        parser: Callable[[], Parser] = lambda: PlainText(Kind.TEXT),
    ) -> Pipeline:
        """The stages that a request's answer passes."""
        logprobs, policy = request.ask.params.logprobs is not None, request.policy
        return cls(decoder, stops, logprobs=logprobs, parser=parser(), output=policy.output, refusal=policy.refusal)

    @property
    def held(self) -> int:
        """Tokens whose text is held back."""
        return self._gate.held

    @property
    def holds(self) -> bool:
        """Whether text is held back until it is cleared."""
        return not isinstance(self._gate, OpenGate)

    @property
    def unrefused(self) -> bool:
        """Whether what is to be a refusal has not begun as one."""
        return isinstance(self._gate, RefusalGate) and not self._gate.begun

    @property
    def failed(self) -> bool:
        """Whether what is to be a refusal will not be one."""
        return isinstance(self._gate, RefusalGate) and self._gate.failed

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met."""
        return self._scan.met is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that was met, if one was."""
        return self._scan.met

    def push(self, token: int, logprobs: Logprobs | None) -> Sequence[Delta]:
        """The deltas that are certain now, after one more token; often none."""
        if self._logprobs is not None and logprobs is not None:
            self._logprobs.push(token, logprobs)
        return self._show(self._gate.push(self._scan.push(self._detokenizer.push(token))))

    def refuse(self) -> Sequence[Delta]:
        """The guard acts: what comes from here on is a refusal, and nothing that is held back is shown any more.

        A refusal is said in full: the stop strings were the client's, for its answer. It is shown from when it has
        begun as one, whether or not anything reads answers, unless the policy leaves answers alone or has no text.
        """
        deltas = [*self._cut(), *self._parser.apart()]
        self._detokenizer = Detokenizer(self._decoder)
        self._scan = StopScan(())
        alone = self._output.left_alone or not self._refusal
        self._gate = OpenGate() if alone else RefusalGate(gate_of(self._output), self._refusal)
        self._parser = PlainText(Kind.REFUSAL)
        return deltas

    def say(self, text: str) -> Sequence[Delta]:
        """Text that is not the model's, after all of its own that is shown; nothing that is held back is."""
        deltas = [*self._cut(), *self._parser.apart()]
        self._gate = OpenGate()
        return [*deltas, *self._parser.push(text, ())]

    def drop(self) -> Sequence[Delta]:
        """End the answer, and show nothing that is held back."""
        self._gate = OpenGate()
        return self._cut()

    def finish(self) -> Sequence[Delta]:
        """The rest, after the last token, which has been cleared."""
        rest = self._scan.push(self._detokenizer.finish()) + self._scan.finish()
        deltas = [*self._show(self._gate.push(rest) + self._gate.finish())]
        if self._logprobs is not None and (cut := self._logprobs.finish()):
            deltas += self._parser.push("", cut)
        return [*deltas, *self._parser.finish()]

    def _show(self, text: str) -> Sequence[Delta]:
        if not text:
            return ()
        return self._parser.push(text, self._logprobs.release(text) if self._logprobs is not None else ())

    def _cut(self) -> Sequence[Delta]:
        """The entry of a token that was shown in part; those of others that are held back are forgotten."""
        if self._logprobs is None:
            return ()
        cut, self._logprobs = self._logprobs.finish(), LogprobsInStep(self._decoder)
        return self._parser.push("", cut) if cut else ()
