"""Guard bundles: a folder of `guard.json` (`steering.manifest`) and `guard.safetensors`. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from models.info import BackboneInfo
from steering.answers import AnswerReader
from steering.categories import CategoryReader
from steering.errors import BundleError
from steering.files import digest, write_whole
from steering.guard import Guard
from steering.head import RefusalHead
from steering.manifest import MANIFEST, Manifest, load_manifest, read_part
from steering.prober import Prober
from steering.readers import Cell, Conversation, LastToken

TENSORS = "guard.safetensors"


def save_bundle(
    folder: Path,
    manifest: Manifest,
    reader: LastToken | Conversation,
    head: RefusalHead,
    calibration: Mapping[str, Tensor],
    answers: AnswerReader | None = None,
    categories: CategoryReader | None = None,
) -> None:
    """Write a bundle; each file appears whole or not at all. `calibration`: what is kept of a fit's rows, `[N]`."""
    assert (manifest.answers is None) == (answers is None), "manifest and reader of answers go together"
    assert (manifest.categories is None) == (categories is None), "manifest and reader of categories go together"
    folder.mkdir(parents=True, exist_ok=True)
    prompts: Mapping[str, nn.Module] = (
        {"prober": reader.prober} if isinstance(reader, LastToken) else {"conversation": reader}
    )
    modules = {**prompts, "head": head, "answers": answers, "categories": categories}
    parts = {name: module.state_dict() for name, module in modules.items() if module is not None}
    parts["calibration"] = dict(calibration)
    named = {
        f"{part}.{name}": t.detach().cpu().contiguous() for part, state in parts.items() for name, t in state.items()
    }
    data = save_tensors(named)
    manifest = manifest.model_copy(update={"tensors_hash": digest(data)})
    write_whole(folder / TENSORS, data)
    write_whole(folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())


def load_guard(folder: Path, info: BackboneInfo) -> Guard:
    """Load a bundle for a loaded model. Raises BundleError where it is damaged or does not fit."""
    manifest = load_manifest(folder)
    manifest.model.check(info)
    if manifest.highest_layer > info.num_layers:
        raise BundleError(f"{folder / MANIFEST}: layer {manifest.highest_layer} is not one of 0..{info.num_layers}")
    data = read_part(folder / TENSORS)
    if digest(data) != manifest.tensors_hash:
        raise BundleError(f"{folder / TENSORS} is not the file that {MANIFEST} was written with")
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise BundleError(f"{folder / TENSORS}: {error}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{folder / TENSORS}: {name} holds values that are no numbers")
    reader, answers, categories = make_reader(manifest), make_answer_reader(manifest), make_category_reader(manifest)
    head = RefusalHead(info.hidden_size, manifest.head_rank)
    try:
        if isinstance(reader, LastToken):
            reader.prober.load_state_dict(_part(tensors, "prober"))
        else:
            reader.load_state_dict(_part(tensors, "conversation"))
        if answers is not None:
            answers.load_state_dict(_part(tensors, "answers"))
        if categories is not None:
            categories.load_state_dict(_part(tensors, "categories"))
        head.load_state_dict(_part(tensors, "head"))
    except RuntimeError as error:
        raise BundleError(f"{folder / TENSORS}: {' '.join(str(error).split())}") from error
    guard = Guard(manifest, reader, head, _part(tensors, "calibration"), answers, categories)
    return guard.to(info.device).requires_grad_(requires_grad=False)


def make_reader(manifest: Manifest) -> LastToken | Conversation:
    """The reader that a manifest describes, not fitted."""
    if manifest.conversation is None:
        return LastToken(Prober(manifest.inputs, manifest.prober_hidden))
    cells = [Cell(**cell.model_dump()) for cell in manifest.conversation.cells]
    spec = manifest.conversation
    return Conversation(
        manifest.inputs, cells, spec.window, together=spec.together, spoken=spec.spoken, level=spec.level
    )


def make_answer_reader(manifest: Manifest) -> AnswerReader | None:
    """The reader of answers that a manifest describes, not fitted; None where there is none."""
    if manifest.answers is None:
        return None
    return AnswerReader(manifest.model.hidden_size, manifest.answers.layers, manifest.answers.window)


def make_category_reader(manifest: Manifest) -> CategoryReader | None:
    """The reader of categories that a manifest describes, not fitted; None where there is none."""
    if (spec := manifest.categories) is None:
        return None
    thresholds = [category.threshold for category in spec.categories]
    return CategoryReader(manifest.inputs, spec.names, thresholds, other=spec.other)


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = part + "."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
