"""`autosteer eval` and `autosteer compare`. Torch and the rest are imported only when one of them runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.console import Batch, Device, Dtype, mistake, mistakes, progress_bar, resumable
from server.cli.folders import given_folder, held, writable
from server.cli.local_columns import LocalColumns, Strength

if TYPE_CHECKING:
    from steering.evaluation.columns import Table
    from steering.evaluation.judges import Judge
    from steering.evaluation.remote import Remote
    from steering.evaluation.suite import JudgeSpec, Suite

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

WIDE = 200  # columns, where there is no terminal
MODES = "original,steer-always,autosteer"


@app.command(name="eval")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on there.")],
    suite: Annotated[str, typer.Option(help="A suite's YAML file, or a bundled one: demo.")] = "demo",
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; 'demo': the bundled one, its default guard.")
    ] = None,
    guard: Annotated[
        Path | None, typer.Option(help="Folder of the bundle. Default: none, the demo model's for it.")
    ] = None,
    modes: Annotated[str, typer.Option(help="Columns in process: original, steer-always, autosteer, block.")] = MODES,
    url: Annotated[
        list[str] | None,
        typer.Option(help="NAME=URL of an OpenAI-compatible server, a column of its own; NAME=URL#MODE on ours."),
    ] = None,
    url_model: Annotated[
        str | None, typer.Option(help="Model to ask servers for. Default: the first they list.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once to a server.")] = 16,
    judge: Annotated[list[str] | None, typer.Option(help="Judge by name: phrases, demo, or of the suite.")] = None,
    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible URL of a judge model.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its model.")] = None,
    judge_cache: Annotated[Path | None, typer.Option(help="What judge models said. Default: in OUT.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Default: the bundle's.")] = None,
    target_fpr: Annotated[float | None, typer.Option(help="Instead of a threshold, a calibrated rate.")] = None,
    eps: Annotated[float | None, typer.Option(min=0, help="Steering strength. Default: the bundle's.")] = None,
    eps_sweep: Annotated[str | None, typer.Option(help="Such as 0.5,1,2; 'none'. Default: the suite's.")] = None,
    surroundings: Annotated[
        str | None, typer.Option(help="Such as suffix-32,go-on; 'all', 'words', 'none'. Default: the suite's.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of a suite's paths. Default: the suite's own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each set: a quick look.")] = None,
    batch: Batch = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    *,
    cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Also time guarded against unguarded.")] = True,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave out rows with missing images.")] = False,
) -> None:
    """Attack success, over-refusal, accuracy, detection and cost of a guard, or of any server, in one table."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with mistakes():
        from steering.evaluation.suite import load_rows, load_suite

        if model is None and not url:
            mistake("nothing to evaluate: give --model (demo: the bundled one), --url NAME=URL, or both")
        writable("--out", out)
        given_folder("--data", data)
        chosen, folder = load_suite(suite)
        chosen = chosen.in_surroundings(surroundings)
        sweep = _numbers(eps_sweep, chosen.eps_sweep)
        strength = Strength(threshold, target_fpr, eps)
        columns = None if model is None else LocalColumns.of(model, guard, modes, strength)
        remotes = [_remote(each, url_model, concurrency) for each in url or []]
        names = [*(modes.split(",") if model else []), *(each.name for each in remotes)]
        if len(set(names)) < len(names):
            mistake(f"two columns of one name: {', '.join(names)}; give another NAME in --url NAME=URL")
        wanted = _judges(chosen, judge, judge_url, judge_model)
        loaded = load_rows(chosen, data or folder, drop_bad=drop_bad, limit=limit)
        said = "; then cost is timed, which takes as long as hundreds of answers (--no-cost leaves it out)"
        typer.echo(f"{len(loaded.asked)} rows in {len(names)} columns{said if cost and columns else ''}", err=True)
        # Only now what takes seconds to import.
        from steering.evaluation.evaluate import EvaluationPlan
        from steering.evaluation.evaluate import evaluate as run

        guarded = None if columns is None else columns.load(batch, device, dtype, revision, sweep)
        judges = _made(wanted, judge_cache or out / "judge.sqlite")
        with held(out), resumable(), progress_bar() as progress:
            found = run(EvaluationPlan(chosen, loaded, guarded, remotes, judges, cost), out, progress)
    _tell(found, out, in_process=columns is not None)


def _tell(found: Mapping[str, Any], out: Path, *, in_process: bool) -> None:
    """Print a run's results; `in_process`: whether some of its columns were computed here."""
    from steering.evaluation.report import sections

    for sentence in found["conclusions"]:
        typer.echo(sentence)
    for heading, _, rows in sections(found, brief=True):
        _print(rows, heading)
    for warning in found["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items())
    typer.echo(f"time: {took}{' (--no-cost leaves cost out)' if found['cost'] and in_process else ''}", err=True)
    typer.echo(f"results: {out / 'results.md'}\nreport: {out / 'report.html'}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(help="Folder of another run of the same rows.")],
    systems: Annotated[
        list[str] | None, typer.Option(help="FIRST=SECOND: columns to compare. Default: those of the same name.")
    ] = None,
) -> None:
    """Which of two runs is better at what, and what to do: differences with 95 % intervals, and paired tests."""
    with mistakes():
        from steering.evaluation import compared
        from steering.evaluation.compare import Run
        from steering.evaluation.compare import compare as run

        found = run(Run.read(first), Run.read(second), [_pair(each) for each in systems or []])
    for sentence in compared.sentences(found):
        typer.echo(sentence)
    same = len(found.figures) - len(found.changed)
    typer.echo(f"{found.rows} rows are in both; {same} of {len(found.figures)} figures are the same in every row.")
    if found.changed:
        title = f"What differs; p-values are corrected for {len(found.changed)} figures (Holm)"
        _print(compared.comparison_table(found), title)
    if found.detected:
        _print(compared.detection_table(found), "What the scores catch, where so many false alarms are allowed")
    if len(costs := compared.cost_table(found)) > 1:
        _print(costs, f"Cost. {compared.cost_note(found)}".rstrip())
    for name, same in found.identical.items():
        typer.echo(f"{name}: {same} of {found.rows} answers are the same to the letter")
    if found.only_first or found.only_second:
        typer.echo(f"left out: {found.only_first} rows of the first alone, {found.only_second} of the second", err=True)


# options -----------------------------------------------------------------------------------------------------------


def _numbers(given: str | None, default: Sequence[float]) -> tuple[float, ...]:
    """The strengths of the sweep."""
    if given is None:
        return tuple(default)
    if given == "none":
        return ()
    try:
        found = tuple(float(part) for part in given.split(","))
    except ValueError:
        mistake(f"--eps-sweep {given}: give numbers with commas, or none")
    if not all(0 < each < float("inf") for each in found):
        mistake(f"--eps-sweep {given}: each must be a number above 0")
    return found


def _remote(given: str, model: str | None, concurrency: int) -> Remote:
    """A server of `NAME=URL#MODE`."""
    from steering.evaluation.remote import MODES as REMOTE_MODES
    from steering.evaluation.remote import Remote

    name, _, url = given.partition("=")
    url, _, mode = url.partition("#")
    if not name or not url.startswith(("http://", "https://")):
        mistake(f"--url {given}: give NAME=URL, such as mine=http://127.0.0.1:8000/v1")
    if mode and mode not in REMOTE_MODES:
        mistake(f"--url {given}: the mode {mode} is not one of {', '.join(REMOTE_MODES)}")
    return Remote(name, url, model, mode or None, concurrency=concurrency)


def _pair(given: str) -> tuple[str, str]:
    first, equals, second = given.partition("=")
    if not first or (equals and not second):
        mistake(f"--systems {given}: give FIRST=SECOND, or one name for both")
    return first, second or first


def _judges(suite: Suite, names: Sequence[str] | None, url: str | None, model: str | None) -> list[JudgeSpec | str]:
    """The judges that are asked for, or the suite's; simple ones by name. The one of --judge-url comes first."""
    from steering.evaluation.judges import SIMPLE
    from steering.evaluation.suite import JudgeSpec

    if (url is None) != (model is None):
        mistake("--judge-url and --judge-model belong together")
    specs = {each.name: each for each in suite.judges if isinstance(each, JudgeSpec)}
    wanted = list(names or [each if isinstance(each, str) else each.name for each in suite.judges])
    if url is not None and model is not None:
        specs[model] = JudgeSpec(name=model, url=url, model=model)
        wanted = [model, *(names or [])]
    unknown = [name for name in wanted if name not in SIMPLE and name not in specs]
    if unknown:
        mistake(f"--judge {unknown[0]} is not one of {', '.join([*SIMPLE, *specs])}")
    return [specs.get(name, name) for name in dict.fromkeys(wanted)]


def _made(judges: Sequence[JudgeSpec | str], cache: Path) -> list[Judge]:
    from steering.evaluation.judge_model import ModelJudge, VerdictCache
    from steering.evaluation.judges import SIMPLE

    return [SIMPLE[each]() if isinstance(each, str) else ModelJudge(each, VerdictCache(cache)) for each in judges]


def _print(rows: Table, title: str) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    head, *body = rows
    grid = Grid(*head, title=title, title_justify="left")
    for row in body:
        grid.add_row(*row)
    terminal = Console()
    # Into a file or a pipe nothing needs to be folded.
    (terminal if terminal.is_terminal else Console(width=WIDE)).print(grid)
