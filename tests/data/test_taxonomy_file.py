"""Taxonomies in tables of both forms: their nodes, ranks and names, and faulty tables, each refused in one line."""

import random

import pytest

from unicl_cli.data.taxonomy import Taxonomy
from unicl_cli.data.taxonomy_file import parse_spec, read_taxonomy
from unicl_cli.errors import UniclError

TREE = "name,parent\nanimal,\ncat,animal\ndog,animal\nsiamese,cat\n"


def read(tmp_path, text: str, options: str = "", name: str = "tree.csv") -> Taxonomy:
    (tmp_path / name).write_text(text, encoding="utf-8")
    path, chosen = parse_spec(f"{tmp_path / name}{options}")
    return read_taxonomy(path, chosen, [])


def places(taxonomy: Taxonomy) -> dict[str, tuple[str, str]]:
    return {key: (node.parent, node.rank) for key, node in taxonomy.nodes.items()}


def test_a_table_of_parents_has_ranks_by_depth_below_the_root(tmp_path):
    found = read(tmp_path, TREE)
    assert places(found) == {
        "animal": ("", "level 0"),
        "cat": ("animal", "level 1"),
        "dog": ("animal", "level 1"),
        "siamese": ("cat", "level 2"),
    }
    assert found.ranks == ("level 0", "level 1", "level 2")
    assert found.deeper["level 0"] == {"level 1", "level 2"}
    assert found.inner == {"animal", "cat"}


@pytest.mark.parametrize(
    "text",
    [
        "parent;name\n;animal\nanimal;cat\nanimal;dog\ncat;siamese\n",
        "\ufeffParent ID\tkey\n\tanimal\n\nanimal\tcat\nanimal\tdog\ncat\tsiamese\ncat\tsiamese\n",
        '# made by hand\nname,parent\n"animal",\ncat, animal\ndog, animal\nsiamese, cat\n',
    ],
)
def test_the_form_of_a_table_does_not_matter(tmp_path, text):
    assert read(tmp_path, text).digest() == read(tmp_path, TREE).digest()


def test_ids_have_names_and_parents_may_be_either(tmp_path):
    by_id = read(tmp_path, "id,name,parent,rank\n1,living thing,,\n02,dog|hound,1,species\n7,sea_lion,1,species\n")
    by_name = read(
        tmp_path,
        "id,name,parent,rank\n1,living thing,,\n2,dog|hound,living thing,species\n7,sea_lion,living thing,species\n",
    )
    assert by_id.digest() == by_name.digest()
    assert by_id.nodes["2"].names == ("dog", "hound")
    assert by_id.nodes["7"].names == ("sea lion",)
    assert places(by_id)["1"] == ("", "level 0")
    assert by_id.ranks == ("level 0", "species")


RANKS = """species,genus,family,kingdom,common_name,notes
lupus,Canis,Canidae,Animalia,wolf,x
latrans,Canis,Canidae,Animalia,coyote,y
,Vulpes,Canidae,Animalia,,
robur,Quercus,,Plantae,oak,
"""


def test_a_table_of_ranks_is_read_from_the_top_down_whatever_its_columns_order(tmp_path):
    (tmp_path / "t.csv").write_text(RANKS)
    notes: list[str] = []
    found = read_taxonomy(*parse_spec(str(tmp_path / "t.csv")), notes)
    assert found.ranks == ("kingdom", "family", "genus", "species")
    wolf = found.nodes["Animalia/Canidae/Canis/lupus"]
    assert (wolf.names, wolf.parent, wolf.rank) == (("wolf",), "Animalia/Canidae/Canis", "species")
    assert "Canis lupus" in wolf.written
    assert found.nodes["Plantae/Quercus"].parent == "Plantae"  # an empty rank is left out
    assert "Animalia/Canidae/Vulpes" not in found.inner
    assert found.deeper["kingdom"] == {"family", "genus", "species"}
    assert "notes" in notes[0]


def test_columns_of_any_name_are_ranks_where_they_are_named(tmp_path):
    text = "item,department\nlamp,home\nlamp,garden\n"
    found = read(tmp_path, text, "?ranks=department,item")
    assert places(found) == {
        "home": ("", "department"),
        "home/lamp": ("home", "item"),
        "garden": ("", "department"),
        "garden/lamp": ("garden", "item"),
    }


def test_a_rank_may_be_left_out_on_some_paths_but_not_turned_around(tmp_path):
    text = "name,parent,rank\na,,order\nb,a,family\nc,b,genus\nd,a,genus\n"
    assert read(tmp_path, text).deeper["order"] == {"family", "genus"}
    with pytest.raises(UniclError, match=r"the ranks .*family.* are each above the other"):
        read(tmp_path, text + "e,d,family\n")
    with pytest.raises(UniclError, match="'c' and 'b' above it have the same rank, 'clade'"):
        read(tmp_path, "name,parent,rank\na,,order\nb,a,clade\nc,b,clade\n")


def test_several_roots_are_allowed_where_the_command_says_so(tmp_path):
    found = read(tmp_path, TREE + "plant,\nrose,plant\n", "?roots=many")
    assert places(found)["plant"] == ("", "level 1")
    assert places(found)["siamese"] == ("cat", "level 3")


FAULTS = {
    "a is above itself": ("name,parent\nr,\na,b\nb,c\nc,a\n", "'a' is above itself: a, c, b, a"),
    "its own parent": ("name,parent\nr,\na,a\n", "'a' is above itself"),
    "no root at all": ("name,parent\na,b\nb,a\n", "is above itself"),
    "two roots": (TREE + "plant,\n", "has 2 roots: animal, plant"),
    "unknown parent": (TREE + "oak,tree\n", "'oak' is below 'tree', which is not a node"),
    "two parents": (TREE + "siamese,dog\n", "line 6: 'siamese' has two parents: 'dog', and 'cat' in line 5"),
    "two ranks": ("name,parent,rank\na,,x\nb,a,y\nb,a,z\n", "line 4: 'b' has two ranks: 'z', and 'y' in line 3"),
    "no header": ("animal,\ncat,animal\n", "its first line has neither a column 'parent' nor two known ranks: animal"),
    "no header of ranks": ("animal,cat,siamese\nanimal,dog,beagle\n", "its first line has neither"),
    "one rank": ("species,notes\ncat,x\n", "its first line has neither"),
    "no names": ("parent,x,y\na,b,c\n", "has a column 'parent', but none of names"),
    "two columns": ("name,parent,parent\na,,\n", "two columns are named 'parent'"),
    "a node without a name": (TREE + ",cat\n", "line 6: the name is empty"),
    "a cell too few": (TREE + "oak\n", "line 6: 2 cells expected, 1 found"),
    "an open quote": (TREE + '"oak,cat\n', "line 6"),
    "nothing": ("", "is empty"),
    "a header alone": ("name,parent\n", "has a header and nothing below it"),
    "a word for nothing": ("family,genus\nCanidae,NA\n", "line 2: 'NA' in column 'genus' is not a name"),
    "an empty line of ranks": ("family,genus,common\nCanidae,Canis,\n,,wolf\n", "line 3: has no value of a rank"),
    "a node of two ranks": ("order,family,genus\nA,B,\nA,,B\n", "'A/B' has two ranks"),
    "64 ranks": (
        "name,parent\nn0,\n" + "".join(f"n{n},n{n - 1}\n" for n in range(1, 64)),
        "has 64 ranks; the limit is 63",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_one_line(tmp_path, fault):
    text, said = FAULTS[fault]
    with pytest.raises(UniclError) as error:
        read(tmp_path, text)
    assert said in error.value.message
    assert str(tmp_path / "tree.csv") in error.value.message
    assert len(error.value.lines) == 1
    assert error.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("?root=many", "unknown option 'root'; did you mean 'roots'"),
        ("?roots=2", "unknown value roots=2"),
        ("?ranks=family", "ranks names no two columns"),
        ("?ranks=nam,parent", "has no column 'nam'; did you mean 'name'"),
    ],
)
def test_a_faulty_option_is_one_line(tmp_path, options, said):
    with pytest.raises(UniclError, match=said.replace("?", r"\?")):
        read(tmp_path, TREE, options)


def test_a_chain_and_a_comb_of_many_nodes_are_read_in_one_pass(tmp_path):
    """Ranks of a deep chain are refused, not counted pair by pair; a wide tree in any order of its lines is sound."""
    with pytest.raises(UniclError, match="has 30,000 ranks"):
        read(tmp_path, "name,parent\nn0,\n" + "".join(f"n{n},n{n - 1}\n" for n in range(1, 30_000)))
    lines = [f"n{n},n{(n - 1) // 3}" for n in range(1, 3000)] + ["n0,"]
    random.Random(0).shuffle(lines)
    found = read(tmp_path, "name,parent\n" + "\n".join(lines))
    assert len(found.nodes) == 3000
    assert all(len(found.above(f"n{n}")) == int(found.nodes[f"n{n}"].rank.split()[1]) for n in range(3000))
