"""`autosteer config`: validate settings, and show the ones in effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from models.where import where_problem
from server.cli.console import EXIT_MISTAKE, mistake
from server.cli.options import with_settings
from server.engine.launch import LaunchSpec
from server.record.tracing import tracing_problem
from server.settings.groups import ShadowSettings
from server.settings.shown import plain
from server.settings.sources import ConfigError, Loaded, load_settings

if TYPE_CHECKING:
    from server.settings.schema import Settings
    from steering.manifest import Manifest

app = typer.Typer(help="The server's settings.", no_args_is_help=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="YAML or TOML file of settings.")],
    against: Annotated[
        Path | None,
        typer.Option(help="The file in effect: tell also what a reload from it to the new one would loosen."),
    ] = None,
    *,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="What the file names is on another machine: check the rest.")
    ] = False,
) -> None:
    """Check a config file as `serve` would read it: its values, and the bundles and folders that it names."""
    loaded = _load(file)
    missing = _missing(loaded.settings)
    if missing and not elsewhere:
        for problem in missing:
            typer.echo(f"autosteer: {problem}", err=True)
        mistake("`serve` would fail; with --elsewhere, what is on another machine is not checked")
    for problem in missing:
        typer.echo(f"not checked: {problem}")
    typer.echo(f"{file} is valid; {_check_policies(loaded)}")
    if against is not None:
        _check_reload(_load(against), loaded)


def _missing(settings: Settings) -> list[str]:
    """What the settings name and `serve` would not find, a line each."""
    spec = LaunchSpec.of(settings)
    found = [f"model: {problem}" for problem in [where_problem(spec.model)] if problem is not None]
    if spec.guard is not None and not spec.guard.exists():
        found.append(f"guard: the bundle {spec.guard} is not here")
    if spec.shadow is not None and spec.shadow.guard is not None and not Path(spec.shadow.guard).exists():
        found.append(f"shadow: the bundle {spec.shadow.guard} is not here")
    if settings.audit is not None:
        from server.record.audit.sinks import sink_problem

        found += [problem for problem in [sink_problem(settings.audit)] if problem is not None]
    found += [f"otlp_endpoint: {problem}" for problem in [tracing_problem(settings)] if problem is not None]
    return found


def _load(file: Path) -> Loaded:
    try:
        return load_settings({}, file)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(f"autosteer: {problem}", err=True)
        raise typer.Exit(EXIT_MISTAKE) from None


def _check_reload(old: Loaded, new: Loaded) -> None:
    """Tell what a reload would loosen; a mistake where the new file does not say that it is meant."""
    from server.access.loosening import change_id, losses_between
    from steering.errors import BundleError
    from steering.manifest import load_manifest
    from steering.policy import PolicyError

    guard = LaunchSpec.of(old.settings).guard
    if guard is not None and not guard.exists():
        mistake(f"what a reload would loosen depends on the guard bundle {guard}, which is not here")
    try:
        losses = losses_between(old.settings, new.settings, None if guard is None else load_manifest(guard))
    except (PolicyError, BundleError) as error:
        mistake(error)
    for loss in losses:
        typer.echo(f"a reload would loosen: {loss}")
    if not losses:
        typer.echo("a reload would loosen nothing")
    elif new.settings.loosens != change_id(losses):
        mistake(f"a reload would be refused; if all of it is meant, write `loosens: {change_id(losses)}`")


def _check_policies(loaded: Loaded) -> str:
    """Resolve every policy against the bundle's manifest; says what was checked."""
    from server.access.policies import make_policies
    from steering.errors import BundleError
    from steering.manifest import load_manifest
    from steering.policy import PolicyError

    guard = LaunchSpec.of(loaded.settings).guard
    if guard is not None and not guard.exists():
        return f"keys: {len(loaded.settings.keys)}"
    try:
        manifest = None if guard is None else load_manifest(guard)
        policies = make_policies(loaded.settings, manifest)
        shadow = _check_shadow(loaded.settings.shadow, manifest)
    except (PolicyError, BundleError) as error:
        mistake(error)
    shown = [f"{each.name} ({each.mode.value}, threshold {each.threshold:.4g})" for each in policies.values()]
    return f"policies: {', '.join(shown)}; {shadow}keys: {len(loaded.settings.keys)}"


def _check_shadow(settings: ShadowSettings | None, acting: Manifest | None) -> str:
    """Find the shadow's threshold; says what was checked. Raises PolicyError, BundleError."""
    from server.engine.shadow import answer_threshold, shadow_threshold
    from steering.manifest import load_manifest
    from steering.policy import PolicyError

    if settings is None:
        return ""
    if acting is None:
        raise PolicyError("shadow: needs a guard to stand beside; give one with --guard")
    if settings.guard is not None and not Path(settings.guard).exists():
        return ""
    bundle = acting if settings.guard is None else load_manifest(Path(settings.guard))
    of_answers = answer_threshold(settings, bundle)
    told = "" if of_answers is None else f", {of_answers:.4g} of answers"
    return f"shadow: {settings.name} (threshold {shadow_threshold(settings, bundle):.4g}{told}); "


@app.command()
@with_settings
def show(options: dict[str, object], config: Path | None) -> None:
    """Print the settings in effect, each with where it came from, without secrets. Takes the options of `serve`."""
    try:
        loaded = load_settings(options, config)
    except ConfigError as error:
        mistake(error)
    for name in type(loaded.settings).model_fields:
        value = plain(getattr(loaded.settings, name))
        if isinstance(value, (dict, list)) and value:
            typer.echo(f"{name}:  # {loaded.origin(name)}")
            text = yaml.safe_dump(value, sort_keys=False, width=200)
            typer.echo("".join(f"  {line}\n" for line in text.splitlines()), nl=False)
        else:
            text = yaml.safe_dump({name: value}, width=2000).strip()
            typer.echo(f"{text}  # {loaded.origin(name)}")


@app.command("reference")
def print_reference() -> None:
    """Print every setting, its default and what it does, as tables in Markdown."""
    from server.settings.reference import reference

    typer.echo(reference(), nl=False)
