"""Images as people send them, and as attackers do."""

from __future__ import annotations

import base64
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.media.files import MediaError, decode_image, image_size, read_data_url
from tests.server.scripted import data_url, png

MAX_BYTES, MAX_PIXELS = 200_000, 1_000_000


def load(url: str) -> Image.Image:
    return decode(read_data_url(url, MAX_BYTES))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8))


def close(image: Image.Image, other: Image.Image, tolerance: int) -> bool:
    difference = np.asarray(image, np.int16) - np.asarray(other, np.int16)
    return image.size == other.size and int(np.abs(difference).max()) <= tolerance


def decode(data: bytes) -> Image.Image:
    return decode_image(data, MAX_PIXELS)


@pytest.mark.parametrize(
    ("kind", "mime", "options", "tolerance"),
    [
        ("PNG", "image/png", {}, 0),
        ("BMP", "image/bmp", {}, 0),
        ("WEBP", "image/webp", {"lossless": True}, 0),
        ("WEBP", "image/webp", {"quality": 95}, 24),
        ("JPEG", "image/jpeg", {"quality": 98}, 24),
        ("JPEG", "image/jpg", {"quality": 98, "progressive": True}, 24),
        ("GIF", "image/gif", {}, 24),
    ],
)
def test_every_supported_format(kind: str, mime: str, options: dict[str, Any], tolerance: int) -> None:
    image = load(data_url(encoded(gradient(), kind, **options), mime))
    assert image.mode == "RGB"
    assert close(image, gradient(), tolerance)


def test_the_image_is_decoded_and_independent_of_its_file() -> None:
    image = decode(png())
    assert type(image) is Image.Image
    assert image.getpixel((0, 0)) == (255, 0, 0)


def rgba(alpha: int) -> Image.Image:
    return Image.new("RGBA", (4, 4), (0, 0, 255, alpha))


def palette_with_transparency() -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return encoded(image, "PNG", transparency=1)


CMYK = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)


@pytest.mark.parametrize(
    ("data", "pixel"),
    [
        (encoded(rgba(0)), (255, 255, 255)),
        (encoded(rgba(255)), (0, 0, 255)),
        (encoded(rgba(128)), (127, 127, 255)),
        (encoded(rgba(0), "WEBP", lossless=True), (255, 255, 255)),
        (encoded(Image.new("LA", (4, 4), (0, 0))), (255, 255, 255)),
        (encoded(Image.new("LA", (4, 4), (90, 255))), (90, 90, 90)),
        (palette_with_transparency(), (255, 255, 255)),
        (encoded(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", transparency=(9, 8, 7)), (255, 255, 255)),
        (encoded(Image.new("L", (4, 4), 77)), (77, 77, 77)),
        (encoded(Image.new("1", (4, 4), 1)), (255, 255, 255)),
        (encoded(Image.new("I;16", (4, 4), 0x8000)), (128, 128, 128)),
        (encoded(Image.new("I;16", (4, 4), 0x00FF)), (0, 0, 0)),
    ],
)
def test_modes_come_out_right(data: bytes, pixel: tuple[int, int, int]) -> None:
    found = decode(data).getpixel((1, 1))
    assert isinstance(found, tuple)
    assert max(abs(a - b) for a, b in zip(found, pixel, strict=True)) <= 1


def test_cmyk_jpeg_is_red() -> None:
    red, green, blue = decode(CMYK).getpixel((4, 4))  # type: ignore[misc]
    assert (red > 230, green < 40, blue < 40) == (True, True, True)


def test_16_bit_colour_png() -> None:
    row = b"\0" + struct.pack(">6H", 0xFFFF, 0x8000, 0, 0, 0x4000, 0xFFFF)
    data = raw_png(2, 1, zlib.compress(row), depth=16)
    assert [decode(data).getpixel((x, 0)) for x in (0, 1)] == [(255, 128, 0), (0, 64, 255)]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind, options in [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})]:
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
        assert decode(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = Image.new("RGB", (30, 20), "white")
    upright.paste((255, 0, 0), (0, 0, 10, 10))  # red in the upper left corner
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(decode(encoded(stored, "PNG", exif=exif)), upright, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_refuse() -> None:
    data = encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode(data).size == (40, 30)


# attacks -----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LONG = zlib.compress(bytes(2 * 2**20))
PROFILE = b"icc\0\0"
ODD: dict[str, bytes] = {
    "zTXt": b"Comment\0\0" + LONG,
    "iTXt": b"Comment\0\1\0\0\0" + LONG,
    "tEXt": b"Comment\0" + bytes(2 * 2**20),
    "iCCP": PROFILE + LONG,
    "a broken text": b"no keyword",
    "a broken profile": PROFILE + b"no zlib",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("times", [1, 70])
def test_texts_and_profiles_of_a_png_do_not_matter(name: str, times: int) -> None:
    kind = {"a broken text": b"zTXt", "a broken profile": b"iCCP"}.get(name, name.encode())
    picture = gradient(4, 3)
    whole = encoded(picture)
    head = 8 + 25  # signature and header
    odd = whole[:head] + chunk(kind, ODD[name]) * times + whole[head:]
    assert decode(odd).tobytes() == decode(whole).tobytes()
    assert image_size(odd, 10**6) == (4, 3)


SEGMENT = struct.pack(">H", 65_535) + bytes(65_533)
JPEG_SEGMENTS: dict[str, bytes] = {
    "2 MiB of comments": (b"\xff\xfe" + SEGMENT) * 32,
    "pieces of a profile that do not fit": b"\xff\xe2"
    + struct.pack(">H", 20)
    + b"ICC_PROFILE\0\5\1odds"
    + b"\xff\xe2"
    + SEGMENT,
    "XMP that is none": b"\xff\xe1" + struct.pack(">H", 35) + b"http://ns.adobe.com/xap/1.0/\0<x:x>"[:33],
    "a photographer's resources that are none": b"\xff\xed" + struct.pack(">H", 22) + b"Photoshop 3.0\x008BIM\xff\xff",
}


@pytest.mark.parametrize("name", JPEG_SEGMENTS)
def test_segments_of_a_jpeg_do_not_matter(name: str) -> None:
    whole = encoded(gradient(), "JPEG")
    assert decode(whole[:2] + JPEG_SEGMENTS[name] + whole[2:]).tobytes() == decode(whole).tobytes()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("WEBP", {"icc_profile": b"no profile" * 2**18}),
        ("WEBP", {"xmp": b"<x" * 2**20}),
        ("WEBP", {"exif": b"Exif\0\0no exif"}),
        ("GIF", {"comment": b"x" * 2**21}),
        ("JPEG", {"icc_profile": b"no profile" * 2**17}),
    ],
)
def test_what_an_image_is_told_to_be_does_not_matter(kind: str, options: dict[str, Any]) -> None:
    assert decode(encoded(gradient(), kind, **options)).tobytes() == decode(encoded(gradient(), kind)).tobytes()


def raw_png(width: int, height: int, packed: bytes, *, depth: int = 8, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def huge_webp(kind: bytes) -> bytes:
    data = bytearray(encoded(Image.new("RGBA" if kind == b"VP8X" else "RGB", (8, 8)), "WEBP", lossless=kind != b"VP8 "))
    if kind == b"VP8X":
        body = b"\x10\0\0\0" + (16000).to_bytes(3, "little") + (16000).to_bytes(3, "little")
        data[12:12] = b"VP8X" + struct.pack("<I", 10) + body
    elif kind == b"VP8L":
        data[21:25] = (16000 | 16000 << 14).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", 16000, 16000)
    assert data[12:16] == kind
    return bytes(data)


def huge_gif() -> bytes:
    data = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", 60000, 60000)
    return bytes(data)


def gif_with_a_frame_larger_than_its_screen() -> bytes:
    data = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
    at = data.index(b"\x2c")
    data[at + 5 : at + 9] = struct.pack("<HH", 60000, 60000)
    return bytes(data)


def huge_bmp() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 100_000, 100_000)
    return bytes(data)


def huge_jpeg() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def many_scans() -> bytes:
    data = encoded(gradient(), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 150 + b"\xff\xd9"


BOMBS: dict[str, Callable[[], bytes]] = {
    "png header": lambda: raw_png(60_000, 60_000, b""),
    "png just over the limit": lambda: encoded(Image.new("L", (1001, 1000))),
    "png of 200 megapixels that packs well": lambda: raw_png(20_000, 10_000, zlib.compress(b"\0" * 2_000_000)),
    "png with sides of 2**31": lambda: raw_png(2**31 - 1, 2**31 - 1, b""),
    "png of a line": lambda: encoded(Image.new("L", (402, 2))),
    "png of a column": lambda: encoded(Image.new("L", (1, 201))),
    "png without width": lambda: raw_png(0, 5, b""),
    "webp extended": lambda: huge_webp(b"VP8X"),
    "webp lossless": lambda: huge_webp(b"VP8L"),
    "webp lossy": lambda: huge_webp(b"VP8 "),
    "gif screen": huge_gif,
    "gif frame": gif_with_a_frame_larger_than_its_screen,
    "bmp": huge_bmp,
    "jpeg": huge_jpeg,
    "jpeg scans": many_scans,
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(name: str) -> None:
    with pytest.raises(MediaError):
        decode(BOMBS[name]())


def test_a_bomb_names_its_size_and_the_limit() -> None:
    with pytest.raises(MediaError, match=r"1001 x 1000 = 1001000 pixels, more than the limit of 1000000"):
        decode(BOMBS["png just over the limit"]())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_refused_at_every_length(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8))
    data = encoded(noise, kind)
    for share in (0.02, 0.2, 0.5, 0.8, 0.95):
        with pytest.raises(MediaError):
            decode(data[: int(len(data) * share)])


NOT_IMAGES = {
    "nothing": b"",
    "text": b"hello",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.7\n" + b"0" * 100,
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "tiff, a format that is not offered": encoded(gradient(), "TIFF"),
    "icon, a format that is not offered": encoded(gradient(), "ICO"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "zeros": bytes(1000),
    "html before a png": b"<html>" + png(),
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_not_an_image_is_refused(name: str) -> None:
    with pytest.raises(MediaError):
        load(data_url(NOT_IMAGES[name]))


def test_a_png_with_a_script_behind_it_is_only_a_picture() -> None:
    image = decode(png() + b"<script>alert(1)</script>")
    assert image.getpixel((0, 0)) == (255, 0, 0)


GOOD = data_url(png())
PAYLOAD = GOOD.split(",")[1]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "http://127.0.0.1/a.png",
        "HTTPS://example.com/a.png",
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "gopher://x",
        "//example.com/a.png",
        "/etc/passwd",
        "javascript:alert(1)",
        "data:",
        "data:,",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/png;base64,",
        f"data:text/html;base64,{PAYLOAD}",
        f"data:image/svg+xml;base64,{PAYLOAD}",
        f"data:image/tiff;base64,{PAYLOAD}",
        f"data:;base64,{PAYLOAD}",
        f"data:image/png;base64;charset=utf-8,{PAYLOAD}",
        f" {GOOD}",
        f"{GOOD}=",
        f"{GOOD}\n",
        f"{GOOD[:-1]}",
        f"data:image/png;base64,{PAYLOAD[:20]} {PAYLOAD[20:]}",
        f"data:image/png;base64,{PAYLOAD.replace('+', '-').replace('/', '_')}%3D",
        "data:image/png;base64,ééé",
        "data:image/png;base64,====",
        "data:" + "a" * 10_000 + ";base64,AAAA",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(MediaError):
        load(url)


def test_http_urls_are_said_to_be_off() -> None:
    with pytest.raises(MediaError, match="is off"):
        read_data_url("https://example.com/a.png", 10)


@pytest.mark.parametrize(
    "url", [GOOD, GOOD.replace("data:image/png", "DATA:Image/PNG"), GOOD.replace(";base64", ";x=y;base64")]
)
def test_urls_that_are_accepted(url: str) -> None:
    assert load(url).size == (8, 8)


def test_the_byte_limit_is_exact_and_named() -> None:
    data = bytes(1000)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert read_data_url(url, 1000) == data
    for limit in (999, 998, 500):
        with pytest.raises(MediaError, match=f"limit is {limit}"):
            read_data_url(url, limit)


@given(st.data())
def test_damaged_files_are_refused_or_decoded_and_nothing_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
    blob = bytearray(encoded(gradient(12, 10), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode(bytes(blob))
        except MediaError:
            return
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS


@given(
    st.one_of(st.text(max_size=80), st.binary(max_size=200).map(data_url), st.text(max_size=40).map("data:".__add__))
)
def test_any_string_is_refused_or_an_image(url: str) -> None:
    try:
        message = str(load(url).size)
    except MediaError as error:
        message = str(error)
    assert len(message) < 300


def test_pil_globals_stay_as_they_are() -> None:
    before = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: decode(png(64, 64))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS
