"""The traits of towers: declared at once, as attributes, or not at all."""

import dataclasses
import inspect

import pytest
import torch
from torch import nn

from unicl_cli.contracts import LogitScale
from unicl_cli.core.loop import Step
from unicl_cli.core.switches import apply_switches
from unicl_cli.core.text_cache import build_text_cache
from unicl_cli.core.towers import ATTRIBUTES, change_traits, own_units, traits_in, traits_of
from unicl_cli.model import Projected, TwoTower
from unicl_cli.tower_contracts import StoresFiles, Tower, TowerTraits


class Bare(nn.Module):
    """All that a tower needs: a width and its units."""

    units = ()

    def __init__(self, width=4):
        super().__init__()
        self.width = width
        self.read = nn.Linear(3, width)

    def forward(self, x):
        return self.read(x.flatten(2).mean(2))


class Words(Bare):
    def forward(self, tokens):
        return self.read(nn.functional.one_hot(tokens, 3).float().mean(1))


def model_of(image, text=None):
    return TwoTower(image, text, embed_dim=5, normalize=True, logit_scale=LogitScale())


def test_a_module_with_width_and_units_is_a_tower():
    model = model_of(Bare(), Words())
    assert traits_of(model.image.trunk) == TowerTraits()
    assert model.encode_image(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).embed.shape == (2, 5)
    assert model.encode_text(torch.zeros(2, 4, dtype=torch.int64)).embed.shape == (2, 5)
    assert model.pixel_mean.flatten().tolist() == [127.5] * 3
    assert own_units(nn.Linear(1, 1)) == []


def test_traits_are_declared_in_one_attribute():
    tower = Bare()
    tower.traits = TowerTraits(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    tower.mean = (9.0, 9.0, 9.0)  # where there are traits, no attribute is read beside them
    assert model_of(tower).pixel_mean.flatten().tolist() == pytest.approx([25.5, 51.0, 76.5])


def test_attributes_of_the_same_names_still_count():
    """The older form of a plugin: one attribute for each trait."""
    values = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "frame": len, "tokenizer": len, "pad_id": 7}
    values |= {"context_length": 9, "trim_safe": True, "drops": True, "projects": True}
    assert set(values) == set(ATTRIBUTES)
    assert set(ATTRIBUTES) <= {field.name for field in dataclasses.fields(TowerTraits)}
    tower = Words()
    for name, value in values.items():
        setattr(tower, name, value)
    assert traits_of(tower) == TowerTraits(**values)
    assert not isinstance(model_of(Bare(), tower).text, Projected)
    tower.eval().requires_grad_(requires_grad=False)
    bank = build_text_cache(tower, tower)
    assert bank is not None
    assert (bank.pad_id, bank.context_length) == (7, 9)


def test_other_attributes_of_a_module_are_no_traits():
    """A `config` of transformers, or a library's own `settings`, means nothing here."""
    tower = Bare()
    tower.settings, tower.packs, tower.channels_last = {"width": 1}, True, True
    assert traits_of(tower) == TowerTraits()


def test_a_tower_that_drops_says_so():
    model = nn.Module()
    model.text = Words()
    step = Step(model, nn.Identity()).train()
    assert not step.drops_texts()
    change_traits(model.text, drops=True)
    assert step.drops_texts()


def test_switches_change_only_the_traits_that_are_on():
    model = model_of(Bare(), Words())
    change_traits(model.text.trunk, packs=True)
    apply_switches(model, pack_texts=False, channels_last=False)
    assert traits_of(model.text.trunk).packs is False
    assert not hasattr(model.image.trunk, "traits"), "nothing to switch off"
    assert sum(traits.packs is not None for traits in traits_in(model)) == 1


def test_a_tower_with_files_is_told_by_its_method():
    class Stored(Bare):
        def store(self, folder):
            (folder / "facts").touch()

    assert isinstance(Stored(), StoresFiles)
    assert not isinstance(Bare(), StoresFiles)


def test_every_trait_is_documented_with_its_readers():
    text = Tower.__doc__ or ""
    assert "TowerTraits" in text
    source = inspect.getsource(TowerTraits)
    for field in dataclasses.fields(TowerTraits):
        lines = source.split(f"    {field.name}: ")[1].split('"""')
        assert "ead" in lines[1] or "Compared" in lines[1], f"{field.name}: who reads it?"
