"""What long texts cost others: the longest stop of the event loop while one is made a prompt or tokenised.

`python -m benchmarks.texts`; no server and no weights: the bundled tokenizer, in the threads that prepare requests.
`--context` is that of a larger model, which has more to tokenise before it can refuse.
"""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.bodies import stop_while
from models.demo import CHECKPOINT
from models.load import load_inputs
from server.answer.text_decoder import TextDecoder
from server.api.tokens import TokenizeRequest
from server.errors import BadRequest
from server.http.body import as_json
from server.media.images import RequestImages
from server.settings.schema import Settings
from server.workers.lanes import Lane

LENGTH = 2**20 - 100
TEXTS = {
    "words": ("hello there " * (LENGTH // 12)),
    "one letter": "a" * LENGTH,
    "white space": " " * LENGTH,
    "what special tokens begin with": "<" * LENGTH,
    "special tokens": "<image>" * (LENGTH // 7),
    "four bytes each": "\N{GRINNING FACE}" * LENGTH,
}


def requests(text: str) -> dict[str, dict[str, Any]]:
    """Bodies of `/tokenize`, by what they cost."""
    return {
        "prompt": {"prompt": text},
        "prompt, as strings": {"prompt": text, "return_token_strs": True},
        "message": {"messages": [{"role": "user", "content": text}]},
    }


async def outcome_of(body: dict[str, Any], served: Any, lane: Lane) -> str:  # noqa: ANN401
    """What becomes of a request."""
    nothing: Any = None
    images: RequestImages = nothing
    work = partial(TokenizeRequest(**body).counted, served, Settings(), images)
    try:
        tokens = await lane.run(work)
    except BadRequest as error:
        return f"400 {error.code}"
    as_json(tokens)
    return f"{tokens['count']} tokens"


async def measured(context: int) -> Table:
    """A line for each text and request."""
    builder, tokenizer = load_inputs(str(CHECKPOINT))
    builder._max_tokens = context
    info = SimpleNamespace(context_length=context, vocab_size=len(tokenizer))
    served = SimpleNamespace(inputs=builder, info=info, decoder=TextDecoder(tokenizer))
    lane = Lane(2, "prepare")
    table = Table("a megabyte of", "as", "seconds in all", "longest stop, ms", "its own, ms", "outcome")
    for name, text in TEXTS.items():
        for kind, body in requests(text).items():
            took, *stop, outcome = await stop_while(partial(outcome_of, body, served, lane))
            table.add_row(name, kind, f"{took:.3f}", *(f"{each * 1e3:.1f}" for each in stop), outcome)
    lane.close()
    return table


def main(context: Annotated[int, typer.Option(help="Tokens of the model's context.")] = 2048) -> None:
    """Print what each text costs."""
    Console(width=150).print(asyncio.run(measured(context)))


if __name__ == "__main__":
    typer.run(main)
