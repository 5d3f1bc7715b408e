"""AP on detections made by hand, whose metrics are known; classes of detector and data that differ."""

from pathlib import Path
from typing import Any

import pytest
from detect_toys import cnn_tower, detector_of, scenes_in
from unicl_coco.evaluation import average_precisions, evaluate, match_classes, truth_of

from unicl_cli.api import CocoImage, CocoObject, CocoSet, UniclError, start_accelerator

SQUARE = [[10, 10, 50, 10, 50, 50, 10, 50]]


def set_of(*things: CocoObject) -> CocoSet:
    image = CocoImage("a.png", 100, 100, things)
    return CocoSet(Path("all.json"), Path(), ("cat", "dog"), (image,), (), "")


def thing(label: int = 0, *, crowd: bool = False) -> CocoObject:
    return CocoObject(label, (10.0, 10.0, 50.0, 50.0), 1600.0, crowd, SQUARE)


def found_at(left: float, *, category: int = 1, score: float = 0.9) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "score": score, "bbox": [left, 10.0, 40.0, 40.0]}


def perfect(data: CocoSet) -> list[dict[str, Any]]:
    truth = truth_of(data, masks=True)["annotations"]
    return [{k: one[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5} for one in truth]


def test_perfect_detections_have_an_ap_of_one_for_boxes_and_masks(tmp_path: Path) -> None:
    data = scenes_in(tmp_path / "scenes", count=12)
    for kind in ("bbox", "segm"):
        figures = average_precisions(truth_of(data, masks=True), perfect(data), kind)
        assert {figures[name] for name in ("ap", "ap50", "ap75")} == {1.0}
        assert {value for value in figures["per_class"] if value is not None} == {1.0}


@pytest.mark.parametrize(("shift", "passed"), [(0.0, 10), (4.0, 7), (10.0, 3), (13.0, 1), (20.0, 0)])
def test_a_shifted_box_counts_up_to_its_iou(shift: float, passed: int) -> None:
    # IoU of two squares of 40 px: (40 - shift) / (40 + shift) = 1, .818, .6, .509, .333; thresholds .5, .55, …, .95
    figures = average_precisions(truth_of(set_of(thing()), masks=False), [found_at(10 + shift)], "bbox")
    assert figures["ap"] == pytest.approx(passed / 10)
    assert figures["ap50"] == float(passed >= 1)
    assert figures["ap75"] == float(passed >= 6)
    assert (figures["ap_small"], figures["ap_medium"], figures["ap_large"]) == (None, figures["ap"], None)
    assert figures["per_class"] == [pytest.approx(passed / 10), None]


def test_a_surer_false_alarm_halves_the_precision() -> None:
    found = [found_at(10), found_at(60, score=0.95)]
    figures = average_precisions(truth_of(set_of(thing()), masks=False), found, "bbox")
    assert figures["ap"] == pytest.approx(0.5)


def test_no_detection_is_zero_and_a_crowd_is_neither_missed_nor_false() -> None:
    truth = truth_of(set_of(thing(), thing(1)), masks=False)
    assert average_precisions(truth, [], "bbox")["per_class"] == [0.0, 0.0]
    truth = truth_of(set_of(thing(), thing(1, crowd=True)), masks=False)
    figures = average_precisions(truth, [found_at(10), found_at(12, category=2)], "bbox")
    assert figures["per_class"] == [1.0, None]


def test_classes_are_matched_by_name_and_differences_are_refused_or_told() -> None:
    data = set_of(thing())
    assert match_classes(data, ("dog", "cat")) == ({2: 1, 1: 2}, [])
    labels, warnings = match_classes(data, ("owl", "dog", "cat"))
    assert labels == {3: 1, 2: 2}
    assert warnings == ["1 classes of the detector are not in the data and are not counted (owl)"]
    with pytest.raises(UniclError, match=r"all.json: 1 of 2 classes are not the detector's \(first: dog\)"):
        match_classes(data, ("cat", "owl"))


def test_an_evaluation_reads_all_images_in_any_batch_and_changes_nothing_by_it(tmp_path: Path) -> None:
    data = scenes_in(tmp_path / "scenes")
    detector, accelerator = detector_of(cnn_tower()).eval(), start_accelerator("fp32", "cpu")
    names = ("circle", "square", "triangle", "star", "cross", "ring")
    one, other = (evaluate(detector.detect, data, names, accelerator, masks=True, batch=n, quiet=True) for n in (1, 4))
    assert one["n"] == len(data.images)
    assert one["detections"] > 0
    assert [entry["class"] for entry in one["per_class"]] == list(names)
    assert sum(entry["n"] for entry in one["per_class"]) == one["objects"] == data.boxes
    assert one["box"] == pytest.approx(other["box"])
    assert set(one["per_class"][0]) == {"class", "n", "box_ap", "mask_ap"}
