"""Templates by name, file and list; names with odd characters are data."""

import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicl_cli.core.prompts import fill_template, load_templates
from unicl_cli.errors import UniclError


@pytest.mark.parametrize(
    ("template", "name", "prompt"),
    [
        ("a photo of a {}.", "tench", "a photo of a tench."),
        ("a photo of a {c}.", "tench", "a photo of a tench."),
        ("{}", "cup & saucer", "cup & saucer"),
        ("a {} in {place}", "{0} %s", "a {0} %s in {place}"),
        ("{} and {}", "dog", "dog and dog"),
        ("a {c} or {}", "{} of {c}", "a {} of {c} or {} of {c}"),
        ("nothing", "dog", "nothing"),
    ],
)
def test_a_name_goes_where_the_braces_are(template, name, prompt):
    assert fill_template(template, name) == prompt


@given(name=st.text())
def test_any_name_stands_in_a_prompt_as_it_is(name):
    assert fill_template("<{}>", name) == fill_template("<{c}>", name) == f"<{name}>"


def test_named_lists_are_open_clips():
    theirs = [template("x") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert [fill_template(t, "x") for t in load_templates("clip80")] == theirs
    assert len(theirs) == 80
    assert [fill_template(t, "x") for t in load_templates("clip7")] == [
        t("x") for t in open_clip.SIMPLE_IMAGENET_TEMPLATES
    ]
    assert load_templates("unicl81") == (*load_templates("clip80"), "{}.")
    assert load_templates("none") == ("{}",)


def test_templates_come_from_a_file_without_its_empty_lines(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("a {}\n\n  ein {c} für alle  \n", encoding="utf-8")
    assert load_templates(str(file)) == ("a {}", "ein {c} für alle")


def test_a_list_is_taken_as_it_is():
    assert load_templates(["a {}", "{c}"]) == ("a {}", "{c}")


def test_an_unknown_list_is_named_with_the_nearest():
    with pytest.raises(UniclError, match="templates 'clip8': unknown; did you mean 'clip80'") as caught:
        load_templates("clip8")
    assert "unicl81" in caught.value.hint


def test_a_template_without_a_place_is_refused():
    with pytest.raises(UniclError, match="template 'a photo': has no place for the class name"):
        load_templates(["{}", "a photo"])


@pytest.mark.parametrize("empty", ["file", []])
def test_no_template_at_all_is_refused(empty, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UniclError, match="': empty"):
        load_templates(str(tmp_path / "empty.txt") if empty == "file" else empty)
