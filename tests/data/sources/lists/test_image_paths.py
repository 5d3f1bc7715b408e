"""Images that lie elsewhere: root, suffix, absolute paths of another machine, URLs, and hints that find them."""

import hashlib
from pathlib import Path

import pytest

from unicl_cli.data.sources import resolve
from unicl_cli.data.sources.resolve import resolve_source
from unicl_cli.errors import UniclError


def test_the_hint_finds_the_folder_and_the_suffix(listing):
    path = listing.write("labels.csv", "id,breed\nx01,boxer\nx02,pug\n", "train/x01.jpg", "train/x02.jpg")
    with pytest.raises(UniclError, match=r"no image column \(columns: id, breed\)") as caught:
        listing.labels(path)
    src = f"{path}?image=id&root=train&suffix=.jpg"
    assert caught.value.hint == f"name it: '{src}'"
    assert listing.labels(src) == {"x01.jpg": "boxer", "x02.jpg": "pug"}
    with pytest.raises(UniclError, match="its images do not exist") as caught:
        listing.labels(f"{path}?image=id")
    assert caught.value.hint == f"read them from the folder where they are: '{src}'"


def test_images_beside_the_folder_of_the_list_are_found(listing):
    path = listing.write("meta/train.txt", "pie/1\nsoup/2\n", "images/pie/1.jpg", "images/soup/2.jpg")
    with pytest.raises(UniclError, match="no label column") as caught:
        listing.labels(path)
    assert f"'{path}?label=folder'" in caught.value.hint
    with pytest.raises(UniclError, match="its images do not exist") as caught:
        listing.labels(f"{path}?label=folder")
    src = f"{path}?label=folder&root=../images&suffix=.jpg"
    assert f"'{src}'" in caught.value.hint
    assert listing.labels(src) == {"pie/1.jpg": "pie", "soup/2.jpg": "soup"}


def test_images_of_a_neighbour_are_not_offered_to_a_list_with_images_of_its_own(listing):
    path = listing.write("mine/list.csv", "image,label\n1.png,cat\n2.png,dog\n", "mine/all/train/cat/01.png")
    listing.write("other/list.csv", "image,label\n", "other/1.png", "other/2.png")
    with pytest.raises(UniclError, match="its images do not exist") as caught:
        listing.labels(path)
    assert "other" not in caught.value.hint
    shared = listing.write("meta/list.csv", "image,label\n1.png,cat\n2.png,dog\n")
    with pytest.raises(UniclError) as caught:
        listing.labels(shared)
    assert caught.value.hint.endswith(f"'{shared}?root=../other'")


@pytest.mark.parametrize("lines", ["label,pixel0,pixel1\n1,0,0\n2,0,0\n", "emotion,pixels,Usage\n1,0 0 0 0,Training\n"])
def test_pixels_in_cells_are_no_images_and_labels_no_paths(lines, listing):
    path = listing.write("digits/train.csv", lines, "digits/a/1.jpg", "digits/a/2.jpg")
    with pytest.raises(UniclError, match="no image column") as caught:
        listing.labels(path)
    assert caught.value.hint == "save the pixels as image files, and write a list of these files"
    path = listing.write("digits/other.csv", "label,size\n1,9\n2,9\n")
    with pytest.raises(UniclError, match="no image column") as caught:
        listing.labels(path)
    assert caught.value.hint == f"name it: '{path}?image=COLUMN'"


def test_a_folder_with_some_of_the_images_is_not_offered(listing):
    path = listing.write("list.csv", "image,label\n1.png,cat\n2.png,dog\n", "train/cat/1.png", "train/dog/2.png")
    with pytest.raises(UniclError, match="its images do not exist") as caught:
        listing.labels(path)
    assert caught.value.hint.endswith(f"'{path}?root=FOLDER'")


def test_of_folders_with_images_of_the_same_names_the_one_of_the_list_is_offered_or_none(listing):
    images = [f"{folder}/{name}.png" for folder in ("test", "train") for name in (1, 2)]
    path = listing.write("train_labels.csv", "Id,Category\n1,cat\n2,dog\n", *images)
    with pytest.raises(UniclError, match="no image column") as caught:
        listing.labels(path)
    assert caught.value.hint == f"name it: '{path}?image=Id&root=train&suffix=.png'"
    path = listing.write("labels.csv", "Id,Category\n1,cat\n2,dog\n")
    with pytest.raises(UniclError, match="no image column") as caught:
        listing.labels(path)
    assert caught.value.hint == f"name it: '{path}?image=COLUMN'"


def test_paths_spelled_by_another_system_find_their_files(listing):
    files = ("b\u00e4r.png", "dog.PNG", "FOX.png", "a/owl.png", "cafe\u0301.png")
    cells = ("ba\u0308r.png", "dog.png", "FOX.PNG", "a\\owl.png", "caf\u00e9.png")
    lines = [f"{cell},{number}" for number, cell in enumerate(cells)]
    path = listing.write("list.csv", "image,label\n" + "\n".join(lines) + "\n", *files)
    source = listing.open(path, "labels")
    read = [source.read(row)["image"] for row in source.rows("train")]
    assert read == [(listing.root / file).read_bytes() for file in files]
    assert [source.stamp(row) for row in source.rows("train")] == [len(data) for data in read]


def test_a_slash_before_a_path_below_root_is_dropped(listing):
    lines = "/a/abbey/1.jpg 0\n/b/bog/2.jpg 1\n"
    path = listing.write("places.txt", lines, "data_large/a/abbey/1.jpg", "data_large/b/bog/2.jpg")
    with pytest.raises(UniclError, match="its images do not exist") as caught:
        listing.labels(path)
    assert caught.value.hint == f"read them from the folder where they are: '{path}?root=data_large'"
    assert listing.labels(f"{path}?root=data_large") == {"a/abbey/1.jpg": "0", "b/bog/2.jpg": "1"}


def test_a_suffix_is_added_only_where_there_is_none(listing):
    path = listing.write("mixed.csv", "image,caption\na,one\nb.png,two\nc.v2,three\n", "a.jpg", "b.png", "c.v2.jpg")
    assert list(listing.texts(f"{path}?suffix=jpg")) == ["a.jpg", "b.png", "c.v2.jpg"]


@pytest.mark.parametrize("start", ["C:\\Users\\me\\pics", "D:/data/pics", "\\\\server\\share\\pics", "/kaggle/pics"])
def test_absolute_paths_of_another_machine_are_named_and_read_below_root(start, listing):
    separator = "\\" if "\\" in start else "/"
    lines = [f"{start}{separator}{name}{separator}1.png,{name}" for name in ("cat", "dog")]
    path = listing.write("abs.csv", "filepath,title\n" + "\n".join(lines) + "\n", "here/cat/1.png", "here/dog/1.png")
    with pytest.raises(UniclError) as caught:
        listing.texts(path)
    what = "its images do not exist" if start.startswith("/") else "its images have absolute Windows paths"
    assert what in str(caught.value)
    assert f"{path}?root=" in caught.value.hint
    source = listing.open(f"{path}?root=here")
    rows = source.rows("train")
    assert [row.key for row in rows] == ["cat/1.png", "dog/1.png"]
    assert source.read(rows[1]) == {"image": (listing.root / "here/dog/1.png").read_bytes()}


def test_a_root_that_does_not_exist_is_named(listing):
    path = listing.write("a.csv", "image,caption\na.png,one\n", "a.png")
    with pytest.raises(UniclError, match="no folder or zip 'nowhere'"):
        listing.texts(f"{path}?root=nowhere")


def test_urls_are_rows_of_their_own_unless_they_are_skipped(listing):
    lines = "image,caption\na.png,one\nhttps://x.org/b.png,two\ns3://bucket/c,three\n"
    path = listing.write("mixed.csv", lines, "a.png")
    with pytest.raises(UniclError, match="1 of 3 lines cannot be read; line 4: the image is a URL of scheme 's3'"):
        listing.texts(path)
    both = listing.open(listing.write("both.csv", lines.rpartition("s3")[0], "a.png"))
    assert [both.url(row) for row in both.rows("train")] == [None, "https://x.org/b.png"]
    assert [row.key for row in both.rows("train")] == ["a.png", hashlib.sha1(b"https://x.org/b.png").hexdigest()[:16]]
    rows = listing.open(f"{path}?skip_urls=true").rows("train")
    assert [row.ref.partition(":")[0] for row in rows] == ["a.png", "bad line", "bad line"]
    only = listing.write("cc3m.tsv", "one\thttps://x.org/1.png\ntwo\thttps://x.org/2\n")
    with pytest.raises(UniclError, match="all its images are URLs"):
        listing.texts(f"{only}?skip_urls=true")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("list.csv.gz", "not a supported list", "unpack it first"),
        ("list.xlsx", "not a supported list", "save it as CSV in UTF-8"),
        ("one.png", "an image, not a list", "use its folder as the source"),
        ("list.mat", "not a supported list", ".csv, .tsv"),
    ],
)
def test_a_file_that_is_not_a_list_says_how_to_read_it(name, message, hint, listing):
    path = listing.write(name, b"x")
    with pytest.raises(UniclError) as caught:
        listing.texts(path)
    assert message in str(caught.value)
    assert hint.format(path=path) in caught.value.hint


def test_tars_are_read_by_the_plugin_or_name_it(listing, monkeypatch):
    path = Path(listing.write("shards/000.tar", b"x"))
    splits = Path(listing.write("export/train/000.tar", b"x")).parent.parent
    places = {path: {"path": str(path)}, path.parent: {"path": str(path.parent)}}
    places |= {"some/{000..003}.tar": {"path": "some/{000..003}.tar"}, splits: {"path": str(splits / "train")}}
    for place, options in places.items():
        assert resolve_source(str(place)) == ("webdataset", options)
    monkeypatch.setattr(resolve, "WEBDATASET", "not installed")
    for place in places:
        with pytest.raises(UniclError, match="tars, which the plugin unicl-webdataset reads") as caught:
            resolve_source(str(place))
        assert caught.value.hint == "pip install unicl-webdataset"
