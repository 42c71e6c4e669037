"""A guard with random weights for any backbone."""

import numpy as np
import torch

from models.backbone import BackboneInfo
from steering.answers import AnswerReader
from steering.guard import Guard
from steering.head import RefusalHead
from steering.manifest import AnswersSpec, Manifest, ModelBinding, Threshold
from steering.prober import Prober
from steering.readers import LastToken
from steering.scale import GRID, Scale


def manifest(info: BackboneInfo, layer: int = 2, answers: AnswersSpec | None = None) -> Manifest:
    return Manifest(
        format_version=1 if answers is None else 3,
        answers=answers,
        model=ModelBinding.of(info),
        layer=layer,
        prober_hidden=64,
        layers=[],
        thresholds=[Threshold(target_fpr=0.01, threshold=0.5, samples=99)],
        threshold=0.5,
        eps=1.0,
        refusal="I can't help with that.",
        validation={},
        data_hash="",
        data_size=0,
        versions={},
        date="2026-01-01",
        tensors_hash="",
    )


def random_guard(info: BackboneInfo, seed: int = 0, layer: int = 2, answers: AnswerReader | None = None) -> Guard:
    torch.manual_seed(seed)
    head = RefusalHead(info.hidden_size)
    torch.nn.init.normal_(head.weight, std=info.hidden_size**-0.5)
    reader = LastToken(Prober(info.hidden_size))
    spec = None
    if answers is not None:
        rate = Threshold(target_fpr=0.01, threshold=0.5, samples=99)
        spec = AnswersSpec(layers=list(answers.layers), window=answers.window, thresholds=[rate], threshold=0.5)
    guard = Guard(manifest(info, layer, spec), reader, head, {}, answers)
    return guard.requires_grad_(requires_grad=False)


def random_answers(info: BackboneInfo, layers: tuple[int, ...] = (1, 3), window: int = 4) -> AnswerReader:
    """A reader of answers with random weights."""
    reader = AnswerReader(info.hidden_size, layers, window)
    generator = torch.Generator().manual_seed(7)
    reader.weight.copy_(torch.randn(reader.weight.shape, generator=generator) * info.hidden_size**-0.5)
    reader.prompt_weight.fill_(0.2)
    reader.calibrate(rising(-3.0, 3.0), 1.0, 0.0)
    return reader


def token_reader(threshold: float, window: int = 1) -> AnswerReader:
    """Reads the one number of a state, as the fake backbone has it; from `threshold` on the score is over 1 half."""
    reader = AnswerReader(1, (1,), window)
    reader.weight.fill_(1.0)
    reader.calibrate(rising(threshold - 50.0, threshold + 50.0), 1.0, 0.0)
    return reader


def rising(low: float, high: float) -> Scale:
    """A scale that rises from -4 to 4."""
    return Scale(np.linspace(low, high, GRID), np.linspace(-4.0, 4.0, GRID), 1.0)
