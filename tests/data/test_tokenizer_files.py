"""A `tokenizer.json` that would take endless work, or has ids beyond any table, is one line; known ones are read."""

import base64
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unicl_cli.data.tokenizer_files import MAX_GROWTH, check_tokenizer, is_risky
from unicl_cli.data.tokenizers import CLIP_WORDS, clip_tokenizer, corpus_tokenizer, load_tokenizer
from unicl_cli.errors import UniclError

Capture = pytest.CaptureFixture[str]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def wild_id(tree: dict[str, Any]) -> None:
    tree["model"]["vocab"]["zz"] = 2**32 - 1


def doubled(tree: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    tree["normalizer"] = {"type": "Sequence", "normalizers": [step] * 30}


def inserted(tree: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "a"}
    tree["normalizer"] = {"type": "Sequence", "normalizers": [step] * 30}


def special(tree: dict[str, Any]) -> None:
    tree["post_processor"]["special_tokens"]["<start_of_text>"]["ids"] = [2**32 - 1]


def replaced(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree.update(values)


def split_at(pattern: Any) -> Callable[[dict[str, Any]], None]:
    return replaced(pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})


def charsmap(replacement: bytes, count: int = 1) -> dict[str, Any]:
    """Return normalizers that put ``replacement`` in the place of each `a`, in the format of SentencePiece."""
    trie = [0] * 1024
    trie[0], trie[256 ^ 97], trie[256 ^ 97 ^ 512] = 256 << 10, 97 | 1 << 8 | 512 << 10, 0
    table = struct.pack("<I1024I", 4096, *trie) + b"\0" + replacement + b"\0"
    step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    return {"type": "Sequence", "normalizers": [step] * count}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    corpus_tokenizer(["a photo of a dog", "cats and dogs"] * 5, 16).save(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize(
    "spoil",
    [
        wild_id,
        special,
        doubled,
        inserted,
        split_at({"Regex": "(a+)+$"}),
        split_at({"Regex": "(("}),
        split_at({"String": ""}),
        split_at([1]),
        split_at({"Regex": "a" * 3000}),
        replaced(normalizer={"type": "Magic"}),
        replaced(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}),
        replaced(normalizer={"type": "Prepend", "prepend": "a" * 100}),
        replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": 5}),
        replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "%"}),
        replaced(normalizer=charsmap(b"b" * (MAX_GROWTH + 1))),
        replaced(normalizer=charsmap(b"b" * 10, 2)),
        replaced(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 30}),
        replaced(model=None),
    ],
)
def test_a_file_that_would_do_harm_is_one_line(written: Path, spoil: Callable[[dict[str, Any]], None]) -> None:
    assert load_tokenizer(written, 16)(["a dog"]).shape[0] == 1
    tree = json.loads(written.read_text())
    spoil(tree)
    written.write_text(json.dumps(tree))
    with pytest.raises(UniclError, match=r"^[^\n]*tokenizer\.json: missing, or not a tokenizer\.json: [^\n]*$"):
        load_tokenizer(written, 16)


def test_a_table_of_characters_of_ordinary_length_is_taken() -> None:
    """The longest replacement of NFKC has 18 letters, here of two bytes each."""
    check_tokenizer({"normalizer": charsmap("ص".encode() * 18)})


@pytest.mark.parametrize("kind", ["folder", "pipe", "text", "deep"])
def test_what_is_not_such_a_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tokenizer.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("[" * 100_000 if kind == "deep" else "[]")
    with pytest.raises(UniclError, match="not a tokenizer"):
        load_tokenizer(path, 16)


def test_a_text_that_a_tokenizer_has_no_token_for_is_one_line(written: Path) -> None:
    tree = json.loads(written.read_text()) | {"model": {"type": "WordLevel", "vocab": {"q": 0}, "unk_token": "no"}}
    tree["post_processor"], tree["added_tokens"] = None, []
    written.write_text(json.dumps(tree))
    with pytest.raises(UniclError, match="the tokenizer cannot encode a text"):
        load_tokenizer(written, 16)(["a dog"])


@pytest.mark.parametrize(
    "pattern",
    [
        CLIP_WORDS,
        GPT2,
        LLAMA,
        O200K,
        r"\s+",
        " {2,}",
        r"(?<=\s)\w+",
        r"\d+(?=(\d{3})$)",
        *(r"\d{1,3}(?=(?:\d{3})*\b)", r"(?i)\p{N}{1,3}", "(?:[^a]|b){3}", r"[^\r\n\p{L}\p{N}]?\p{L}{2,}", "(?:x+)?y"),
    ],
)
def test_patterns_of_known_tokenizers_are_taken(pattern: str) -> None:
    assert not is_risky(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a*)*b",
        "(?:a|b+)*c",
        "((a+))+",
        "(a{2,})+",
        "a*a*a*a*a*b",
        r"(a)\1+",
        "(a+){30}",
        "([a-z]+|x)*",
        *(
            "(?:a|a){60}b",
            "(?:a?){60}b",
            "(?:a{1,30}){1,30}b",
            "(?:(?:a|a)(?:a|a)){40}b",
            f"{'a?' * 30}b",
            "(a|aa){,40}",
        ),
        *("(?:(?:(?:a|b){4}){4}){4}", "(?i:a|b){99999999999}", "a{1,2000}" * 5),
    ],
)
def test_patterns_that_may_not_end_are_refused(pattern: str) -> None:
    assert is_risky(pattern)


def test_clips_own_tokenizer_is_read_as_it_was_written(tmp_path: Path) -> None:
    own = clip_tokenizer()
    own.save(tmp_path / "clip.json")
    texts = ["A photo of a dog's <3 &amp; 12 cats.", ""]
    assert load_tokenizer(tmp_path / "clip.json", 77, clean=True)(texts).equal(own(texts))


def test_a_pattern_that_gives_up_on_a_text_is_one_line_and_nothing_beside_it(written: Path, capfd: Capture) -> None:
    """Rust prints a panic on standard error by itself."""
    tree = json.loads(written.read_text())
    split_at({"Regex": "(?:a|a)*b"})(tree)
    written.write_text(json.dumps(tree))
    tokenizer = load_tokenizer(written, 16)
    assert tokenizer(["a b"]).shape[0] == 1
    for texts in (["a" * 60 + "cb"], [f"{n} {'a' * 60}cb" for n in range(20)]):  # several are encoded in threads
        with pytest.raises(UniclError, match=r"the tokenizer cannot encode a text: [^\n]+$"):
            tokenizer(texts)
    assert capfd.readouterr().err == ""
