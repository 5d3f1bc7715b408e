"""An image takes one label: lists of one are read, several are refused with the way to keep them."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unicl_cli.errors import UniclError

IMAGES = ("a.png", "b.png", "c.png")


def test_a_list_with_one_label_is_that_label(listing):
    lines = '{"image": "a.png", "label": ["cat"]}\n{"image": "b.png", "label": "dog"}\n'
    assert listing.labels(listing.write("one.jsonl", lines, *IMAGES)) == {"a.png": "cat", "b.png": "dog"}
    cells = "image;label\na.png;['cat']\nb.png;dog\n"
    assert listing.labels(listing.write("one.csv", cells)) == {"a.png": "cat", "b.png": "dog"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.jsonl", '{"image": "a.png", "label": ["cat", "dog"]}\n'),
        ("python.csv", "image;label\na.png;['cat', 'dog']\n"),
        ("bars.csv", "image,label\na.png,cat|dog_house\nb.png,cat\n"),
        ("semicolons.csv", "image,label\na.png,cat;mouse\nb.png,cat\n"),
        ("shared_bars.csv", "image,label\na.png,cat|dog\nb.png,dog|owl\nc.png,owl|cat\n"),
        ("shared.csv", "image,label\na.png,cat;dog\nb.png,dog;owl\nc.png,rat;bat\n"),
        ("commas.csv", 'image,label\na.png,"cat, dog"\nb.png,cat\nc.png,dog\n'),
        ("blanks.csv", "image,label\na.png,cat dog\nb.png,cat\nc.png,dog\n"),
        ("slashes.csv", "image,label\na.png,cat/dog\nb.png,cat\nc.png,dog\n"),
        ("ampersands.csv", "image,label\na.png,cat & dog\nb.png,cat\nc.png,dog\n"),
        ("marked.csv", "image,label\na.png,cat big_dog\nb.png,cat\n"),
    ],
)
def test_several_labels_are_refused_with_the_way_to_use_them(name, content, listing):
    path = listing.write(name, content, *IMAGES)
    with pytest.raises(UniclError, match=r"several (labels|classes)") as caught:
        listing.labels(path)
    assert "an image takes one" in str(caught.value)
    assert f"--captions '{path}?caption=label'" in caught.value.hint
    sets = {"list": "true", "python": "true", "bars": "|", "semicolons": ";", "commas": ",", "slashes": "/"}
    sets |= {"shared": ";", "shared_bars": "|"}
    sets |= {"ampersands": "%26", "blanks": "space", "marked": "space"}
    assert f"--labels '{path}?sets={sets[name.partition('.')[0]]}'" in caught.value.hint
    assert any(row.labels for row in listing.open(caught.value.hint.split("'")[1], "labels").rows("train"))


@pytest.mark.parametrize("label", ["red fox", "tench, Tinca tinca", "AC/DC", "either|or"])
def test_a_name_that_may_be_one_class_is_kept(label, listing):
    path = listing.write("names.csv", f'image,label\na.png,"{label}"\nb.png,owl\n', *IMAGES)
    assert listing.labels(path) == {"a.png": label, "b.png": "owl"}


def test_a_doubtful_name_is_kept_and_told(listing):
    source = listing.open(listing.write("fox.csv", "image,label\na.png,red fox\nb.png,fox\n", *IMAGES), "labels")
    assert len(source.rows("train")) == 2
    assert source.notes == [
        "fox.csv: 1 of 2 labels seem to name several classes (line 2: red fox); each is taken as one class"
    ]
    lines = 'image,label\na.png,"cat, dog"\nb.png,"dog, owl"\nc.png,"owl, cat"\n'
    source = listing.open(listing.write("pairs.csv", lines, *IMAGES), "labels")
    assert len(source.rows("train")) == 3
    assert source.notes == [
        "pairs.csv: 3 of 3 labels seem to name several classes (line 2: cat, dog); each is taken as one class"
    ]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("True", "False"), ("1.0", "0.0"), ("1", "-1")])
@pytest.mark.parametrize("options", ["", "?label=cat,dog", "?label=[cd]*"])
def test_one_column_per_class_is_named(options, yes, no, listing):
    path = listing.write("hot.csv", f"image,cat,dog\na.png,{yes},{no}\nb.png,{no},{yes}\n", *IMAGES)
    with pytest.raises(UniclError, match=r"one column for each class \(cat, dog\)") as caught:
        listing.labels(path + options)
    assert caught.value.hint == f"take each column as a class: --labels '{path}?onehot=cat,dog'"


@pytest.mark.parametrize("name", ["marks.jsonl", "marks.csv"])
def test_a_cell_with_a_mark_per_class_is_not_a_class(name, listing):
    lines = '{"image": "a.png", "label": [0, 1, 0]}\n' if name.endswith("l") else "image;label\na.png;[0, 1, 0]\n"
    path = listing.write(name, lines, *IMAGES)
    with pytest.raises(UniclError, match="label holds a mark for each of 3 classes"):
        listing.labels(path)


def test_several_columns_of_labels_are_named_with_the_choice(listing):
    path = listing.write("two.csv", "image,label_1,label_2\na.png,cat,dog\nb.png,dog,\n", *IMAGES)
    with pytest.raises(UniclError, match=r"several columns of labels \(label_1, label_2\)") as caught:
        listing.labels(path)
    assert f"'{path}?label=label_1'" in caught.value.hint
    assert f"'{path}?label=label_1,label_2&group=labels'" in caught.value.hint


def test_other_columns_that_are_not_labels_are_listed(listing):
    path = listing.write("two.csv", "image,one,two\na.png,x,y\nb.png,z,w\n", *IMAGES)
    with pytest.raises(UniclError, match=r"no label column \(columns: image, one, two\)") as caught:
        listing.labels(path)
    assert caught.value.hint == (
        f"name it: '{path}?label=COLUMN', or take the folder of each image: '{path}?label=folder'"
    )


def test_captions_that_are_words_for_an_empty_cell_are_kept_and_counted(listing):
    lines = "image,caption\na.png,nan\nb.png,NULL\nc.png,a real one\n"
    source = listing.open(listing.write("nan.csv", lines, *IMAGES))
    assert len(source.rows("train")) == 3
    assert source.notes == [
        "nan.csv: captions that look like an empty cell ('NULL', 'nan'), kept: 2; clear these cells to drop them"
    ]


@pytest.mark.parametrize(
    "word", ["NA", "nan", "NaN", "null", "None", "N/A", "<NA>", "#N/A", "\\N", "nil", "-", "?", "..."]
)
def test_a_label_that_may_mean_none_is_refused_until_it_is_named(word, listing):
    path = listing.write("l.csv", f"image,label\na.png,{word}\nb.png,cat\nc.png,dog\n", *IMAGES)
    with pytest.raises(UniclError) as caught:
        listing.labels(path)
    assert caught.value.message == f"{path}: 1 of 3 labels may mean that there is none ('{word}' 1)"
    missing, keep = re.findall("'(.*?)'", caught.value.hint)
    source = listing.open(missing, "labels")
    assert [c.key for c in source.classes] == ["cat", "dog"]
    assert [row.label for row in source.rows("train")] == [-1, 0, 1]
    assert listing.labels(keep)["a.png"] == word
    (listing.root / "names.txt").write_text(f'"{word}"\ncat\ndog\n')
    assert listing.labels(f"{path}?classes=names.txt")["a.png"] == word


def test_numbers_beside_a_word_for_nothing_are_numbers_again(listing):
    path = listing.write("l.csv", "image,label\na.png,10\nb.png,NA\nc.png,9\n", *IMAGES)
    assert [c.key for c in listing.open(f"{path}?missing=NA,nan", "labels").classes] == ["9", "10"]


def test_minus_one_beside_words_means_no_label(listing):
    source = listing.open(listing.write("l.csv", "image,label\na.png,-1\nb.png,cat\n", *IMAGES), "labels")
    assert [c.key for c in source.classes] == ["cat"]
    assert [row.label for row in source.rows("train")] == [-1, 0]


@pytest.mark.parametrize("labels", ["1 01 2", "1 001 +1", "0 -0", "1 1.0 cat", "7 ٧"])
def test_spellings_of_one_number_are_refused(labels, listing):
    lines = "".join(f"{image},{label}\n" for image, label in zip(IMAGES, labels.split(), strict=False))
    with pytest.raises(UniclError, match=r"are one number, written in several ways|is not an integer"):
        listing.labels(listing.write("l.csv", f"image,label\n{lines}", *IMAGES))


def test_numbers_that_stand_for_names_may_be_spelled_in_any_way(listing):
    path = listing.write("l.csv", "image,label\na.png,1\nb.png,01\nc.png,0\n", *IMAGES)
    listing.write("names.txt", "cat\ndog\n")
    assert listing.labels(f"{path}?classes=names.txt") == {"a.png": "dog", "b.png": "dog", "c.png": "cat"}


def test_a_label_as_long_as_a_page_leaves_its_line_out(listing):
    path = listing.write("l.csv", f"image,label\na.png,{'9' * 5000}\nb.png,0\nc.png,1\n", *IMAGES)
    source = listing.open(path, "labels")
    assert [c.key for c in source.classes] == ["0", "1"]
    assert source.rows("train")[0].ref == "bad line: line 2: label has 5,000 characters; at most 1,000"


def floats(listing, kind):
    """A list of four images whose third label is missing, so that the others are floats, as pandas writes them."""
    listing.write("images", "", *IMAGES, "d.png")
    labels = [0.0, 1.0, None, 1.0]
    if kind == "parquet":
        pq.write_table(pa.table({"image": [*IMAGES, "d.png"], "label": pa.array(labels)}), listing.root / "l.parquet")
        return "l.parquet"
    if kind == "jsonl":
        rows = [{"image": image, "label": label} for image, label in zip([*IMAGES, "d.png"], labels, strict=True)]
        return listing.write("l.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).replace("null", "NaN"))
    return listing.write("l.csv", "image,label\na.png,0.0\nb.png,1.0\nc.png,\nd.png,1.0\n")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("names", [None, "cat\ndog\n", "0\tcat\n1\tdog\n", "0.0\tcat\n1.0\tdog\n"])
def test_whole_numbers_written_as_floats_are_those_numbers(kind, names, listing):
    path = floats(listing, kind)
    if names:
        listing.write("names.txt", names)
        path += "?classes=names.txt"
    source = listing.open(path, "labels")
    assert [c.key for c in source.classes] == (["cat", "dog"] if names else ["0", "1"])
    assert [row.label for row in source.rows("train")] == [0, 1, -1, 1]
    assert f"l.{kind}: labels written as floats are taken as whole numbers (3): 0.0 is 0" in source.notes


def test_floats_are_ordered_and_named_as_the_numbers_that_they_are(listing):
    lines = "a.png,10.0,owl\nb.png,9.0,fox\nc.png,-1.0,\nd.png,10.0,owl\ne.png,9.0,fox\n"
    path = listing.write("l.csv", f"image,label,said\n{lines}", *IMAGES, "d.png", "e.png")
    source = listing.open(path, "labels")
    assert [c.key for c in source.classes] == ["fox", "owl"]
    assert [row.label for row in source.rows("train")] == [1, 0, -1, 1, 0]


def test_a_class_that_is_named_like_a_float_keeps_its_name(listing):
    path = listing.write("l.csv", "image,label\na.png,1.0\nb.png,2.0\n", *IMAGES)
    listing.write("names.txt", "2.0\n1.0\n")
    assert listing.labels(f"{path}?classes=names.txt") == {"a.png": "1.0", "b.png": "2.0"}


@pytest.mark.parametrize("broken", ["\n", "\r\n", "\r", "\v", "\u2028"])
def test_two_lines_in_a_cell_are_several_labels(broken, listing):
    path = listing.write("l.csv", f'image,label\na.png,cat\nb.png,"cat{broken}dog"\nc.png,dog\n', *IMAGES)
    with pytest.raises(UniclError, match=r"1 of 3 labels seem to name several classes \(line 3: cat") as caught:
        listing.labels(path)
    assert "--captions" in (caught.value.hint or "")
    rows = [{"image": "a.png", "label": "cat"}, {"image": "b.png", "label": f"cat{broken}dog"}]
    with pytest.raises(UniclError, match="1 of 2 labels seem to name several classes"):
        listing.labels(listing.write("l.json", rows))


def test_a_column_that_is_another_in_each_line_is_taken_as_labels_only_by_its_name(listing):
    images = [f"{number}.png" for number in range(8)]
    lines = [f"{number + 1} {image}" for number, image in enumerate(images)]
    path = listing.write("images.txt", "\n".join(lines) + "\n", *images)
    with pytest.raises(UniclError, match="column '0' has another label for each of 8 images") as caught:
        listing.labels(path)
    assert f"{path}?label=folder" in caught.value.hint
    named = "images.txt: each of the 8 labels is a class of its own: check that column '0' holds classes"
    source = listing.open(f"{path}?label=0", "labels")
    assert len(source.classes) == 8
    assert named in source.notes
    path = listing.write("few.txt", "\n".join(lines[:7]) + "\n")
    assert len(listing.labels(path)) == 7
    path = listing.write("shared.txt", "\n".join([*lines[:7], "7 7.png"]) + "\n")
    assert listing.labels(path)["7.png"] == "7"
