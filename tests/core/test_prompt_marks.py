"""Marks of prompts: any first token can be marked, and the host copy is read, too."""

import torch

from unicl_cli.core.host_copy import HOST
from unicl_cli.core.prompt_marks import mark_prompts, read_marks


def test_marks_are_read_back_on_the_device_and_on_the_host():
    tokens = torch.tensor([[0, 3], [7, 0], [5, 1]])
    marked = tokens.clone()
    mark_prompts(marked, torch.tensor([True, True, False]))
    setattr(marked, HOST, marked.clone())
    plain, is_prompt = read_marks(marked)
    assert torch.equal(plain, tokens)
    assert torch.equal(getattr(plain, HOST), tokens)
    assert is_prompt[:, 0].tolist() == [True, True, False]
    mark_prompts(tokens)
    assert read_marks(tokens)[1].all()
