"""Problems of a recipe: pydantic's errors in the words of a recipe, one line per place."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from unicl_cli.errors import UniclError, did_you_mean

if TYPE_CHECKING:  # pydantic costs 80 ms, which `unicl --help` does not pay
    from pydantic import ValidationError

OTHER_WORDS = {"learning_rate": "lr", "dataset": "corpus", "resolution": "image_size", "wd": "weight_decay"}
"""Words of other tools -> the last name of a key here."""
Loc = tuple[str | int, ...]
"""Place of a value in nested data: `("data", "train", 0, "corpus")`."""


class RecipeProblem(NamedTuple):
    """One problem, at ``loc`` of a recipe."""

    loc: Loc
    message: str


class PartError(UniclError):
    """Options that a part does not accept; ``problems`` has each one with its place."""

    def __init__(self, problems: list[RecipeProblem]) -> None:
        lines = [f"{'.'.join(map(str, problem.loc))}: {problem.message}".lstrip(": ") for problem in problems]
        super().__init__("; ".join(lines))
        self.problems = problems


def quote_value(value: Any) -> str:
    """Return a value as text for a message, cut after 60 characters."""
    text = repr(value) if not isinstance(value, bool | None) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def problems_of(
    error: "ValidationError", raw: Any, schema: Mapping[str, Any], loc: Loc = (), siblings: Iterable[str] = ()
) -> list[RecipeProblem]:
    """Return pydantic's errors in a recipe's words, one per place.

    ``schema`` is the JSON schema of valid data, ``raw`` the data itself, ``loc`` its place in the recipe. ``siblings``
    are further valid keys, for the did-you-mean.
    """
    faults: dict[Loc, list[Any]] = {}
    for fault in error.errors(include_url=False):
        if fault["type"] == "too_short" and len(fault["input"]) >= fault.get("ctx", {}).get("min_length", 0):
            continue  # its entries are wrong and have their own lines
        faults.setdefault(_strip_union_branches(raw, fault), []).append(fault)
    outer = {
        at[:n] for at in faults for n in range(len(at))
    }  # errors inside a union member say more than those of the union
    return [
        RecipeProblem((*loc, *at), _explain(at, of, schema, siblings)) for at, of in faults.items() if at not in outer
    ]


def _strip_union_branches(raw: Any, fault: Any) -> Loc:
    """Return the place of a fault without the names of union branches, which pydantic puts into it.

    ``("data", "workers", "constrained-int")`` -> ``("data", "workers")``: a key counts only where ``raw`` has it.
    """
    at: list[str | int] = []
    for key in fault["loc"]:
        if (isinstance(raw, dict) and key in raw) or (
            isinstance(raw, list) and isinstance(key, int) and key < len(raw)
        ):
            raw = raw[key]
            at.append(key)
    return (*at, fault["loc"][-1]) if fault["type"] == "missing" else tuple(at)


def _explain(at: Loc, faults: list[Any], schema: Mapping[str, Any], siblings: Iterable[str]) -> str:
    """Return one message for all faults at one place."""
    kinds = {fault["type"]: fault for fault in faults}
    if kinds.keys() & {"extra_forbidden", "unexpected_keyword_argument"}:
        known = _keys_at(schema, at[:-1])
        word = str(at[-1])
        return "unknown key" + (
            name_keys_below(word, schema, 1.0)
            or did_you_mean(word, [*known, *siblings] if len(at) == 1 else known)
            or name_keys_below(word, schema)
        )
    if "missing" in kinds:
        return "is missing"
    if set(kinds) == {"literal_error"}:
        choices = [part.strip("'") for part in faults[0]["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        given = faults[0]["input"]
        return f"{quote_value(given)} is not one of {', '.join(choices)}{did_you_mean(str(given), choices)}"
    said = dict.fromkeys(_reword(fault["msg"]) for fault in faults)
    expected = " or ".join([next(iter(said)), *(text.removeprefix("should be ") for text in list(said)[1:])])
    return f"{expected}, got {quote_value(faults[0]['input'])}"


def _reword(text: str) -> str:
    """Return a message of pydantic with the words of YAML: `should be a valid dictionary` -> `should be a mapping`."""
    text = re.sub(r"^(Input|String|List|Tuple|Dictionary) |^Value error, | after validation, not \d+", "", text)
    text = re.sub(r"a valid (dictionary|mapping)( or instance of \w+)?|an instance of \w+|an object", "a mapping", text)
    return re.sub(r"valid (tuple|list|array)", "list", text)


def _keys_at(schema: Mapping[str, Any], loc: Loc) -> list[str]:
    """Return the keys that the schema allows at ``loc``."""
    places = _branches(schema, schema)
    for key in loc:
        below = [
            place["items"] if isinstance(key, int) else place["properties"][key]
            for place in places
            if (isinstance(key, int) and "items" in place) or key in place.get("properties", {})
        ]
        places = [place for item in below for place in _branches(item, schema)]
    return [key for place in places for key in place.get("properties", {})]


def name_keys_below(word: str, schema: Mapping[str, Any], cutoff: float = 0.75) -> str:
    """Return the did-you-mean with the whole keys of ``schema`` whose last name, or last two, are nearest to ``word``.

    ``image_size`` -> `data.image_size`, ``batch_size`` -> `batch.size`; an entry of a list is numbered 0.
    """
    ends: dict[str, list[str]] = {}
    for path in _paths_below(schema, schema):
        names = [name for name in path if not name.isdecimal()]
        for count in (1, 2):
            ends.setdefault("_".join(names[-count:]), []).append(".".join(path))
    word = word.replace("-", "_")
    near = difflib.get_close_matches(OTHER_WORDS.get(word, word), list(ends), 1, cutoff)
    if not near:
        return ""
    *others, last = [f"'{key}'" for key in dict.fromkeys(ends[near[0]])]
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def _paths_below(place: Mapping[str, Any], schema: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield the path of each value and of each nested mapping below a place of the schema."""
    for branch in _branches(place, schema):
        if "items" in branch:  # `augment` may be written without its list
            yield from _paths_below(branch["items"], schema, at if at[-1:] == ("augment",) else (*at, "0"))
        for key, item in branch.get("properties", {}).items():
            below = list(_paths_below(item, schema, (*at, key)))
            yield from ([[*at, key]] if at or not below else [])
            yield from below


def _branches(place: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a place of the schema and all members of its unions, references resolved."""
    if "$ref" in place:
        return _branches(schema["$defs"][place["$ref"].rpartition("/")[2]], schema)
    choices = [choice for word in ("anyOf", "oneOf", "allOf") for choice in place.get(word, ())]
    return [place, *(found for choice in choices for found in _branches(choice, schema))]
