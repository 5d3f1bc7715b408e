"""Small lists with images beside them."""

import io
import json

import pytest
from PIL import Image

from unicl_cli.data.sources.resolve import open_source


def png(level):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 80, 120)).save(out, "PNG")
    return out.getvalue()


class Listing:
    """A folder in which a test writes a list and opens it."""

    def __init__(self, root):
        self.root = root

    def write(self, name, content, *images):
        """Write a list (text, bytes, or a value as JSON) with its images; return its path as a source."""
        for level, image in enumerate(images):
            (self.root / image).parent.mkdir(parents=True, exist_ok=True)
            (self.root / image).write_bytes(png(level))
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    def open(self, src, kind="captions"):
        return open_source(src, kind)

    def texts(self, src, split="train"):
        """Open a list of captions; return the texts by key."""
        return {row.key: row.texts for row in self.open(src).rows(split)}

    def labels(self, src, split="train"):
        """Open a list of labels; return the class by key."""
        source = self.open(src, "labels")
        names = [c.key for c in source.classes]
        return {row.key: names[row.label] for row in source.rows(split)}


@pytest.fixture
def listing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Listing(tmp_path)
