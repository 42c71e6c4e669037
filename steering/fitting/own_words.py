"""Words of the model's own: what it takes users to say, drawn behind the header of a user's turn.

A model that was taught to answer knows what it is asked, far more ways of it than any list of sentences has (Magpie,
arXiv 2406.08464). A fit pads its rows with such words, and takes them for harmless prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from models.backbone import Backbone
from models.prompt import Prompt
from steering.fitting.collect import Tick
from steering.fitting.offline import batches, decoded

MOST_TOKENS = 128  # of a text
LEAST_WORDS = 5  # fewer say nothing


def own_words(backbone: Backbone, seed: int, tick: Tick, count: int) -> list[str]:
    """What the model says in a user's place, at temperature 1; fewer texts where some have too few words.

    None where the template puts nothing before a user's words.
    """
    if not (header := _header(backbone)):
        return []
    backbone.forget_prompts()  # what earlier prompts left would round otherwise where a fit is started again
    chance = torch.Generator().manual_seed(seed)
    found: list[str] = []
    for some in batches(range(count), backbone.max_rows):
        found += _drawn(backbone, header, len(some), chance)
        tick(len(some))
    return [text for text in found if len(text.split()) >= LEAST_WORDS]


def _header(backbone: Backbone) -> list[int]:
    """The tokens that stand before the words of a user who begins a chat."""
    chats = [
        backbone.inputs.build([{"role": "user", "content": [{"type": "text", "text": words}]}], []).ids
        for words in ("What is rain?", "Name two rivers", "\n\n3")
    ]
    return [token for token, *_ in takewhile(lambda tokens: len({*tokens}) == 1, zip(*chats, strict=False))]


@torch.no_grad()
def _drawn(backbone: Backbone, header: Sequence[int], count: int, chance: torch.Generator) -> list[str]:
    def choose(logits: Tensor, live: Sequence[int]) -> Tensor:  # noqa: ARG001
        return torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=chance)[:, 0].to(logits.device)

    most = min(MOST_TOKENS, backbone.info.context_length - len(header))
    rows = [backbone.open_row(Prompt([*header], {}, 0), most) for _ in range(count)]
    try:
        ids: list[list[int]] = [[] for _ in rows]
        hidden = backbone.prefill(rows)
        for step in decoded(backbone, rows, hidden, None, hidden.new_zeros(count), most, choose):
            for place, token in zip(step.live, step.chosen.tolist(), strict=True):
                ids[place].append(token)
    finally:
        for row in rows:
            backbone.close_row(row)
    return [" ".join(backbone.tokenizer.decode(each, skip_special_tokens=True).split()) for each in ids]
