"""What is asked: a user's turn with its images, and the turns around it. Each image file is hashed at most once."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from models.pixels import upright_rgb
from steering.files import digest


@dataclass(frozen=True)
class PictureFile:
    """An image file, opened when it is needed. The same path is the same picture."""

    path: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, read at most once. Raises OSError."""
        return file_digest(self.path)

    @property
    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.path.is_file()

    @property
    def readable(self) -> bool:
        """Whether the file begins like an image; the rest is read when it is needed."""
        try:
            with Image.open(self.path):
                return True
        except (OSError, ValueError, Image.DecompressionBombError):
            return False


class PictureFiles(dict[Path, PictureFile]):
    """Image files by path, one object each: what is known of a file is known to all prompts that show it."""

    def __missing__(self, path: Path) -> PictureFile:
        return self.setdefault(path, PictureFile(path))


Picture = Image.Image | PictureFile | bytes  # decoded, in a file, or a file's content


@dataclass(frozen=True)
class Turn:
    """A turn of words: of the user, the assistant or the system, or what a tool told that the assistant had called."""

    role: str
    text: str
    shows: bool = False  # the question's images stand here and not beside its words

    def messages(self, images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The turn as chat messages; a tool's result comes after the call, whose arguments are decoded."""
        if self.role == "tool":
            function = {"name": "read_note", "arguments": {}}
            call = {"id": "call_1", "type": "function", "function": function}
            called = {"role": "assistant", "content": "", "tool_calls": [call]}
            return [called, {"role": "tool", "tool_call_id": "call_1", "content": self.text}]
        if self.shows:
            return [{"role": self.role, "content": [*images, {"type": "text", "text": self.text}]}]
        return [{"role": self.role, "content": self.text}]


@dataclass(frozen=True)
class Question:
    """One user turn, its words and the images before them; and the turns that stand around it, mostly none."""

    text: str
    images: Sequence[Picture] = ()
    before: tuple[Turn, ...] = ()
    after: tuple[Turn, ...] = ()

    def messages(self, images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The chat, with these parts in the places of the images."""
        shown = any(turn.shows for turn in (*self.before, *self.after))
        content = [*([] if shown else images), {"type": "text", "text": self.text}]
        before, after = ([m for turn in turns for m in turn.messages(images)] for turns in (self.before, self.after))
        return [*before, {"role": "user", "content": content}, *after]

    @property
    def transcript(self) -> str:
        """The words: of the one turn, or of all turns with their roles."""
        if not self.before and not self.after:
            return self.text
        return "\n".join(f"{turn.role}: {turn.text}" for turn in (*self.before, Turn("user", self.text), *self.after))

    def pictures(self) -> list[Image.Image]:
        """The images, decoded. Raises OSError."""
        return [image if isinstance(image, Image.Image) else _opened(image) for image in self.images]

    @property
    def files(self) -> list[PictureFile]:
        """The images that are files."""
        return [image for image in self.images if isinstance(image, PictureFile)]

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's content. Raises OSError."""
        return tuple(image.digest if isinstance(image, PictureFile) else digest(_bytes(image)) for image in self.images)

    @cached_property
    def fingerprint(self) -> int:
        """64 bits of a hash of words and images, by which a bundle knows the rows it was fitted on. Raises OSError."""
        whole = digest(json.dumps([self.transcript, *self.digests]).encode())
        return int.from_bytes(bytes.fromhex(whole[:16]), signed=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(image: Image.Image | bytes) -> bytes:
    return image if isinstance(image, bytes) else image.tobytes()


def _opened(source: PictureFile | bytes) -> Image.Image:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source.path) as image:
        return upright_rgb(image)
