"""`unicl recipes ls`: filtered by words, and wrapped between words on a terminal."""

import json

import pytest

from unicl_cli.cli import main

Capture = pytest.CaptureFixture[str]


def test_the_list_is_filtered_by_name_and_description(capsys: Capture):
    assert main(["recipes", "ls", "finetune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all("finetune" in line.lower() or "fine-tun" in line.lower() for line in lines)
    assert main(["recipes", "ls", "LoRA", "finetune", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["recipes"]] == ["finetune-lora"]


def test_words_that_no_recipe_has_are_an_error(capsys: Capture):
    assert main(["recipes", "ls", "quickstrat"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: recipes 'quickstrat': none of ")
    assert "did you mean 'quickstart'?" in err
