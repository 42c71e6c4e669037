"""A guard with random weights for any backbone."""

from collections.abc import Sequence

import numpy as np
import torch

from models.backbone import BackboneInfo
from steering.answers import AnswerReader
from steering.categories import CategoryReader
from steering.guard import Guard
from steering.head import RefusalHead
from steering.manifest import Manifest, ModelBinding, format_of
from steering.prober import Prober
from steering.readers import Cell, Conversation, LastToken
from steering.scale import GRID, Scale
from steering.specs import AnswersSpec, CategoriesSpec, CategorySpec, Threshold


def manifest(
    info: BackboneInfo,
    layer: int = 2,
    answers: AnswersSpec | None = None,
    categories: CategoriesSpec | None = None,
) -> Manifest:
    return Manifest(
        format_version=format_of(None, answers, categories),
        answers=answers,
        categories=categories,
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


def random_guard(
    info: BackboneInfo,
    seed: int = 0,
    layer: int = 2,
    answers: AnswerReader | None = None,
    categories: CategoryReader | None = None,
) -> Guard:
    torch.manual_seed(seed)
    head = RefusalHead(info.hidden_size)
    torch.nn.init.normal_(head.weight, std=info.hidden_size**-0.5)
    reader = LastToken(Prober(info.hidden_size))
    spec = None
    if answers is not None:
        rate = Threshold(target_fpr=0.01, threshold=0.5, samples=99)
        spec = AnswersSpec(layers=list(answers.layers), window=answers.window, thresholds=[rate], threshold=0.5)
    kinds = None
    if categories is not None:
        named = [CategorySpec(name=name, threshold=0.5, auroc=0.9, recall=0.8, samples=9) for name in categories.names]
        kinds = CategoriesSpec(categories=named, other=True)
    guard = Guard(manifest(info, layer, spec, kinds), reader, head, {}, answers, categories)
    return guard.requires_grad_(requires_grad=False)


def random_conversation(info: BackboneInfo, names: Sequence[str] = ("weapons", "fraud")) -> Guard:
    """A guard that reads whole conversations at three layers, what tools tell by itself, and categories."""
    plain = random_guard(info, categories=random_categories(info, names, layers=3))
    inputs = 3 * info.hidden_size
    cells = [Cell(has_image, None, 500, told) for has_image in (False, True) for told in (False, True)]
    reader = Conversation(inputs, cells, window=4)
    generator = torch.Generator().manual_seed(9)
    reader.weight.copy_(torch.randn(reader.weight.shape, generator=generator) * inputs**-0.5)
    reader.calibrate([[rising(-2.0, 2.0), rising(-1.0, 1.0), rising(-0.5, 0.5), rising(-4.0, 4.0)]] * 4, 1.0, 0.0)
    manifest = plain.manifest.model_copy(update={"probe_layers": [1, 2, 3]})
    guard = Guard(manifest, reader, plain.head, {}, None, plain.categories)
    return guard.requires_grad_(requires_grad=False)


def random_categories(
    info: BackboneInfo, names: Sequence[str] = ("weapons", "fraud"), layers: int = 1
) -> CategoryReader:
    """A reader of categories with random weights."""
    inputs = layers * info.hidden_size
    reader = CategoryReader(inputs, names, [0.5] * len(names), other=True)
    generator = torch.Generator().manual_seed(8)
    reader.weight.copy_(torch.randn(reader.weight.shape, generator=generator) * inputs**-0.5)
    return reader


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
