"""Every recipe is refused with one line, makes its steps, or ends as diverged: border values of every key, together."""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from launching import TINY

from unicl_cli import binding
from unicl_cli.cli import main
from unicl_cli.recipe.text import recipe_json_schema

LEFT = {  # what other tests try: files and networks, the length of a run, minutes of compilation
    *("version", "name", "run_dir", "seed", "extends", "steps", "epochs", "samples", "stages", "parallel.compile"),
    *(
        "data.train.0.corpus",
        "eval.0.corpus",
        "model.init",
        "log.trackers",
        "data.workers",
        "deterministic",
        "precision",
    ),
}
NUMBERS = {"integer": (-1, 0, 1, 2, 3, 7, 16), "number": (-1.0, 0.0, 1e-9, 0.1, 0.5, 1.0, 2, 50.0, 1e9)}
OTHERS = {"boolean": (False, True), "string": ("", "x", "*"), "null": (None,), "object": ({},), "array": ([],)}
LISTED = {"data.train", "data.augment", "eval", "optim.groups"}
"""Lists of which the base has an entry, whose keys are tried too."""
TIMM = {"name": "timm", "model": "resnet10t"}
ENDS = {0: "", 2: "error: ", 3: "error: "}


def nodes(node: dict[str, Any], whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the branches of a schema node, without references."""
    if "$ref" in node:
        node = whole["$defs"][node["$ref"].rpartition("/")[2]]
    for branch in node.get("anyOf", [node]):
        yield from [branch] if branch is node else nodes(branch, whole)


def border_values(node: dict[str, Any], whole: dict[str, Any]) -> list[Any]:
    """Return values at and beyond the borders of a node."""
    found: list[Any] = []
    for branch in nodes(node, whole):
        if "enum" in branch or "const" in branch:
            found += branch.get("enum", [branch.get("const")])
        elif "prefixItems" in branch:
            found += [[0.0, 0.0], [0.5, 1.0], [1.0, 0.1], [0.1, 3.0]]
        else:
            kind = branch.get("type", "null")
            found += [x for x in (*NUMBERS, *OTHERS) if x == kind for x in {**NUMBERS, **OTHERS}[x]]
    return found


def keys_of(node: dict[str, Any], whole: dict[str, Any], at: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yield each key with its border values."""
    for branch in nodes(node, whole):
        items = branch.get("items", {})
        if at in LISTED and items:
            yield from keys_of(items, whole, f"{at}.0")
        for name, below in branch.get("properties", {}).items():
            key = f"{at}.{name}".lstrip(".")
            if key not in LEFT:
                yield key, border_values(below, whole)
                yield from keys_of(below, whole, key)


def options_of() -> Iterator[tuple[str, list[Any]]]:
    """Yield the options of the parts that a recipe for digits names."""
    for kind, key, name in (("encoders", "model.image", "cnn"), ("encoders", "model.text", "transformer")):
        for option, (text, _) in binding.arguments(kind, name).items():
            values = NUMBERS["integer"] if text.startswith("int") else NUMBERS["number"]
            yield f"{key}.{option}", list(OTHERS["boolean"] if text.startswith("bool") else values)
        yield f"{key}.freeze", [True, "all", "unlock"]
        yield f"{key}.lora", [{"rank": rank} for rank in (-1, 0, 1, 1000)]
        yield f"{key}.layer_decay", [-1.0, 0.0, 0.5, 2.0]
    yield "model.embed_dim", [0, 1, 3]
    yield "model.normalize", [False]
    yield "model.logit_scale", [{"init": a, "max": b} for a in (0.0, 1e-9, 1e9) for b in (0.0, 1.0, 1e9)]
    yield "model.text", [None, "cbow", "linear", "cnn"]
    yield "model.image", ["cbow", "linear", "transformer"]
    yield "loss", ["clip", "ce", "supcon", "multitask", {"name": "supcon", "temperature": 1e-300}, {"terms": []}]

    yield "model.image.stages", [0, 1, 3]  # each doubles the width


SCHEMA = recipe_json_schema()
KEYS = dict(options_of()) | {key: values for key, values in keys_of(SCHEMA, SCHEMA) if values}
CHANGES = st.lists(
    st.sampled_from(sorted(KEYS)).flatmap(lambda key: st.tuples(st.just(key), st.sampled_from(KEYS[key]))),
    min_size=1,
    max_size=3,
    unique_by=lambda change: change[0],
)

# each example is a training: one that fails is not tried again in simpler forms
SLOW_EACH = settings(phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def run(digits: Path, changes: list[tuple[str, Any]], *more: str) -> tuple[int, str]:
    """Return the exit code of a training in this process, and what it said."""
    entry = {"corpus": str(digits), "limit": 12, "every": 1}
    base = TINY | {"steps": 2, "eval": [entry], "optim": {"lr": 1e-3, "groups": [{"match": "*.bias"}]}}
    base |= {"data": TINY["data"] | {"train": [{"corpus": str(digits)}], "augment": [{"name": "basic"}]}}
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "r.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(base))))
        words = [f"{key}={json.dumps(value)}" for key, value in changes]
        place = ("--run-dir", f"{folder}/run", "--devices", "cpu:1", "-q")
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(["train", f"{folder}/r.yaml", *words, *place, *more])
    return code, said.getvalue()


def check(digits: Path, changes: list[tuple[str, Any]]) -> None:
    planned, _ = run(digits, changes, "--dry-run")
    code, said = run(digits, changes)
    assert code in ENDS, said
    assert ENDS[code] in said
    assert planned == 0 or code == planned, f"the dry run refuses what can be trained: {said}"


def test_the_keys_of_all_sections_are_tried():
    assert len(KEYS) > 90
    for key in (
        "optim.nesterov",
        "data.augment.0.crop",
        "data.train.0.fraction",
        "checkpoint.best.metric",
        "ema.decay",
    ):
        assert key in KEYS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"optim.name": "sgd", "optim.nesterov": True, "optim.momentum": 0.0},
            "optim.nesterov: needs a momentum above",
        ),
        ({"data.augment.0.crop": [1.0, 0.1]}, "data.augment.0.crop: should have the smaller number first"),
        ({"model.image.width": 12}, "model.image.width: should be a multiple of 8, got 12"),
        ({"data.augment.0.jitter": 1e300}, "data.augment.0.jitter: should be less than or equal to 100"),
        ({"loss": {"name": "supcon", "temperature": 1e-300}}, "loss.temperature: should be greater than or equal to"),
        ({"data.train.0.augment": ["none", "none"]}, "data.train.0.augment: 2 entries, but data.views is 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_fail_in_a_step_is_refused_at_its_key(digits, changes, said):
    for more in (("--dry-run",), ()):
        code, told = run(digits, list(changes.items()), *more)
        assert (code, said in told) == (2, True), told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.text": "cnn"}, "model.text: fails on the first batch: "),
        ({"model.image": "cbow"}, "model.image: fails on the first batch: "),
        ({"model": "cnn"}, "model: 'cnn' is a tower, not a whole model"),
        ({"model.image": TIMM | {"args": {"in_chans": 1}}}, "resnet10t: args may not set in_chans"),
        ({"model.image": TIMM | {"args": {"global_pool": ""}}}, "an image gives (1, 512, 1, 1) instead of (1, 512)"),
        ({"model.image": TIMM | {"args": {"drop_rate": 2.0}}}, "resnet10t for images of 16 px: timm does not accept"),
        ({"model.image": TIMM | {"args": {"output_stride": 3}}}, "resnet10t: timm does not accept these args: "),
        ({"model.image": TIMM | {"args": {"features_only": True}}}, "resnet10t: args may not set features_only"),
    ],
    ids=["images for texts", "texts for images", "a tower", "channels", "no pooling", "dropout", "stride", "features"],
)
def test_a_part_in_the_wrong_place_is_named_by_its_key(digits, changes, said):
    code, told = run(digits, list(changes.items()))
    assert (code, said in told) == (2, True), told


def test_an_image_of_one_pixel_can_be_blurred(digits):
    assert run(digits, [("data.image_size", 1), ("data.augment.0.blur", 1.0)])[0] == 0


@settings(SLOW_EACH, max_examples=4)
@given(changes=CHANGES)
def test_border_values_are_refused_or_train(digits, changes):
    check(digits, changes)


@pytest.mark.slow
@settings(SLOW_EACH, max_examples=40)
@given(changes=CHANGES)
def test_many_border_values_are_refused_or_train(digits, changes):
    check(digits, changes)
