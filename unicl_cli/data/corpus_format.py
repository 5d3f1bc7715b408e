"""The Parquet schema of a corpus's shards."""

import json

import pyarrow as pa

HF_FEATURES = {
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
"""What makes `datasets.load_dataset` show images instead of structs."""
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
    metadata={"huggingface": json.dumps({"info": {"features": HF_FEATURES}})},
)
