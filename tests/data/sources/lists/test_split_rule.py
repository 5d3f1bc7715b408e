"""The split of a list: a column, one for all lines, or files that list the images of each."""

import pytest

from unicl_cli.errors import UniclError

TOKENS = "".join(f"{name}.png#{n}\ta {name} of {n}\n" for name in "abcd" for n in range(2))
IMAGES = [f"{name}.png" for name in "abcd"]


def test_files_that_list_images_give_the_splits_and_others_are_left_out_with_a_count(listing):
    path = listing.write("Flickr8k.token.txt", TOKENS, *IMAGES)
    listing.write("F_8k.trainImages.txt", "a.png\nb.png\n")
    listing.write("F_8k.testImages.txt", "c.png\n")
    source = listing.open(f"{path}?split=F_8k.trainImages.txt,F_8k.testImages.txt")
    assert {split: [row.key for row in source.rows(split)] for split in source.splits} == {
        "train": ["a.png", "b.png"],
        "test": ["c.png"],
    }
    left_out = "Flickr8k.token.txt: lines whose image is in none of the files of split=, left out: 2"
    assert left_out in source.notes


def test_lists_of_splits_may_leave_out_the_suffix_and_have_other_columns(listing):
    path = listing.write("list.csv", "image,label\na.png,cat\nb.png,dog\n", "a.png", "b.png")
    listing.write("trainval.txt", "a 1 1 1\n")
    listing.write("test.txt", "b 2 1 1\n")
    source = listing.open(f"{path}?split=trainval.txt,test.txt", "labels")
    assert [(split, source.rows(split)[0].key) for split in source.splits] == [("train", "a.png"), ("test", "b.png")]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("train.txt", "test.txt", "a.png is also in the split 'train'"),
        ("train.txt", "more.txt", "its name does not say which split it lists"),
    ],
)
def test_files_of_splits_that_do_not_fit_are_named(first, second, message, listing):
    path = listing.write("list.csv", "image,caption\na.png,one\n", "a.png")
    listing.write(first, "a.png\n")
    listing.write(second, "a.png\n")
    with pytest.raises(UniclError, match=message):
        listing.texts(f"{path}?split={first},{second}")


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (
            "a.png 0\nb.png 1\n",
            "the file of split= lists all of its images, so all of them would be 'val'",
            "split=val",
        ),
        ("1 1\n2 0\n", "none of its images is in the files of split=, which list 1", "a column 'split'"),
        ("", "none of its images is in the files of split=, which list nothing", "a column 'split'"),
    ],
)
def test_a_file_of_all_images_or_of_none_is_no_split(content, message, hint, listing):
    path = listing.write("list.csv", "image,label\na.png,cat\nb.png,dog\n", "a.png", "b.png")
    listing.write("eval_partition.txt", content)
    with pytest.raises(UniclError) as caught:
        listing.labels(f"{path}?split=eval_partition.txt")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_one_split_for_the_whole_list(listing):
    path = listing.write("list.csv", "image,caption\na.png,one\n", "a.png")
    assert listing.open(f"{path}?split=test").splits == ["test"]
    with pytest.raises(UniclError, match="no column 'tset'") as caught:
        listing.texts(f"{path}?split=tset")
    assert "name a split such as test" in caught.value.hint


def test_a_column_called_set_counts_only_if_it_holds_splits(listing):
    path = listing.write("a.csv", "image,caption,data set\na.png,one,train\nb.png,two,test\n", "a.png", "b.png")
    assert listing.open(path).splits == ["train", "test"]
    path = listing.write("b.csv", "image,caption,data set\na.png,one,coco\nb.png,two,flickr\n")
    assert listing.open(path).splits == ["train"]


def test_a_folder_of_images_names_the_lists_in_it(listing):
    listing.write("data/train/metadata.csv", "file_name,text\na.png,one\n", "data/train/a.png")
    listing.write("data/test/metadata.csv", "file_name,text\nb.png,one\n", "data/test/b.png")
    with pytest.raises(UniclError, match="no captions beside the images") as caught:
        listing.texts("data")
    assert caught.value.hint == (
        "use the list in this folder as the source: --captions 'data/test/metadata.csv?split=test' "
        "--captions data/train/metadata.csv"
    )


def test_folders_of_the_images_are_splits_when_asked_and_told_when_not(listing):
    images = ["train/a.png", "train/b.png", "test_images/c.png", "d.png"]
    path = listing.write("all.csv", "image,label\n" + "".join(f"{image},cat\n" for image in images), *images)
    source = listing.open(path, "labels")
    assert source.splits == ["train"]
    assert (
        "all.csv: images in folders named like splits (test 1, train 2) are all in train: "
        "add ?split=folder if the folders are the splits"
    ) in source.notes
    source = listing.open(f"{path}?split=folder", "labels")
    assert {split: [row.key for row in source.rows(split)] for split in source.splits} == {
        "train": ["train/a.png", "train/b.png"],
        "test": ["test_images/c.png"],
    }
    assert "all.csv: lines whose image is in none of the folders named like splits, left out: 1" in source.notes
    source = listing.open(f"{path}?split=test", "labels")
    assert (source.splits, source.notes) == (["test"], [])


def test_folders_that_name_no_split_are_refused_and_those_of_train_alone_are_not_told(listing):
    path = listing.write("one.csv", "image,label\ntrain/a.png,cat\ntrain/b.png,dog\n", "train/a.png", "train/b.png")
    source = listing.open(path, "labels")
    assert (source.splits, source.notes) == (["train"], [])
    path = listing.write("none.csv", "image,label\nc.png,cat\nd.png,dog\n", "c.png", "d.png")
    with pytest.raises(UniclError, match="no image is in a folder named like a split"):
        listing.labels(f"{path}?split=folder")
