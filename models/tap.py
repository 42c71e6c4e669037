"""Reading the residual stream. The one definition of "layer `l`": `hidden_states[l]` of `transformers`.

Layer 0 is the embeddings that enter the first block, layer `l` what block `l - 1` puts out, and the last layer what the
final norm puts out (not the last block). For every family and every `l` this is the tensor that
`output_hidden_states=True` returns, which a test checks bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Tap:
    """Reads some layers of a decoder at one position per row; hooks exist only while a pass runs inside `at`.

    `states` is `[B, d]` for a tap of one layer and `[B, layers, d]` for a tap of several, in the order asked for.
    """

    def __init__(self, decoder: nn.Module, layers: int | Sequence[int]) -> None:
        self._decoder = decoder
        self._single = isinstance(layers, int)
        self._layers = [layers] if isinstance(layers, int) else list(layers)
        last = len(_blocks(decoder))
        for layer in self._layers:
            if not 0 <= layer <= last:
                raise ValueError(f"layer {layer} is not one of 0..{last}")
        self._states: Tensor | None = None

    @property
    def layers(self) -> list[int]:
        """The layers that are read, in the order of the states."""
        return self._layers

    @property
    def states(self) -> Tensor:
        """The tapped states of the latest pass."""
        assert self._states is not None, "no pass ran inside the tap"
        return self._states

    @contextmanager
    def at(self, positions: Tensor, rows: Tensor | None = None) -> Iterator[None]:
        """Record the next forward pass at `positions` `[B]`, into `states`; of row i each, or of `rows` `[B]`."""
        found: dict[int, Tensor] = {}
        if rows is None:
            rows = torch.arange(len(positions), device=positions.device)

        def keep(layer: int, hidden: Tensor) -> None:
            # Indexing copies: the whole sequence's states are not kept alive, and later in-place changes not seen.
            found[layer] = hidden[rows.to(hidden.device), positions.to(hidden.device)]

        with self._hooked(keep):
            yield
        states = torch.stack([found[layer] for layer in self._layers], dim=1)
        self._states = states[:, 0] if self._single else states

    @contextmanager
    def at_all(self, tokens: int | None = None) -> Iterator[None]:
        """Record the next forward pass over one sequence at all of its tokens, or its first ones, into `states`.

        The states of a layer lie together, and are copied once.
        """
        kept: Tensor | None = None

        def keep(layer: int, hidden: Tensor) -> None:
            nonlocal kept
            states = hidden[0, :tokens]
            if kept is None:
                kept = states.new_empty((len(self._layers), *states.shape))
            for place, wanted in enumerate(self._layers):
                if wanted == layer:
                    kept[place] = states

        with self._hooked(keep):
            yield
        assert kept is not None, "no pass ran inside the tap"
        self._states = kept[0] if self._single else kept.transpose(0, 1)

    def take(self, kept: Mapping[int, Tensor]) -> None:
        """Set `states` to those of each layer `[1, B, d]` that a pass has kept by itself."""
        # Side by side as they are: to stack views of them would take twice as long.
        states = torch.cat([kept[layer] for layer in self._layers], dim=2)
        self._states = states[0] if self._single else states.view(states.shape[1], len(self._layers), -1)

    def put(self, states: Tensor) -> None:
        """Set `states`, where one prefill took several passes."""
        self._states = states

    @contextmanager
    def _hooked(self, keep: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Call `keep` with each layer that is read and all its states in the pass that runs inside."""
        with ExitStack() as hooks:
            for layer in set(self._layers):
                hooks.callback(self._hook(layer, partial(keep, layer)).remove)
            yield

    def _hook(self, layer: int, keep: Callable[[Tensor], None]) -> RemovableHandle:
        def entering(_module: nn.Module, args: tuple[Any, ...]) -> None:
            keep(args[0])

        def leaving(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            keep(output[0] if isinstance(output, tuple) else output)

        blocks = _blocks(self._decoder)
        if layer == 0:
            return blocks[0].register_forward_pre_hook(entering)
        if layer == len(blocks):
            return _norm(self._decoder).register_forward_hook(leaving)
        return blocks[layer - 1].register_forward_hook(leaving)


def _blocks(decoder: nn.Module) -> nn.ModuleList:
    blocks = decoder.layers
    assert isinstance(blocks, nn.ModuleList), f"{type(decoder).__name__} has no list of layers"
    return blocks


def _norm(decoder: nn.Module) -> nn.Module:
    norm = decoder.norm
    assert isinstance(norm, nn.Module), f"{type(decoder).__name__} has no final norm"
    return norm
