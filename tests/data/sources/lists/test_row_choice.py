"""The option where= of lists, and labels that their lines deny."""

import pytest

from unicl_cli.errors import UniclError

IMAGES = ("a.png", "b.png", "c.png")
OPEN_IMAGES = "ImageID,Source,LabelName,Confidence\na.png,x,cat,1\na.png,x,dog,0\nb.png,x,dog,1.0\nc.png,x,owl,0\n"


def test_labels_that_are_denied_are_refused_with_the_option_that_leaves_them_out(listing):
    path = listing.write("labels.csv", OPEN_IMAGES, *IMAGES)
    with pytest.raises(UniclError, match="column 'Confidence' is 0 in 2 lines: their images do not show") as caught:
        listing.labels(path)
    src = f"{path}?where=Confidence:1"
    assert f"'{src}'" in caught.value.hint
    source = listing.open(src, "labels")
    assert listing.labels(src) == {"a.png": "cat", "b.png": "dog"}
    assert [c.key for c in source.classes] == ["cat", "dog"]
    assert "labels.csv: lines left out by where=: 2" in source.notes
    sure = listing.write("sure.csv", OPEN_IMAGES.replace("dog,0\n", "dog,\n").replace("owl,0", "owl,0.4"), *IMAGES)
    assert [row.key for row in listing.open(f"{sure}?sets=true", "labels").rows("train")] == list(IMAGES)


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("view:Side", "b"),
        ("view:front", "ac"),
        ("is:odd:yes", "c"),
        ("n:1", "ac"),
    ],
)
def test_lines_are_chosen_by_text_without_case_or_by_number(where, keys, listing):
    lines = "image,caption,view,is:odd,n\na.png,one,Front,no,1.0\nb.png,two,side,no,2\nc.png,three,FRONT,yes,01\n"
    path = listing.write("views.csv", lines, *IMAGES)
    assert list(listing.texts(f"{path}?where={where}")) == [f"{key}.png" for key in keys]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("veiw:side", "where=veiw:side: no column 'veiw'; did you mean 'view'"),
        ("view", "where=view: no value for column 'view'"),
        ("view:top", "no line has 'top' in column 'view'"),
    ],
)
def test_a_choice_of_nothing_is_refused(where, message, listing):
    path = listing.write("views.csv", "image,caption,view\na.png,one,front\n", "a.png")
    with pytest.raises(UniclError) as caught:
        listing.texts(f"{path}?where={where}")
    assert message in str(caught.value)
