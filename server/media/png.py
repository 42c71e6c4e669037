"""PNG files without texts and profiles: the decoder unpacks them all, and refuses a file for many of them."""

from __future__ import annotations

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ABOUT = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})  # texts and colour profiles; EXIF has the orientation


def without_texts(data: bytes) -> bytes:
    """The same image without the chunks that hold texts and profiles. What is no whole PNG is left as it is."""
    if not data.startswith(SIGNATURE):
        return data
    kept, at, begin = [], len(SIGNATURE), 0
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in ABOUT:
            kept.append(data[begin:at])
            begin = min(end, len(data))
        at = end
    return b"".join([*kept, data[begin:]]) if kept else data
