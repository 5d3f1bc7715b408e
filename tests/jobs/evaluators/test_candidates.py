import pytest

from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.jobs.evaluators.candidates import choose_candidates
from unicl_cli.jobs.evaluators.options import parse_candidates

CORPUS = (ClassName("n01", ("tench",)), ClassName("b", ("Sea lion", "otary")))


def named(chosen):
    return [each.names[0] for each in chosen.classes]


def test_a_class_of_both_is_one_candidate_by_key_or_by_name():
    model = (
        ClassName("n01", ("fish",)),
        ClassName("x", ("OTARY",)),
        ClassName("b2", ("cat",)),
        ClassName("c", ("dog",)),
    )
    chosen = choose_candidates(CORPUS, model, "all")
    assert (named(chosen), chosen.in_corpus, chosen.further) == (["tench", "Sea lion", "cat", "dog"], 2, ["cat", "dog"])
    assert chosen.allowed == (True,) * 4
    (told,) = chosen.warnings
    assert "n01 is 'tench' here and 'fish' there" in told


def test_the_corpus_alone_and_a_model_without_classes_give_the_classes_of_the_corpus():
    model = (ClassName("c", ("dog",)),)
    for chosen in (choose_candidates(CORPUS, model, "corpus"), choose_candidates(CORPUS, (), "all")):
        assert (named(chosen), chosen.further, chosen.warnings) == (["tench", "Sea lion"], [], ())


def test_classes_of_other_groups_and_those_above_are_no_rivals():
    """A red circle is a circle too: answering so would not be wrong."""
    model = (
        ClassName("seals", ("sea lion",), "species", "mammals"),
        ClassName("n01", ("tench",), "species", "mammals"),
        ClassName("wolves", ("wolf",), "species", "mammals"),
        ClassName("mammals", ("mammal",), "class"),
    )
    assert choose_candidates(CORPUS, model, "all").further == ["wolf"]
    assert len(choose_candidates(CORPUS, model[1:], "all").further) == 2, "the model does not know all of them"
    strangers = tuple(item._replace(key=f"x{item.key}", names=(f"x{item.names[0]}",)) for item in model)
    assert len(choose_candidates(CORPUS, strangers, "all").further) == 4


def test_a_list_takes_classes_of_the_corpus_of_the_model_and_new_ones():
    model = (ClassName("c", ("dog", "hound")), ClassName("d", ("cat",)))
    chosen = choose_candidates(CORPUS, model, ("sea lion", "Hound", "umbrella"))
    assert named(chosen) == ["tench", "Sea lion", "dog", "umbrella"]
    assert chosen.allowed == (False, True, True, True)


def test_a_list_without_a_class_of_the_corpus_is_refused():
    with pytest.raises(UniclError, match="--candidates umbrella: none of them is a class of the corpus") as caught:
        choose_candidates(CORPUS, (), ("umbrella",))
    assert "tench" in str(caught.value.hint)


def test_the_option_is_a_word_or_a_list(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert [parse_candidates(spec) for spec in ("all", "corpus", 'a,"b, c"')] == ["all", "corpus", ("a", "b, c")]
    assert parse_candidates(f"@{tmp_path / 'names.txt'}") == ("cat", "dog")
    with pytest.raises(UniclError, match="--candidates ,: "):
        parse_candidates(",")
