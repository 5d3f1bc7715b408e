"""`prepare --taxonomy`: classes with ranks and parents, what rows labelled above a leaf know, and what is refused."""

import io
import json

import pytest
from PIL import Image
from toys import prepared, put, rows_of

from unicl_cli.cli import main, run
from unicl_cli.contracts import ClassName, Row
from unicl_cli.data.corpus import open_corpus
from unicl_cli.errors import UniclError
from unicl_cli.jobs.prepare.plan.taxonomy import place_in_taxonomy

TREE = "name,parent\nthing,\nanimal,thing\nplant,thing\ncat,animal\ndog,animal\nsiamese,cat\npersian,cat\nbeagle,dog\n"


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (seed % 256, seed // 256, 7)).save(out, "PNG")
    return out.getvalue()


def folders(tmp_path, *names: str, each: int = 2):
    files = {f"{name}/{n}.png": picture(7 * at + n) for at, name in enumerate(names) for n in range(each)}
    return put(tmp_path / "pets", files)


def classes_of(corpus) -> dict[str, tuple[str, str]]:
    return {c.key: (c.group, c.parent) for c in open_corpus(corpus).classes}


def known_of(corpus) -> dict[str, set[str]]:
    """The ranks that the rows of each class know."""
    opened = open_corpus(corpus)
    groups = list(dict.fromkeys(c.group for c in opened.classes))
    return {
        opened.classes[sample.label].key: {name for bit, name in enumerate(groups) if sample.known >> bit & 1}
        for sample in rows_of(corpus).values()
    }


def test_nested_folders_are_a_taxonomy_and_rows_know_the_ranks_down_to_their_class(tmp_path, capsys):
    source = folders(tmp_path, "animal/cat/siamese", "animal/cat", "animal/dog/beagle", "plant")
    report, err = prepared(capsys, "--labels", source, "--taxonomy", "folders", "-o", tmp_path / "c")
    assert classes_of(tmp_path / "c") == {
        "animal/cat": ("level 2", "animal"),
        "animal/cat/siamese": ("level 3", "animal/cat"),
        "animal/dog/beagle": ("level 3", "animal/dog"),
        "plant": ("level 1", ""),
        "animal": ("level 1", ""),
        "animal/dog": ("level 2", "animal"),
    }
    every = {"level 1", "level 2", "level 3"}
    assert known_of(tmp_path / "c") == {
        "animal/cat": {"level 1", "level 2"},
        "animal/cat/siamese": every,
        "animal/dog/beagle": every,
        "plant": every,  # a leaf: it is none of the deeper classes
    }
    assert "rows labelled above a leaf (2)" in err
    assert "classes without an image" not in err
    assert report["classes"] == 6


def test_a_table_gives_ranks_to_classes_by_folder_name_and_id(tmp_path, capsys):
    """Spoken names, names of synsets and paths of class folders find their nodes; other nodes are left out."""
    source = folders(tmp_path, "n02123597", "house/Persian", "cat", "beagle")
    (tmp_path / "tree.csv").write_text(TREE.replace("siamese,", "Siamese cat,"))
    args = ["--labels", source, "--taxonomy", tmp_path / "tree.csv", "-o", tmp_path / "c"]
    _, err = prepared(capsys, *args)
    assert classes_of(tmp_path / "c") == {
        "beagle": ("level 3", "dog"),
        "cat": ("level 2", "animal"),
        "house/Persian": ("level 3", "cat"),
        "n02123597": ("level 3", "cat"),
        "thing": ("level 0", ""),
        "animal": ("level 1", "thing"),
        "dog": ("level 2", "animal"),
    }
    assert known_of(tmp_path / "c")["cat"] == {"level 0", "level 1", "level 2"}
    assert "nodes that are not above a class are left out (1)" in err
    assert open_corpus(tmp_path / "c").classes[3].names[0] == "Siamese cat"


def test_a_node_above_leaves_that_no_source_has_is_no_leaf(tmp_path, capsys):
    source = folders(tmp_path, "cat", "beagle")
    (tmp_path / "tree.csv").write_text(TREE)
    prepared(capsys, "--labels", source, "--taxonomy", tmp_path / "tree.csv", "-o", tmp_path / "c")
    assert "level 3" not in known_of(tmp_path / "c")["cat"]


def test_names_of_a_table_of_ids_are_those_of_prompts(tmp_path, capsys):
    source = folders(tmp_path, "017_x", "3")
    (tmp_path / "t.csv").write_text(
        "folder,name,common_name,genus,species\n017_x,Panthera leo,lion,Panthera,leo\n"
        "3,Panthera onca,jaguar,Panthera,onca\n"
    )
    prepared(capsys, "--labels", source, "--taxonomy", tmp_path / "t.csv", "-o", tmp_path / "c")
    names = {c.key: (c.names, c.group) for c in open_corpus(tmp_path / "c").classes}
    assert names == {
        "017_x": (("Panthera leo", "lion"), "species"),
        "3": (("Panthera onca", "jaguar"), "species"),
        "Panthera": (("Panthera",), "genus"),
    }


def test_one_name_under_two_parents_needs_a_path(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("kind,thing\nfruit,orange\nfruit,apple\ncolour,orange\n")
    spec = f"{tmp_path / 't.csv'}?ranks=kind,thing"
    source = folders(tmp_path, "orange", "apple")
    with pytest.raises(UniclError, match="class 'orange' fits 2 nodes: fruit/orange, colour/orange"):
        run(["prepare", "--labels", str(source), "--taxonomy", spec, "-o", str(tmp_path / "x")])
    source = folders(tmp_path / "2", "fruit/orange", "colour/orange")
    prepared(capsys, "--labels", source, "--taxonomy", spec, "-o", tmp_path / "c")
    assert classes_of(tmp_path / "c")["colour/orange"] == ("thing", "colour")


def test_classes_that_the_taxonomy_lacks_are_counted_or_kept_outside(tmp_path, capsys):
    source = folders(tmp_path, "cat", "lamp", "sofa")
    (tmp_path / "tree.csv").write_text(TREE)
    args = ["--labels", source, "-o", tmp_path / "c", "--taxonomy"]
    with pytest.raises(UniclError, match=r"2 of 3 classes are not in it: lamp, sofa") as error:
        run(["prepare", *map(str, args), str(tmp_path / "tree.csv")])
    assert "others=keep" in error.value.hint
    assert not (tmp_path / "c" / "plan.json").exists()
    _, err = prepared(capsys, *args, f"{tmp_path / 'tree.csv'}?others=keep")
    assert "classes outside of it (2): lamp, sofa" in err
    assert classes_of(tmp_path / "c")["lamp"] == ("", "")


@pytest.mark.parametrize(
    ("names", "tree", "said"),
    [
        (
            ("n02123597", "Siamese cat"),
            TREE.replace("siamese,", "n02123597,"),
            "'Siamese cat' and 'n02123597' are one node",
        ),
        (("house/siamese", "siamese"), TREE, "the classes 'house/siamese' and 'siamese' are one node, 'siamese'"),
        (("cat",), TREE.replace("thing,\n", "thing,cat\n"), "is above itself"),
    ],
)
def test_two_classes_at_one_node_are_refused(tmp_path, names, tree, said):
    source = folders(tmp_path, *names)
    (tmp_path / "tree.csv").write_text(tree)
    args = ["prepare", "--labels", str(source), "--taxonomy", str(tmp_path / "tree.csv"), "-o", str(tmp_path / "c")]
    with pytest.raises(UniclError, match=said):
        run(args)


def test_flat_folders_are_no_taxonomy_and_images_have_no_classes(tmp_path):
    source = folders(tmp_path, "cat", "dog")
    for args, said in (
        (("--labels", str(source)), "no class lies in the folder"),
        (("--images", str(source)), "no source has classes"),
    ):
        with pytest.raises(UniclError, match=said):
            run(["prepare", *args, "--taxonomy", "folders", "-o", str(tmp_path / "c")])


def test_the_same_command_continues_and_another_taxonomy_is_named(tmp_path, capsys):
    source = folders(tmp_path, "animal/cat", "animal/dog/beagle")
    tree = tmp_path / "tree.csv"
    tree.write_text(TREE)
    args = ["--labels", source, "-o", tmp_path / "c"]
    prepared(capsys, *args, "--taxonomy", tree)
    before = (tmp_path / "c/manifest.json").read_bytes()
    tree.write_text(TREE.replace(",", ";"))  # the same nodes in another form
    _, err = prepared(capsys, *args, "--taxonomy", tree)
    assert "is complete: nothing to do" in err
    for spec, said in (
        (None, f"taxonomy: {tree} -> none"),
        ("folders", f"taxonomy: {tree} -> folders"),
        (tree, f"the taxonomy {tree} has changed"),
    ):
        tree.write_text(TREE + "poodle,dog\n")
        given = [] if spec is None else ["--taxonomy", str(spec)]
        with pytest.raises(UniclError) as error:
            run(["prepare", *map(str, args), *given])
        assert error.value.message == f"{tmp_path / 'c'}: was started with another plan; {said}"
    tree.write_text(TREE)
    (shard,) = (tmp_path / "c/data/train").iterdir()
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    assert main(["prepare", "--repair", "-o", str(tmp_path / "c")]) == 0
    assert (shard.read_bytes(), (tmp_path / "c/manifest.json").read_bytes()) == (whole, before)
    assert main(["prepare", "--verify", "-o", str(tmp_path / "c")]) == 0


def test_a_corpus_without_a_taxonomy_keeps_its_plan(tmp_path, capsys):
    prepared(capsys, "--labels", folders(tmp_path, "a/b", "c"), "-o", tmp_path / "c")
    plan = json.loads((tmp_path / "c/plan.json").read_text())
    assert ("taxonomy" in plan, plan["schema_version"]) == (False, 1)


CLASSES = (ClassName("cat", ("cat",)), ClassName("siamese", ("siamese",)), ClassName("dog", ("dog",)),
           ClassName("beagle", ("beagle",)), ClassName("red", ("red",), "colour"))  # fmt: skip


def adopted(tmp_path, *labels: int, known: tuple[str, ...] | None = None) -> set[str]:
    (tmp_path / "tree.csv").write_text(TREE)
    placed = place_in_taxonomy(CLASSES, str(tmp_path / "tree.csv"), [])
    mapping = placed.mapping_of("s", "labels", CLASSES, range(len(CLASSES)))
    return set(mapping.row(Row("k", "r", (), -1, labels, known)).known or ())


def test_a_set_knows_the_ranks_below_a_label_only_where_another_label_tells_them(tmp_path):
    """An attribute beside a taxonomy stays a group of its own, which a row may lack."""
    upper = {"level 0", "level 1", "level 2"}
    assert adopted(tmp_path, 0, 4) == {*upper, "colour"}
    assert adopted(tmp_path, 0, 1) == {*upper, "level 3", "colour"}
    assert adopted(tmp_path, 0, 3) == {*upper, "level 3", "colour"}  # in another branch: its rank is that of a label
    assert adopted(tmp_path, 0, known=("",)) == upper
    assert adopted(tmp_path, known=("colour",)) == {"colour"}


def test_parents_that_a_source_gives_itself_are_a_taxonomy_too():
    classes = (
        ClassName("a", ("a",), "order"),
        ClassName("b", ("b",), "family", "a"),
        ClassName("c", ("c",), "genus", "b"),
        ClassName("x", ("x",)),
    )
    placed = place_in_taxonomy(classes, None, [])
    assert placed.classes == classes
    row = placed.mapping_of("s", "labels", classes, range(4)).row(Row("k", "r", (), 1))
    assert set(row.known or ()) == {"order", "family", ""}
    with pytest.raises(UniclError, match="'c' is below 'b', which is not a node"):
        place_in_taxonomy((classes[0], classes[2]), None, [])
    with pytest.raises(UniclError, match="have parents of their own"):
        place_in_taxonomy(classes, "folders", [])
