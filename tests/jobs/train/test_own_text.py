"""Rows with a label and a caption of their own, from the source to the loss."""

import json
from pathlib import Path

import pytest
import yaml
from launching import TINY, here

from unicl_cli.cli import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("both") / "corpus"
    here("prepare", "--labels", "shapes?captions=true&count=48&test=12&size=16", "-o", out, "--holdout", "0", "-q")
    return out


def first_losses(folder: Path, corpus: Path, own_text: float, text: str) -> list[float]:
    data = TINY["data"] | {"train": [{"corpus": str(corpus)}], "text_for_labelled": text}
    whole = TINY | {"data": data, "loss": {"name": "unicl", "own_text": own_text}, "steps": 2}
    file = folder / f"{text}-{own_text}.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(whole))))
    run = folder / f"run-{text}-{own_text}"
    here("train", file, "--run-dir", run, "-q")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "excess_loss")]


def test_the_share_counts_for_captions_of_rows_with_a_label_and_not_for_prompts(corpus, tmp_path, capsys):
    prompts = [first_losses(tmp_path, corpus, share, "prompt") for share in (0.0, 0.5)]
    assert prompts[0] == pytest.approx(prompts[1], abs=1e-6)
    captions = [first_losses(tmp_path, corpus, share, "caption") for share in (0.0, 0.5)]
    assert abs(captions[0][0] - captions[1][0]) > 1e-3
    assert min(captions[1]) > 0


def test_rows_with_both_texts_are_trained_on_both(corpus, tmp_path, capsys):
    both, captions = (first_losses(tmp_path, corpus, 0.5, text) for text in ("both", "caption"))
    assert abs(both[0] - captions[0]) > 1e-3
    assert min(both) > 0
    file = tmp_path / "clip.yaml"
    text = (tmp_path / "both-0.5.yaml").read_text()
    file.write_text(text.replace("name: unicl", "name: clip").replace("  own_text: 0.5\n", ""))
    capsys.readouterr()
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run"), "-q"]) == 2
    assert "data.text_for_labelled=both: the loss 'clip' takes one text a row" in capsys.readouterr().err


def test_shapes_give_label_rows_a_caption_only_where_it_is_asked_for(corpus, tmp_path):
    from unicl_cli.data.corpus import open_corpus

    assert all(open_corpus(corpus).table("train", "labels").column("texts").to_pylist())
    here("prepare", "--labels", "shapes?count=12&test=1&size=16", "-o", tmp_path / "plain", "--holdout", "0", "-q")
    assert not any(open_corpus(tmp_path / "plain").table("train", "labels").column("texts").to_pylist())
