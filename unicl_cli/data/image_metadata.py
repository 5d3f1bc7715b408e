"""Removal of the parts of a PNG or JPEG that its pixels do not need, including those that Pillow refuses."""

import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_PIXEL_CHUNKS = frozenset((b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"))
"""Ancillary chunks of a PNG that an image may need: transparency, frames, orientation."""
_TEXT_BYTES = 1 << 20
MAX_PARTS = 100_000
"""Maximum number of chunks of a PNG among which damaged metadata is searched for."""
_NOTES = ((b"JFIF\0", 18), (b"Exif\0", 12), (b"Adobe", 16), (b"ICC_PROFILE\0", 18))
"""Application segments of a JPEG that its colours or orientation may depend on, and the least bytes of each."""


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG without the parts that its pixels do not need; None if it has none, or for other files.

    Pillow refuses a whole image for a long text, a long profile or a damaged note. Short plain texts stay in a PNG:
    they may hold the orientation (XMP).
    """
    parts = _png_parts(data) if data.startswith(PNG) else _jpeg_parts(data) if data.startswith(JPEG) else ()
    kept, dropped = [data[:0]], False
    for number, (part, is_needed) in enumerate(parts):
        if number == MAX_PARTS:
            return None
        if is_needed:
            kept.append(part)
        else:
            dropped = True
    return b"".join(kept) if dropped else None


def _png_parts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the signature and the chunks of a PNG, each with whether it is needed; what is cut comes last."""
    yield PNG, True
    place = len(PNG)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunk = data[place:end]
        yield chunk, chunk[4:5].isupper() or _is_sound_note(chunk[4:8], chunk)
        place = end


def _is_sound_note(kind: bytes, chunk: bytes) -> bool:
    """Return True for an ancillary chunk that is sound, and that pixels or orientation may depend on."""
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return kind == b"tRNS"  # damage to pixels is not forgiven
    body = chunk[8:-4]
    is_plain = kind == b"tEXt" or (kind == b"iTXt" and body.partition(b"\0")[2][:1] == b"\0")
    return kind in _PIXEL_CHUNKS or (is_plain and len(body) <= _TEXT_BYTES)


def _jpeg_parts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the segments of a JPEG, each with whether it is needed, and in the end its scans as one."""
    yield data[:2], True
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] not in (b"\xda", b""):
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        marker, segment = data[place + 1], data[place:end]
        is_note = marker in range(0xE0, 0xF0) or marker == 0xFE
        yield segment, not is_note or any(segment[4:].startswith(n) and len(segment) >= m for n, m in _NOTES)
        place = end
    yield data[place:], True
