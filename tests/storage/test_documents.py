"""Tests of the reader of JSON: bounded, strict, and one line for each kind of damage."""

import json
import os
from pathlib import Path

import pytest

from unicl_cli.errors import UniclError
from unicl_cli.storage.documents import Document, read_document
from unicl_cli.storage.files import read_regular
from unicl_cli.storage.json_text import MAX_DEPTH, parse_json

TOO_DEEP = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)


class Note(Document):
    step: int
    share: float = 0.0


@pytest.mark.parametrize(
    "text",
    ["", "{", b"\xff\xfe", "NaN", '{"a": Infinity}', "1" * 5000, "[" * 100_000, '["\\ud800"]', TOO_DEEP],
)
def test_text_that_is_not_sound_json_is_a_value_error(text: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_sound_json_is_parsed_as_json_does() -> None:
    for value in ({"a": [1, 2.5, None, "\U0001f600 é"]}, [[]], "x"):
        assert parse_json(json.dumps(value)) == value
        assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deepest) == json.loads(deepest)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "step: Field required"),
        ('{"step": "4"}', "step: should be a valid integer"),
        ('{"step": true}', "step: should be a valid integer"),
        ('{"step": 4, "share": 1e999}', "share: should be a finite number"),
        ("[4]", "should be a valid dictionary or instance of Note"),
        ("{", "Expecting property name"),
    ],
)
def test_each_damage_of_a_document_is_one_line_with_the_hint(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "note.json").write_text(text)
    with pytest.raises(UniclError) as raised:
        read_document(tmp_path / "note.json", Note, "write it again")
    assert raised.value.message.startswith(f"{tmp_path / 'note.json'}: damaged: {reason}")
    assert raised.value.hint == "write it again"


def test_a_document_keeps_keys_of_later_versions(tmp_path: Path) -> None:
    (tmp_path / "note.json").write_text('{"step": 4, "new": [1]}')
    assert read_document(tmp_path / "note.json", Note, "").model_dump() == {"step": 4, "share": 0.0, "new": [1]}


def test_what_is_not_a_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "large")
    for name in ("pipe", "large", "link", "."):
        with pytest.raises(OSError, match=r"not a regular file|larger than 99 B|Is a directory"):
            read_regular(tmp_path / name, 99)
    assert read_regular(tmp_path / "link", 100) == b"x" * 100
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "missing", Note, "")
