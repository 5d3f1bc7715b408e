"""`prepare --verify`, `--repair` and `--dry-run`; damage met in training and evaluation; sources that give nothing."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus

SOURCE = ("--labels", "shapes?count=300&test=60", "--captions", "shapes?count=100&test=20")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "c"
    assert main(["prepare", *SOURCE, "-o", str(out), "-q"]) == 0
    return out


@pytest.fixture
def corpus(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "a b" / "c")


def called(capsys, *argv, code=0):
    """The JSON of the command, and what it said on stderr."""
    assert main([*map(str, argv), "--json"]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if out else None), err


def sums(out):
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in out.rglob("*") if f.is_file()}


def flip(file, at=None):
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 4
    file.write_bytes(data)


def shard_of(corpus, word):
    (file,) = (corpus / "data").rglob(f"*{word}*")
    return file


def test_a_whole_corpus_is_whole_and_verify_changes_nothing(corpus, capsys):
    before = sums(corpus)
    report, err = called(capsys, "prepare", "--verify", "-o", corpus)
    assert (report["ok"], report["finished"], report["rows"], report["problems"]) == (True, True, 480, [])
    assert (report["schema"], report["decoded"] > 20, err) == ("unicl/prepare/1", True, "")
    assert main(["prepare", "--verify", "-o", str(corpus)]) == 0
    assert "no damage found: 4 shards, 480 rows" in capsys.readouterr().out
    assert sums(corpus) == before


def test_verify_names_each_damaged_shard_and_repair_makes_only_those_again(corpus, capsys):
    before = sums(corpus)
    labels = corpus / "data/train/shapes-labels-00000-of-00001.parquet"
    captions = corpus / "data/test/shapes-2-captions-00000-of-00001.parquet"
    others = {f: f.stat().st_mtime_ns for f in corpus.rglob("*.parquet") if f not in (labels, captions)}
    flip(labels)
    captions.unlink()
    report, err = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert {p["file"]: p["problem"] for p in report["problems"]} == {
        "data/train/shapes-labels-00000-of-00001.parquet": "its bytes have changed (different sha256)",
        "data/test/shapes-2-captions-00000-of-00001.parquet": "shard is missing",
    }
    assert f"unicl prepare --repair -o '{corpus}'" in err
    report, _ = called(capsys, "prepare", "--repair", "-o", corpus)
    assert report["repaired"] == sorted(p.relative_to(corpus).as_posix() for p in (labels, captions))
    assert report["ok"]
    assert sums(corpus) == before
    assert others == {f: f.stat().st_mtime_ns for f in others}


@pytest.mark.parametrize("at", [4, -20, 5000])
def test_a_bit_flipped_anywhere_is_found(corpus, capsys, at):
    file = corpus / "data/train/shapes-labels-00000-of-00001.parquet"
    flip(file, at)
    report, _ = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert [p["file"] for p in report["problems"]] == [file.relative_to(corpus).as_posix()]


def rewritten(corpus, file, change):
    """A shard with other rows whose manifest and marker agree: what no checksum can tell."""
    table = change(pq.read_table(file))
    pq.write_table(table, file, row_group_size=len(table))
    sums = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest = json.loads((corpus / "manifest.json").read_text())
    (shard,) = (s for s in manifest["shards"] if corpus / s["file"] == file)
    manifest["bytes"] += sums["bytes"] - shard["bytes"]
    shard |= sums
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    marker = corpus / f"parts/{shard['split']}.{file.stem}.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | sums))


def column(table, name, values):
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: column(t, "label", [48, *t["label"].to_pylist()[1:]]), "label 48 is out of range"),
        (lambda t: column(t, "label", [-1, *t["label"].to_pylist()[1:]]), "label -1 is out of range"),
        (lambda t: column(t, "key", [t["key"][1].as_py(), *t["key"].to_pylist()[1:]]), "duplicate keys: 1"),
        (lambda t: t.slice(1), "has 299 rows instead of 300"),
        (lambda t: column(t, "label", [0] * len(t)), "its labels are not those that its marker in parts counts"),
        (lambda t: column(t, "source", ["other"] * len(t)), "its source is not shapes"),
        (
            lambda t: column(t, "key", ["other:k", *t["key"].to_pylist()[1:]]),
            "key 'other:k' is not one of source shapes",
        ),
        (
            lambda t: column(t, "texts", [["new"], *t["texts"].to_pylist()[1:]]),
            "the numbers of texts and of their hashes",
        ),
        (lambda t: t.drop_columns(["phash"]), "has no column phash"),
        (
            lambda t: column(t, "image", [{"bytes": b"gone", "path": None}] * len(t)),
            "image cannot be decoded: not_image",
        ),
    ],
)
def test_verify_looks_into_the_rows(corpus, capsys, change, problem):
    rewritten(corpus, corpus / "data/train/shapes-labels-00000-of-00001.parquet", change)
    report, _ = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert problem in report["problems"][0]["problem"]


def edit(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def exchange_names(manifest):
    first, second = manifest["classes"][:2]
    for name in ("key", "names", "prompt_name"):
        first[name], second[name] = second[name], first[name]


def exchange_counts(manifest):
    counts = manifest["class_counts"]["train"]
    counts[0], counts[1] = counts[0] + 1, counts[1] - 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (exchange_names, "classes: are not those of plan.json"),
        (lambda m: m["classes"][3]["names"].append("alias"), "classes: are not those of plan.json"),
        (lambda m: m["classes"][3].update(key="other"), "classes: are not those of plan.json"),
        (exchange_counts, "its class counts of 'train' do not match the shards"),
        (lambda m: m.pop("name"), "damaged: name: Field required"),
        (lambda m: m.update(templates="clip7"), "templates: does not follow from plan.json and parts"),
        (lambda m: m["shards"].reverse(), "shards: does not follow"),
        (lambda m: m["text_stats"].update(p95=1), "text_stats: does not follow"),
        (lambda m: m["rejected"].update(empty=3), "rejected: does not follow"),
        (lambda m: m["equal_pictures"].update(in_a_kind=9), "equal_pictures: does not follow"),
    ],
)
def test_verify_finds_what_a_manifest_says_otherwise_and_prepare_makes_it_again(corpus, capsys, change, problem):
    before = sums(corpus)
    edit(corpus / "manifest.json", change)
    report, _ = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert report["problems"][0]["file"] == "manifest.json"
    assert problem in report["problems"][0]["problem"]
    shutil.copytree(corpus, corpus.parent / "again" / "c")
    assert main(["prepare", *SOURCE, "-o", str(corpus.parent / "again" / "c")]) == 0
    is_seen = "equal_pictures" not in problem  # only --verify counts images again
    assert ("nothing to do" not in capsys.readouterr().err) == is_seen
    assert (sums(corpus.parent / "again" / "c") == before) == is_seen
    called(capsys, "prepare", "--repair", "-o", corpus)
    assert sums(corpus) == before


def test_verify_finds_markers_and_plans_that_say_otherwise(corpus, capsys):
    marker = sorted((corpus / "parts").iterdir())[0]
    before = sums(corpus)
    for change in (
        lambda m: m.update(rows=m["rows"] + 1, row_groups=[m["rows"] + 1]),
        lambda m: m.update(captioned=m["captioned"] - 1),
        lambda m: m.update(file="../../etc/hostname"),
        lambda m: m.update(file=m["file"].replace("captions", "labels")),
        lambda m: m.update(texts_dropped=-1),
    ):
        edit(marker, change)
        report, _ = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
        assert [p["file"] for p in report["problems"]] == [marker.relative_to(corpus).as_posix()]
        called(capsys, "prepare", "--repair", "-o", corpus)
        assert sums(corpus) == before
    marker.unlink()
    report, _ = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert report["problems"][0]["problem"] == "marker is missing"
    (corpus / "plan.json").unlink()
    report, _ = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert report["problems"][0]["file"] == "plan.json"


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["units"][0].update(name="../../../victim/table"),
        lambda p: p["units"][0].update(first=3),
        lambda p: p["units"][0].update(rows=-4),
        lambda p: p["units"][0].update(rows=7),
        lambda p: p["units"][0].update(group_rows=10**9),
        lambda p: p["units"][0].update(split="test"),
        lambda p: p["units"].pop(),
        lambda p: p["units"].reverse(),
        lambda p: p["units"].append(p["units"][0]),
        lambda p: p["sources"][0]["rows"].update(train=10**15),
        lambda p: p["sources"][0].update(name="../shapes"),
        lambda p: p["sources"][0]["rows"].update({"..": 1}),
    ],
)
def test_units_that_are_not_those_of_the_plan_are_damage_and_nothing_is_written(corpus, capsys, change):
    """They are a function of the plan: every row once, in order, in a shard of the name that follows."""
    victim = corpus.parent / "victim"
    victim.mkdir()
    (victim / "table.parquet").write_text("mine")
    (corpus / "manifest.json").unlink()
    edit(corpus / "plan.json", change)
    before = sums(corpus.parent)
    for command in (("prepare", *SOURCE, "-o", corpus), ("prepare", "--repair", "-o", corpus)):
        _, err = called(capsys, *command, code=2)
        assert f"{corpus / 'plan.json'}: damaged: " in err
    assert sums(corpus.parent) == before


@pytest.mark.parametrize("folder", ["data", "data/train", "parts"])
def test_nothing_is_written_through_a_link_that_leads_out_of_the_corpus(corpus, capsys, folder):
    outside = corpus.parent / "outside"
    shutil.move(corpus / folder, outside)
    (corpus / folder).symlink_to(outside)
    flip(next(outside.rglob("*.*")))
    before = sums(outside)
    for command in (("prepare", *SOURCE, "-o", corpus), ("prepare", "--repair", "-o", corpus)):
        _, err = called(capsys, *command, code=2)
        assert "is a symbolic link that leads out of the corpus" in err
    assert sums(outside) == before


def test_a_linked_shard_is_replaced_and_never_written_through(corpus, capsys):
    shard = corpus / "data/train/shapes-labels-00000-of-00001.parquet"
    outside = corpus.parent / "outside.parquet"
    shutil.move(shard, outside)
    shard.symlink_to(outside)
    assert called(capsys, "prepare", "--verify", "-o", corpus)[0]["ok"]
    flip(outside)
    damaged = outside.read_bytes()
    assert called(capsys, "prepare", "--repair", "-o", corpus)[0]["ok"]
    assert not shard.is_symlink()
    assert outside.read_bytes() == damaged


def test_a_shard_that_is_none_of_the_corpus_is_named_and_never_removed(corpus, capsys):
    stray = corpus / "data/train/mine.parquet"
    shutil.copy(corpus / "data/train/shapes-labels-00000-of-00001.parquet", stray)
    for task in ("--verify", "--repair"):
        _, err = called(capsys, "prepare", task, "-o", corpus, code=1 if task == "--verify" else 2)
        assert f"{stray}: not a shard of this corpus" in err
    assert stray.exists()


def test_a_damaged_manifest_or_marker_is_made_again_too(corpus, capsys):
    before = sums(corpus)
    (corpus / "manifest.json").write_text('{"shards": 3')
    next((corpus / "parts").iterdir()).write_text("")
    _, err = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert "manifest.json: damaged" in err
    called(capsys, "prepare", "--repair", "-o", corpus)
    assert sums(corpus) == before


def test_an_unfinished_corpus_is_told_from_a_damaged_one_and_no_corpus_from_both(corpus, tmp_path, capsys):
    (corpus / "manifest.json").unlink()
    report, err = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert (report["finished"], report["shards"]) == (False, 4)
    assert "unfinished" in err
    assert "run the same `unicl prepare` command again" in err
    _, err = called(capsys, "prepare", "--verify", "-o", tmp_path, code=2)
    assert "not a corpus" in err


def test_repair_with_changed_sources_or_options_is_refused_and_touches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f/cat").mkdir(parents=True)
    for n in range(4):
        Image.new("RGB", (9, 9), (n * 40, 0, 0)).save(tmp_path / f"f/cat/{n}.png")
    called(capsys, "prepare", "--labels", "f", "-o", "c", "--size", 8)
    shard = shard_of(tmp_path / "c", "f-labels")
    flip(shard)
    damaged = shard.read_bytes()
    Image.new("RGB", (99, 99)).save(tmp_path / "f/cat/3.png")
    _, err = called(capsys, "prepare", "--repair", "-o", "c", code=2)
    assert "'f' (labels) has changed (contents)" in err
    assert shard.read_bytes() == damaged
    (tmp_path / "f").rename(tmp_path / "g")
    _, err = called(capsys, "prepare", "--repair", "-o", "c", code=2)
    assert "f: no such folder" in err


def test_a_dry_run_estimates_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "f/cat").mkdir(parents=True)
    for n in range(30):
        Image.effect_noise((64, 64), n).save(tmp_path / f"f/cat/{n}.png")
    for n in range(10):
        (tmp_path / f"f/cat/bad{n}.jpg").write_bytes(b"<html>")
    before = sorted(tmp_path.rglob("*"))
    argv = ("prepare", "--labels", tmp_path / "f", "-o", tmp_path / "deep/c")
    estimate, _ = called(capsys, *argv, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    assert (estimate["dry_run"], estimate["rows"], estimate["rows_expected"]) == (True, 40, [30, 30, 30])
    assert estimate["sources"][0]["rejected"] == {"not_image": 10}
    report, _ = called(capsys, *argv)
    assert report["rows"] == 30
    assert estimate["bytes_expected"][0] == report["payload"]
    assert estimate["memory"] > 100e6
    _, err = called(capsys, *argv, "--dry-run", "--size", 8, code=2)
    assert "was started with another plan; size: null -> 8" in err


def test_a_sample_bounds_the_rows_that_will_be_left(tmp_path, capsys):
    estimate, _ = called(capsys, "prepare", "--labels", "shapes?count=4000&test=9", "-o", tmp_path / "c", "--dry-run")
    train = estimate["sources"][0]
    assert train["rows_expected"][0] == train["rows_expected"][2] == 4000
    assert 3800 < train["rows_expected"][1] < 4000


def test_a_source_that_gives_nothing_is_an_error_although_others_gave_rows(tmp_path, capsys):
    (tmp_path / "x.tsv").write_text("image\tcaption\n1.png\ta thing\n2.png\tanother thing\n")
    for n in (1, 2):
        (tmp_path / f"{n}.png").write_bytes(b"<html>")
    argv = ("prepare", "--labels", "digits?limit=9", "--captions", tmp_path / "x.tsv", "-o", tmp_path / "c")
    _, err = called(capsys, *argv, "--workers", 1, code=2)
    assert "source 'x': no usable rows (rejected: not_image 2)" in err
    assert not (tmp_path / "c/manifest.json").exists()


def test_a_shard_without_survivors_is_not_written_and_readers_never_miss_it(tmp_path, capsys):
    for split, name in (("train", "1.png"), ("test", "2.png")):
        (tmp_path / "f" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "f" / split / "cat" / name)
    (tmp_path / "f/test/cat/2.png").write_bytes(b"no image")
    report, _ = called(capsys, "prepare", "--labels", tmp_path / "f", "-o", tmp_path / "c")
    assert (report["rows"], report["shards"]) == (1, 1)
    assert json.loads((tmp_path / "c/parts/test.f-labels-00000-of-00001.json").read_text())["rows"] == 0
    assert not (tmp_path / "c/data/test").exists()
    assert open_corpus(tmp_path / "c").splits == ("train",)
    assert called(capsys, "prepare", "--verify", "-o", tmp_path / "c")[0]["ok"]


def test_rows_keep_their_order_when_asked_to(tmp_path, capsys):
    (tmp_path / "f/cat").mkdir(parents=True)
    for n in range(20):
        Image.new("RGB", (9, 9), (n, 0, 0)).save(tmp_path / f"f/cat/{n:02d}.png")
    argv = ("prepare", "--labels", tmp_path / "f", "-o", tmp_path / "c", "--keep-order")
    called(capsys, *argv)
    table = open_corpus(tmp_path / "c").table("train", "labels")
    assert [table.read(n).key for n in range(20)] == [f"f:cat/{n:02d}.png" for n in range(20)]
    assert open_corpus(tmp_path / "c").manifest.permuted_seed is None
    flip(shard_of(tmp_path / "c", "f-labels"))
    assert called(capsys, "prepare", "--repair", "-o", tmp_path / "c")[0]["ok"]
    _, err = called(capsys, *argv[:-1], code=2)
    assert "keep_order: true -> false" in err


def test_quiet_says_nothing_and_the_table_names_a_remedy_for_each_reason(tmp_path, capsys):
    (tmp_path / "f/cat").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "f/cat/1.png")
    (tmp_path / "f/cat/2.png").touch()
    assert main(["prepare", "--labels", str(tmp_path / "f"), "-o", str(tmp_path / "c"), "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "empty  1  the file is empty: copy or download it again" in out
    assert f"{tmp_path / 'c'}: 1 row, 1 class" in out


def test_verify_says_each_problem_once(corpus, capsys):
    shards = sorted((corpus / "data").rglob("*.parquet"))[:2]
    for shard in shards:
        flip(shard)
    assert main(["prepare", "--verify", "-o", str(corpus)]) == 1
    out, err = capsys.readouterr()
    for shard in shards:
        assert (out + err).count(shard.name) == 1
        assert f"{shard.relative_to(corpus).as_posix()}: its bytes have changed" in out
    assert err.startswith(f"error: {corpus}: 2 problems found\n")
    _, err = called(capsys, "prepare", "--verify", "-o", corpus, code=1)
    assert "its bytes have changed (different sha256) (and 1 more)\n" in err
