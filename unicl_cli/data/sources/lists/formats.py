"""The formats of lists: which reader opens a file, by its suffix and its first bytes."""

from pathlib import Path

from unicl_cli.data.sources.lists.joined_reader import JoinedReader
from unicl_cli.data.sources.lists.json_reader import JsonReader
from unicl_cli.data.sources.lists.packed_reader import PackedReader, is_packed
from unicl_cli.data.sources.lists.parquet_reader import ParquetReader
from unicl_cli.data.sources.lists.record import ListOptions, Reader
from unicl_cli.data.sources.lists.text_reader import TextReader
from unicl_cli.errors import UniclError
from unicl_cli.storage.files import open_regular

_JSON = (".json", ".jsonl", ".ndjson")
_HEAD_BYTES = 1 << 16
_KINDS = {
    b"\x1f\x8b": ("compressed by gzip", "unpack it: gunzip"),
    b"BZh": ("compressed by bzip2", "unpack it: bunzip2"),
    b"\xfd7zXZ\0": ("compressed by xz", "unpack it: unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it: unzstd"),
    b"PK\3\4": ("a zip archive", "unpack it: unzip"),
    b"PAR1": ("a Parquet file", "let its name end in .parquet:"),
    b"\x89PNG": ("an image", "use a folder of images, or a list of their places, instead of"),
    b"\xff\xd8\xff": ("an image", "use a folder of images, or a list of their places, instead of"),
    b"%PDF": ("a PDF document", "save the list as text instead of"),
    b"SQLite format 3": ("a database", "write its table as CSV instead of"),
}
"""First bytes of files of other kinds: what such a file is, and what to do with it; its name follows."""
_PAGES = (b"<!doctype", b"<html")


def open_reader(path: Path, options: ListOptions) -> Reader:
    """Return the reader of a list. UniclError if it is damaged, or if an option does not belong to its format."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        _refuse_options(path, {"sep": options.sep, "encoding": options.encoding}, "Parquet")
        return ParquetReader(path)
    if is_packed(path):
        _refuse_options(path, {"sep": options.sep, "encoding": options.encoding}, "an archive")
        return PackedReader(path)
    if options.join is not None:
        return JoinedReader(path, Path(options.join).expanduser())
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UniclError(f"{path}: cannot be read: {error.strerror}", "check the permissions of the file") from error
    _check_text(path, head, options)
    if suffix in _JSON or (suffix not in (".csv", ".tsv") and _opens_json(head)):
        _refuse_options(path, {"sep": options.sep}, "JSON")
        return JsonReader(path, options)
    return TextReader(path, options)


def _check_text(path: Path, head: bytes, options: ListOptions) -> None:
    for beginning, (kind, hint) in _KINDS.items():
        if head.startswith(beginning):
            raise UniclError(f"{path}: is {kind}, not a list", f"{hint} {path}")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16].lower().startswith(_PAGES):
        raise UniclError(
            f"{path}: is a web page, not a list", "open it in a browser: it says what to do before the download"
        )
    if options.encoding is None and head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UniclError(f"{path}: encoded as UTF-16", f"save it as UTF-8, or read it by '{path}?encoding=utf-16'")
    if options.encoding is None and head.count(0) > len(head) // 4:
        raise UniclError(
            f"{path}: a quarter of its bytes are NUL",
            f"if it is text in UTF-16, read it by '{path}?encoding=utf-16-le'",
        )
    if b"\r" in head and b"\n" not in head:
        raise UniclError(f"{path}: its lines end in CR alone", "save it with line endings LF or CRLF")


def _opens_json(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _refuse_options(path: Path, given: dict[str, object], form: str) -> None:
    if odd := [name for name, value in given.items() if value is not None]:
        raise UniclError(f"{path}: {odd[0]}= does not apply to {form}", f"remove {odd[0]}=")
