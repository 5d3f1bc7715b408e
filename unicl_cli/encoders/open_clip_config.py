"""The numbers in an open_clip configuration from outside, checked before anything of their size is built."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from unicl_cli.errors import UniclError
from unicl_cli.storage.documents import Document, explain_invalid

Side = Annotated[int, Field(ge=1, le=16_384)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=256)]
Level = Annotated[float, Field(ge=-1_000, le=1_000)]
Spread = Annotated[float, Field(gt=0, le=1_000)]
Three = Field(min_length=3, max_length=3)
Two = Field(min_length=2, max_length=2)


class _Vision(Document):
    layers: Layers | Annotated[list[Layers], Field(min_length=1, max_length=16)] = 1
    width: Width = 1
    head_width: Width = 1
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 1
    patch_size: Side | Annotated[list[Side], Two] | None = None
    image_size: Side | Annotated[list[Side], Two] = 1
    attn_pooler_queries: Width = 1
    attn_pooler_heads: Width = 1


class _Text(Document):
    context_length: Annotated[int, Field(ge=1, le=65_536)] = 77
    vocab_size: Annotated[int, Field(ge=1, le=4_000_000)] = 1
    width: Width = 1
    heads: Width = 1
    layers: Layers = 1
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 1
    tokenizer_kwargs: dict[str, Any] | None = None


class _Model(Document):
    embed_dim: Width
    vision_cfg: _Vision
    text_cfg: _Text
    multimodal_cfg: _Text | None = None


class _Preprocess(Document):
    mean: Level | Annotated[list[Level], Three] = 0
    std: Spread | Annotated[list[Spread], Three] = 1
    size: Side | Annotated[list[Side], Two] | None = None
    mode: Literal["RGB"] = "RGB"
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


def check_config(name: str, config: dict[str, Any], preprocess: dict[str, Any]) -> None:
    """Raise UniclError for the first value that no model can have. Keys that are not numbers are left to open_clip."""
    for section, model, found in (("model_cfg", _Model, config), ("preprocess_cfg", _Preprocess, preprocess)):
        try:
            model.model_validate(found)
        except ValidationError as error:
            raise UniclError(
                f"model {name}: {section}.{explain_invalid(error)}",
                "fix its open_clip_config.json, or use another model",
            ) from error
