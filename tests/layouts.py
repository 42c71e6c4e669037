"""Layouts of prompts for tests that have no template."""

from models.layout import Layout


def layout_of(tokens: int, *ends: int, has_image: bool = False) -> Layout:
    """One run of so many tokens; turns end at `ends` and at the last token."""
    return Layout(tokens, sorted({*ends, tokens - 1}), [(0, tokens)], has_image)
