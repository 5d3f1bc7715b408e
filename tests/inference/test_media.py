"""Media as inputs of a finished model: kinds by file name, rows of a corpus, files for zero-shot."""

from types import SimpleNamespace

import pytest
import torch
from hearing import hearing
from toys import PLAIN, noise, prepared, toy
from unicl_odd.stripes import profile_of

from unicl_cli.build.media import check_media
from unicl_cli.cli import main
from unicl_cli.core.loop import Step
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import MediaKind
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.image_inputs import open_inputs
from unicl_cli.inference.media import match_kind
from unicl_cli.jobs.zeroshot.answers import AnswerOptions
from unicl_cli.jobs.zeroshot.classes import parse_classes
from unicl_cli.jobs.zeroshot.judge import make_judge
from unicl_cli.jobs.zeroshot.zeroshot import zeroshot
from unicl_cli.losses.supcon import SupCon


@pytest.fixture
def stripes(tmp_path, capsys):
    prepared(capsys, "--captions", "odd-stripes?rows=13&profile=true", "-o", tmp_path / "c", "--workers", 1)
    return open_corpus(tmp_path / "c")


def test_the_longest_suffix_tells_the_kind():
    kinds = [MediaKind("any", (".png",), bytes), MediaKind("depth", (".depth.png", "_depth.png"), bytes)]
    found = [match_kind(path, kinds) for path in ("a/b.PNG", "a/b.Depth.png", "b_depth.png", "b.wav", ".depth.png/x")]
    assert [None if kind is None else kind.name for kind in found] == ["any", "depth", "depth", None, None]


def test_rows_with_media_are_told_without_their_bytes(stripes, tmp_path, capsys):
    table = stripes.table("test", "captions")
    own = [int(str(key).rpartition("/")[2]) % 3 != 0 for key in table.column("key").to_pylist()]
    assert table.media_rows("profile").tolist() == own
    assert table.stores_media
    assert table.has_media("profile")
    assert not table.has_media("audio")
    prepared(capsys, "--captions", "odd-stripes?rows=4", "-o", tmp_path / "plain", "--workers", 1)
    plain = open_corpus(tmp_path / "plain").table("test", "captions")
    assert not plain.stores_media
    assert plain.media_rows("profile").tolist() == [False] * 4


def test_media_of_rows_are_encoded_in_their_order(stripes):
    loaded, table = hearing(), stripes.table("test", "captions")
    rows = table.media_rows("profile").nonzero()[0].tolist()[::-1]
    found = Encoder(loaded).encode_media("profile", table, rows, batch=3, label="profiles")
    data = [table.read(row, media=True).media["profile"] for row in rows]
    expected = loaded.step.model.encode_extra(
        "profile", torch.stack([loaded.step.model.media[0].read(d) for d in data])
    )
    torch.testing.assert_close(found, expected.embed.detach())
    with pytest.raises(UniclError, match=r"model toy: does not encode audio"):
        Encoder(loaded).encode_media("audio", table, rows, batch=3, label="sounds")
    without = next(row for row in range(len(table)) if row not in rows)
    with pytest.raises(UniclError, match=r"row '.*test/\d+': has no profile"):
        Encoder(loaded).encode_media("profile", table, [without], batch=3, label="profiles")


def test_media_that_cannot_be_used_name_their_row(stripes, monkeypatch):
    loaded, table = hearing(), stripes.table("test", "captions")
    monkeypatch.setattr(type(loaded.step.model), "media", (MediaKind("profile", (".profile",), refuse),))
    rows = table.media_rows("profile").nonzero()[0].tolist()[:2]
    with pytest.raises(UniclError, match=r"row '.*test/\d+': profile: a profile that is cut off"):
        Encoder(loaded).encode_media("profile", table, rows, batch=3, label="profiles")


def refuse(data: bytes) -> torch.Tensor:
    raise UniclError("a profile that is cut off")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(noise())
    (tmp_path / "in" / "1.profile").write_bytes(profile_of(1))
    (tmp_path / "in" / "2.PROFILE").write_bytes(profile_of(2))
    (tmp_path / "in" / "3.profile").write_bytes(b"short")
    (tmp_path / "in" / "4.txt").write_text("neither")
    return tmp_path / "in"


def answers(loaded, path, *, batch):
    judge = make_judge(loaded, parse_classes("cat,dog"), AnswerOptions(), PLAIN)
    found, _ = open_inputs([str(path)], media=judge.scorer.media)
    return [row for part in zeroshot(loaded, found, judge, batch=batch) for row in part]


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_files_of_media_are_scored_by_their_own_features_beside_images(files, batch):
    loaded = hearing()
    rows = answers(loaded, files, batch=batch)
    assert [row["path"].rpartition("/")[2] for row in rows] == ["0.png", "1.profile", "2.PROFILE", "3.profile"]
    assert rows[3]["error"] == "a profile of 5 bytes instead of 128"
    judge = make_judge(loaded, parse_classes("cat,dog"), AnswerOptions(), PLAIN)
    inputs = torch.stack([loaded.step.model.media[0].read(profile_of(n)) for n in (1, 2)])
    for row, cosines in zip(rows[1:3], judge.scorer.media_scores("profile", inputs).tolist(), strict=True):
        assert {item["label"]: item["cosine"] for item in row["top"]} == pytest.approx(
            dict(zip(("cat", "dog"), cosines, strict=True)), abs=1e-5
        )
    alone = answers(loaded, files / "0.png", batch=1)
    assert alone[0]["top"] == rows[0]["top"]


def test_a_model_of_images_alone_finds_no_media_in_a_folder_and_refuses_them(files):
    assert [row["path"].rpartition("/")[2] for row in answers(toy(), files, batch=4)] == ["0.png"]
    (row,) = answers(toy(), files / "1.profile", batch=4)
    assert row["error"] == "not an image"


class Reads(torch.nn.Module):
    reads_media = True


def test_training_needs_a_row_with_each_kind_that_the_loss_learns_from(stripes, monkeypatch):
    table = stripes.table("train", "captions")
    strand = SimpleNamespace(has_media=table.has_media, kind="captions")
    data = SimpleNamespace(mix=SimpleNamespace(strands=[strand]))
    model = hearing().step.model
    check_media(Step(model, Reads()), data)
    kind = MediaKind("audio", (".wav",), refuse)
    monkeypatch.setattr(type(model), "media", (*type(model).media, kind))
    with pytest.raises(UniclError, match=r"data.train: no row has audio, which the loss learns from"):
        check_media(Step(model, Reads()), data)
    plain = Step(model, SupCon(16, 0.1, 8))
    check_media(plain, data)  # a loss that reads none
    model.text = model.read
    check_media(plain, data)
    images = SimpleNamespace(mix=SimpleNamespace(strands=[strand, SimpleNamespace(kind="images")]))
    with pytest.raises(UniclError, match=r"data.train: a corpus holds images without label or text"):
        check_media(plain, images)


def test_images_with_media_may_stand_beside_captions_of_a_model_with_a_text_tower(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared(capsys, "--captions", "odd-stripes?rows=12", "-o", "texts", "--workers", 1)
    recipe = """
data: {{train: [{{corpus: texts}}, {{corpus: {images}}}], image_size: 32, augment: none}}
model: {{name: odd-many, image: {{name: cnn, width: 8, stages: 1}}, text: {{name: cbow, width: 8}}, missing: null,
  others: {{profile: {{name: odd-profile, width: 8}}}}}}
loss: odd-bind
batch: {{size: 8}}
steps: 1
"""
    for source, name in (("odd-stripes?rows=12&profile=true", "media"), ("odd-stripes?rows=12", "plain")):
        prepared(capsys, "--images", source, "-o", name, "--workers", 1)
        (tmp_path / f"{name}.yaml").write_text(recipe.format(images=name))
    assert main(["train", "media.yaml", "--run-dir", "run", "-q"]) == 0
    assert main(["train", "plain.yaml", "--run-dir", "other", "-q"]) == 2
    assert "a corpus holds images without label or text" in capsys.readouterr().err
