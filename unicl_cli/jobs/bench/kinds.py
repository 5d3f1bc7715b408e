"""The kinds of `unicl bench`, the options of each, and the check of a request."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from unicl_cli.errors import UniclError, did_you_mean

PEER = "open_clip"


class Kind(NamedTuple):
    """A kind of benchmark: ``line`` describes it, ``takes`` lists its options besides the common ones.

    ``peer``: open_clip can run the same. ``recipe``: it can measure a recipe's own data and model.
    """

    line: str
    rounds: int
    takes: tuple[str, ...] = ()
    peer: bool = True
    recipe: bool = False


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "loader": Kind(
            "From JPEG bytes to augmented images and batches.", 7, ("batch", "model", "precision"), recipe=True
        ),
        "step": Kind(
            "One update: forward, loss, backward, clip, AdamW.", 5, ("batch", "model", "precision"), recipe=True
        ),
        "text": Kind("The text tower, forward and backward.", 5, ("batch", "classes", "model", "precision")),
        "loss": Kind("The loss alone as the batch grows: time and memory.", 5, ("sizes", "processes", "precision")),
        "switches": Kind("The gain of each speed switch.", 3, ("batch", "model", "precision"), peer=False),
        "eval": Kind("The zero-shot classifier, and image features.", 5, ("batch", "classes", "model")),
        "sampler": Kind("Drawing a batch's rows as the corpus grows.", 5, ("batch", "sizes"), peer=False),
        "probe": Kind("The probe's solver against scikit-learn's.", 3, peer=False),
        "start": Kind("Startup of the command line.", 7),
    }
)
WITH_RECIPE = ("batch", "model", "precision", "vs", "only")
"""Options that exclude a recipe, which settles them itself."""


class Request(NamedTuple):
    """The options of the command line; None or empty: the kind's default."""

    kind: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    vs: str | None = None
    rounds: int | None = None
    threads: int = 1
    devices: str = "auto"
    precision: str | None = None
    batch: int | None = None
    model: str | None = None
    sizes: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    processes: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    every: bool = False
    peak: bool = True

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Request":
        """Build a request from JSON, which has lists for tuples."""
        found: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in values.items()}
        return cls(**found)


def check_request(request: Request) -> Request:
    """Return ``request``. Raise UniclError for an unknown value or an option that the kind does not take."""
    if request.kind not in KINDS:
        raise UniclError(
            f"bench: unknown kind '{request.kind}'{did_you_mean(request.kind, KINDS)}", f"use {', '.join(KINDS)}"
        )
    kind = KINDS[request.kind]
    if request.vs is not None and request.vs != PEER:
        raise UniclError(f"--vs {request.vs}: unknown{did_you_mean(request.vs, [PEER])}", f"use --vs {PEER}")
    if request.vs is not None and not kind.peer:
        able = ", ".join(name for name, each in KINDS.items() if each.peer)
        raise UniclError(f"bench {request.kind}: {PEER} has no counterpart", f"use --vs with {able}")
    for option in ("batch", "model", "precision", "sizes", "classes", "processes"):
        if getattr(request, option) and option not in kind.takes:
            takers = ", ".join(name for name, each in KINDS.items() if option in each.takes)
            raise UniclError(f"bench {request.kind}: does not take --{option}", f"use --{option} with {takers}")
    if request.recipe is not None:
        _check_recipe(request, kind)
    if request.precision not in (None, "fp32", "bf16"):
        raise UniclError(f"--precision {request.precision}: unknown", "use fp32 or bf16")
    return request


def _check_recipe(request: Request, kind: Kind) -> None:
    if not kind.recipe:
        takers = ", ".join(name for name, each in KINDS.items() if each.recipe)
        raise UniclError(f"bench {request.kind}: does not take a recipe (given: '{request.recipe}')", f"use {takers}")
    for option in WITH_RECIPE:
        if getattr(request, option):
            message = f"bench {request.kind} {request.recipe}: --{option} cannot be combined with a recipe"
            raise UniclError(message, f"remove --{option}, or remove the recipe")


def parse_counts(option: str, text: str | None, least: int = 1) -> tuple[int, ...]:
    """Return the integers of ``256,1024,64k,1e6`` (k: 1,024)."""
    found: list[int] = []
    for word in (text or "").split(","):
        if not word.strip():
            continue
        digits, factor = (word.strip()[:-1], 1024) if word.strip().endswith("k") else (word.strip(), 1)
        try:
            value = float(digits) * factor
        except ValueError:
            value = -1.0
        if value < least or value != int(value):
            raise UniclError(
                f"--{option} {text}: '{word}' is not a whole number of at least {least}",
                f"give numbers such as --{option} 1,2 or 64k",
            )
        found.append(int(value))
    return tuple(found)


def choose_rows(request: Request, names: Sequence[str]) -> list[str]:
    """Return the rows that --only names, or all of them."""
    for name in request.only:
        if name not in names:
            raise UniclError(f"--only {name}: unknown row{did_you_mean(name, names)}", f"use {', '.join(names)}")
    return [name for name in names if not request.only or name in request.only]
