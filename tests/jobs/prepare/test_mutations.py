"""Whatever happens to the files of a corpus, each command ends in a line, and nothing outside is touched."""

import copy
import hashlib
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError

FEW, MANY = settings(max_examples=5), settings(max_examples=40)
ODD = (
    None, True, -1, 0, 1, 2**62, 10**40, 1.5, "", ".", "..", "../../victim/table", "/etc/hostname", "a\\b", "NUL",
    "x\0y", "data/../../victim/table.parquet", "é" * 300, [], {}, [[]], {"a": 1},
)  # fmt: skip
COLUMNS = ("key", "image", "texts", "text_hash", "label", "source", "width", "sha256")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with sources, their corpus ``whole`` with every file that a corpus can have, and a ``victim``."""
    root = tmp_path_factory.mktemp("mutations")
    for n in range(14):
        file = root / "photos" / ("cat", "dog")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (n * 9, 0, 0)).save(file)
    shutil.copy(root / "photos/cat/0.png", root / "photos/cat/again.png")
    (root / "photos/dog/broken.png").write_bytes(b"no image")
    lines = [f"photos/{('cat', 'dog')[n % 2]}/{n}.png\tan image with number {n}\n" for n in range(6)]
    (root / "list.tsv").write_text("image\tcaption\n" + "".join(lines))
    (root / "victim").mkdir()
    (root / "victim/table.parquet").write_text("mine")
    assert run(*command(root, root / "whole")) == 0
    names = {file.name for file in (root / "whole").rglob("*") if file.suffix == ".json"}
    assert names > {"manifest.json", "plan.json", "holdout.json", "duplicates.json"}
    assert list((root / "whole/rejects").iterdir())
    return root


def command(root, out):
    sources = ("--labels", root / "photos", "--captions", root / "list.tsv")
    return ("prepare", *sources, "--holdout", "0.2", "--dedup", "exact", "--workers", "1", "-o", out)


def run(*argv):
    """The exit status; what is told must be lines. Anything but a UniclError comes out of ``main`` as it is."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*map(str, argv)])
    assert "Traceback" not in err.getvalue()
    return code


def sums(folder):
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*")) if file.is_file()}


def rows_and_classes(corpus):
    """Everything that training and evaluation read."""
    opened = open_corpus(corpus)
    rows = {
        (split, kind): [table.read(n, media=True) for n in range(len(table))]
        for split in opened.splits
        for kind in opened.kinds(split)
        for table in [opened.table(split, kind)]
        if [table.column(name) for name in ("label", "key", "texts")] and list(table.image_hashes())
    }
    return opened.classes, opened.templates, rows


def judge(root, whole):
    """Run each command on the damaged corpus ``root/c``, and compare what they say of it with the ``whole`` one."""
    outside = {name: sums(root / name) for name in ("victim", "photos", "whole")}
    corpus, again = root / "c", root / "again"
    shutil.copytree(corpus, again)
    verified = run("prepare", "--verify", "-o", corpus)
    assert verified in (0, 1, 2)
    assert run("inspect", corpus, "--json", "-q") in (0, 2)
    try:
        found = rows_and_classes(corpus)
    except UniclError as error:
        found = error.message.splitlines()
    assert found == whole or verified != 0
    assert not isinstance(found, list) or len(found) == 1
    if run("prepare", "--repair", "-o", corpus) == 0:
        assert run("prepare", "--verify", "-o", corpus) == 0
    if run(*command(root, again)) == 0 and verified != 0:
        assert run("prepare", "--repair", "-o", again) in (0, 1)
    assert {name: sums(root / name) for name in outside} == outside
    assert {item.name for item in root.iterdir()} == {"victim", "photos", "whole", "list.tsv", "c", "again"}


@pytest.fixture(scope="module")
def whole(place):
    return rows_and_classes(place / "whole")


def fresh(root):
    """A new copy of the corpus, and the names of its files."""
    for name in ("c", "again"):
        shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(root / "whole", root / "c")
    return sorted(file.relative_to(root / "c").as_posix() for file in (root / "c").rglob("*") if file.is_file())


def paths_of(tree, at=()):
    """The places of all values of a JSON tree."""
    yield at
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths_of(value, (*at, key))


def change_tree(data, tree):
    """A copy of ``tree`` with one change: a value gone, exchanged, nested, or swapped with its neighbour."""
    tree = {"": copy.deepcopy(tree)}
    *parents, last = data.draw(st.sampled_from(list(paths_of(tree))[1:]))
    parent = tree
    for key in parents:
        parent = parent[key]
    change = data.draw(st.sampled_from(("delete", "set", "nest", "swap", "more")))
    if change == "delete":
        del parent[last]
    elif change == "set":
        parent[last] = data.draw(st.sampled_from(ODD))
    elif change == "nest":
        for _ in range(data.draw(st.sampled_from((1, 70)))):
            parent[last] = [parent[last]]
    elif change == "swap" and isinstance(parent, list):
        parent[last], parent[last - 1] = parent[last - 1], parent[last]
    elif isinstance(parent[last], int):
        parent[last] += data.draw(st.sampled_from((-1, 1)))
    return tree.get("")


def mutate_json(root, data):
    file = root / "c" / data.draw(st.sampled_from([name for name in fresh(root) if name.endswith(".json")]))
    file.write_text(json.dumps(change_tree(data, json.loads(file.read_text())), indent=1) + "\n")


def mutate_bytes(root, data):
    file = root / "c" / data.draw(st.sampled_from(fresh(root)))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(("flip", "cut", "append", "deep", "folder", "gone")))
    if change == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "cut":
        del content[at:]
    elif change == "append":
        content += b"\0{}"
    elif change == "deep":
        content[:] = b"[" * 100_000
    file.unlink()
    if change == "folder":
        file.mkdir()
    elif change != "gone":
        file.write_bytes(content)


def mutate_shard(root, data):
    """Change a column of a shard; manifest and marker agree with its new size and sum."""
    name = data.draw(st.sampled_from([name for name in fresh(root) if name.endswith(".parquet")]))
    file = root / "c" / name
    table = change_column(data, pq.read_table(file))
    pq.write_table(table, file, row_group_size=max(1, len(table)))
    found = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest = json.loads((root / "c/manifest.json").read_text())
    (shard,) = (shard for shard in manifest["shards"] if shard["file"] == name)
    manifest["bytes"] += found["bytes"] - shard["bytes"]
    shard |= found
    (root / "c/manifest.json").write_text(json.dumps(manifest))
    marker = root / "c/parts" / f"{shard['split']}.{file.stem}.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | found))


def change_column(data, table):
    name = data.draw(st.sampled_from(COLUMNS))
    values = table[name].to_pylist()
    at, field = table.column_names.index(name), table.schema.field(name)
    change = data.draw(st.sampled_from(("drop", "null", "type", "twice", "first", "fewer")))
    if change == "drop":
        return table.drop_columns([name])
    if change == "twice":
        return table.append_column(field, table[name])
    if change == "fewer":
        return table.slice(1)
    if change == "type":
        return table.set_column(at, name, pa.array([b"1"] * len(table), pa.binary()))
    odd = {"key": table["key"][-1].as_py(), "image": {"bytes": None, "path": None}, "label": 2, "source": "other"}
    odd |= {"texts": ["new", None], "text_hash": [1, 2, 3], "sha256": bytes(32), "width": -5}
    values[0] = None if change == "null" else odd[name]
    return table.set_column(at, field, pa.array(values, field.type))


MUTATIONS = {"json": mutate_json, "bytes": mutate_bytes, "shard": mutate_shard}


@pytest.mark.parametrize("kind", MUTATIONS)
@FEW
@given(data=st.data())
def test_a_changed_file_of_a_corpus_is_a_line_and_nothing_outside_changes(place, whole, kind, data):
    MUTATIONS[kind](place, data)
    judge(place, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTATIONS)
@MANY
@given(data=st.data())
def test_a_changed_file_of_a_corpus_is_a_line_and_nothing_outside_changes_often(place, whole, kind, data):
    MUTATIONS[kind](place, data)
    judge(place, whole)
