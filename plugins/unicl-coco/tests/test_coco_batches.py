"""Training rows: their order, mirrors, masks and sizes, and images that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detect_toys import SIZE, rows_of, scenes_in
from PIL import Image
from unicl_coco.batches import mirror, order_of, share_of_step, stream_scenes
from unicl_coco.images import read_images
from unicl_coco.masks import mask_of

from unicl_cli.api import UniclError


def test_each_pass_shows_every_row_once_in_another_order() -> None:
    first, second = order_of(50, 0, 0), order_of(50, 0, 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != order_of(50, 1, 1)
    assert order_of(5, 0, 0) == [3, 0, 1, 2, 4]  # the same on every machine and Python


def test_steps_go_through_the_rows_and_a_later_start_gives_the_same_batches(tmp_path: Path) -> None:
    rows = rows_of(scenes_in(tmp_path / "scenes"))
    seen = [row for step in range(3) for row, _ in share_of_step(step, 6, batch=2, seed=0)]
    assert sorted(seen) == list(range(6))
    whole, rest = (list(stream_scenes(rows, 2, range(start, 4), 0)) for start in (0, 2))
    assert [step for step, _ in rest] == [2, 3]
    for (_, a), (_, b) in zip(whole[2:], rest, strict=True):
        assert a.draws == b.draws
        assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
        assert all(torch.equal(x[k], y[k]) for x, y in zip(a.targets, b.targets, strict=True) for k in x)


def test_masks_fill_their_boxes_and_mirrors_keep_it_so(tmp_path: Path) -> None:
    data = scenes_in(tmp_path / "scenes")
    image, target = rows_of(data).read(data.images[0])
    assert image.shape == (3, SIZE, SIZE)
    assert target["labels"].min() >= 1
    for pixels, found in ((image, target), mirror(image, target)):
        for box, mask in zip(found["boxes"], found["masks"], strict=True):
            rows, columns = torch.where(mask)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [int(edge) for edge in edges]
            assert pixels[:, mask.bool()].float().mean() > pixels[:, ~mask.bool()].float().mean()
    again = mirror(*mirror(image, target))
    assert torch.equal(again[0], image)
    assert torch.equal(again[1]["boxes"], target["boxes"])


def test_polygons_and_run_lengths_give_the_same_mask() -> None:
    square = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0], [0, 0, 1, 1]]
    expected = np.zeros((5, 8), np.uint8)
    expected[1:4, 2:6] = 1
    assert np.array_equal(mask_of(square, 5, 8, "here"), expected)
    with pytest.raises(UniclError, match="here: run lengths do not fit 5 x 8 pixels"):
        mask_of({"size": [5, 8], "counts": [3]}, 5, 8, "here")


@pytest.mark.parametrize(
    ("content", "message"), [(b"no image", "cannot be read as an image: not_image"), (None, "is 33 x 32 px, but its")]
)
def test_an_image_that_is_replaced_later_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    data = scenes_in(tmp_path / "scenes", masks=False)
    image = tmp_path / "scenes/train/000001.png"
    if content is None:
        Image.new("RGB", (33, 32)).save(image)
    else:
        image.write_bytes(content)
    with pytest.raises(UniclError, match=f"000001.png: {message}"):
        rows_of(data, masks=False).read(data.images[0])


def test_an_image_without_objects_has_empty_tensors(tmp_path: Path) -> None:
    data = scenes_in(tmp_path / "scenes")
    _, target = rows_of(data).read(data.images[0]._replace(objects=()))
    shapes = {name: tuple(value.shape) for name, value in target.items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "masks": (0, SIZE, SIZE)}


def test_images_are_read_in_order_and_what_has_none_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, colour in (("b.png", "red"), ("a.png", "blue")):
        Image.new("RGB", (9, 5), colour).save(tmp_path / name)
    (tmp_path / "c.txt").touch()
    found = list(read_images([str(tmp_path)]))
    shapes = [(Path(name).name, tuple(pixels.shape)) for name, pixels in found]
    assert shapes == [("a.png", (3, 5, 9)), ("b.png", (3, 5, 9))]
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    reasons = {"empty": "a folder without images", "cut.png": "a damaged image", "none.png": "no such file"}
    for name, words in reasons.items():
        with pytest.raises(UniclError, match=f"{name}: {words}"):
            list(read_images([str(tmp_path / name)]))
