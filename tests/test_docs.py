"""The docs: pages made from the code are fresh, links lead somewhere, and every `unicl` line in them runs."""

import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from unicl_cli.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLUGINS = ROOT / "docs" / "plugins.md"
"""Its lines are run by tests/test_plugin_docs.py, with the plugins that it writes."""
DATASETS = ROOT / "docs" / "datasets.md"
"""Its lines are run by tests/test_dataset_docs.py, on small copies of the data sets."""
SHORT = ["steps=2", "batch.size=8", "eval=[]"]
"""Added to each `unicl train`: what is tested is that the line works, not how well it learns."""
WORLD = """\
name: mine
data: {train: [{corpus: corpus}], image_size: 32}
model:
  image: {name: timm, model: vit_tiny_patch16_224, args: {depth: 1}}  # open_clip has these towers, too
  text: {name: transformer, width: 32, layers: 1, heads: 1}
  embed_dim: 16
batch: {size: 8}
steps: 2
schedule: {warmup: 0}
"""


class Block(NamedTuple):
    """A fenced block of a page: what stands behind the fence, and its lines."""

    page: Path
    line: int
    info: str
    lines: list[str]


def blocks(page: Path) -> Iterator[Block]:
    found: Block | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if found is not None:
                yield found
            found = None if found is not None else Block(page, number, line[3:].strip(), [])
        elif found is not None:
            found.lines.append(line)


def commands(block: Block) -> list[str]:
    """The `unicl` lines of a shell block."""
    if block.info.split(" ")[0] not in ("sh", "bash", "console"):
        return []
    lines = [line.removeprefix("$ ") for line in block.lines if block.info != "console" or line.startswith("$ ")]
    return [line for line in lines if line.startswith("unicl ")]


def page_maker():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipes.md", "commands.md"])
def test_a_page_that_is_made_from_the_code_is_fresh(name: str) -> None:
    text = page_maker().pages()[name]
    assert text == (ROOT / "docs" / name).read_text(encoding="utf-8"), "python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)#]+\.md)[^)]*\)", page.read_text(encoding="utf-8"))
        waiting += [file for file in ((page.parent / link).resolve() for link in links) if file not in seen]
    assert set(PAGES) <= seen


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the pages name: images, lists, a corpus, runs, all small."""
    root = tmp_path_factory.mktemp("docs")
    for shade, kind in enumerate(("red fox", "salt & pepper", "tench", "cat", "dog")):
        for number in range(44):
            picture(root / "photos" / kind / f"{number}.jpg", 50 * shade + number)
    captioned = [f"pics/{number}.jpg\ttwo boats in the evening sun, {number}" for number in range(40)]
    for number in range(40):
        picture(root / "pics" / f"{number}.jpg", 5 * number)
    (root / "list.tsv").write_text("\n".join(["file\ttitle", *captioned]) + "\n", encoding="utf-8")
    shutil.copy(root / "list.tsv", root / "list.csv")
    (root / "list.csv").write_text((root / "list.tsv").read_text().replace(",", "").replace("\t", ","))
    tags = [f"pics/{n}.jpg,{'red;ring' if n % 2 else 'blue'},{'' if n % 3 else 'red'},ring" for n in range(40)]
    (root / "tags.csv").write_text("\n".join(["image,label,colour,shape", *tags]) + "\n")
    for name in ("new/1.jpg", "holiday/1.jpg", "more/1.png", "photo.jpg", "img.jpg"):
        picture(root / name, 77)
    (root / "names.txt").write_text("red fox\ntench\n")
    (root / "my-recipe.yaml").write_text(WORLD)
    here = Path.cwd()
    os.chdir(root)
    try:
        assert main(["prepare", "-q", "--labels", "photos", "--captions", "list.tsv", "-o", "corpus"]) == 0
        for name in ("quickstart-1a2b3c4d", "supcon-5e6f7a8b", "my-run"):
            assert main(["train", "my-recipe.yaml", "-q", "--devices", "cpu:1", "--run-dir", f"runs/{name}"]) == 0
    finally:
        os.chdir(here)
    return root


def picture(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (shade % 256, 60, 200)).save(file)


def argv(line: str) -> list[str]:
    """The words of a shell line, without its redirection, patterns filled in as a shell does."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    found = [sorted(str(file) for file in Path().glob(word)) if "*" in word else [word] for word in words]
    return [word for several in found for word in several]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in (PLUGINS, DATASETS)], ids=lambda page: page.name
)
def test_every_line_of_a_page_runs(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    shutil.copytree(world, here)
    monkeypatch.chdir(here)
    for block in blocks(page):
        if block.info == "yaml" and block.lines[0].startswith("# "):
            Path(block.lines[0].removeprefix("# ")).write_text("\n".join(block.lines) + "\n")
        for line in [] if "needs-" in block.info else commands(block):
            words = argv(line)
            quick = SHORT if words[0] == "train" and "--dry-run" not in words else []
            if words[:2] == ["detect", "train"]:
                quick = SHORT[:1]
            wrong = any(text.startswith("error: ") for text in block.lines)
            code = main([*words, *quick])
            out, err = capfd.readouterr()
            assert code == (2 if wrong else 0), f"{page.name}:{block.line}: {line}\n{out}{err}"
            if wrong:
                assert [text for text in block.lines if not text.startswith("$ ")] == err.splitlines()
