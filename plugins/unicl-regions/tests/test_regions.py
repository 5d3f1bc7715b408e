"""Boxes of rows: their five numbers, padding, and what is refused before the first step; weights of a detector."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from unicl_regions import build_rcnn
from unicl_regions.boxes import check_boxes, check_targets, five_numbers, pairwise_iou, read_boxes, read_targets

from unicl_cli.api import NO_LABEL, Drawn, UniclError

SQUARE = {"width": 10, "height": 10}
ONE = {**SQUARE, "boxes": [[1, 1, 5, 6], [0, 0, 10, 10]], "target": 1}


def media_of(*rows: object, size: tuple[int, int] = (10, 10)) -> list[tuple[str, dict[str, bytes], tuple[int, int]]]:
    """Return keys, media and image sizes of rows; None: a row without boxes."""
    return [(f"r{n}", {} if one is None else {"boxes": json.dumps(one).encode()}, size) for n, one in enumerate(rows)]


def drawn(*rows: object) -> list[Drawn]:
    image, made = torch.zeros(3, 8, 8), enumerate(media_of(*rows))
    return [Drawn(n, n, 0, image, NO_LABEL, None, 0, media, key=key) for n, (key, media, _) in made]


def read(*rows: object, most: int = 4) -> dict[str, Tensor]:
    own, nothing = drawn(*rows), (torch.zeros(1, 1), torch.zeros(len(rows)))
    return {**read_boxes(own, *nothing, most=most), **read_targets(own, *nothing)}


def test_intersection_over_union_is_torchvisions():
    from torchvision.ops import box_iou

    corners = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)).double()
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    torch.testing.assert_close(pairwise_iou(boxes[None], boxes[None])[0], box_iou(boxes, boxes))


def test_the_five_numbers_of_a_box_are_the_papers():
    found = five_numbers(torch.tensor([[64.0, 48, 320, 240]]), 640, 480)
    assert found[0].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.5, 0.16])


def test_boxes_of_rows_are_padded_and_a_row_or_a_whole_batch_may_lack_them():
    extra = read(ONE, None, {**SQUARE, "boxes": []})
    assert extra["region_mask"].tolist() == [[True, True, False, False], [False] * 4, [False] * 4]
    assert extra["has_target"].tolist() == [True, False, False]
    assert extra["target_box"][0].tolist() == [0, 0, 1, 1, 1]
    assert extra["boxes"][0, 0].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.6, 0.2])
    assert not read(None, None)["region_mask"].any(), "the corpus was checked as a whole"


def test_rows_without_boxes_or_target_are_counted_and_a_corpus_of_them_is_refused():
    assert check_boxes(iter(media_of(ONE, ONE)), most=4) == check_targets(iter(media_of(ONE, ONE))) == []
    some = media_of(ONE, None, {**SQUARE, "boxes": []})
    assert check_boxes(iter(some), most=4) == ["2 of 3 rows have no boxes: the model sees nothing of their images"]
    assert check_targets(iter(some)) == ["2 of 3 rows name none of their boxes and are not trained on"]
    with pytest.raises(UniclError, match="boxes: no row has any"):
        check_boxes(iter(media_of(None, {**SQUARE, "boxes": []})), most=4)
    with pytest.raises(UniclError, match="targets: no row names one of its boxes"):
        check_targets(iter(media_of({**SQUARE, "boxes": [[0, 0, 5, 5]]}, None)))


def test_boxes_are_checked_against_the_image_itself():
    assert check_boxes(media_of(ONE, None, size=(20, 20)), most=4) == [
        "1 of 2 rows have no boxes: the model sees nothing of their images",
        "1 of 2 rows have boxes for another size of their image: the boxes are scaled "
        "(first: row 'r0' is for 10 px and has 20)",
    ]
    with pytest.raises(UniclError, match="row 'r0': boxes are for 10×10 px, but the image has 12×10"):
        check_boxes(media_of(ONE, size=(12, 10)), most=4)


def numbers(*box: Any, **more: Any) -> dict[str, Any]:
    return {**SQUARE, "boxes": [list(box)], **more}


@pytest.mark.parametrize(
    ("media", "words"),
    [
        (numbers(1, 1, 1, 5), "box 0 .* is empty or outside"),
        (numbers(1, 5, 5, 5), "box 0 .* is empty or outside"),
        ({**SQUARE, "boxes": [[0, 0, 5, 5], [5, 5, 11, 6]]}, "box 1 .* is empty or outside"),
        (numbers(-1, 0, 5, 5), "empty or outside"),
        (numbers(5, 5, 1, 1), "empty or outside"),
        (numbers(0, 0, 1e300, 3), "empty or outside"),
        (numbers(0, 0, float("nan"), 3), "not JSON with width"),
        (numbers(0, 0, 5), "not JSON with width"),
        (numbers("a", 0, 5, 5), "not JSON with width"),
        ({**SQUARE, "boxes": "all"}, "not JSON with width"),
        ({"boxes": [[0, 0, 5, 5]]}, "not JSON with width"),
        ({"width": 0, "height": 0, "boxes": []}, "not JSON with width"),
        ({"width": None, "height": 10, "boxes": []}, "not JSON with width"),
        ([], "not JSON with width"),
        ({"width": 20, "height": 10, "boxes": [[0, 0, 5, 5]]}, "20×10 px is cropped"),
        ({**SQUARE, "boxes": [[0, 0, 5, 5]] * 5}, "5 boxes, more than model.regions.most=4"),
        (numbers(0, 0, 5, 5, target=1), "target 1 is not the number"),
        (numbers(0, 0, 5, 5, target=-1), "target -1 is not the number"),
        (numbers(0, 0, 5, 5, target=True), "target True is not the number"),
    ],
)
def test_bad_boxes_are_one_line_that_names_the_row(media: object, words: str):
    with pytest.raises(UniclError, match=rf"^row 'r1': .*{words}") as caught:
        check_boxes(iter(media_of(ONE, media)), most=4)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_boxes_that_are_not_json_are_refused_however_deep_or_long():
    for data in (b"", b"\xff", b"[" * 100_000, b'{"width": 1e999, "height": 1e999, "boxes": []}'):
        with pytest.raises(UniclError, match="row 'x': boxes: not JSON with width"):
            check_boxes(iter([("x", {"boxes": data}, (10, 10))]), most=4)


def test_weights_that_are_not_a_faster_rcnns_are_refused(tmp_path: Path):
    path = tmp_path / "w.pt"
    for write in (lambda: path.write_bytes(b"no weights"), lambda: torch.save({"a": torch.zeros(1)}, path)):
        write()
        with pytest.raises(UniclError, match="not the weights of fasterrcnn"):
            build_rcnn(weights=str(path), classes=3, stored=None)
