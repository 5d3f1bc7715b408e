"""Rows encoded at once: the numbers that are tried, the messages, and models with BatchNorm."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from unicl_cli.contracts import NO_TEXT, Batch
from unicl_cli.core.loop import Step
from unicl_cli.core.memory import is_out_of_memory, memory_limit, memory_used
from unicl_cli.errors import UniclError
from unicl_cli.formats import byte_size
from unicl_cli.jobs.train.blueprint import Built
from unicl_cli.jobs.train.micro_batch import (
    Shortage,
    explain_out_of_memory,
    find_shortage,
    first_rows,
    fit_micro_batch,
    longest_texts,
)
from unicl_cli.jobs.train.sizes import Sizes, chunk_count
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.recipe.load import load_text

CPU = torch.device("cpu")
OLD_CHECKPOINT = Path(__file__).parents[2] / "fixtures/before-rooms/old-run/checkpoints/step-00000025"


def recipe_of(micro="auto", batch=20):
    return load_text(
        "data: {train: [{corpus: c}]}\nmodel: {image: cnn, text: cbow}\nsteps: 1\n"
        f"batch: {{size: {batch}, micro: {micro}}}"
    )


class Hungry(nn.Module):
    """Asks for more than there is, unless it encodes ``most`` rows or fewer at once."""

    def __init__(self, rows, most, norm):
        super().__init__()
        self.rows, self.most = rows, most
        self.look, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2) if norm else nn.Identity()


class Loss(nn.Module):
    def forward(self, model, batch):
        if model.rows > model.most:
            torch.empty(1 << 60)
        return {"loss": model.norm(model.look(batch.images.float())).square().mean()}


def batch_of(rows=20):
    return Batch(
        images=torch.rand(rows, 3), tokens=torch.tensor([[1, 7, 0], [1, 2, 7]]), text_index=torch.arange(rows) % 3 - 1,
        **{name: torch.arange(rows) for name in ("labels", "keys", "draws")}, extra={},
    )  # fmt: skip


class Blueprint:
    """Builds models that have memory for ``most`` rows at once; notes the rows that are tried."""

    def __init__(self, most, norm=False, recipe=None, loss=Loss):
        self.most, self.norm, self.loss, self.tried = most, norm, loss, []
        self.recipe, self.sizes = recipe or recipe_of(), Sizes(world=1, local=20, steps=1)

    def build(self, rows):
        self.tried.append(rows)
        return Built(Step(Hungry(rows, self.most, self.norm), self.loss()).train(), "tokenizer", None)

    def first_batch(self, built):
        return batch_of()


def fit(blueprint, rows=20):
    return fit_micro_batch(blueprint, start_accelerator("fp32", "cpu"), rows)


def test_what_fits_is_found_by_halves_and_said(capfd):
    blueprint = Blueprint(6)
    (step, tokenizer, _), rows, found = fit(blueprint)
    assert blueprint.tried == [20, 10, 5]
    assert (step.model.rows, tokenizer, rows, found.reached.tolist()) == (5, "tokenizer", 5, [1, 1])
    assert capfd.readouterr().err == "batch.micro: 5 rows at once (of 20): more did not fit into the memory of rank 0\n"
    assert all(p.grad is None for p in step.parameters())


def test_what_fits_at_once_is_not_cut_and_nothing_is_said(capfd):
    blueprint = Blueprint(20)
    assert fit(blueprint).rows == 20
    assert blueprint.tried == [20]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("case", "tried", "message", "hint"),
    [
        ({"most": 0}, [20, 10, 5, 3, 2, 1], "a step of 20 rows, 1 at once, does not fit", "use a smaller batch.size"),
        ({"most": 0, "norm": True}, [20], "its BatchNorm needs all rows at once", "parallel.grad_checkpoint=true"),
        ({"most": 3, "recipe": recipe_of(4)}, [4], "batch.micro=4: a step of 20 rows", "batch.micro=auto"),
    ],
)
def test_where_nothing_is_left_to_try_it_says_what_to_do(case, tried, message, hint):
    blueprint = Blueprint(**case)
    with pytest.raises(UniclError, match=message) as caught:
        fit(blueprint, tried[0])
    assert blueprint.tried == tried
    assert hint in caught.value.hint
    assert "weights 32 B, gradients 32 B, optimizer 64 B" in caught.value.message or case.get("norm")
    assert caught.value.exit_code == 2


def test_another_fault_is_not_taken_for_a_lack_of_memory():
    class Broken(Loss):
        def forward(self, model, batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fit(Blueprint(20, loss=Broken))


def test_every_allocators_words_are_known():
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(1 << 60)
    known = [cpu.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("std::bad_alloc")]
    assert all(map(is_out_of_memory, known))
    assert not any(map(is_out_of_memory, [RuntimeError("mat1 and mat2"), ValueError("out of memory")]))


def test_parts_follow_from_the_rows_at_once_alone():
    for local in range(1, 40):
        rows = local
        while rows > 1:
            rows = -(-rows // 2)
            parts = torch.empty(local).tensor_split(chunk_count(local, rows))
            assert max(map(len, parts)) <= rows
            assert min(map(len, parts)) >= 1


def test_a_checkpoint_decides_where_the_recipe_says_auto(tmp_path):
    folder = tmp_path / "step-00000025"
    shutil.copytree(OLD_CHECKPOINT, folder)
    facts = json.loads((folder / "trainer.json").read_text())
    (folder / "trainer.json").write_text(json.dumps(facts | {"micro": 7}))
    assert first_rows("auto", 20, folder) == 7
    assert first_rows(5, 20, folder) == 5
    assert first_rows(50, 20, folder) == 20
    assert first_rows("auto", 4, folder) == 4
    for text in (json.dumps(facts | {"micro": None}), "{"):
        (folder / "trainer.json").write_text(text)
        assert first_rows("auto", 20, folder) == 20
    (folder / "trainer.json").write_text(json.dumps(facts | {"micro": "auto"}))
    with pytest.raises(UniclError, match="micro: should be a valid integer"):
        first_rows("auto", 20, folder)
    assert first_rows("auto", 20, None) == 20


def test_the_largest_batch_has_a_text_of_its_own_for_each_row_that_has_one():
    tokenizer = SimpleNamespace(context_length=9, vocab_size=50, eot_id=7)
    batch = longest_texts(batch_of(), tokenizer)
    assert batch.tokens.shape == (20, 9)
    assert len({tuple(row) for row in batch.tokens.tolist()}) == 20
    assert ((batch.tokens == 7).int().argmax(1) == 8).all(), "none ends before the last token"
    assert batch.tokens.max() < 50
    assert (batch.text_index == NO_TEXT).tolist() == (batch_of().text_index == NO_TEXT).tolist()
    assert longest_texts(batch_of(), None).tokens.shape == (2, 3)
    masks = batch_of()._replace(extra={"masks": torch.zeros(20, 3)})
    assert longest_texts(masks, tokenizer) is masks, "a column over the tokens must fit them"
    numbers = batch_of()._replace(extra={"own_text": torch.zeros(20)})
    assert longest_texts(numbers, tokenizer).tokens.shape == (20, 9)
    assert longest_texts(batch_of(), SimpleNamespace(context_length=1, vocab_size=1)).tokens.tolist() == [[0]] * 20


def test_an_out_of_memory_in_the_middle_of_a_run_is_one_line_with_advice():
    step = Step(Hungry(1, 1, False), Loss())
    with pytest.raises(UniclError) as caught, explain_out_of_memory(20, 20, step):
        torch.empty(1 << 60)
    assert caught.value.message.startswith("rank 0 of 1: out of memory in a step of 20 rows, 20 at once: ")
    assert "you tried to allocate" in caught.value.message
    assert caught.value.hint == "set batch.micro=10; run the same command again to continue from the last checkpoint"
    with pytest.raises(UniclError) as one, explain_out_of_memory(20, 1, step):
        raise MemoryError
    assert "use a smaller batch.size" in one.value.hint
    with pytest.raises(RuntimeError, match="mat1"), explain_out_of_memory(20, 1, step):
        raise RuntimeError("mat1")


def test_memory_is_asked_of_the_system():
    assert memory_limit(CPU) is None
    assert memory_used(CPU) > 2**24
    assert [byte_size(n) for n in (5, 2048, 3 * 2**30, 2**50)] == ["5 B", "2.0 KiB", "3.0 GiB", "1024.0 TiB"]
    assert find_shortage(CPU, 0) is None
    assert str(find_shortage(CPU, 2**30)) == "1.0 GiB"
    assert str(Shortage(3, math.inf)) == "the memory of rank 3"
