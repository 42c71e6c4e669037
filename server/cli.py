"""The command line: `autosteer serve`, `version`, and the fitting commands. Torch is imported only to load a model."""

from __future__ import annotations

import base64
import io
import logging
import os
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from pydantic import ValidationError

from server.config import Settings
from steering.cli import app as fitting
from steering.cli import mistake

if TYPE_CHECKING:
    from server.engine import Engine
    from server.serving import Served

DEMO_NAME = "autosteer-demo"

app = typer.Typer(
    name="autosteer",
    help="An OpenAI-compatible server for multimodal models, guarded from inside the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(fitting)


def main() -> None:
    """Entry point of the `autosteer` command."""
    app()


@app.command()
def version() -> None:
    """Print the version."""
    from server.serving import server_version

    typer.echo(server_version())


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Option(envvar=["AUTOSTEER_MODEL", "MODEL"], help="Hub id or folder. Default: the bundled demo model."),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            envvar=["AUTOSTEER_GUARD", "GUARD"],
            help="Guard bundle folder, or 'none'. Default: the demo model's guard, none for another model.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(envvar=["AUTOSTEER_HOST", "HOST"], help="Address to listen on.")] = None,
    port: Annotated[str | None, typer.Option(envvar=["AUTOSTEER_PORT", "PORT"], help="0: any free port.")] = None,
    mode: Annotated[str | None, typer.Option(help="off, monitor, steer or block. Default: steer.")] = None,
    threshold: Annotated[str | None, typer.Option(help="Score from which a request is flagged, 0 to 1.")] = None,
    target_fpr: Annotated[
        str | None, typer.Option(help="Instead of a threshold: false-positive rate aimed at.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Steering strength. Default: the bundle's.")] = None,
    refusal: Annotated[str | None, typer.Option(help="What a blocked request is told. Default: the bundle's.")] = None,
    max_rows: Annotated[str | None, typer.Option(help="Requests generated at the same time.")] = None,
    max_queue: Annotated[str | None, typer.Option(help="Requests that may wait; more are answered with 429.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in the API.")] = None,
    *,
    expose_scores: Annotated[
        bool | None, typer.Option("--expose-scores/--hide-scores", help="Show verdict and score in every answer.")
    ] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="One line per request.")
    ] = None,
) -> None:
    """Serve a model over HTTP."""
    given = {name: value for name, value in locals().items() if value not in (None, "")}
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings(**given)
    except ValidationError as error:
        mistake(_setting_message(error))
    plan = _Plan(settings)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        mistake(f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}")
    with listener:
        _serve(settings, plan, listener)


def _setting_message(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    option = "--" + str(first["loc"][0]).replace("_", "-") + ": " if first["loc"] else ""
    got = f", not {first['input']!r}" if first["loc"] else ""
    return f"{option}{first['msg']}{got}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, before anything slow is done. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


class _Plan:
    """Which model, guard and name the settings stand for."""

    def __init__(self, settings: Settings) -> None:
        from models import demo

        is_demo = settings.model is None or Path(settings.model).absolute() == demo.CHECKPOINT
        self.model = settings.model or str(demo.CHECKPOINT)
        self.guard = settings.guard or (str(demo.GUARD) if is_demo else None)
        if self.guard is not None and self.guard.lower() == "none":
            self.guard = None
        self.name = settings.served_model_name or (DEMO_NAME if is_demo else _short_name(self.model))

    def load(self, settings: Settings) -> Engine:
        """Load model and guard; for the engine's thread. Raises LoadError, BundleError, PolicyError."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from models.load import load_backbone
        from server.engine import Engine
        from server.scheduler import Scheduler
        from server.serving import make_policy
        from steering.bundle import load_guard

        backbone = load_backbone(
            self.model,
            device=settings.device,
            dtype=settings.dtype,
            max_rows=settings.max_rows,
            revision=settings.revision,
        )
        guard = None if self.guard is None else load_guard(Path(self.guard), backbone.info)
        make_policy(guard, settings)
        return Engine(backbone, guard, Scheduler(settings.max_rows, settings.prefill_tokens))


def _short_name(model: str) -> str:
    return Path(model).absolute().name if Path(model).is_dir() else model


def _serve(settings: Settings, plan: _Plan, listener: socket.socket) -> None:
    """Run until a signal; exits with 2 if the model does not load."""
    from server.app import create_app
    from server.engine_thread import EngineThread
    from server.http_server import HttpServer

    runner = EngineThread(lambda: plan.load(settings), max_live=settings.max_live)
    application = create_app(settings, runner, name=plan.name)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = HttpServer(application, runner, settings, announce=lambda: announce(application.state.service.served, url))
    server.run(sockets=[listener])
    if server.start_failure is not None:
        failure = server.start_failure
        if not _is_expected(failure):
            logging.getLogger(__name__).error("the model could not be loaded", exc_info=failure)
        mistake(failure)


def _is_expected(failure: BaseException) -> bool:
    """Whether loading failed in a way that its message explains in full."""
    from models.load import LoadError
    from server.serving import PolicyError
    from steering.bundle import BundleError

    return isinstance(failure, (LoadError, BundleError, PolicyError))


def announce(served: Served, url: str) -> None:
    """Print the ready line, how to try it, and a warning where nothing guards the model."""
    policy = served.policy
    if served.layer is None:
        guarded = "UNGUARDED"
        typer.echo(
            f"autosteer: WARNING: UNGUARDED: no guard is loaded, {served.name} answers whatever it is asked.", err=True
        )
    else:
        guarded = (
            f"guarded at layer {served.layer} of {served.info.num_layers}, "
            f"policy {policy.name}: {policy.mode.value}, threshold {policy.threshold:.4g}, eps {policy.eps:.4g}"
        )
        if policy.mode.value == "off":
            typer.echo("autosteer: WARNING: UNGUARDED: the guard is loaded, but its mode is off.", err=True)
    typer.echo(f"autosteer ready: {url} | model {served.name} | {guarded}")
    typer.echo(f"try it: {curl(served.name, url)}")


def curl(model: str, url: str) -> str:
    """A command to paste into a shell: a question about a small drawing that the bundled model knows too."""
    from models.demo.world import Group, Scene, draw_picture, stream

    buffer = io.BytesIO()
    apple = draw_picture(Scene((Group("apple", "red", (4,)),)), stream("try it"))
    apple.quantize(8).save(buffer, "PNG", optimize=True)
    image = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).decode()
    return f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}"
