"""ImageBind through the commands: a corpus of pairs, mistakes in one line, any number of processes, resume."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from forked_ranks import can_fork, on_ranks
from media_bytes import npy, png, sound, tone

from unicl_cli.cli import main
from unicl_cli.jobs.train import image_cache
from unicl_cli.testing import max_difference

SOURCE = """
from unicl_cli.api import NO_LABEL, ClassName, Row

class Pairs:
    splits, templates = ("train", "test"), ("a {}",)
    classes = tuple(ClassName(name, (name,)) for name in ("low", "high"))

    def __init__(self, kind, media, broken):
        self.kind, self.media, self.broken = kind, media, broken

    def rows(self, split):
        texts = ("low one", "high one") if self.kind != "images" else ("", "")
        label = lambda n: n % 2 if self.kind == "labels" else NO_LABEL
        return [
            Row(f"{split}/{n}", f"{split}/{n}", (f"{texts[n % 2]} {n}",) if texts[0] else (), label(n))
            for n in range(24)
        ]

    def read(self, row):
        import numpy as np
        from media_bytes import npy, png, sound, tone
        n = int(row.ref.partition("/")[2]) + (100 if row.ref.startswith("test") else 0)
        rng = np.random.default_rng(n)
        pixels = rng.integers(0, 80, (16, 16, 3)).astype(np.uint8) + np.uint8(150 * (n % 2))
        made = {
            "audio": sound(tone(3000, hertz=300 + 1200 * (n % 2) + n)),
            "depth": png(rng.integers(0, 30000, (20, 16)).astype(np.uint16) + np.uint16(30000 * (n % 2))),
            "imu": npy(rng.normal(size=(20, 6)) + n % 2),
        }
        if self.broken and n == 7:
            made["audio"] = made["audio"][:2000]
        has = [name for place, name in enumerate(self.media) if (n + place) % 3]
        return {"image": png(pixels)} | {name: made[name] for name in has}

def pairs(*, kind: str, media: str = "", broken: bool = False):
    return Pairs(kind, tuple(name for name in media.split("+") if name), broken)

PARTS = {"datasets": {"pairs": pairs}}
"""
TOWER = "width: 16, layers: 1, heads: 2"
SOUNDS = f"{{name: audio-transformer, {TOWER}, mels: 16, frames: 16, patch: 8, stride: 8}}"
RECIPE = """
data: {{train: [{{corpus: {root}/texts}}, {{corpus: {root}/media}}], image_size: 16, augment: none}}
model:
  name: imagebind
  image: {{name: cnn, width: 8, stages: 1}}
  text: {{name: cbow, width: 16}}
  embed_dim: 16
  others:
    audio: {sounds}
    depth: {{name: grey-transformer, {tower}, patch: 8}}
    imu: {{name: imu-transformer, {tower}, samples: 16}}
  modality_dropout: 0.2
loss: imagebind
batch: {{size: 12}}
steps: 6
optim: {{name: sgd, lr: 0.1}}
schedule: {{name: constant, warmup: 0}}
log: {{every: 1}}
checkpoint: {{every: 3, asynchronous: false}}
precision: fp32
"""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captions, images with media, rows that have all, a broken sound, and the recipe."""
    root = tmp_path_factory.mktemp("bind")
    (root / "pairs.py").write_text(SOURCE)
    (root / "r.yaml").write_text(RECIPE.format(root=root, tower=TOWER, sounds=SOUNDS))
    every = "media=audio+depth+imu"
    for name, option, source in (
        ("texts", "--captions", "pairs"),
        ("media", "--images", f"pairs?{every}"),
        ("all", "--labels", f"pairs?{every}"),
        ("broken", "--images", f"pairs?{every}&broken=true"),
    ):
        argv = ["--plugin", str(root / "pairs.py"), "prepare", option, source, "-o", str(root / name)]
        assert main([*argv, "--workers", "1", "-q"]) == 0
    return root


@pytest.fixture(scope="module")
def run(corpora: Path) -> Path:
    assert main(["train", str(corpora / "r.yaml"), "--run-dir", str(corpora / "run"), "-q"]) == 0
    return corpora / "run"


def test_a_run_logs_each_direction_and_its_files_are_answered(
    run: Path, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    parts = ("loss_per_image", "loss_per_text", "loss_per_audio", "loss_per_depth", "loss_per_imu")
    for line in lines:
        assert sum(line[name] for name in parts) == pytest.approx(line["loss"], rel=1e-4)
    (corpora / "a.wav").write_bytes(sound(tone(9000, 44_100), 44_100))
    (corpora / "a.depth.png").write_bytes(png(np.full((40, 8), 20000, np.uint16)))
    (corpora / "a.npy").write_bytes(npy(np.zeros((5, 6))))
    (corpora / "cut.wav").write_bytes(sound(tone(9000))[:5000])
    names = ("a.wav", "a.depth.png", "a.npy", "cut.wav")
    capsys.readouterr()
    argv = ["zeroshot", *(str(corpora / name) for name in names), "--model", str(run), "--classes", "low,high"]
    assert main([*argv, "--json"]) == 2
    out = capsys.readouterr()
    rows = [json.loads(line) for line in out.out.splitlines()]
    assert [row["label"] in ("low", "high") for row in rows] == [True, True, True, False]
    assert rows[3]["error"].startswith("a WAV that is cut off")
    argv = ["search", str(corpora / "a.wav"), "+", "low one", "--model", str(run), "--data", str(corpora / "all")]
    assert main([*argv, "--of", "depth", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == sum((n + 100 + 1) % 3 > 0 for n in range(24))
    argv = ["eval", str(run), "--data", str(corpora / "all"), "--evaluator", "cross-modal", "--json"]
    assert main(argv) == 0
    figures = json.loads(capsys.readouterr().out)["data"][0]["evaluators"]["cross-modal"]
    assert {"audio_to_text", "text_to_imu", "audio_to_depth", "imu_to_audio"} <= set(figures["retrieval"])
    assert set(figures["zeroshot"]) == {"image", "audio", "depth", "imu"}
    assert figures["retrieval"]["audio_to_depth"]["n"] == sum((n + 1) % 3 > 0 and (n + 2) % 3 > 0 for n in range(24))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.train=[{corpus: ROOT/texts}]"], "data.train: no row has audio, which the loss learns from"),
        (
            ["data.train=[{corpus: ROOT/texts}, {corpus: ROOT/broken}]"],
            "data.train: row 'pairs:train/7': audio: a WAV that is cut off",
        ),
        (["loss=imagebind", "model.name=two_tower"], "others"),
        (["model.others={audio: cnn}"], "model.others.audio: Cnn reads no media"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    capsys.readouterr()
    words = [change.replace("ROOT", str(corpora)) for change in changes]
    argv = ["train", str(corpora / "r.yaml"), *words, "model.modality_dropout=0.0", "batch.size=24"]
    assert main([*argv, "--run-dir", str(tmp_path / "run"), "-q"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_a_dry_run_knows_what_is_missing(corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", str(corpora / "r.yaml"), f"data.train=[{{corpus: {corpora}/texts}}]", "--dry-run", "-q"]
    assert main([*argv, "--run-dir", str(tmp_path / "run")]) == 2
    assert "data.train: no row has audio, which the loss learns from" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_and_three_processes_train_the_weights_of_one(run: Path, corpora: Path, strategy: str) -> None:
    for count in (2, 3):
        other = corpora / f"{strategy}-{count}"
        on_ranks(count, "train", corpora / "r.yaml", f"parallel.strategy={strategy}", "--run-dir", other, "-q")
        assert max_difference(run, other) < 1e-4


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(run: Path, corpora: Path) -> None:
    other = corpora / "continued"
    half = run / "checkpoints" / "step-00000003"
    assert main(["train", str(corpora / "r.yaml"), "--run-dir", str(other), "--resume", str(half), "-q"]) == 0
    assert max_difference(run, other) == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_fork(), reason="the process that is killed is a fork")
def test_images_that_are_encoded_once_survive_kills_and_are_the_same_on_two_processes(
    corpora: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache lies in memory alone: a kill leaves nothing behind that could be damaged or read by another run."""
    words = ("train", corpora / "r.yaml", "model.image.freeze=true", "steps=12", "--run-dir")
    capfd.readouterr()
    plain = [*map(str, words)]
    assert main([*plain, str(corpora / "each"), "parallel.image_cache=off"]) == 0
    assert "images are encoded" not in capfd.readouterr().err
    assert main([*plain, str(corpora / "once")]) == 0
    assert "images are encoded once: their tower is frozen" in capfd.readouterr().err
    assert max_difference(corpora / "each", corpora / "once") < 1e-4
    encode, rounds = image_cache.encode_frozen, [0]

    def die_in_the_third_round(*given: object) -> object:
        rounds[0] += 1
        if rounds[0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "encode_frozen", die_in_the_third_round)
        with pytest.raises(RuntimeError):
            on_ranks(1, *words, corpora / "killed")
    assert not list((corpora / "killed").rglob("*.safetensors")), "killed before the first step"
    with pytest.raises(RuntimeError, match=r"exit (code )?9"):
        on_ranks(1, *words, corpora / "killed", UNICL_TEST_CRASH="before_latest:step-00000006")
    on_ranks(1, *words, corpora / "killed")
    on_ranks(1, *words, corpora / "whole")  # a rank has one thread; the number of threads may change the last bit
    assert max_difference(corpora / "whole", corpora / "killed") == 0
    on_ranks(2, *words, corpora / "once-2")
    assert max_difference(corpora / "once", corpora / "once-2") < 1e-4
