"""A `trainer.json` whose checksums are right and whose content is not: not a whole checkpoint, never a traceback."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unicl_cli.core.checkpoint_files import fingerprint, folder_of, is_whole, newest, read_facts, read_pointer
from unicl_cli.errors import UniclError

RAW = "@raw@"


def make(root: Path, step: int) -> Path:
    folder = folder_of(root, step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    facts = {"step": step, "files": {"model.safetensors": fingerprint(folder / "model.safetensors")}}
    (folder / "trainer.json").write_text(json.dumps(facts))
    return folder


SPOILS: list[Callable[[dict[str, Any]], object]] = [
    lambda facts: facts.update(step="4"),
    lambda facts: facts.update(step=3),
    lambda facts: facts.update(step=10**400),
    lambda facts: facts.pop("step"),
    lambda facts: facts.update(files={}),
    lambda facts: facts.update(files=[]),
    lambda facts: facts["files"].update({"../secret": [0, "x"]}),
    lambda facts: facts["files"].update({"/etc/hostname": [0, "x"]}),
    lambda facts: facts["files"].update({"..": [4096, "x"]}),
    lambda facts: facts["files"].update({"model.safetensors": 7}),
    lambda facts: facts["files"].update({"model.safetensors": ["7", None]}),
    lambda facts: facts.update(other=float("inf")),
    lambda facts: facts.update(other=RAW),
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_forged_listing_is_not_whole(tmp_path: Path, spoil: Callable[[dict[str, Any]], object]) -> None:
    before, folder = make(tmp_path, 2), make(tmp_path, 4)
    (tmp_path / "latest").write_text(folder.name)
    assert newest(tmp_path) == folder
    facts = json.loads((folder / "trainer.json").read_text())
    spoil(facts)
    (folder / "trainer.json").write_text(json.dumps(facts).replace(f'"{RAW}"', "[" * 1000 + "]" * 1000))
    assert not is_whole(folder)
    assert newest(tmp_path) == before


@pytest.mark.parametrize("name", ["trainer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "gone"])
def test_what_is_not_a_file_is_not_whole(tmp_path: Path, name: str, kind: str) -> None:
    folder = make(tmp_path, 2)
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    assert not is_whole(folder)
    if name == "trainer.json" and kind != "gone":
        with pytest.raises(UniclError, match=r"trainer\.json: cannot be read"):
            read_facts(folder)


@pytest.mark.parametrize(
    "text", [b"", b"../../etc", b"step-", b"step-00000002\0", b"\xff\xfe", b"x" * 10_000, b"step-2/.."]
)
def test_a_pointer_names_a_checkpoint_or_none(tmp_path: Path, text: bytes) -> None:
    folder = make(tmp_path, 2)
    (tmp_path / "latest").write_bytes(text)
    assert read_pointer(tmp_path / "latest") == ""
    assert newest(tmp_path) == folder
    (tmp_path / "latest").write_text(f"{folder.name}\n")
    assert read_pointer(tmp_path / "latest") == folder.name
