"""ImageBind's loss against InfoNCE of another author, its golden value, empty modalities, and a small world of four."""

from typing import ClassVar

import pytest
import torch
from info_nce import InfoNCE
from torch import Tensor, nn
from torch.nn import functional as F
from unicl_imagebind import build_loss
from unicl_imagebind.model import ImageBind

from unicl_cli.api import Batch, Features, Model, UniclError
from unicl_cli.testing import FeatureTable, batch_of


def table(rows: int, width: int, seed: int) -> Tensor:
    """Rows of systems' golden inputs, without a random generator: float64, unit length."""
    i = torch.arange(rows * width).view(rows, width).double()
    return F.normalize(torch.sin(i * 0.7 * seed + seed) + 0.3 * torch.cos(i * i * 0.013 * seed), dim=-1)


class Given(ImageBind):
    """The model's interface on given vectors, which it normalises as the other author's loss does; scales are fixed."""

    def __init__(self, image: Tensor, text: Tensor, others: dict[str, Tensor], scales: dict[str, float]) -> None:
        nn.Module.__init__(self)
        self.image, self.words = nn.Parameter(image), nn.Parameter(text)
        self.given = nn.ParameterDict({name: nn.Parameter(x) for name, x in others.items()})
        self.others, self.factors = tuple(others), scales

    def encode_image(self, images: Tensor) -> Features:
        return Features(self.image, F.normalize(self.image, dim=-1))

    def encode_text(self, tokens: Tensor) -> Features:
        return Features(self.words, F.normalize(self.words, dim=-1))

    def encode_extra(self, name: str, x: Tensor) -> Features:
        return Features(self.given[name], F.normalize(self.given[name], dim=-1))

    def scale(self, name: str = "text") -> Tensor:
        return torch.tensor(self.factors[name], dtype=torch.float64)


def batch_with(rows: int, has: dict[str, list[bool]]) -> Batch:
    """A batch of captions whose extra columns say what each row has."""
    extra = {f"has_{name}": torch.tensor(column) for name, column in has.items()}
    return batch_of([-1] * rows)._replace(extra=extra | {name: torch.zeros(rows, 1) for name in has if name != "text"})


def pair_loss(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Both directions by the other author."""
    oracle = InfoNCE(temperature=1 / scale)
    return oracle(a, b) + oracle(b, a)


def test_golden_value_of_both_directions() -> None:
    v, u = table(6, 8, 1), table(6, 8, 2)
    assert v[0, :3].tolist() == pytest.approx([0.5096702851, 0.5767209690, 0.4353662321])
    model = Given(v, u, {"audio": u.clone()}, {"text": 20.0, "audio": 20.0})
    nothing = batch_with(6, {"text": [True] * 6, "audio": [False] * 6})
    out = build_loss()(model, nothing)
    assert out["loss"].item() == pytest.approx(8.697410205570668, abs=1e-12)
    assert out["loss_per_image"].item() == pytest.approx(4.664697745074791, abs=1e-12)
    assert out["loss_per_text"].item() == pytest.approx(8.697410205570668 - 4.664697745074791, abs=1e-12)


def test_it_is_the_sum_of_info_nce_over_modalities_in_value_and_gradient() -> None:
    v, text, sound, depth = (table(7, 5, seed) for seed in (1, 2, 3, 4))
    scales = {"text": 1 / 0.07, "audio": 20.0, "depth": 5.0}
    model = Given(v, text, {"audio": sound, "depth": depth}, scales)
    has = {
        "text": [True] * 7,
        "audio": [True, False, True, True, False, True, True],
        "depth": [False, True, True, False, True, True, False],
    }
    out = build_loss()(model, batch_with(7, has))
    expected = pair_loss(model.image, model.words, scales["text"])
    for name in ("audio", "depth"):
        rows = torch.tensor(has[name])
        expected = expected + pair_loss(model.image[rows], model.given[name][rows], scales[name])
    torch.testing.assert_close(out["loss"], expected, rtol=1e-12, atol=1e-12)
    parts = ("loss_per_image", "loss_per_text", "loss_per_audio", "loss_per_depth")
    assert sum(out[name].item() for name in parts) == pytest.approx(out["loss"].item())
    mine, other = (torch.autograd.grad(x, list(model.parameters())) for x in (out["loss"], expected))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)


def test_a_batch_with_nothing_but_images_is_zero_with_every_gradient() -> None:
    model = Given(table(4, 5, 1), table(4, 5, 2), {"audio": table(4, 5, 3)}, {"text": 10.0, "audio": 20.0})
    out = build_loss()(model, batch_with(4, {"text": [False] * 4, "audio": [False] * 4}))["loss"]
    out.backward()
    assert out == 0
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_rows_of_one_class_are_positives_of_each_other() -> None:
    v, text, sound = (table(4, 5, seed) for seed in (1, 2, 3))
    model = Given(v, text, {"audio": sound}, {"text": 10.0, "audio": 20.0})
    batch = batch_with(4, {"text": [False] * 4, "audio": [True] * 4})
    batch = batch._replace(keys=torch.tensor([3, 3, 5, 6]))
    same = batch.keys[:, None] == batch.keys
    expected = torch.zeros((), dtype=torch.float64)
    for q, k in ((v, sound), (sound, v)):
        each = (20.0 * q @ k.T).log_softmax(1)
        expected = expected - ((each * same).sum(1) / same.sum(1)).mean()
    assert build_loss()(model, batch)["loss"].item() == pytest.approx(expected.item())


def test_another_model_is_refused_in_one_line() -> None:
    model: Model = FeatureTable(rows=3, width=4)
    with pytest.raises(UniclError, match=r"loss: 'imagebind' needs the towers of model.name=imagebind"):
        build_loss()(model, batch_of([-1] * 3))


# -- the smallest world in which modalities that never met come to agree --------------------------------------------


class World:
    """Latent z of 12 numbers, seen by fixed random generators with noise 0.3 (ImageBind's emergence in small)."""

    sizes: ClassVar = {"image": 48, "text": 32, "audio": 40, "depth": 24}

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(7)
        self.first = {n: torch.randn(12, 64, generator=rng) * 1.5 / 12**0.5 for n in self.sizes}
        self.second = {n: torch.randn(64, d, generator=rng) / 8 for n, d in self.sizes.items()}

    def show(self, name: str, z: Tensor, rng: torch.Generator) -> Tensor:
        clean = torch.tanh(z @ self.first[name]) @ self.second[name]
        return clean + 0.3 * torch.randn(clean.shape, generator=rng)


class Encoders(ImageBind):
    """Small encoders into 16 dimensions behind the model's interface; tokens and images are plain numbers."""

    def __init__(self, sizes: dict[str, int]) -> None:
        nn.Module.__init__(self)
        self.nets = nn.ModuleDict(
            {n: nn.Sequential(nn.Linear(d, 96), nn.GELU(), nn.Linear(96, 16)) for n, d in sizes.items()}
        )
        self.others = tuple(name for name in sizes if name not in ("image", "text"))
        self.scales = nn.ParameterDict({n: nn.Parameter(torch.tensor([2.659])) for n in sizes})

    def look(self, name: str, x: Tensor) -> Features:
        joint = F.normalize(self.nets[name](x), dim=-1)
        return Features(joint, joint)

    def encode_image(self, images: Tensor) -> Features:
        return self.look("image", images)

    def encode_text(self, tokens: Tensor) -> Features:
        return self.look("text", tokens)

    def encode_extra(self, name: str, x: Tensor) -> Features:
        return self.look(name, x)

    def scale(self, name: str = "text") -> Tensor:
        return self.scales[name].exp().squeeze(0)


def train_world(steps: int, *, shuffled: bool) -> dict[str, float]:
    """Train on pairs with images alone, 128 fresh rows of each; recall at 1 among 500 test rows by direction."""
    torch.manual_seed(0)
    world, rng = World(), torch.Generator().manual_seed(1)
    model, loss = Encoders(world.sizes), build_loss()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    rows, names = 128, ("text", "audio", "depth")
    for _ in range(steps):
        z = torch.randn(rows * len(names), 12, generator=rng)
        seen = {name: world.show(name, z, rng) for name in world.sizes}
        has = {name: torch.arange(len(z)) // rows == n for n, name in enumerate(names)}
        if shuffled:  # each with the image of another row
            seen |= {name: seen[name].view(3, rows, -1).roll(1, 1).flatten(0, 1) for name in names}
            order = torch.randperm(rows, generator=rng)
            seen |= {name: seen[name].view(3, rows, -1)[:, order].flatten(0, 1) for name in names}
        extra = {name: seen[name] for name in ("audio", "depth")} | {f"has_{n}": column for n, column in has.items()}
        numbers = torch.arange(len(z))
        batch = Batch(seen["image"], seen["text"], numbers, -torch.ones(len(z)).long(), numbers, numbers, extra)
        out = loss(model, batch)["loss"]
        optimizer.zero_grad()
        out.backward()
        optimizer.step()
    z = torch.randn(500, 12, generator=rng)
    with torch.no_grad():
        found = {name: model.look(name, world.show(name, z, rng)).embed for name in world.sizes}
    right = torch.arange(500)
    pairs = (("image", "text"), ("image", "audio"), ("audio", "text"), ("text", "audio"))
    return {f"{a} {b}": float(((found[a] @ found[b].T).argmax(1) == right).float().mean()) for a, b in pairs}


@pytest.mark.slow
def test_sounds_find_texts_that_they_never_met_and_not_better_than_their_two_legs() -> None:
    found = train_world(150, shuffled=False)
    assert found["audio text"] >= 0.5
    assert found["text audio"] >= 0.5
    assert found["audio text"] <= min(found["image text"], found["image audio"]) + 0.03


def test_nothing_emerges_from_shuffled_pairs() -> None:
    assert max(train_world(30, shuffled=True).values()) < 0.02
