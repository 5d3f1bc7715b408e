"""Options of `zeroshot --multi`: checked before a model is loaded."""

import json

import pytest

from unicl_cli.cli import main
from unicl_cli.commands.zeroshot import choose_thresholds
from unicl_cli.errors import UniclError

FITTED = {
    "schema": "unicl/thresholds/1",
    "data": "c",
    "split": "val",
    "n": 3,
    "classes": ["cat"],
    "scale": 5.0,
    "bias": -1.0,
    "thresholds": [0.5],
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thresholds.json").write_text(json.dumps(FITTED))
    return folder


def test_thresholds_are_those_of_the_run_or_of_a_file(run, tmp_path):
    assert choose_thresholds(str(run), None, None, None, raw_weights=False).document.bias == -1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(FITTED | {"bias": 2.0}))
    assert choose_thresholds(str(run), other, None, ["a {}"], raw_weights=True).document.bias == 2


@pytest.mark.parametrize(("template", "raw"), [(["a {}"], False), (None, True)])
def test_thresholds_of_a_run_are_for_its_own_prompts_and_weights(run, template, raw):
    with pytest.raises(UniclError, match="was fitted without") as caught:
        choose_thresholds(str(run), None, None, template, raw_weights=raw)
    assert "-o FILE, then --thresholds FILE" in (caught.value.hint or "")
    assert choose_thresholds(str(run), None, 0.5, template, raw_weights=raw) is None


def test_a_model_without_thresholds_names_the_command_that_fits_them(run):
    (run / "thresholds.json").unlink()
    with pytest.raises(UniclError, match="has no thresholds") as caught:
        choose_thresholds(str(run), None, None, None, raw_weights=False)
    assert f"unicl eval {run} --fit-thresholds; or" in (caught.value.hint or "")
    with pytest.raises(UniclError, match="open_clip:ViT-B-32 has no thresholds") as caught:
        choose_thresholds("open_clip:ViT-B-32", None, None, None, raw_weights=False)
    assert "-o FILE, then --thresholds FILE" in (caught.value.hint or "")
    assert choose_thresholds(str(run), None, 0.5, None, raw_weights=False) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--multi", "--none"], "--multi: cannot be combined with --none"),
        (["--multi", "--independent", "--scores", "cosine"], "cannot be combined with --independent, --scores cosine"),
        (["--multi", "--threshold", "1.5"], "--threshold: 1.5 is not a probability"),
        (["--thresholds", "t.json"], "--thresholds: works only with --multi"),
    ],
)
def test_options_that_contradict_are_one_line(capsys, words, message):
    assert main(["zeroshot", "a.png", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert len(err.splitlines()) == 2
