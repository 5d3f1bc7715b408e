"""Two and three gloo processes give the values and gradients of one, for every loss; as a script it is the worker."""

import json
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forking import complete
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))  # the worker runs this file as a script
from forked_ranks import can_fork, forked

from unicl_cli.contracts import NO_KEY, NO_LABEL, NO_TEXT, Batch, Features, LabelSets
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET, NAMED, OWN_TEXT, PROMPT, PROMPTED, SHOWN
from unicl_cli.core.dist import (
    any_rank,
    bare,
    barrier,
    exchange,
    gather,
    largest_over_ranks,
    mean_over_ranks,
    rank,
    shard,
    share_of_mean,
    sum_over_ranks,
    world_size,
)
from unicl_cli.launch.process import end_worker
from unicl_cli.losses.classify import CrossEntropy, MultiTask
from unicl_cli.losses.clip import Clip
from unicl_cli.losses.supcon import SupCon
from unicl_cli.losses.unicl import UniCL

SIZE, WIDTH, CLASSES = 12, 5, 4


class Block(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x).tanh()


class Tower(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs, self.units = nn.Linear(inputs, WIDTH), nn.ModuleList([Block(WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(self.inputs(x))
        return x


class Pair(nn.Module):
    """A real two-tower model in a few parameters: pixels and bags of words through small residual towers."""

    embed_dim = image_width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.words = Tower(12), Tower(3), nn.Parameter(torch.randn(20, 3))
        self.logit_scale = nn.Parameter(torch.tensor([1.5]))

    def encode_image(self, images: Tensor) -> Features:
        pooled = self.image(images.flatten(1).to(self.words.dtype) / 255)
        return Features(pooled, F.normalize(pooled, dim=-1))

    def encode_text(self, tokens: Tensor) -> Features:
        pooled = self.text(F.embedding(tokens, self.words).mean(1))
        return Features(pooled, F.normalize(pooled, dim=-1))

    def scale(self, name: str = "text") -> Tensor:
        return self.logit_scale.exp()[0]


class Step(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = Pair(), loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.loss(self.model, batch)

    def call(self, name: str, *args: Tensor) -> Features:
        return getattr(self.model, name)(*args)


def with_class_columns(loss: UniCL) -> UniCL:
    loss.add_class_columns(torch.arange(CLASSES * 2).view(CLASSES, 2))
    loss.adjust_logits([5, 1, 70, *range(3, CLASSES)], 0.8)
    return loss


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "unicl": lambda: UniCL(),
    "unicl tile 2": lambda: UniCL(tile=2),
    "unicl, a text a row": lambda: UniCL(fold=False),
    "unicl image": lambda: UniCL(["image"], tile=3),
    "unicl text": lambda: UniCL(["text"]),
    "unicl own text": lambda: UniCL(own_text=0.3, tile=5),
    "unicl adjusted class columns": lambda: with_class_columns(UniCL(own_text=0.3, tile=5)),
    "unicl two texts": lambda: UniCL(own_text=0.3, tile=5),
    "unicl hides captions": lambda: UniCL(hides_named=True, tile=5),
    "clip": lambda: Clip(tile=5),
    "supcon": lambda: SupCon(WIDTH, dim=3, tile=3),
    "ce": lambda: CrossEntropy(WIDTH, CLASSES, label_smoothing=0.1),
    "multitask": lambda: MultiTask(WIDTH, CLASSES, weight=0.7, tile=4),
    "unicl sets": lambda: UniCL(label_sets=SETS, own_text=0.3, tile=5, weights={"shape": 0.5}),
    "unicl sets, a text a row": lambda: UniCL(label_sets=SETS, fold=False),
    "supcon sets": lambda: SupCon(WIDTH, dim=3, tile=3, label_sets=SETS, weights={"shape": 0.5}),
    "ce sets": lambda: CrossEntropy(WIDTH, CLASSES, label_sets=SETS),
    "multitask sets": lambda: MultiTask(WIDTH, CLASSES, weight=0.7, label_sets=SETS),
}
SETS = LabelSets(2, (0, 0, 1, 1), ("colour", "shape"))
MIXES = {  # labels; class 0 and class 2 lie on several ranks; a rank may have no label, no caption or no text at all
    "mixed": [0, 2, -1, 0, -1, 1, 2, 0, -1, -1, 3, 2],
    "captions": [-1] * SIZE,
    "labels": [0, 0, 2, 1, 0, 0, 3, 3, 2, 2, 1, 1],
    "apart": [0, 1, 2, 0, 0, 2, -1, -1, -1, -1, -1, -1],
}
TEXTLESS = {"mixed": [0, 1, 2, 3, 9], "apart": [5, 8, 9, 10, 11]}
CASES = [(loss, mix) for loss in LOSSES for mix in MIXES]


def global_rows(mix: str, views: int) -> dict[str, Tensor]:
    labels = torch.tensor(MIXES[mix])
    rows = torch.arange(SIZE) // 2 * 2 + 100  # each caption row is drawn twice: its own positive
    shows_caption = (labels == NO_LABEL) | (torch.arange(SIZE) % 3 > 0)
    text = torch.where(shows_caption, rows % 9, labels + 9)
    text[TEXTLESS.get(mix, [])] = NO_TEXT
    images = torch.randint(0, 255, (SIZE, views, 3, 2, 2), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    images = images if views > 1 else images[:, 0]
    keys = torch.where(labels == NO_LABEL, 2**40 + rows, labels)
    captions = torch.where(torch.arange(SIZE) % 3 > 0, text % 4 + 70, NO_KEY)
    draws = torch.arange(SIZE) + 7 * SIZE
    named = torch.stack([rows % 3, rows % 4 + 3], 1).masked_fill(labels[:, None] != NO_LABEL, NO_LABEL)
    whole = {"images": images, "text": text, "labels": labels, "keys": keys, "draws": draws, OWN_TEXT: captions}
    return whole | {NAMED: named} | set_columns_of(labels, shows_caption)


def set_columns_of(labels: Tensor, shows_caption: Tensor) -> dict[str, Tensor]:
    """One or two labels of a labelled row; every third knows the group of its first label alone."""
    one, place = labels == NO_LABEL, torch.arange(SIZE)
    second = torch.where(place % 3 > 0, (labels + 2) % CLASSES, NO_LABEL).masked_fill(one, NO_LABEL)
    known = torch.where(place % 3 > 0, 3, 1 << (labels.clamp(min=0) > 1).long()).masked_fill(one, 0)
    return {
        LABEL_SET: torch.stack([labels, second], 1),
        SHOWN: labels.masked_fill(shows_caption, NO_LABEL),
        KNOWN: known,
    }


def share_of(mix: str, views: int, part: int, parts: int, loss: str = "") -> Batch:
    """A contiguous share with its own distinct texts, whose number and length differ by rank."""
    mine = {name: x.tensor_split(parts)[part] for name, x in global_rows(mix, views).items()}
    second = torch.where(mine["labels"] == NO_LABEL, NO_TEXT, (mine["text"] + 3) % 9)
    shown = [*mine["text"].tolist(), *(second.tolist() if "two texts" in loss else [])]
    distinct = sorted({x for x in shown if x != NO_TEXT})
    tokens = torch.tensor([[x, x + 1, (x * x) % 20] for x in distinct] or [[0, 1, 2]])
    index = torch.tensor([distinct.index(int(x)) if x != NO_TEXT else NO_TEXT for x in mine["text"]])
    names = (OWN_TEXT, LABEL_SET, SHOWN, KNOWN, *((NAMED,) if "hides" in loss else ()))
    extra = {name: mine[name] for name in names}
    if "two texts" in loss:
        places = [distinct.index(x) if x != NO_TEXT else NO_TEXT for x in second.tolist()]
        extra |= {PROMPT: torch.tensor(places), PROMPTED: mine["labels"]}
    return Batch(mine["images"], tokens, index, mine["labels"], mine["keys"], mine["draws"], extra)


def prepared(loss: str, mix: str, part: int, parts: int) -> tuple[Step, Batch]:
    torch.manual_seed(0)
    step = Step(LOSSES[loss]()).double()
    batch = share_of(mix, 2 if loss.startswith("supcon") else 1, part, parts, loss)
    step(batch)["loss"].backward()
    for parameter in step.parameters():
        parameter.requires_grad_(parameter.grad is not None)  # DDP wants every trained parameter in every step
        parameter.grad = None
    return step, batch


def outcome(loss: str, mix: str) -> dict[str, object]:
    """Global scalars and gradients of one case, on this rank of however many there are."""
    step, batch = prepared(loss, mix, rank(), world_size())
    wrapped = DistributedDataParallel(step) if world_size() > 1 else step
    out = wrapped(batch)
    out["loss"].backward()
    used = {name: p.grad.tolist() for name, p in bare(wrapped).named_parameters() if p.grad is not None}
    return {"values": mean_over_ranks(out), "gradients": used}


def sharded(loss: str) -> dict[str, object]:
    """Weights after three SGD steps under FSDP2, and a text that was encoded by the sharded step."""
    step, batch = prepared(loss, "mixed", rank(), world_size())
    if world_size() > 1:
        shard(step)
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        step(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        encoded = step.call("encode_text", torch.tensor([[1, 2, 3]])).embed
    full = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in step.named_parameters()}
    return {"weights": {name: p.tolist() for name, p in full.items()}, "encoded": encoded.tolist()}


def primitives() -> dict[str, object]:
    x = torch.arange(4.0).requires_grad_() + rank() * 4
    every = gather(x)
    (weight,) = torch.autograd.grad((every * (rank() + 1)).sum(), x)
    values, valid = torch.tensor([1.0, 5.0, torch.nan]), torch.tensor([True, rank() == 0, False])
    share = sum_over_ranks(share_of_mean(values, valid)) / world_size()
    nobody = share_of_mean(values, torch.zeros(3, dtype=torch.bool))
    barrier()
    parts = torch.arange(world_size() * 2.0).view(-1, 2).requires_grad_()
    exchanged = exchange(parts * (rank() + 1))
    (back,) = torch.autograd.grad((exchanged * (rank() + 1)).sum(), parts)
    return {
        "exchanged": exchanged.tolist(),
        "exchanged back": back.tolist(),
        "agreed": largest_over_ranks(7 - rank()),
        "gathered": every.tolist(),
        "gradient": weight.tolist(),
        "integers": gather(torch.tensor([2**62 + rank()])).tolist(),
        "booleans": gather(torch.tensor([[rank() == 1, True]])).tolist(),
        "share": share.item(),
        "nobody": nobody.item(),
        "means": mean_over_ranks({"a": rank(), "b": torch.tensor(2.0 * rank())}),
        "largest": mean_over_ranks({"a": rank()}, {"b": -1.0 - rank(), "c": float(rank())}),
        "nothing": mean_over_ranks({}),
        "any": [any_rank(rank() == world_size() - 1), any_rank(False)],
    }


def everything() -> dict[str, object]:
    cases = {f"{loss}, {mix}": outcome(loss, mix) for loss, mix in CASES}
    return {"cases": cases, "sharded": {loss: sharded(loss) for loss in LOSSES}, "primitives": primitives()}


def distance(a: object, b: object) -> float:
    """The largest difference between two trees of equal shape."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((distance(a[name], b[name]) for name in a), default=0.0)
    if isinstance(a, list):
        return max((distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return abs(a - b)


@pytest.fixture(scope="module")
def alone() -> dict[str, object]:
    return everything()


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, object]]:
    out = tmp_path_factory.mktemp("ranks") / "out.json"
    if can_fork():
        forked(request.param, lambda: work(out), "everything")
        return request.param, json.loads(out.read_text())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    done = complete([*launch, __file__, str(out)])
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, json.loads(out.read_text())


def test_processes_equal_one_in_values_and_gradients(alone, together):
    _, ranks = together
    for name, case in alone["cases"].items():
        assert distance(case, ranks["cases"][name]) < 1e-12, name


def test_sharded_processes_equal_one_after_three_steps(alone, together):
    _, ranks = together
    for name, case in alone["sharded"].items():
        assert distance(case, ranks["sharded"][name]) < 1e-12, name


def test_the_cases_have_gradients_that_could_be_wrong(alone):
    for name, case in alone["cases"].items():
        flat = [torch.tensor(gradient).abs().max().item() for gradient in case["gradients"].values()]
        empty = name in {"ce, captions", "multitask, labels", "ce sets, captions"}
        assert max(flat) > 1e-3 or empty, name
    labels_only = alone["cases"]["multitask, labels"]
    assert "model.logit_scale" in labels_only["gradients"], "a branch without rows still reaches every parameter"


def test_gather_and_the_means_over_ranks(together):
    world, ranks = together
    seen = ranks["primitives"]
    assert seen["gathered"] == [float(i) for i in range(4 * world)]
    assert seen["gradient"] == [sum(range(1, world + 1))] * 4, "the gradients of all ranks' losses, summed"
    assert seen["integers"] == [2**62 + i for i in range(world)]
    assert seen["booleans"] == list(chain([[i == 1, True] for i in range(world)]))
    assert seen["share"] == pytest.approx((world + 5) / (world + 1))
    assert seen["nobody"] == 0
    assert seen["means"] == {"a": (world - 1) / 2, "b": world - 1}
    assert seen["largest"] == {"a": (world - 1) / 2, "b": -1.0, "c": world - 1}
    assert seen["nothing"] == {}
    assert seen["exchanged"] == [[0.0, r + 1.0] for r in range(world)], "the first rank's part of every rank's"
    assert seen["exchanged back"] == [[r + 1.0] * 2 for r in range(world)]
    assert seen["agreed"] == 7
    assert seen["any"] == [True, False]


def test_alone_a_gather_is_the_tensor_itself(alone):
    x = torch.ones(3)
    assert gather(x) is x
    assert (rank(), world_size()) == (0, 1)
    assert alone["primitives"]["any"] == [True, False]
    assert alone["primitives"]["share"] == 3


def work(out: Path) -> int:
    """Be one rank, of which the first writes what it has found."""
    dist.init_process_group("gloo")
    result = everything()
    if rank() == 0:
        out.write_text(json.dumps(result))
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    end_worker(work(Path(sys.argv[1])))
