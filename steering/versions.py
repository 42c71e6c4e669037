"""Versions of what the numbers of a fit or an evaluation depend on."""

from __future__ import annotations

import platform

import torch
import transformers


def versions() -> dict[str, str]:
    """Versions of Python, torch and transformers, by name."""
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
