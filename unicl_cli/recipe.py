"""A run as one file: the typed recipe, its layers (`extends`, overrides), its text and its hash."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from glob import escape
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from unicl_cli import registry
from unicl_cli.contracts import Part
from unicl_cli.errors import UniclError, did_you_mean
from unicl_cli.layers import DEFAULT_PARTS, LENGTHS, find, layered, length_of, merge, named, only_mapping, overridden
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
from unicl_cli.yaml_lines import Lined, leaves, parse, write, write_noted

MODEL_KEYS = ("tokenizer", "context_length", "init", "init_parts")
"""Keys of `model` that are no options of the encoder it names."""

WAY_OUT = "unicl recipes show quickstart shows every key with its value, unicl plugins show KIND NAME a part's options"


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
    return _checked(overridden(layered(find(source)), overrides))


def load_text(text: str, source: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML text that extends nothing; ``source`` names it in errors."""
    return _checked(overridden(only_mapping(parse(text, source), source), overrides))


# -- checks -------------------------------------------------------------------------------------------------------


def _checked(lined: Lined) -> Recipe:
    problems: list[Problem] = []
    recipe = _validated(lined.data, problems)
    if recipe is not None:
        _check_stages(recipe, problems)
    if recipe is None or problems:
        raise UniclError(_report(problems, lined.marks), WAY_OUT)
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
    loss: Any = named(body.get("loss", {}))
    if isinstance(loss, dict):
        loss = {"name": DEFAULT_PARTS["loss"], **loss}
    body["loss"] = _bound("losses", loss, ("loss",), problems)
    if len(lengths := length_of(data)) != 1:
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
    if recipe.checkpoint.best is not None and not recipe.eval:
        problems.append(Problem(("checkpoint", "best"), "is a figure of the first entry of eval, and there is none"))
    return None if problems else recipe


def _model(given: Any, problems: list[Problem]) -> Any:
    model = named(given)
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


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in ``a``, value in ``b``) where they differ; None where one has no such key."""
    one, two = leaves(a), leaves(b)
    return {key: (one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)}


def as_mapping(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a recipe file says it, every default written out."""
    whole: dict[str, Any] = registry.plain(recipe.model_dump(exclude={"model": {"part"}, "loss": True}))
    whole["model"] |= registry.plain(recipe.model.part.options)
    whole["loss"] = {"name": recipe.loss.name, **registry.plain(recipe.loss.options)}
    return {key: whole[key] for key in Recipe.model_fields}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load` of it gives an equal recipe."""
    return write(as_mapping(recipe))


def explained(source: str, overrides: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML, with a comment at each value: its file and line, the command line, or default."""
    lined = overridden(layered(find(source)), overrides)
    return write_noted(as_mapping(_checked(lined)), lambda loc: _origin(loc, lined))


def _origin(loc: Loc, lined: Lined) -> str:
    alone = tuple(key for n, key in enumerate(loc) if not (key == 0 and loc[n - 1] == "augment"))  # one for all views
    bare = [way[:-1] for way in (loc, alone) if way[-1] == "name"]
    named_only = [way for way in bare if "name" in named(_at(lined.data, way) or {})]
    return next((lined.marks[way] for way in (loc, alone, *named_only) if way in lined.marks), "default")


def _at(data: Any, loc: Loc) -> Any:
    for key in loc:
        items: dict[Any, Any] = (
            data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
        )
        data = items.get(key)
    return data


def numbers(recipe: Recipe) -> dict[str, Any]:
    """What a run's numbers depend on: not run_dir, log, checkpoint, parallel, nor workers, decoder and batch.micro."""
    whole = as_mapping(recipe)
    del whole["data"]["workers"], whole["data"]["decoder"], whole["batch"]["micro"]
    return {key: value for key, value in whole.items() if key not in ("run_dir", "log", "checkpoint", "parallel")}


def recipe_hash(recipe: Recipe) -> str:
    """sha256 (hex) of ``numbers``."""
    return hashlib.sha256(json.dumps(numbers(recipe), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def run_path(recipe: Recipe) -> Path:
    """`run_dir` with its placeholders filled in; with `{date}` the newest unfinished run of this recipe, if any."""
    today = date.today().isoformat()
    if "{date}" in recipe.run_dir:
        pattern = Path(_filled(escape(recipe.run_dir), recipe, "????-??-??"))
        for old in sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))), reverse=True):
            if _continues(recipe, old):
                return old
    return Path(_filled(recipe.run_dir, recipe, today))


def _filled(text: str, recipe: Recipe, day: str) -> str:
    for placeholder, value in (("name", recipe.name), ("hash8", recipe_hash(recipe)[:8]), ("date", day)):
        text = text.replace(f"{{{placeholder}}}", value)
    return text


def _continues(recipe: Recipe, run: Path) -> bool:
    """Is ``run`` an unfinished training of this recipe?"""
    first = run / "stage-1" if len(recipe.stages) > 1 else run
    try:
        same = recipe_hash(load(str(first / "resolved.yaml"))) == recipe_hash(recipe.stage(0))
    except UniclError:
        return False
    return same and not (run / "meta.json").is_file()


def stages_of(recipe: Recipe, run: Path) -> list[tuple[Recipe, Path, str | None]]:
    """(recipe, directory, model to start from) of each stage: the last one is the run, those before lie inside it."""
    count = len(recipe.stages)
    if count < 2:
        return [(recipe.stage(0) if count else recipe, run, recipe.model.init)]
    folders = [run / f"stage-{n + 1}" for n in range(count - 1)] + [run]
    starts = [recipe.model.init, *(str(folder) for folder in folders[:-1])]
    return [(recipe.stage(n), folders[n], starts[n]) for n in range(count)]


def is_finished(recipe: Recipe, run: Path) -> bool:
    """Has the recipe been trained to its end there? UniclError where another one has begun in one of its folders."""
    for stage, folder, _ in stages_of(recipe, run):
        check_same(stage, folder)
    return (run / "meta.json").is_file()


def check_same(recipe: Recipe, run: Path) -> None:
    """A run directory holds one recipe: what changes its numbers needs another directory."""
    written = run / "resolved.yaml"
    if not any(run.glob("checkpoints/step-*")) and not (run / "meta.json").is_file():
        return  # what failed before its first checkpoint has left nothing to mix with
    other = changes(numbers(load(str(written))), numbers(recipe)) if written.is_file() else {}
    if not other:
        return
    listed = ", ".join(f"{key}: {show(then)} -> {show(now)}" for key, (then, now) in other.items())
    raise UniclError(f"{run}: was trained with another recipe ({listed})", "give another --run-dir, or the old recipe")


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    whole = Recipe.model_json_schema()
    whole["properties"]["extends"] = {"type": "string", "description": "A recipe (file or name) that this one changes."}
    whole["required"] = []  # what a recipe extends may have them
    return whole
