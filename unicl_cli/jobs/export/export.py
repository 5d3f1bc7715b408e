"""The job `export`: a folder that open_clip loads, written whole or not at all, after open_clip has loaded it."""

import io
import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.build.load import Loaded
from unicl_cli.core import checkpoint
from unicl_cli.core.foreign import explain_foreign
from unicl_cli.errors import UniclError
from unicl_cli.jobs.export.card import write_card
from unicl_cli.jobs.export.open_clip_layout import BY_NAME, Layout, layout_of_model
from unicl_cli.jobs.export.tokenizer_layout import describe_tokenizer, save_tokenizer
from unicl_cli.storage.files import discard, make_folder, sync_folder, temporary_name, write_atomic
from unicl_cli.storage.hub import CONFIG, WEIGHTS
from unicl_cli.storage.lock import check_unused

SCHEMA = "unicl/export/1"
CARD = "README.md"
TOLERANCE = 1e-4
"""Largest difference allowed between unit vectors of open_clip and ours; rounding makes some 1e-6."""
TEXTS = ("a photo of a cat.", "dog", "the third of five small images, seen from above", "one two three four five six")
SIDES = ((320, 240), (64, 200), (31, 31), (500, 375))
"""Width and height of the images that both encode."""
ANOTHER = "choose another directory with -o"


def _draw(width: int, height: int) -> bytes:
    """Draw coarse noise as a PNG file."""
    coarse = torch.randint(0, 256, (9, 12, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


class ExportRequest(NamedTuple):
    """The options of one command. ``repo`` is the name that the model will have on the hub."""

    out: Path
    repo: str | None = None
    licence: str | None = None


def export_model(loaded: Loaded, request: ExportRequest) -> dict[str, Any]:
    """Write the folder and return the document of `--json`. UniclError for a model that open_clip cannot build."""
    layout = _layout(loaded, request.repo)
    out = request.out
    try:
        with make_folder(out.parent):
            part = temporary_name(out if out.is_dir() else out.parent)
            try:
                part.mkdir()
                _write_files(part, layout, loaded, request)
                differences = _compare_with_open_clip(loaded, layout, part)
                files = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
                _move(part, out)
            finally:
                if part.exists():
                    discard(part)
    except checkpoint.WRITING_FAILS as error:
        reason = getattr(error, "strerror", None) or error
        raise UniclError(f"-o {out}: cannot be written: {reason}", "choose another folder") from error
    return {
        "schema": SCHEMA,
        "model": loaded.name,
        "out": str(out),
        "files": files,
        "parameters": sum(x.numel() for x in layout.tensors.values()),
        "max_difference": differences,
        "repo": request.repo,
        "license": request.licence,
        "use_command": f"unicl zeroshot photo.jpg --model {shlex.quote(f'local-dir:{out}')} --classes a,b",
        "upload_command": None if request.repo is None else shlex.join(["hf", "upload", request.repo, str(out)]),
    }


def _move(part: Path, out: Path) -> None:
    """Give the finished folder its name. A folder that exists may be a link, a mount or the current one: it is filled.

    The configuration comes last, without which nothing reads the folder.
    """
    check_unused(out, ANOTHER)
    if out.is_dir():
        for file in sorted(part.iterdir(), key=lambda file: file.name == CONFIG):
            file.replace(out / file.name)
        sync_folder(out)
    else:
        part.replace(out)
        sync_folder(out.parent)


def _layout(loaded: Loaded, repo: str | None) -> Layout:
    """Return what open_clip needs, with the tokenizer. UniclError, which names the model, for what it cannot build."""
    loss: Any = loaded.step.loss
    try:
        if loaded.tokenizer is None or getattr(loss, "score", "text") != "text":
            raise UniclError("it does not classify by texts", "export a model that was trained with texts")
        found = layout_of_model(loaded.step.model, loaded.transform.size)
        found.model_cfg["text_cfg"] |= describe_tokenizer(loaded.tokenizer, repo)
    except UniclError as error:
        raise UniclError(f"{loaded.name}: cannot be exported: {error.message}", error.hint) from error
    bias: Tensor | None = getattr(loss, "bias", None)
    if getattr(loss, "activation", "softmax") == "sigmoid" and bias is not None:
        found.tensors["logit_bias"] = bias.detach().reshape(())
        found.model_cfg["init_logit_bias"] = float(found.tensors["logit_bias"])
    return found


def _write_files(part: Path, layout: Layout, loaded: Loaded, request: ExportRequest) -> None:
    checkpoint.write_tensors(part / WEIGHTS[0], {name: x.cpu().contiguous() for name, x in layout.tensors.items()})
    save_tokenizer(loaded.tokenizer, part)
    config = {"model_cfg": layout.model_cfg, "preprocess_cfg": layout.preprocess_cfg}
    write_atomic(part / CONFIG, json.dumps(config, indent=2) + "\n")
    write_atomic(part / CARD, write_card(loaded, request.repo, request.out.resolve().name, request.licence))


def _compare_with_open_clip(loaded: Loaded, layout: Layout, folder: Path) -> dict[str, float]:
    """Load the folder with open_clip; return the largest differences. UniclError if they are more than rounding.

    It is a bug, unless open_clip builds a backbone by its name: that may depend on the size of images.
    """
    import open_clip

    name = f"local-dir:{folder}"
    backbone = layout.model_cfg["vision_cfg"].get("timm_model_name")
    hint, code = (BY_NAME, 2) if backbone else ("report this as a bug; nothing was written", 1)
    with explain_foreign(f"{loaded.name}: open_clip cannot use what was written", hint):
        model, transform = cast("Any", open_clip).create_model_from_pretrained(name)
        tokenize: Any = open_clip.get_tokenizer(name)
        model.eval()
        with torch.no_grad():
            pixels = [transform(Image.open(io.BytesIO(_draw(*size)))) for size in SIDES]
            their_images = model.encode_image(torch.stack(pixels), normalize=True)
            their_texts = model.encode_text(tokenize(list(TEXTS)), normalize=True)
            their_scale = float(model.logit_scale.exp())
    found = {
        "image": _furthest(_encode_images(loaded), their_images),
        "text": _furthest(_encode_texts(loaded), their_texts),
        "logit_scale": abs(float(cast("Any", loaded.step.model).scale().detach()) / their_scale - 1),
    }
    for what, difference in found.items():
        if not difference <= TOLERANCE:
            of = f" ({backbone})" if backbone else ""
            raise UniclError(
                f"{loaded.name}: open_clip's {what}{of} differs by {difference:.1e}, more than {TOLERANCE:.0e}",
                hint,
                exit_code=code,
            )
    return found


def _encode_images(loaded: Loaded) -> Tensor:
    """Encode the images to unit vectors (n, D)."""
    model: Any = loaded.step.model
    with torch.no_grad():
        pixels = torch.stack([loaded.transform(_draw(*size)) for size in SIDES])
        return F.normalize(model.encode_image(pixels).embed.float(), dim=1)


def _encode_texts(loaded: Loaded) -> Tensor:
    """Encode the texts to unit vectors (n, D)."""
    model: Any = loaded.step.model
    with torch.no_grad():
        return F.normalize(model.encode_text(cast("Any", loaded.tokenizer)(TEXTS)).embed.float(), dim=1)


def _furthest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())
