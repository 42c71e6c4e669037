"""The command line: `autosteer serve`, `version`, and the other commands. Torch is imported only to load a model."""

from __future__ import annotations

import base64
import io
import logging
import shlex
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import typer

from server.cli.audit import print_audit
from server.cli.config import app as config_commands
from server.cli.console import EXIT_ENGINE, mistake
from server.cli.evaluate import app as evaluation
from server.cli.fit import app as fitting
from server.cli.keys import app as keys_commands
from server.cli.labels import app as labels_commands
from server.cli.options import with_settings
from server.engine.launch import LaunchSpec, explains_itself
from server.engine.process import EngineProcess
from server.record.audit.sink import Sink, SinkError
from server.record.audit.sinks import make_sink
from server.record.tracing import Tracing, TracingError, make_tracing
from server.request import EngineFailed
from server.settings.schema import LogFormat, Settings
from server.settings.sources import ConfigError, Loaded, load_settings
from server.watch.logs import LIFE, configure
from server.workers.limits import raise_descriptor_limit
from server.workers.memory import return_large_blocks
from server.workers.threads import share_the_lock

if TYPE_CHECKING:
    from server.api.served import Served
    from server.engine.client import EngineClient
    from server.engine.host import Inputs
    from server.http.server import HttpServer
    from steering.policy import Policy

app = typer.Typer(
    name="autosteer",
    help="An OpenAI-compatible server for multimodal models, guarded from inside the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(fitting)
app.add_typer(evaluation)
app.add_typer(config_commands, name="config")
app.add_typer(keys_commands, name="keys")
app.add_typer(labels_commands, name="labels")
app.command("audit")(print_audit)


def main() -> None:
    """Entry point of the `autosteer` command."""
    app()


@app.command()
def version() -> None:
    """Print the version."""
    from server.version import server_version

    typer.echo(server_version())


@app.command()
@with_settings
def serve(options: dict[str, object], config: Path | None) -> None:
    """Serve a model over HTTP. Options go before the environment (AUTOSTEER_PORT, ...), and that before the file."""
    load = partial(load_settings, options, config)
    try:
        loaded = load()
        settings = loaded.settings
        sink = None if settings.audit is None else make_sink(settings.audit)
        tracing = make_tracing(settings)
    except (ConfigError, SinkError, TracingError) as error:
        mistake(error)
    configure(settings.log_format, access=settings.access_log)
    raise_descriptor_limit()
    return_large_blocks()
    share_the_lock()
    spec = LaunchSpec.of(settings)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        mistake(f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}")
    LIFE.info("loading %s", spec.name if spec.guard is None else f"{spec.name} with the guard bundle {spec.guard}")
    if loaded.file is not None:
        LIFE.info("the settings are those of %s", loaded.file)
    with listener:
        _serve(settings, load, spec, sink, tracing, listener, loaded.origin)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before anything slow is done. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def _serve(
    settings: Settings,
    load: Callable[[], Loaded],
    spec: LaunchSpec,
    sink: Sink | None,
    tracing: Tracing | None,
    listener: socket.socket,
    origin: Callable[[str], str],
) -> None:
    """Run until a signal; exits with 2 if the model does not load, with 3 if the engine has failed for good."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    client = _engine(spec, settings)
    from server.app import create_app
    from server.http.garbage import FullCollections
    from server.http.server import HttpServer
    from server.reload import reload

    application = create_app(settings, client, name=spec.name, sink=sink, tracing=tracing)
    service, garbage = application.state.service, FullCollections()
    service.origin = origin

    def ready() -> None:
        garbage.begin()
        announce(service.served, service.default_policy(service.served), _url(listener), settings.log_format)
        if service.settings.serves_console:
            announce_console(_url(listener), settings.log_format)
        service.start_processes()

    server = HttpServer(
        application,
        client,
        settings,
        prepare=application.state.document.body,
        announce=ready,
        reload=lambda: reload(service, load),
    )
    server.run(sockets=[listener])
    _exit_after(server)


def _engine(spec: LaunchSpec, settings: Settings) -> EngineClient:
    """The client of an engine that begins to load."""
    process = EngineProcess(spec)  # it loads while this process imports what it serves with
    from server.access.policies import make_policies
    from server.engine.client import EngineClient

    return EngineClient(
        process,
        lambda: _inputs(spec),
        max_live=settings.max_live,
        step_seconds=settings.step_seconds,
        check=lambda facts: make_policies(settings, facts.guard),
        again=partial(EngineProcess, spec) if settings.engine_failure == "restart" else None,
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _exit_after(server: HttpServer) -> None:
    """Exit with the code of a failure, if there was one."""
    if server.start_failure is not None:
        failure = server.start_failure
        if not isinstance(failure, EngineFailed) and not explains_itself(failure):  # the engine's own is in the log
            logging.getLogger(__name__).error("the model could not be loaded", exc_info=failure)
        mistake(failure)
    if server.engine_failure is not None:  # the log has it
        raise typer.Exit(EXIT_ENGINE)


def _inputs(spec: LaunchSpec) -> Inputs:
    """What this process needs of the model."""
    import torch

    torch.set_num_threads(1)  # the cores are the engine's, and images are prepared side by side as it is
    return spec.load_inputs()


def announce(served: Served, policy: Policy, url: str, form: LogFormat) -> None:
    """Tell that the server is ready, how to try it, and warn where nothing guards the model."""
    warning, ready = announcement(served, policy, url)
    if form == "json":
        log = logging.getLogger("server.ready")
        if warning:
            log.warning(warning)
        log.info(ready)
        return
    if warning:
        typer.echo(f"autosteer: WARNING: {warning}", err=True)
    typer.echo(f"autosteer ready: {ready}")
    typer.echo(f"try it: {curl(served.name, url, sees=served.inputs.sees)}")


def announce_console(url: str, form: LogFormat) -> None:
    """Tell where to see what the guard sees."""
    if form == "json":
        logging.getLogger("server.ready").info(f"console: {url}/console")
    else:
        typer.echo(f"console: {url}/console")


def announcement(served: Served, policy: Policy, url: str) -> tuple[str, str]:
    """A warning, empty where there is none, and what is ready."""
    from steering.policy import WEAK

    warning = ""
    if served.guard is None:
        guarded = "UNGUARDED"
        warning = f"UNGUARDED: no guard is loaded, {served.name} answers whatever it is asked."
    else:
        guarded = (
            f"guarded by {served.guard.id} of {served.guard.date} at layer {served.layer} of {served.info.num_layers}, "
            f"policy {policy.name}: {policy.mode.value}, threshold {policy.threshold:.4g}, eps {policy.eps:.4g}"
        )
        if served.guard.recall < WEAK:
            warning = f"WEAK GUARD: at its fit it caught {served.guard.recall:.1%} of harm at its default threshold."
        if policy.mode.value == "off":
            warning = "UNGUARDED: the guard is loaded, but its mode is off."
    return warning, f"{url} | model {served.name} | {guarded}"


def curl(model: str, url: str, *, sees: bool) -> str:
    """A command to paste into a shell: a question, about a small drawing where the model reads images."""
    content = _picture_question() if sees else "What is the capital of France?"
    asked = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    body = orjson.dumps(asked).decode()
    return f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}"


def _picture_question() -> list[dict[str, Any]]:
    """The parts of a question about a drawing that the bundled model knows too."""
    from models.demo.world import Group, Scene, draw_picture, stream

    buffer = io.BytesIO()
    apple = draw_picture(Scene((Group("apple", "red", (4,)),)), stream("try it"))
    apple.quantize(8).save(buffer, "PNG", optimize=True)
    image = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": "What is in the picture?"},
    ]
