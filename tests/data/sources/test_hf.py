"""Data sets of the `datasets` library: from disk, from Parquet files, from a hub on the loopback interface."""

import hashlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as Picture
from PIL import Image

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.pictures import ImageError
from unicl_cli.data.sources.resolve import open_source, resolve_source
from unicl_cli.errors import UniclError

COMMIT = "c0ffee" * 6 + "c0de"


def jpeg(level):
    out = io.BytesIO()
    Image.new("RGB", (24, 20), (level, 90, 30)).save(out, "JPEG")
    return out.getvalue()


JPEGS = [jpeg(20 * n) for n in range(6)]


def data(**more):
    features = {"img": Picture(), "label": ClassLabel(names=["cat", "sea_lion"]), "caption": Value("string")}
    columns = {
        "img": [{"bytes": content, "path": None} for content in JPEGS],
        "label": [0, 1, 0, 1, -1, 0],
        "caption": ["one", "two", None, "four", " ", "six"],
    }
    for name, (feature, values) in more.items():
        features[name], columns[name] = feature, values
    return Dataset.from_dict(columns, features=Features(features))


def saved(place, **more):
    data(**more).save_to_disk(str(place))
    return str(place)


def parquet(place, names=("data/train-00000-of-00001", "data/validation-00000-of-00001")):
    for name, rows in zip(names, (range(6), range(5)), strict=True):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        data().select(rows).to_parquet(str(place / f"{name}.parquet"))
    return str(place)


def test_a_saved_data_set_gives_its_rows_and_the_bytes_as_they_were(tmp_path):
    source = open_source(saved(tmp_path / "pets"), "labels")
    assert source.splits == ["train"]
    assert [(c.key, c.names) for c in source.classes] == [("cat", ("cat",)), ("sea_lion", ("sea lion",))]
    rows = source.rows("train")
    assert [row.key for row in rows[:2]] == ["train/00000000", "train/00000001"]
    assert [row.label for row in rows] == [0, 1, 0, 1, NO_LABEL, 0]
    assert [row.texts for row in rows] == [("one",), ("two",), (), ("four",), (), ("six",)]
    assert [source.read(row)["image"] for row in rows] == JPEGS
    captions = open_source(str(tmp_path / "pets"), "captions")
    assert (captions.classes, captions.rows("train")[0].label) == ((), NO_LABEL)
    assert open_source(str(tmp_path / "pets"), "images").rows("train")[3] == captions.rows("train")[3]._replace(
        texts=()
    )


def test_splits_of_a_saved_dictionary_are_splits_and_can_be_chosen(tmp_path):
    whole = data()
    of = {"train": whole, "validation": whole.select([1]), "test": whole.select([5, 0]), "extra": whole.select([2])}
    DatasetDict(of).save_to_disk(str(tmp_path / "d"))
    source = open_source(str(tmp_path / "d"), "labels")
    assert source.splits == ["train", "val", "test", "extra"]
    assert [source.read(row)["image"] for row in source.rows("test")] == [JPEGS[5], JPEGS[0]]
    assert source.rows("val")[0].key == "val/00000000"
    assert open_source(f"{tmp_path / 'd'}?splits=validation,test", "labels").splits == ["val", "test"]
    with pytest.raises(UniclError, match="no split 'tset'") as caught:
        open_source(f"{tmp_path / 'd'}?splits=tset", "labels").splits  # noqa: B018
    assert caught.value.hint == "choose from: train, validation, test, extra"


def test_a_split_without_answers_has_no_labels(tmp_path):
    DatasetDict({"train": data(), "test": data().remove_columns("label")}).save_to_disk(str(tmp_path / "d"))
    source = open_source(str(tmp_path / "d"), "labels")
    assert [row.label for row in source.rows("test")] == [NO_LABEL] * 6
    assert source.read(source.rows("test")[5])["image"] == JPEGS[5]
    DatasetDict({}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UniclError, match="none: no splits"):
        open_source(str(tmp_path / "none"), "labels").splits  # noqa: B018


@pytest.mark.parametrize("names", [("data/train-00000-of-00001", "data/validation-00000-of-00001"), ("train", "val")])
def test_a_directory_of_parquet_files_is_a_data_set(tmp_path, names):
    source = open_source(parquet(tmp_path / "pq", names), "labels")
    assert source.splits == ["train", "val"]
    assert [row.label for row in source.rows("val")] == [0, 1, 0, 1, NO_LABEL]
    assert source.read(source.rows("train")[2])["image"] == JPEGS[2]


def test_folders_of_pictures_stay_folders_and_corpora_are_refused(tmp_path):
    (tmp_path / "f" / "cat").mkdir(parents=True)
    (tmp_path / "f" / "cat" / "1.jpg").write_bytes(JPEGS[0])
    data().to_parquet(str(tmp_path / "f" / "list.parquet"))
    assert resolve_source(str(tmp_path / "f"))[0] == "folder"
    (tmp_path / "c" / "parts").mkdir(parents=True)
    (tmp_path / "c" / "plan.json").write_text("{}")
    with pytest.raises(UniclError, match="already a corpus"):
        resolve_source(str(tmp_path / "c"))


def test_a_row_is_read_in_another_process_without_the_library(tmp_path):
    source = open_source(saved(tmp_path / "pets"), "labels")
    row = pickle.dumps(source.rows("train")[4])
    script = (
        "import pickle, sys\n"
        "from unicl_cli.data.sources.resolve import open_source\n"
        f"data = open_source({str(tmp_path / 'pets')!r}, 'labels').read(pickle.loads({row!r}))['image']\n"
        "assert 'datasets' not in sys.modules\n"
        "sys.stdout.buffer.write(data)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == JPEGS[4]


def test_columns_are_found_by_type_and_name_and_the_error_lists_them(tmp_path):
    more = {"mask": (Picture(), [None] * 6), "alt": (Value("string"), list("abcdef")), "age": (Value("int64"), [3] * 6)}
    path = saved(tmp_path / "odd", **more)
    assert open_source(path, "captions").rows("train")[0].texts == ("one",)
    assert open_source(f"{path}?caption=alt", "captions").rows("train")[2].texts == ("c",)
    masks = open_source(f"{path}?image=mask", "images")
    with pytest.raises(ImageError, match="empty"):
        masks.read(masks.rows("train")[0])
    with pytest.raises(UniclError, match="odd: no column 'picture'") as caught:
        open_source(f"{path}?image=picture", "images").rows("train")
    assert caught.value.hint == (
        "choose from: img (Image), label (ClassLabel), caption (string), mask (Image), alt (string), age (int64)"
    )
    for kind, asked, holds in (
        ("captions", "caption=img", "column 'img' holds Image, not captions"),
        ("captions", "caption=label", "column 'label' holds ClassLabel, not captions"),
        ("labels", "image=label", "column 'label' holds ClassLabel, not images"),
    ):
        with pytest.raises(UniclError, match=holds):
            open_source(f"{path}?{asked}", kind).rows("train")
    renamed = data().rename_columns({"caption": "a", "img": "one"}).add_column("b", ["x"] * 6)
    renamed.rename_column("label", "kind").save_to_disk(str(tmp_path / "renamed"))
    with pytest.raises(UniclError, match=r"several caption columns: a, b \(columns: one \(Image\), kind") as caught:
        open_source(str(tmp_path / "renamed"), "captions").rows("train")
    assert caught.value.hint == f"name it: '{tmp_path / 'renamed'}?caption=COLUMN'"
    assert [c.key for c in open_source(str(tmp_path / "renamed"), "labels").classes] == ["cat", "sea_lion"]
    Dataset.from_dict({"n": [1, 2]}).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(UniclError, match=r"no image column \(columns: n \(int64\)"):
        open_source(str(tmp_path / "numbers"), "images").rows("train")


def test_integer_labels_need_names_and_texts_bring_them(tmp_path):
    species = (Value("string"), ["b", "a", "b", "a", None, "b"])
    path = saved(tmp_path / "x", species=species, number=(Value("int64"), [1, 0, 1, 0, -1, 7]))
    named = open_source(f"{path}?label=species", "labels")
    assert [c.key for c in named.classes] == ["a", "b"]
    assert [row.label for row in named.rows("train")] == [1, 0, 1, 0, NO_LABEL, 1]
    with pytest.raises(UniclError, match=r"column 'number' \(int64\) has no class names") as caught:
        open_source(f"{path}?label=number", "labels").rows("train")
    assert "?classes=FILE" in caught.value.hint
    (tmp_path / "names.txt").write_text("zero\none\n")
    numbered = open_source(f"{path}?label=number&classes={tmp_path / 'names.txt'}", "labels")
    assert [c.key for c in numbered.classes] == ["zero", "one"]
    with pytest.raises(UniclError, match="train row 5: label '7' is not a class"):
        numbered.rows("train")
    with pytest.raises(UniclError, match="train row 0: label 'b' is not a class"):
        open_source(f"{path}?label=species&classes={tmp_path / 'names.txt'}", "labels").rows("train")


def test_several_captions_are_a_list(tmp_path):
    texts = (List(Value("string")), [["one", "uno"], [], None, ["x", ""], ["y"], ["z"]])
    rows = open_source(f"{saved(tmp_path / 'x', texts=texts)}?caption=texts", "captions").rows("train")
    assert [row.texts for row in rows] == [("one", "uno"), (), (), ("x",), ("y",), ("z",)]


def test_pictures_may_lie_beside_a_data_set_but_nowhere_else(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpg").write_bytes(JPEGS[0])
    (tmp_path / "secret.jpg").write_bytes(JPEGS[1])
    paths = ["a.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), str(tmp_path / "d" / "a.jpg"), None]
    Dataset.from_dict({"image": paths}).save_to_disk(str(tmp_path / "d"))
    source = open_source(str(tmp_path / "d"), "images")
    read = []
    for row in source.rows("train"):
        try:
            read.append(source.read(row)["image"])
        except ImageError as error:
            read.append(error.reason)
    assert read == [JPEGS[0], "bad_path", "bad_path", JPEGS[0], "empty"]


@pytest.mark.parametrize("damage", ["state.json", "data-00000-of-00001.arrow", "dataset_info.json"])
def test_a_damaged_directory_is_one_line(tmp_path, damage):
    path = saved(tmp_path / "pets")
    (tmp_path / "pets" / damage).write_bytes(b"{")
    with pytest.raises(UniclError, match="pets: `datasets` cannot read it: ") as caught:
        open_source(path, "labels").rows("train")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["../out.arrow", "/out.arrow", "x/../../out.arrow"])
def test_files_outside_of_a_saved_data_set_are_not_opened(tmp_path, name):
    path = Path(saved(tmp_path / "pets"))
    state = json.loads((path / "state.json").read_text())
    (path / state["_data_files"][0]["filename"]).rename(tmp_path / "out.arrow")
    name = name.replace("/out", f"{tmp_path}/out") if name.startswith("/") else name
    (path / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    with pytest.raises(UniclError, match=r"state\.json: .* is outside of the folder"):
        open_source(str(path), "labels").rows("train")


@pytest.mark.parametrize("split", ["../pets", "..", "/tmp"])
def test_splits_outside_of_a_saved_dictionary_are_not_opened(tmp_path, split):
    saved(tmp_path / "pets")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    with pytest.raises(UniclError, match="a split is outside of the folder"):
        open_source(str(tmp_path / "all"), "labels").rows("train")


# -- the hub ---


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as `datasets` asks for: one data set, or the status that it answers with."""

    files: dict[str, bytes]
    refusal: tuple[int, str, str] | None  # status, error code and the part of a path that is refused
    asked: list[str]

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path}")
        place = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if self.refusal and self.refusal[2] in place:
            return self.reply(self.refusal[0], b"{}", X_Error_Code=self.refusal[1], X_Repo_Commit=COMMIT, ETag='"e"')
        api = "/api/datasets/org/pets"
        if place in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return self.reply(200, json.dumps(self.info()).encode())
        if place.startswith(f"{api}/revision/"):
            return self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
        if place.startswith(f"{api}/tree/{COMMIT}"):
            return self.tree(place.removeprefix(f"{api}/tree/{COMMIT}").strip("/"))
        file = place.removeprefix(f"/datasets/org/pets/resolve/{COMMIT}/")
        if file in self.files:
            etag = hashlib.sha1(self.files[file]).hexdigest()
            return self.reply(200, self.files[file], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        known = place.startswith("/datasets/org/pets/")
        return self.reply(404, b"", X_Error_Code="EntryNotFound" if known else "RepoNotFound", X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def info(self):
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        return {"id": "org/pets", "sha": COMMIT, "siblings": siblings, "tags": [], "cardData": {"license": "mit"}}

    def tree(self, under):
        at = f"{under}/" if under else ""
        found = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.files.items()
            if name.startswith(at) and "/" not in name.removeprefix(at)
        ]
        folders = {name.split("/")[0] for name in self.files if "/" in name} if not under else set()
        found += [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders]
        self.reply(200 if found else 404, json.dumps(found).encode())

    def reply(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path):
    root = Path(parquet(tmp_path / "repo"))
    files = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*.parquet")}
    served = type("Served", (Hub,), {"files": files | {"README.md": b"# Pets\n"}, "refusal": None, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served, server.server_port
    server.shutdown()
    server.server_close()


def command(*argv, tmp_path, port, **more):
    home = {"HF_HOME": str(tmp_path / "hf-home"), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | home | more
    argv = [sys.executable, "-m", "unicl_cli", "prepare", *argv]
    return subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_name_on_the_hub_is_fetched_once_and_then_taken_from_the_cache(tmp_path, hub):
    served, port = hub
    first = command("--labels", "hf:org/pets", "-o", "a", tmp_path=tmp_path, port=port)
    assert first.returncode == 0, first.stderr
    assert re.search(
        r"^downloading hf:org/pets: up to \d+\.\d KiB, licence mit; kept in the cache$", first.stderr, re.M
    )
    assert "pets" in first.stdout
    fetched = [line for line in served.asked if line.startswith("GET") and line.endswith(".parquet")]
    assert len(fetched) == 2
    assert not [line for line in served.asked if "/main" in line]  # one commit from the first word to the last
    assert not list((tmp_path / "hf-home").rglob("*.arrow")), "no second copy"
    served.asked.clear()
    again = command("--labels", "hf:org/pets", "-o", "b", tmp_path=tmp_path, port=port, HF_HUB_OFFLINE="1")
    assert (again.returncode, served.asked) == (0, []), again.stderr
    once_more = command("--labels", "hf:org/pets", "-o", "b", tmp_path=tmp_path, port=port)
    assert (once_more.returncode, "downloading" in once_more.stderr) == (0, False)
    away = command("--labels", "hf:org/pets", "-o", "c", tmp_path=tmp_path, port=9)
    assert "set HF_HUB_OFFLINE=1 to read it from the cache" in away.stderr
    plans = [json.loads((tmp_path / out / "plan.json").read_bytes()) for out in ("a", "b")]
    assert plans[0] == plans[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("src", "refusal", "said", "hint"),
    [
        ("hf:org/pets", (401, "RepoNotFound", ""), "not on the hub, or private", "hf auth login"),
        ("hf:org/none", None, "not on the hub, or private", "check the name"),
        (
            "hf:org/pets",
            (403, "GatedRepo", ""),
            "gated: its terms have to be accepted",
            "accept them at https://huggingface.co/datasets/org/pets",
        ),
        ("hf:org/pets", (401, "GatedRepo", "/resolve/"), "gated: its terms have to be accepted", "hf auth login"),
        ("hf:org/pets", (200, "", "/pets.py"), "scripts are no longer supported", "?revision=refs/convert/parquet"),
        ("hf:org/pets", (500, "", ""), "the hub answered with status 500", "try again later"),
        ("hf:org/pets?revision=v9", None, "has no revision 'v9'", "/tree/main"),
        ("hf:org/pets?config=big", None, "`datasets` cannot read it: BuilderConfig 'big' not found", "?config=NAME"),
        (
            "hf:org/pets?image=foto",
            None,
            "no column 'foto'",
            "choose from: img (Image), label (ClassLabel), caption (string)",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_what_to_do(src, refusal, said, hint, tmp_path, hub):
    served, port = hub
    served.refusal = refusal
    ended = command("--labels", src, "-o", "c", tmp_path=tmp_path, port=port)
    assert ended.returncode == 2
    lines = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "  hint:", "Traceback"))]
    assert len(lines) == 2
    assert said in lines[0]
    assert hint in lines[1]


def test_without_the_network_a_name_is_one_line_with_the_way_round(tmp_path):
    for more, said in (({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({}, "cannot be fetched from the hub")):
        ended = command("--labels", "hf:org/pets", tmp_path=tmp_path, port=9, **more)
        assert ended.returncode == 2
        error, hint = ended.stderr.splitlines()
        assert error.startswith("error: hf:org/pets: ")
        assert said in error
        assert "hf download org/pets --repo-type dataset --local-dir DIR" in hint
    assert not (tmp_path / "hf-home").exists()


def test_a_bad_name_is_refused_before_anything_is_asked():
    for src in ("hf:", "hf:a/b/c", "hf:../etc", "hf:a b"):
        with pytest.raises(UniclError, match="not a name on the hub"):
            open_source(src, "labels").splits  # noqa: B018


def test_a_moved_directory_gives_the_same_rows(tmp_path):
    first = open_source(saved(tmp_path / "a"), "labels").rows("train")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert open_source(str(tmp_path / "b"), "labels").rows("train") == first
