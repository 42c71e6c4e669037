"""The bundled demo model: a small LLaVA-OneVision trained from scratch on a drawn world, unaligned on purpose.

`world` draws, `phrases` and `dialogue` say what is asked and answered, `judge` marks answers, `train` makes the
checkpoint, `evaluate` measures it. What it is and is not: docs/demo-model.md.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
GUARD: Path = Path(__file__).parent / "guard"
