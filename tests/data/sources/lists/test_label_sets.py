"""Images with several labels: separators, lists, a column per group, a column per class, several lines, and COCO."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.lists.conftest import png
from unicl_cli.errors import UniclError

IMAGES = tuple(f"{letter}.png" for letter in "abcdef")
LISTS = {"a.png": ["red", "cotton"], "b.png": ["wool", "red"], "c.png": ["red"]}


@pytest.fixture
def sets(listing):
    """``sets(name, content, options)``: the source and, by image, the labels and the groups known (None: all)."""

    def read(name, content, options=""):
        source = listing.open(f"{listing.write(name, content, *IMAGES)}{options}", "labels")
        keys = [c.key for c in source.classes]
        rows = source.rows("train")
        return source, {row.ref: ({keys[label] for label in row.label_set()}, row.known) for row in rows}

    return read


def csv(*lines):
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("l.csv", csv("image,label", "a.png,red;cotton", "b.png, red ; wool ", "c.png,red"), "?sets=;"),
        ("l.csv", csv("image,label", 'a.png,"red, cotton"', 'b.png,"red,wool"', "c.png,red"), "?sets=,"),
        ("l.csv", csv("image,label", 'a.png,"red, cotton"', 'b.png,"red,wool"', "c.png,red"), "?sets=comma"),
        ("l.csv", csv("image,label", "a.png,red,cotton", "b.png,red,wool,", "c.png,red"), "?sets=comma"),
        ("l.tsv", csv("image\tlabel", "a.png\tred|cotton", "b.png\tred|wool", "c.png\tred"), "?sets=|"),
        ("l.txt", csv("a.png red+cotton", "b.png red+wool", "c.png red"), "?image=0&label=1&sets=+"),
        ("l.csv", csv("image;label", "a.png;['red', 'cotton']", 'b.png;["red","wool"]', "c.png;red"), "?sets=true"),
        (
            "l.csv",
            csv("image,label", "a.png,red", "a.png,cotton", "b.png,red", "b.png,wool", "c.png,red"),
            "?sets=true",
        ),
        ("l.csv", csv("image,x,y", "a.png,red,cotton", "b.png,red,wool", "c.png,,red"), "?label=x,y&group=tags"),
        ("l.csv", csv("image,cotton,red,wool", "a.png,1,1,0", "b.png,0,1,1", "c.png,0,1,0"), "?onehot=all"),
        ("l.jsonl", csv(*(json.dumps({"image": f, "label": of}) for f, of in LISTS.items())), "?sets=true"),
        ("l.json", [{"image": f, "tags": {"all": of}} for f, of in LISTS.items()], "?sets=true&label=tags.all"),
    ],
)
def test_every_form_of_a_set_gives_the_same_rows(name, content, options, sets):
    source, found = sets(name, content, options)
    assert sorted(c.key for c in source.classes) == ["cotton", "red", "wool"]
    assert {key: labels for key, (labels, _) in found.items()} == {
        "a.png": {"red", "cotton"}, "b.png": {"red", "wool"}, "c.png": {"red"},
    }  # fmt: skip
    assert {known for _, known in found.values()} == {None}
    assert len({c.group for c in source.classes}) == 1


def test_columns_are_groups_and_an_empty_cell_is_not_known(sets):
    lines = ("image,colour,material", "a.png,red,cotton", "b.png,,wool", "c.png,blue,", "d.png,,")
    source, found = sets("l.csv", csv(*lines), "?label=colour,material")
    assert [(c.key, c.group) for c in source.classes] == [
        ("blue", "colour"), ("red", "colour"), ("cotton", "material"), ("wool", "material"),
    ]  # fmt: skip
    assert found == {
        "a.png": ({"red", "cotton"}, None),
        "b.png": ({"wool"}, ("material",)),
        "c.png": ({"blue"}, ("colour",)),
        "d.png": (set(), None),
    }
    assert not source.rows("train")[3].is_labelled()


def test_columns_and_separators_go_together(sets):
    lines = ("image,colour,material", "a.png,red;blue,cotton", "b.png,[],wool;cotton", "c.png,red,[]")
    _, found = sets("l.csv", csv(*lines), "?label=colour,material&sets=;")
    assert found == {
        "a.png": ({"red", "blue", "cotton"}, None),
        "b.png": ({"wool", "cotton"}, None),
        "c.png": ({"red"}, None),
    }


def test_an_empty_list_says_that_nothing_was_found_and_an_empty_cell_nothing_at_all(sets):
    rows = [{"image": "a.png", "label": ["x", "y"]}, {"image": "b.png", "label": []}, {"image": "c.png", "label": None}]
    source, found = sets("l.json", [*rows, {"image": "d.png"}, {"image": "e.png", "label": ""}], "?sets=true")
    assert found["b.png"] == (set(), ("",))
    assert [row.is_labelled() for row in source.rows("train")] == [True, True, False, False, False]


def test_classes_with_unknown_marks_are_groups_of_their_own(sets):
    lines = ("image,cat,dog,owl,fox,emu", "a.png,1,0,,1,0", "b.png,0,1,0,-1,0", "c.png,0,0,1,0,0", "d.png,0,0,,,0")
    source, found = sets("l.csv", csv(*lines), "?onehot=all")
    assert {c.key: c.group for c in source.classes} == {"cat": "", "dog": "", "emu": "", "owl": "owl", "fox": "fox"}
    assert found == {
        "a.png": ({"cat", "fox"}, ("", "fox")),
        "b.png": ({"dog"}, ("", "owl")),
        "c.png": ({"owl"}, None),
        "d.png": (set(), ("",)),
    }
    assert "l.csv: marks that are empty or -1, which means unknown: 4" in source.notes


def test_marks_of_minus_one_without_zero_are_not_guessed(sets):
    lines = csv("image,cat,dog", "a.png,1,-1", "b.png,-1,1", "c.png,1,")
    with pytest.raises(UniclError, match=r"1 and -1, but no 0: -1 may mean no, or unknown") as caught:
        sets("l.csv", lines, "?onehot=cat,dog")
    assert "negative=-1" in caught.value.hint
    _, found = sets("l.csv", lines, "?onehot=cat,dog&negative=-1")
    assert found == {"a.png": ({"cat"}, None), "b.png": ({"dog"}, None), "c.png": ({"cat"}, ("",))}
    _, found = sets("l.csv", csv("image,cat,dog", "a.png,1,-1", "b.png,0,1"), "?onehot=cat,dog&negative=-1")
    assert found == {"a.png": ({"cat"}, None), "b.png": ({"dog"}, ("",))}


def test_all_columns_of_marks_are_classes_and_others_are_told(sets):
    lines = ("image,age,sex,cat,dog,split", "a.png,30,m,1,0,train", "b.png,41,f,0,1,train", "c.png,50,f,1,1,train")
    source, found = sets("l.csv", csv(*lines), "?onehot=all")
    assert found["c.png"] == ({"cat", "dog"}, None)
    assert "l.csv: onehot=all: left out columns with other cells: age, sex" in source.notes
    source, found = sets("l.csv", csv("image,x,y", "a.png,0,", "b.png,0,0"), "?onehot=x,y")
    assert [(c.key, c.group) for c in source.classes] == [("x", ""), ("y", "y")]
    assert found == {"a.png": (set(), ("",)), "b.png": (set(), ("", "y"))}
    _, found = sets("l.csv", csv("image,is_cat,is_dog,cute", "a.png,1,0,1", "b.png,1,1,0"), "?onehot=is_*")
    assert found == {"a.png": ({"is_cat"}, None), "b.png": ({"is_cat", "is_dog"}, None)}


COCO = {
    "images": [{"id": n, "file_name": name} for n, name in enumerate(IMAGES)],
    "categories": [
        {"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "car", "supercategory": "vehicle"},
        {"id": 9, "name": "dog", "supercategory": "animal"},
    ],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1]}, {"id": 2, "image_id": 0, "category_id": 1},
        {"id": 3, "image_id": 0, "category_id": 7}, {"id": 4, "image_id": 2, "category_id": 9},
    ],
}  # fmt: skip


def test_annotations_of_coco_are_a_set_and_an_image_without_any_has_nothing(sets):
    source, found = sets("instances.json", COCO, "?sets=true")
    assert found == {
        "a.png": ({"cat", "car"}, None),
        "c.png": ({"dog"}, None),
        **dict.fromkeys(("b.png", "d.png", "e.png", "f.png"), (set(), ("",))),
    }
    assert {c.group for c in source.classes} == {""}
    source, found = sets("instances.json", COCO, "?sets=true&group=supercategory")
    assert {c.key: c.group for c in source.classes} == {"cat": "animal", "dog": "animal", "car": "vehicle"}
    assert found["a.png"] == ({"cat", "car"}, None)
    assert found["b.png"] == (set(), ("animal", "vehicle"))


def test_annotations_of_a_category_that_is_not_there_are_faults(listing):
    wrong = {**COCO, "annotations": [*COCO["annotations"], {"id": 5, "image_id": 1, "category_id": 99}]}
    path = listing.write("instances.json", wrong, *IMAGES)
    with pytest.raises(UniclError, match="annotation 5: category_id 99 is not the id of a category"):
        listing.open(f"{path}?sets=true", "labels").rows("train")
    twice = {**COCO, "categories": [*COCO["categories"], {"id": 10, "name": "cat", "supercategory": "tool"}]}
    path = listing.write("instances.json", twice, *IMAGES)
    with pytest.raises(UniclError, match="category 'cat' is in two groups, animal and tool"):
        listing.open(f"{path}?sets=true&group=supercategory", "labels").rows("train")


def test_parquet_lists_take_the_names_of_their_class_label(listing):
    names = {"_type": "ClassLabel", "names": ["cat", "dog", "owl"]}
    for feature in ({"feature": names, "_type": "List"}, {"feature": names, "_type": "Sequence", "length": -1}):
        features = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
        images = [{"bytes": png(n), "path": None} for n in (1, 2, 1)]
        table = pa.table({"image": images, "label": [[0, 2], [], [1]]})
        file = listing.root / "l.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), file)
        source = listing.open(f"{file}?sets=true", "labels")
        rows = source.rows("train")
        assert [c.names[0] for c in source.classes] == ["cat", "dog", "owl"]
        assert [(row.label_set(), row.known) for row in rows] == [((0, 1, 2), None), ((), ("",))]
        assert source.notes == ["l.parquet: joined lines with further labels of the same image: 1"]


@pytest.mark.parametrize(
    ("options", "lines", "message", "hint"),
    [
        (
            "?label=x,y",
            ("image,x,y", "a.png,light,", "b.png,,light"),
            "label 'light' is in two groups, x and y",
            "x:light<TAB>NAME",
        ),
        (
            "?label=x,y",
            ("image,x,y", "a.png,light,", "b.png,dark,"),
            "column 'y' is empty in every row",
            "leave it out of label=",
        ),
        (
            "?onehot=x,y",
            ("image,x,y", "a.png,1,", "b.png,0,"),
            "column 'y' is empty in every row",
            "leave it out of onehot=",
        ),
        (
            "?onehot=x,y",
            ("image,x,y", "a.png,1,0", "b.png,2,0"),
            "line 3: x holds '2', which is neither 0 nor 1",
            "write 0, 1 or nothing",
        ),
        (
            "?onehot=x,y",
            ("image,x,y", "a.png,1,0", "b.png,yes,0"),
            "line 3: x holds 'yes', which is neither 0 nor 1",
            "missing=",
        ),
        (
            "?onehot=x,y",
            ("image,x,y", "a.png,1,0", "a.png,0,0"),
            "1 image has more than one label: line 2 and line 3",
            "mark the classes",
        ),
        (
            "?onehot=x,y&group=g",
            ("image,x,y", "a.png,1,0", "b.png,0,"),
            "group=g: a row is annotated for all of a group or not at all",
            "remove group=",
        ),
        (
            "?onehot=all",
            ("image,x,y", "a.png,u,v", "b.png,u,v"),
            "onehot=all: no column of 0 and 1 is left",
            "name the columns",
        ),
        ("?onehot=x&label=y", ("image,x,y", "a.png,1,v"), "onehot= and label= both name labels", "remove label="),
        ("?negative=-1", ("image,label", "a.png,v"), "negative= is the mark for no", "add onehot="),
        ("?onehot=x,y&negative=2", ("image,x,y", "a.png,1,0"), "negative=2: not a mark for no", "use negative=0"),
        ("?label=x,x", ("image,x,y", "a.png,1,0"), "names column 'x' twice", "once"),
        ("?label=x,y", ("image,x,y", "a.png,1,0", "b.png,0,0"), r"one column for each class \(x, y\)", "onehot=x,y"),
        ("?sets=and", ("image,label", "a.png,cat and dog"), "sets=and: not a separator of labels", "sets=;"),
        (
            "?sets=;",
            ("image,label", "a.png,cat;NA", "b.png,cat"),
            r"1 of 3 labels may mean that there is none \('NA' 1\)",
            "missing=NA",
        ),
        (
            "?sets=true",
            ("image;label", "a.png;[0,0,1]", "b.png;[1,0,0]"),
            "label holds a mark for each of 3 classes",
            "names of the image's classes",
        ),
        ("?sets=true", ("image,label", "a.png,cat;dog", "b.png,cat"), "seem to name several classes", "sets=;"),
        ("?sets=true", ("image;label", "a.png;[]", "b.png;[]"), "no row has a label", "check the column: label"),
        ("?label=x,y", ("image,x,y", "a.png,red,s", "a.png,blue,s"), "1 image has more than one label", "sets=true"),
        ("", ("image,label", "a.png,red", "a.png,blue"), "1 image has more than one label", "sets=true"),
    ],
)
def test_doubtful_sets_are_refused_in_a_line(options, lines, message, hint, listing):
    with pytest.raises(UniclError, match=message) as caught:
        listing.open(listing.write("l.csv", csv(*lines), *IMAGES) + options, "labels").rows("train")
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_more_unknown_columns_than_groups_are_refused(sets):
    names = [f"c{n}" for n in range(65)]
    for columns, is_right in ((63, True), (64, False)):
        used = names[:columns]
        lines = (
            ",".join(["image", *used]),
            "a.png," + ",".join("1" * columns),
            "b.png," + ",".join(["0", *[""] * (columns - 1)]),
        )
        if is_right:
            assert len({c.group for c in sets("l.csv", csv(*lines), "?onehot=all")[0].classes}) == 63
    with pytest.raises(UniclError, match="63 columns have unknown cells, and each would be a group of its own"):
        sets("l.csv", csv(*lines), "?onehot=all")


def test_what_was_dropped_from_cells_is_counted(sets):
    lines = ("image,label", "a.png,red;;blue", "b.png,red;red;", "c.png,blue;red;blue;red", "d.png,;")
    source, found = sets("l.csv", csv(*lines), "?sets=;")
    assert source.notes == [
        "l.csv: labels repeated in a cell, kept once: 3",
        "l.csv: empty labels between separators, dropped: 4",
    ]
    assert found["b.png"] == ({"red"}, None)
    assert found["d.png"] == (set(), None)
    source, _ = sets("l.csv", csv("image,label", "a.png,red|blue", "b.png,green"), "?sets=;")
    assert source.notes == ["l.csv: no cell of labels has the separator ';' of sets="]
    source, _ = sets("l.csv", csv("image,label", "a.png,red", "a.png,blue", "a.png,red"), "?sets=true")
    assert "l.csv: joined lines with further labels of the same image: 1" in source.notes


def test_words_for_nothing_and_padding_are_no_labels(sets):
    _, found = sets("l.csv", csv("image,label", "a.png,cat;NA", "b.png,NA", "c.png,cat;dog"), "?sets=;&missing=NA")
    assert found == {"a.png": ({"cat"}, None), "b.png": (set(), None), "c.png": ({"cat", "dog"}, None)}
    rows = [
        {"image": f, "label": numbers}
        for f, numbers in zip(IMAGES, ([3, 10, -1], [3, -1, -1], [-1, -1, -1]), strict=False)
    ]
    source, found = sets("l.json", rows, "?sets=true")
    assert [c.key for c in source.classes] == ["3", "10"]
    assert [labels for labels, _ in found.values()] == [{"3", "10"}, {"3"}, set()]
    _, found = sets("l.csv", csv("image,cat,dog", "a.png,1,NA", "b.png,0,1"), "?onehot=cat,dog&missing=NA")
    assert found["a.png"] == ({"cat"}, ("",))


def test_names_of_classes_stand_in_a_file_as_with_single_labels(listing, sets):
    listing.write("names.txt", "cat\ndog\nowl\n")
    lines = csv("image,label", "a.png,1;3", "b.png,2")
    with pytest.raises(UniclError, match="without 0"):
        sets("l.csv", lines, "?sets=;&classes=names.txt")
    source, found = sets("l.csv", lines, "?sets=;&classes=names.txt&first=1")
    assert found == {"a.png": ({"cat", "owl"}, None), "b.png": ({"dog"}, None)}
    listing.write("names.tsv", "colour:light\tpale\nweight:light\tfeather-light\nred\tred\nweight:heavy\theavy\n")
    lines = ("image,colour,weight", "a.png,light,light", "b.png,red,", "c.png,,light")
    source, found = sets("l.csv", csv(*lines), "?label=colour,weight&classes=names.tsv")
    assert [(c.names[0], c.group) for c in source.classes] == [
        ("pale", "colour"), ("feather-light", "weight"), ("red", "colour"), ("heavy", "weight"),
    ]  # fmt: skip
    assert found["a.png"] == ({"pale", "feather-light"}, None)
    listing.write("names.tsv", "light\tlight\nred\tred\n")
    with pytest.raises(UniclError, match="label 'light' is in two groups, colour and weight"):
        sets("l.csv", csv(*lines), "?label=colour,weight&classes=names.tsv")
    listing.write("names.tsv", "a\tpale\nb\tblue\nc\tfine\n")
    with pytest.raises(UniclError, match=r"no row has the class 'fine', so its group is not known"):
        sets("l.csv", csv("image,x,y", "a.png,a,b"), "?label=x,y&classes=names.tsv")
    with pytest.raises(UniclError, match=r"line 3: unknown label q \(number of classes: 3\)"):
        sets("l.csv", csv("image,label", "a.png,a;b", "b.png,a;q"), "?sets=;&classes=names.tsv")


def test_a_single_label_may_have_a_group(sets):
    source, found = sets("l.csv", csv("image,label", "a.png,red", "b.png,blue"), "?group=colour")
    assert {c.group for c in source.classes} == {"colour"}
    assert found == {"a.png": ({"red"}, None), "b.png": ({"blue"}, None)}


def test_options_of_sets_are_for_labels_alone(listing):
    path = listing.write("l.csv", csv("image,caption,label", "a.png,a cat,cat;dog"), *IMAGES)
    for option in ("sets=;", "onehot=label", "group=x"):
        with pytest.raises(UniclError, match=f"{option.partition('=')[0]}= is an option of labels"):
            listing.open(f"{path}?{option}", "captions").rows("train")
