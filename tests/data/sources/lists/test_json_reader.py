"""Lists in JSON: documents of every usual form, paths into objects, and faults with hints of their kind."""

import pytest

from unicl_cli.errors import UniclError

SAME = {"a.png": ("one", "two"), "b.png": ("three",)}
TURNS = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "one"}]
COCO = {
    "info": {},
    "images": [{"file_name": "a.png", "id": 1}, {"file_name": "b.png", "id": 2}],
    "annotations": [
        {"id": 7, "image_id": 1, "caption": "one"},
        {"id": 8, "image_id": 2, "caption": "three"},
        {"id": 9, "image_id": 1, "caption": "two"},
    ],
}
ROWS = [{"img": "a.png", "text": ["one", "two"]}, {"img": "b.png", "text": "three"}]
DOCUMENTS = {
    "array.json": ROWS,
    "pairs.json": [["a.png", ["one", "two"]], ["b.png", "three"]],
    "map.json": {"a.png": ["one", "two"], "b.png": "three"},
    "wrapped.json": {"version": 1, "licenses": [{"id": 1}], "data": ROWS},
    "named.json": {"a.png": {"captions": ["one", "two"]}, "b.png": {"captions": ["three"]}},
    "columns.json": {"image": ["a.png", "b.png"], "caption": [["one", "two"], "three"]},
    "pandas.json": {"image": {"0": "a.png", "1": "b.png"}, "caption": {"0": ["one", "two"], "1": "three"}},
    "split.json": {"columns": ["file", "text"], "data": [["a.png", ["one", "two"]], ["b.png", "three"]]},
    "array.txt": ROWS,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_form_of_a_document_gives_the_same_captions(name, listing):
    assert listing.texts(listing.write(name, DOCUMENTS[name], "a.png", "b.png")) == SAME


def test_a_map_from_classes_to_images_gives_labels(listing):
    path = listing.write("classes.json", {"cat": ["a.png"], "dog": ["b.png", "c.png"]}, "a.png", "b.png", "c.png")
    assert listing.labels(path) == {"a.png": "cat", "b.png": "dog", "c.png": "dog"}


def test_cocos_captions_join_their_image(listing):
    path = listing.write("captions.json", COCO, "val/a.png", "val/b.png")
    with pytest.raises(UniclError, match="its images do not exist") as caught:
        listing.texts(path)
    assert caught.value.hint == f"read them from the folder where they are: '{path}?root=val'"
    assert listing.texts(f"{path}?root=val&key=file_name") == SAME


def test_cocos_categories_are_labels_if_an_image_has_one(listing):
    labelled = {
        **COCO,
        "annotations": [{"image_id": 1, "category_id": 3}, {"image_id": 2, "category_id": 5}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    path = listing.write("one.json", labelled, "a.png", "b.png")
    assert listing.labels(f"{path}?key=file_name") == {"a.png": "cat", "b.png": "dog"}
    labelled["annotations"].append({"image_id": 1, "category_id": 5})
    path = listing.write("two.json", labelled)
    with pytest.raises(UniclError, match=r"image 1: category holds several labels \(cat, dog\)") as caught:
        listing.labels(path)
    assert f"--captions '{path}?caption=category'" in caught.value.hint
    assert listing.texts(f"{path}?caption=category&key=file_name")["a.png"] == ("cat", "dog")


def test_an_annotation_of_an_unknown_image_is_a_bad_line(listing):
    odd = {**COCO, "annotations": [*COCO["annotations"], {"image_id": 99, "caption": "lost"}]}
    path = listing.write("odd.json", odd, "a.png", "b.png")
    with pytest.raises(UniclError, match="1 of 3 lines cannot be read; annotation 4: image_id 99 is not the id"):
        listing.texts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.png"},]', "not JSON: "),
        ("[]", "the list is empty"),
        ('"a.png"', "not a JSON object"),
        (
            '{"train": [{"image": "a.png"}], "val": [{"image": "b.png"}]}',
            r"several lists of objects \(keys: train, val\)",
        ),
        ("[" * 100_000, "not JSON: nested more than 64 levels deep"),
    ],
)
def test_a_document_that_is_not_a_list_says_why(content, message, listing):
    with pytest.raises(UniclError, match=message):
        listing.texts(listing.write("odd.json", content, "a.png"))


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ('{"image": "a.png", "captions": [{"caption": "one"}, {"caption": "two"}]}', "captions.caption"),
        ('{"image": "a.png", "sentences": [{"raw": "one", "id": 1}, {"raw": "two"}]}', "sentences.raw"),
        ('{"image": "a.png", "meta": {"texts": [{"en": ["one", "two"]}]}}', "meta.texts.en"),
        ('{"image": "a.png", "meta": {"alt": "one", "title": "two"}}', "meta.alt,meta.title"),
        ('{"image": "a.png", "a.b": ["one", "two"]}', "a.b"),
        ('{"image": "a.png", "many": [["no"], ["one", "two"]]}', "many.1"),
    ],
)
def test_a_path_leads_into_objects(line, option, listing):
    path = listing.write("nested.jsonl", f"{line}\n", "a.png")
    assert listing.texts(f"{path}?caption={option}") == {"a.png": ("one", "two")}


def test_objects_in_cells_of_a_csv_are_named_with_the_path_that_reads_them(listing):
    path = listing.write("cells.csv", "image;captions\na.png;[{'raw': 'one'}, {'raw': 'two'}]\n", "a.png")
    with pytest.raises(UniclError, match=r"captions holds a list of objects \(keys: raw\)") as caught:
        listing.texts(path)
    assert caught.value.hint == "name the text inside: ?caption=captions.raw"
    assert listing.texts(f"{path}?caption=captions.raw") == {"a.png": ("one", "two")}


def test_a_path_to_nothing_is_named(listing):
    path = listing.write("nested.jsonl", '{"image": "a.png", "captions": [{"caption": "one"}]}\n', "a.png")
    with pytest.raises(UniclError, match=r"nothing at 'captions\.captoin'; did you mean 'captions\.caption'"):
        listing.texts(f"{path}?caption=captions.captoin")


@pytest.mark.parametrize("option", ["", "?caption=conversations", "?caption=conversations.value"])
def test_of_a_conversation_only_the_answers_are_captions(option, listing):
    path = listing.write("chat.json", [{"image": "a.png", "conversations": TURNS}], "a.png")
    source = listing.open(path + option)
    assert [row.texts for row in source.rows("train")] == [("one",)]
    assert source.notes == ["chat.json: turns of conversations that are not answers, left out: 1"]


def test_messages_of_a_chat_template_are_conversations(listing):
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "one"}]},
    ]
    path = listing.write("chat.jsonl", {"image": "a.png", "messages": turns}, "a.png")
    assert listing.texts(path) == {"a.png": ("one",)}


@pytest.mark.parametrize(
    ("line", "fault", "hint"),
    [
        ('{"image": ["a.png", "b.png"], "caption": "x"}', "image holds 2 images", "write a line for each image"),
        ('{"image": [0, 255, 3], "caption": "x"}', "image holds numbers", "save the pixels as image files"),
        ('{"image": {"id": 4}, "caption": "x"}', r"image holds an object \(keys: id\)", "?image=image.id"),
        ('{"image": "a.png", "caption": {"en": "x", "de": "y"}}', r".*\(keys: en, de\)", "?caption=caption.en"),
        ('{"image": "a.png", "caption": "x"', "not JSON: ", "each line is a JSON object"),
        ('{"image": "a\\u0000.png", "caption": "x"}', "image has a NUL character", "each line is a JSON object"),
    ],
)
def test_a_fault_in_a_jsonl_has_a_hint_of_its_kind(line, fault, hint, listing):
    path = listing.write("odd.jsonl", '{"image": "a.png", "caption": "ok"}\n' + line + "\n", "a.png")
    with pytest.raises(UniclError, match=f"line 2: {fault}") as caught:
        listing.texts(path)
    assert hint in caught.value.hint
    assert "separator" not in caught.value.hint


def test_an_option_of_text_is_refused_for_other_formats(listing):
    path = listing.write("x.jsonl", '{"image": "a.png", "caption": "ok"}\n', "a.png")
    with pytest.raises(UniclError, match="sep= does not apply to JSON"):
        listing.texts(f"{path}?sep=tab")


def test_an_object_without_a_caption_and_numbers_that_are_none_have_no_text(listing):
    lines = (
        '{"image": "a.png", "caption": "one", "score": NaN}\n{"image": "b.png"}\n{"image": "c.png", "caption": NaN}\n'
    )
    found = listing.texts(listing.write("nan.jsonl", lines, "a.png", "b.png", "c.png"))
    assert found == {"a.png": ("one",), "b.png": (), "c.png": ()}


def test_a_key_that_comes_twice_in_an_object_is_a_bad_line(listing):
    with pytest.raises(UniclError, match="not JSON: duplicate key 'label'"):
        listing.labels(listing.write("l.jsonl", '{"image": "a.png", "label": "cat", "label": "dog"}\n', "a.png"))


def test_a_number_of_thousands_of_digits_is_a_bad_line(listing):
    good = "".join(f'{{"image": "a.png", "caption": "words {at}"}}\n' for at in range(40))
    source = listing.open(listing.write("l.jsonl", f'{good}{{"image": {"9" * 5000}}}\n', "a.png"))
    assert source.rows("train")[-1].ref == "bad line: line 41: not JSON: a number has too many digits"
