"""Class names of lists: from a file, the Parquet column that is the label, or the column beside the numbers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError


def listed(tmp_path, text, name="l.csv"):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def names_of(src):
    """The class name of each row, in order."""
    source = open_source(src, "labels")
    return [source.classes[row.label].names[0] for split in source.splits for row in source.rows(split)]


NUMBERS = "image,label\n0.png,1\n1.png,2\n2.png,1\n3.png,0\n"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "owl\nfox\nsea_lion\n"),
        ("names.txt", "2 sea_lion\n0 owl\n1 fox\n"),
        ("names.json", '{"0": "owl", "1": "fox", "2": "sea_lion"}'),
        ("names.csv", "name,id\nfox,1\nowl,0\nsea_lion,2\n"),
    ],
)
def test_numbers_have_their_names_from_any_form_of_file(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    src = f"{listed(tmp_path, NUMBERS)}?classes={tmp_path / file}"
    assert names_of(src) == ["fox", "sea lion", "fox", "owl"]
    assert [c.key for c in open_source(src, "labels").classes] == ["owl", "fox", "sea_lion"]


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        ("owl\nfox\n", "", "line 3: unknown label 2 (number of classes: 2)"),
        ("1 owl\n2 fox\n", "", "line 5: unknown label 0 (number of classes: 2)"),
        ("owl\nfox\nhen\n", "&first=1", "line 5: unknown label 0 (number of classes: 3)"),
        ('{"a": "owl", "b": "fox"}', "", "line 2: unknown label 1"),
    ],
)
def test_a_number_without_a_name_is_refused_with_its_line(tmp_path, names, more, message):
    (tmp_path / "names").write_text(names)
    with pytest.raises(UniclError) as caught:
        names_of(f"{listed(tmp_path, NUMBERS)}?classes={tmp_path / 'names'}{more}")
    assert message in caught.value.message


def test_the_column_that_names_the_numbers_is_found_and_told(tmp_path):
    text = "image,label,who,shot\n0.png,3,owl,dusk\n1.png,7,fox,dawn\n2.png,3,owl,noon\n3.png,-1,,noon\n"
    source = open_source(listed(tmp_path, text), "labels")
    assert [c.key for c in source.classes] == ["owl", "fox"]
    assert [row.label for row in source.rows("train")] == [0, 1, 0, -1]
    assert source.notes == ["l.csv: column 'who' names the labels, for example 3: owl"]


@pytest.mark.parametrize(
    ("text", "keys", "note"),
    [
        ("image,label,a,b\n0.png,0,owl,Eule\n1.png,1,fox,Fuchs\n2.png,0,owl,Eule\n", ["0", "1"],
         ["l.csv: columns a, b name the labels: add ?label=a"]),
        ("image,label,a,class_name\n0.png,0,owl,Eule\n1.png,1,fox,Fuchs\n2.png,0,owl,Eule\n", ["Eule", "Fuchs"],
         ["l.csv: column 'class_name' names the labels, for example 0: Eule"]),
        ("image,label,text\n0.png,0,an owl\n1.png,1,a fox\n", ["0", "1"], []),
        ("image,label,who\n0.png,0,owl\n1.png,1,owl\n2.png,0,owl\n", ["0", "1"], []),
    ],
)  # fmt: skip
def test_columns_that_do_not_name_every_number_alone_are_not_taken(tmp_path, text, keys, note):
    source = open_source(listed(tmp_path, text), "labels")
    assert [c.key for c in source.classes] == keys
    assert source.notes == note


def test_parquet_names_are_those_of_the_label_column(tmp_path):
    features = {
        "fine": {"names": ["a", "b", "c"], "_type": "ClassLabel"},
        "coarse": {"names": ["A", "B"], "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [("image", pa.string()), ("fine", pa.int64()), ("coarse", pa.int64()), ("bare", pa.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    src = listed(tmp_path, "", "l.parquet")
    columns = {"image": ["0.png", "1.png"], "fine": [2, 1], "coarse": [1, 1], "bare": [1, 5]}
    pq.write_table(pa.table(columns, schema=schema), src)
    assert names_of(f"{src}?label=fine") == ["c", "b"]
    assert names_of(f"{src}?label=coarse") == ["B", "B"]
    assert names_of(f"{src}?label=bare") == ["1", "5"]


def test_wordnet_ids_in_a_list_are_named(tmp_path):
    source = open_source(listed(tmp_path, "image,label\n0.png,n01440764\n1.png,n02012849\n"), "labels")
    assert [(c.key, c.names[0]) for c in source.classes] == [("n01440764", "tench"), ("n02012849", "crane bird")]
    assert "named without the number or id of their key (2): 'n01440764' is 'tench'" in source.notes[0]
