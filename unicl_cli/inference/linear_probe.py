"""A fitted probe as a file: a linear classifier on a model's image features, and the check that they are its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.contracts import ClassName
from unicl_cli.core.checkpoint import find_non_finite
from unicl_cli.core.class_groups import find_hierarchy_fault
from unicl_cli.errors import UniclError
from unicl_cli.evaluator_contracts import FeaturePoint
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.scorer import Scorer, full_precision, identity
from unicl_cli.runs.documents import NamedClass
from unicl_cli.storage.documents import Document
from unicl_cli.storage.files import write_output_data
from unicl_cli.storage.json_text import parse_json

SCHEMA, SET_SCHEMA = "unicl/probe-weights/1", "unicl/probe-weights/2"
"""The schemas of a probe whose classes exclude each other, and of one with a sigmoid for each class (label sets)."""
CLOSE = 0.1
"""Relative distance of the reference features up to which a model is the same; bfloat16 moves them by 0.01."""


class ProbeFacts(Document):
    """Metadata of a saved probe: all that is needed besides its tensors."""

    schema_: Literal["unicl/probe-weights/1", "unicl/probe-weights/2"] = Field(alias="schema")
    model: str
    features: FeaturePoint
    normalize: bool
    classes: Annotated[list[NamedClass], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_hierarchy(self) -> Self:
        if problem := find_hierarchy_fault([(item.key, item.group, item.parent) for item in self.classes]):
            raise ValueError(problem)
        return self


class LinearProbe(NamedTuple):
    """A linear classifier: ``weights`` (d, K), ``bias`` (K,); ``reference`` (d,) are features of `reference_image`.

    Features are taken at ``point``, with unit length if ``normalize``; ``model`` names the model that they are of. With
    ``sigmoid`` each class has a probability of its own.
    """

    weights: Tensor
    bias: Tensor
    reference: Tensor
    classes: tuple[ClassName, ...]
    point: FeaturePoint
    normalize: bool
    model: str
    sigmoid: bool = False


def reference_image(size: Sequence[int]) -> Tensor:
    """Return a fixed pattern, uint8 (3, H, W), by whose features a model is recognised."""
    count = 3 * size[0] * size[1]
    return (torch.arange(count) * 2654435761 // 65536 % 256).to(torch.uint8).view(3, *size)


def probe_features(encoder: Encoder, images: Tensor, point: FeaturePoint, *, normalize: bool) -> Tensor:
    """Encode uint8 (b, 3, H, W) to the float32 (b, d) that a probe reads."""
    found = encoder.encode_image(images)
    features = found.pooled if point == "pre" else found.embed
    return F.normalize(features, dim=1) if normalize else features


def reference_features(encoder: Encoder, point: FeaturePoint, *, normalize: bool) -> Tensor:
    """Encode the reference image: float32 (d,) on the CPU."""
    image = reference_image(encoder.loaded.transform.size)
    return probe_features(encoder, image[None], point, normalize=normalize)[0].cpu()


def save_probe(probe: LinearProbe, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a probe as safetensors, with ``facts`` beside what is needed to use it."""
    about = {
        **facts,
        "schema": SET_SCHEMA if probe.sigmoid else SCHEMA,
        "model": probe.model,
        "features": probe.point,
        "normalize": probe.normalize,
        "classes": [describe_class(each) for each in probe.classes],
    }
    tensors = {"weights": probe.weights, "bias": probe.bias, "reference": probe.reference}
    data = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    write_output_data(path, save(data, {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}))


def describe_class(item: ClassName) -> dict[str, Any]:
    """Return a class as a probe's metadata has it; a class of no group has none there."""
    more = {"group": item.group, "parent": item.parent}
    return {"key": item.key, "names": list(item.names), **{key: value for key, value in more.items() if value}}


def load_probe(path: Path) -> LinearProbe:
    """Read a probe that `save_probe` wrote. Raises UniclError for any other file."""
    hint = "give a file that unicl probe --save wrote"
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise OSError("not a regular file")
        with safe_open(path, framework="pt") as file:
            found = {key: parse_json(value) for key, value in (file.metadata() or {}).items()}
            about = ProbeFacts.model_validate(found)
            weights, bias, reference = (file.get_tensor(name) for name in ("weights", "bias", "reference"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UniclError(f"--probe {path}: not a saved probe", hint) from error
    classes = tuple(ClassName(each.key, tuple(each.names), each.group, each.parent) for each in about.classes)
    sigmoid = about.schema_ == SET_SCHEMA
    probe = LinearProbe(weights, bias, reference, classes, about.features, about.normalize, about.model, sigmoid)
    if find_non_finite({"weights": weights, "bias": bias, "reference": reference}):
        raise UniclError(f"--probe {path}: its numbers are not finite", "fit it again: unicl probe --save FILE")
    if weights.shape != (len(reference), len(classes)) or bias.shape != (len(classes),):
        raise UniclError(f"--probe {path}: its tensors do not fit each other", hint)
    return probe


def make_probe_scorer(encoder: Encoder, probe: LinearProbe) -> Scorer:
    """Score by a saved probe. Raises UniclError if the model is not the one whose features it was fitted on."""
    found = reference_features(encoder, probe.point, normalize=probe.normalize)
    expected = probe.reference
    if found.shape != expected.shape or (found - expected).norm() > CLOSE * expected.norm():
        raise UniclError(
            f"--probe: was fitted on other features than those of {encoder.loaded.name}",
            f"use its own model, --model {probe.model}, or fit a probe on this one: unicl probe --save FILE",
        )
    weights, bias = probe.weights.to(encoder.device), probe.bias.to(encoder.device)

    def encode(images: Tensor) -> Tensor:
        return probe_features(encoder, images, probe.point, normalize=probe.normalize)

    def classify(features: Tensor, classes: slice) -> Tensor:
        with full_precision(features):
            return features @ weights[:, classes] + bias[classes]

    count = len(probe.classes)
    known = torch.ones(count, dtype=torch.bool)
    first = torch.arange(count)
    return Scorer(encode, classify, identity, sigmoid=probe.sigmoid, cosines=False, first=first, known=known)
