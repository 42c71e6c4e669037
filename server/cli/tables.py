"""What the fitting commands print of a bundle, and of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from steering.fitting.fit import Fitted
    from steering.held_out import HeldOut
    from steering.manifest import Manifest


def show_manifest(manifest: Manifest, console: Console) -> None:
    """Print what a bundle says of itself."""
    from rich.table import Table

    model = manifest.model
    about = Table(show_header=False)
    for name, value in {
        "id": manifest.id,
        "model": f"{model.name} ({model.architecture}, {model.num_layers} layers of {model.hidden_size})",
        "fitted": f"{manifest.date} on {manifest.data_size} prompts, {model.dtype}",
        "layer": ", ".join(map(str, manifest.probe_layers or [manifest.layer])),
        "reads": manifest.readers,
        "prober": f"{manifest.prober_hidden} hidden units" if manifest.prober_hidden else "linear",
        "head": f"rank {manifest.head_rank}" if manifest.head_rank else "full rank",
        "threshold": f"{manifest.threshold:.6g}",
        "eps": f"{manifest.eps:g}",
        "refusal": manifest.refusal,
        "fresh prompts": ", ".join(f"{name} {value:.4f}" for name, value in manifest.validation.items()),
        "data": manifest.data_hash,
        "versions": ", ".join(f"{name} {value}" for name, value in manifest.versions.items()),
    }.items():
        about.add_row(name, value)
    layers = Table("layer", "SAS", "95 %", "AUROC", "accuracy", title="layers, validation part")
    for each in manifest.layers:
        interval = "" if each.sas_low is None else f"{each.sas_low:.4f} .. {each.sas_high:.4f}"
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.4f}"
        mark = " *" if each.layer in (manifest.probe_layers or [manifest.layer]) else ""
        layers.add_row(f"{each.layer}{mark}", f"{each.sas:.4f}", interval, f"{each.auroc:.4f}", accuracy)
    thresholds = Table("target FPR", "threshold", "safe prompts", title="thresholds")
    for known in manifest.thresholds:
        thresholds.add_row(f"{known.target_fpr:.1%}", f"{known.threshold:.6f}", str(known.samples))
    for table in (about, layers, thresholds, *_category_tables(manifest)):
        console.print(table)


def _category_tables(manifest: Manifest) -> list[Table]:
    """How well categories are told apart, where they are."""
    from rich.table import Table

    if (told := manifest.categories) is None:
        return []
    head, *rows = told.table
    table = Table(*head, title=f"categories: macro AUROC {told.figures['macro_auroc']:.4f} on fresh harmful prompts")
    for row in rows:
        table.add_row(*row)
    return [table]


def show_fit(fitted: Fitted, console: Console) -> None:
    """Print what a fit has found, and its bundle."""
    from rich.table import Table

    console.print(fitted.report["headline"], style="bold", markup=False)
    show_manifest(fitted.guard.manifest, console)
    sweep = Table("eps", "exact refusal", "begins like it", "perplexity", title="eps")
    for point in fitted.report["sweep"]:
        mark = " *" if point["eps"] == fitted.guard.manifest.eps else ""
        rates = f"{point['exact']:.1%}", f"{point['begins']:.1%}", f"{point['perplexity']:.3g}"
        sweep.add_row(f"{point['eps']:g}{mark}", *rates)
    console.print(sweep)
    for warning in fitted.report["warnings"]:
        console.print(warning, style="yellow", markup=False)


def show_held_out(held_out: HeldOut, console: Console) -> None:
    """Print how a bundle and its successor judge labels that were held out."""
    from rich.table import Table

    table = Table("bundle", "harmful, caught", "harmless, flagged", title="labels held out")
    for each, figures in zip((held_out.old, held_out.new), held_out.figures, strict=True):
        caught = f"{figures.caught} of {figures.harmful}"
        table.add_row(each.guard, caught, f"{figures.false_alarms} of {figures.harmless}")
    console.print(table)
