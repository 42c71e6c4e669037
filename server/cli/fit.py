"""The fitting commands: `fit`, `inspect`, `score`, `import-reference`. Torch is imported only when one of them runs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.again import recall, remember
from server.cli.answers import answers_wanted, check_given
from server.cli.console import Batch, Device, Dtype, Model, load, mistake, mistakes, progress_bar, resumable
from server.cli.folders import check_model, given_folder, held, writable
from server.cli.labelled import read_labelled
from server.cli.rows import read_fit_rows, show_fit_rows, without_errors
from server.cli.tables import show_fit, show_held_out, show_manifest
from steering.fitting.choices import OWN_WORDS

if TYPE_CHECKING:
    from steering.fitting.offline import PromptRead
    from steering.fitting.steps import Settings

REFUSAL = "I'm sorry, but I can't help with that."

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def fit(
    context: typer.Context,
    model: Model,
    pairs: Annotated[list[Path], typer.Option(help="File of contrast pairs (docs/fitting.md). May be given again.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    benign: Annotated[list[Path] | None, typer.Option(help="File of harmless prompts.")] = None,
    hard_negatives: Annotated[
        list[Path] | None,
        typer.Option(help="File of pairs, or harmless prompts, whose words look harmful: they weigh 30 %."),
    ] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(help="File of reviewers' labels (docs/console.md), of which some are held out."),
    ] = None,
    earlier: Annotated[  # noqa: ARG001  `recall` has read it
        Path | None,
        typer.Option(
            "--from", is_eager=True, callback=recall, help="Work folder of an earlier fit: its options and rows again."
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Bundle to compare with on labels held out. Default: that of --from.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for finished stages. Default: OUT.work.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for the report. Default: OUT.report.")] = None,
    reader: Annotated[
        str, typer.Option(help="conversation: every turn and stretch of a prompt. last: its last token (the paper's).")
    ] = "conversation",
    select: Annotated[str, typer.Option(help="Layer: sas (the paper's argmax), sas-among-best or auroc.")] = "sas",
    layer: Annotated[int | None, typer.Option(help="This layer, whatever --select says.")] = None,
    layers: Annotated[str | None, typer.Option(help="Several layers read side by side, such as 12,16,20.")] = None,
    prober: Annotated[str, typer.Option(help="mlp or linear.")] = "mlp",
    head: Annotated[
        str,
        typer.Option(
            help="Refusal Head: trained (the paper's), sparing: trained to leave harmless answers as they are, too, or "
            "nullspace: in closed form."
        ),
    ] = "trained",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the Refusal Head. Default: full.")] = None,
    refusal: Annotated[list[str] | None, typer.Option(help="What a steered answer says. May be given again.")] = None,
    target_fpr: Annotated[
        float | None, typer.Option(help="The default threshold's at most: 0.001, 0.01 (default) or 0.05.")
    ] = None,
    require_tpr: Annotated[
        float, typer.Option(min=0, max=1, help="Write no bundle that catches less than this at its default threshold.")
    ] = 0.0,
    own_words: Annotated[
        int, typer.Option(min=0, help="Texts of the model's own that pad rows (docs/fitting.md).")
    ] = OWN_WORDS,
    seed: Annotated[int, typer.Option(help="Of splits and weights.")] = 0,
    responses: Annotated[
        list[Path] | None, typer.Option(help="File of labelled answers, to read answers with. May be given again.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Who labels the model's own answers: phrases or demo.")] = "phrases",
    answer_tokens: Annotated[int, typer.Option(min=16, help="Of an answer, no more are drawn or read.")] = 128,
    batch: Batch = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    *,
    categories: Annotated[
        bool, typer.Option(help="Tell apart the categories of harm that enough rows name (docs/categories.md).")
    ] = True,
    answers: Annotated[
        bool, typer.Option("--answers", help="Read answers as well: the model answers the rows, a judge labels them.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read the rows, say whether they are enough, and load no model.")
    ] = False,
    text_only: Annotated[bool, typer.Option("--text-only", help="Fit without pictures.")] = False,
    with_test: Annotated[
        bool, typer.Option("--with-test", help="Also fit on rows that their author keeps for testing.")
    ] = False,
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Leave out rows with missing images or equal twins.")
    ] = False,
) -> None:
    """Fit a guard: from contrast pairs to a calibrated bundle and a report. Interrupted, it goes on where it was."""
    from rich.console import Console

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with mistakes():
        _check_choices(select, prober, reader, head, rank)
        given = _layers(layer, layers)
        to, kept, about = _folders(out, work, report)
        wanted = answers_wanted(responses or [], images, judge, answer_tokens, own=answers, text_only=text_only)
        labels = read_labelled(add or [], against)
        rows = read_fit_rows(
            *(pairs, benign or [], hard_negatives or [], images), text_only=text_only, with_test=with_test,
            drop_bad=drop_bad, labelled=labels.fit, seed=seed, target_fpr=target_fpr,
        )  # fmt: skip
        check_given(wanted, rows.parts, seed)
        if check:
            show_fit_rows(rows)
            return
        check_model(model)
        # Only now what takes seconds to import.
        from steering.fitting.fit import fit as run
        from steering.fitting.report import write_report

        settings = _settings(
            refusal or [REFUSAL], prober, head, seed, select=select, reader=reader, layers=given, rank=rank,
            target_fpr=target_fpr, categories=categories, require_tpr=require_tpr, own_words=own_words,
        )  # fmt: skip
        backbones = load(model, device, dtype, batch, revision)
        with held(kept), resumable(), progress_bar() as progress:
            fitted = run(backbones, rows.parts, settings, to, kept, progress, wanted)
        page = write_report(fitted, rows.leaks, about)
        held_out = labels.compare(backbones[0], out)
    remember(context, kept, out)
    show_fit(fitted, Console())
    if held_out is not None:
        show_held_out(held_out, Console())
    typer.echo(f"guard: {out}\nreport: {page}")


@app.command()
def inspect(bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")]) -> None:
    """Print what a bundle holds."""
    from rich.console import Console

    with mistakes():
        from steering.manifest import load_manifest

        show_manifest(load_manifest(bundle), Console())


@app.command()
def score(
    model: Model,
    guard: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    prompts: Annotated[Path, typer.Argument(help='JSONL of prompts: {"text", "image", "id"}.')],
    images: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write here. Default: standard output.")] = None,
    batch: Batch = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
) -> None:
    """Score prompts without a server: a JSON line each with id, score, whether it is flagged, and as what."""
    with mistakes():
        from steering.fitting.items import read_prompts
        from steering.manifest import load_manifest

        given_folder("--images", images)
        load_manifest(guard)
        check_model(model)
        items = without_errors(read_prompts(prompts, images, with_test=True), drop=False)
        # Only now what takes seconds to import.
        from steering.bundle import load_guard
        from steering.fitting.offline import batches, read_batch

        backbone = load(model, device, dtype, batch, revision)[0]
        loaded = load_guard(guard, backbone.info)
        threshold = loaded.manifest.threshold
        lines: list[str] = []
        with progress_bar() as progress:
            task = progress.add_task("scores", total=len(items))
            for group in batches(items, batch):
                found = read_batch(backbone, loaded, [item.questions[0] for item in group])
                lines += [_score_line(item.id, read, threshold) for item, read in zip(group, found, strict=True)]
                progress.advance(task, len(group))
        if out is None:
            typer.echo("\n".join(lines))
        else:
            out.write_text("\n".join(lines) + "\n")


def _score_line(name: str, read: PromptRead, threshold: float) -> str:
    """As `/v1/moderations` tells it: a category is true only where the prompt is flagged."""
    from steering.policy import is_flagged

    flagged = is_flagged(read.score, threshold)
    line: dict[str, object] = {"id": name, "score": _known(read.score), "flagged": flagged}
    if read.categories:
        line["categories"] = {each.name: flagged and each.reached for each in read.categories}
        line["category_scores"] = {each.name: _known(each.score) for each in read.categories}
    return json.dumps(line)


def _known(score: float) -> float | None:
    """JSON has no word for what is no number."""
    return score if math.isfinite(score) else None


@app.command(name="import-reference")
def import_reference(
    model: Model,
    prober: Annotated[Path, typer.Option(help="The prober's checkpoint, such as epoch_37.pt.")],
    head: Annotated[Path, typer.Option(help="The head's checkpoint, such as Epoch_12.pt.")],
    layer: Annotated[int, typer.Option(help="The layer that the prober was fitted on.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Score from which a request is flagged.")] = 0.5,
    eps: Annotated[float, typer.Option(min=0, help="Steering strength.")] = 1.0,
    refusal: Annotated[str, typer.Option(help="What a blocked request is told.")] = REFUSAL,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
) -> None:
    """Turn checkpoints of the paper's own code into a bundle."""
    with mistakes():
        from steering.fitting.reference_import import import_checkpoints

        if eps == 0:
            mistake("--eps must be more than 0, which steers nothing")
        backbone = load(model, device, dtype, 1, revision)[0]
        import_checkpoints(prober, head, layer, backbone.info, out, threshold=threshold, eps=eps, refusal=refusal)
    typer.echo(f"guard: {out}")


# what goes wrong ---------------------------------------------------------------------------------------------------


def _check_choices(select: str, prober: str, reader: str, head: str, rank: int | None) -> None:
    """Say which of them there is not, or which do not go together."""
    from steering.fitting.choices import HEADS, READERS, SELECTS

    if prober not in ("mlp", "linear"):
        mistake(f"--prober {prober} is neither mlp nor linear")
    for option, given, known in (("select", select, SELECTS), ("reader", reader, READERS), ("head", head, HEADS)):
        if given not in known:
            mistake(f"--{option} {given} is not one of {', '.join(known)}")
    if head == "nullspace" and rank is not None:
        mistake("--rank is of a trained head; leave it out with --head nullspace")


def _settings(refusals: Sequence[str], prober: str, head: str, seed: int, **more: Any) -> Settings:  # noqa: ANN401
    """The settings of a fit; `more`: those that are called as their options are."""
    from steering.fitting.choices import HEADS
    from steering.fitting.steps import Settings
    from steering.fitting.training import Optimisation

    return Settings(
        refusals=tuple(refusals),
        prober_hidden=64 if prober == "mlp" else 0,
        head_kind=HEADS[head],
        seed=seed,
        prober=Optimisation(seed=seed),
        head=Optimisation(epochs=30, seed=seed),
        **more,
    )


def _folders(out: Path, work: Path | None, report: Path | None) -> tuple[Path, Path, Path]:
    """Where the bundle, the stages and the report are written to."""
    beside = out.parent / out.name  # without a slash at its end
    return (
        writable("--out", out),
        writable("--work", work or beside.with_name(f"{out.name}.work")),
        writable("--report", report or beside.with_name(f"{out.name}.report")),
    )


def _layers(layer: int | None, layers: str | None) -> tuple[int, ...]:
    """The layers that are given, if any."""
    if layers is None:
        return () if layer is None else (layer,)
    found = layers.replace(",", " ").split()
    if layer is not None or len(set(found)) < len(found) or not found or not all(part.isdigit() for part in found):
        mistake(f"--layers {layers}: give different numbers with commas, and no --layer")
    return tuple(map(int, found))
