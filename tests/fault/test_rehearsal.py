"""One of two ranks has too little memory: both take fewer rows, under DDP and FSDP2, with the same gradients.

As a script this file is the worker: ``test_rehearsal.py CORPUS``.
"""

import json
import sys

import pytest
import torch
from forking import complete

from unicl_cli.build.data import build_data
from unicl_cli.core.dist import barrier, full_tensor, rank, shard, world_size
from unicl_cli.jobs.train.blueprint import Blueprint
from unicl_cli.jobs.train.micro_batch import fit_micro_batch
from unicl_cli.jobs.train.sizes import is_sharded, sizes_of
from unicl_cli.launch.accelerator import start_accelerator
from unicl_cli.launch.process import end_worker
from unicl_cli.losses.unicl import UniCL
from unicl_cli.recipe.load import load_text


class Hungry(UniCL):
    """On rank 1 it asks for more than there is unless its model encodes in four parts."""

    def forward(self, model, batch):
        if rank() == 1 and model.chunks < 4:
            torch.empty(1 << 60)
        return super().forward(model, batch)


class HungryBlueprint(Blueprint):
    def build(self, rows):
        built = super().build(rows)
        built.step.loss = Hungry()
        return built._replace(step=built.step.double().train())


def gradients(corpus, accelerator, strategy, blocks):
    """(rows at once, loss, norm of each gradient) of the first step."""
    recipe = load_text(
        f"data: {{image_size: 16, augment: none, train: [{{corpus: {corpus}}}]}}\n"
        "model: {image: {name: cnn, width: 8, stages: 2}, text: {name: transformer, width: 16, layers: 2, heads: 2},\n"
        "  embed_dim: 16, tokenizer: corpus, context_length: 24}\n"
        f"batch: {{size: 16}}\nsteps: 2\nparallel: {{strategy: {strategy}, grad_checkpoint: {json.dumps(blocks)}}}"
    )
    data = build_data(recipe)
    blueprint = HungryBlueprint(recipe, data, sizes_of(recipe, data, world_size()))
    built, rows, _ = fit_micro_batch(blueprint, accelerator, 8)
    batch = blueprint.first_batch(built)
    wrapped = shard(built.step) if is_sharded(recipe, world_size()) else accelerator.prepare(built.step)
    loss = wrapped(batch)["loss"]
    loss.backward()
    norms = [full_tensor(p.grad).norm().item() for p in wrapped.parameters()]
    barrier()
    return rows, loss.item(), norms


@pytest.mark.slow
def test_both_ranks_follow_the_one_that_has_too_little(digits):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = complete([*launch, __file__, str(digits)], timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("batch.micro: 2 rows at once (of 8): more did not fit into the memory of rank 1") == 4
    first, *others = json.loads(done.stdout.splitlines()[-1])
    assert first[0] == 2
    for rows, loss, norms in others:
        assert (rows, loss) == (2, pytest.approx(first[1], abs=1e-12))
        assert norms == pytest.approx(first[2], abs=1e-12)


if __name__ == "__main__":
    here = start_accelerator("fp32", "cpu")
    found = [gradients(sys.argv[1], here, s, blocks) for s in ("ddp", "fsdp2") for blocks in (False, True)]
    if rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    torch.distributed.destroy_process_group()
    end_worker(0)
