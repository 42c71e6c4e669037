"""Data URLs -> bytes -> PIL images in RGB, under limits of bytes and pixels.

The pixel limit is checked on the header, before anything is decoded. No PIL global is touched, and nothing lazy leaves
this module: an image that is returned is decoded. `server.media.decoder` runs it in processes of their own.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from models.pixels import upright_rgb
from server.media.jpeg import without_resources
from server.media.png import without_texts

FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
}
ALLOWED = sorted(set(FORMATS.values()))
DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
BASE64_SLICE = 2**20
ORIENTATION = 0x0112  # of EXIF
TURNED = frozenset({5, 6, 7, 8})  # by a quarter
# Of the longer side to the shorter. LLaVA 1.5's processor scales the shorter one up to 336: 22 GB for a line of 65,535
# pixels. To scale down one of 24,000,000, a PNG of 4 KB, takes .8 GB and the interpreter's lock for a second. Qwen's
# processors raise beyond this.
MAX_RATIO = 200
MAX_PROGRESSIVE_SCANS = 100  # each scan of a progressive JPEG passes over all pixels; cameras write about ten


class MediaError(Exception):
    """An image that is refused; the message says what it is and what the limit is."""


def data_url(kind: str, base64: str) -> str:
    """A file in base64 as a data URL."""
    return f"data:{kind};base64,{base64}"


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of a base64 data URL. Raises MediaError."""
    scheme = url[:32].split(":", 1)[0].strip().lower()
    if scheme in {"http", "https"}:
        raise MediaError("fetching images from http(s) URLs is off on this server; send the image as a data URL")
    header = DATA_URL.match(url, 0, 256)
    if header is None:
        raise MediaError("only data URLs are accepted: data:image/png;base64,...")
    kind, parameters = header[1].lower(), header[2].lower().split(";")
    if kind not in FORMATS:
        raise MediaError(f"the media type {kind[:40]!r} is not supported; supported are {', '.join(FORMATS)}")
    if parameters[-1] != "base64":
        raise MediaError("a data URL must be base64-encoded: data:image/png;base64,...")
    length = len(url) - header.end()
    if length * 3 // 4 - 2 > max_bytes:
        raise MediaError(f"the image has about {length * 3 // 4} bytes, the limit is {max_bytes}")
    if length % 4:
        raise MediaError("the data URL is not valid base64: its length is not a multiple of 4")
    data = _from_base64(url, header.end())
    if not data:
        raise MediaError("the data URL holds no data")
    if len(data) > max_bytes:
        raise MediaError(f"the image has {len(data)} bytes, the limit is {max_bytes}")
    return data


def _from_base64(url: str, begin: int) -> bytes:
    """In slices, between which other threads have a turn; nothing copies all of it at once. Raises MediaError."""
    if url.find("=", begin, len(url) - 2) >= 0:
        raise MediaError("the data URL is not valid base64: it has padding before its end")
    data = io.BytesIO()
    try:
        for at in range(begin, len(url), BASE64_SLICE):
            data.write(binascii.a2b_base64(url[at : at + BASE64_SLICE], strict_mode=True))
    except (binascii.Error, ValueError):
        raise MediaError("the data URL is not valid base64") from None
    return data.getvalue()


def image_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height of the image that `decode_image` would give, from the file's header. Raises MediaError."""
    with _opened(data, max_pixels) as image:
        width, height = image.size
        return (height, width) if _is_turned(image) else (width, height)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION) in TURNED
    except Exception:  # noqa: BLE001  EXIF of hostile files raises nearly anything, and decoding ignores it then
        return False


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Encoded bytes as a decoded image: upright, RGB, the first frame, transparency on white. Raises MediaError."""
    with _opened(data, max_pixels) as image:
        image.load()
        _check_pixels(image.size, max_pixels)
        return upright_rgb(image)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """A file whose header has been read. Raises MediaError, also for what goes wrong within."""
    if (size := _webp_size(data)) is not None:
        _check_pixels(size, max_pixels)  # PIL reserves the canvas of a WebP when it opens it
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_PROGRESSIVE_SCANS:
        raise MediaError(f"a JPEG may have at most {MAX_PROGRESSIVE_SCANS} scans")
    try:
        with Image.open(io.BytesIO(without_resources(without_texts(data))), formats=ALLOWED) as image:
            _check_pixels(image.size, max_pixels)
            yield image
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(f"the image has more pixels than the limit of {max_pixels}") from None
    except UnidentifiedImageError:
        raise MediaError(f"the data is not an image of a supported format ({', '.join(ALLOWED)})") from None
    except Exception as error:  # noqa: BLE001  PIL's decoders raise nearly anything on hostile bytes
        raise MediaError(f"the image is broken or truncated ({type(error).__name__})") from None


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"the image is empty: {width} x {height}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaError(f"the image is {width} x {height}; no side may be over {MAX_RATIO} times the other")
    if width * height > max_pixels:
        raise MediaError(
            f"the image has {width} x {height} = {width * height} pixels, more than the limit of {max_pixels}"
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas of a WebP from its first chunk (RFC 9649, sections 2.5 to 2.7); `None` if it is not one."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return (
                int.from_bytes(data[26:28], "little") & 0x3FFF,
                int.from_bytes(data[28:30], "little") & 0x3FFF,
            )
    return None
