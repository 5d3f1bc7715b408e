"""Folders of the `datasets` library: labels that are floats, and a README that names data outside of its folder."""

import io
import shutil
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image

from unicl_cli.contracts import NO_LABEL
from unicl_cli.data.sources.resolve import open_source
from unicl_cli.errors import UniclError


def png(level):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 90, 30)).save(out, "PNG")
    return out.getvalue()


IMAGES = [{"bytes": png(20 * n), "path": None} for n in range(6)]


def saved(place, label):
    kind, values = label
    features = Features({"img": Picture(), "label": kind})
    Dataset.from_dict({"img": IMAGES, "label": values}, features=features).save_to_disk(str(place))
    return str(place)


def parquet(place):
    features = Features({"img": Picture(), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"img": IMAGES, "label": [0, 1, 0, 1, 0, 1]}, features=features)
    (place / "data").mkdir(parents=True)
    rows.to_parquet(str(place / "data/train-00000-of-00001.parquet"))
    return str(place)


@pytest.mark.parametrize("values", [[0.0, 1.0, None, 1.0, -1.0, 0.0], ["0.0", "1.0", None, "1.0", "-1.0", "0.0"]])
def test_numbers_that_are_floats_beside_a_gap_are_those_numbers(tmp_path, values):
    kind = Value("float64" if isinstance(values[0], float) else "string")
    source = open_source(f"{saved(tmp_path / 'd', label=(kind, values))}?classes={names_file(tmp_path)}", "labels")
    assert [row.label for row in source.rows("train")] == [0, 1, NO_LABEL, 1, NO_LABEL, 0]
    assert [c.key for c in source.classes] == ["cat", "dog"]
    assert f"{tmp_path / 'd'}: labels written as floats are taken as whole numbers (5): -1.0 is -1" in source.notes


def names_file(root):
    (root / "names.txt").write_text("cat\ndog\n")
    return root / "names.txt"


def test_numbers_with_a_fraction_are_not_labels(tmp_path):
    place = saved(tmp_path / "d", label=(Value("float64"), [0.0, 0.5, None, 1.0, 2.0, 0.0]))
    with pytest.raises(UniclError, match=r"column 'label' holds 0.5, which is not an integer"):
        open_source(place, "labels").rows("train")


OUTSIDE = [
    *("../other/*.parquet", "{other}/*.parquet", "file://{other}/train.parquet", "data/../../other/*"),
    *("https://example.org/a.parquet", "zip://a.parquet::../other/a.zip"),
]


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "form", ["data_files: '{}'", "data_files: ['{}']", "data_files: [{{split: train, path: ['{}']}}]"]
)
@pytest.mark.parametrize("path", OUTSIDE)
def test_a_readme_that_names_data_outside_of_its_folder_is_refused(tmp_path, name, form, path):
    place, other = Path(parquet(tmp_path / "set")), tmp_path / "other"
    other.mkdir()
    shutil.copy(next(place.rglob("*.parquet")), other / "train.parquet")
    card = f"configs:\n- config_name: default\n  {form.format(path.format(other=other))}\n"
    (place / name).write_text(f"---\n{card}---\n" if name == "README.md" else card)
    with pytest.raises(UniclError, match="its README names data outside of the folder") as caught:
        open_source(str(place), "labels").rows("train")
    assert "\n" not in caught.value.message


def test_a_readme_that_names_a_folder_outside_is_refused_and_one_that_names_its_own_files_is_read(tmp_path):
    place = Path(parquet(tmp_path / "set"))
    for key, path in (("data_dir", "../other"), ("data_dir", "/")):
        (place / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {key}: '{path}'\n---\n")
        with pytest.raises(UniclError, match="its README names data outside of the folder"):
            open_source(str(place), "labels").rows("train")
    (place / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: ./data/train*\n---\n# A..b\n"
    )
    assert len(open_source(str(place), "labels").rows("train")) == 6
