"""ImageNet: the official tars are read in place, and the development kit's numbers are not taken for classes."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from unicl_cli.data.sources.imagenet import DEVKIT, FALL11, TRAIN, VAL, WINTER21
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.data.wordnet import lemmas, synsets
from unicl_cli.errors import UniclError

TENCH, GOLDFISH, CRANE, MACHINE = "n01440764", "n01443537", "n02012849", "n03126707"


def jpeg(level):
    out = io.BytesIO()
    Image.new("RGB", (40, 36), (level, 60, 90)).save(out, "JPEG")
    return out.getvalue()


def tar(members, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("a-link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


TRAINED = {
    key: {f"{key}_{number}.JPEG": jpeg(10 * number + place) for number in range(place + 2)}
    for place, key in enumerate((GOLDFISH, TENCH, MACHINE))
}
WORDS = {2: (GOLDFISH, 0), 1: (CRANE, 0), 3: (TENCH, 0), 4: ("n00001740", 3)}  # number in the kit -> synset, children


def train_tar():
    return tar({f"{key}.tar": tar(pictures) for key, pictures in TRAINED.items()})


def devkit():
    table = np.array(
        [(number, wnid, children) for number, (wnid, children) in WORDS.items()],
        dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": table})
    folder = "ILSVRC2012_devkit_t12/data"
    answers = b"1\n3\n2\n3\n"
    return tar(
        {f"{folder}/meta.mat": meta.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": answers}, "w:gz"
    )


def val_tar():
    return tar({f"ILSVRC2012_val_0000000{number}.JPEG": jpeg(100 + number) for number in (2, 1, 4, 3)})


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("UNICL_DATA", str(tmp_path))
    for name, content in {TRAIN: train_tar(), VAL: val_tar(), DEVKIT: devkit()}.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_training_pictures_come_from_a_tar_of_tars_by_their_place(data_dir):
    source = open_source("imagenet", "labels")
    rows = source.rows("train")
    assert [row.label for row in rows] == [1, 1, 0, 0, 0, *[synsets().index(MACHINE)] * 4]
    assert rows[2].key == f"train/{TENCH}/{TENCH}_0.JPEG"
    expected = [content for pictures in TRAINED.values() for content in pictures.values()]
    assert [source.read(row)["image"] for row in rows] == expected
    assert source.notes == ["imagenet train: has 9 rows; the published data set has 1,281,167"]
    again = open_source("imagenet", "labels")  # as a worker: no scan, one stretch of the file
    assert again.read(rows[5])["image"] == expected[5]
    assert "_train" not in vars(again)


def test_validation_pictures_have_the_classes_of_the_kit_by_synset(data_dir):
    source = open_source("imagenet", "labels")
    assert list(source.splits) == ["train", "val"]
    rows = source.rows("val")
    assert [source.classes[row.label].key for row in rows] == [CRANE, TENCH, GOLDFISH, TENCH]
    assert [source.read(row)["image"] for row in rows] == [jpeg(100 + number) for number in (1, 2, 3, 4)]
    assert {row.label for row in open_source("imagenet", "images").rows("val")} == {-1}


def test_classes_have_the_names_that_prompts_use_and_their_synonyms(data_dir):
    classes = open_source("imagenet", "labels").classes
    assert len(classes) == 1000
    assert (classes[0].key, classes[0].names) == (TENCH, ("tench", "Tinca tinca"))
    assert classes[134].key == CRANE
    assert classes[134].names[0] != classes[517].names[0]  # both are "crane" to WordNet
    assert [c.key for c in classes] == sorted(c.key for c in classes)


def test_either_part_is_enough_and_the_kit_is_asked_for(data_dir):
    (data_dir / DEVKIT).unlink()
    with pytest.raises(UniclError, match=rf"imagenet: {DEVKIT}: not found \(looked in {data_dir}, ") as caught:
        open_source("imagenet-1k", "labels")
    assert "fa75699e90414af021442c21a62c3abf" in caught.value.hint
    assert open_source("imagenet", "images").splits == ["train", "val"]
    (data_dir / VAL).unlink()
    assert open_source("imagenet", "labels").splits == ["train"]
    (data_dir / TRAIN).unlink()
    with pytest.raises(UniclError, match=rf"{TRAIN} \(138 GB\) or {VAL} \(6.3 GB\): not found \(looked in") as caught:
        open_source("imagenet", "labels")
    assert caught.value.hint.endswith(f"then run: unicl prepare --labels imagenet --data-dir {data_dir}")
    with pytest.raises(UniclError, match=r"imagenet22k: fall11_whole\.tar: not found"):
        open_source("in22k", "labels")


def test_the_large_release_has_the_classes_that_are_in_it_and_21k_leaves_those_of_1k_out(data_dir):
    assert "n00005787" in lemmas()
    extra = tar({"n00005787_1.JPEG": jpeg(7)})
    (data_dir / FALL11).write_bytes(tar({f"{TENCH}.tar": tar(TRAINED[TENCH]), "n00005787.tar": extra}))
    large = open_source("imagenet22k", "labels")
    assert [(c.key, c.names[0]) for c in large.classes] == [("n00005787", "benthos"), (TENCH, "tench")]
    assert [row.label for row in large.rows("train")] == [1, 1, 1, 0]
    small = open_source("imagenet21k", "labels")
    assert [c.key for c in small.classes] == ["n00005787"]
    assert small.read(small.rows("train")[0])["image"] == jpeg(7)
    assert small.notes == [
        "imagenet21k: left out 1 of the 1,000 synsets of ImageNet-1K, with 3 images",
        "imagenet21k: has 1 class; the published data set has 20,842",
    ]


def test_the_winter_release_is_another_name_that_tells_of_the_classes_of_1k(data_dir):
    (data_dir / WINTER21).write_bytes(tar({f"winter21_whole/{TENCH}.tar": tar(TRAINED[TENCH])}))
    source = open_source("imagenet21k-winter", "labels")
    assert [c.key for c in source.classes] == [TENCH]
    assert len(source.rows("train")) == 3
    (note,) = source.notes
    assert "is not zero-shot on ImageNet-1K" in note
    with pytest.raises(UniclError, match=r"imagenet21k: fall11_whole\.tar: not found"):
        open_source("imagenet21k", "labels")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN, gzip.compress(b"x" * 100), "compressed"),
        (TRAIN, b"<html>log in</html>", "incomplete or not a tar"),
        (TRAIN, tar({"a.jpg": jpeg(1)}), r"contains a\.jpg"),
        (TRAIN, tar({"n99999999.tar": tar({"x.JPEG": jpeg(1)})}), "synset n99999999 is not in imagenet"),
        (TRAIN, tar({f"{TENCH}.tar": b"junk" * 300}), "incomplete or not a tar"),
        (VAL, tar({"x_9.JPEG": jpeg(1)}), "does not match the 4 answers"),
        (VAL, tar({"x.JPEG": jpeg(1)}), "does not match the 4 answers"),
        (DEVKIT, tar({"a": b"x"}, "w:gz"), "not the official development kit"),
        (DEVKIT, b"x", "not the official development kit"),
    ],
    ids=["gzip", "html", "flat", "foreign", "junk", "far", "nameless", "kit", "no kit"],
)  # fmt: skip
def test_a_file_that_is_not_the_official_one_is_named(name, content, message, data_dir):
    (data_dir / name).write_bytes(content)
    with pytest.raises(UniclError, match=f"{name}: {message}"):
        open_source("imagenet", "labels").rows("val" if name in (VAL, DEVKIT) else "train")


def test_the_md5_is_compared_on_request(data_dir):
    with pytest.raises(UniclError, match="expected 1d675b47d978889d74fa0da5fadfb00e"):
        open_source("imagenet?verify=true", "labels").rows("train")
