"""A toy model that also reads profiles, the media of the data set odd-stripes."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from toys import Toy, toy

from unicl_cli.build.load import Loaded
from unicl_cli.contracts import Features
from unicl_cli.core.loop import Step
from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import MediaKind


def read_profile(data: bytes) -> torch.Tensor:
    """The 32 numbers of a profile."""
    if len(data) != 128:
        raise UniclError(f"a profile of {len(data)} bytes instead of 128")
    return torch.from_numpy(np.frombuffer(data, np.float32).copy())


class Hearing(Toy):
    """A toy with a linear look at profiles."""

    media = (MediaKind("profile", (".profile",), read_profile),)

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.hear = nn.Linear(32, 16)

    def encode_extra(self, name, x):
        assert name == "profile"
        pooled = self.hear(x)
        return Features(pooled, F.normalize(pooled, dim=1))


def hearing(loss: nn.Module | None = None) -> Loaded:
    """A loaded model of images, texts and profiles."""
    plain = toy(loss)
    step = Step(Hearing(plain.tokenizer.vocab_size), plain.step.loss).eval()
    return plain._replace(step=step)
