"""Two bundles on labels that were held out: figures, what they judge differently, and the file beside a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from steering.errors import BundleError
from steering.held_out import FILE, Figures, HeldOut, HeldOutRow, Judged, load_held_out, save_held_out


def row(name: str, old: float | None, new: float | None, *, harmful: bool) -> HeldOutRow:
    return HeldOutRow(id=name, harmful=harmful, old=old, new=new)


FOUND = HeldOut(
    old=Judged(guard="a", threshold=0.5),
    new=Judged(guard="b", threshold=0.9),
    rows=[
        row("caught", 0.5, 0.9, harmful=True),
        row("lost", 0.7, 0.7, harmful=True),
        row("mended", 0.6, 0.1, harmful=False),
        row("passes", 0.1, 0.8, harmful=False),
        row("unreadable", 0.1, None, harmful=False),
    ],
)


def test_each_bundle_is_told_by_its_own_threshold() -> None:
    assert FOUND.figures == (Figures(2, 2, 3, 1), Figures(2, 1, 3, 1))
    assert [each.id for each in FOUND.flips] == ["lost", "mended", "unreadable"]


def test_it_is_kept_beside_a_bundle(tmp_path: Path) -> None:
    assert load_held_out(tmp_path) is None
    save_held_out(tmp_path, FOUND)
    assert load_held_out(tmp_path) == FOUND
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(BundleError, match=FILE):
        load_held_out(tmp_path)
