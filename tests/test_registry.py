"""Parts by name: clashes, broken plugins, local files, and options checked against signatures."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unicl_cli import binding, registry
from unicl_cli.contracts import LogitScale, Part, Tuning
from unicl_cli.errors import UniclError
from unicl_cli.problems import PartError

ROOT = Path(__file__).parent.parent
PLAIN = "def one(*, size: int = 3): return ('one', size)\n"
Install = Callable[..., Path]


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """``local(text)``: a plugin file that UNICL_PLUGINS names."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("UNICL_PLUGINS", str(path))
        registry.forget()
        return path

    yield write
    monkeypatch.undo()
    registry.forget()


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UniclError) as caught:
        call()
    return f"{caught.value.message} | {caught.value.hint}"


def test_entry_points_are_those_of_pyproject_and_lie_in_the_package():
    written = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    for kind in registry.KINDS:
        own = {entry.name: entry.value for entry in registry.table(kind) if entry.builtin}
        assert own == written[f"unicl.{kind}"], "pip install -e . again"
        assert all(value.startswith("unicl_cli.") for value in own.values())


def test_an_unknown_name_gets_the_nearest_one():
    text = message(lambda: registry.get("encoders", "tranformer"))
    assert text.startswith("no encoder 'tranformer'; did you mean 'transformer'? | use one of ")
    assert {"cbow", "cnn", "linear"} <= set(text.partition("use one of ")[2].split(", "))


def test_a_third_party_part_is_found_by_either_name(distribution: Install):
    distribution("unicl-a", PLAIN, losses="one = unicl_a:one")
    assert "one" in registry.names("losses")
    for name in ("one", "unicl-a/one"):
        assert binding.make("losses", binding.bind("losses", {"name": name, "size": 4}), {}) == ("one", 4)


def test_two_third_parties_of_one_name_clash_at_use_and_stay_reachable(distribution: Install):
    distribution("unicl-a", PLAIN, losses="one = unicl_a:one")
    distribution("unicl-b", PLAIN, losses="one = unicl_b:one")
    assert registry.names("losses").count("one") == 1
    assert "'one': in 2 plugins | write unicl-" in message(lambda: registry.get("losses", "one"))
    assert registry.get("losses", "unicl-b/one").__module__ == "unicl_b"
    states = {row.dist: row.state for row in registry.list_parts("losses") if row.name == "one"}
    assert states == {"unicl-a": "clash: write unicl-a/one", "unicl-b": "clash: write unicl-b/one"}


def test_a_built_in_wins_and_the_other_says_so(distribution: Install):
    distribution("unicl-a", PLAIN, losses="clip = unicl_a:one")
    assert registry.get("losses", "clip").__module__ == "unicl_cli.factories"
    assert registry.get("losses", "unicl-a/clip").__module__ == "unicl_a"
    assert [row.state for row in registry.list_parts("losses") if row.name == "clip"] == [
        "ok",
        "hidden by a built-in: write unicl-a/clip",
    ]


def test_one_value_seen_twice_is_not_a_clash(distribution: Install):
    distribution("unicl-a", PLAIN, losses="one = unicl_a:one")
    distribution("unicl-a-again", "", losses="one = unicl_a:one")
    assert registry.get("losses", "one").__module__ == "unicl_a"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import nowhere_to_be_found", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
        ("def two(): ...", "cannot be loaded: AttributeError: module 'unicl_bad' has no attribute 'one'"),
        ("def one(*, a=1): ...\none.unicl_api = 99", "for plugin interface 99, but this unicl has 1"),
        ("class one: ...", "not a function with keyword-only options"),
        ("def one(size): ...", "not a function with keyword-only options"),
        ("def one(**options): ...", "not a function with keyword-only options"),
    ],
)
def test_a_broken_plugin_is_listed_and_named_at_use(distribution: Install, module: str, reason: str):
    distribution("unicl-bad", module, losses="one = unicl_bad:one")
    assert registry.names("losses")
    assert f"plugin 'one' (unicl-bad 1.0): {reason}" in message(lambda: registry.get("losses", "one"))
    assert next(row.state for row in registry.list_parts("losses") if row.name == "one").startswith("broken: ")
    assert registry.get("losses", "clip")


@pytest.mark.parametrize("off", ["1", "unicl-a", "x,one"])
def test_plugins_can_be_switched_off_but_never_the_core(distribution: Install, monkeypatch: pytest.MonkeyPatch, off):
    distribution("unicl-a", PLAIN, losses="one = unicl_a:one")
    monkeypatch.setenv("UNICL_NO_PLUGINS", off)
    registry.forget()
    assert "one" not in registry.names("losses")
    assert "clip" in registry.names("losses")


def test_a_local_file_adds_parts(local: Callable[[str], Path]):
    path = local('def f(*, a: int = 1): return a\nPARTS = {"losses": {"mine": f}}\n')
    assert binding.make("losses", binding.bind("losses", "mine"), {}) == 1
    assert [row.dist for row in registry.list_parts("losses") if row.name == "mine"] == [str(path)]


def test_a_broken_local_file_is_listed_and_named_by_a_failing_look_up(local: Callable[[str], Path]):
    path = local("import nowhere_to_be_found")
    assert registry.get("losses", "clip")
    assert f"{path} cannot be loaded: ModuleNotFoundError" in message(lambda: registry.get("losses", "mine"))
    assert [row.state for row in registry.list_parts("losses") if row.dist == str(path)] == [
        "broken: ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    ]


def test_an_added_file_reaches_worker_processes(tmp_path: Path, local: Callable[[str], Path]):
    local("PARTS = {}")  # restores the environment afterwards
    (tmp_path / "more.py").write_text('def g(*, a: int = 1): ...\nPARTS = {"encoders": {"more": g}}\n')
    registry.add_local(str(tmp_path / "more.py"))
    assert os.environ["UNICL_PLUGINS"].split(os.pathsep)[1:] == [str(tmp_path / "more.py")]
    code = "from unicl_cli import binding, registry; print(registry.names('encoders'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'more'" in out


def test_bind_writes_every_default_out():
    part = binding.bind("encoders", {"name": "two_tower", "image": "cnn", "text": {"name": "linear", "lr_scale": 0}})
    assert part.options["text"] == Part("linear", {"bias": False}, Tuning(lr_scale=0.0))
    assert part.options["image"].options["width"] == 32
    assert part.options["logit_scale"] == LogitScale()
    assert binding.bind("encoders", part) == part


def test_bind_reports_all_problems_with_their_places():
    with pytest.raises(PartError) as caught:
        binding.bind(
            "encoders",
            {
                "name": "two_tower",
                "image": {"name": "cnn", "widht": 1, "freeze": "yes", "lr_scale": -1},
                "text": {"name": "transfomer"},
                "logit_scale": {"int": 3},
                "normalise": True,
            },
            ("model",),
        )
    assert {".".join(map(str, loc)): text for loc, text in caught.value.problems} == {
        "model.image.widht": "unknown key; did you mean 'width'?",
        "model.image.freeze": "should be a valid boolean or 'all' or a mapping, got 'yes'",
        "model.image.lr_scale": "should be greater than or equal to 0, got -1",
        "model.text.name": "no encoder 'transfomer'; did you mean 'transformer'?",
        "model.logit_scale.int": "unknown key; did you mean 'init'?",
        "model.normalise": "unknown key; did you mean 'normalize'?",
    }


@pytest.mark.parametrize("given", [3, None, {"width": 3}, ["cnn"], {"name": 3}])
def test_a_part_without_a_name_is_one_problem(given):
    with pytest.raises(PartError, match="should be the name of a part, or a mapping with a name"):
        binding.bind("encoders", given)


ODD = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated
from pydantic import Field
from unicl_cli.contracts import Part
if TYPE_CHECKING:
    from torch import nn
def one(
    *, num_classes: int, encoder: nn.Module, towers: dict[str, Part], extra: Part | None = None, embed_dim: int = 7,
    pair: tuple[float, float] = (0.5, 1), model: str = "m", copy: Annotated[int, Field(gt=0)] = 1,
) -> nn.Module:
    return num_classes, encoder, sorted(towers), extra, embed_dim, pair, model, copy
"""


def test_odd_signatures_bind_and_are_made(distribution: Install):
    """Context of types that only type checkers import, names that pydantic's models reserve, towers by modality."""
    distribution("unicl-odd", ODD, encoders="odd = unicl_odd:one")
    written = {
        "name": "odd",
        "towers": {"audio": "cnn", "depth": {"name": "cnn", "freeze": True}, "imu": None},
        "pair": [1, 2],
    }
    part = binding.bind("encoders", written)
    assert part.options["towers"]["depth"].tuning.freeze
    assert part.options["pair"] == (1.0, 2.0)
    context = {"num_classes": lambda: 10, "encoder": lambda: "e", "chunks": lambda: 1 // 0}
    assert binding.make("encoders", part, context) == (10, "e", ["audio", "depth"], None, 7, (1.0, 2.0), "m", 1)
    assert "needs 'num_classes', which is not available here" in message(lambda: binding.make("encoders", part, {}))
    with pytest.raises(PartError, match=r"m\.towers\.audio\.widht: unknown key; did you mean 'width'\?"):
        binding.bind("encoders", {"name": "odd", "towers": {"audio": {"name": "cnn", "widht": 1}}}, ("m",))
    with pytest.raises(PartError, match="copy: should be greater than 0, got 0"):
        binding.bind("encoders", {"name": "odd", "towers": {}, "copy": 0})


def test_options_of_a_query_are_read_as_a_recipe_reads_them(distribution: Install):
    module = "def src(*, path: str, code: str | None = None, n: int = 1, on: bool = True, at: float = 0.1): ...\n"
    distribution("unicl-q", module, datasets="q = unicl_q:src")
    texts = {"path": "07", "code": "null", "n": "012", "on": "false", "at": "1e-2", "more": "[x"}
    read = binding.read_options("datasets", "q", texts)
    assert read == {"path": "07", "code": None, "n": 12, "on": False, "at": 0.01, "more": "[x"}
    with pytest.raises(PartError, match="more: unknown key"):
        binding.bind("datasets", {"name": "q", **read})
    assert binding.read_options("datasets", "digits", {"classes": "0-6", "limit": "600"}) == {
        "classes": "0-6",
        "limit": 600,
    }


@pytest.mark.parametrize(("group", "found"), [("losses", False), ("commands", True)])
def test_help_asks_for_metadata_only_where_a_distribution_may_add_a_command(tmp_path, monkeypatch, group, found):
    for name, of in (("unicl-0.1.0", "commands"), ("other-1.0", group)):
        info = tmp_path / f"{name}.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[unicl.{of}]\none = one:app\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "not there")])
    assert registry.may_have_commands() is found
