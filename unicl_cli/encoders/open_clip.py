"""The open_clip models as two towers, with their own modules, weights and preprocessing."""

import importlib.util
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, cast

import torch
from open_clip import CoCa, CustomTextCLIP, load_checkpoint
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer, text_global_pool
from PIL import Image
from torch import Tensor, nn

from unicl_cli.contracts import Tuning
from unicl_cli.core.foreign import explain_foreign
from unicl_cli.encoders.open_clip_config import check_config
from unicl_cli.encoders.open_clip_frame import frame_of, three_numbers
from unicl_cli.encoders.packing import Layout, attend, embed_tokens, end_states, layout_of, padded_layout
from unicl_cli.encoders.pyramid import open_clip_pyramid
from unicl_cli.encoders.split_attention import SplitAttention
from unicl_cli.errors import UniclError
from unicl_cli.storage.hub import CONFIG, Source
from unicl_cli.tower_contracts import TowerTraits

CANNOT_BUILD = "check its configuration, update open_clip and timm, or use another model"
MOST_PARAMETERS = 20_000_000_000
"""Maximum number of parameters of a model without weights; open_clip's largest has 5 billion."""
SURE_PARAMETERS = 500_000_000
"""The parameters that any configuration may have, whatever the size of its weights."""
BLOCKS = ("Block", "Bottleneck", "Layer")


class Net(NamedTuple):
    """open_clip's two towers, its scale and bias, and the configurations that build them again."""

    visual: nn.Module
    text: nn.Module
    logit_scale: Tensor
    logit_bias: Tensor | None
    config: dict[str, Any]
    preprocess: dict[str, Any]


def is_dry() -> bool:
    """Return True in a dry run, which needs shapes and no weights."""
    return torch.get_default_device().type == "meta"


def is_foreign(source: Source) -> bool:
    """Return whether the configuration comes from elsewhere, not with open_clip."""
    return not source.name.startswith("open_clip:")


def prepare_config(source: Source, image_size: int | None) -> dict[str, Any]:
    """Return the configuration of a model at ``image_size``, checked, and such that building it downloads nothing."""
    config = deepcopy(source.config)
    if is_foreign(source):
        check_config(source.name, config, source.preprocess)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config.pop("custom_text", None)
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    if "hf_model_name" not in text:
        del text["hf_model_pretrained"]
    elif importlib.util.find_spec("transformers") is None:
        raise UniclError(
            f"model {source.name}: its text tower needs the package transformers", "run pip install transformers"
        )
    if image_size is not None and "timm_model_name" not in vision:
        vision["image_size"] = image_size
    return config


def load_net(source: Source, image_size: int | None) -> Net:
    """Load open_clip's model with its weights, if the source has any, at ``image_size`` (default: its own).

    Raise UniclError for weights of another architecture.
    """
    config = prepare_config(source, image_size)
    vision, text = config["vision_cfg"], config["text_cfg"]
    backbone = "timm_model_name" in vision
    if is_foreign(source) and not is_dry():
        check_size(source, config)
    net = build_net(source.name, config)
    if source.weights is not None:
        read_weights(net, source)
    if backbone:
        with explain_foreign(f"model {source.name}: cannot take images of another size", "leave out data.image_size"):
            resize_backbone(net.visual, image_size or vision["image_size"])
    size = net.visual.image_size
    vision["image_size"] = size if isinstance(size, int) else list(size)
    config.pop("multimodal_cfg", None)  # CoCa's decoder is not used
    for part in (vision, text):
        part.pop("output_tokens", None)
    with explain_foreign(f"model {source.name}: preprocess_cfg", "fix its open_clip_config.json"):
        preprocess = merge_preprocess_dict({**asdict(PreprocessCfg()), **source.preprocess}, {"size": size})
        frame_of(PreprocessCfg(**preprocess))
    whole = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocess}
    return Net(net.visual, net.text, net.logit_scale.detach(), net.logit_bias, whole["model_cfg"], preprocess)


def build_net(name: str, config: dict[str, Any]) -> Any:
    """Build the model without weights; open_clip's own classes check the keys of the configuration."""
    kind: Any = CoCa if "multimodal_cfg" in config else CustomTextCLIP
    with explain_foreign(f"model {name}: open_clip cannot build it", CANNOT_BUILD):
        return kind(**config)


def check_size(source: Source, config: dict[str, Any]) -> None:
    """Raise UniclError if the model has more parameters than its weights have bytes, before it takes any memory."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            net = build_net(source.name, config)
    except UniclError:
        return  # the real model says the same, unless it is only this device that does not suit it
    count = sum(parameter.numel() for parameter in net.parameters())
    held = MOST_PARAMETERS if source.weights is None else source.weights.stat().st_size
    if count > max(held, SURE_PARAMETERS):
        raise UniclError(
            f"model {source.name}: its configuration has {count:,} parameters, which is too many for its weights",
            "use the configuration that belongs to these weights",
        )


def try_towers(name: str, image: "ImageTower", text: "TextTower") -> None:
    """Encode a grey image and the last token once: what open_clip builds from odd values may still not run."""
    frame: Any = image.traits.frame
    height, width = frame.size
    training = image.training, text.training
    what = f"model {name}: open_clip builds it, but it cannot encode"
    with torch.no_grad(), torch.random.fork_rng(devices=[]), explain_foreign(what, CANNOT_BUILD):
        frame(Image.new("RGB", (5, 3)))
        pooled, joint = image.eval()(torch.zeros(1, 3, height, width))
        check_shape("an image", pooled, image.width)
        tokens = torch.full((1, text.context_length), text.tokenizer.vocab_size - 1)
        check_shape("a text", text.eval()(tokens)[1], joint.shape[-1])
    image.train(training[0])
    text.train(training[1])


def check_shape(what: str, found: Any, width: int) -> None:
    if not isinstance(found, Tensor) or found.shape != (1, width):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{what} gives {shape} instead of (1, {width})")


def read_weights(net: nn.Module, source: Source) -> None:
    """Load all weights, strictly; a pickle is read as tensors only."""
    try:
        load_checkpoint(cast("Any", net), str(source.weights), strict=True, weights_only=True)
    except UnpicklingError as error:  # whose own message advises to run the pickle
        raise UniclError(
            f"model {source.name}: {source.weights} contains more than weights and was not opened",
            "use the safetensors file of its authors",
        ) from error
    except Exception as error:  # open_clip converts foreign tensors, and asserts what they look like
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UniclError(
            f"model {source.name}: {source.weights} cannot be read as its weights: {' '.join(lines[:2])[:300]}",
            "delete the file and download it again; it is damaged or of another architecture",
        ) from error


def resize_backbone(visual: Any, size: int | Sequence[int]) -> None:
    """Set the input size of a timm backbone, which is built at its published size; positions are interpolated."""
    target = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(visual.trunk.pretrained_cfg["input_size"][-2:]) != target:
        visual.set_input_size(target)


def outer_blocks(net: nn.Module) -> list[nn.Module]:
    """Return the outermost blocks, each called through its own forward."""
    found: list[nn.Module] = []
    for child in net.children():
        found += [child] if type(child).__name__.endswith(BLOCKS) else outer_blocks(child)
    return found


class ImageBlock(ResidualAttentionBlock):
    """open_clip's block with the same parameters and output, and a shorter way for the last block of a tower."""

    def forward(self, q_x: Tensor, *others: Any, last: bool = False, **options: Any) -> Tensor:
        """``last``: return the class token alone, (b, 1, width), since nothing else is read after it."""
        if not last:
            return super().forward(q_x, *others, **options)
        x = q_x[:, :1] + self.ls_1(self.attention(self.ln_1(q_x))[:, :1])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class TextBlock(ResidualAttentionBlock):
    """open_clip's block under a causal mask with the same parameters and output, on texts in a ``layout``."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, q_x: Tensor, *others: Any, layout: Layout | None = None, last: bool = False, **options: Any
    ) -> Tensor:
        """Map (n, width) to the same shape; ``last``: to the ends, (U, width). Without ``layout``, open_clip's own."""
        if layout is None:
            return super().forward(q_x, *others, **options)
        attn: Any = self.attn
        h = self.ln_1(q_x)
        split = isinstance(attn, SplitAttention)  # has adapters beside its products
        qkv = attn.in_proj(h) if split else nn.functional.linear(h, attn.in_proj_weight, attn.in_proj_bias)
        mixed = attend(qkv, attn.heads if split else attn.num_heads, layout, last=last)
        x = (end_states(q_x, layout) if last else q_x) + self.ls_1(attn.out_proj(mixed))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def retype_blocks(blocks: Any, kind: type[nn.Module]) -> bool:
    """Turn blocks that are exactly open_clip's own into ``kind``, parameters and names untouched; else return False."""
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        return False
    for block in blocks:
        block.__class__ = kind
    return True


class ImageTower(nn.Module):
    """(b, 3, H, W) -> pooled (b, width) before the projection, joint (b, embed_dim).

    Where pooling and projection are one (attention pools of ResNets and of SigLIP), pooled and joint are the same.
    """

    tuning = Tuning()

    def __init__(self, net: Net, embed_dim: int) -> None:
        super().__init__()
        self.net = net.visual
        cfg = PreprocessCfg(**net.preprocess)
        self.width = self._width(embed_dim)
        visual: Any = net.visual
        pooled = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
        self.traits = TowerTraits(
            projects=True,
            mean=three_numbers(cfg.mean),
            std=three_numbers(cfg.std),
            frame=frame_of(cfg),
            channels_last=any(isinstance(m, nn.BatchNorm2d) for m in visual.modules()),
        )
        self.reads_class_token = (
            pooled and visual.transformer.batch_first and retype_blocks(visual.transformer.resblocks, ImageBlock)
        )

    def _width(self, embed_dim: int) -> int:
        net: Any = self.net
        if isinstance(net, VisionTransformer):
            return embed_dim if net.proj is None else len(net.proj)
        linear = next((m for m in getattr(net, "head", net).modules() if isinstance(m, nn.Linear)), None)
        return embed_dim if linear is None or not self._pools_before_head() else linear.in_features

    def _pools_before_head(self) -> bool:
        """Return True for a timm backbone whose own pooling comes before the head."""
        head = getattr(self.net, "head", None)
        return isinstance(head, nn.Sequential) and len(head) > 0 and not hasattr(head, "pool")

    @property
    def units(self) -> Sequence[nn.Module]:
        return outer_blocks(self.net)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        net: Any = self.net
        if self.traits.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if isinstance(net, VisionTransformer):
            pooled, _ = cast("Any", net)._pool(self._states(cast("Any", net)._embeds(x)))
            return pooled, pooled if net.proj is None else pooled @ net.proj
        if self._pools_before_head():
            pooled = net.trunk(x)
            return pooled, net.head(pooled)
        joint = net(x)
        return joint, joint

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Map (b, 3, H, W) of any size to feature maps (b, C, H / s, W / s), from fine to coarse."""
        return open_clip_pyramid(self.net, x)

    def _states(self, x: Tensor) -> Tensor:
        """Compute the states that pooling reads."""
        transformer = cast("Any", self.net).transformer
        if not self.reads_class_token:
            return transformer(x)
        *blocks, last = transformer.resblocks
        for block in blocks:
            x = block(x)
        return last(x, last=True)


class TextTower(nn.Module):
    """int64 (U, L <= context_length) -> (U, embed_dim) twice: nothing reads its state before the projection.

    A causal tower reads L tokens; for any other, tokens are padded to its context, as in its training.
    """

    tuning = Tuning()

    def __init__(self, net: Net, context_length: int, tokenizer: Any) -> None:
        super().__init__()
        self.net, self.context_length, self.tokenizer = net.text, context_length, tokenizer
        self.width = net.config["embed_dim"]
        text: Any = net.text
        plain = isinstance(net.text, TextTransformer)
        causal = plain and text.attn_mask is not None and text.cls_emb is None
        self.causal = causal and text.pool_type in ("first", "argmax", "eos")
        self.pads = plain and not self.causal
        ends = self.causal and text.pool_type in ("argmax", "eos") and text.transformer.batch_first
        self.reads_ends = ends and retype_blocks(text.transformer.resblocks, TextBlock)
        self.pad_id = tokenizer.pad_id
        self.config = {"model_cfg": net.config, "preprocess_cfg": net.preprocess}
        self.traits = TowerTraits(
            projects=True,
            tokenizer=tokenizer,
            pad_id=tokenizer.pad_id,
            context_length=context_length,
            trim_safe=self.causal or self.pads,
            packs=True,
            settings=net.config,
        )
        bias = net.logit_bias
        self.register_buffer("logit_bias", None if bias is None else bias.detach().clone().reshape(()))

    @property
    def units(self) -> Sequence[nn.Module]:
        return outer_blocks(self.net)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.causal:
            joint = self._cut(tokens)
        else:
            short = self.context_length - tokens.shape[1] if self.pads else 0
            joint = self.net(nn.functional.pad(tokens, (0, short), value=self.pad_id) if short else tokens)
        joint = joint[0] if isinstance(joint, tuple) else joint  # CoCa returns its tokens too
        return joint, joint

    def _cut(self, tokens: Tensor) -> Tensor:
        """Compute open_clip's own forward on the given tokens alone, without padding to the context."""
        net: Any = self.net
        pooled = self._ends(tokens) if self.reads_ends else self._run_masked(tokens)
        projection = net.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

    def _ends(self, tokens: Tensor) -> Tensor:
        """Compute the states at the ends of the texts."""
        net: Any = self.net
        eot_id = net.eos_id if net.pool_type == "eos" else None
        layout = layout_of(tokens, eot_id) if self.traits.packs else padded_layout(tokens, eot_id)
        kind = net.transformer.get_cast_dtype()
        x = embed_tokens(tokens, net.token_embedding, net.positional_embedding, layout).to(kind)
        *blocks, last = net.transformer.resblocks
        for block in blocks:
            x = block(x, layout=layout)
        x = net.ln_final(last(x, layout=layout, last=True))
        return x if layout.order is None else x[layout.order]

    def _run_masked(self, tokens: Tensor) -> Tensor:
        """Compute all states with blocks of another kind; their mask for the whole context is cut to the tokens."""
        net: Any = self.net
        length = tokens.shape[1]
        kind = net.transformer.get_cast_dtype()
        x = net.token_embedding(tokens).to(kind) + net.positional_embedding[:length].to(kind)
        x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:length, :length]))
        return text_global_pool(x, tokens, net.pool_type, eos_token_id=net.eos_id)

    def store(self, folder: Path) -> None:
        """Write what builds the model again without its first weights: configuration, tokenizer unless CLIP's."""
        config = deepcopy(self.config)
        if "hf_model_name" in config["model_cfg"]["text_cfg"]:
            config["model_cfg"]["text_cfg"]["hf_model_name"] = "."
            cast("Any", self.net).config.save_pretrained(folder)
        if hasattr(self.tokenizer, "inner"):
            self.tokenizer.inner.save_pretrained(folder)
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
