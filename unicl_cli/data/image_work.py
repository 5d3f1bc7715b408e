"""Bounds on the work that an encoded image may cause beyond its pixels, found from its headers before it is decoded."""

import io
import re
import struct
from collections.abc import Iterator
from typing import Any

MAX_SCANS = 500
"""Scans of a JPEG; libjpeg-turbo's own programs warn of more as an attack. Ordinary ones have up to 20."""
SCANNED_PIXELS = 2_000_000_000
"""Pixels of a JPEG times its scans, at 0.9 s of one core for each thousand million: 10 scans of 200 million pixels."""
MAX_SEGMENTS = 10_000
"""Segments of a JPEG, chunks of a PNG, entries of an ICO, tile-parts of a JPEG 2000."""
MAX_STRIPS = 250_000
SLOW_VALUES = 8_000_000
"""Values that Pillow may decode one by one in Python, at 0.6 µs each: odd PPMs and run lengths of a BMP."""
MAX_COMMENTS = 100
"""Comments of a plain PPM: Pillow copies the file for each."""
FREE_BLOCKS = 65_536
BLOCK_VALUES = 128
"""Precincts and code blocks that any JPEG 2000 may have, and values for each further one: 4 µs and 600 bytes each."""
FREE_READS = 65_536
READ_BYTES = 64
"""Reads of a file by Pillow that are always allowed, and bytes for each further one; 2 µs each."""
SMALL = 1 << 18
_SHORT = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")
"""First bytes of the formats whose parts each take bytes: a file of SMALL bytes cannot have too many."""
_SLOW = frozenset(("ppm", "ppm_plain", "bmp_rle"))
_SCANNED = frozenset(("JPEG", "MPO"))
_IN_ONE_PART = frozenset(("PNG", "GIF", "WEBP", "AVIF", "JPEG2000", "ICO"))
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_START = b"\xff\xd8"


class TooCostlyError(Exception):
    """An image that takes far more work than its number of pixels needs; the message names what it has too much of."""


class MeteredFile(io.BytesIO):
    """An image in memory that ends an endless parse: every part of a file that Pillow handles costs it a read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = FREE_READS + len(data) // READ_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise TooCostlyError("it has too many small parts")
        return io.BytesIO.read(self, size)


def is_short(data: bytes) -> bool:
    """Return whether only the pixels of an image can be costly, as is usual; its parts are then not counted."""
    return len(data) <= SMALL and data.startswith(_SHORT)


def check_headers(data: bytes, most_pixels: int) -> None:
    """Check what must be known before Pillow opens an image. TooCostlyError.

    ``most_pixels`` is for images inside of others (ICO), which Pillow decodes while it opens the file.
    """
    if data.startswith(_START):
        for _ in iter_segments(data):
            pass
    elif data.startswith(b"\0\0\1\0"):
        _check_icons(data, most_pixels)
    elif data.startswith((b"II", b"MM")):
        _check_strips(data)
    elif data[4:8] == b"jP  " or data.startswith(b"\xff\x4f\xff\x51"):
        _check_code_blocks(data)


def check_opened(image: Any, data: bytes, file: io.BytesIO) -> None:
    """Check an image that Pillow has opened and not yet decoded. TooCostlyError."""
    kind = image.format
    if kind in _SCANNED:
        allowed = min(MAX_SCANS, SCANNED_PIXELS // max(1, image.width * image.height))
        # counting one byte takes half to a twentieth of the time of two, and is enough for an ordinary photo
        may_be_many = data.count(b"\xda") > allowed and data.count(b"\xff\xda") > allowed
        if may_be_many and count_scans(data, allowed) > allowed:
            raise TooCostlyError(f"it has more than {allowed} scans")
    elif kind not in _IN_ONE_PART:
        _check_parts(image, data, file)


def _check_parts(image: Any, data: bytes, file: io.BytesIO) -> None:
    """Check that the strips or tiles of an image cover it few times, and the values that Pillow decodes in Python."""
    pixels = max(1, image.width * image.height)
    covered = sum((box[2] - box[0]) * (box[3] - box[1]) for _, box, *_ in image.tile if box)
    if covered > 16 * pixels:  # planes, and tiles that reach over the edges
        raise TooCostlyError(f"its parts cover its pixels {covered // pixels} times")
    if image.tile and image.tile[0][0] in _SLOW:
        values = pixels * len(image.getbands())
        comments = data.count(b"#") if image.tile[0][0] == "ppm_plain" else 0
        if values > SLOW_VALUES or comments > MAX_COMMENTS:
            raise TooCostlyError(f"it has {values:,} values and {comments:,} comments in a format that is read slowly")
        if isinstance(file, MeteredFile):
            file.left += 4 * values


# -- JPEG -----------------------------------------------------------------------------------------------------------


def iter_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) for the segments of a JPEG before its first scan, found as Pillow does."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        place = data.find(b"\xff", place)  # what is not a marker is skipped
        if place < 0 or place + 4 > len(data):
            return
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker == 0xDA:
            return
        else:
            end = place + 2 + (data[place + 2] << 8 | data[place + 3])
            yield marker, place, end
            place = max(end, place + 2)
    raise TooCostlyError(f"it has more than {MAX_SEGMENTS:,} segments before its pixels")


_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))


def count_scans(data: bytes, most: int) -> int:
    """Count the scans of a JPEG up to its end, and no further than ``most`` + 1."""
    place, scans = 2, 0
    for _ in range(MAX_SEGMENTS + 4 * most):
        found = _MARKER.search(data, place)
        if found is None or found[0] == b"\xff\xd9" or scans > most:
            return scans
        place = found.start() + 2
        if found[0][1] not in _WITHOUT_LENGTH:
            scans += found[0] == b"\xff\xda"
            place += int.from_bytes(data[place : place + 2], "big")
    return most + 1


# -- ICO, TIFF ------------------------------------------------------------------------------------------------------


def _check_icons(data: bytes, most_pixels: int) -> None:
    """Check the sizes of the images in an ICO, of which the directory may say anything."""
    (count,) = struct.unpack_from("<H", data.ljust(6, b"\0"), 4)
    if count > MAX_SEGMENTS:
        raise TooCostlyError(f"it has {count:,} images")
    for entry in range(6, 6 + 16 * count, 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        head = data[start : start + 24].ljust(24, b"\0")
        if head.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", head, 16)
        elif head.startswith(b"\x0c\0\0\0"):
            width, height = struct.unpack_from("<HH", head, 4)
        else:
            width, height = map(abs, struct.unpack_from("<ii", head, 4))
        if width * height > 2 * most_pixels:  # a bitmap is stored with its mask, at twice its height
            raise TooCostlyError(f"it holds an image of {width} x {height} pixels")


def _check_strips(data: bytes) -> None:
    """Check the number of strips or tiles of the first image of a TIFF."""
    order = "<" if data.startswith(b"II") else ">"
    wide = data[2:4] in (b"\x2b\0", b"\0\x2b")
    entry, head = struct.Struct(order + ("HHQ8x" if wide else "HHI4x")), order + ("Q" if wide else "I")
    start = struct.unpack_from(head, data.ljust(16, b"\0"), 8 if wide else 4)[0]
    counted = struct.Struct(order + ("Q" if wide else "H"))
    if start + counted.size > len(data):
        return
    (count,) = counted.unpack_from(data, start)
    first = start + counted.size
    entries = data[first : first + entry.size * min(count, MAX_SEGMENTS)]
    whole = entries[: len(entries) - len(entries) % entry.size]
    for tag, _, values in entry.iter_unpack(whole):
        if tag in (273, 324) and values > MAX_STRIPS:
            raise TooCostlyError(f"it has {values:,} strips or tiles")


# -- JPEG 2000 ------------------------------------------------------------------------------------------------------


def _check_code_blocks(data: bytes) -> None:
    """Check the number of precincts, layers and code blocks of a JPEG 2000 (ISO 15444-1, annexes A and B)."""
    start = _find_codestream(data)
    if start + 42 > len(data):
        return  # Pillow says what is wrong
    right, bottom, left, top, width, height, x, y, components = struct.unpack_from(">8IH", data, start + 8)
    if not width or not height or right <= left or bottom <= top:
        return
    tiles = -(-(right - min(x, left)) // width) * -(-(bottom - min(y, top)) // height)
    side = min(width, right - left), min(height, bottom - top)
    blocks = max((_blocks_of_tile(style, *side) for style in _coding_styles(data, start + 2)), default=1)
    allowed = FREE_BLOCKS + (right - left) * (bottom - top) * components // BLOCK_VALUES
    if tiles * components * blocks > allowed:
        raise TooCostlyError(f"it has {tiles * components * blocks:,} code blocks")


def _find_codestream(data: bytes) -> int:
    """Return where the pixels of a JPEG 2000 begin: at once, or in the box `jp2c`; the end of the data if nowhere."""
    if data.startswith(b"\xff\x4f"):
        return 0
    place = 0
    for _ in range(MAX_SEGMENTS):
        if place + 16 > len(data):
            return len(data)
        size, kind, large = struct.unpack_from(">I4sQ", data, place)
        if kind == b"jp2c":
            return place + (16 if size == 1 else 8)
        place += large if size == 1 else size or len(data)
    raise TooCostlyError(f"it has more than {MAX_SEGMENTS:,} boxes")


def _coding_styles(data: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    """Yield (layers, decomposition) for each coding style of the image, its tiles and its components."""
    layers, part, end = 1, 0, 0
    for _ in range(MAX_SEGMENTS):
        marker, body = data[place : place + 2], place + 4
        if marker[:1] != b"\xff" or marker == b"\xff\xd9":
            return
        if marker == b"\xff\x93":  # the data of a tile-part, up to the next one
            place = end
            if end <= part:
                return
            continue
        length = int.from_bytes(data[place + 2 : body], "big")
        if marker == b"\xff\x90":
            size = int.from_bytes(data[body + 2 : body + 6], "big")
            part, end = place, place + size
        elif marker == b"\xff\x52":
            layers = max(layers, int.from_bytes(data[body + 2 : body + 4], "big"))
            has_precincts = data[body : body + 1][0] & 1 if body < len(data) else 0
            yield layers, bytes((has_precincts,)) + data[body + 5 : place + 2 + length]
        elif marker == b"\xff\x53":
            yield layers, data[body + 1 : place + 2 + length]
        place += 2 if b"\xff\x30" <= marker <= b"\xff\x3f" else 2 + max(length, 2)
    raise TooCostlyError(f"it has more than {MAX_SEGMENTS:,} tile-parts")


def _blocks_of_tile(style: tuple[int, bytes], width: int, height: int) -> int:
    """Count the precincts in all layers and the code blocks of one component of a tile."""
    layers, decomposition = style
    has_precincts, levels, block_width, block_height, *_ = decomposition.ljust(6, b"\0")
    sizes = decomposition[6:] if has_precincts & 1 else b""
    total = 0
    for resolution in range(min(levels, 32) + 1):
        scale = 1 << (min(levels, 32) - resolution)
        across, down = -(-width // scale), -(-height // scale)
        size = sizes[resolution] if resolution < len(sizes) else 0xFF
        columns, rows = size & 15, size >> 4
        half = 1 if resolution else 0  # the bands of a resolution have half its sides, and so have their precincts
        columns_of_block = min(block_width + 2, max(0, columns - half))
        rows_of_block = min(block_height + 2, max(0, rows - half))
        total += layers * -(-across >> columns) * -(-down >> rows)
        total += -(-across >> columns_of_block) * -(-down >> rows_of_block)
    return total
