"""What every test stands on: an environment without the machine's own settings, golden files, throw-away plugins."""

import atexit
import json
import multiprocessing.util
import os
import re
import shutil
import signal
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import forking
import pytest
from digits_corpus import digits  # noqa: F401 - a fixture of many tests
from hypothesis import settings
from restored import environment_of_module, environment_of_test, signals_of_test  # noqa: F401 - fixtures of every test

for variable in list(os.environ):  # before typer, torch or a hub library reads them
    if variable.startswith(("UNICL_", "SLURM_", "ACCELERATE_")) or variable in (
        *("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ):
        del os.environ[variable]
os.environ |= {
    "NO_COLOR": "1",
    "TERMINAL_WIDTH": "100",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(Path(tempfile.gettempdir()) / "unicl-tests-hub"),
}


def install_odd() -> None:
    """Install tests/plugins/unicl-odd for this process and those that it starts; a user's `unicl` never shows it."""
    source = Path(__file__).parent / "plugins" / "unicl-odd"
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = Path(tempfile.mkdtemp(prefix="unicl-odd-"))
    atexit.register(shutil.rmtree, site, ignore_errors=True)
    info = site / f"unicl_odd-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(f"{head}Summary: {project['description']}\n", encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    sys.path[:0] = [str(site), str(source)]
    path = [str(site), str(source), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))


install_odd()

settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=25
)  # the same each time, on any machine
settings.load_profile("same")

GOLDEN = Path(__file__).parent / "golden"


LONGEST = (
    *("benchmarks/test_gpu.py", "train/test_dry_run.py", "fault/test_endings.py", "fault/test_nodes.py"),
    *("fault/test_prepare_points.py", "fault/test_processes.py", "commands/test_output.py", "fault/test_kills.py"),
    *("fault/test_tuned_processes.py", "fault/test_resume_ranks.py", "fault/test_memory.py", "core/test_streams.py"),
)
"""The files whose slow tests take longest, longest first: begun last, one of them would run alone at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist hand out the files of slow tests in their own order: it would begin with the most tests."""
    if config.option.markexpr == "slow" and hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    if config.option.markexpr == "slow" and sys.platform == "linux":
        multiprocessing.util.spawnv_passfds = forking.spawn  # the workers of a DataLoader and of `prepare`


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run of the slow tests alone imports no file that has none."""
    if config.option.markexpr == "slow" and collection_path.suffix == ".py":
        return "mark.slow" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files of slow tests first."""
    if config.option.markexpr == "slow":
        place = {name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get("/".join(item.path.parts[-2:]), len(place)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; review the diff")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``golden(name, text)``: the text is what `tests/golden/name` holds; ``words``: where lines break is rich's."""

    def check(name: str, text: str, *, words: bool = False) -> None:
        if request.config.getoption("--update-golden"):
            (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / name).write_text(text, encoding="utf-8")
        held = (GOLDEN / name).read_text(encoding="utf-8")
        if words:
            text, held = (sorted(re.findall(r"[^\s│╭╮╰╯─]+", each)) for each in (text, held))
        assert text == held, "review, then pytest --update-golden"

    return check


@pytest.fixture(autouse=True, scope="session")
def heard_signals() -> None:
    """What ``nohup`` or a background job has silenced would stay silent in the commands that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """``distribution("unicl-x", module_text, losses="mine = unicl_x:f")``: installed, as far as entry points go."""
    from unicl_cli import registry

    def install(name: str, module: str, **groups: str) -> Path:
        monkeypatch.delitem(sys.modules, name.replace("-", "_"), raising=False)
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name.replace('-', '_')}.py").write_text(module, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: Tests {name}.\n")
        points = "\n".join(f"[unicl.{group}]\n{lines}" for group, lines in groups.items())
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        registry.forget()
        return site

    yield install
    monkeypatch.undo()
    registry.forget()


TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
OPEN_CLIP = {  # kind: model_cfg, preprocess_cfg
    "clip": ({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, {}),
    "custom": (
        {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True, "custom_text": True},
        {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 7, "mean": [0.4] * 3, "std": [0.25] * 3},
    ),
    "siglip": (
        {
            "embed_dim": 64,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
            "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        },
        {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3},
    ),
    "timm": (
        {
            "embed_dim": 24,
            "vision_cfg": {
                "image_size": 160,
                "timm_model_name": "test_convnext",
                "timm_pool": "",
                "timm_proj": "linear",
            },
            "text_cfg": TEXT,
        },
        {},
    ),
    "resnet": (
        {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
            "text_cfg": TEXT,
        },
        {},
    ),
    "hf": (
        {
            "embed_dim": 24,
            "vision_cfg": VISION,
            "text_cfg": {
                "context_length": 24,
                "hf_model_name": "text",
                "hf_tokenizer_name": "text",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "mean_pooler",
            },
        },
        {},
    ),
}


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``open_clip_folder(kind)``: a tiny model of open_clip with random weights, in the layout of the hub."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    root, made = tmp_path_factory.mktemp("open-clip"), dict[str, Path]()

    def make(kind: str) -> Path:
        if kind in made:
            return made[kind]
        made[kind] = folder = root / kind
        folder.mkdir()
        config, preprocess = OPEN_CLIP[kind]
        if kind == "hf":
            hf_parts(folder)
            config = {**config, "text_cfg": {**config["text_cfg"], "hf_model_name": str(folder / "text")}}
        whole = {"model_cfg": config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(whole))
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
        with torch.no_grad():
            for parameter in model.parameters():  # so that inputs matter
                parameter.mul_(1.5 if parameter.ndim > 1 else 1.0)
            model.logit_scale.fill_(3.0)
        tensors = {name: x.contiguous() for name, x in model.state_dict().items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        return folder

    return make


def hf_parts(folder: Path) -> None:
    """A tiny RoBERTa's configuration in ``text``, a tokenizer of whole words beside the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    words = ["<s>", "<pad>", "</s>", "<unk>", *["a", "photo", "of", "cat", "dog", "bird"]]
    library = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=library, **names).save_pretrained(folder)
    RobertaConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    ).save_pretrained(folder / "text")
