"""Decoder of image files to RGB: the only place where they are opened, checked and shrunk."""

import errno
import io
import logging
import stat
import struct
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, cast

from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from unicl_cli.data.image_metadata import JPEG, PNG, without_metadata
from unicl_cli.data.image_work import MeteredFile, TooCostlyError, check_headers, check_opened, is_short
from unicl_cli.storage.files import read_regular

MAX_PIXELS = 64_000_000
"""An image with more pixels is halved while it is read: 192 MB as RGB."""
LARGEST_PIXELS = 250_000_000
"""An image with more pixels is refused from its header alone. One of this size takes 1.5 GB while it is halved."""
MAX_BYTES = 8 * MAX_PIXELS
"""A larger file is refused unread."""
TILE = 2048
"""Side of the pieces, in pixels, in which an image is halved."""
QUALITY = 90
LONGEST_SIDE = 65_500
"""Pixels of the longest side that a JPEG can have."""
SUFFIXES = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "bmp", "dib", "tif", "tiff", "avif"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "tga", "ico", "heic", "heif", "svg"),
    )
)
"""Suffixes of image files: a file that cannot be read is rejected by name, never silently skipped."""
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")
"""The formats that Pillow may try: others run programs (EPS calls Ghostscript) or are not images."""
_HALVED = frozenset(("JPEG", "MPO", "PNG", "TIFF", "BMP", "DIB", "PPM", "TGA"))
"""The formats of photos, which need one copy of the pixels to be read; others need several, and end at MAX_PIXELS."""
DECODING_WORDS = (
    "decode the first frame",
    f"halve both sides of an image of more than {MAX_PIXELS:,} pixels: each pixel is the mean of 2 x 2",
    "apply the EXIF orientation",
    "divide values of 16 bits by 256, multiply floating-point values of 0 to 1 by 255, both rounded down",
    "put transparency on white: alpha * colour + (1 - alpha) * 255, rounded; no pixel keeps an alpha",
    "convert to RGB: grey is repeated in all three channels, CMYK goes through its colour profile to sRGB",
)
"""The steps of `decode` for programs that have no unicl."""
_ANIMATED = frozenset(("GIF", "WEBP", "PNG", "AVIF"))
_SIGNATURES = (JPEG, PNG, b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
_UNSUPPORTED_STARTS = (b"%!PS", b"%PDF", b"8BPS", b"\x1f\x8b", b"\xc5\xd0\xd3\xc6")
"""First bytes of PostScript, PDF, Photoshop, gzip (SVGZ) and EPS files."""
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"))

_ONE_LARGE = threading.Lock()
"""Held while an image with more than MAX_PIXELS is read: threads together would need several GB."""

Image.MAX_IMAGE_PIXELS = LARGEST_PIXELS  # Pillow's own limit lies below; `open_image` checks ours
# Pillow warns of large headers and odd metadata on stderr; what matters becomes a reason. Filters inside the functions
# would not work: they belong to the whole process, and images are decoded in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ImageError(ValueError):
    """An image that cannot be used.

    ``reason`` is empty, not_image, unsupported_format, bomb, too_costly, too_large, read_error, too_small, truncated,
    broken or out_of_memory.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Extent(NamedTuple):
    """The bytes of an image inside a file: ``size`` bytes from ``offset`` on."""

    path: str
    offset: int
    size: int


class Examined(NamedTuple):
    """An image as a corpus stores it: ``width`` and ``height`` are upright, ``phash`` has 64 bits, signed."""

    data: bytes
    width: int
    height: int
    phash: int
    animated: bool


def read_file(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read an image file of at most ``most`` bytes. OSError; ImageError if it is larger, or not a regular file."""
    try:
        return read_regular(path, most)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise ImageError("too_large", f"more than {most:,} bytes") from error
        if error.errno in (errno.EINVAL, errno.ENXIO):  # a pipe would never end; a socket cannot be opened
            raise ImageError("read_error", "not a regular file") from error
        raise


def read_extent(extent: Extent) -> bytes:
    """Read the bytes of an image inside a file. OSError; ImageError if they are too many, or if the file is cut off."""
    if extent.size > MAX_BYTES:
        raise ImageError("too_large", f"more than {MAX_BYTES:,} bytes")
    with Path(extent.path).open("rb", buffering=0) as file:  # its own position: rows are read in threads
        file.seek(extent.offset)
        data = file.read(extent.size)
    if len(data) < extent.size:
        raise ImageError("truncated", f"{extent.path} ends inside the image")
    return data


@contextmanager
def blame_image() -> Generator[None]:
    """Turn a MemoryError into the ImageError of the image that needs so much; others are not affected."""
    try:
        yield
    except MemoryError as error:
        raise ImageError("out_of_memory", "it needs more memory than is available") from error


def file_extent(path: Path) -> Extent:
    """Return the extent of an image that is a file of its own; it is empty if `read_file` would refuse it."""
    try:
        found = path.stat()
    except OSError:
        return Extent(str(path), 0, 0)
    return Extent(str(path), 0, found.st_size if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES else 0)


def decode(data: bytes) -> Image.Image:
    """Decode the first frame to RGB: EXIF orientation applied, alpha on white, 16 bits scaled to 8. ImageError.

    An image with more than MAX_PIXELS comes at half its width and height.
    """
    return _finish(open_image(data), data)


def examine(data: bytes, size: int | None, min_side: int = 0) -> Examined:
    """Decode an image once; keep its bytes unless its short side is above ``size`` pixels (then: a smaller JPEG).

    ImageError as ``decode``, and if the short side is below ``min_side``.
    """
    image = open_image(data)
    if min(image.size) < min_side:
        raise ImageError("too_small", f"{image.width} x {image.height} pixels")
    animated = image.format in _ANIMATED and bool(getattr(image, "is_animated", False))
    with blame_image():
        if size is None or min(image.size) <= size:
            width, height = image.size  # decoding may halve it
            pixels = _brightness(image, data)
            if orientation(image) >= 5:  # asked last: Pillow decodes a PNG for it, and a second time forgives damage
                width, height = height, width
        else:
            image.draft("RGB", (size, size))  # libjpeg then decodes at 1/2, 1/4 or 1/8, never below the size
            pixels = _shrink(_finish(image, data), size)
            if max(pixels.size) > LONGEST_SIDE:
                raise ImageError("unsupported_format", f"{pixels.width} x {pixels.height} pixels: too long for a JPEG")
            data = _encode_jpeg(pixels)
            width, height = pixels.size
        return Examined(data, width, height, difference_hash(pixels), animated)


def _brightness(image: Image.Image, data: bytes) -> Image.Image:
    """Return the pixels of an opened image, upright: of a JPEG with colours only their brightness, in half the time.

    All its data are decoded for that, but they are not converted to RGB.
    """
    if image.format != "JPEG" or image.mode != "RGB" or image.width * image.height > MAX_PIXELS:
        return _finish(image, data)
    image.draft("L", None)
    try:
        image.load()
        return _turn_upright(image)
    except Exception:  # of any kind: the whole decoder repairs it or names the reason  # noqa: BLE001
        return decode(data)


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits, signed: 1 for each of 8 x 8 cells that is darker than its right neighbour.

    Similar images differ in few bits.
    """
    grey = image if image.mode == "L" else image.convert("L")
    cells = grey.resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = [cells[row * 9 + column] < cells[row * 9 + column + 1] for row in range(8) for column in range(8)]
    value = int("".join("1" if bit else "0" for bit in bits), 2)
    return value - (1 << 64) if value >> 63 else value


def open_image(data: bytes) -> Image.Image:
    """Open an image: its header is read and checked, its pixels are not. ImageError as ``decode``."""
    if not data:
        raise ImageError("empty")
    try:
        return _open_checked(data)
    except ImageError:
        raise
    except TooCostlyError as error:
        raise ImageError("too_costly", str(error)) from error
    except Image.DecompressionBombError as error:
        raise ImageError("bomb", str(error)) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, MemoryError, ...
        plain = without_metadata(data)
        if plain is not None:
            with suppress(ImageError):  # the reason is that of the whole file
                return open_image(plain)
        known = isinstance(error, UnidentifiedImageError)  # its text is an address in memory
        raise ImageError(_refusal_reason(data, error), "" if known else _one_line(error)) from error


def file_size_in_pixels(path: Path) -> tuple[int, int]:
    """Return the upright (width, height) of an image file from its header. OSError, or ImageError as ``decode``."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return upright_size(image)
    except Exception:  # reading the whole file gives the reason; a damaged note does not matter  # noqa: BLE001
        return upright_size(open_image(read_regular(path, MAX_BYTES)))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) that an opened image has when it is turned upright."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def _open_checked(data: bytes) -> Image.Image:
    """Open an image that has neither too many pixels nor causes far more work than they; errors of Pillow come out."""
    short = is_short(data)
    file = io.BytesIO(data) if short else MeteredFile(data)
    if not short:
        check_headers(data, MAX_PIXELS)
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > (LARGEST_PIXELS if image.format in _HALVED else MAX_PIXELS):
        raise ImageError("bomb", f"{image.width} x {image.height} pixels")
    check_opened(image, data, file)
    return image


def has_image_signature(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` (32 bytes are enough) is an image, decodable or not."""
    return (
        _refusal_reason(head, ValueError()) not in ("not_image", "unsupported_format") or _brand(head) in _HEIF_BRANDS
    )


def _brand(data: bytes) -> bytes:
    return data[8:12] if data[4:8] == b"ftyp" else b""


def _refusal_reason(data: bytes, error: Exception) -> str:
    brand = _brand(data)
    if data.startswith(_UNSUPPORTED_STARTS) or b"<svg" in data[:1024].lower() or brand in _HEIF_BRANDS:
        return "unsupported_format"
    riff = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if riff and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return "truncated"
    if riff or brand in _AVIF_BRANDS or data.startswith(_SIGNATURES):
        return "truncated" if _is_cut(error) else "broken"
    return "not_image"


def _finish(image: Image.Image, data: bytes) -> Image.Image:
    """Return the pixels of an opened image, upright, as RGB."""
    if image.width * image.height <= MAX_PIXELS:
        return _finish_part(image, data)
    with _ONE_LARGE:
        image.draft("RGB", (image.width // 2, image.height // 2))  # libjpeg decodes at half the size
        return _finish_part(image, data)


def _finish_part(image: Image.Image, data: bytes) -> Image.Image:
    try:
        image.load()
    except TooCostlyError as error:
        raise ImageError("too_costly", str(error)) from error
    except Exception as error:
        plain = without_metadata(data)
        if plain is not None:
            with suppress(ImageError):
                return _finish_part(open_image(plain), plain)
        raise _decode_error(error, "truncated" if _is_cut(error) else "broken") from error
    try:
        return _halve(image) if image.width * image.height > MAX_PIXELS else _to_rgb(_turn_upright(image))
    except Exception as error:
        raise _decode_error(error, "broken") from error


def _decode_error(error: Exception, reason: str) -> ImageError:
    return ImageError("out_of_memory" if isinstance(error, MemoryError) else reason, _one_line(error))


def _halve(image: Image.Image) -> Image.Image:
    """Return a decoded image upright as RGB at half its width and height: piece by piece, without a second copy."""
    half = Image.new("RGB", (-(-image.width // 2), -(-image.height // 2)))
    extrema = cast("tuple[float, float]", image.getextrema())
    brightest = extrema[1] if image.mode in ("I", "F") else None  # of the whole, not of a piece
    for top in range(0, image.height, TILE):
        for left in range(0, image.width, TILE):
            piece = image.crop((left, top, min(left + TILE, image.width), min(top + TILE, image.height)))
            half.paste(_to_rgb(piece, brightest).reduce(2), (left // 2, top // 2))
    half.getexif()[ExifTags.Base.Orientation] = orientation(image)
    return _turn_upright(half)


def _is_cut(error: Exception) -> bool:
    return isinstance(error, EOFError | struct.error) or "truncat" in str(error).lower()


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or it is not valid."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a corrupt EXIF block is never fatal: the pixels are there  # noqa: BLE001
        return 1
    return found if found in range(1, 9) else 1


def _turn_upright(image: Image.Image) -> Image.Image:
    if orientation(image) == 1:
        return image  # Pillow would copy it
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a corrupt EXIF block is never fatal: the pixels are there  # noqa: BLE001
        return image


def _to_rgb(image: Image.Image, brightest: float | None = None) -> Image.Image:
    """Return an image as RGB; ``brightest`` is the largest value of the whole image if this is a piece of one."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_eight_bits(image, brightest).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("CMYK", "LAB"):
        return _convert_profile(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image, brightest: float | None) -> Image.Image:
    import numpy as np

    values = np.asarray(image, np.float64)
    most = values.max(initial=0) if brightest is None else max(0.0, brightest)
    if image.mode.startswith("I;16") or most > 255:
        values = values / 256  # plain convert("L") clips instead
    elif image.mode == "F" and most <= 1:
        values = values * 255
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _convert_profile(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            turned = None  # a corrupt profile is never fatal
        if turned is not None:
            return turned
    return image.convert("RGB")


def _shrink(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    width, height = (max(1, round(side * size / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _encode_jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return out.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
