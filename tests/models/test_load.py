"""Loading: what a loaded model is, and one clear line for whatever is wrong with a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import Backbone
from models.cpu import CpuCapabilities
from models.errors import LoadError
from models.families import FAMILIES
from models.load import load_backbone
from tests.tiny import CHATS, HIDDEN, LAYERS, TINY, TinyModels


def test_every_family_has_a_tiny_model() -> None:
    assert set(TINY) == set(FAMILIES)


def test_info(backbone: Backbone, family: str, tiny_models: TinyModels) -> None:
    info = backbone.info
    assert info.name == str(tiny_models.folder(family))
    assert (info.family, info.architecture) == (family, FAMILIES[family].model)
    assert (info.hidden_size, info.num_layers, info.context_length) == (HIDDEN, LAYERS, 512)
    assert info.vocab_size == len(backbone.tokenizer)
    assert (info.dtype, info.device.type) == (torch.float32, "cpu")
    assert info.eos_ids == {backbone.tokenizer.eos_token_id}
    assert len(info.template_hash) == 64


def test_frozen_and_in_eval_mode(backbone: Backbone) -> None:
    modules = [backbone._body, backbone._head]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(each.training for module in modules for each in module.modules())


def test_every_name_for_an_end_counts(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = _copy(tiny_models, tmp_path)
    _edit(folder / "generation_config.json", eos_token_id=[7, 9])
    _edit(folder / "config.json", eos_token_id=11)
    backbone = load_backbone(folder, device="cpu", dtype="float32")
    assert backbone.info.eos_ids == {7, 9, 11, backbone.tokenizer.eos_token_id}


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_dtype_by_name(tiny_models: TinyModels, name: str, dtype: torch.dtype) -> None:
    backbone = load_backbone(tiny_models.folder("llava_onevision"), device="cpu", dtype=name)
    assert (backbone.info.dtype, backbone._body.get_input_embeddings().weight.dtype) == (dtype, dtype)


@pytest.mark.parametrize(("bf16_products", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_is_bf16_only_where_the_cpu_computes_in_it(
    tiny_models: TinyModels, bf16_products: bool, dtype: torch.dtype
) -> None:
    cpu = CpuCapabilities(bf16_products=bf16_products)
    assert load_backbone(tiny_models.folder("llava_onevision"), device="cpu", cpu=cpu).info.dtype == dtype


def test_half_precision_runs(tiny_models: TinyModels, family: str) -> None:
    backbone = load_backbone(tiny_models.folder(family), device="cpu", dtype="bf16")
    prompt = backbone.inputs.build(CHATS["text"], [])
    row = backbone.open_row(prompt, 1)
    with backbone.tap(1) as tap:
        hidden = backbone.prefill([row])
    hidden = backbone.decode([row], torch.tensor([5]))
    assert hidden.dtype == tap.states.dtype == torch.bfloat16
    assert backbone.logits(hidden).isfinite().all()


def _copy(tiny_models: TinyModels, tmp_path: Path, family: str = "llava_onevision") -> Path:
    return Path(shutil.copytree(tiny_models.folder(family), tmp_path / "model"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _refusal(folder: str | Path, **options: Any) -> str:
    with pytest.raises(LoadError) as error:
        load_backbone(folder, device=options.pop("device", "cpu"), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c"])
def test_missing_folder(name: str) -> None:
    assert _refusal(name) == f"no such model folder: {name}"


def test_empty_folder(tmp_path: Path) -> None:
    assert _refusal(tmp_path) == f"no model in {tmp_path}: config.json is missing"


def test_unreachable_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot read the config of nobody/nothing" in _refusal("nobody/nothing")


def test_unsupported_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    message = _refusal(tmp_path)
    assert message.startswith(f"{tmp_path} is a bert model; supported are chameleon, gemma3,")


def test_config_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert f"cannot read the config of {tmp_path}" in _refusal(tmp_path)


def test_missing_weights(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = _copy(tiny_models, tmp_path)
    (folder / "model.safetensors").unlink()
    assert f"cannot load the weights of {folder}" in _refusal(folder)


def test_truncated_weights(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = _copy(tiny_models, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot load the weights of {folder}" in _refusal(folder)


def test_a_tensor_is_missing(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = _copy(tiny_models, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    removed = next(name for name in tensors if "layers.1.mlp" in name)
    save_file({n: t for n, t in tensors.items() if n != removed}, folder / "model.safetensors", {"format": "pt"})
    assert "lacks 1 tensors" in _refusal(folder)


def test_missing_tokenizer(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = _copy(tiny_models, tmp_path)
    for path in folder.glob("token*"):
        path.unlink()
    assert f"cannot load the tokenizer of {folder}" in _refusal(folder)


def test_missing_image_processor(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = _copy(tiny_models, tmp_path)
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").unlink()
    assert f"cannot load the image processor of {folder}" in _refusal(folder)


@pytest.mark.parametrize("family", ["llava_onevision", "llama"])
def test_missing_template(tiny_models: TinyModels, tmp_path: Path, family: str) -> None:
    folder = _copy(tiny_models, tmp_path, family)
    (folder / "chat_template.jinja").unlink()
    assert _refusal(folder) == f"{folder} has no chat template (chat_template.jinja)"


def test_a_checkpoint_s_own_template_comes_first(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = _copy(tiny_models, tmp_path, "chameleon")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][0]['text'] }}")
    backbone = load_backbone(folder, device="cpu", dtype="float32")
    assert backbone.info.template_hash != tiny_models.backbone("chameleon").info.template_hash


@pytest.mark.parametrize(
    ("option", "value"), [("final_logit_softcapping", 30.0), ("use_bidirectional_attention", True)]
)
def test_what_some_decoders_of_a_family_do_and_ours_does_not(
    tiny_models: TinyModels, tmp_path: Path, option: str, value: object
) -> None:
    folder = _copy(tiny_models, tmp_path, "gemma3_text")
    _edit(folder / "config.json", **{option: value})
    assert _refusal(folder) == f"the config of {folder} asks for {option}, which is not supported"


def test_no_such_dtype(tiny_models: TinyModels) -> None:
    assert _refusal(tiny_models.folder("llava_onevision"), dtype="float3") == "no dtype float3"


def test_no_such_device(tiny_models: TinyModels) -> None:
    assert "no device abacus" in _refusal(tiny_models.folder("llava_onevision"), device="abacus")


def test_int8_of_a_dtype_that_it_is_not_made_for(tiny_models: TinyModels) -> None:
    message = _refusal(tiny_models.folder("llava_onevision"), dtype="fp16", int8=True)
    assert message == "int8 weights need a CPU and bfloat16 or float32, not cpu and float16"
