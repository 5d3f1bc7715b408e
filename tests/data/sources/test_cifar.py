"""CIFAR: the official archives are read as they are, checked, and never allowed to run anything."""

import hashlib
import io
import pickle
import tarfile
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from unicl_cli.data.pictures import decode
from unicl_cli.data.sources import catalogue
from unicl_cli.data.sources.plain_pickle import load_plain
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError

NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2(pickle._Pickler):
    """Writes what Python 2's cPickle wrote: byte strings as its own strings, numpy under its old module name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        short = len(value) < 256
        self.write((b"U" + bytes([len(value)]) if short else b"T" + len(value).to_bytes(4, "little")) + value)
        self.memoize(value)

    def save_text(self, value):
        self.save_bytes(value.encode("latin-1"))

    def save_global(self, value, name=None):
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(value)
        else:
            super().save_global(value, name)

    dispatch[bytes] = save_bytes
    dispatch[str] = save_text

    def save(self, value, save_persistent_id=True):
        if getattr(value, "__name__", "") == "_reconstruct":
            return self.save_global(value)
        return super().save(value, save_persistent_id)


def python2(value):
    out = io.BytesIO()
    Python2(out, 2).dump(value)
    return out.getvalue()


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def cifar10(path, batch=4):
    folder = "cifar-10-batches-py"
    meta = {"num_cases_per_batch": batch, "label_names": NAMES10, "num_vis": 3072}
    members = {f"{folder}/batches.meta": python2(meta), f"{folder}/readme.html": b"<html>"}
    for number, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        labels = [(number + at) % 10 for at in range(batch)]
        batch_of = {
            "batch_label": name,
            "labels": labels,
            "data": pixels(batch, number),
            "filenames": ["x.png"] * batch,
        }
        members[f"{folder}/{name}"] = python2(batch_of)
    return archive(path, members)


def cifar100(path, count=3):
    fine, coarse = [f"fine_{n}" for n in range(100)], [f"coarse_{n}" for n in range(20)]
    members = {"cifar-100-python/meta": python2({"fine_label_names": fine, "coarse_label_names": coarse})}
    for number, name in enumerate(("train", "test")):
        content = {
            "data": pixels(count, number),
            "fine_labels": [99, 1, 5],
            "coarse_labels": [19, 0, 1],
            "filenames": [],
        }
        members[f"cifar-100-python/{name}"] = python2(content)
    return archive(path, members)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("UNICL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_pickles_of_these_tests_are_those_of_python_2():
    content = python2({"data": pixels(1, 0), "labels": [3]})
    assert b"U\x04data" in content
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content
    assert list(pickle.loads(content, encoding="bytes")) == [b"data", b"labels"]


def test_cifar10_comes_from_its_archive_as_lossless_pictures_with_its_names(data_dir):
    cifar10(data_dir / "cifar-10-python.tar.gz")
    source = open_source("cifar10?verify=false", "labels")
    assert source.splits == ("train", "test")
    assert [c.names[0] for c in source.classes] == NAMES10
    rows = source.rows("train")
    assert (len(rows), len(source.rows("test"))) == (20, 4)
    assert [row.label for row in rows[:6]] == [0, 1, 2, 3, 1, 2]
    data = source.read(rows[5])["image"]
    assert data.startswith(b"\x89PNG")
    expected = pixels(4, 1)[1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(decode(data)), expected)
    assert source.templates[0] == "a photo of a {}."
    assert source.templates[-1] == "a photo of the big {}."
    assert len(set(source.templates)) == 18


def test_cifar100_has_fine_and_coarse_labels(data_dir):
    (data_dir / "cifar100").mkdir()
    cifar100(data_dir / "cifar100" / "cifar-100-python.tar.gz")
    fine = open_source("cifar100?verify=false", "labels")
    coarse = open_source("cifar-100?verify=false&labels=coarse", "labels")
    assert (len(fine.classes), len(coarse.classes)) == (100, 20)
    assert (fine.classes[1].key, fine.classes[1].names) == ("fine_1", ("fine 1",))
    assert [row.label for row in fine.rows("train")] == [99, 1, 5]
    assert [row.label for row in coarse.rows("test")] == [19, 0, 1]
    with pytest.raises(UniclError, match="labels: 'middle' is not one of fine, coarse"):
        open_source("cifar100?labels=middle", "labels")


def test_another_md5_is_an_error_that_says_both(data_dir):
    file = cifar10(data_dir / "cifar-10-python.tar.gz")
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    with pytest.raises(UniclError, match=f"md5 is {md5}, expected c58f30108f718f92721af3b95e74349a") as caught:
        open_source("cifar10", "labels").rows("train")
    assert "skip this check with 'cifar10?verify=false'" in caught.value.hint


def test_the_official_md5_is_accepted(data_dir, monkeypatch):
    file = cifar10(data_dir / "cifar-10-python.tar.gz")
    known = catalogue.known_datasets()["cifar10"]
    official = known.files[0].model_copy(update={"md5": hashlib.md5(file.read_bytes()).hexdigest()})
    changed = known.model_copy(update={"files": (official,), "rows": {"test": 4}})
    monkeypatch.setitem(catalogue.known_datasets(), "cifar10", changed)
    source = open_source("cifar10", "labels")
    assert len(source.rows("test")) == 4
    assert source.notes == []
    assert "md5 not checked" in open_source("cifar10?verify=false", "labels").notes[0]


def test_a_missing_archive_names_the_file_its_makers_and_the_next_command(data_dir, monkeypatch):
    with pytest.raises(UniclError) as caught:
        open_source("cifar10", "labels")
    assert f"cifar-10-python.tar.gz (170 MB): not found (looked in {data_dir}, {data_dir}/cifar10)" in str(caught.value)
    assert "hf:uoft-cs/cifar10: not in the hub's cache" in caught.value.message
    for said in ("170 MB", "c58f30108f718f92721af3b95e74349a", "https://www.cs.toronto.edu/~kriz/cifar.html"):
        assert said in caught.value.hint
    assert caught.value.hint.endswith(f"then run: unicl prepare --labels cifar10 --data-dir {data_dir}")
    monkeypatch.delenv("UNICL_DATA")
    with pytest.raises(UniclError, match="no --data-dir given"):
        open_source("cifar100", "images")
    with pytest.raises(UniclError, match=r"not found \(looked in .*/nowhere\)$"):
        open_source(f"cifar10?path={data_dir}/nowhere", "labels")
    with pytest.raises(UniclError, match="no captions"):
        open_source("cifar10", "captions")


class Evil:
    def __reduce__(self):
        return (exec, ("open('/tmp/unicl-was-here', 'w').close()",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil(), 2), "its pickle would load .*exec, which could run any code"),
        (pickle.dumps({"data": Evil()}, 4), "its pickle would load .*exec"),
        (b"cos\nsystem\n(S'true'\ntR.", "its pickle would load os.system"),
        (b"cnumpy.core.multiarray\nscalar\n.", "its pickle would load numpy.core.multiarray.scalar"),
        (b"cnumpy\nload\n.", "its pickle would load numpy.load"),
        (python2([1]), "pickled list instead of a dictionary"),
        (b"", "damaged pickle"),
        (python2({"data": pixels(2, 0)})[:-40], "damaged|truncated"),
        (b"\x80\x02}q\x01(h\x09h\x09u.", "damaged|Memo"),
    ],
)
def test_a_pickle_that_is_not_plain_is_refused_and_never_run(content, message, tmp_path):
    with pytest.raises(pickle.UnpicklingError, match=message):
        load_plain(content)
    file = archive(tmp_path / "x.tar.gz", {"cifar-100-python/meta": content, "cifar-100-python/train": content})
    with pytest.raises(UniclError, match=r"x.tar.gz: refused: ") as caught:
        open_source(f"cifar100?verify=false&path={file}", "labels").classes  # noqa: B018
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"data": pixels(2, 0), "fine_labels": [1]}, "fine_labels is not a list of 2 integers"),
        ({"data": pixels(1, 0), "fine_labels": [1.5]}, "fine_labels is not a list of 1 integers"),
        ({"data": pixels(1, 0)[:, :12], "fine_labels": [1]}, "data is not a uint8 array"),
        ({"data": [1], "fine_labels": [1]}, "data is not a uint8 array"),
        (None, "cifar-100-python/train is missing"),
    ],
)
def test_an_archive_of_another_form_is_named_with_what_is_wrong(train, message, tmp_path):
    good = {"data": pixels(1, 0), "fine_labels": [0]}
    members = {"cifar-100-python/meta": {"fine_label_names": ["a"]}, "cifar-100-python/test": good}
    members |= {"cifar-100-python/train": train} if train else {}
    file = archive(tmp_path / "x.tar.gz", {name: python2(content) for name, content in members.items()})
    with pytest.raises(UniclError, match=f"not the official cifar-100-python.tar.gz: {message}"):
        open_source(f"cifar100?verify=false&path={file}", "labels").rows("train")


@pytest.mark.parametrize("names", [[f"{n}" for n in range(10_001)], ["a", "b" * 1001], ["a", ""], ["a", "  "], [b"\t"]])
def test_names_of_classes_are_few_short_and_visible(names, tmp_path):
    file = archive(tmp_path / "x.tar.gz", {"cifar-100-python/meta": pickle.dumps({"fine_label_names": names}, 3)})
    with pytest.raises(UniclError, match=r"fine_label_names (has 10,001 names|is not a list of names of 1 to 1,000)"):
        open_source(f"cifar100?verify=false&path={file}", "labels").classes  # noqa: B018


def test_a_cut_archive_is_named(tmp_path):
    file = cifar10(tmp_path / "cut.tar.gz")
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(UniclError, match=r"cut\.tar\.gz: incomplete or not a .tar.gz"):
        open_source(f"cifar10?verify=false&path={file}", "labels").rows("train")
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(UniclError, match=r"cut\.tar\.gz: incomplete or not a .tar.gz"):
        open_source(f"cifar10?verify=false&path={file}", "labels").rows("train")


def test_the_command_finds_the_archive_in_its_data_dir_and_stores_png(tmp_path, monkeypatch):
    from unicl_cli.cli import app
    from unicl_cli.data.corpus import open_corpus

    monkeypatch.setenv("UNICL_DATA", "")
    (tmp_path / "d").mkdir()
    cifar10(tmp_path / "d" / "cifar-10-python.tar.gz")
    argv = ["prepare", "--labels", "cifar10?verify=false", "--data-dir", str(tmp_path / "d"), "-o", str(tmp_path / "c")]
    result = CliRunner().invoke(app, [*argv, "--holdout", "0"], prog_name="unicl")
    assert result.exit_code == 0, result.output
    corpus = open_corpus(tmp_path / "c")
    assert corpus.splits == ("train", "test")
    sample = corpus.table("test", "labels").read(0)
    assert sample.image.startswith(b"\x89PNG")
    assert decode(sample.image).size == (32, 32)
    assert corpus.templates == catalogue.known_datasets()["cifar10"].templates
