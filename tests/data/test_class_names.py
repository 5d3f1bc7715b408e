"""Files and options of class names: every form gives the same classes, and what is doubtful is refused."""

import json
import os

import pytest

from unicl_cli.data.class_names import parse_class_option, parse_class_text, read_class_file, read_classes
from unicl_cli.errors import UniclError


def listed(text, suffix=".txt", **options):
    """The ids and names of a text, or its names alone."""
    found = parse_class_text(text, "names", suffix, **options)
    return [(entry.id, *entry.names) if found.has_ids else entry.names for entry in found.entries]


TENCH = ("n01440764", "tench", "Tinca tinca")
BLIGHT = [("0", "blight"), ("1", "brown streak, wet"), ("2", "healthy")]


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "0 blight\n1 brown streak, wet\n2 healthy\n"),
        (".txt", "0: blight\n1: brown streak, wet\n2: healthy"),
        (".txt", "0\tblight\r\n1\tbrown streak, wet\r\n2\thealthy\r\n"),
        (".txt", "0, blight\n1, brown streak, wet\n2, healthy"),
        (".names", "# made by hand\n0) blight\n1) brown streak, wet\n\n2) healthy\n"),
        (".tsv", "id\tname\n0\tblight\n1\tbrown streak, wet\n2\thealthy\n"),
        (".csv", 'label,name\n0,blight\n1,"brown streak, wet"\n2,healthy\n'),
        (".csv", 'name,label_num\nblight,0\n"brown streak, wet",1\nhealthy,2\n'),
        (".csv", '0;blight\n1;"brown streak, wet"\n2;healthy\n'),
        (".csv", 'class_id,colour,class_name\n0,red,blight\n1,green,"brown streak, wet"\n2,blue,healthy\n'),
        (".json", '{"0": "blight", "1": "brown streak, wet", "2": "healthy"}'),
        (".json", '{"blight": 0, "brown streak, wet": 1, "healthy": 2}'),
        (".json", '{"model_type": "x", "id2label": {"0": "blight", "1": "brown streak, wet", "2": "healthy"}}'),
        (
            ".json",
            '[{"id": 0, "name": "blight"}, {"id": 1, "name": "brown streak, wet"}, {"id": 2, "name": "healthy"}]',
        ),
        (".yaml", "path: ../data\nnames:\n  0: blight\n  1: brown streak, wet\n  2: healthy\n"),
        (".jsonl", '{"id": 0, "name": "blight"}\n{"id": 1, "name": "brown streak, wet"}\n{"id": 2, "name": "healthy"}'),
    ],
)
@pytest.mark.parametrize("prompts", [False, True])
def test_every_form_of_a_map_gives_the_same_ids_and_names(suffix, text, prompts):
    assert listed(text, suffix, prompts=prompts) == BLIGHT


@pytest.mark.parametrize(
    ("suffix", "text", "names"),
    [
        (".txt", "salt, pepper\ncat\n", [("salt, pepper",), ("cat",)]),
        (".txt", '"cat"\n# a remark\ndog = hound|puppy\n', [("cat",), ("dog", "hound", "puppy")]),
        (".csv", "class_name\ncat\ndog\n", [("cat",), ("dog",)]),
        (".txt", "key\nfolder\n", [("key",), ("folder",)]),
        (".json", '["cat", "a=b"]', [("cat",), ("a=b",)]),
        (".json", '{"classes": ["cat", "dog"]}', [("cat",), ("dog",)]),
        (".yaml", "train: images\nnc: 2\nnames: ['no', 012]", [("no",), ("012",)]),
        (".txt", "2 of hearts\n2 of spades\n3 of hearts", [("2 of hearts",), ("2 of spades",), ("3 of hearts",)]),
        (".txt", "Boeing 737\nAirbus 320", [("Boeing 737",), ("Airbus 320",)]),
        (".txt", "grade 1\ngrade 2", [("grade 1",), ("grade 2",)]),
        (".txt", "5 euro\n10 euro\n20 euro", [("5 euro",), ("10 euro",), ("20 euro",)]),
        (".txt", "1 dog\n2 dogs\n3 dogs\n3 cats", [("1 dog",), ("2 dogs",), ("3 dogs",), ("3 cats",)]),
    ],
)
def test_plain_names_have_no_ids_also_if_they_begin_with_numbers(suffix, text, names):
    assert listed(text, suffix) == names


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (
            "n01440764 tench, Tinca tinca\nn02012849 crane",
            [("n01440764", "tench", "Tinca tinca"), ("n02012849", "crane")],
        ),
        (
            "n01440764\ttench|Tinca tinca\nn02012849\tcrane",
            [("n01440764", "tench", "Tinca tinca"), ("n02012849", "crane")],
        ),
        ('{"0": ["n01440764", "tench"], "1": ["n02012849", "crane"]}', [("0", "tench"), ("1", "crane")]),
        ('{"n01440764": ["tench", "Tinca tinca"]}', [TENCH]),
        ("/z/zoo 1\n/a/art gallery 0", [("1", "/z/zoo"), ("0", "/a/art gallery")]),
        ("zoo, 2\napse, 1", [("2", "zoo"), ("1", "apse")]),
        ("1 001.Black_tern\n2 002.Elegant_tern", [("1", "001.Black_tern"), ("2", "002.Elegant_tern")]),
        ("cats\tcat|kitty\ndogs\tdog", [("cats", "cat", "kitty"), ("dogs", "dog")]),
    ],
)
def test_ids_are_wordnet_ids_or_folders_too_and_names_have_aliases(text, classes):
    assert listed(text) == classes


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".txt", '"0": "cat",\n"1": "dog",', 'line 1: \'"0": "cat",\' looks like syntax'),
        (".yaml", "- cat\n- dog", "no list or map of class names below the key 'names'"),
        (".yaml", "nc: 2\nnames: ['cat', 'dog'", "not valid YAML"),
        (".yaml", "names: " + "[" * 5000, "not valid YAML"),
        (".yaml", "? [names]\n: [cat, dog]", "no list or map of class names below the key 'names'"),
        (".yaml", "nc: 3\nnames: ['cat', 'dog']", "nc is 3, and names has 2"),
        (".yaml", "names: {0: cat, 0: dog}", "duplicate key '0'"),
        (".yaml", "names: {0: [cat], 1: dog}", "an entry of 'names' is not a text"),
        (".txt", "cat,\ndog,\n", "looks like syntax"),
        (".py", "CLASSES = ['cat', 'dog']", "looks like syntax"),
        (".xml", "<names>\n<name>cat</name>", "looks like syntax"),
        (".txt", "cat\n#dog\n", "line 2: '#dog' looks like syntax"),
        (".txt", "cat\n\ndog\n", "line 2 is blank, but the names are counted by line"),
        (".txt", "cat\ndog\ncat\n", "duplicate class 'cat'"),
        (".txt", "0 cat\n1 dog\nbird\n3 fox", "'bird' has no number, but other names have one"),
        (".csv", "0,cat\n1,salt, pepper\n", "line 2: 2 cells expected, 3 found"),
        (".csv", "id,name\n0,cat\n0,dog\n", "two classes have the id 0"),
        (".csv", "id,name\n0,cat\n1,\n", "line 3: an empty cell"),
        (".csv", "x,y,z\n1,2,3\n", "no columns of ids and names"),
        (".json", '{"0": "cat", "0": "dog"}', "duplicate key '0'"),
        (".json", '{"cat": 0, "dog": 0}', "two names have one number"),
        (".json", '{"0": "cat", "1": }', "not valid JSON"),
        (".json", '{"0": {"a": 1}}', "needs a name"),
        (".json", "{}", "no class names"),
        (".txt", " \n", "no class names"),
    ],
)
def test_what_is_doubtful_is_refused_with_its_place_and_the_forms(suffix, text, message):
    with pytest.raises(UniclError, match=r"^names: ") as caught:
        parse_class_text(text, "names", suffix)
    assert message in caught.value.message
    assert caught.value.hint


def test_comments_headers_and_ids_are_told():
    notes = parse_class_text("# id name\n1 cat\n2 dog", "names").notes
    assert notes == (
        "names: lines that begin with # are comments (1, first line 1)",
        "names: its lines begin with ids, from 1 to 2",
    )
    assert parse_class_text("name\ncat", "names").notes == ("names: line 1 is the header: name",)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Löwe".encode("cp1252"))
    for file, message in (("latin.txt", "not UTF-8 text"), ("none.txt", "no such file")):
        with pytest.raises(UniclError, match=message):
            read_class_file(str(tmp_path / file))


@pytest.mark.parametrize(
    ("spec", "classes"),
    [
        ('["cat", "a, b"]', [("cat",), ("a, b",)]),
        ('{"0": "cat", "1": "dog"}', [("0", "cat"), ("1", "dog")]),
        ("0: cat, 1: dog", [("0", "cat"), ("1", "dog")]),
        ("1 cat,2 dogs", [("1 cat",), ("2 dogs",)]),
        ("dog=hound|puppy,cat", [("dog", "hound", "puppy"), ("cat",)]),
        ('"cat;dog","a|b"', [("cat;dog",), ("a|b",)]),
    ],
)
def test_an_option_is_json_or_cells(spec, classes):
    found = parse_class_option(spec, "--classes")
    assert [(e.id, *e.names) if found.has_ids else e.names for e in found.entries] == classes


def test_json_with_prompts_keeps_them_and_is_never_cut_at_commas():
    spec = json.dumps({"frog": ["a frog, green", "frogs"], "newt": "a newt"})
    found = parse_class_option(spec, "--classes")
    assert [(e.names, e.prompts) for e in found.entries] == [
        (("frog",), ("a frog, green", "frogs")),
        (("newt",), ("a newt",)),
    ]


@pytest.mark.parametrize(
    "spec", ['{"frog": ["a", "b"]', "[frog, newt]", "cat;dog", "cat|dog,bird", "names.txt", '"cat']
)
def test_an_option_that_is_something_else_is_refused(spec):
    with pytest.raises(UniclError, match="--classes") as caught:
        parse_class_option(spec, "--classes")
    assert caught.value.hint


def test_names_on_the_command_line_are_utf_8():
    with pytest.raises(UniclError, match=r"--classes caf\?,dog: not UTF-8 text"):
        read_classes("caf\udce9,dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n" * 200_002, "more than 200,000 lines"),
        (b"cat\n" + b"9" * 1001, "'9999.*' has 1,001 characters; at most 1,000"),
        (b"[" * 100_000, "not valid JSON: nested more than 64 levels deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON: a number has too many digits"),
        (b'{"' + b"9" * 5000 + b'": "cat", "1": "dog", "1": "owl"}', "duplicate key '1'"),
    ],
)
def test_a_file_of_names_without_measure_is_one_line(content, message, tmp_path):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(UniclError, match=message):
        read_class_file(str(tmp_path / "names"))


def test_a_pipe_or_folder_is_not_a_file_of_names(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UniclError, match="cannot be read: not a regular file"):
            read_class_file(str(tmp_path / name))


def test_a_key_of_thousands_of_digits_is_a_key(tmp_path):
    (tmp_path / "names.json").write_text(f'{{"{"9" * 5000}": "cat", "1": "dog"}}')
    assert [entry.id for entry in read_class_file(str(tmp_path / "names.json")).entries] == ["9" * 5000, "1"]


@pytest.mark.parametrize(
    "text", ["id,name\n0,cat\n,\n1,dog\n,\n", ",\nid,name\n0,cat\n1,dog\n,\n", "0,cat\n1,dog\n,\n , \n"]
)
def test_blank_rows_of_a_table_are_left_out_and_counted(text):
    found = parse_class_text(text, "n.csv", ".csv")
    assert [(entry.id, entry.names) for entry in found.entries] == [("0", ("cat",)), ("1", ("dog",))]
    assert any(
        note.startswith("n.csv: lines without a filled cell are left out (2, first line") for note in found.notes
    )


def test_a_blank_row_among_names_that_are_counted_is_refused():
    with pytest.raises(UniclError, match="line 2 is blank, but the names are counted by line"):
        parse_class_text('cat\n""\ndog\n', "n.csv", ".csv")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", "id,name\n0.0,cat\n2.0,dog\n"),
        (".txt", "0.0\tcat\n2.0\tdog\n"),
        (".json", '{"0.0": "cat", "2.0": "dog"}'),
        (".json", '[{"id": 0.0, "name": "cat"}, {"id": 2.0, "name": "dog"}]'),
    ],
)
def test_ids_that_pandas_wrote_as_floats_are_integers(suffix, text):
    assert [entry.id for entry in parse_class_text(text, "n", suffix).entries] == ["0", "2"]
    versions = parse_class_text("id,name\n1.0,cat\n1.5,dog\n", "n", ".csv")
    assert [entry.id for entry in versions.entries] == ["1.0", "1.5"], "not all are whole"
