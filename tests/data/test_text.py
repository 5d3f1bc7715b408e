"""Captions: cleaning is idempotent, never fails, and keeps what people wrote."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unicl_cli.data.text import LONGEST, PAGE, clean, has_markup, is_bad_text, replace_surrogates

ODD = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("&<>;#ampltgqu0123x \t\n\x00\x85\u200b\u200d\ufeff\ud800\udfff\u0301\u2126\ufb01\U0001f600"),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(ODD)
@example("&amp;" * 3 + "lt;b&amp;gt;")
@example("&" + "amp;" * 50 + "lt;")
@example("<" * 30 + "a" + ">" * 30)
@example("&#xD800;&#0;&#x110000;")
@example("a&#x301;")
def test_cleaning_never_fails_is_idempotent_and_gives_what_utf8_can_hold(text):
    once = clean(text)
    assert clean(once) == once
    once.encode("utf-8")
    assert once == " ".join(once.split())
    replace_surrogates(text).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\ufeffa cat", "a cat"),
        ("tab\tnul\x00 bell\x07 csi\x9b end", "tab nul bell csi end"),
        ("zero\u200bwidth \u2060joined", "zerowidth joined"),
        ("Tom &amp;amp; Jerry &lt;3", "Tom & Jerry <3"),
        ("&lt;b&gt;bold&lt;/b&gt; text<br/>next", "bold text next"),
        ("<PERSON> and &lt;PERSON&gt; dance", "person and person dance"),
        ("A\u030angstrom \u212b", "\u00c5ngstrom \u00c5"),
        ("3 < 5", "3 < 5"),
        ("I <3 my cat -> dog", "I <3 my cat -> dog"),
        ("5 < 6 and 7 > 2", "5 < 6 and 7 > 2"),
        ("under <5 degrees and wind >3 knots", "under <5 degrees and wind >3 knots"),
        ("a <!-- hidden --> dog<BR/>runs</b >", "a dog runs"),
        ("a <b and c> d, i<a, b >q", "a <b and c> d, i<a, b >q"),
        ("<person> on a <bike> </x>", "<person> on a <bike> </x>"),
        ("if p<q x>0 then <s = 3>", "if p<q x>0 then <s = 3>"),
        ("<a href='x?a>b' target=_blank>link</a><IMG alt=\"\" src=1.png/> here", "link here"),
        ("<video controls muted>clip</video\t> <input type=checkbox checked/>", "clip"),
        ("<!-- a > b -->dog<!-- <i>cat</i> -->", "dog"),
        ("<!DOCTYPE html><p class=''>dog", "dog"),
        ("R&D at AT&T", "R&D at AT&T"),
        ("\u0643\u0644\u0628 \u0635\u063a\u064a\u0631", "\u0643\u0644\u0628 \u0635\u063a\u064a\u0631"),
        ("flag \U0001f3f3\ufe0f\u200d\U0001f308", "flag \U0001f3f3\ufe0f\u200d\U0001f308"),
    ],
)
def test_what_is_noise_goes_and_what_is_writing_stays(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize("text", ["<b>a</b>", "a<br/>", "x &amp;lt;i&gt; y", "<!-- a --> b", "&lt;p class='q'>"])
def test_markup_that_goes_is_seen(text):
    assert has_markup(text)


@pytest.mark.parametrize(
    "text", ["I <3 cats -> happy", "a &lt; b &gt; c", "<person>", "R&D", "", "<b" * PAGE, "<i and>"]
)
def test_writing_in_angle_brackets_is_not_markup(text):
    assert not has_markup(text)


@pytest.mark.parametrize(
    "text",
    [*("", "a", "1234 5678", "IMG_1234", "img 0042.JPG", "DSC00012", "DSCN-77.jpeg", "image 7.png"),
     "P1010023.jpg", "x" * 2001],
)  # fmt: skip
def test_texts_that_say_nothing_are_bad(text):
    assert is_bad_text(text)


@pytest.mark.parametrize(
    "text", ["ox", "img of a cat", "image of 3 dogs", "DSC award", "p", "犬と", "猫", "집", "鳥 🐦", "x" * LONGEST]
)
def test_texts_that_say_something_are_not(text):
    assert is_bad_text(text) == (text == "p")


def test_the_longest_text_of_anything_is_cleaned():
    for part in (
        "<",
        "&amp;",
        "<a",
        "<!--",
        '<a x="y" ',
        "<a x='",
        "<p\t",
        "<!doctype",
        "<i x=y/",
        "\x00",
        "<a" + " " * 99,
    ):
        text = (part * PAGE)[: PAGE // 2]
        assert has_markup(text) in (True, False)
        clean(text)  # quadratic work would take minutes


def test_a_page_of_anything_is_not_cleaned():
    for text in (
        "word " * PAGE,
        "<" * 300_000,
        "&amp;" * 60_000,
        "&" + "amp;" * 60_000,
        "<a" * 150_000,
        "\x00" * 300_000,
    ):
        assert clean(text) == ""
        assert is_bad_text("")
