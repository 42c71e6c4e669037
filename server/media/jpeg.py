"""JPEG files without Photoshop's resources: the decoder takes a file whose resources are broken for no image."""

from __future__ import annotations

START = b"\xff\xd8"
RESOURCES = 0xED
WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDB)})  # and a scan, behind which all is image


def without_resources(data: bytes) -> bytes:
    """The same image without these segments before its first scan. What is no JPEG is left as it is."""
    if not data.startswith(START):
        return data
    kept, at, begin = [], len(START), 0
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in WITHOUT_LENGTH:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == RESOURCES:
            kept.append(data[begin:at])
            begin = min(end, len(data))
        at = end
    return b"".join([*kept, data[begin:]]) if kept else data
