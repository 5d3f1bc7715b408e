"""Class names of data sets of the `datasets` library: each split's own, joined by name, or given by a file."""

import io

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as Picture
from PIL import Image

from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError


def jpeg():
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 30, 9)).save(out, "JPEG")
    return out.getvalue()


JPEG = jpeg()


def classed(names, labels, **more):
    features = {"img": Picture(), "label": ClassLabel(names=names) if names else Value("int64")}
    columns = {"img": [{"bytes": JPEG, "path": None} for _ in labels], "label": labels}
    for name, (feature, values) in more.items():
        features[name], columns[name] = feature, values
    return Dataset.from_dict(columns, features=Features(features))


def names_by_split(src):
    source = open_source(src, "labels")
    return {split: [source.classes[row.label].names[0] for row in source.rows(split)] for split in source.splits}


def test_each_split_has_the_names_of_its_own_feature_joined_by_name(tmp_path):
    of = {"train": classed(["cat", "dog"], [0, 1]), "test": classed(["dog", "owl", "cat"], [0, 1, 2])}
    DatasetDict(of).save_to_disk(str(tmp_path / "d"))
    assert names_by_split(str(tmp_path / "d")) == {"train": ["cat", "dog"], "test": ["dog", "owl", "cat"]}
    source = open_source(str(tmp_path / "d"), "labels")
    assert [c.key for c in source.classes] == ["cat", "dog", "owl"]
    assert "number their classes differently: joined by name" in source.notes[0]
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(UniclError, match="the splits name their classes differently"):
        names_by_split(f"{tmp_path / 'd'}?classes={tmp_path / 'names.txt'}")


def test_a_split_of_bare_numbers_beside_names_is_refused(tmp_path):
    DatasetDict({"train": classed(["cat", "dog"], [0, 1]), "test": classed(None, [1, 0])}).save_to_disk(
        str(tmp_path / "d")
    )
    with pytest.raises(UniclError, match="test row 0: label '1' is not a class"):
        names_by_split(str(tmp_path / "d"))
    assert names_by_split(f"{tmp_path / 'd'}?splits=train") == {"train": ["cat", "dog"]}


def test_a_file_may_rename_the_classes_of_a_feature_but_not_their_number(tmp_path):
    classed(["n01440764", "n02012849"], [1, 1]).save_to_disk(str(tmp_path / "d"))
    assert [c.names[0] for c in open_source(str(tmp_path / "d"), "labels").classes] == ["tench", "crane bird"]
    (tmp_path / "two.txt").write_text("fish\nbird\n")
    assert names_by_split(f"{tmp_path / 'd'}?classes={tmp_path / 'two.txt'}") == {"train": ["bird", "bird"]}
    (tmp_path / "three.txt").write_text("fish\nbird\ncat\n")
    with pytest.raises(UniclError, match="has 3 names; column 'label' has 2 classes"):
        names_by_split(f"{tmp_path / 'd'}?classes={tmp_path / 'three.txt'}")


def test_bare_numbers_are_named_by_a_file_with_ids_or_a_column_or_refused(tmp_path):
    kind = {"kind": (Value("string"), ["owl", "fox", "owl"])}
    classed(None, [1, 2, 1], **kind).save_to_disk(str(tmp_path / "named"))
    assert names_by_split(str(tmp_path / "named")) == {"train": ["owl", "fox", "owl"]}
    classed(None, [1, 2, 1]).save_to_disk(str(tmp_path / "bare"))
    (tmp_path / "ids.json").write_text('{"1": "owl", "2": "fox"}')
    assert names_by_split(f"{tmp_path / 'bare'}?classes={tmp_path / 'ids.json'}") == {"train": ["owl", "fox", "owl"]}
    (tmp_path / "lines.txt").write_text("owl\nfox\nhen\n")
    with pytest.raises(UniclError, match="run from 1 to 2, without 0"):
        names_by_split(f"{tmp_path / 'bare'}?classes={tmp_path / 'lines.txt'}")
    first = f"{tmp_path / 'bare'}?first=1&classes={tmp_path / 'lines.txt'}"
    assert names_by_split(first) == {"train": ["owl", "fox", "owl"]}


def test_a_list_of_class_labels_is_a_set_when_it_is_asked_for(tmp_path):
    features = Features({"img": Picture(), "tags": List(ClassLabel(names=["cat", "dog", "sea_lion"]))})
    cells = [[0, 2], [1], [], None, [2, 2, -1]]
    columns = {"img": [{"bytes": JPEG, "path": None}] * len(cells), "tags": cells}
    Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(UniclError, match="column 'tags' holds a list of labels, and an image takes one") as caught:
        open_source(str(tmp_path / "d"), "labels").rows("train")
    assert caught.value.hint == f"take them all: '{tmp_path / 'd'}?label=tags&sets=true'"
    source = open_source(f"{tmp_path / 'd'}?sets=true", "labels")
    rows = source.rows("train")
    assert [c.key for c in source.classes] == ["cat", "dog", "sea_lion"]
    assert [row.label_set() for row in rows] == [(0, 2), (1,), (), (), (2,)]
    assert [row.known for row in rows] == [None, None, ("",), None, None]
    assert source.notes == [f"{tmp_path / 'd'}: labels repeated in a cell, kept once: 1"]


def test_texts_are_sets_as_lists_and_between_separators(tmp_path):
    for feature, cells, options in (
        (List(Value("string")), [["red", "wool"], ["blue"], [], None], "?label=tags&sets=true"),
        (Value("string"), ["red; wool", "blue", "[]", ""], "?label=tags&sets=;"),
    ):
        columns = {"img": [{"bytes": JPEG, "path": None}] * len(cells), "tags": cells}
        features = Features({"img": Picture(), "tags": feature})
        place = tmp_path / options.rpartition("=")[2]
        Dataset.from_dict(columns, features=features).save_to_disk(str(place))
        source = open_source(f"{place}{options}", "labels")
        rows = source.rows("train")
        assert [c.key for c in source.classes] == ["blue", "red", "wool"]
        assert [row.label_set() for row in rows] == [(1, 2), (0,), (), ()]
        assert [row.known for row in rows] == [None, None, ("",), None]


def test_marks_for_classes_and_numbers_without_names_are_no_sets(tmp_path):
    for cells, message in (
        ([[0, 1, 0]], "row 0: tags holds a mark for each of 3 classes"),
        ([[4, 7]], "no class names"),
    ):
        columns = {"img": [{"bytes": JPEG, "path": None}], "tags": cells}
        features = Features({"img": Picture(), "tags": List(Value("int64"))})
        Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / message[:5]))
        with pytest.raises(UniclError, match=message):
            open_source(f"{tmp_path / message[:5]}?label=tags&sets=true", "labels").rows("train")
