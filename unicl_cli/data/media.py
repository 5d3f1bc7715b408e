"""Media beside images: the kinds that folders and lists read, and checks of their files that decode no sound."""

import errno
import io
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from unicl_cli.data.image_metadata import PNG
from unicl_cli.data.pictures import open_image, upright_size
from unicl_cli.storage.files import read_regular

MAX_MEDIA_BYTES = 64_000_000
"""A row with a larger item of media is left out."""
IMU_COLUMNS = 6
"""Columns of an IMU recording: acceleration along three axes, then rotation about them."""
_GREY = 0
_STREAMED = (0xFFFFFFFF, 0x7FFFFFFF)
"""Sizes of a WAV's samples that a program writes which cannot seek back: they go on to the end of the file."""
_OGG_SOUNDS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
_PAGE = 27
"""Bytes of an OGG page before the table of its segments."""


class MediaError(ValueError):
    """Media of a row that cannot be stored. ``reason`` is bad_media, media_too_large or missing_file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def count_missing(found: int, rows: int) -> dict[str, int]:
    """Return how many of so many rows have an item of media, and how many lack it, for a report."""
    return {"rows": found, "missing": rows - found}


def read_medium(kind: str, path: Path, name: str) -> bytes:
    """Return the bytes of a file of media as they are; ``name`` is said of it. MediaError if it cannot be used."""
    try:
        return read_regular(path, MAX_MEDIA_BYTES)
    except OSError as error:
        reasons = {errno.ENOENT: "missing_file", errno.EFBIG: "media_too_large"}
        reason = reasons.get(error.errno or 0, "bad_media")
        raise MediaError(reason, f"{kind}: {name}: {error.strerror}") from error


def check_media(media: Mapping[str, bytes], names: Mapping[str, str], image: bytes) -> None:
    """Raise MediaError for the first file that is not what its kind holds; ``names`` says which file it is.

    Audio is WAV, FLAC or OGG; depth a grey PNG of 16 bits, thermal one of 8 or 16, both of the size of the ``image``;
    IMU an NPY of float32 (T, 6), or CSV with 6 columns. Raises ImageError if the image's header cannot be read.
    """
    for kind, data in media.items():
        fault = "an empty file" if not data else _CHECKS[kind](data)
        if fault is None and kind in MAPS:
            fault = _find_size_fault(data, image)
        if fault is not None:
            raise MediaError("bad_media", f"{kind}: {names[kind]}: {fault}")


def find_audio_fault(data: bytes) -> str | None:
    """Return the fault of a sound that shows without decoding it, None if there is none: it is cut off, or empty."""
    for start, find_fault in ((b"RIFF", _find_wav_fault), (b"fLaC", _find_flac_fault), (b"OggS", _find_ogg_fault)):
        if data.startswith(start):
            return find_fault(data)
    return "not a WAV, FLAC or OGG file"


def _find_wav_fault(data: bytes) -> str | None:
    """Walk the chunks of a WAV to its samples (RIFF, Multimedia Programming Interface 1.0)."""
    if data[8:12] != b"WAVE":
        return "not a WAV, FLAC or OGG file"
    at, has_format = 12, False
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"fmt ":
            if size < 16 or at + 16 > len(data):
                return "a WAV whose format is cut off"
            channels, rate = struct.unpack_from("<HI", data, at + 2)
            if not channels or not rate:
                return f"a WAV of {channels} channels at {rate} Hz"
            has_format = True
        if name == b"data":
            return _find_samples_fault(size, len(data) - at, has_format=has_format)
        at += size + size % 2
    return "a WAV without samples"


def _find_samples_fault(size: int, there: int, *, has_format: bool) -> str | None:
    if not has_format:
        return "a WAV without a format before its samples"
    if not size or not there:
        return "a WAV without samples"
    if size > there and size not in _STREAMED:
        return f"a WAV that is cut off: {there:,} of {size:,} bytes of samples"
    return None


def _find_flac_fault(data: bytes) -> str | None:
    """Walk the metadata of a FLAC to its first frame (RFC 9639, section 8).

    Its frames are not decoded: they are cut off if there are fewer bytes than so many of the smallest ones take.
    """
    if data[4:8] not in (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22") or len(data) < 42:
        return "a FLAC whose header is cut off or damaged"
    rate = int.from_bytes(data[18:21], "big") >> 4
    if not rate:
        return "a FLAC of 0 Hz"
    at, is_last = 4, False
    while not is_last and at + 4 <= len(data):
        is_last = data[at] >= 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    if not is_last or at > len(data):
        return "a FLAC that is cut off in its header"
    if at == len(data):
        return "a FLAC without samples"
    block, smallest = int.from_bytes(data[10:12], "big"), int.from_bytes(data[12:15], "big")
    frames = -(-(int.from_bytes(data[21:26], "big") & (1 << 36) - 1) // max(1, block))
    return "a FLAC that is cut off" if len(data) - at < frames * smallest else None


def _find_ogg_fault(data: bytes) -> str | None:
    """Walk the pages of an OGG (RFC 3533, section 6): all whole, sound in the first, samples in some.

    The last need not say that it is the last: some recorders never do.
    """
    at, samples = 0, 0
    while at < len(data):
        if data[at : at + 4] != b"OggS"[: len(data) - at]:
            return f"an OGG that is damaged at byte {at:,}"
        table = data[at + _PAGE : at + _PAGE + data[at + _PAGE - 1]] if at + _PAGE <= len(data) else b""
        start = at + _PAGE + len(table)
        if start > len(data) or at + _PAGE > len(data) or start + sum(table) > len(data):
            return f"an OGG that is cut off in the page at byte {at:,}"
        if at == 0 and not data.startswith(_OGG_SOUNDS, start):
            return "an OGG without sound of Vorbis, Opus, FLAC or Speex in its first page"
        samples = max(samples, int.from_bytes(data[at + 6 : at + 14], "little", signed=True))
        at = start + sum(table)
    return None if samples else "an OGG without samples"


def _find_depth_fault(data: bytes) -> str | None:
    return _find_grey_fault(data, (16,))


def _find_thermal_fault(data: bytes) -> str | None:
    return _find_grey_fault(data, (8, 16))


def _find_grey_fault(data: bytes, bits: tuple[int, ...]) -> str | None:
    """Walk the chunks of a PNG to its end; its header says whether it is grey (PNG, section 11.2.1)."""
    if not data.startswith(PNG) or data[12:16] != b"IHDR" or len(data) < 33:
        return "not a PNG file"
    if data[25] != _GREY or data[24] not in bits:
        wanted = "- or ".join(map(str, bits))
        what = {0: "grey", 2: "RGB", 3: "colours of a palette", 4: "grey with alpha", 6: "RGB with alpha"}
        return f"a PNG of {data[24]}-bit {what.get(data[25], 'values')}, not of {wanted}-bit grey"
    at = len(PNG)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IEND":
            return None
        at += 12 + size
    return "a PNG that is cut off"


def _find_size_fault(data: bytes, image: bytes) -> str | None:
    """Return the difference between the size of a map and that of its image, upright; None if they are equal."""
    size = struct.unpack(">II", data[16:24])
    wanted = upright_size(open_image(image))
    if size == wanted:
        return None
    return f"{size[0]} x {size[1]} pixels, but its image has {wanted[0]} x {wanted[1]}: save both at one size"


def _find_imu_fault(data: bytes) -> str | None:
    try:
        values = _read_imu_numbers(data)
    except ValueError as error:
        return str(error)
    if values.dtype != np.float32:
        return f"an NPY of {values.dtype} {values.shape}, not float32 (T, {IMU_COLUMNS})"
    return None


def read_imu(data: bytes) -> np.ndarray:
    """Return the samples of an IMU recording, float32 (T, 6), T > 0, from NPY or CSV. ValueError for other data."""
    return _read_imu_numbers(data).astype(np.float32)


def _read_imu_numbers(data: bytes) -> np.ndarray:
    values = _read_npy(data) if data.startswith(b"\x93NUMPY") else read_imu_csv(data)
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise ValueError("has values that are not finite")
    return values


def _read_npy(data: bytes) -> np.ndarray:
    try:
        values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header raises SyntaxError, TypeError, MemoryError and others
        raise ValueError(f"an NPY that cannot be read: {' '.join(str(error).split())[:100]}") from error
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != IMU_COLUMNS or not len(values):
        raise ValueError(f"an NPY of {values.dtype} {values.shape}, not float32 (T, {IMU_COLUMNS})")
    return values


def read_imu_csv(data: bytes) -> np.ndarray:
    """Return the numbers of a CSV, float32 (T, 6); its first line may name the columns. ValueError for other texts."""
    try:
        lines = [line.split(",") for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError("neither NPY nor a CSV in UTF-8") from error
    if lines and not any(map(_is_number, lines[0])):
        del lines[0]
    if not lines:
        raise ValueError("a CSV without numbers")
    for number, cells in enumerate(lines, 1):
        if len(cells) != IMU_COLUMNS or not all(map(_is_number, cells)):
            raise ValueError(f"a CSV whose row {number} is not {IMU_COLUMNS} numbers with commas between them")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is reported
        return np.array([[float(cell) for cell in cells] for cells in lines]).astype(np.float32)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


MAPS = ("depth", "thermal")
"""Kinds with a value for each pixel of the image."""
_CHECKS: Mapping[str, Callable[[bytes], str | None]] = {
    "audio": find_audio_fault,
    "depth": _find_depth_fault,
    "thermal": _find_thermal_fault,
    "imu": _find_imu_fault,
}
KINDS = tuple(_CHECKS)
"""The kinds of media that folders and lists read."""
