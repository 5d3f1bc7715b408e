"""A small corpus of scenes and a run that sees them, made once."""

from pathlib import Path

import pytest

from unicl_cli.cli import main

SMALL = (
    "model.width=16", "model.hidden=16", "model.heads=2", "model.shared=16", "model.shared_heads=2",
    "model.text={name: bert, width: 16, layers: 2, heads: 2, hidden: 16}", "data.workers=0", "log.every=1",
)  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpora `scenes`, `refer`, `question` and the run `seer`."""
    folder = tmp_path_factory.mktemp("vilbert")
    for name, source in (
        ("shapes", ("--labels", "shapes?count=96&test=1")),
        ("scenes", ("--captions", "scenes?count=48&test=8")),
        ("refer", ("--captions", "scenes?task=refer&count=48&test=8")),
        ("question", ("--labels", "scenes?task=question&count=48&test=8")),
    ):
        assert main(["prepare", *source, "-o", str(folder / name), "--workers", "1", "-q"]) == 0
    data = (f"data.train=[{{corpus: {folder / 'shapes'}}}]", "eval=[]", "data.workers=0")
    sizes = ("model.image={name: cnn, width: 8}", "steps=2", "batch.size=16", "--devices", "cpu:1", "-q")
    assert main(["train", "shapes-unicl", *data, *sizes, "--run-dir", str(folder / "seer")]) == 0
    return folder


@pytest.fixture(scope="session")
def small(made: Path) -> dict[str, tuple[str, ...]]:
    """Overrides of each recipe that make it small, by the name of its corpus."""
    seer = f"model.regions.model={made / 'seer'}"
    return {
        name: (*SMALL, seer, f"data.train=[{{corpus: {made / name}}}]", "batch.size=12", "steps=4")
        for name in ("scenes", "refer", "question")
    }
