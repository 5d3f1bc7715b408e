"""Parser of JSON from outside: bounded in depth, and strict about NaN and Unicode."""

import json
import re
from collections.abc import Callable
from itertools import chain
from typing import Any, NoReturn

MAX_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def parse_json(
    data: bytes | str,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant: Callable[[str], Any] = _refuse_constant,
    *,
    surrogates: bool = False,
) -> Any:
    """Return the value of a JSON text; ``pairs`` makes the value of an object, as ``json.loads``'s object_pairs_hook.

    ``constant`` gives the values of NaN and Infinity, which are refused without it. ValueError if the text is not JSON
    in UTF-8, has half a surrogate pair or a number of thousands of digits, or is nested more than 64 levels deep. With
    ``surrogates``, halves of pairs are allowed: they stand for the bytes of a file name that is not UTF-8.
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_constant=constant, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):  # Python's advice is for programmers
            raise ValueError("a number has too many digits") from None
        raise
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    if not surrogates and _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # half a pair cannot be written anywhere: UnicodeEncodeError
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        children = chain.from_iterable(part.values() if isinstance(part, dict) else part for part in level)
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            return False
    return True
