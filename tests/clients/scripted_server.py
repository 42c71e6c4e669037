"""`python -m tests.clients.scripted_server`: the server on a socket, over an engine that says what clients expect.

HTTP, shapes, grammars and parsers are the real ones. The engine greets, tells what is in a picture, calls the first of
its tools until it has three results, follows a schema, and refuses what holds the word `HARM`.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from llguidance import LLTokenizer

from models.calls import FAMILIES
from models.grammar import plain_json
from models.schema import compile_source, source_of
from models.tool_turns import Reads
from server.app import create_app
from server.cli.main import listen
from server.http.server import HttpServer
from server.request import Finish
from server.settings.schema import Settings
from steering.policy import Verdict
from tests.clients.programs.tasks import DONE, GREETING, HARM, SEEN
from tests.random_schemas import sampled
from tests.server.fakes import as_any
from tests.server.scripted import (
    EOS,
    IMAGE_TOKENS,
    MODEL,
    REFUSAL,
    SECRET_SPECIAL,
    Script,
    ScriptedRunner,
    byte_tokenizer,
)

RESULTS = 3  # of tools, before it is done
TEXT = ord("I")  # begins what is no call and no JSON


class Engine(ScriptedRunner):
    """Answers as the module says; for one client at a time."""

    def __init__(self) -> None:
        super().__init__(answer=self._script)
        self.inputs.reads = Reads(tools=True, turns=True, calls=FAMILIES["hermes"])
        self._vocabulary = LLTokenizer(plain_json(byte_tokenizer()), n_vocab=258, eos_token=[EOS])

    def _script(self, text: str) -> Script:
        request = self.requests[-1]
        if HARM in text:
            return Script.saying(REFUSAL, verdict=Verdict.STEERED, score=0.9, finish=Finish.CONTENT_FILTER)
        schema = request.ask.schema
        if schema is None:
            pictured = list(request.prompt.ids).count(SECRET_SPECIAL) >= IMAGE_TOKENS
            return Script.saying(SEEN if pictured else GREETING)
        if schema.param != "tools":
            return Script(self._drawn(schema.source))
        results = sum(message["role"] == "tool" for message in self.inputs.messages)
        if results >= RESULTS and compile_source(self._vocabulary, schema.source).consume_token(TEXT):
            return Script.saying(DONE)
        return Script.saying(self._call(results))

    def _call(self, results: int) -> str:
        function = self.inputs.tools[0]["function"]
        parameters: dict[str, Any] = function.get("parameters") or {"type": "object", "additionalProperties": False}
        arguments = bytes(self._drawn(source_of(parameters), results)).decode()
        call = json.dumps({"name": function["name"], "arguments": json.loads(arguments)})
        return f"<tool_call>\n{call}\n</tool_call>"

    def _drawn(self, source: str, seed: int = 0) -> list[int]:
        return sampled(compile_source(self._vocabulary, source), Random(seed), EOS)


async def _read_again() -> None:
    """There is no file of settings."""


def main() -> None:
    """Serve on a port of the system's choice, told in one line, until a signal comes."""
    settings, engine = Settings(default_max_tokens=4000, model_aliases=("*",)), Engine()
    application = create_app(settings, as_any(engine), name=MODEL)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    announce = application.state.service.start_processes
    print(f"http://127.0.0.1:{port}", flush=True)
    prepare = application.state.document.body
    server = HttpServer(application, as_any(engine), settings, prepare=prepare, announce=announce, reload=_read_again)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
