"""The reader of a taxonomy: a table of nodes with their parents, or of leaves with a column for each rank."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from unicl_cli.data.class_entry import ID_WORDS, NAME_WORDS, as_id
from unicl_cli.data.class_numbers import speak_name, speak_names
from unicl_cli.data.sources.lists.separator import choose_dialect
from unicl_cli.data.sources.resolve import split_options
from unicl_cli.data.sources.text_file import UTF8, read_text
from unicl_cli.data.taxonomy import Node, Taxonomy, build_taxonomy
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.formats import list_first

MAX_BYTES = 64_000_000
MAX_CELL = 1000
"""Maximum number of characters of a name."""
PARENT_WORDS = (
    *("parent", "parent_id", "parentid", "parent_key", "parent_name", "parent_class", "parent_taxon_id"),
    *("parentnameusageid", "hypernym"),
)
RANK_WORDS = ("rank", "taxon_rank", "taxonrank", "level", "group")
KEY_WORDS = (*ID_WORDS[:-1], "node", "child", "hyponym", "taxon_id", "taxonid", "taxon", "image_dir_name")
SPOKEN_WORDS = (*NAME_WORDS, "common_name", "common", "vernacularname", "scientific_name", "scientificname", "aliases")
LINNEAN = (
    *("domain", "realm", "superkingdom", "kingdom", "subkingdom", "superphylum", "phylum", "subphylum", "superclass"),
    *("class", "subclass", "infraclass", "superorder", "order", "suborder", "infraorder", "superfamily", "family"),
    *("subfamily", "tribe", "subtribe", "genus", "subgenus", "species", "specific_epithet", "subspecies", "variety"),
)
CHAINS = (LINNEAN, ("supercategory", "category", "subcategory"), ("coarse", "fine"), ("coarse_label", "fine_label"))
"""Ranks that a header may name, from the top down."""
_LEVEL = re.compile(r"(?:level|rank|tier)_?(\d{1,2})")
_NOTHING = frozenset(("na", "n/a", "nan", "none", "null", "nil", "-", "?", "unknown", "unassigned"))
HEADER = "begin with a line that names the columns: 'name,parent', or ranks such as 'family,genus,species'"


class TaxonomyOptions(NamedTuple):
    """Options of `--taxonomy FILE`: ``ranks`` names columns from the top down."""

    ranks: tuple[str, ...] = ()
    keep_others: bool = False
    many_roots: bool = False
    encoding: str = UTF8
    sep: str | None = None


class _Line(NamedTuple):
    place: str
    cells: list[str]


def parse_spec(spec: str) -> tuple[str, TaxonomyOptions]:
    """Split `tree.csv?roots=many` into the file and its options. UniclError for an unknown option or value."""
    base, written = split_options(spec)
    words = {"others": "keep", "roots": "many"}
    known = ("ranks", *words, "encoding", "sep")
    for name, value in written.items():
        if name not in known:
            raise UniclError(f"{spec}: unknown option '{name}'{did_you_mean(name, known)}", f"use {', '.join(known)}")
        if name in words and value != words[name]:
            raise UniclError(f"{spec}: unknown value {name}={value}", f"write {name}={words[name]}, or leave it out")
    ranks = tuple(filter(None, (rank.strip() for rank in written.get("ranks", "").split(","))))
    if "ranks" in written and len(set(ranks)) < max(2, len(ranks)):
        raise UniclError(f"{spec}: ranks names no two columns", "name them from the top down: ranks=family,genus")
    options = TaxonomyOptions(
        ranks, "others" in written, "roots" in written, written.get("encoding", UTF8), written.get("sep")
    )
    return base, options


def read_taxonomy(path: str, options: TaxonomyOptions, notes: list[str]) -> Taxonomy:
    """Read the taxonomy in a file; ``notes`` gets what it leaves out. UniclError if it is doubtful or unreadable."""
    header, lines = _read_lines(path, options)
    words = [_as_word(cell) for cell in header]
    if repeated := next((cell for cell, word in zip(header, words, strict=True) if words.count(word) > 1), None):
        raise UniclError(f"{path}: two columns are named '{repeated}'", "name each column once")
    parent = next((words.index(word) for word in PARENT_WORDS if word in words), None)
    if parent is not None and not options.ranks:
        nodes = _read_parents(path, words, parent, lines)
        is_below_root = options.many_roots
    else:
        nodes = _read_ranks(path, header, words, options.ranks, lines, notes)
        is_below_root = True  # a line begins at the first rank, which may have several values
    if not nodes:
        raise UniclError(f"{path}: has a header and nothing below it", "write a line for each node")
    return build_taxonomy(path, nodes, is_below_root=is_below_root)


def _read_lines(path: str, options: TaxonomyOptions) -> tuple[list[str], list[_Line]]:
    """Return the header and the other lines, each with as many cells."""
    try:
        text = read_text(Path(path).expanduser(), options.encoding, path, MAX_BYTES)
    except FileNotFoundError as error:
        raise UniclError(
            f"{path}: no such taxonomy", "name a file, or `--taxonomy folders` for nested class folders"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise UniclError(f"{path}: cannot be read: {reason}", "name a CSV or TSV file, or `folders`") from error
    found = list(_split_cells(path, text, options.sep))
    if not found:
        raise UniclError(f"{path}: is empty", HEADER)
    width = len(found[0].cells)
    for place, cells in found:
        if len(cells) != width:
            raise UniclError(
                f"{path}: {place}: {width} cells expected, {len(cells)} found", "quote names that hold a separator"
            )
        if long := next((cell for cell in cells if len(cell) > MAX_CELL), None):
            raise UniclError(f"{path}: {place}: '{long[:40]}…' has {len(long):,} characters", "shorten the name")
    return found[0].cells, found[1:]


def _split_cells(path: str, text: str, sep: str | None) -> Iterator[_Line]:
    dialect = choose_dialect(text[:1_000_000].splitlines(), Path(path).suffix.lower(), sep, path)
    lines = io.StringIO(text, newline="")
    for _ in range(dialect.skipped):
        next(lines)
    quoting = csv.QUOTE_MINIMAL if dialect.is_quoted else csv.QUOTE_NONE
    reader = csv.reader(
        lines, delimiter=dialect.delimiter, quoting=quoting, skipinitialspace=dialect.is_spaced, strict=True
    )
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                place = f"line {reader.line_num + dialect.skipped}"
                yield _Line(place, [" ".join(cell.split()) for cell in cells])
    except csv.Error as error:
        place = f"line {reader.line_num + dialect.skipped}"
        raise UniclError(f"{path}: {place}: {error}", "close every quote in its line") from error


def _as_word(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.casefold())


class _Nodes:
    """Nodes as they are read: a node may come twice if both lines say the same."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.met: dict[str, Node] = {}
        self.places: dict[str, str] = {}

    def add(self, node: Node, place: str) -> None:
        before = self.met.setdefault(node.key, node)
        if before is node:
            self.places[node.key] = place
        if before == node:
            return
        for fact, what in (("parent", "parents"), ("rank", "ranks")):
            old, new = getattr(before, fact), getattr(node, fact)
            if old != new:
                raise UniclError(
                    f"{self.path}: {place}: '{node.key}' has two {what}: '{new}', and '{old}' in "
                    f"{self.places[node.key]}",
                    "give each node one place; distinguish nodes of one name by their paths: fruit/orange",
                )
        names = tuple(dict.fromkeys((*before.names, *node.names)))
        written = tuple(dict.fromkeys((*before.written, *node.written)))
        self.met[node.key] = before._replace(names=names, written=written)

    def speak(self) -> dict[str, Node]:
        """Return the nodes by key; those without names take them from the last part of their key."""
        silent = [key for key, node in self.met.items() if not node.names]
        spoken = speak_names([key.rpartition("/")[2].replace("-", " ") for key in silent])
        for key, names in zip(silent, spoken, strict=True):
            self.met[key] = self.met[key]._replace(names=names)
        return self.met


def _read_parents(path: str, words: Sequence[str], parent_at: int, lines: Sequence[_Line]) -> dict[str, Node]:
    rest = [at for at in range(len(words)) if at != parent_at]
    rank_at = next((at for at in rest if words[at] in RANK_WORDS), None)
    rest = [at for at in rest if at != rank_at]
    key_at = next((at for at in rest if words[at] in KEY_WORDS), None)
    name_at = [at for at in rest if words[at] in SPOKEN_WORDS and at != key_at]
    if key_at is None:
        key_at = name_at.pop(0) if name_at else rest[0] if len(rest) == 1 else None
    if key_at is None:
        raise UniclError(f"{path}: has a column 'parent', but none of names", HEADER)
    keys = {as_id(line.cells[key_at]) for line in lines}
    of_name = _keys_by_name(lines, key_at, name_at, parent_at, keys)
    nodes = _Nodes(path)
    for place, cells in lines:
        key, parent = as_id(cells[key_at]), as_id(cells[parent_at])
        if not key:
            raise UniclError(f"{path}: {place}: the name is empty", "name each node")
        names = _split_names([cells[at] for at in name_at])
        rank = "" if rank_at is None else cells[rank_at]
        written = (key, *names)
        nodes.add(Node(key, of_name.get(parent, parent), rank, names, written, bool(names)), place)
    return nodes.speak()


def _keys_by_name(
    lines: Sequence[_Line], key_at: int, name_at: Sequence[int], parent_at: int, keys: set[str]
) -> dict[str, str]:
    """Return name -> key if parents are written as names and not as keys, and each name has one key; else nothing."""
    parents = {as_id(line.cells[parent_at]) for line in lines} - {""}
    if not name_at or parents <= keys:
        return {}
    found: dict[str, str] = {}
    for _, cells in lines:
        if found.setdefault(cells[name_at[0]], as_id(cells[key_at])) != as_id(cells[key_at]):
            return {}
    return found if parents <= found.keys() else {}


def _split_names(cells: Sequence[str]) -> tuple[str, ...]:
    """Return the names in cells as prompts say them; aliases follow a bar."""
    return tuple(dict.fromkeys(speak_name(name.strip()) for cell in cells for name in cell.split("|") if name.strip()))


def _read_ranks(
    path: str,
    header: Sequence[str],
    words: Sequence[str],
    asked: Sequence[str],
    lines: Sequence[_Line],
    notes: list[str],
) -> dict[str, Node]:
    columns = _choose_ranks(path, header, words, asked)
    rest = [at for at in range(len(words)) if at not in columns]
    id_at = [at for at in rest if words[at] in KEY_WORDS]
    name_at = [at for at in rest if words[at] in SPOKEN_WORDS and at not in id_at]
    if unused := [header[at] for at in rest if at not in (*id_at, *name_at)]:
        notes.append(f"{path}: columns that are neither ranks nor names are not used: {list_first(unused)}")
    genus = next((at for at in columns if words[at] == "genus"), None)
    nodes = _Nodes(path)
    for place, cells in lines:
        filled = [at for at in columns if cells[at]]
        if not filled:
            raise UniclError(f"{path}: {place}: has no value of a rank", "fill in a rank, or remove the line")
        if odd := next((at for at in filled if cells[at].casefold() in _NOTHING), None):
            raise UniclError(
                f"{path}: {place}: '{cells[odd]}' in column '{header[odd]}' is not a name", "leave the cell empty"
            )
        names = _split_names([cells[at] for at in name_at])
        ids = [as_id(cells[at]) for at in id_at if cells[at]]
        parent = ""
        for at in filled:
            own, extra = (names, (*names, *ids)) if at == filled[-1] else ((), ())
            both = _binomial(words[at], cells[at], "" if genus is None else cells[genus])
            key = f"{parent}/{cells[at]}" if parent else cells[at]
            written = (cells[at], *both, *extra)
            nodes.add(Node(key, parent, header[at], own or both, written, bool(own)), place)
            parent = key
    return nodes.speak()


def _binomial(rank: str, name: str, genus: str) -> tuple[str, ...]:
    """Return the name of a species that is written as its epithet alone, with its genus; else nothing."""
    is_epithet = rank in ("species", "specific_epithet") and re.fullmatch(r"[^\W\d_A-Z][^\s]*", name)
    return (f"{genus} {name}",) if genus and is_epithet else ()


def _choose_ranks(path: str, header: Sequence[str], words: Sequence[str], asked: Sequence[str]) -> list[int]:
    """Return the columns that are ranks, from the top down: those asked for, or well-known ones."""
    if asked:
        missing = next((rank for rank in asked if _as_word(rank) not in words), None)
        if missing is not None:
            raise UniclError(
                f"{path}: has no column '{missing}'{did_you_mean(missing, header)}", f"use {list_first(header)}"
            )
        return [words.index(_as_word(rank)) for rank in asked]
    levels = sorted((int(match[1]), at) for at, word in enumerate(words) if (match := _LEVEL.fullmatch(word)))
    chains = [[words.index(word) for word in chain if word in words] for chain in CHAINS]
    found = next((chain for chain in [*chains, [at for _, at in levels]] if len(chain) > 1), [])
    if not found:
        raise UniclError(
            f"{path}: its first line has neither a column 'parent' nor two known ranks: {list_first(header, 8)}",
            f"{HEADER}; or name the columns: --taxonomy '{path}?ranks=TOP,…,LEAF'",
        )
    if "species" in words:  # with an epithet beside it
        found = [at for at in found if words[at] != "specific_epithet"]
    return found
