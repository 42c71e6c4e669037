"""Less work in the decoder's own modules, with the same weights and the same result.

The library's decorators translate old argument names, fill in defaults and capture states for its own callers, at every
call of every module: some microseconds each, which is a good part of a small model's step. Decoders of the Llama kind
call what is inside a layer without a look for hooks, which only layers and the last norm have. They also have fewer and
larger operations: one product for query, key and value and one for gate and up, one rotation for queries and keys
together, and kernels of our own (`models/operations.py`). On a GPU that is a third of a step's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from models.attention import Pass, paged_attention, rotated
from models.operations import kernels_for

# Those whose weight is used as it is; Gemma's adds 1 to it.
_NORMS = frozenset(
    {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Qwen3VLTextRMSNorm", "ChameleonRMSNorm"}
)
_ATTENTIONS = frozenset({"LlamaAttention", "MistralAttention", "Qwen2Attention"})
_MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in fp32."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        kernels = kernels_for(hidden)
        if kernels is not None:
            return kernels.rms_norm(hidden, self.weight, self.eps)
        return rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class SignedRotary(nn.Module):
    """The model's rotary embedding, with the sign of half a rotation in the sine, where it is needed once a pass."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions `[B, N]`, `[B, N, 1, D]` each."""
        cos, sin = self.rotary(hidden, position_ids)
        below, above = sin.chunk(2, dim=-1)
        return cos[:, :, None], torch.cat((-below, above), dim=-1)[:, :, None]


class Attention(nn.Module):
    """Self-attention of the Llama kind: a stock module's weights, joined."""

    def __init__(self, stock: Any, window: int | None) -> None:  # noqa: ANN401 - a module of transformers
        super().__init__()
        self.layer_idx: int = stock.layer_idx
        self.scaling: float = stock.scaling
        self.is_causal = True
        self.num_key_value_groups: int = stock.num_key_value_groups
        self._window = window
        self._width: int = stock.head_dim
        self._query_heads = stock.q_proj.out_features // stock.head_dim
        self._key_heads = stock.k_proj.out_features // stock.head_dim
        self.joined = Joined([stock.q_proj, stock.k_proj, stock.v_proj])
        self.o_proj = stock.o_proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        paged: Pass | None = None,
        **_options: Any,  # noqa: ANN401  the cache by its names, which a pass is itself
    ) -> tuple[Tensor, None]:
        """Self-attention as the stock module computes it: `[B, N, d]` -> `[B, N, d]`."""
        cos, sin = position_embeddings
        states = self.joined.forward(hidden_states).view(*hidden_states.shape[:-1], -1, self._width)
        if paged is None:
            query, key, value = rotated(states, cos, sin, self._query_heads, self._key_heads)
        else:
            query, key, value = paged.rotate(self.layer_idx, states, cos, sin, self._query_heads)
        output, _ = paged_attention(
            self, query, key, value, attention_mask, paged, scaling=self.scaling, sliding_window=self._window
        )
        return self.o_proj.forward(output.flatten(2)), None


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`: a stock module's weights, joined."""

    def __init__(self, stock: Any) -> None:  # noqa: ANN401 - a module of transformers
        super().__init__()
        self.joined = Joined([stock.gate_proj, stock.up_proj])
        self.down_proj = stock.down_proj
        self.act_fn = stock.act_fn
        self._silu = isinstance(stock.act_fn, nn.SiLU) or type(stock.act_fn).__name__ == "SiLUActivation"

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., d]` -> `[..., d]`."""
        joined = self.joined.forward(hidden)
        kernels = kernels_for(joined) if self._silu else None
        if kernels is not None:
            gated = kernels.gated_silu(joined)
        else:
            gate, up = joined.chunk(2, dim=-1)
            gated = self.act_fn(gate) * up
        result: Tensor = self.down_proj.forward(gated)
        return result


class Joined(nn.Module):
    """Several linear maps of the same input as one, their outputs side by side."""

    def __init__(self, parts: list[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat(tuple(part.weight for part in parts)), requires_grad=False)
        biases = [part.bias for part in parts if part.bias is not None]
        assert len(biases) in (0, len(parts)), "some parts have a bias, some have none"
        self.bias = nn.Parameter(torch.cat(tuple(biases)), requires_grad=False) if biases else None

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in]` -> `[..., sum of out]`."""
        return linear(inputs, self.weight, self.bias)


def _layer(
    layer: Any,  # noqa: ANN401 - a layer of transformers
    hidden: Tensor,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    paged: Pass | None = None,
    **_options: Any,  # noqa: ANN401
) -> Tensor:
    """A layer of the Llama kind, as the stock one."""
    normed = layer.input_layernorm.forward(hidden)
    attended, _ = layer.self_attn.forward(normed, position_embeddings, attention_mask, paged)
    hidden = hidden + attended
    result: Tensor = hidden + layer.mlp.forward(layer.post_attention_layernorm.forward(hidden))
    return result


def _run_layers(decoder: Any) -> None:  # noqa: ANN401 - a transformers decoder of the Llama kind
    """Have a pass go through a decoder's layers and nothing else: it has its embeddings, positions and attention."""
    stock = decoder.forward

    @wraps(stock)
    def forward(
        *arguments: Any,  # noqa: ANN401
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        paged: Pass | None = None,
        keep: Collection[int] = (),
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """`keep`: layers whose states are wanted. Hooks would take longer than all else that reading them does."""
        if paged is None:
            return stock(*arguments, inputs_embeds=inputs_embeds, position_ids=position_ids, **options)
        assert inputs_embeds is not None, "a pass has its embeddings"
        kept: dict[int, Tensor] = {}
        hidden, angles = inputs_embeds, decoder.rotary_emb(inputs_embeds, position_ids)
        for number, layer in enumerate(decoder.layers):  # a reader may have shortened them
            if number in keep:
                kept[number] = hidden
            hidden = layer(hidden, position_embeddings=angles, paged=paged)
        normed = decoder.norm(hidden)
        if (last := len(decoder.layers)) in keep:
            kept[last] = normed
        return SimpleNamespace(last_hidden_state=normed, kept=kept)  # which passes read, and no more

    decoder.forward = forward
    decoder.keeps_states = True


def change_linears(decoder: Any, change: Callable[[nn.Linear | Joined], nn.Module]) -> None:  # noqa: ANN401
    """Replace each linear map of a decoder's layers by what `change` makes of it."""
    for parent in decoder.layers.modules():
        for name, child in [*parent.named_children()]:
            if isinstance(child, (nn.Linear, Joined)):
                setattr(parent, name, change(child))


@torch.no_grad()
def fuse(decoder: Any) -> None:  # noqa: ANN401 - a transformers decoder
    """Replace modules of a decoder by ones that do less work, in place."""
    for module in [*decoder.layers.modules(), decoder]:
        forward = type(module).forward
        if hasattr(forward, "__wrapped__"):
            module.forward = MethodType(inspect.unwrap(forward), module)
    for parent in [*decoder.layers.modules(), decoder]:
        for name, child in parent.named_children():
            if type(child).__name__ in _NORMS:
                setattr(parent, name, RMSNorm(child.weight, child.variance_epsilon))
    if all(type(layer.self_attn).__name__ in _ATTENTIONS for layer in decoder.layers):
        decoder.rotary_emb = SignedRotary(decoder.rotary_emb)
        for layer in decoder.layers:
            window = getattr(layer.self_attn, "sliding_window", None)
            if type(layer.self_attn).__name__ == "MistralAttention":
                window = decoder.config.sliding_window
            layer.self_attn = Attention(layer.self_attn, window)
            layer.forward = MethodType(_layer, layer)
        _run_layers(decoder)
    for layer in decoder.layers:
        if type(layer.mlp).__name__ in _MLPS:
            layer.mlp = GatedMLP(layer.mlp)
    decoder.eval()
