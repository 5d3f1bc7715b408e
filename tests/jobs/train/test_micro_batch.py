"""How many rows are encoded at once: what is tried, what is said, what a model with BatchNorm is told."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from unicl_cli.contracts import NO_TEXT, Batch
from unicl_cli.core.loop import Step
from unicl_cli.core.memory import is_out_of_memory, room, taken
from unicl_cli.errors import UniclError
from unicl_cli.jobs.train.micro_batch import Shortage, advised, chunks_of, first_rows, largest, settled, shortage
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.recipe.load import load_text

CPU = torch.device("cpu")


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


def settle(most, recipe=None, rows=20, norm=False, tried=None):
    tried = [] if tried is None else tried

    def make(rows):
        tried.append(rows)
        return Step(Hungry(rows, most, norm), Loss()).train(), "tokenizer"

    accelerator = start_accelerator("fp32", "cpu")
    return tried, settled(recipe or recipe_of(), accelerator, make, lambda step, own: batch_of(), rows)


def test_what_fits_is_found_by_halves_and_said(capfd):
    tried, (step, own, rows, frozen) = settle(6)
    assert tried == [20, 10, 5]
    assert (step.model.rows, own, rows, frozen) == (5, "tokenizer", 5, [])
    assert capfd.readouterr().err == "batch.micro: 5 rows at once (of 20): more did not fit into the memory of rank 0\n"
    assert all(p.grad is None for p in step.parameters())


def test_what_fits_at_once_is_not_cut_and_nothing_is_said(capfd):
    tried, (_, _, rows, _) = settle(20)
    assert (tried, rows) == ([20], 20)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("case", "tried", "message", "hint"),
    [
        ({"most": 0}, [20, 10, 5, 3, 2, 1], "a step of 20 rows, 1 at once, does not fit", "take a smaller batch.size"),
        ({"most": 0, "norm": True}, [20], "its BatchNorm needs all rows at once", "parallel.grad_checkpoint=true"),
        ({"most": 3, "recipe": recipe_of(4), "rows": 4}, [4], "batch.micro=4: a step of 20 rows", "batch.micro=auto"),
    ],
)
def test_where_nothing_is_left_to_try_it_says_what_to_do(case, tried, message, hint):
    seen = []
    with pytest.raises(UniclError, match=message) as caught:
        settle(**case, tried=seen)
    assert seen == tried
    assert hint in caught.value.hint
    assert "weights 32 B, gradients 32 B, optimizer 64 B" in caught.value.message or case.get("norm")
    assert caught.value.exit_code == 2


def test_another_fault_is_not_taken_for_a_lack_of_memory():
    class Broken(Loss):
        def forward(self, model, batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        settled(
            recipe_of(), start_accelerator("fp32", "cpu"),
            lambda rows: (Step(Hungry(1, 1, False), Broken()), None), lambda step, own: batch_of(), 20,
        )  # fmt: skip


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
            parts = torch.empty(local).tensor_split(chunks_of(local, rows))
            assert max(map(len, parts)) <= rows
            assert min(map(len, parts)) >= 1


def test_a_checkpoint_decides_where_the_recipe_says_auto(tmp_path):
    (tmp_path / "trainer.json").write_text('{"micro": 7, "files": {}}')
    assert first_rows(recipe_of(), 20, tmp_path) == 7
    assert first_rows(recipe_of(5), 20, tmp_path) == 5
    assert first_rows(recipe_of(50), 20, tmp_path) == 20
    assert first_rows(recipe_of(), 4, tmp_path) == 4
    for text in ('{"micro": null, "files": {}}', '{"micro": "auto", "files": {}}', "{"):
        (tmp_path / "trainer.json").write_text(text)
        assert first_rows(recipe_of(), 20, tmp_path) == 20
    assert first_rows(recipe_of(), 20, None) == 20


def test_the_largest_batch_has_a_text_of_its_own_for_each_row_that_has_one():
    tokenizer = SimpleNamespace(context_length=9, vocab_size=50, eot_id=7)
    batch = largest(batch_of(), tokenizer)
    assert batch.tokens.shape == (20, 9)
    assert len({tuple(row) for row in batch.tokens.tolist()}) == 20
    assert ((batch.tokens == 7).int().argmax(1) == 8).all(), "none ends before the last token"
    assert batch.tokens.max() < 50
    assert (batch.text_index == NO_TEXT).tolist() == (batch_of().text_index == NO_TEXT).tolist()
    assert largest(batch_of(), None).tokens.shape == (2, 3)
    own = batch_of()._replace(extra={"masks": torch.zeros(20)})
    assert largest(own, tokenizer) is own
    assert largest(batch_of(), SimpleNamespace(context_length=1, vocab_size=1)).tokens.tolist() == [[0]] * 20


def test_an_out_of_memory_in_the_middle_of_a_run_is_one_line_with_advice():
    step = Step(Hungry(1, 1, False), Loss())
    with pytest.raises(UniclError) as caught, advised(recipe_of(), None, step):
        torch.empty(1 << 60)
    assert caught.value.message.startswith("rank 0 of 1: out of memory in a step of 20 rows, 20 at once: ")
    assert "you tried to allocate" in caught.value.message
    assert caught.value.hint == "set batch.micro=10; the same command goes on from the last checkpoint"
    with pytest.raises(UniclError) as one, advised(recipe_of(), 1, step):
        raise MemoryError
    assert "take a smaller batch.size" in one.value.hint
    with pytest.raises(RuntimeError, match="mat1"), advised(recipe_of(), 1, step):
        raise RuntimeError("mat1")


def test_memory_is_asked_of_the_system():
    assert room(CPU) is None
    assert taken(CPU) > 2**24
    assert shortage(CPU, 0) is None
    assert str(shortage(CPU, 2**30)) == "1.0 GiB"
    assert str(Shortage(3, math.inf)) == "the memory of rank 3"
