"""A mistake of a user, whatever it is, ends in one line that says what to do, exit status 2, and nothing lost."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from unicl_cli import registry
from unicl_cli.cli import main

TINY = """\
name: tiny
data: {train: [{corpus: corpus}], image_size: 16, augment: none}
model: {image: {name: cnn, width: 8, stages: 2}, text: {name: cbow, width: 8}, embed_dim: 8, context_length: 8}
batch: {size: 8}
steps: 2
schedule: {warmup: 0}
"""


def draw(file: Path, shade: int = 90) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (shade % 256, 60, 200)).save(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, lists, a corpus, a recipe and a run of it, made once by the real commands."""
    root = tmp_path_factory.mktemp("world")
    for split, count in (("train", 6), ("test", 3)):
        for kind in ("cat", "dog"):
            for number in range(count):
                draw(root / "photos" / split / kind / f"{number}.png", 30 * number + 7 * len(kind))
    lines = [f"photos/train/{kind}/{n}.png\ta {kind} asleep on a mat" for kind in ("cat", "dog") for n in range(6)]
    (root / "list.tsv").write_text("\n".join(["file\ttitle", *lines]) + "\n", encoding="utf-8")
    (root / "tiny.yaml").write_text(TINY)
    here = Path.cwd()
    os.chdir(root)
    try:
        assert main(["prepare", "-q", "--labels", "photos", "--captions", "list.tsv", "-o", "corpus"]) == 0
        assert main(["train", "tiny.yaml", "-q", "--devices", "cpu:1", "--run-dir", "run"]) == 0
    finally:
        os.chdir(here)
    return root


@pytest.fixture
def world(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "world"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("UNICL_PLUGINS", "")  # --plugin adds to it, for worker processes
    yield root
    monkeypatch.undo()
    registry.forget()


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def setup(root: Path) -> None:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    return setup


def cut(pattern: str, share: float = 0.5) -> Callable[[Path], None]:
    """The first file of that name ends early."""

    def setup(root: Path) -> None:
        file = sorted(root.glob(pattern))[0]
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])

    return setup


def without(pattern: str) -> Callable[[Path], None]:
    def setup(root: Path) -> None:
        for path in list(root.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return setup


def another_corpus(root: Path) -> None:
    draw(root / "photos" / "train" / "cat" / "new.png")
    shutil.rmtree(root / "corpus")
    assert main(["prepare", "-q", "--labels", "photos", "-o", "corpus"]) == 0
    (root / "run" / "meta.json").unlink()  # as if the run had been cut before its end


def one_class(root: Path) -> None:
    assert main(["prepare", "-q", "--labels", "photos/train/cat", "-o", "lonely"]) in (0, 2)
    draw(root / "single" / "cat" / "1.png")
    draw(root / "single" / "cat" / "2.png", 5)
    assert main(["prepare", "-q", "--labels", "single", "-o", "one"]) == 0


def images_only(root: Path) -> None:
    assert main(["prepare", "-q", "--images", "photos", "-o", "bare"]) == 0


def captions_only(root: Path) -> None:
    assert main(["prepare", "-q", "--captions", "list.tsv", "-o", "told"]) == 0


def pickled(root: Path) -> None:
    """Weights that would run code if anything unpickled them."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {root / 'owned'}",)

    (root / "run" / "model.safetensors").write_bytes(pickle.dumps(Evil()))


def some_empty_folder(root: Path) -> None:
    (root / "empty" / "cat").mkdir(parents=True)


def recipe(**changes: str) -> Callable[[Path], None]:
    """`tiny.yaml` with lines added at its end or replaced."""

    def setup(root: Path) -> None:
        lines = [line for line in TINY.splitlines() if line.partition(":")[0] not in changes]
        text = "\n".join([*lines, *(f"{key}: {value}" for key, value in changes.items() if value)])
        (root / "tiny.yaml").write_text(text + "\n")

    return setup


class Case(NamedTuple):
    line: str
    said: str
    before: Callable[[Path], None] | None = None


PREPARE = [
    Case("prepare", "nothing to prepare: no source given"),
    Case("prepare --labels nowhere -o c", "nowhere: no such folder, list or source"),
    Case("prepare --labels digit -o c", "did you mean 'digits'"),
    Case("prepare --labels empty -o c", "no images in this folder", some_empty_folder),
    Case(
        "prepare --labels damaged -o c",
        "c: no usable rows (rejected: truncated 1)",
        write("damaged/cat/1.jpg", b"\xff\xd8\xff\xe0 no more"),
    ),
    Case("prepare --labels texts -o c", "texts: no images in this folder", write("texts/cat/1.txt", "a cat")),
    Case("prepare --captions list.tsv?caption=words -o c", "list.tsv: no column 'words'"),
    Case("prepare --captions list.tsv?titel=title -o c", "list.tsv?titel=title: titel: unknown key"),
    Case("prepare --captions digits?foo=1 -o c", "digits?foo=1: foo: unknown key"),
    Case("prepare --captions list.xlsx -o c", "not a supported list", write("list.xlsx", "PK")),
    Case("prepare --captions empty.jsonl -o c", "empty.jsonl: the list is empty", write("empty.jsonl", "")),
    Case(
        "prepare --captions q.csv -o c",
        "q.csv: line 2: the list ends inside quotes",
        write("q.csv", 'file,title\na.png,"open\nb.png,x\n'),
    ),
    Case("prepare --captions w.tsv -o c", "w.tsv: 3 of 3 lines cannot", write("w.tsv", "file\tcaption\na\nb\nc\n")),
    Case("prepare --captions u.tsv -o c", "private_address 1", write("u.tsv", "a cat\thttp://localhost/1.jpg\n")),
    Case(
        "prepare --labels few.csv?classes=names.txt -o c",
        "few.csv: line 3: unknown label 7 (number of classes: 1)",
        lambda root: (
            write("few.csv", "file,label\nphotos/train/cat/0.png,0\nphotos/train/cat/1.png,7\n")(root),
            write("names.txt", "cat\n")(root),
        )[0],
    ),
    Case(
        "prepare --labels neg.csv -o c",
        "neg.csv: line 3: label -3 is negative",
        write("neg.csv", "file,label\nphotos/train/cat/0.png,0\nphotos/train/cat/1.png,-3\n"),
    ),
    Case(
        "prepare --labels twice.csv?classes=names.txt -o c",
        "names.txt: duplicate class 'cat'",
        lambda root: (
            write("twice.csv", "file,label\na.png,0\nb.png,1\n")(root),
            write("names.txt", "cat\ncat\n")(root),
        )[0],
    ),
    Case("prepare --labels hf:org/name -o c", "hf:org/name"),
    Case("prepare --labels https://localhost/a.zip -o c", "https://localhost/a.zip: a URL cannot be a source"),
    Case("prepare --labels photos -o file", "file: is a file, not a directory", write("file", "here")),
    Case("prepare --labels photos -o file/c", "file/c: cannot be written", write("file", "here")),
    Case("prepare --labels photos -o corpus --size 16", "corpus: was started with another plan; size: null -> 16"),
    Case("prepare --labels photos -o c --holdout 2", "holdout"),
    Case("prepare --labels photos -o c --size 0", "size"),
    Case("prepare --labels photos -o c --shard-mb -1", "shard-mb"),
    Case("prepare --labels photos -o c --templates nowhere.txt", "nowhere.txt"),
    Case("prepare --labels photos -o c --dedup maybe", "--dedup: unknown value 'maybe'"),
    Case("prepare --labels cifar10 -o c", "cifar10: cifar-10-python.tar.gz (170 MB): not found"),
    Case("prepare --label photos", "--label"),
    Case("prepare --list --labels photos", "--list: shows all names, and takes no source"),
]

IMPERATIVES = "add check choose close download leave move name remove save see set unset use write usage:"
"""First words of the hints of ``prepare``; a wrong option is answered with the usage."""

TRAIN = [
    Case("train", "RECIPE"),
    Case("train nowhere.yaml", "no recipe 'nowhere.yaml'"),
    Case("train corpus", "corpus: a corpus, not a recipe"),
    Case("train photos", "photos: a folder, not a recipe"),
    Case("train run", "use its recipe, run/resolved.yaml"),
    Case("train quikstart", "did you mean 'quickstart'"),
    Case("train tiny.yaml optim.lrr=1", "unknown key; did you mean 'lr'"),
    Case("train tiny.yaml optim.lr=fast", "optim.lr: should be a valid number, got 'fast'"),
    Case("train tiny.yaml optim.lr", "not KEY=VALUE"),
    Case("train tiny.yaml steps=many", "steps"),
    Case("train tiny.yaml steps=true", "steps"),
    Case("train tiny.yaml deterministic=no", "deterministic"),
    Case("train tiny.yaml seed=3e-4", "seed"),
    Case("train tiny.yaml loss=bogus", "no loss 'bogus'"),
    Case("train tiny.yaml model.image=cmn", "did you mean 'cnn'"),
    Case("train tiny.yaml model.image={name: timm, model: resnet_18}", "timm has no model 'resnet_18'"),
    Case("train tiny.yaml model.image={name: cnn, widht: 8}", "did you mean 'width'"),
    Case("train tiny.yaml loss={name: unicl, tile: 0}", "loss.tile"),
    Case("train tiny.yaml --run-dir other", "exactly one of", recipe(epochs="2")),
    Case("train tiny.yaml data.train.5.corpus=x", "data.train.5"),
    Case("train tiny.yaml data.train.0.corpus=gone", "gone"),
    Case("train tiny.yaml data.train.0.split=dev", "has no split 'dev'"),
    Case("train tiny.yaml model.text=null", "text", None),
    Case("train tiny.yaml precision=fp16 --devices cpu:1", "fp16 needs a GPU"),
    Case("train tiny.yaml batch.size=9 --devices cpu:2", "9"),
    Case("train tiny.yaml --devices lots", "lots"),
    Case("train tiny.yaml --devices cpu:0", "cpu:0"),
    Case("train tiny.yaml --resume perhaps --run-dir other", "perhaps"),
    Case("train tiny.yaml --run-dir run optim.lr=0.5", "optim.lr"),
    Case("train tiny.yaml --run-dir tiny.yaml", "tiny.yaml"),
    Case("train tiny.yaml --run-dir run steps=4", "steps"),
    Case("train tiny.yaml --init nowhere", "nowhere"),
    Case("train twice.yaml", "twice.yaml", write("twice.yaml", TINY + "steps: 3\n")),
    Case("train code.yaml", "code.yaml", write("code.yaml", "name: !!python/object/apply:os.system ['touch owned']\n")),
    Case("train tab.yaml", "tab.yaml", write("tab.yaml", "name: x\ndata:\n\ttrain: []\n")),
    Case("train nul.yaml", "NUL character", write("nul.yaml", TINY + 'run_dir: "a\\0b"\n')),
    Case("train list.yaml", "mapping", write("list.yaml", "- 1\n- 2\n")),
    Case("train none.yaml", "none.yaml", write("none.yaml", "")),
    Case("train binary.yaml", "binary.yaml", write("binary.yaml", b"\xff\xfe\x00\x01")),
    Case("train circle.yaml", "in a circle", write("circle.yaml", "extends: circle.yaml\n")),
    Case("train tiny.yaml --run-dir other", "corpus", without("corpus/manifest.json")),
    Case("train tiny.yaml --run-dir other", "manifest.json", cut("corpus/manifest.json")),
    Case("train tiny.yaml --run-dir other", "corpus", cut("corpus/data/train/*labels*.parquet")),
    Case("train tiny.yaml --run-dir run", "the corpus has changed", another_corpus),
    Case("train tiny.yaml data.train.0.corpus=one --run-dir other", "one class and nothing else", one_class),
    Case("train tiny.yaml data.train.0.corpus=bare --run-dir other", "images without label or text", images_only),
    Case("train tiny.yaml log.trackers=[nothing] --run-dir other", "nothing"),
    Case("train tiny.yaml optim.groups=[{match: nope}] --run-dir new/run", "optim.groups.0.match"),
    Case("train tiny.yaml model.image.lora.rank=2 --run-dir new/run", "model.image.lora: "),
    Case("train tiny.yaml model.image.freeze={unlock: 9} --run-dir new/run", "model.image.freeze.unlock: 9 of"),
    Case("train tiny.yaml model.text.layer_decay=0.5 --run-dir new/run", "model.text.layer_decay: "),
    Case("train tiny.yaml --resume nowhere --run-dir run", "run: the directory already holds checkpoints"),
]

MEASURE = [
    Case("eval nowhere", "nowhere"),
    Case("eval run --model other", "two models"),
    Case("eval corpus", "corpus"),
    Case("eval run --data gone", "gone"),
    Case("eval run --split dev", "dev"),
    Case("eval run --predictions answers.txt", "answers.txt"),
    Case("eval run --batch 0", "--batch"),
    Case("eval run --template nowhere.txt", "nowhere.txt"),
    Case("eval run --data bare --split train", "bare", images_only),
    Case("eval run", "model.safetensors", cut("run/model.safetensors")),
    Case("eval run", "model.safetensors", pickled),
    Case("eval run", "classes.json", cut("run/classes.json")),
    Case("eval run", "resolved.yaml", cut("run/resolved.yaml", 0.3)),
    Case("eval run", "tokenizer.json", cut("run/tokenizer.json")),
    Case("probe nowhere", "nowhere"),
    Case("probe run --data told", "told", captions_only),
    Case("probe run --features middle", "middle"),
    Case("probe run --data one", "one", one_class),
    Case("zeroshot", "no images given"),
    Case("zeroshot photos --model nowhere --classes a,b", "nowhere"),
    Case("zeroshot photos --model run --classes ,", "class"),
    Case("zeroshot photos --model run --classes @gone.txt", "gone.txt"),
    Case('zeroshot photos --model run --classes "a,b', "quote"),
    Case("zeroshot photos --model run --classes a,b --top-k 0", "--top-k"),
    Case("zeroshot photos --model open_clip:ViT-Z-99 --classes a,b", "ViT-Z-99"),
    Case("zeroshot photos --model hf-hub:org/name --classes a,b", "org/name"),
    Case("zeroshot photos --model local-dir:nowhere --classes a,b", "nowhere"),
]

OTHERS = [
    Case("trian tiny.yaml", "did you mean 'train'"),
    Case("--bogus", "--bogus"),
    Case("train tiny.yaml --dry-runn", "--dry-run"),
    Case("--plugin gone.py recipes ls", "gone.py"),
    Case("--plugin broken.py recipes ls", "broken.py", write("broken.py", "import nothing_of_that_name\n")),
    Case("recipes show nothing", "no recipe 'nothing'"),
    Case("recipes cp quickstart tiny", "tiny.yaml: already exists"),
    Case("recipes validate tiny.yaml optim.lr=0", "optim.lr"),
    Case("recipes diff quickstart nothing", "nothing"),
    Case("recipes bogus", "bogus"),
    Case("plugins ls towers", "unknown kind of plugin 'towers'"),
    Case("plugins show losses bogus", "bogus"),
    Case("runs show nothing", "nothing"),
    Case("inspect nothing", "nothing"),
    Case("inspect photos", "photos"),
    Case("inspect tiny.yaml", "tiny.yaml"),
    Case("mix run nothing -o mixed", "nothing"),
    Case("mix run run --alpha 2 -o mixed", "alpha"),
]


def words(line: str) -> list[str]:
    """Split at blanks, but not inside braces or behind a quote: an open quote is one of the mistakes."""
    found: list[str] = []
    for word in line.split(" "):
        inside = found and (found[-1].count("{") > found[-1].count("}") or found[-1].startswith('"'))
        found[-1:] = [f"{found[-1]} {word}"] if inside else [*found[-1:], word]
    return found


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("nowhere.png", "no such file"),
        ("empty", "a folder without images"),
        ("https://localhost/cat.jpg", "--allow-url"),
        ("corpus/manifest.json", "not"),
    ],
)
def test_an_image_that_cannot_be_read_is_a_row(
    world: Path, capfd: pytest.CaptureFixture[str], image: str, said: str
) -> None:
    some_empty_folder(world)
    assert main(["zeroshot", image, "--model", "run", "--classes", "cat,dog", "-q"]) == 2
    out, err = capfd.readouterr()
    assert out.startswith(f"{image}\terror: ")
    assert said in out
    assert err.count("error: ") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("case", [*PREPARE, *TRAIN, *MEASURE, *OTHERS], ids=lambda case: case.line)
def test_a_mistake_is_one_line_with_a_way_out(world: Path, capfd: pytest.CaptureFixture[str], case: Case) -> None:
    if case.before is not None:
        case.before(world)
    before = snapshot(world)
    capfd.readouterr()
    assert main(words(case.line)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert case.said in err.partition("error: ")[2]
    if case in PREPARE and not case.line.startswith("prepare --labels hf:"):
        assert err.partition("  hint: ")[2].split()[0] in IMPERATIVES.split(), err
    assert "Traceback" not in err
    assert not (world / "owned").exists(), "nothing that a file says is run"
    after = snapshot(world)
    assert {name: after.get(name) for name in before} == before, "nothing is lost"
    new = {Path(name).name for name in after.keys() - before.keys()}
    assert not new & {"manifest.json", "meta.json", "model.safetensors", "latest"}, "nothing looks finished"
    assert not [name for name in new if name.endswith((".part", ".tmp"))], "nothing half-written is left"
    if case.line.startswith("train"):
        assert not new, "what has not begun leaves no run"


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every file and folder, without the line in a lock that names its last holder."""
    files = {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
    return {str(path.relative_to(root)): b"" if path.suffix == ".lock" else data for path, data in files.items()}


@pytest.fixture
def odd_images(world: Path) -> list[str]:
    """A good one, then one of each kind of bad ones, then a good one."""
    draw(world / "first.png")
    (world / "cut.png").write_bytes((world / "first.png").read_bytes()[:60])
    (world / "text.jpg").write_text("no image")
    (world / "none.png").write_bytes(b"")
    (world / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x50\0\0\0\x50\0\x08\x02\0\0\0\xef\x82\xdf\xd6")
    draw(world / "last.png", 250)
    return ["first.png", "cut.png", "gone.png", "text.jpg", "none.png", "huge.png", "last.png"]


def test_bad_images_between_good_ones_are_rows_of_their_own(
    odd_images: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["zeroshot", *odd_images, "--model", "run", "--classes", "cat,dog", "--json", "-q"]) == 2
    out, err = capfd.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == odd_images
    assert [row["label"] is not None for row in rows] == [True, *[False] * 5, True]
    assert [row["error"] is not None for row in rows] == [False, *[True] * 5, False]
    assert err.count("error: ") == 1
    assert "Warning" not in err
