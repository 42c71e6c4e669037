"""Fixtures for all tests."""

from __future__ import annotations

from tests.tiny import backbone, family, tiny_models

__all__ = ["backbone", "family", "tiny_models"]
