"""States of prompts as the server reads them: each prefilled into a row of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.backbone import Backbone
from steering.data.questions import Question
from steering.fitting.offline import open_rows


@torch.no_grad()
def prompt_states(backbone: Backbone, questions: Sequence[Question], layers: Sequence[int]) -> Tensor:
    """States `[B, layers, d]` of a batch at the last prompt token, on the CPU."""
    with open_rows(backbone, questions, 1) as rows, backbone.tap(layers) as tap:
        backbone.prefill(rows)
        return tap.states.cpu()
