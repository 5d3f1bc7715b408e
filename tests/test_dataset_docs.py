"""docs/datasets.md: its lines run on small copies of the data sets, with the names and forms of the real files."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from unicl_cli.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "datasets.md"
WORDS = ("a red kite above the hill", "two boats in the evening", "a market stall with peppers")
NAMES = ("0001", "0002", "0003")


def picture(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (shade, 60, 200)).save(file)


def coco(caption: dict[str, object]) -> str:
    images = [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate(NAMES)]
    notes = [{"id": 10 * n + k, "image_id": n, **caption} for n in range(3) for k in range(2)]
    notes = [note | {"caption": f"{WORDS[note['image_id']]} {note['id']}"} if not caption else note for note in notes]
    categories = [{"id": 1, "name": "boat"}]
    return json.dumps({"info": {}, "licenses": [], "images": images, "annotations": notes, "categories": categories})


def karpathy() -> str:
    entry = [
        {
            "filename": f"{name}.jpg",
            "split": split,
            "imgid": n,
            "sentences": [{"raw": WORDS[n], "tokens": [], "sentid": n}],
        }
        for n, (name, split) in enumerate(zip(NAMES, ("train", "val", "test"), strict=True))
    ]
    return json.dumps({"images": entry, "dataset": "coco"})


def llava() -> str:
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": WORDS[0]}]
    return json.dumps([{"id": name, "image": f"{name}.jpg", "conversations": turns} for name in NAMES])


def lines(form: str) -> str:
    return "".join(form.format(name=name, text=WORDS[n], n=n) for n, name in enumerate(NAMES))


FILES = {
    "coco/annotations/captions_train2017.json": coco({}),
    "coco/annotations/captions_val2017.json": coco({}),
    "coco/annotations/instances_val2017.json": coco({"category_id": 1, "bbox": [0, 0, 1, 1]}),
    "coco/dataset_coco.json": karpathy(),
    "flickr8k/Flickr8k.token.txt": lines("{name}.jpg#0\t{text} .\n{name}.jpg#1\t{text} again .\n"),
    "flickr8k/Flickr_8k.trainImages.txt": "0001.jpg\n",
    "flickr8k/Flickr_8k.devImages.txt": "0002.jpg\n",
    "flickr8k/Flickr_8k.testImages.txt": "0003.jpg\n",
    "flickr8k/captions.txt": "image,caption\n" + lines('{name}.jpg,"{text} , too ."\n'),
    "flickr30k/results_20130124.token": lines("{name}.jpg#0\t{text} .\n"),
    "flickr30k/results.csv": "image_name| comment_number| comment\n" + lines("{name}.jpg| 0| {text} .\n"),
    "dogs/labels.csv": "id,breed\n" + lines("{name},breed{n}\n"),
    "plants/train.csv": "image_id,healthy,rust\n0001,1,0\n0002,0,1\n0003,1,1\n",
    "chexpert/train.csv": "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Support Devices\n"
    + lines("train/patient{name}/view1_frontal.jpg,Female,6{n},Frontal,AP,,-1.0,1.0\n")
    + "train/patient0004/view1_frontal.jpg,Male,71,Frontal,,1.0,0.0,\n",
    "celeba/list_attr_celeba.csv": "image_id,Bald,Smiling,Young\n" + lines("{name}.jpg,-1,1,-1\n"),
    "celeba/list_attr_celeba.txt": "3\nBald Smiling Young\n" + lines("{name}.jpg -1  1 -1\n"),
    "places/categories_places365.txt": "/a/abbey 0\n/b/bog 1\n",
    "places/places365_train_standard.txt": "/a/abbey/1.jpg 0\n/b/bog/2.jpg 1\n",
    "places/places365_val.txt": "0001.jpg 1\n",
    "openimages/train-annotations-human-imagelabels.csv": "ImageID,Source,LabelName,Confidence\n"
    + lines("{name},verification,/m/0{n},1\n{name},verification,/m/0k4j_,0\n{name},verification,/m/07yv9,1\n"),
    "openimages/class-descriptions.csv": "/m/00,Boat\n/m/01,Kite\n/m/02,Market\n/m/0k4j_,Car\n/m/07yv9,Vehicle\n",
    "CUB_200_2011/images.txt": lines("{n} 00{n}.Some_Bird{n}/{name}.jpg\n"),
    "CUB_200_2011/train_test_split.txt": "0 1\n1 1\n2 0\n",
    "pets/annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\nBeagle_1 1 1 1\nBeagle_2 1 1 1\nPug_3 2 1 1\n",
    "pets/annotations/trainval.txt": "Beagle_1 1 1 1\nPug_3 2 1 1\n",
    "pets/annotations/test.txt": "Beagle_2 1 1 1\n",
    "pets/tree.csv": "name,parent\nanimal,\ndog,animal\ncat,animal\nPug,dog\nBeagle,dog\n",
    "food-101/courses.csv": "course,dish\nstarter,soup\ndessert,pie\n",
    "food-101/meta/train.txt": "pie/1\nsoup/2\n",
    "food-101/meta/test.txt": "pie/3\n",
    "cc3m/00000/000000001.txt": WORDS[0],
    "cc3m/00000/000000001.json": "{}",
    "hub/train/metadata.csv": "file_name,text\n0001.jpg,a red kite\n",
    "hub/test/metadata.csv": "file_name,text\n0002.jpg,two boats\n",
    "llava/chat.json": llava(),
}
FOLDERS = (
    *("coco/train2017", "coco/val2017", "coco/val2014", "flickr8k/Flicker8k_Dataset", "flickr8k/Images"),
    *("flickr30k/flickr30k-images", "flickr30k/flickr30k_images", "dogs/train", "plants/images", "llava/images"),
    *("celeba/img_align_celeba", "openimages/train", "places/val_large"),
)
IMAGES = (
    *("CUB_200_2011/images/000.Some_Bird0/0001.jpg", "CUB_200_2011/images/001.Some_Bird1/0002.jpg"),
    *("CUB_200_2011/images/002.Some_Bird2/0003.jpg", "pets/images/Beagle_1.jpg", "pets/images/Beagle_2.jpg"),
    *("pets/images/Pug_3.jpg", "food-101/images/pie/1.jpg", "food-101/images/soup/2.jpg", "food-101/images/pie/3.jpg"),
    *("zoo/animal/cat/1.jpg", "zoo/animal/cat/siamese/2.jpg", "zoo/plant/3.jpg"),
    *("places/data_large/a/abbey/1.jpg", "places/data_large/b/bog/2.jpg"),
    *(f"chexpert/train/patient000{n}/view1_frontal.jpg" for n in range(1, 5)),
    *("cc3m/00000/000000001.jpg", "hub/train/0001.jpg", "hub/test/0002.jpg"),
)
ROWS = {
    "coco": {"train": 3, "val": 3},
    "coco-objects": {"train": 3},
    "coco-names": {"train": 3},
    "coco-karpathy": {"train": 1, "val": 1, "test": 1},
    "flickr8k": {"train": 1, "val": 1, "test": 1},
    "flickr8k-kaggle": {"train": 3},
    "flickr30k": {"train": 3},
    "flickr30k-kaggle": {"train": 3},
    "dogs": {"train": 3},
    "plants": {"train": 3},
    "chexpert": {"train": 4},
    "celeba": {"train": 3},
    "celeba-official": {"train": 3},
    "places": {"train": 2, "val": 1},
    "openimages": {"train": 3},
    "cub": {"train": 2, "test": 1},
    "pets": {"train": 2, "test": 1},
    "food101": {"train": 2, "test": 1},
    "cc3m": {"train": 1},
    "hub": {"train": 1, "test": 1},
    "llava": {"train": 3},
    "zoo": {"train": 3},
    "pets-tree": {"train": 3},
    "food-courses": {"train": 3},
}
"""Corpus -> rows by split."""


def test_each_data_set_of_the_page_becomes_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    for shade, image in enumerate((*IMAGES, *(f"{folder}/{name}.jpg" for folder in FOLDERS for name in NAMES))):
        picture(tmp_path / image, 4 * shade)
    page = PAGE.read_text(encoding="utf-8")
    found: dict[str, dict[str, int]] = {}
    for info, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        if info == "python":
            exec(block, {})
        for line in re.findall(r"^(?:\$ )?unicl (.*)$", block, re.MULTILINE) if info != "python" else ():
            words = [word.strip("'") for word in line.split()]
            assert main([*words, "--json", "-q", "--workers", "1"]) == 0, capsys.readouterr().err
            report = json.loads(capsys.readouterr().out)
            assert not report["rejected"], line
            rows: dict[str, int] = {}
            for part in report["sources"]:
                rows[part["split"]] = rows.get(part["split"], 0) + part["rows"]
            found[report["corpus"].removeprefix("corpus/")] = rows
    assert found == ROWS
