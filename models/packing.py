"""Prompts that begin alike in one row: the prefix runs once, and each prompt's own end sees it and itself alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.prompt import Prompt

_ROW = 512  # tokens that may stand in one row in any case


@dataclass(frozen=True)
class Packed:
    """One row: the prefix of `shared` tokens, which holds all images, then the rest of each prompt."""

    prompts: Sequence[Prompt]
    shared: int
    last: int = 1  # tokens at the end of each prompt that are read

    @classmethod
    def of(cls, prompts: Sequence[Prompt], image_token_id: int, *, share: bool, last: int = 1) -> list[Packed]:
        """One row for prompts with the same images, or a row each where they have nothing to share."""
        shared = _common([prompt.ids for prompt in prompts]) if share and len(prompts) > 1 else 0
        # What is read of a prompt is its own, or there would be no place to read it at.
        shared = max(0, min(shared, *(len(prompt.ids) - last for prompt in prompts)))
        inside = prompts[0].ids[:shared].count(image_token_id)
        total = shared + sum(len(prompt.ids) - shared for prompt in prompts)
        # Each token meets each other one in the mask: long ends beside a short prefix cost more than they save.
        too_long = total > max(_ROW, 2 * shared)
        if shared == 0 or too_long or any(prompt.image_tokens != inside for prompt in prompts):
            return [cls([prompt], 0, last) for prompt in prompts]
        return [cls(prompts, shared, last)]

    @property
    def ids(self) -> list[int]:
        """The row's tokens."""
        return [*self.prompts[0].ids[: self.shared], *(token for tail in self._tails() for token in tail)]

    @property
    def ends(self) -> list[int]:
        """Places in the row of the tokens that are read, prompt by prompt."""
        ends: list[int] = []
        end = self.shared
        for tail in self._tails():
            end += len(tail)
            ends += range(end - self.last, end)
        return ends

    def _tails(self) -> Iterator[Sequence[int]]:
        return (prompt.ids[self.shared :] for prompt in self.prompts)

    @staticmethod
    def positions(packs: Sequence[Packed]) -> Tensor:
        """Each token's place in its own prompt, `[B, T]`; 0 where rows are padded."""
        return _filled(
            [[*range(p.shared), *(p.shared + n for t in p._tails() for n in range(len(t)))] for p in packs], 0
        )

    @staticmethod
    def mask(packs: Sequence[Packed]) -> Tensor:
        """What each token sees, `[B, 1, T, T]`: of what stands before it, the prefix and its own prompt."""
        owners = [[0] * p.shared + [n for n, t in enumerate(p._tails(), start=1) for _ in t] for p in packs]
        owner = _filled(owners, -1)  # padding sees padding: a token that sees nothing would become no number
        seen = (owner[:, :, None] == owner[:, None, :]) | ((owner[:, None, :] == 0) & (owner[:, :, None] > 0))
        return (seen & torch.ones(seen.shape[1:], dtype=torch.bool).tril())[:, None]


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Length of what all begin with."""
    alike = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        alike += 1
    return alike


def _filled(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
