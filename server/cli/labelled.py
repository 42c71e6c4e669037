"""Reviewers' labels as a fit takes them: those to fit on, and those that two bundles are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from server.cli.folders import given_folder

if TYPE_CHECKING:
    from models.backbone import Backbone
    from steering.fitting.items import Item
    from steering.held_out import HeldOut


@dataclass(frozen=True)
class Labelled:
    """Rows to fit on, those that are held out, and the bundle to compare with on these, if any."""

    fit: Sequence[Item]
    held_out: Sequence[Item]
    against: Path | None

    def compare(self, backbone: Backbone, bundle: Path) -> HeldOut | None:
        """How both bundles judge what was held out, also kept beside the new one. Raises BundleError."""
        if self.against is None or not self.held_out:
            return None
        from steering.fitting.compared import compare
        from steering.held_out import save_held_out

        found = compare(backbone, self.held_out, self.against, bundle)
        save_held_out(bundle, found)
        return found


def read_labelled(files: Sequence[Path], against: Path | None) -> Labelled:
    """Read files of labels. Raises DataError, and BundleError where there is no bundle to compare with."""
    from steering.fitting.items import read_labels
    from steering.manifest import load_manifest

    fit = [item for file in files for item in read_labels(file)]
    held_out = [item for file in files for item in read_labels(file, held_out=True)]
    if files:
        given_folder("--against", against)
        if against is not None:
            load_manifest(against)
        typer.echo(f"labels: {len(fit)} to fit on, {len(held_out)} held out")
    return Labelled(fit, held_out, against)
