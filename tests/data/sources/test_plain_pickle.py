"""Pickles of plain values and uint8 arrays: read as pickle reads them, and nothing in them is believed or called."""

import pickle
from pickle import UnpicklingError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicl_cli.data.sources import plain_pickle
from unicl_cli.data.sources.plain_pickle import load_plain

PIXELS = np.random.default_rng(3).integers(0, 256, (5, 12), np.uint8)
PLAIN = {
    "labels": [0, 1, -3, 255, 256, 70_000, 2**40],
    "names": ["a", "é", b"raw\xff", b""],
    "more": ({"x": None}, True, False, 1.5, (), (1,), (1, 2, 3, 4)),
    "data": PIXELS,
}


def text(value):
    return b"U" + bytes([len(value)]) + value


def array_of(kind, state, shape=b"K\x01K\x08\x86", content=b"12345678"):
    """A dictionary of one array in the manner of Python 2, whose type has this name and state."""
    dtype = b"cnumpy\ndtype\n(" + text(kind) + b"K\x00K\x01tR(" + state + b"tb"
    begun = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    return b"\x80\x02}" + text(b"data") + begun + b"(K\x01" + shape + dtype + b"\x89" + text(content) + b"tbs."


UINT8 = b"K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_each_protocol_gives_what_pickle_gives(protocol, order):
    found = load_plain(pickle.dumps({**PLAIN, "data": np.asarray(PIXELS, order=order)}, protocol))
    np.testing.assert_array_equal(found.pop("data"), PIXELS)
    assert found == {key: value for key, value in PLAIN.items() if key != "data"}


def test_the_layout_of_the_published_archives_is_read():
    found = load_plain(array_of(b"u1", UINT8))
    np.testing.assert_array_equal(found["data"], np.frombuffer(b"12345678", np.uint8)[None])
    assert pickle.loads(array_of(b"u1", UINT8), encoding="latin1")["data"].tolist() == found["data"].tolist()


def test_python_2_writes_text_as_bytes():
    assert load_plain(b"\x80\x02}(U\x01aT\x02\x00\x00\x00\xe9bu.") == {"a": b"\xe9b"}
    assert load_plain(b"(dp0\nS'num'\np1\nI10\nsS'ok'\nI01\ns.") == {"num": 10, "ok": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array_of(b"O8", b"I3\n" + text(b"|") + b"NNNI-1\nI-1\nI0\n"), "an array of type b'O8', where only uint8"),
        (array_of(b"V8", UINT8), "an array of type b'V8'"),
        (array_of(b"i8", UINT8, b"K\x01\x85"), "an array of type b'i8'"),
        (array_of(b"u1", b"K\x03" + text(b"|") + b"N(tNK\x00K\x00K\x00"), "a state that it cannot"),
        (array_of(b"u1", UINT8, b"K\x01K\x09\x86"), "do not fill its shape"),
        (array_of(b"u1", UINT8, b"J\xff\xff\xff\xffJ\xf8\xff\xff\xff\x86"), "do not fill its shape"),
        (array_of(b"u1", UINT8, b"(" + b"K\x01" * 33 + b"t"), "no bytes, type or shape"),
        (array_of(b"u1", UINT8, content=b"") , "do not fill its shape"),
        (pickle.dumps({"data": np.array([None])}), "array of type 'O8'|would load"),
        (pickle.dumps({"data": np.array(["a"])}), "array of type 'U1'"),
        (pickle.dumps({"data": np.zeros(2, [("x", "u1")])}), "array of type 'V1'"),
        (pickle.dumps({"n": np.uint8(3)}), "its pickle would load .*scalar"),
        (b"\x80\x02}(U\x01acnumpy\ndtype\n}bu.", "a state that it cannot have"),
        (b"\x80\x02}(U\x01a]}U\x05clearK\x01sbu.", "a state that it cannot have"),
        (b"\x80\x02}(U\x01aU\x01a(tRu.", "called that is not a function"),
        (b"\x80\x02}(U\x01a(ibuiltins\nexec\nu.", "the instruction INST"),
        (b"\x80\x02}(U\x01a\x82\x01u.", "the instruction EXT1"),
        (b"\x80\x02}(U\x01aPid\nu.", "the instruction PERSID"),
        (b"\x80\x02}(U\x01a\x8c\x08builtins\x8c\x04eval\x93u.", "would load builtins.eval"),
        (b"\x80\x02}(U\x01a\x8a\x09" + b"\xff" * 8 + b"\x00u.", "more than 64 bits"),
        (b"\x80\x02}(((K\x01tK\x02tK\x03u.", "neither a string nor a number"),
        (b"(" * 65, "nested more than 64 levels"),
        (b"]K\x01.", "damaged pickle"),
        (b"I" + b"9" * 5000 + b"\n.", "damaged pickle"),
        (b"X\xff\xff\xff\x7fabc.", "damaged pickle"),
        (pickle.dumps({"a": 1, b"a": 2}), "the key 'a' twice"),
        (pickle.dumps({1: 1, "1": 2}), "the key '1' twice"),
        (b"K\x01.", "pickled int instead of a dictionary"),
    ],
)  # fmt: skip
def test_what_is_neither_plain_nor_a_uint8_array_is_refused(content, message):
    with pytest.raises(UnpicklingError, match=message):
        load_plain(content)


def test_names_of_which_each_holds_the_one_before_twice_take_no_time():
    """Their hash, and their text, would take 2^200 steps."""
    twice = b"(h\x00h\x00tq\x00" * 200
    with pytest.raises(UnpicklingError, match="neither a string nor a number"):
        load_plain(b"\x80\x02}(K\x01K\x02\x86q\x00" + twice + b"K\x01u.")
    with pytest.raises(UnpicklingError, match="an array of type unknown"):
        load_plain(b"\x80\x02(K\x01tq\x00" + twice + b"cnumpy\ndtype\nh\x00\x85R.")


def test_the_number_of_instructions_is_bounded(monkeypatch):
    assert load_plain(b"0".join([b"]"] * 100) + b"0}.") == {}
    monkeypatch.setattr(plain_pickle, "MAX_INSTRUCTIONS", 100)
    with pytest.raises(UnpicklingError, match="more than 100 instructions"):
        load_plain(b"0".join([b"]"] * 100) + b"0}.")


def test_a_text_of_the_memo_becomes_bytes_no_more_often_than_it_could_stand_in_the_pickle():
    word = b"X\x40\x00\x00\x00" + b"a" * 64 + b"q\x000c_codecs\nencode\nq\x010X\x06\x00\x00\x00latin1q\x020("
    once = b"h\x01h\x00h\x02\x86R"
    assert load_plain(b"\x80\x02}K\x01" + word + once + b"ls.")["1"] == [b"a" * 64]
    with pytest.raises(UnpicklingError, match="makes more bytes than it holds"):
        load_plain(b"\x80\x02}K\x01" + word + once * 100 + b"ls.")


def test_a_memo_number_allocates_nothing():
    assert load_plain(b"\x80\x02}(U\x01aK\x01r\xff\xff\xff\x7fu.") == {"a": 1}


@settings(max_examples=150, deadline=None)
@given(
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 10**6),
)
def test_a_changed_pickle_is_read_or_refused(protocol, places, cut):
    content = bytearray(pickle.dumps({"labels": [1, 2], "names": ["a", "b"], "data": PIXELS}, protocol))
    for place, byte in places:
        content[place % len(content)] = byte
    try:
        found = load_plain(bytes(content[: cut % (2 * len(content))]))
    except UnpicklingError:
        return
    assert all(isinstance(key, str) for key in found)
    assert all(of.dtype == np.uint8 for of in found.values() if isinstance(of, np.ndarray))
