"""Folders: splits in any form, side files that are not rows, and the names and depth of classes."""

import io
import os
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from unicl_cli.data.sources.folder_layout import find_layout
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError
from unicl_cli.storage import spool


def png():
    out = io.BytesIO()
    Image.linear_gradient("L").resize((12, 10)).save(out, "PNG")
    return out.getvalue()


PNG = png()


def put(root, *paths, content=PNG):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return str(root)


def labelled(src):
    """Split -> the (class key, file) pairs of its rows."""
    source = open_source(src, "labels")
    return {
        split: sorted((source.classes[row.label].key, row.ref) for row in source.rows(split) if row.label >= 0)
        for split in source.splits
    }


def names_of(src):
    return {c.key: c.names[0] for c in open_source(src, "labels").classes}


def split_classes(folders):
    """Split -> its class keys, for folders that hold images."""
    parts = {tuple(folder.split("/")) for folder in folders.split()}
    layout = find_layout("data", parts)
    found = {}
    for each in sorted(parts):
        split = layout.split_of(tuple(each))
        found.setdefault(split, set()).add("/".join(layout.class_parts(each)))
    return found


ANIMALS = {"train": {"cat", "dog"}, "test": {"cat"}}


@pytest.mark.parametrize(
    "folders",
    [
        "train/cat train/dog test/cat",
        "Training/cat Training/dog Testing/cat",
        "TRAIN/cat TRAIN/dog private-test/cat",
        "data/train/cat data/train/dog data/test/cat",
        "a/b/trainset/cat a/b/trainset/dog a/b/testset/cat",
        "cat/train dog/train cat/test",
        "seg_train/seg_train/cat seg_train/seg_train/dog seg_test/seg_test/cat",
        "images/train2017/cat images/train2017/dog images/test2017/cat",
    ],
)
def test_splits_are_found_in_any_form_and_place(folders):
    assert split_classes(folders) == ANIMALS


@pytest.mark.parametrize(
    "folders", ["cat dog", "animals/cat animals/dog", "a/cat b/train b/car", "electric_train electric_bus"]
)
def test_folders_without_splits_are_classes(folders):
    assert split_classes(folders) == {"train": set(folders.split())}


@pytest.mark.parametrize(
    ("folders", "splits", "other"),
    [
        ("train/cat test/cat extra/cat", "test, train", "extra"),
        ("Train/cat misc/cat other/cat", "Train", "misc, other"),
        ("bus car train", "train", "bus, car"),
        ("data/dev/cat data/spare/cat", "dev", "spare"),
        ("seg_train/cat seg_test/cat seg_pred", "seg_test, seg_train", "seg_pred"),
        ("cat/train cat/test dog/train dog/rest", "test, train", "rest"),
    ],
)
def test_a_mix_of_splits_and_others_is_refused_with_the_way_out(folders, splits, other):
    with pytest.raises(UniclError) as caught:
        split_classes(folders)
    assert f"data: some folders are named like splits ({splits}), others are not ({other})" in caught.value.message
    assert f"?exclude={other.split(',')[0]}" in caught.value.hint
    assert "?splits=false" in caught.value.hint


def test_the_ways_out_of_a_mix_work_for_every_kind(tmp_path):
    src = put(tmp_path / "f", "train/cat/1.png", "Test/cat/2.png", "extra/cat/3.png")
    for kind in ("labels", "images"):
        with pytest.raises(UniclError, match="named like splits"):
            open_source(src, kind).splits  # noqa: B018
    source = open_source(f"{src}?exclude=extra", "labels")
    assert [len(source.rows(split)) for split in source.splits] == [1, 1]
    assert source.notes == ["f: folders as splits: Test is test", "f: images left out by exclude: 1"]
    assert sorted(names_of(f"{src}?splits=false")) == ["Test/cat", "extra/cat", "train/cat"]


def test_folders_of_one_split_are_joined_and_told_and_images_beside_them_counted(tmp_path):
    src = put(tmp_path / "f", "train/a/1.png", "valid/a/2.png", "dev/a/3.png", "cover.png")
    assert labelled(src) == {"train": [("a", "train/a/1.png")], "val": [("a", "dev/a/3.png"), ("a", "valid/a/2.png")]}
    assert open_source(src, "labels").notes == [
        "f: folders as splits: dev is val, valid is val",
        "f: images beside the split folders are left out (1)",
    ]


def test_files_beside_images_are_no_rows_and_are_counted(tmp_path):
    src = put(tmp_path / "f", "cat/1.png", "cat/2", "dog/3.jpg_large")
    put(tmp_path / "f", "cat/1.txt", "cat/1.json", "cat/1.ogg", "cat/notes", "only/text.txt", content=b"OggS text")
    put(tmp_path / "f", "cat/page.jpg", content=b"<html>")
    source = open_source(src, "labels")
    assert [row.ref for row in source.rows("train")] == ["cat/1.png", "cat/2", "cat/page.jpg", "dog/3.jpg_large"]
    assert [c.key for c in source.classes] == ["cat", "dog"]
    assert (
        source.notes
        == [
            "f: files that are not images are ignored (5): .txt 2, without a suffix 1, .json 1, .ogg 1",
            "f: folders without images are not classes (1): only",
        ]
        or "without a suffix 1" in source.notes[0]
    )
    captions = open_source(src, "captions")
    assert {row.key: row.texts for row in captions.rows("train")}["cat/1.png"] == ("OggS text",)
    assert ".txt" not in captions.notes[0]


NESTED = ("land/animals/cats/1.png", "land/plants/oak/1.png", "sea/animals/cats/1.png", "sea/1.png")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("", {"land/animals/cats": "cats", "land/plants/oak": "oak", "sea": "sea", "sea/animals/cats": "cats"}),
        ("?depth=1", {"land": "land", "sea": "sea"}),
        ("?depth=2", {"land/animals": "animals", "land/plants": "plants", "sea": "sea", "sea/animals": "animals"}),
        ("?depth=2&names=path", {"land/animals": "land animals", "land/plants": "land plants", "sea": "sea",
                                 "sea/animals": "sea animals"}),
        ("?exclude=animals", {"land/plants/oak": "oak", "sea": "sea"}),
        ("?exclude=sea/animals,land/*/oak", {"land/animals/cats": "cats", "sea": "sea"}),
        ("?exclude=sea", {"land/animals/cats": "cats", "land/plants/oak": "oak"}),
    ],
)  # fmt: skip
def test_depth_names_and_exclude_choose_the_classes(tmp_path, options, names):
    assert names_of(put(tmp_path / "f", *NESTED) + options) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?depth=0", "depth=0: below 1"),
        ("?exclude=animal", "exclude: no folder or file 'animal'; did you mean 'animals'"),
        ("?names=first", "names: "),
        ("?first=1", "first=1: no class names to count"),
        ("?classes=none.txt", "none.txt: no such file of class names"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(UniclError) as caught:
        open_source(put(tmp_path / "f", *NESTED) + options, "labels").splits  # noqa: B018
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("folders", "file", "names"),
    [
        ("n01440764 n02012849", "n01440764 tench fish, Tinca tinca\nn02012849 crane bird",
         {"n01440764": ("tench fish", "Tinca tinca"), "n02012849": ("crane bird",)}),
        ("001.Tern 002.Gull", "001.Tern\tblack tern|tern\n002.Gull\tgull", {"001.Tern": ("black tern", "tern"),
                                                                            "002.Gull": ("gull",)}),
        ("a/cats b/dogs", '{"cats": "cat", "b/dogs": ["dog", "hound"]}', {"a/cats": ("cat",),
                                                                          "b/dogs": ("dog", "hound")}),
        ("cats dogs", "cats = cat|kitty", {"cats": ("cats", "cat", "kitty"), "dogs": ("dogs",)}),
        ("0 1 10", "0 cat\n1 dog\n10 sea_lion", {"cat": ("cat",), "dog": ("dog",), "sea_lion": ("sea lion",)}),
        ("00 01", "cat\ndog", {"cat": ("cat",), "dog": ("dog",)}),
    ],
)  # fmt: skip
def test_a_file_names_folders_by_path_last_part_or_number(tmp_path, folders, file, names):
    src = put(tmp_path / "f", *(f"{folder}/1.png" for folder in folders.split()))
    (tmp_path / "names").write_text(file)
    source = open_source(f"{src}?classes={tmp_path / 'names'}", "labels")
    assert {c.key: c.names for c in source.classes} == names
    assert sorted(row.label for row in source.rows("train")) == list(range(len(names)))
    by_file = {row.ref: source.classes[row.label].names for row in source.rows("train")}
    assert by_file[f"{folders.split()[0]}/1.png"] == next(iter(names.values()))


@pytest.mark.parametrize(
    ("folders", "file", "message"),
    [
        ("cats dogs", "fox\nowl", "no name for folder cats (2 of 2 folders)"),
        ("1 2", "cat\ndog\nowl", "the labels run from 1 to 2, without 0"),
        ("0 3", "cat\ndog\nowl", "no name for folder 3 (1 of 2 folders)"),
    ],
)
def test_folders_without_a_sure_name_are_refused(tmp_path, folders, file, message):
    src = put(tmp_path / "f", *(f"{folder}/1.png" for folder in folders.split()))
    (tmp_path / "names.txt").write_text(file)
    with pytest.raises(UniclError) as caught:
        open_source(f"{src}?classes={tmp_path / 'names.txt'}", "labels").classes  # noqa: B018
    assert message in caught.value.message


def test_names_and_folders_that_lack_the_other_are_told(tmp_path):
    src = put(tmp_path / "f", "cats/1.png", "dogs/1.png")
    (tmp_path / "names.csv").write_text("folder,name\ncats,cat\nowls,owl\n")
    source = open_source(f"{src}?classes={tmp_path / 'names.csv'}", "labels")
    names = tmp_path / "names.csv"
    assert source.notes == [
        f"f: {names}: line 1 is the header: folder, name",
        f"f: folders without a name in {names} keep theirs (1): dogs",
        f"f: names without a folder in {names} are not classes (1)",
    ]


def test_wordnet_ids_and_counts_get_names_and_leaf_keeps_them(tmp_path):
    src = put(tmp_path / "f", "001.Black_tern/1.png", "002.Royal-tern/1.png")
    assert names_of(src) == {"001.Black_tern": "Black tern", "002.Royal-tern": "Royal tern"}
    assert names_of(f"{src}?names=leaf") == {"001.Black_tern": "001.Black tern", "002.Royal-tern": "002.Royal tern"}
    assert "'001.Black_tern' is 'Black tern' (names=leaf keeps them" in open_source(src, "labels").notes[0]
    assert names_of(put(tmp_path / "w", "n01440764/1.png")) == {"n01440764": "tench"}


def test_a_folder_without_captions_names_the_list_in_it(tmp_path):
    src = put(tmp_path / "f", "train/1.png")
    put(tmp_path / "f", "train/metadata.csv", content=b"file_name,text\n1.png,x\n")
    with pytest.raises(UniclError, match="no captions beside the images") as caught:
        open_source(src, "captions").rows("train")
    assert caught.value.hint.endswith("--captions " + str(tmp_path / "f" / "train" / "metadata.csv"))


def test_files_of_single_images_are_no_captions_of_others(tmp_path):
    src = put(tmp_path / "f", "images/1.png", "images/2.png")
    put(tmp_path / "f", "labels/1.txt", "readme.txt", content=b"0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UniclError, match="no captions beside the images") as caught:
        open_source(src, "captions").rows("train")
    assert caught.value.hint.startswith("write the captions of 1.jpg into 1.txt")
    put(tmp_path / "f", "captions.txt", content=b"image,caption\n1.png,x\n")
    with pytest.raises(UniclError) as caught:
        open_source(src, "captions").rows("train")
    assert caught.value.hint == f"use the list in this folder as the source: --captions {src}/captions.txt"


@pytest.mark.parametrize(
    ("images", "others", "message", "hint"),
    [
        ("train/1.png test/2.png", "train.csv sample_submission.csv", "", "--labels {0}/train.csv; or make a"),
        ("images/1.png images/2.png", "a/list.txt readme.md", "'images'", "--labels {0}/a/list.txt; or make a folder"),
        (
            "train/images/1.png val/images/2.png",
            "labels/1.txt",
            "'images'",
            "write a list with the columns image,label",
        ),
        ("a/JPEGImages/1.png", "b/1.xml", "'a/JPEGImages'", "write a list with the columns image,label"),
        ("images_1/images/1.png images_2/images/2.png", "", "'images_1/images', 'images_2/", "make a folder for"),
        ("ISIC_Input/1.png", "truth.csv", "'ISIC_Input'", "--labels {0}/truth.csv; or make a folder for each class"),
    ],
)
def test_folders_of_all_images_are_no_classes(tmp_path, images, others, message, hint):
    src = put(tmp_path / "f", *images.split())
    put(tmp_path / "f", *others.split(), content=b"x")
    with pytest.raises(UniclError) as caught:
        labelled(src)
    found = f", but all in {message}" if message else ""
    assert f"{src}: its images are not in class folders{found}" in caught.value.message
    assert hint.format(src) in caught.value.hint
    if message:
        assert caught.value.hint.endswith(("; add ?names=leaf if this is the class", "if these are classes"))
        assert labelled(f"{src}?names=leaf")


def test_a_split_without_the_class_folders_of_the_others_is_refused_with_the_way_to_leave_it_out(tmp_path):
    src = put(tmp_path / "f", "train/n01443537/images/1.png", "train/n01629819/images/2.png", "val/images/3.png")
    put(tmp_path / "f", "test/images/4.png")
    with pytest.raises(UniclError, match="not in class folders") as caught:
        labelled(src)
    assert "add ?depth=1 if the folders above are the classes" in caught.value.hint
    with pytest.raises(
        UniclError, match="images of test in 'images' and val in 'images' are not in class fold"
    ) as caught:
        labelled(f"{src}?depth=1")
    assert "add ?exclude=test,val to leave them out" in caught.value.hint
    pairs = [(f"n0{n}", f"train/n0{n}/images/{at}.png") for at, n in ((1, 1443537), (2, 1629819))]
    assert labelled(f"{src}?depth=1&exclude=test,val") == {"train": pairs}


def test_one_class_folder_and_classes_that_are_numbers_need_no_option(tmp_path):
    assert labelled(put(tmp_path / "f", "cat/1.png")) == {"train": [("cat", "cat/1.png")]}
    assert list(names_of(put(tmp_path / "g", "0/1.png", "1/1.png"))) == ["0", "1"]
    put(tmp_path / "f", "readme.txt", "classes.txt", content=b"x")
    assert labelled(str(tmp_path / "f")) == {"train": [("cat", "cat/1.png")]}


def test_files_that_list_splits_are_told_where_no_folder_is_a_split(tmp_path):
    src = put(tmp_path / "f", "images/cat/1.png", "images/dog/1.png")
    put(tmp_path / "f", "meta/train.txt", "meta/test.txt", "train_test_split.txt", "meta/classes.txt", content=b"x")
    told = "f: files that may list splits are not read, and all images are in train (3): meta/train.txt, "
    assert any(note.startswith(told) for note in open_source(src, "labels").notes)
    src = put(tmp_path / "g", "train/cat/1.png", "test/dog/2.png")
    put(tmp_path / "g", "train.txt", content=b"x")
    assert not any("list splits" in note for note in open_source(src, "labels").notes)


def test_files_and_classes_that_are_printed_alike_are_numbered_joined_or_refused(tmp_path):
    for name in (b"a/caf\xe9.png", b"a/caf\xe8.png", "b/\u00e9.png".encode(), "b/e\u0301.png".encode()):
        file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/files/" + name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    source = open_source(str(tmp_path / "files"), "labels")
    rows = source.rows("train")
    assert sorted(row.key for row in rows) == ["a/caf\ufffd.png", "a/caf\ufffd.png~2", "b/\u00e9.png", "b/\u00e9.png~2"]
    assert len({row.ref for row in rows}) == 4
    assert "files whose names look the same have a number in their keys (2)" in " ".join(source.notes)
    for name in ("\u00e9", "e\u0301", "x"):
        (tmp_path / "forms" / name).mkdir(parents=True)
        (tmp_path / "forms" / name / "1.png").write_bytes(b"x")
    source = open_source(str(tmp_path / "forms"), "labels")
    assert [c.key for c in source.classes] == ["x", "\u00e9"]
    assert "classes of folders whose names differ only in Unicode form (1): \u00e9" in " ".join(source.notes)
    for name in (b"caf\xe9", b"caf\xe8"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bytes/" + name))
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"x")
    with pytest.raises(UniclError, match="several class folders are named 'caf\ufffd'"):
        _ = open_source(str(tmp_path / "bytes"), "labels").classes


def test_rows_are_in_the_order_of_their_paths(tmp_path):
    folders = ("a", "a-b", "a b", "a.d", "a/c", "A", "é", "z/é/b")
    put(tmp_path, *(f"{folder}/{name}" for folder in folders for name in ("2.png", "10.png", "1-.png", "1.png")))
    source = open_source(str(tmp_path), "labels")
    refs = [row.ref for row in source.rows("train")]
    assert refs == sorted(refs)
    assert len(refs) == 4 * len(folders)


def test_an_image_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "MAX_MEMORY", 1)

    def held(images):
        folder = put(tmp_path / str(images), *(f"{n % 3}/photo-{n:07d}.png" for n in range(images)), content=b"")
        tracemalloc.start()
        source = open_source(folder, "labels")
        rows = source.rows("train")
        assert len(rows) == images
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return used

    held(100)
    few, many = held(200), held(1200)
    assert (many - few) / 1000 < 30, "bytes for each image; a path as an object takes 300"


def test_a_link_to_itself_is_one_image_that_cannot_be_read(tmp_path):
    src = put(tmp_path / "d", "cat/1.png")
    (tmp_path / "d/cat/2.png").symlink_to("2.png")
    assert labelled(src) == {"train": [("cat", "cat/1.png"), ("cat", "cat/2.png")]}
