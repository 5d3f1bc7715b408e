"""Images inside a zip, read in place: its directory gives the place of each."""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from unicl_cli.data.pictures import MAX_BYTES, Extent, ImageError, read_extent
from unicl_cli.errors import UniclError

_HEADER = struct.Struct("<4s22xHH")
"""A member's own header: its signature, and the lengths of its name and extra field, which follow."""
_ENCRYPTED = 1
_MAC = "__MACOSX/"
"""A folder that macOS adds to its zips, with a file of attributes for each file."""


class ZipMember(NamedTuple):
    """A file of the zip: the place of its header, its size in the zip and unpacked, and how it is packed."""

    header: int
    packed: int
    size: int
    crc: int
    method: int
    is_encrypted: bool


class ZipImages:
    """The files of a zip by name; a folder that holds all of them need not be named (`train2017/` of COCO)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def members(self) -> Mapping[str, ZipMember]:
        """The files by name. UniclError for a file that is not a whole zip."""
        try:
            with zipfile.ZipFile(self.path) as content:
                found = {
                    info.filename: ZipMember(
                        info.header_offset,
                        info.compress_size,
                        info.file_size,
                        info.CRC,
                        info.compress_type,
                        bool(info.flag_bits & _ENCRYPTED),
                    )
                    for info in content.infolist()
                    if not info.is_dir()
                }
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise UniclError(f"{self.path}: not a whole zip: {error}", "copy or download it again") from error
        return {name: member for name, member in found.items() if not name.startswith(_MAC)}

    @cached_property
    def _top(self) -> str:
        """The folder that holds all files, with its slash; empty if there is none."""
        tops = {name.partition("/")[0] if "/" in name else "" for name in self.members}
        return f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""

    def find(self, ref: str) -> ZipMember | None:
        """Return the file that a list names, with or without the folder that holds all files; None if it is missing."""
        name = ref.replace("\\", "/").removeprefix("./")
        return self.members.get(name) or self.members.get(self._top + name)

    def extent(self, ref: str) -> Extent | None:
        """Return the place of an image that is stored as it is; None if it is packed or missing."""
        member = self.find(ref)
        if member is None or member.method != zipfile.ZIP_STORED or member.is_encrypted or member.size > MAX_BYTES:
            return None
        return Extent(str(self.path), self._start(member), member.size)

    def read(self, ref: str) -> bytes:
        """Return the bytes of an image. FileNotFoundError if it is missing; ImageError for damage, or a locked zip."""
        member = self.find(ref)
        if member is None:
            raise FileNotFoundError(f"{ref} is not in {self.path}")
        if member.is_encrypted or member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError("read_error", f"{self.path}: {ref} is encrypted, or packed by method {member.method}")
        if member.size > MAX_BYTES:
            raise ImageError("too_large", f"more than {MAX_BYTES:,} bytes")
        data = read_extent(Extent(str(self.path), self._start(member), member.packed))
        if member.method == zipfile.ZIP_DEFLATED:
            data = _inflate(data, member.size)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise ImageError("broken", f"{self.path}: the checksum of {ref} is wrong")
        return data

    def _start(self, member: ZipMember) -> int:
        """Return the place of a file's content, behind its own header. ImageError if there is none."""
        found = read_extent(Extent(str(self.path), member.header, _HEADER.size))
        signature, name, extra = _HEADER.unpack(found)
        if signature != b"PK\3\4":
            raise ImageError("broken", f"{self.path}: no file begins at byte {member.header:,}")
        return member.header + _HEADER.size + name + extra


def _inflate(data: bytes, size: int) -> bytes:
    """Unpack to at most ``size`` bytes. ImageError for damage."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return unpacker.decompress(data, size) if size else b""
    except zlib.error as error:
        raise ImageError("broken", str(error)) from error
