"""`python -m benchmarks.real_guard --data sets`: a real model's guard on words that it was not fitted on.

Fits the readers of `make real-guard` as `autosteer fit` does, and again without each fifth of XSTest's focus words and
without each set. States are collected once, and all other prompts are read once, by the readers of all these fits side
by side, through the cache as a server reads them. The paper's reader of the last token is fitted on the same rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.real_guard.fits import LAYER, fit_all, read_all
from benchmarks.real_guard.rows import asked_of, dataset_of
from benchmarks.real_guard.tables import Study, left_out, realised, surroundings
from models.load import load_backbone
from steering.fitting.choices import OWN_WORDS
from steering.fitting.collect import Tick
from steering.fitting.conversation import WORDS, ConversationSteps, spread_around
from steering.fitting.stages import Stages, load_json
from steering.fitting.surround import surrounded


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the public sets, as for `make real-guard`.")],
    model: Annotated[Path, typer.Option(help="The model's folder.")] = Path("runs/smollm2"),
    work: Annotated[Path, typer.Option(help="Folder for what is computed once.")] = Path("runs/real-guard-rows"),
    limit: Annotated[int, typer.Option(help="Held-out rows of each label in each surrounding but alone.")] = 60,
) -> None:
    """Print recall and false alarms in every surrounding, on XSTest, without each set, and by length."""
    work.mkdir(parents=True, exist_ok=True)
    dataset, without = dataset_of(data, work)
    backbone = load_backbone(model, device="cpu")
    layers = spread_around(LAYER, backbone.info.num_layers)
    with Progress() as progress:

        def bar(name: str, total: int) -> Tick:
            task = progress.add_task(name, total=total)
            return lambda count: progress.advance(task, count)

        steps, stages = ConversationSteps([backbone], dataset, layers, bar), Stages(work)
        key = {"rows": dataset.digest(), "layers": list(layers), "model": backbone.info.weights_hash}
        own = load_json(stages.run("words", key, lambda to: steps.words(0, OWN_WORDS, to)) / WORDS)
        train, fresh = (surrounded(dataset, parts, 0, own) for parts in (("train",), ("validation", "calibration")))
        collected = stages.run("conversations", key, lambda to: steps.collect(train, to))
        fits = fit_all(dataset, without, train, collected, bar("fits", len(without)))
        asked = asked_of(dataset, fresh, work, limit)
        raw, layouts = read_all(backbone, asked, fits, layers, bar("prompts", len(asked)))
    calibration = [dataset.parts[row.place] == "calibration" for row in fresh]
    study = Study(asked, raw, layouts, [fit.name for fit in fits], calibration)
    console = Console(width=160)
    for table in (surroundings(study), left_out(study), realised(study)):
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
