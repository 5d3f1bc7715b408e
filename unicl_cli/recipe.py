"""A run as one file: the typed recipe, its layers (`extends`, overrides), its text and its hash."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from unicl_cli import registry
from unicl_cli.contracts import Part
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.problems import Loc, PartError, Problem, problems_of, show
from unicl_cli.sections import (
    AS_LIST,
    BatchSize,
    BoundPart,
    Checkpoint,
    Count,
    Data,
    Ema,
    Eval,
    Guard,
    Log,
    ModelSection,
    Optim,
    Parallel,
    Positive,
    Schedule,
    Section,
)
from unicl_cli.yaml_lines import Lined, parse, read_value, write

LENGTHS = ("steps", "epochs", "samples")
"""How long a run is: a recipe has exactly one, and a later layer's replaces an earlier one's."""
DEFAULT_PARTS = {"model": "two_tower", "loss": "unicl", "augment": "basic"}
"""What these sections are when they name nothing."""
MODEL_KEYS = ("tokenizer", "context_length", "init")
"""Keys of `model` that are no options of the encoder it names."""


class Recipe(Section):
    """Everything that a run's numbers depend on; the machine is not in it."""

    version: Literal[1] = 1
    """Of the recipe's schema."""
    name: Annotated[str, Field(pattern=r"^[\w.\-]+$")] = "run"
    """Letters, digits, `-`, `_` and `.`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of everything random."""
    run_dir: Annotated[str, Field(min_length=1)] = "runs/{name}-{hash8}"
    """Where the run is written; `{name}`, `{hash8}` (of the recipe) and `{date}` are filled in."""
    data: Data
    model: ModelSection
    loss: BoundPart
    """The loss with its options."""
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    batch: BatchSize = BatchSize()
    steps: Count | None = None
    """Length of the run: steps, or epochs, or samples."""
    epochs: Positive | None = None
    """Full passes over the mix."""
    samples: Count | None = None
    """Pictures seen."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto = bf16 where the device has it, else fp32."""
    eval: Annotated[tuple[Eval, ...], AS_LIST] = ()
    """Measured during training and at its end."""
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Parallel()
    ema: Ema | None = None
    """null = no average."""
    guard: Guard = Guard()
    deterministic: bool = False
    """Refuse kernels whose result varies from run to run."""
    stages: Annotated[tuple[dict[str, Any], ...], AS_LIST] = ()
    """Stages of the run, each a patch of this recipe; none = one stage, the recipe itself."""

    def stage(self, number: int) -> "Recipe":
        """The recipe of stage ``number``, counted from 0: this one with that patch, without stages."""
        whole = {**as_mapping(self), "stages": []}
        return _checked(Lined(merge(whole, self.stages[number], (), []) if self.stages else whole, {}))


# -- text to recipe -----------------------------------------------------------------------------------------------


def load(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a file or a built-in name, with ``KEY=VALUE`` overrides. Raises UniclError with every problem."""
    return _checked(_overridden(_layers(find(source), ()), overrides))


def load_text(text: str, source: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML text that extends nothing; ``source`` names it in errors."""
    return _checked(_overridden(_mapping(parse(text, source), source), overrides))


def builtin_folder() -> Path:
    """Where the shipped recipes lie: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def builtin_names() -> list[str]:
    """The shipped recipes, sorted."""
    return sorted(path.stem for path in builtin_folder().glob("*.yaml"))


def find(source: str, beside: Path = Path()) -> Path:
    """The file of a recipe: a path, relative to ``beside``, or the name of a shipped one."""
    if (beside / source).is_file():
        return beside / source
    if source in builtin_names():
        return builtin_folder() / f"{source}.yaml"
    hint = f"give a file, or one of {', '.join(builtin_names())}"
    raise UniclError(f"no recipe '{source}'{did_you_mean(source, builtin_names())}", hint)


def read(path: Path) -> str:
    """The text of a recipe file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UniclError(f"{path} cannot be read: {error}", "give a recipe: a text file in YAML") from error


def _mapping(lined: Lined, source: str) -> Lined:
    if not isinstance(lined.data, dict):
        raise UniclError(f"{source}: a recipe is a mapping of keys", "see `unicl recipes show quickstart`")
    return lined


def _layers(path: Path, children: tuple[Path, ...]) -> Lined:
    """The recipe of a file on top of what it extends, at any depth."""
    child = _mapping(parse(read(path), str(path)), str(path))
    data = {key: value for key, value in child.data.items() if key != "extends"}
    parent = child.data.get("extends")
    if parent is None:
        return Lined(data, child.marks)
    place = child.marks["extends",]
    if not isinstance(parent, str):
        raise UniclError(f"{place}: extends: should be a file or the name of a recipe, got {show(parent)}")
    try:
        found = find(parent, path.parent)
    except UniclError as error:
        raise UniclError(f"{place}: extends: {error.message}", error.hint) from error
    if found.resolve() in (known := (*children, path.resolve())):
        raise UniclError(f"{place}: extends: '{parent}' extends itself in a circle")
    return _on_top(_layers(found, known), Lined(data, child.marks))


def _on_top(base: Lined, child: Lined) -> Lined:
    replaced: list[Loc] = []
    data = merge(base.data, child.data, (), replaced)
    return Lined(data, {**_outside(base.marks, replaced), **child.marks})


def _outside(marks: Mapping[Loc, str], replaced: Sequence[Loc]) -> dict[Loc, str]:
    """The marks that still count: those below a replaced value point at lines that no longer do."""
    return {loc: place for loc, place in marks.items() if not any(loc[: len(gone)] == gone for gone in replaced)}


def _is_part(loc: Loc) -> bool:
    inner = loc[2:] if loc[:1] == ("stages",) else loc
    return inner[:1] == ("model",) or inner == ("loss",) or inner[-1:] == ("augment",)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def merge(old: Any, new: Any, loc: Loc, replaced: list[Loc]) -> Any:
    """``new`` on top of ``old``: mappings key by key; scalars, lists and parts of another name replace.

    Appends to ``replaced`` each place below which nothing of ``old`` is left.
    """
    if _is_part(loc) and isinstance(old, str | dict) and isinstance(new, str | dict) and type(old) is not type(new):
        old, new = _named(old), _named(new)
    if not isinstance(old, dict) or not isinstance(new, dict) or (_is_part(loc) and _other_part(old, new, loc)):
        replaced.append(loc)
        return new
    kept = _without_length(old) if not loc and _length_of(new) else old
    added = {k: merge(kept[k], v, (*loc, k), replaced) if k in kept else v for k, v in new.items()}
    return {**kept, **added}


def _other_part(old: Mapping[str, Any], new: Mapping[str, Any], loc: Loc) -> bool:
    return "name" in new and new["name"] != old.get("name", DEFAULT_PARTS.get(str(loc[-1]), new["name"]))


def _length_of(data: Mapping[str, Any]) -> list[str]:
    return [key for key in LENGTHS if data.get(key) is not None]


def _without_length(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in LENGTHS}


def _overridden(lined: Lined, overrides: Sequence[str]) -> Lined:
    for text in overrides:
        key, equals, written = text.partition("=")
        if not key or not equals:
            raise UniclError(f"override '{text}' is not KEY=VALUE", "for example optim.lr=1e-3")
        loc = _loc(lined.data, key, text)
        place = f"command line ({text})"
        value, replaced = read_value(written, place), list[Loc]()
        data = _put(lined.data, loc, 0, value, replaced)
        if loc[0] in LENGTHS and value is not None:
            data = {**_without_length(data), loc[0]: value}
        above = dict.fromkeys([loc[:depth] for depth in range(1, len(loc))], place)  # where the file has nothing
        here = dict.fromkeys(_locs(value, loc), place)
        lined = Lined(data, {**above, **_outside(lined.marks, replaced), **here})
    return lined


def _locs(value: Any, loc: Loc) -> list[Loc]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [loc, *(found for key, item in items for found in _locs(item, (*loc, key)))]


def _loc(data: Any, key: str, text: str) -> Loc:
    loc: list[str | int] = []
    for name in key.split("."):
        if isinstance(data, list):
            if not name.isdecimal() or int(name) >= len(data):
                raise UniclError(f"override '{text}': no '{name}' in a list of {len(data)}", "entries count from 0")
            loc.append(int(name))
            data = data[int(name)]
        else:
            loc.append(name)
            data = data[name] if isinstance(data, dict) and name in data else None
    return tuple(loc)


def _put(old: Any, loc: Loc, depth: int, value: Any, replaced: list[Loc]) -> Any:
    """``old`` with ``value`` merged in at ``loc``; mappings on the way are made where there are none."""
    if depth == len(loc):
        return merge(old, value, loc, replaced)
    at, key = loc[:depth], loc[depth]
    old = {} if old is None else _named(old) if _is_part(at) else old
    if isinstance(old, list):
        return [_put(item, loc, depth + 1, value, replaced) if i == key else item for i, item in enumerate(old)]
    if not isinstance(old, dict):
        raise UniclError(f"command line: {'.'.join(map(str, at))} is {show(old)} and has no '{key}'")
    return {**old, key: _put(old.get(key), loc, depth + 1, value, replaced)}


# -- checks -------------------------------------------------------------------------------------------------------


def _checked(lined: Lined) -> Recipe:
    problems: list[Problem] = []
    recipe = _validated(lined.data, problems)
    if recipe is not None:
        _check_stages(recipe, problems)
    if recipe is None or problems:
        raise UniclError(_report(problems, lined.marks))
    return recipe


def _check_stages(recipe: Recipe, problems: list[Problem]) -> None:
    whole = {**as_mapping(recipe), "stages": []}
    for number, patch in enumerate(recipe.stages):
        at = ("stages", number)
        found: list[Problem] = []
        if "stages" in patch:
            found.append(Problem(("stages",), "a stage has no stages"))
        _validated(merge(whole, {key: value for key, value in patch.items() if key != "stages"}, (), []), found)
        problems += [Problem((*at, *problem.loc), problem.message) for problem in found]


def _validated(data: Mapping[str, Any], problems: list[Problem]) -> Recipe | None:
    """The recipe, or None with the problems appended: those of parts and of sections in one go."""
    body = dict(data)
    if "model" in body:
        body["model"] = _model(body["model"], problems)
    loss: Any = _named(body.get("loss", {}))
    if isinstance(loss, dict):
        loss = {"name": DEFAULT_PARTS["loss"], **loss}
    body["loss"] = _bound("losses", loss, ("loss",), problems)
    if len(lengths := _length_of(data)) != 1:
        loc = (lengths[-1],) if lengths else ()
        problems.append(Problem(loc, f"exactly one of {', '.join(LENGTHS)} is wanted, got {len(lengths)}"))
    try:
        recipe = Recipe.model_validate(body)
    except ValidationError as error:
        problems += problems_of(error, body, Recipe.model_json_schema())
        return None
    if len(recipe.data.augment) not in (1, recipe.data.views):
        problems.append(
            Problem(("data", "augment"), f"{len(recipe.data.augment)} entries, but data.views is {recipe.data.views}")
        )
    return None if problems else recipe


def _model(given: Any, problems: list[Problem]) -> Any:
    model = _named(given)
    if not isinstance(model, dict):
        return given
    model = {"name": DEFAULT_PARTS["model"], **model}
    options = {key: value for key, value in model.items() if key not in MODEL_KEYS}
    part = _bound("encoders", options, ("model",), problems)
    return {**{key: model[key] for key in ("name", *MODEL_KEYS) if key in model}, "part": part}


def _bound(kind: str, given: Any, loc: Loc, problems: list[Problem]) -> Part:
    try:
        return registry.bind(kind, given, loc, MODEL_KEYS if loc == ("model",) else ())
    except PartError as error:
        problems += error.problems
        return Part("", {})  # so that the other sections are checked too


def _report(problems: Sequence[Problem], marks: Mapping[Loc, str]) -> str:
    def line(problem: Problem) -> tuple[str, int, str]:
        loc = problem.loc
        place = next((marks[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in marks), "recipe")
        file, _, number = place.rpartition(":")
        text = f"  {place}: {'.'.join(map(str, loc))}: {problem.message}".replace(": : ", ": ")
        return file, int(number) if number.isdecimal() else 0, text

    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the recipe"
    return "\n".join([count, *(text for *_, text in sorted(map(line, problems)))])


def check_corpora(recipe: Recipe) -> None:
    """Raises UniclError unless each corpus of the recipe is there, whole, and has the split that is asked for."""
    wanted = [(item.corpus, item.split) for item in recipe.data.train] + [(x.corpus, x.split) for x in recipe.eval]
    for corpus, split in dict.fromkeys(wanted):
        manifest = Path(corpus) / "manifest.json"
        try:
            shards = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
            splits = sorted({str(shard["split"]) for shard in shards})
        except FileNotFoundError as error:
            raise UniclError(f"no finished corpus at {corpus}", f"unicl prepare … -o {corpus}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UniclError(f"{manifest} cannot be read: {error}", "prepare the corpus again") from error
        if not set(splits) & ({split} if split else {"test", "val"}):
            raise UniclError(
                f"corpus {corpus} has no split '{split or 'test or val'}'{did_you_mean(split or 'test', splits)}",
                f"its splits are {', '.join(splits)}",
            )


def check_shares(recipe: Recipe, world: int) -> None:
    """Raises UniclError unless ``world`` processes can share a batch equally."""
    if recipe.batch.size % world:
        raise UniclError(
            f"batch.size {recipe.batch.size} cannot be shared by {world} processes", f"use a multiple of {world}"
        )


# -- recipe to text -----------------------------------------------------------------------------------------------


def as_mapping(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a recipe file says it, every default written out."""
    whole: dict[str, Any] = registry.plain(recipe.model_dump(exclude={"model": {"part"}, "loss": True}))
    whole["model"] |= registry.plain(recipe.model.part.options)
    whole["loss"] = {"name": recipe.loss.name, **registry.plain(recipe.loss.options)}
    return {key: whole[key] for key in Recipe.model_fields}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load` of it gives an equal recipe."""
    return write(as_mapping(recipe))


def recipe_hash(recipe: Recipe) -> str:
    """sha256 (hex) of what a run's numbers depend on: all but run_dir, log, data.workers, checkpoint, parallel."""
    whole = as_mapping(recipe)
    del whole["data"]["workers"]
    kept = {key: value for key, value in whole.items() if key not in ("run_dir", "log", "checkpoint", "parallel")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def run_path(recipe: Recipe) -> Path:
    """`run_dir` with its placeholders filled in."""
    filled = {"{name}": recipe.name, "{hash8}": recipe_hash(recipe)[:8], "{date}": date.today().isoformat()}
    path = recipe.run_dir
    for placeholder, text in filled.items():
        path = path.replace(placeholder, text)
    return Path(path)


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    whole = Recipe.model_json_schema()
    whole["properties"]["extends"] = {"type": "string", "description": "A recipe (file or name) that this one changes."}
    whole["required"] = []  # what a recipe extends may have them
    return whole
