"""COCO's annotations: what is read, what is left out and reported, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unicl_cli.data.coco import find_coco, read_coco
from unicl_cli.errors import UniclError

Change = dict[str, Any]


def document(*annotations: Change, **changes: Any) -> dict[str, Any]:
    """Return a document of one image, 40 x 30, one class, and twenty good boxes beside the given annotations."""
    good = [annotation(100 + number) for number in range(20)]
    parts = {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [*annotations, *good],
    }
    return {**parts, **changes}


def annotation(number: int = 1, **changes: Any) -> Change:
    square = [[4, 5, 14, 5, 14, 15, 4, 15]]
    whole = {"id": number, "image_id": 7, "category_id": 3, "bbox": [4, 5, 10, 10], "area": 100, "iscrowd": 0}
    return {**whole, "segmentation": square, **changes}


def written(folder: Path, content: Any) -> Path:
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    file = folder / "all.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_boxes_become_corners_and_classes_count_from_zero(tmp_path: Path) -> None:
    file = written(tmp_path, document(annotation(iscrowd=1, segmentation={"size": [30, 40], "counts": [0, 1200]})))
    found = read_coco(file, tmp_path, masks=True)
    assert found.classes == ("cat",)
    assert found.boxes == 20
    assert found.images[0].objects[0].crowd
    assert found.images[0].objects[1][:3] == (0, (4.0, 5.0, 14.0, 15.0), 100.0)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("changes", "note", "left"),
    [
        ({"bbox": [4, 5, 0, 10]}, "1 of 21 boxes have no area and are left out", 20),
        ({"bbox": [4, 5, 3, -2]}, "1 of 21 boxes have no area and are left out", 20),
        (
            {"bbox": [60, 5, 3, 3]},
            "1 of 21 boxes lie outside of their image and are left out",
            20,
        ),
        ({"bbox": [30, 5, 20, 3]}, "1 of 21 boxes leave their image and are cut at its edge", 21),
    ],
)
def test_a_box_that_cannot_be_used_whole_is_told(tmp_path: Path, changes: Change, note: str, left: int) -> None:
    file = written(tmp_path, document(annotation(**changes)))
    found = read_coco(file, tmp_path, masks=True)
    assert found.notes == (f"{file}: {note} (first: annotation 1)",)
    assert found.boxes == left
    assert all(0 <= x1 < x2 <= 40 and 0 <= y1 < y2 <= 30 for _, (x1, y1, x2, y2), *_ in found.images[0].objects)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ("[1]", "has no list 'images'"),
        (document(images=None), "has no list 'images'"),
        (document(annotations={"a": 1}), "has no list 'annotations'"),
        (document(categories=[1]), "has no list 'categories'"),
        (document(images=[]), "has no images"),
        (document(categories=[]), "has no categories"),
        (document(annotations=[]), "no image has a box"),
        (document(categories=[{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]), "a name is empty or repeated"),
        (
            document(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]),
            "entry 2 has no id of its own",
        ),
        (document(images=[{"id": [1]}]), "images: entry 1 has no id of its own"),
        (document(images=[{"id": 7, "file_name": "a.png", "width": 0, "height": 3}]), "no file_name, width or height"),
        (document(images=[{"id": 7, "file_name": "../a.png", "width": 4, "height": 3}]), "lies outside of the images"),
        (document(images=[{"id": 7, "file_name": "b.png", "width": 40, "height": 30}]), "1 of 1 images are not in"),
        (
            document(images=[{"id": 7, "file_name": "a.png", "width": 30, "height": 40}]),
            "1 of 1 images have another size than their annotations say (first: a.png has 40 x 30 pixels, not 30 x 40)",
        ),
        (
            document(images=[{"id": 7, "file_name": "all.json", "width": 40, "height": 30}]),
            "1 of 1 images cannot be opened (first: all.json",
        ),
        (document(annotation(image_id=8)), "1 of 21 annotations are of an image_id that is not in images"),
        (document(annotation(category_id=9)), "1 of 21 annotations are of a category_id that is not in categories"),
        (document(annotation(category_id=[9])), "1 of 21 annotations are of a category_id"),
        (document(annotation(bbox=[1, 2, 3])), "1 of 21 annotations have no bbox of four finite numbers"),
        (document(annotation(bbox=[1, 2, 3, 1e300])), "1 of 21 annotations have no bbox of four finite numbers"),
        (document(annotation(bbox=None)), "1 of 21 annotations have no bbox of four finite numbers"),
        (document(annotation(iscrowd=2)), "1 of 21 annotations have an iscrowd that is not 0 or 1"),
        (document(annotation(segmentation=[])), "1 of 21 annotations have no segmentation (first: annotation 1)"),
        (document(annotation(segmentation=[[1, 2, 3]])), "1 of 21 annotations have a segmentation that is neither"),
        (document(annotation(segmentation={"size": [30], "counts": "a"})), "1 of 21 annotations have a segmentation"),
        (document(*[annotation(n, bbox=[4, 5, 44, 35]) for n in range(5)]), "5 of 25 boxes leave their image"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(UniclError) as caught:
        read_coco(file, tmp_path, masks=True)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(file))
    assert caught.value.hint


def test_without_masks_segmentations_are_not_read(tmp_path: Path) -> None:
    file = written(tmp_path, document(annotation(segmentation=7)))
    assert read_coco(file, tmp_path, masks=False).images[0].objects[0].segmentation is None


def test_a_folder_in_cocos_layout_is_found_by_split(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / f"annotations/instances_{split}.json").write_text("{}")
        (tmp_path / split).mkdir()
    train = tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017"
    assert find_coco(tmp_path, None, None, ("train",)) == train
    assert find_coco(train[0], None, None, ("train",)) == train
    assert find_coco(tmp_path, "val2017", tmp_path, ("train",))[1] == tmp_path
    with pytest.raises(UniclError, match="has no split 'test'"):
        find_coco(tmp_path, "test", None, ("train",))
    with pytest.raises(UniclError, match="has no split 'dev'"):
        find_coco(tmp_path, None, None, ("dev",))
    with pytest.raises(UniclError, match=r"--split val: .* is a file"):
        find_coco(train[0], "val", None, ("train",))
    with pytest.raises(UniclError, match="nowhere: is missing"):
        find_coco(tmp_path / "nowhere", None, None, ("train",))
