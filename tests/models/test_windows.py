"""Decoders that see only so far back, in all layers or in some: batches of rows that have outgrown the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.load import load_backbone
from tests.models.test_backbone import STEPS, forced, greedy, ordinary_tokens, prompt_of
from tests.reference import stock
from tests.tiny import CHATS, LAYERS, chats_of, make_tiny, pictures

WINDOW = 12
ALL = {"model_type": "mistral", "sliding_window": WINDOW}
SOME = {
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "layer_types": ["full_attention", "sliding_attention"] * (LAYERS // 2),
}


@pytest.mark.parametrize(
    ("family", "text"),
    [("llava", ALL), ("llava_onevision", SOME), ("qwen2", SOME), ("mistral", ALL)],
)
def test_windows(family: str, text: dict[str, Any], tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path, text=text)
    model = stock.load_model(family, folder)
    backbone = load_backbone(folder, device="cpu", dtype="float32")
    assert backbone._decoder.config.model_type == text["model_type"]
    for messages in chats_of(family).values():
        images = pictures(messages)
        data = stock.inputs(backbone.inputs._processor, messages, images)
        assert greedy(backbone, backbone.inputs.build(messages, images), STEPS) == stock.generate(model, data, STEPS)
    prompts = [prompt_of(backbone, name) for name in CHATS]
    fed = [ordinary_tokens(backbone, 6, seed) for seed in range(len(prompts))]
    rows = [backbone.open_row(prompt, 6) for prompt in prompts]
    found = [backbone.logits(backbone.prefill(rows))]
    found += [backbone.logits(backbone.decode(rows, torch.tensor(tokens))) for tokens in zip(*fed, strict=True)]
    for place, row in enumerate(rows):
        backbone.close_row(row)
        alone = forced(backbone, prompts[place], fed[place])
        torch.testing.assert_close(torch.stack([each[place] for each in found]), alone, atol=1e-4, rtol=0)
