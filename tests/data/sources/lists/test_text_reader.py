"""Text lists as people have them: one golden table of forms that all give the same captions."""

import json
import os
import re

import pytest

from unicl_cli.data.sources import text_file
from unicl_cli.errors import UniclError

SAME = {"a.png": ("one, two", "three"), "b.png": ("a dog",)}
FORMS = {
    "flickr8k.token.txt": "a.png#0\tone, two\na.png#1\tthree\nb.png#0\ta dog\n",
    "flickr8k.tsv": "a.png#0\tone, two\na.png#1\tthree\nb.png#0\ta dog\n",
    "results.token": "a.png#0\tone, two\na.png#1\tthree\nb.png#0\ta dog\n",
    "numbered.txt": "a.png#0 1 one, two\na.png#1 2 three\nb.png#0 1 a dog\n",
    "blanks.txt": "a.png one, two\na.png three\nb.png a dog\n",
    "kaggle.txt": 'image,caption\na.png,"one, two"\na.png,three\nb.png,a dog\n',
    "bars.csv": "image_name| comment_number| comment\na.png| 0|one, two\na.png| 1|three\nb.png| 0|a dog\n",
    "excel.csv": "sep=;\r\nBild;Text\r\na.png;one, two\r\na.png;three\r\nb.png;a dog\r\n",
    "comma_in_header.csv": "image;caption (short, English)\na.png;one, two\na.png;three\nb.png;a dog\n",
    "foreign.csv": 'Datei,Beschreibung\na.png,"one, two"\na.png,three\nb.png,a dog\n',
    "blank_header.csv": 'Image Name,Alt-Text\na.png,"one, two"\na.png,three\nb.png,a dog\n',
    "index.csv": ',file_name,caption\n0,a.png,"one, two"\n1,a.png,three\n2,b.png,a dog\n',
    "wide.csv": 'image,caption_0,caption_1\na.png,"one, two",three\nb.png,a dog,\n',
    "cells.csv": "image;captions\na.png;['one, two', 'three']\nb.png;[\"a dog\"]\n",
    "numpy.csv": "image;captions\na.png;['one, two' 'three']\nb.png;['a dog']\n",
    "nested.csv": "image;captions\na.png;[['one, two'], ['three']]\nb.png;('a dog', None)\n",
    "spaced.csv": 'image, caption\na.png, "one, two"\na.png, three\nb.png, a dog\n',
    "comment.csv": '# made by me\nimage,caption\na.png,"one, two"\na.png,three\nb.png,a dog\n',
    "commas.tsv": 'image,caption\na.png,"one, two"\na.png,three\nb.png,a dog\n',
    "dotted.csv": 'image,caption.0,caption.1\na.png,"one, two",three\nb.png,a dog,\n',
    "languages.txt": "a.png#enc#0\tone, two\na.png#enc#1\tthree\nb.png#enc#0\ta dog\n",
    "json_cells.tsv": 'image\tcaptions\na.png\t["one, two", "three"]\nb.png\t["a dog"]\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_a_text_list_gives_the_same_captions(name, listing):
    assert listing.texts(listing.write(name, FORMS[name], "a.png", "b.png")) == SAME


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("named.csv", "which|words\na.png|one\n", "?image=which&caption=words"),
        ("colon.csv", "a.png:one\n", "?sep=:"),
        ("bar.txt", "a.png|one\n", "?sep=bar"),
        ("tab.csv", "pic\tx\tpic2\na.png\tone\t7\n", "?sep=tab&image=pic&caption=x"),
        ("blank.csv", "image caption\na.png one\n", "?sep=space"),
        ("latin.csv", "image;caption\na.png;one\n", "?encoding=cp1252"),
        ("wide.csv", "image;caption\na.png;one\n".encode("utf-16"), "?encoding=utf-16"),
        ("unknown.csv", "x,y\na.png,one\n", "?image=x&caption=y"),
        ("json.txt", '{"image": "a.png", "caption": "one"}\n', ""),
        ("comma.csv", 'image;"caption, short";by\na.png;one;me\n', "?caption=caption, short"),
    ],
)
def test_options_and_names_given_by_the_user_decide(name, content, options, listing):
    assert listing.texts(listing.write(name, content, "a.png") + options) == {"a.png": ("one",)}


@pytest.mark.parametrize("option", ["caption_0,caption_2", "caption_*", "1,3"])
def test_several_columns_of_captions_are_chosen_by_a_list_or_a_pattern(option, listing):
    lines = "image,caption_0,note,caption_2\na.png,one,no,two\n"
    assert listing.texts(listing.write("w.csv", lines, "a.png") + f"?caption={option}") == {"a.png": ("one", "two")}


def test_a_comma_in_each_caption_does_not_separate(listing):
    path = listing.write("each.txt", "a.png\tone, two\nb.png\tthree, four\n", "a.png", "b.png")
    assert listing.texts(path) == {"a.png": ("one, two",), "b.png": ("three, four",)}


def test_escapes_of_json_are_those_of_json(listing):
    path = listing.write("emoji.tsv", 'image\tcaption\na.png\t["a dog \\ud83d\\ude00"]\n', "a.png")
    assert listing.texts(path) == {"a.png": ("a dog \U0001f600",)}


def test_a_first_row_that_only_looks_like_a_header_is_kept(listing):
    path = listing.write("domains.csv", "0001,photo\n0002,sketch\n0003,photo\n", "0001.png", "0002.png", "0003.png")
    assert listing.labels(f"{path}?image=0&label=1&suffix=.png") == {
        "0001.png": "photo",
        "0002.png": "sketch",
        "0003.png": "photo",
    }


def test_a_caption_that_only_looks_like_a_list_stays_as_it_is(listing):
    lines = "image\tcaption\na.png\t[laughs] a man [sings]\nb.png\t(a dog)\nc.png\t[1, 2]\nd.png\t[sic]\n"
    path = listing.write("sic.tsv", lines, "a.png")
    assert [texts for (texts,) in listing.texts(path).values()] == [
        "[laughs] a man [sings]",
        "(a dog)",
        "[1, 2]",
        "[sic]",
    ]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("latin.csv", b"image;caption\na.png;ok\na.png;caf\xe9\n", "line 3, byte 10 (0xe9)"),
        ("latin.tsv", b"image\tcaption\na.png\tgr\xfcn\n", "line 2, byte 9 (0xfc)"),
        ("bom.csv", b"\xef\xbb\xbfimage,caption\na.png,\xff\n", "line 2, byte 7 (0xff)"),
        ("cut.txt", b"a.png\tcaf\xc3", "line 1, byte 10 (0xc3)"),
        ("latin.jsonl", b'{"image": "a.png", "caption": "ok"}\n{"image": "\xe9"}\n', "line 2, byte 12 (0xe9)"),
        ("latin.json", b'[{"image": "a.png", "caption": "\xe9"}]', "line 1, byte 33 (0xe9)"),
    ],
)
def test_a_byte_that_is_not_utf8_is_named_and_never_replaced(name, content, place, listing):
    path = listing.write(name, content, "a.png")
    with pytest.raises(UniclError) as caught:
        listing.texts(path)
    assert str(caught.value) == f"{path}: {place}: not UTF-8"
    assert f"'{path}?encoding=NAME'" in caught.value.hint


def test_an_encoding_is_obeyed_and_an_unknown_one_is_refused(listing):
    path = listing.write("gb.csv", "image,caption\na.png,红色的风筝\n".encode("gb18030"), "a.png")
    assert listing.texts(f"{path}?encoding=gb18030") == {"a.png": ("红色的风筝",)}
    with pytest.raises(UniclError, match="not ascii"):
        listing.texts(f"{path}?encoding=ascii")
    for odd in ("klingon", "base64"):
        with pytest.raises(UniclError, match=f"unknown encoding '{odd}'"):
            listing.texts(f"{path}?encoding={odd}")


def test_utf16_without_its_mark_is_named_with_the_option_that_reads_it(listing):
    path = listing.write("wide.csv", "image,caption\na.png,one\n".encode("utf-16-le"), "a.png")
    with pytest.raises(UniclError, match="a quarter of its bytes are NUL") as caught:
        listing.texts(path)
    assert f"'{path}?encoding=utf-16-le'" in caught.value.hint
    assert listing.texts(f"{path}?encoding=utf-16-le") == {"a.png": ("one",)}


def test_names_between_blanks_may_have_several_words(listing):
    path = listing.write("names.txt", "a.png red fox\nb.png owl\nc.png owl\n", "a.png", "b.png", "c.png")
    assert listing.labels(path) == {"a.png": "red fox", "b.png": "owl", "c.png": "owl"}


def test_captions_beside_the_images_are_strict_too(listing):
    listing.write("photos/a.txt", b"ein L\xf6we\n", "photos/a.png")
    with pytest.raises(UniclError, match=r"photos/a\.txt: line 1, byte 6 \(0xf6\): not UTF-8"):
        listing.texts("photos")
    assert listing.texts("photos?encoding=cp1252") == {"a.png": ("ein Löwe",)}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ("?sep=||", "sep=|| is not a separator", "tab"),
        ("?image=pic", "no column 'pic'", "add ?header=true"),
        ("?caption=wrods*", "no column 'wrods*'", "choose from"),
        ("?image=*", "image=* names 2 columns", "name one"),
    ],
)
def test_a_wrong_option_says_what_there_is(options, message, hint, listing):
    path = listing.write("headless.csv", "a.png,one\nb.png,two\n", "a.png")
    with pytest.raises(UniclError, match=re.escape(message)) as caught:
        listing.texts(path + options)
    assert hint in caught.value.hint


LONG = "w " * 300


@pytest.mark.parametrize(
    ("name", "line", "place"),
    [
        ("l.tsv", f"a.png\t{LONG}", "line 2"),
        ("l.csv", f"a.png,{LONG}", "line 2"),
        ("l.csv", f'a.png,"{LONG}"', "line 2"),
        ("l.csv", f'a.png,"one\n{LONG}\nthree"', "line 2"),
        ("l.jsonl", '{"image": "a.png", "caption": "' + LONG + '"}', "line 1"),
    ],
)
def test_a_line_without_end_is_left_out_alone(name, line, place, listing, monkeypatch):
    monkeypatch.setattr(text_file, "MAX_LINE", 500)
    is_json = name == "l.jsonl"
    header = "" if is_json else "image\tcaption\n".replace("\t", "\t" if name == "l.tsv" else ",")
    good = (
        '{"image": "b.png", "caption": "two"}\n'
        if is_json
        else "b.png,two\n".replace(",", "\t" if "tsv" in name else ",")
    )
    rows = listing.open(listing.write(name, f"{header}{line}\n{good}", "b.png")).rows("train")
    assert [row.texts for row in rows] == [(), ("two",)]
    assert re.fullmatch(rf"bad line: {place}: the line has \d+ characters; at most 500", rows[0].ref)


@pytest.mark.parametrize("name", ["l.tsv", "l.csv", "l.jsonl"])
def test_a_cell_as_long_as_a_book_is_left_out_and_its_length_is_told(name, listing):
    cell = "word " * 30_000
    lines = f"image\tcaption\na.png\t{cell}\nb.png\ttwo\n".replace("\t", "\t" if name == "l.tsv" else ",")
    if name == "l.jsonl":
        lines = "".join(json.dumps({"image": i, "caption": c}) + "\n" for i, c in (("a.png", cell), ("b.png", "two")))
    rows = listing.open(listing.write(name, lines, "b.png")).rows("train")
    assert [row.texts for row in rows] == [(), ("two",)]
    assert rows[0].ref.endswith("caption has 150,000 characters; at most 131,072")


@pytest.mark.parametrize("columns", [20_000, 3_000_000])
def test_a_list_of_endless_columns_is_refused(columns, listing):
    path = listing.write("wide.csv", f"image,caption{',c' * columns}\na.png,one{',1' * columns}\n", "a.png")
    with pytest.raises(UniclError, match=rf"{columns + 2:,} columns; at most 10,000"):
        listing.texts(path)


def test_a_header_that_is_a_text_is_refused(listing):
    with pytest.raises(UniclError, match=r"a column is named 'xxx.*', 2,000 characters"):
        listing.texts(listing.write("l.csv", f"image,{'x' * 2000}\na.png,one\n", "a.png") + "?header=true&caption=1")


def test_the_first_of_two_columns_of_one_name_is_taken_and_told(listing):
    path = listing.write("l.csv", "image,caption,caption\na.png,one,two\n", "a.png")
    source = listing.open(path)
    assert [row.texts for row in source.rows("train")] == [("one",)]
    assert source.notes == [
        "l.csv: 2 columns are named 'caption', and the first is the caption; to choose another by its number, "
        "add ?caption=2"
    ]
    chosen = listing.open(f"{path}?caption=1,2")
    assert [row.texts for row in chosen.rows("train")] == [("one", "two")]
    assert chosen.notes == []


def test_what_is_not_a_file_is_never_waited_for(listing):
    os.mkfifo("list.csv")
    with pytest.raises(UniclError, match=r"list\.csv: not a regular file"):
        listing.texts("list.csv")
    path = listing.write("l.csv", "image,label\na.png,0\n", "a.png")
    for option in ("classes", "split"):
        with pytest.raises(UniclError, match=r"not a regular file|no column 'list\.csv'"):
            listing.labels(f"{path}?{option}=list.csv")
    os.mkfifo("a.txt")
    folder = listing.open(".", "captions")
    assert [row.texts for row in folder.rows("train")] == [()]
    assert "files of captions that cannot be read (1): a.txt (not a regular file)" in " ".join(folder.notes)


CELEBA = "2\nBald Smiling Young \na.png -1  1 -1\nb.png  1 -1  1\n"


def test_a_first_line_with_the_number_of_lines_and_a_header_without_the_images_are_read(listing):
    path = listing.write("list_attr.txt", CELEBA, "a.png", "b.png")
    source = listing.open(f"{path}?onehot=all&negative=-1", "labels")
    names = [c.key for c in source.classes]
    found = {row.key: sorted(names[label] for label in row.label_set()) for row in source.rows("train")}
    assert found == {"a.png": ["Smiling"], "b.png": ["Bald", "Young"]}
    path = listing.write("r.tsv", "label\tsize\na.png\tcat\t3\nb.png\tdog\t4\n")
    assert listing.labels(path) == {"a.png": "cat", "b.png": "dog"}
    path = listing.write("numbers.txt", "7 a.png\n8 b.png\n")
    assert listing.labels(path) == {"a.png": "7", "b.png": "8"}
