"""Sources: folders, lists and the embedded data give the rows that a person expects, or one line that says why not."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.pictures import ImageError, decode
from unicl_cli.data.sources import shapes as shapes_module
from unicl_cli.data.sources.digits import WORDS, count_holes, describe_digit
from unicl_cli.data.sources.resolve import name_sources, open_source, resolve_source
from unicl_cli.errors import UniclError


def png():
    out = io.BytesIO()
    Image.linear_gradient("L").resize((12, 10)).convert("RGB").save(out, "PNG")
    return out.getvalue()


PNG = png()


def put(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PNG)
    return root


def listed(tmp_path, name, content, pictures=("a.png", "b.png")):
    put(tmp_path, *pictures)
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def texts_of(source, split="train"):
    return {row.key: row.texts for row in source.rows(split)}


# -- folders ---


def test_a_folder_of_folders_is_classes_in_one_split(tmp_path):
    put(tmp_path, "black cat & dog/1.png", "sea_lion/a/x.png", "Größe/1.PNG", "sea_lion/.hidden.png", ".git/c/1.png")
    (tmp_path / "sea_lion" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    put(tmp_path, "docs/readme.md")
    source = open_source(str(tmp_path), "labels")
    assert source.splits == ["train"]
    assert [(c.key, c.names) for c in source.classes] == [
        ("Größe", ("Größe",)),
        ("black cat & dog", ("black cat & dog",)),
        ("sea_lion/a", ("a",)),
    ]
    assert [(row.key, row.label) for row in source.rows("train")] == [
        ("Größe/1.PNG", 0),
        ("black cat & dog/1.png", 1),
        ("sea_lion/a/x.png", 2),
    ]
    assert source.read(source.rows("train")[0]) == {"image": PNG}
    assert source.notes == [
        f"{tmp_path.name}: files that are not images are ignored (1): .md 1",
        f"{tmp_path.name}: folders without images are not classes (2): docs, empty",
    ]


def test_first_level_folders_that_are_all_splits_are_splits(tmp_path):
    put(tmp_path, "train/cat/1.png", "validation/cat/2.png", "test/dog/1.png", "train/dog-house/1.png")
    source = open_source(str(tmp_path), "labels")
    assert list(source.splits) == ["train", "val", "test"]
    assert [c.key for c in source.classes] == ["cat", "dog", "dog-house"]
    assert source.classes[2].names == ("dog house",)
    assert [row.key for row in source.rows("val")] == ["validation/cat/2.png"]


def test_a_file_beside_the_splits_changes_nothing(tmp_path):
    put(tmp_path, "train/cat/1.png", "val/cat/1.png", "README.txt")
    source = open_source(str(tmp_path), "labels")
    assert list(source.splits) == ["train", "val"]
    assert [c.key for c in source.classes] == ["cat"]


def test_links_are_followed_but_not_into_a_loop(tmp_path):
    put(tmp_path / "data", "cat/1.png")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    put(tmp_path / "far", "2.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "far")
    source = open_source(str(tmp_path / "data"), "labels")
    assert [row.key for row in source.rows("train")] == ["cat/1.png", "dog/2.png"]


def test_captions_of_a_folder_are_text_files_beside_the_pictures(tmp_path):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("a red door\n\na door\n")
    assert texts_of(open_source(str(tmp_path), "captions")) == {"a.png": ("a red door", "a door"), "b.png": ()}


def test_a_folder_without_pictures_says_so(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UniclError, match="no images in this folder"):
        open_source(str(tmp_path), "labels").splits  # noqa: B018


# -- lists ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", 'filepath,title\na.png,"one, two"\nb.png,"a ""b"" c"\n'),
        ("bom.csv", b'\xef\xbb\xbffilepath,title\r\na.png,"one, two"\r\nb.png,"a ""b"" c"\r\n'),
        ("c.tsv", 'filepath\ttitle\na.png\tone, two\nb.png\ta "b" c\n'),
        ("crlf.tsv", 'filepath\ttitle\r\na.png\tone, two\r\nb.png\ta "b" c'),
        ("headless.tsv", 'a.png\tone, two\nb.png\ta "b" c\n'),
        ("turned.tsv", 'one, two\ta.png\na "b" c\tb.png\n'),
        ("c.jsonl", '{"image": "a.png", "text": "one, two"}\n\n{"image": "b.png", "text": "a \\"b\\" c"}\n'),
    ],
)
def test_every_form_of_a_list_gives_the_same_rows(tmp_path, name, content):
    source = open_source(listed(tmp_path, name, content), "captions")
    assert texts_of(source) == {"a.png": ("one, two",), "b.png": ('a "b" c',)}
    assert source.read(source.rows("train")[0]) == {"image": PNG}


def test_a_stray_quote_in_a_tsv_swallows_no_line(tmp_path):
    lines = "".join(f"{number}.png\t{number}" + '" disc\n' for number in range(50))
    source = open_source(listed(tmp_path, "q.tsv", "file\tcaption\n" + lines, ["0.png"]), "captions")
    assert len(source.rows("train")) == 50
    assert texts_of(source)["3.png"] == ('3" disc',)


def test_a_quote_that_is_never_closed_in_a_csv_is_named_by_its_line(tmp_path):
    body = "file,caption\n" + 'a.png,"open\n' + "b.png,x\n" * 30000
    with pytest.raises(UniclError, match="line 2: the list ends inside quotes") as caught:
        open_source(listed(tmp_path, "q.csv", body), "captions").splits  # noqa: B018
    assert "close the quote" in caught.value.hint


def test_columns_are_chosen_by_option_and_a_missing_one_is_named(tmp_path):
    path = listed(tmp_path, "o.csv", "which,alt,words\na,x,hello there\n")
    chosen = f"{path}?image=which&suffix=png&caption=words"
    assert texts_of(open_source(chosen, "captions")) == {"a.png": ("hello there",)}
    with pytest.raises(UniclError, match="no column 'wordz'; did you mean 'words'"):
        open_source(f"{path}?image=which&caption=wordz", "captions").splits  # noqa: B018
    with pytest.raises(UniclError, match=r"no image column \(columns: which, alt, words\)") as caught:
        open_source(path, "captions").splits  # noqa: B018
    assert caught.value.hint == f"name it: '{path}?image=which&suffix=.png'"


def test_a_line_with_too_few_columns_is_kept_as_a_bad_one_and_many_are_an_error(tmp_path):
    good = "".join(f"{n}.png\tok\n" for n in range(40))
    source = open_source(listed(tmp_path, "few.tsv", f"file\tcaption\n{good}lonely\n", ["1.png", "0.png"]), "captions")
    bad = source.rows("train")[-1]
    assert bad.ref == "bad line: line 42: 1 of 2 columns"
    with pytest.raises(ImageError, match="bad_line: line 42: 1 of 2 columns"):
        source.read(bad)
    with pytest.raises(UniclError, match="3 of 3 lines cannot be read; line 2: 1 of 2 columns"):
        open_source(listed(tmp_path, "bad.tsv", "file\tcaption\na\nb\nc\n"), "captions").splits  # noqa: B018


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gcc.tsv", "a cat\thttp://x.org/1.jpg\na dog\thttp://x.org/2\n"),
        ("cc12m.tsv", "http://x.org/1.jpg\ta cat\nhttp://x.org/2\ta dog\n"),
        ("laion.csv", "URL,TEXT,similarity\nhttp://x.org/1.jpg,a cat,0.3\nhttp://x.org/2,a dog,0.4\n"),
        (
            "hub.jsonl",
            '{"image_url": "http://x.org/1.jpg", "caption": "a cat"}\n'
            '{"image_url": "http://x.org/2", "caption": "a dog"}\n',
        ),
    ],
)
def test_a_list_of_urls_is_read_whatever_the_order_of_its_columns(tmp_path, name, content):
    source = open_source(listed(tmp_path, name, content), "captions")
    rows = source.rows("train")
    assert [(source.url(row), row.texts) for row in rows] == [
        ("http://x.org/1.jpg", ("a cat",)),
        ("http://x.org/2", ("a dog",)),
    ]
    with pytest.raises(ImageError, match="downloads it"):
        source.read(rows[0])


def test_labels_are_names_or_numbers_and_splits_come_from_their_column(tmp_path):
    path = listed(tmp_path, "n.csv", "file,label,split\na.png,sea & sand,train\nb.png,bus,validation\nc.png,,test\n")
    source = open_source(path, "labels")
    assert [c.key for c in source.classes] == ["bus", "sea & sand"]
    assert list(source.splits) == ["train", "val", "test"]
    assert [source.rows(split)[0].label for split in source.splits] == [1, 0, NO_LABEL]
    numbered = open_source(listed(tmp_path, "m.csv", "file,label\na.png,10\nb.png,9\nc.png,-1\n"), "labels")
    assert [c.key for c in numbered.classes] == ["9", "10"]
    assert [row.label for row in numbered.rows("train")] == [1, 0, NO_LABEL]


@pytest.mark.parametrize(
    ("label", "message"),
    [("7", "line 3: unknown label 7"), ("-3", "line 3: label -3 is negative"),
     ("1.5", "line 3: label 1.5 is not an integer"), ("fox", "line 3: unknown label fox")],
)  # fmt: skip
def test_a_label_that_no_class_has_is_named_by_its_line(tmp_path, label, message):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    path = listed(tmp_path, "l.csv", f"file,label\na.png,{0 if label[-1].isdigit() else 'cat'}\nb.png,{label}\n")
    with pytest.raises(UniclError, match=message):
        open_source(f"{path}?classes={tmp_path / 'names.txt'}", "labels").rows("train")


def test_parquet_holds_pictures_as_bytes_structs_or_paths(tmp_path):
    put(tmp_path, "a.png")
    captions = [["one", "two"], ["three"]]
    forms = {
        "bytes": pa.array([PNG, b""]),
        "struct": pa.array([{"bytes": PNG, "path": None}, {"bytes": None, "path": None}]),
    }
    for form, column in forms.items():
        pq.write_table(
            pa.table({"image": column, "captions": captions}), tmp_path / f"{form}.parquet", row_group_size=1
        )
        source = open_source(str(tmp_path / f"{form}.parquet"), "captions")
        rows = source.rows("train")
        assert [row.texts for row in rows] == [("one", "two"), ("three",)]
        assert source.read(rows[0]) == {"image": PNG}
    with pytest.raises(ImageError, match="empty"):
        source.read(rows[1])
    pq.write_table(pa.table({"path": ["a.png"], "caption": ["x"]}), tmp_path / "paths.parquet")
    by_path = open_source(str(tmp_path / "paths.parquet"), "captions")
    assert by_path.read(by_path.rows("train")[0]) == {"image": PNG}
    only = open_source(str(tmp_path / "bytes.parquet"), "images")
    assert [(row.texts, row.label) for row in only.rows("train")][1][1] == NO_LABEL


def test_parquet_of_the_datasets_library_brings_its_class_names(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.binary()), ("label", pa.int64())], {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(pa.table({"image": [PNG, PNG], "label": [1, 1]}, schema=schema), tmp_path / "hf.parquet")
    source = open_source(str(tmp_path / "hf.parquet"), "labels")
    assert [c.names for c in source.classes] == [("cat",), ("dog",)]
    assert [row.label for row in source.rows("train")] == [1, 1]


# -- names ---


def test_a_source_is_a_registered_name_a_folder_or_a_list(tmp_path):
    path = listed(tmp_path, "cap.tsv", "file\tcaption\na.png\tx\n")
    assert resolve_source("digits?classes=0-6&limit=600") == ("digits", {"classes": "0-6", "limit": "600"})
    assert resolve_source(str(tmp_path)) == ("folder", {"path": str(tmp_path)})
    assert resolve_source(f"{path}?caption=the%20words") == ("table", {"path": path, "caption": "the words"})
    with pytest.raises(UniclError, match="digitz: no such folder, list or source; did you mean 'digits'"):
        resolve_source("digitz")
    with pytest.raises(UniclError, match="option 'limit' has no value"):
        resolve_source("digits?limit")
    with pytest.raises(UniclError, match=r"digits\?limits=3: limits: unknown key; did you mean 'limit'"):
        open_source("digits?limits=3", "labels")
    with pytest.raises(UniclError, match=r"digits\?limit=many: limit: .*integer"):
        open_source("digits?limit=many", "labels")


def test_names_of_sources_are_unique_and_fit_for_files():
    named = name_sources(["digits", "a/my cap.tsv"], ["digits?limit=3"], ["digits"])
    assert [(item.name, item.kind) for item in named] == [
        ("digits", "labels"),
        ("my-cap", "labels"),
        ("digits-2", "captions"),
        ("digits-3", "images"),
    ]


# -- digits and shapes ---


def test_label_and_caption_digits_of_the_quickstart_share_no_picture():
    labels = open_source("digits?classes=0-6&limit=600", "labels")
    captions = open_source("digits?limit=300", "captions")
    chosen = [row.ref for row in labels.rows("train")]
    assert len(chosen) == 600
    assert {row.label for row in labels.rows("train")} == set(range(7))
    assert len(captions.rows("train")) == 300
    assert not set(chosen) & {row.ref for row in captions.rows("train")}
    test = {row.ref for row in labels.rows("test")}
    assert len(test) == 597
    assert {row.label for row in labels.rows("test")} == set(range(10))
    assert not test & {row.ref for source in (labels, captions) for row in source.rows("train")}
    assert all(not row.texts for row in labels.rows("train"))


def test_captions_name_their_digit_in_about_forty_of_a_hundred_and_only_that_digit():
    captions = open_source("digits", "captions")
    truth = {row.ref: row.label for split in ("train", "test") for row in open_source("digits", "labels").rows(split)}
    said = 0
    for row in captions.rows("train"):
        words = {word for word in WORDS if word in row.texts[0].replace(",", "").split()}
        assert words <= {WORDS[truth[row.ref]]}
        said += bool(words)
    assert 0.36 < said / 1200 < 0.44
    assert not any(
        w in row.texts[0].split() for row in open_source("digits?named=0", "captions").rows("train") for w in WORDS
    )


def test_captions_of_digits_are_measured():
    bar = [[16.0 if x == 3 else 0.0 for x in range(8)] for _ in range(8)]
    assert describe_digit(bar) == {"weight": "thin", "tilt": "upright", "width": "narrow", "holes": "without a loop"}
    slash = [[16.0 if x in (6 - y, 7 - y) else 0.0 for x in range(8)] for y in range(8)]
    assert describe_digit(slash)["tilt"] == "leaning right"
    assert describe_digit(slash[::-1])["tilt"] == "leaning left"
    ring = [[16.0 if max(abs(x - 3.5), abs(y - 3.5)) in (2.5, 3.5) else 0.0 for x in range(8)] for y in range(8)]
    assert (describe_digit(ring)["weight"], describe_digit(ring)["width"], count_holes(ring)) == ("thick", "wide", 1)
    two = [[0.0 if (x, y) in ((2, 2), (2, 5)) else 16.0 for x in range(8)] for y in range(8)]
    assert count_holes(two) == 2


def test_a_digit_picture_is_the_scan_enlarged_four_times():
    from sklearn.datasets import load_digits

    source = open_source("digits", "labels")
    row = source.rows("test")[5]
    picture = decode(source.read(row)["image"])
    assert (picture.size, picture.mode) == ((32, 32), "RGB")
    scan = load_digits().images[int(row.ref)]
    assert [picture.getpixel((4 * x, 4 * y))[0] * 16 // 255 for y in range(8) for x in range(8)] == pytest.approx(
        scan.ravel().tolist(), abs=1
    )


def test_digits_options_are_checked():
    for src, message in (("digits?classes=0-11", "is not in 0-9"), ("digits?classes=a", "cannot be read"),
                         ("digits?limit=0", "leaves no image"), ("digits?named=2", "is out of range")):  # fmt: skip
        with pytest.raises(UniclError, match=message):
            open_source(src, "labels")


def test_shapes_hold_twelve_pairs_out_of_all_training_and_label_half_of_the_rest():
    labels, captions = open_source("shapes?count=500&test=96", "labels"), open_source("shapes?count=500", "captions")
    assert len(labels.classes) == 48
    assert {row.label for row in labels.rows("train")} == set(range(18))
    assert {row.label for row in labels.rows("test")} == set(range(48))
    shown = {int(row.ref.split("/")[2]) for row in captions.rows("train")}
    assert shown == set(range(36))
    unseen = [captions.classes[number].names[0] for number in range(36, 48)]
    assert not any(name in row.texts[0] for name in unseen for row in captions.rows("train"))
    assert len({name.split()[0] for name in unseen}) == 8
    assert len({name.split()[1] for name in unseen}) == 6
    assert any("striped" in row.texts[0] for row in captions.rows("train"))


def test_a_shape_is_the_same_picture_each_time_and_shows_its_colour():
    source = open_source("shapes?count=60&size=48", "labels")
    means = {}
    for row in source.rows("train"):
        assert source.read(row) == source.read(row)
        picture = decode(source.read(row)["image"])
        assert picture.size == (48, 48)
        bright = [p for p in np.asarray(picture).reshape(-1, 3).tolist() if max(p) > 180]
        means[source.classes[row.label].names[0]] = tuple(
            sum(c) / max(1, len(bright)) for c in zip(*bright, strict=True)
        )
    assert means["red triangle"][0] > 2 * means["red triangle"][2]
    assert means["blue square"][2] > 1.5 * means["blue square"][0]
    assert len(shapes_module.ORDER) == len(set(shapes_module.ORDER)) == 48


def test_coloured_digits_have_two_hues_of_their_own_and_the_same_strokes():
    plain, coloured = (open_source(f"digits{options}", "labels") for options in ("", "?coloured=true"))
    assert plain.rows("train") == coloured.rows("train")
    inks = set()
    for row in coloured.rows("train")[:20]:
        grey, image = (
            np.asarray(Image.open(io.BytesIO(source.read(row)["image"])).convert("RGB"), np.float64) for source in
            (plain, coloured)
        )  # fmt: skip
        share = grey[..., :1] / 255
        ink, paper = image[share[..., 0] == 1], image[share[..., 0] == 0]
        if len(ink) and len(paper):
            np.testing.assert_allclose(image, share * ink[0] + (1 - share) * paper[0], atol=1)
            assert np.abs(ink[0] - paper[0]).max() > 90
            inks.add(tuple(ink[0]))
    assert len(inks) > 10
