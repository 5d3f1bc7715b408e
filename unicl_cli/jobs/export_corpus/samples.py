"""The members of one WebDataset sample: image, text, label and facts of a row, named as open_clip reads them."""

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from PIL import Image

from unicl_cli.contracts import NO_LABEL, ClassName
from unicl_cli.core.prompts import fill_template
from unicl_cli.data.corpus_format import KNOWN, LABELS, MEDIA
from unicl_cli.data.image_metadata import PNG
from unicl_cli.data.pictures import ImageError, decode, open_image, orientation
from unicl_cli.errors import UniclError

_ENDINGS = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "DIB": "bmp", "TIFF": "tif",
    "AVIF": "avif", "PPM": "ppm", "JPEG2000": "jp2", "ICO": "ico", "TGA": "tga",
}  # fmt: skip
OPEN_CLIP = frozenset(("jpg", "png", "webp"))
"""Endings of the images that open_clip 3.3 trains from (`open_clip_train/data.py`): it leaves out any other sample."""
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_MEDIA_ENDINGS = ((b"RIFF", "wav"), (b"fLaC", "flac"), (b"OggS", "ogg"), (PNG, "png"), (b"\x93NUMPY", "npy"))

Members = list[tuple[str, bytes]]


class ClassTexts(NamedTuple):
    """The classes, groups and templates of a corpus, from which a row without captions gets its text."""

    classes: tuple[ClassName, ...]
    groups: tuple[str, ...]
    templates: tuple[str, ...]

    def prompt(self, key: str, labels: Sequence[int]) -> str:
        """Return the prompt of a labelled row: one of its labels and one template, picked by the hash of its key."""
        pick = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
        label = labels[(pick >> 32) % len(labels)]
        return fill_template(self.templates[pick % len(self.templates)], self.classes[label].names[0])


def members_of(row: Mapping[str, Any], class_texts: ClassTexts, counts: Counter[str]) -> Members:
    """Return the members of a row's sample by ending, in order; ``counts`` gets what notes will report.

    The text is the first caption; a labelled row without captions gets a prompt. All captions are in the JSON.
    """
    labels = row[LABELS] if LABELS in row else [] if row["label"] == NO_LABEL else [row["label"]]
    texts = row["texts"]
    about: dict[str, Any] = {"key": row["key"], "source": row["source"], "url": row["url"], "texts": texts}
    text = texts[0] if texts else None
    if text is None and labels:
        text = about["prompt"] = class_texts.prompt(row["key"], labels)
    if labels or KNOWN in row:
        about |= {"labels": labels, "classes": [class_texts.classes[label].names[0] for label in labels]}
        about["class_keys"] = [class_texts.classes[label].key for label in labels]
    if KNOWN in row:
        about["annotated"] = [group for number, group in enumerate(class_texts.groups) if row[KNOWN] >> number & 1]
    about |= {"width": row["width"], "height": row["height"], "sha256": row["sha256"].hex()}
    members = image_members(row["image"]["bytes"], row["key"], counts)
    if text is not None:
        members.append(("txt", text.encode()))
    members.append(("json", json.dumps(about, ensure_ascii=False).encode()))
    if len(labels) == 1:
        members.append(("cls", str(labels[0]).encode()))
    counts.update({"texts": text is not None, "prompts": "prompt" in about, "several_texts": len(texts) > 1})
    counts["several_labels"] += len(labels) > 1
    return [*members, *media_members(row.get(MEDIA) or (), counts)]


def image_members(data: bytes, key: str, counts: Counter[str]) -> Members:
    """Return the bytes of an image as they are; beside them a PNG of the same pixels if open_clip cannot read them.

    UniclError for an image that cannot be decoded.
    """
    try:
        image = open_image(data)
        ending = _ENDINGS[str(image.format)]
        counts["turned"] += orientation(image) > 1
        if ending in OPEN_CLIP and is_plain(data):
            return [(ending, data)]
        counts["converted"] += 1
        png = io.BytesIO()
        decode(data).save(png, "PNG")
    except ImageError as error:
        hint = "check the corpus with unicl prepare --verify -o CORPUS"
        raise UniclError(f"the image of row '{key}' cannot be used: {error}", hint) from error
    return [("png", png.getvalue()), (f"original.{ending}" if ending in OPEN_CLIP else ending, data)]


def is_plain(data: bytes) -> bool:
    """Return whether Pillow alone opens an image: unicl also reads those with notes that Pillow refuses."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if data.startswith(PNG):
                image.load()  # notes may come after the pixels
    except Exception:  # noqa: BLE001 - decoders raise anything; a note counts such images
        return False
    return True


def media_members(media: Sequence[Mapping[str, Any]], counts: Counter[str]) -> Members:
    """Return the media of a row as members such as ``audio.wav`` and ``depth.png``."""
    members: Members = []
    for item in media:
        kind, data = item["kind"], item["bytes"]
        if not _KIND.fullmatch(kind):
            raise UniclError(f"media '{kind}': cannot be the name of a member", "prepare the corpus without it")
        unknown = "csv" if kind == "imu" else "bin"
        ending = next((ending for start, ending in _MEDIA_ENDINGS if data.startswith(start)), unknown)
        members.append((f"{kind}.{ending}", data))
        counts[f"media:{kind}"] += 1
    return members
