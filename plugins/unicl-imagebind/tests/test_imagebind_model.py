"""The model: unit vectors and scales apart, the hook that reads media, modality dropout, towers, mistakes."""

import math

import numpy as np
import pytest
import torch
from media_bytes import npy, png, sound, tone
from torch import nn
from unicl_imagebind import build_audio, build_grey, build_model, build_motion
from unicl_imagebind.model import ImageBind

from unicl_cli.api import Drawn, LogitScale, Part, UniclError, decay_groups

SIZES = {"width": 16, "layers": 1, "heads": 2}


class Words(nn.Module):
    """A bag of words with a length of its own."""

    width, units = 8, ()

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens).mean(1)


class Pixels(nn.Module):
    """The mean colour of an image."""

    width, units = 3, ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def encoder(part: Part) -> nn.Module:
    made = {
        "pixels": Pixels,
        "words": Words,
        "audio": lambda: build_audio(**SIZES, mels=16, frames=20, patch=8, stride=4),
        "depth": lambda: build_grey(image_size=16, **SIZES, patch=8),
        "imu": lambda: build_motion(**SIZES, samples=16),
        "other": lambda: build_grey(image_size=16, **SIZES, patch=8),
    }
    return made[part.name]()


def model_of(*names: str, dropout: float = 0.0, scales: dict[str, LogitScale] | None = None) -> ImageBind:
    torch.manual_seed(0)
    image, text, others = Part("pixels", {}), Part("words", {}), {name: Part(name, {}) for name in names}
    found = build_model(
        encoder=encoder, chunks=1, image=image, text=text, others=others, embed_dim=8, scales=scales or {},
        modality_dropout=dropout,
    )  # fmt: skip
    assert isinstance(found, ImageBind)
    return found


def row(n: int, text: str | None = "a", **media: bytes) -> Drawn:
    return Drawn(n, n, 0, torch.zeros(3, 4, 4, dtype=torch.uint8), -1, text, 0, media, key=f"c/{n}")


MEDIA = {"audio": sound(tone(4000)), "depth": png(np.full((20, 20), 9000, np.uint16)), "imu": npy(np.ones((9, 6)))}


def read(model: ImageBind, rows: list[Drawn]) -> dict[str, torch.Tensor]:
    index = torch.tensor([-1 if one.text is None else 0 for one in rows])
    return model.extra(rows, torch.zeros(1, 1, dtype=torch.int64), index)


def test_vectors_have_unit_length_and_scales_are_the_published_ones() -> None:
    model = model_of("audio", "depth", "imu", "other")
    extra = read(model, [row(0, **MEDIA, other=MEDIA["depth"]), row(1)])
    for name in model.others:
        found = model.encode_extra(name, extra[name])
        assert found.pooled.shape == (2, 16)
        assert found.embed.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    scales = [float(model.scale(name)) for name in ("text", "audio", "depth", "imu", "other")]
    assert scales == pytest.approx([1 / 0.07, 20, 5, 5, 1 / 0.07], rel=1e-4)
    learned = [name for name, parameter in model.named_parameters() if "scale" in name and parameter.requires_grad]
    assert learned == ["two.logit_scale", "logit_scales.other"]


def test_scales_of_the_recipe_replace_the_published_ones_and_are_capped() -> None:
    model = model_of("audio", scales={"audio": LogitScale(init=7.0, max=9.0)})
    assert float(model.scale("audio")) == pytest.approx(7)
    with torch.no_grad():
        model.logit_scales["audio"].fill_(math.log(50))
        model.two.logit_scale.fill_(math.log(500))
    model.after_step()
    assert float(model.scale("audio")) == pytest.approx(9)
    assert float(model.scale()) == pytest.approx(100)


def test_a_missing_modality_is_zeros_and_a_false_column() -> None:
    model = model_of("audio", "depth")
    extra = read(model, [row(0, audio=MEDIA["audio"]), row(1, None, depth=MEDIA["depth"]), row(2, imu=MEDIA["imu"])])
    assert {name: extra[f"has_{name}"].tolist() for name in ("text", "audio", "depth")} == {
        "text": [True, False, True],
        "audio": [True, False, False],
        "depth": [False, True, False],
    }
    assert [bool(x.any()) for x in extra["audio"]] == [True, False, False]
    assert extra["depth"].shape == (3, 1, 16, 16)


def test_a_medium_that_cannot_be_read_names_its_row() -> None:
    with pytest.raises(UniclError, match=r"data.train: row 'c/1': audio: a WAV that is cut off"):
        read(model_of("audio"), [row(0), row(1, audio=MEDIA["audio"][:3000])])


def test_modality_dropout_hides_as_often_as_asked_and_keeps_one() -> None:
    model, rows = model_of("audio", "depth", dropout=0.4), 300
    drawn = [row(n, audio=MEDIA["audio"], depth=MEDIA["depth"]) for n in range(rows)]
    extra = read(model, drawn)
    has = torch.stack([extra[f"has_{name}"] for name in ("text", "audio", "depth")], 1)
    assert has.any(1).all()
    assert float(has.float().mean()) == pytest.approx(0.6 + 0.4**3 / 3, abs=0.05)
    assert not extra["audio"][~extra["has_audio"]].any()
    again = read(model, drawn[100:])
    assert torch.equal(again["has_audio"], extra["has_audio"][100:]), "of (seed, draw) alone"
    only = read(model, [row(n, None, audio=MEDIA["audio"]) for n in range(20)])
    assert only["has_audio"].all()
    assert not only["has_text"].any()


def test_micro_batches_change_neither_values_nor_gradients() -> None:
    model = model_of("audio")
    x = read(model, [row(n, audio=sound(tone(4000, hertz=200.0 + n))) for n in range(5)])["audio"]
    grads = []
    for chunks in (1, 3):
        model.chunks = chunks
        model.zero_grad()
        out = model.encode_extra("audio", x).embed
        (out * torch.arange(40.0).view(5, 8)).sum().backward()
        grads.append((out.detach(), [p.grad for p in model.towers.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours_and_clips_are_averaged() -> None:
    torch.manual_seed(0)
    tower = build_audio(**SIZES, mels=16, frames=20, patch=8, stride=4, clips=2).eval()
    x = torch.randn(3, 2, 16, 20)
    torch.testing.assert_close(tower(x)[1:2], tower(x[1:2]))
    one = tower(x.flatten(0, 1)[:, None]).view(3, 2, -1).mean(1)
    torch.testing.assert_close(tower(x), one)


def test_published_towers_have_the_published_tokens() -> None:
    with torch.device("meta"):
        audio, depth, motion = build_audio(), build_grey(image_size=224), build_motion()
    assert [tower.positions.shape for tower in (audio, depth, motion)] == [(1, 229, 768), (1, 197, 384), (1, 251, 512)]
    assert [len(tower.units) for tower in (audio, depth, motion)] == [12, 12, 6]


def test_suffixes_follow_the_name_of_the_modality() -> None:
    kinds = {kind.name: kind.suffixes for kind in model_of("audio", "depth", "imu").media}
    assert kinds == {
        "audio": (".wav", ".flac", ".ogg"),
        "depth": (".depth.png", "_depth.png"),
        "imu": (".npy", ".csv"),
    }


def test_mistakes_are_one_line() -> None:
    image, text, audio = Part("pixels", {}), Part("words", {}), {"audio": Part("audio", {})}

    def build(**options: object) -> object:
        return build_model(encoder=encoder, chunks=1, **options)  # pyright: ignore[reportArgumentType]

    for options, message in (
        ({"image": image, "others": audio}, "needs image and text, or base"),
        ({"others": audio}, "needs image and text, or base"),
        ({"image": image, "text": text, "base": image, "others": audio}, "needs image and text, or base"),
        ({"image": image, "text": text, "others": {}}, "model.others is empty"),
        ({"image": image, "text": text, "others": {"text": text}}, "'text' is not one of model.others"),
        ({"image": image, "text": text, "others": audio, "scales": {"depth": LogitScale()}}, "'depth' is not one"),
        ({"image": image, "text": text, "others": {"audio": image}}, r"model.others.audio: Pixels reads no media"),
        ({"base": image, "others": audio}, "model.base: is not a model of an image and a text tower"),
    ):
        with pytest.raises(UniclError, match=message):
            build(**options)
    with pytest.raises(UniclError, match="a width of 10 is not a multiple of 4 heads"):
        build_motion(width=10, heads=4, samples=16)
    with pytest.raises(UniclError, match="window: 10 samples are not cut by windows of 8"):
        build_motion(samples=10)
    with pytest.raises(UniclError, match="patch: 16 is larger than an input of 8 x 20"):
        build_audio(mels=8, frames=20)


def test_tokens_positions_and_biases_of_the_towers_do_not_decay() -> None:
    model = model_of("audio", "depth", "imu")
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, 0.2))
    ends = ("start", "positions", "bias_k", "bias_v", "bias")
    assert not [name for name in decayed if name.endswith(ends)]
    assert len([name for name in plain if name.endswith(ends[:4])]) == 3 * 4
    assert all(name.endswith(("weight", "in_proj_weight")) for name in decayed)
