"""The blueprint of a model: the same weights however many rows it encodes at once; BatchNorm needs all."""

import pytest
import torch
from torch import nn

from unicl_cli.build.data import build_data
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.blueprint import Blueprint, has_batch_statistics, join_batchnorm
from unicl_cli.jobs.train.sizes import Sizes, chunk_count, is_sharded, sizes_of
from unicl_cli.recipe.load import load_text

CNN, RESNET = "{name: cnn, width: 8, stages: 2}", "{name: timm, model: resnet10t}"


def blueprint(digits, image=CNN, more="steps: 5"):
    recipe = load_text(
        f"data: {{image_size: 32, augment: none, train: [{{corpus: {digits}}}]}}\nbatch: {{size: 12}}\n{more}\n"
        f"model: {{image: {image}, text: {{name: transformer, width: 16, layers: 1, heads: 2}}, embed_dim: 16}}"
    )
    data = build_data(recipe)
    return Blueprint(recipe, data, sizes_of(recipe, data, 1))


def test_rows_at_once_change_no_weight_and_no_batch(digits):
    ours = blueprint(digits)
    whole, parts = ours.build(12), ours.build(5)
    assert (whole.step.model.chunks, parts.step.model.chunks) == (1, 3)
    one, other = whole.step.state_dict(), parts.step.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.first_batch(whole)[:-1], ours.first_batch(parts)[:-1], strict=True)
    )
    assert whole.tokenizer is parts.tokenizer, "fitted once"
    assert whole.origin is None


def test_batchnorm_in_parts_is_refused(digits):
    ours = blueprint(digits, RESNET)
    ours.build(12)
    with pytest.raises(UniclError, match="BatchNorm would get other statistics") as caught:
        ours.build(6)
    assert caught.value.hint == "set batch.micro=auto, or use a backbone without BatchNorm"


def test_sizes_follow_from_recipe_data_and_processes(digits):
    recipe = blueprint(digits, more="samples: 50\nparallel: {strategy: fsdp2}").recipe
    data = build_data(recipe)
    assert sizes_of(recipe, data, 3) == Sizes(world=3, local=4, steps=5)
    assert (is_sharded(recipe, 1), is_sharded(recipe, 2)) == (False, True)
    assert not is_sharded(
        recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"strategy": "ddp"})}), 2
    )
    assert [chunk_count(12, rows) for rows in (12, 6, 5, 1)] == [1, 2, 3, 12]


def test_batchnorm_of_several_gpus_sees_the_whole_batch_and_keeps_weights_and_names(digits):
    step = blueprint(digits, RESNET).build(12).step
    names = [name for name, _ in step.named_parameters()]
    weights = {name: x.clone() for name, x in step.state_dict().items()}
    joined = join_batchnorm(step)
    kinds = [m for m in joined.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # pyright: ignore[reportPrivateUsage]
    assert kinds
    assert all(isinstance(m, nn.SyncBatchNorm) for m in kinds)
    assert [name for name, _ in joined.named_parameters()] == names
    assert all(torch.equal(x, joined.state_dict()[name]) for name, x in weights.items())
    assert has_batch_statistics(joined), "it still needs all rows of a process at once"
