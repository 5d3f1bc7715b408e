"""The Parquet schemas of a corpus's shards: without and with label sets and media."""

import json
from typing import Any

import pyarrow as pa

HF_FEATURES: dict[str, Any] = {
    "key": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "texts": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "text_hash": {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"},
    "label": {"dtype": "int32", "_type": "Value"},
    "source": {"dtype": "string", "_type": "Value"},
    "width": {"dtype": "int32", "_type": "Value"},
    "height": {"dtype": "int32", "_type": "Value"},
    "sha256": {"dtype": "binary", "_type": "Value"},
    "phash": {"dtype": "int64", "_type": "Value"},
    "url": {"dtype": "string", "_type": "Value"},
}
"""The features by which `datasets.load_dataset` shows images instead of structs."""
HF_SETS: dict[str, Any] = {
    "labels": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
    "known": {"dtype": "int64", "_type": "Value"},
}
HF_MEDIA: dict[str, Any] = {
    "feature": {"kind": {"dtype": "string", "_type": "Value"}, "bytes": {"dtype": "binary", "_type": "Value"}},
    "_type": "List",
}


def hf_metadata(features: dict[str, Any]) -> dict[str, str]:
    """Return the schema metadata that describes the columns to the `datasets` library."""
    return {"huggingface": json.dumps({"info": {"features": features}})}


SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("texts", pa.list_(pa.string())),
        ("text_hash", pa.list_(pa.int64())),
        ("label", pa.int32()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.binary(32)),
        ("phash", pa.int64()),
        ("url", pa.string()),
    ],
    metadata=hf_metadata(HF_FEATURES),
)
LABELS, KNOWN, MEDIA = "labels", "known", "media"
MEDIA_KINDS = "media.list.element.kind"
"""Path of the kinds inside the column of media, by which Parquet reads them without the bytes."""
_SETS = (pa.field(LABELS, pa.list_(pa.int32())), pa.field(KNOWN, pa.int64()))
_MEDIA = pa.field(MEDIA, pa.list_(pa.struct([("kind", pa.string()), ("bytes", pa.binary())])))


def schema_of(*, sets: bool, media: bool) -> Any:
    """Return the schema of all shards of a corpus.

    With ``sets`` a row has all its ``labels``, ascending, and the groups that it is annotated for as the bits of
    ``known``. With ``media`` it has a list of media, which is empty for a row without them.
    """
    fields = [*SCHEMA, *(_SETS if sets else ()), *((_MEDIA,) if media else ())]
    features = HF_FEATURES | (HF_SETS if sets else {}) | ({MEDIA: HF_MEDIA} if media else {})
    return pa.schema(fields, metadata=hf_metadata(features))
