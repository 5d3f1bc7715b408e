"""Typed recipes from files and YAML text, with every problem reported at its line."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from unicl_cli import binding
from unicl_cli.contracts import Part
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of
from unicl_cli.problems import Loc, PartError, RecipeProblem, problems_of, quote_value
from unicl_cli.recipe.layers import (
    DEFAULT_PARTS,
    LENGTHS,
    Override,
    apply_overrides,
    as_part_mapping,
    find_recipe,
    length_keys,
    merge,
    read_layers,
    require_mapping,
)
from unicl_cli.recipe.schema import FIGURES, Recipe
from unicl_cli.recipe.text import as_mapping
from unicl_cli.yaml_lines import MarkedYaml, parse_yaml, write_commented_yaml

MODEL_KEYS = ("tokenizer", "context_length", "init", "init_parts")
"""Keys of `model` that are not options of the encoder it names."""

WHOLE_RUN = ("run_dir", "precision", "deterministic")
"""Keys that a stage cannot change."""

WAY_OUT = (
    "run unicl recipes show quickstart --resolved to see every key, "
    "unicl plugins show KIND NAME to see the options of a part"
)


# -- text to recipe -----------------------------------------------------------------------------------------------


def load(source: str, overrides: Sequence[Override] = ()) -> Recipe:
    """Load a recipe by file or shipped name, with changes on top. Raises UniclError with every problem."""
    return validate_recipe(apply_overrides(read_layers(find_recipe(source)), overrides))


def load_text(text: str, source: str = "recipe", overrides: Sequence[Override] = ()) -> Recipe:
    """Load a recipe from YAML text that extends nothing; ``source`` names it in errors."""
    return validate_recipe(apply_overrides(require_mapping(parse_yaml(text, source), source), overrides))


# -- checks -------------------------------------------------------------------------------------------------------


def validate_recipe(lined: MarkedYaml) -> Recipe:
    """Return the typed recipe. Raises UniclError with every problem at its line."""
    problems: list[RecipeProblem] = []
    recipe = _validate_data(lined.data, problems)
    if recipe is not None:
        _check_stages(recipe, problems)
    if recipe is None or problems:
        raise UniclError(
            f"{count_of(len(problems), 'problem')} in the recipe",
            WAY_OUT,
            details=format_problems(problems, lined.marks),
        )
    return recipe


def _check_stages(recipe: Recipe, problems: list[RecipeProblem]) -> None:
    """Append the problems of each stage to ``problems``."""
    whole = {**as_mapping(recipe), "stages": []}
    for number, patch in enumerate(recipe.stages):
        at = ("stages", number)
        found: list[RecipeProblem] = []
        if "stages" in patch:
            found.append(RecipeProblem(("stages",), "is not allowed inside a stage"))
        patched, _ = merge(whole, {key: value for key, value in patch.items() if key != "stages"})
        stage = _validate_data(patched, found)
        if stage is not None:
            found += _shared_problems(recipe, stage, first=number == 0)
        problems += [RecipeProblem((*at, *problem.loc), problem.message) for problem in found]


def _shared_problems(recipe: Recipe, stage: Recipe, *, first: bool) -> list[RecipeProblem]:
    """Return a problem for each key of a stage that is the whole run's, which a stage would change without effect."""
    found = [
        RecipeProblem((key,), "is one for all stages: set it outside of stages")
        for key in WHOLE_RUN
        if getattr(stage, key) != getattr(recipe, key)
    ]
    if not first and stage.model.init != recipe.model.init:
        found.append(RecipeProblem(("model", "init"), "a later stage starts from the stage before it"))
    return found


def _validate_data(data: Mapping[str, Any], problems: list[RecipeProblem]) -> Recipe | None:
    """Return the recipe, or None after appending all problems, of parts and of sections."""
    body = dict(data)
    if "model" in body:
        body["model"] = _bind_model(body["model"], problems)
    loss: Any = as_part_mapping(body.get("loss", {}))
    if isinstance(loss, dict):
        loss = {"name": DEFAULT_PARTS["loss"], **loss}
    body["loss"] = _bind_part("losses", loss, ("loss",), problems)
    if isinstance(body.get("eval"), list):
        body["eval"] = [_bind_evaluators(entry, number, problems) for number, entry in enumerate(body["eval"])]
    if len(lengths := length_keys(data)) != 1:
        loc = (lengths[-1],) if lengths else ()
        problems.append(RecipeProblem(loc, f"set exactly one of {', '.join(LENGTHS)} (found {len(lengths)})"))
    try:
        recipe = Recipe.model_validate(body)
    except ValidationError as error:
        problems += problems_of(error, body, Recipe.model_json_schema())
        return None
    problems += _check_together(recipe)
    return None if problems else recipe


def _check_together(recipe: Recipe) -> list[RecipeProblem]:
    """Return the problems of values that are valid one by one, but not together."""
    found: list[RecipeProblem] = []
    views, optim = recipe.data.views, recipe.optim
    augments = {("data", "augment"): recipe.data.augment} | {
        ("data", "train", number, "augment"): item.augment for number, item in enumerate(recipe.data.train)
    }
    for loc, entries in augments.items():
        if entries is not None and len(entries) not in (1, views):
            found.append(RecipeProblem(loc, f"{len(entries)} entries, but data.views is {views}"))
    found += _check_evaluators(recipe)
    if optim.name == "sgd" and optim.nesterov and not optim.momentum:
        found.append(RecipeProblem(("optim", "nesterov"), "needs a momentum above 0 (optim.momentum)"))
    return found


def _check_evaluators(recipe: Recipe) -> list[RecipeProblem]:
    """Return the problems of the evaluators in ``eval``, and of the choice of the best checkpoint by their metrics."""
    found: list[RecipeProblem] = []
    figures: dict[str, None] = {}
    for number, entry in enumerate(recipe.eval):
        names = ["zeroshot", "retrieval"] if entry.evaluators is None else [each.name for each in entry.evaluators]
        if twice := next((name for name in names if names.count(name) > 1), None):
            found.append(
                RecipeProblem(
                    ("eval", number, "evaluators"), f"names {twice} twice: their metrics would have the same names"
                )
            )
        if any(each.name == "zeroshot" and each.options["candidates"] != "all" for each in entry.evaluators or ()):
            problem = "zeroshot takes its candidates from the entry: set them next to evaluators"
            found.append(RecipeProblem(("eval", number, "evaluators"), problem))
        for name in names:
            own = {"zeroshot": FIGURES[:2], "retrieval": FIGURES[2:]}.get(name, (f"{name}_",))
            figures |= dict.fromkeys(own)
    best = recipe.checkpoint.best
    if best is not None and not recipe.eval:
        found.append(RecipeProblem(("checkpoint", "best"), "needs an entry in eval, whose metrics it compares"))
    elif best is not None and not _is_figure(best.metric, figures):
        shown = [f"{name}…" if name.endswith("_") else name for name in figures]
        message = f"{quote_value(best.metric)} is not a metric of eval, whose evaluators give {', '.join(shown)}"
        found.append(RecipeProblem(("checkpoint", "best", "metric"), message))
    return found


def _is_figure(metric: str, figures: Iterable[str]) -> bool:
    """Return True for one of the ``figures``, or one that begins with the name of an evaluator: ``knn_``."""
    return any(metric == name or (name.endswith("_") and metric.startswith(name)) for name in figures)


def _bind_evaluators(entry: Any, number: int, problems: list[RecipeProblem]) -> Any:
    named = entry.get("evaluators") if isinstance(entry, dict) else None
    if not isinstance(named, list):
        return entry
    at = ("eval", number, "evaluators")
    return {**entry, "evaluators": [_bind_part("evaluators", x, (*at, n), problems) for n, x in enumerate(named)]}


def _bind_model(given: Any, problems: list[RecipeProblem]) -> Any:
    model = as_part_mapping(given)
    if not isinstance(model, dict):
        return given
    model = {"name": DEFAULT_PARTS["model"], **model}
    options = {key: value for key, value in model.items() if key not in MODEL_KEYS}
    part = _bind_part("encoders", options, ("model",), problems)
    return {**{key: model[key] for key in ("name", *MODEL_KEYS) if key in model}, "part": part}


def _bind_part(kind: str, given: Any, loc: Loc, problems: list[RecipeProblem]) -> Part:
    try:
        return binding.bind(kind, given, loc, MODEL_KEYS if loc == ("model",) else ())
    except PartError as error:
        problems += error.problems
        return Part("", {})  # a placeholder, so that the other sections are checked too


def format_problems(problems: Sequence[RecipeProblem], marks: Mapping[Loc, str]) -> list[str]:
    """Return one line for each problem, sorted by file and line."""

    def line(problem: RecipeProblem) -> tuple[str, int, str]:
        loc = problem.loc
        place = next((marks[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in marks), "recipe")
        file, _, number = place.rpartition(":")
        text = f"{place}: {'.'.join(map(str, loc))}: {problem.message}".replace(": : ", ": ")
        return file, int(number) if number.isdecimal() else 0, text

    return [text for *_, text in sorted(map(line, problems))]


def check_shares(recipe: Recipe, world: int) -> None:
    """Raise UniclError unless ``world`` processes can share a batch equally."""
    if recipe.batch.size % world:
        raise UniclError(
            f"batch.size {recipe.batch.size} cannot be shared by {count_of(world, 'process')}",
            f"use a multiple of {world}",
        )


# -- recipe to text -----------------------------------------------------------------------------------------------


def explain_values(source: str, overrides: Sequence[Override] = ()) -> str:
    """Return the resolved recipe as YAML with the origin of each value as a comment.

    An origin is a file and line, the command line, or `default`.
    """
    lined = apply_overrides(read_layers(find_recipe(source)), overrides)
    return write_commented_yaml(as_mapping(validate_recipe(lined)), lambda loc: _origin(loc, lined))


def _origin(loc: Loc, lined: MarkedYaml) -> str:
    """Return the place where the value at ``loc`` of the resolved recipe was written, or `default`.

    A file may be shorter than the resolved recipe. ``data.augment.0.name`` is written as ``augment: {name: basic}``
    or as ``augment: basic``, and ``loss.name`` as ``loss: clip``.
    """
    without_index = tuple(key for n, key in enumerate(loc) if not (key == 0 and loc[n - 1] == "augment"))
    spellings = [loc, without_index]
    for spelling in (loc, without_index):
        part = spelling[:-1]
        if spelling[-1] == "name" and "name" in as_part_mapping(_value_at(lined.data, part) or {}):
            spellings.append(part)
    return next((lined.marks[spelling] for spelling in spellings if spelling in lined.marks), "default")


def _value_at(data: Any, loc: Loc) -> Any:
    """Return the value at ``loc`` of nested data, or None."""
    for key in loc:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data
