"""Checkpoints of the paper's own code as a bundle: its prober has two softmax outputs, its head is one matrix W."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from models.backbone import BackboneInfo
from steering.bundle import save_bundle
from steering.errors import BundleError
from steering.files import digest
from steering.head import RefusalHead
from steering.manifest import Manifest, ModelBinding
from steering.prober import Prober
from steering.readers import LastToken


def import_checkpoints(
    prober: Path,
    head: Path,
    layer: int,
    info: BackboneInfo,
    out: Path,
    *,
    threshold: float,
    eps: float,
    refusal: str,
) -> None:
    """Write a bundle that scores and steers as the checkpoints do. Raises BundleError naming what does not fit."""
    if not 0 <= layer <= info.num_layers:
        raise BundleError(f"layer {layer} is not one of 0..{info.num_layers}")
    ours, matrix = read_prober(prober, info.hidden_size), read_head(head, info.hidden_size)
    manifest = Manifest(
        model=ModelBinding.of(info),
        layer=layer,
        prober_hidden=ours.hidden,
        layers=[],
        thresholds=[],
        threshold=threshold,
        eps=eps,
        refusal=refusal,
        validation={},
        data_hash=digest(prober.read_bytes() + head.read_bytes()),
        data_size=0,
        versions={"torch": torch.__version__},
        date=datetime.now(UTC).date().isoformat(),
        tensors_hash="",
    )
    save_bundle(out, manifest, LastToken(ours), matrix, {})


def read_prober(path: Path, hidden_size: int) -> Prober:
    """`Linear(d, k) ReLU Linear(k, 2) softmax`, class 0 toxic: softmax(z)[0] = sigmoid(z[0] - z[1])."""
    tensors = dict(_tensors(_load(path)))
    weights = [tensor for tensor in tensors.values() if tensor.ndim == 2]
    biases = [tensor for tensor in tensors.values() if tensor.ndim == 1]
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    first = next((weight for weight in weights if weight.shape[1] == hidden_size and len(weight) != 2), None)
    if first is None:
        raise BundleError(f"{path}: no first layer of width {hidden_size}; it has {shapes}")
    k = len(first)
    second = next((weight for weight in weights if tuple(weight.shape) == (2, k)), None)
    sized = {len(bias): bias for bias in biases}
    if second is None or sized.keys() < {k, 2} or len(weights) != 2:
        raise BundleError(f"{path}: not a prober d -> {k} -> 2; it has {shapes}")
    prober = Prober(hidden_size, k)
    assert isinstance(prober.second, nn.Linear)
    with torch.no_grad():
        prober.first.weight.copy_(first)
        prober.first.bias.copy_(sized[k])
        prober.second.weight.copy_((second[0] - second[1])[None])
        prober.second.bias.copy_((sized[2][0] - sized[2][1])[None])
    return prober.requires_grad_(requires_grad=False)


def read_head(path: Path, hidden_size: int) -> RefusalHead:
    """One matrix W `[d, d]`; logits `h (E + eps E W)^T`."""
    square = [tensor for _, tensor in _tensors(_load(path)) if tuple(tensor.shape) == (hidden_size, hidden_size)]
    if len(square) != 1:
        raise BundleError(f"{path}: {len(square)} matrices of {hidden_size} x {hidden_size}, expected one")
    head = RefusalHead(hidden_size)
    with torch.no_grad():
        head.weight.copy_(square[0])
    return head.requires_grad_(requires_grad=False)


def _load(path: Path) -> object:
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise BundleError(f"{path} is no checkpoint of tensors alone: {str(error).splitlines()[0]}") from error
    return loaded


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, however deep its dicts."""
    if isinstance(value, Tensor):
        yield name, value.float()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
