"""Reader of pickles of plain values and uint8 arrays, which interprets them itself and calls nothing that they name."""

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

MAX_INSTRUCTIONS = 2_000_000
"""The longest official member, of 50,000 images, has about 350,000."""
MAX_MARKS = 64
MAX_AXES = 32
_NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy.core.numeric _frombuffer": "buffer",
    "numpy._core.numeric _frombuffer": "buffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",  # so Python 3 writes bytes in protocols 0 to 2
    "__builtin__ bytes": "empty",
}
"""The names in numpy's pickles of arrays and what each stands for here; none is ever looked up."""
_UINT8 = ("u1", "|u1", "uint8", b"u1", b"|u1", b"uint8")


class _Name(NamedTuple):
    role: str


class _Type(NamedTuple):
    """The type of an array: always uint8."""


class _Array:
    """An array whose content comes after it."""

    def __init__(self, values: Any = None) -> None:
        self.values = values


class _Machine:
    """The state of a reader: a stack with marks, a memo, and how many bytes may still be made from texts."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def mark(self) -> None:
        if len(self.marks) == MAX_MARKS:
            raise pickle.UnpicklingError(f"its pickle is nested more than {MAX_MARKS} levels deep")
        self.marks.append(len(self.stack))

    def cut(self) -> list[Any]:
        """Take all values above the last mark from the stack."""
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def take(self, count: int) -> tuple[Any, ...]:
        """Take the last ``count`` values from the stack."""
        return tuple(reversed([self.stack.pop() for _ in range(count)]))

    def extend(self, values: Sequence[Any]) -> None:
        """Append values to the list on the stack."""
        if not isinstance(self.stack[-1], list):
            raise TypeError("values are appended to what is not a list")
        self.stack[-1].extend(values)

    def keep(self, number: int) -> None:
        """Remember the last value under a number."""
        self.memo[number] = self.stack[-1]

    def fill(self, pairs: Sequence[Any]) -> None:
        """Put keys and values, one after the other, into the dictionary on the stack."""
        if not isinstance(self.stack[-1], dict):
            raise TypeError("values are set in what is not a dictionary")
        if not all(isinstance(key, str | bytes | int) for key in pairs[::2]):
            raise ValueError("a key is neither a string nor a number")  # the hash of nested tuples may take for ever
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def push_dict(self, pairs: Sequence[Any]) -> None:
        """Put a dictionary of keys and values onto the stack."""
        self.stack.append({})
        self.fill(pairs)

    def name(self, name: str) -> None:
        if name not in _NAMES:
            shown = name.replace(" ", ".")[:80]
            raise pickle.UnpicklingError(f"its pickle would load {shown}, which could run any code")
        self.stack.append(_Name(_NAMES[name]))

    def call(self) -> None:
        name, arguments = self.take(2)
        make = _MAKERS.get(name.role if isinstance(name, _Name) else "")
        if make is None:
            raise ValueError("a value is called that is not a function")
        made = make(*arguments)
        if isinstance(made, bytes):
            self.left -= len(made)
            if self.left < 0:
                raise pickle.UnpicklingError("its pickle makes more bytes than it holds")
        self.stack.append(made)

    def set_state(self) -> None:
        (state,) = self.take(1)
        made = self.stack[-1]
        if isinstance(made, _Array) and made.values is None:
            _, shape, kind, in_columns, content = state
            made.values = _values_of(content, kind, shape, "F" if in_columns else "C")
        elif not isinstance(made, _Type) or tuple(state[1:5]) not in ((o, None, None, None) for o in ("|", b"|")):
            raise ValueError("a value has a state that it cannot have")


def _begin_array(kind: Any, shape: Any, code: Any) -> _Array:
    del kind, shape, code  # numpy writes placeholders: the state has the real ones
    return _Array()


def _type_of(name: Any, *flags: Any) -> _Type:
    del flags
    if name not in _UINT8:
        shown = repr(name[:20]) if isinstance(name, str | bytes) else "unknown"
        raise pickle.UnpicklingError(f"it has an array of type {shown}, where only uint8 belongs")
    return _Type()


def _values_of(content: Any, kind: Any, shape: Any, order: Any) -> Any:
    sound = isinstance(content, bytes | bytearray) and isinstance(kind, _Type) and order in ("C", "F")
    if not sound or not isinstance(shape, tuple) or len(shape) > MAX_AXES:
        raise ValueError("an array has no bytes, type or shape")
    sides = [side for side in shape if type(side) is int and side >= 0]
    if len(sides) != len(shape) or math.prod(sides) != len(content):
        raise ValueError("the bytes of an array do not fill its shape")
    return np.frombuffer(content, np.uint8).reshape(sides, order=order)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes are written in another encoding than latin1")
    return text.encode("latin1")


_MAKERS: Mapping[str, Callable[..., Any]] = {
    "array": _begin_array,
    "buffer": lambda *state: _Array(_values_of(*state)),
    "dtype": _type_of,
    "encode": _encode,
    "empty": lambda: b"",
}
_PUSHES = (
    *("BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING")
"""Instructions for the strings of Python 2, which are bytes."""
_ACTIONS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, value: None,
    "FRAME": lambda m, value: None,
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), lambda m, value: m.stack.append(_check_number(value))),
    **dict.fromkeys(_PUSHES, lambda m, value: m.stack.append(value)),
    **dict.fromkeys(_BYTES, lambda m, value: m.stack.append(value.encode("latin-1"))),
    "MARK": lambda m, value: m.mark(),
    "POP": lambda m, value: m.take(1),
    "NONE": lambda m, value: m.stack.append(None),
    "NEWTRUE": lambda m, value: m.stack.append(True),
    "NEWFALSE": lambda m, value: m.stack.append(False),
    "EMPTY_DICT": lambda m, value: m.stack.append({}),
    "EMPTY_LIST": lambda m, value: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, value: m.stack.append(()),
    "LIST": lambda m, value: m.stack.append(m.cut()),
    "TUPLE": lambda m, value: m.stack.append(tuple(m.cut())),
    "TUPLE1": lambda m, value: m.stack.append(m.take(1)),
    "TUPLE2": lambda m, value: m.stack.append(m.take(2)),
    "TUPLE3": lambda m, value: m.stack.append(m.take(3)),
    "DICT": lambda m, value: m.push_dict(m.cut()),
    "SETITEM": lambda m, value: m.fill(m.take(2)),
    "SETITEMS": lambda m, value: m.fill(m.cut()),
    "APPEND": lambda m, value: m.extend(m.take(1)),
    "APPENDS": lambda m, value: m.extend(m.cut()),
    "GLOBAL": lambda m, value: m.name(value),
    "STACK_GLOBAL": lambda m, value: m.name(" ".join(m.take(2))),
    "REDUCE": lambda m, value: m.call(),
    "BUILD": lambda m, value: m.set_state(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, value: m.keep(value)),
    "MEMOIZE": lambda m, value: m.keep(len(m.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, value: m.stack.append(m.memo[value])),
}
"""The instructions that pickles of plain values and arrays have; all others are refused."""


def _check_number(value: Any) -> Any:
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a number has more than 64 bits")
    return value


_STEPS = {
    op.code.encode("latin-1"): (None if op.arg is None else op.arg.reader, _ACTIONS.get(op.name), op.name)
    for op in pickletools.opcodes
}
"""Code -> reader of its argument, action (None: refused), name."""


def _interpret(data: bytes) -> Any:
    machine, stream = _Machine(len(data)), io.BytesIO(data)  # each text becomes bytes once
    for _ in range(MAX_INSTRUCTIONS):
        code = stream.read(1)
        if code == b".":
            (found,) = machine.stack
            return found
        reader, act, name = _STEPS[code]
        if act is None:
            raise pickle.UnpicklingError(f"its pickle has the instruction {name}, which plain values do not need")
        act(machine, None if reader is None else reader(stream))
    raise pickle.UnpicklingError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")


def load_plain(data: bytes) -> dict[str, Any]:
    """Return a pickled dictionary of plain values, with its keys as text (Python 2 wrote bytes).

    Arrays must be uint8. UnpicklingError for other values, for a damaged pickle, for two keys of
    one text, and for anything but a dictionary.
    """
    try:
        found = _interpret(data)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle raises anything: EOFError, KeyError, IndexError, ValueError, ...
        raise pickle.UnpicklingError(f"damaged pickle: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"pickled {type(found).__name__} instead of a dictionary")
    items = cast("dict[str | bytes | int, Any]", found).items()
    plain: dict[str, Any] = {}
    for key, of in items:
        name = _text_of(key)
        if name in plain:
            raise pickle.UnpicklingError(
                f"its pickle has the key '{name[:40]}' twice, as text and as bytes or a number"
            )
        plain[name] = of.values if isinstance(of, _Array) else of
    return plain


def _text_of(key: str | bytes | int) -> str:
    return key.decode("ascii", "replace") if isinstance(key, bytes) else str(key)
