"""The names of a Llava's weights in its file, as published checkpoints have them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

_TOWER = "vision_tower."
_PUBLISHED = "vision_tower.vision_model."


def use_published_names(folder: Path) -> None:
    """Rename the vision tower's weights in `folder/model.safetensors` to `vision_tower.vision_model.*`.

    transformers 5 saves a new Llava's tower as `vision_tower.*` and reads both; published checkpoints, and readers such
    as vLLM's, have only the longer names. No value changes.
    """
    file = folder / "model.safetensors"
    beside = file.with_suffix(".renamed")
    save_file({_published(name): tensor for name, tensor in load_file(file).items()}, beside, {"format": "pt"})
    beside.replace(file)
    file.chmod(0o644)


def _published(name: str) -> str:
    if name.startswith(_TOWER) and not name.startswith(_PUBLISHED):
        return _PUBLISHED + name.removeprefix(_TOWER)
    return name
