"""Tars of WebDataset in a folder for each split, as open_clip trains from."""

import io
import shlex
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from unicl_cli.data.corpus import Corpus
from unicl_cli.errors import UniclError
from unicl_cli.jobs.export_corpus.plan import Piece, Span, Written
from unicl_cli.jobs.export_corpus.samples import ClassTexts, members_of
from unicl_cli.storage.json_output import format_json

WORKERS = 4
"""The loader workers of each process that open_clip starts by default; it wants a tar for each."""
CHECK_ROWS = 64
"""Rows between two looks at the stop flag."""


class WebDatasetFormat:
    """The layout ``SPLIT/00000.tar``; rows of images, which have no text, are in ``SPLIT-images/``."""

    def __init__(self, corpus: Corpus, out: Path, class_texts: ClassTexts, class_lines: Sequence[str]) -> None:
        if any(sign in str(out) for sign in ("{", "}", "::")):
            hint = "choose another directory with -o"
            raise UniclError(f"-o {out}: {{, }} and :: have a meaning in the patterns of WebDataset", hint)
        self.corpus, self.out, self.class_texts, self.class_lines = corpus, out, class_texts, class_lines

    def name_files(self, split: str, cuts: Sequence[Sequence[Span]]) -> list[str]:
        """Return ``SPLIT/NUMBER.tar`` for each file; numbers have five digits or as many as are needed."""
        names: list[str] = []
        counts: Counter[str] = Counter()
        width = max(5, len(str(len(cuts))))
        for spans in cuts:
            folder = self._images_folder(split) if spans[0].shard.kind == "images" else split
            names.append(f"{folder}/{counts[folder]:0{width}}.tar")
            counts[folder] += 1
        return names

    def _images_folder(self, split: str) -> str:
        name = f"{split}-images"
        while name in self.corpus.splits:
            name += "-"
        return name

    def write(
        self, file: BinaryIO, tables: Iterable[Any], piece: Piece, stopped: Callable[[], bool]
    ) -> Mapping[str, int] | None:
        """Write one tar: the names, modes and times of its members depend on nothing but the rows' numbers."""
        counts: Counter[str] = Counter()
        number = piece.first
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for table in tables:
                for start in range(0, len(table), CHECK_ROWS):
                    if stopped():
                        return None
                    for row in table.slice(start, CHECK_ROWS).to_pylist():
                        for ending, data in members_of(row, self.class_texts, counts):
                            add_member(tar, f"{number:09}.{ending}", data)
                        number += 1
        return counts

    def extras(self, written: Sequence[Written]) -> dict[str, str]:
        """Return the counts of samples, and class names and templates as CLIP_benchmark has them, beside the tars."""
        sizes: dict[str, dict[str, int]] = {}
        for item in written:
            path = PurePosixPath(item.file)
            sizes.setdefault(str(path.parent), {})[path.name] = item.rows
        files = {f"{folder}/sizes.json": format_json(of, 1) + "\n" for folder, of in sizes.items()}
        if self.class_lines:
            names = "".join(f"{line}\n" for line in self.class_lines)
            templates = "".join(f"{fill_brace(template)}\n" for template in self.class_texts.templates)
            for folder in sizes:
                files[f"{folder}/classnames.txt"] = names
                files[f"{folder}/zeroshot_classification_templates.txt"] = templates
        return files

    def facts(self) -> dict[str, Any]:
        """Return nothing more."""
        return {}

    def commands(self, written: Sequence[Written]) -> dict[str, str]:
        """Return the command of open_clip that trains from the export, if it has a split to train on."""
        return {"train_command": command} if (command := self._command(written)) else {}

    def _command(self, written: Sequence[Written]) -> str | None:
        tars = {split: [item for item in written if item.file.startswith(f"{split}/")] for split in ("train", "val")}
        samples = {split: sum(item.counts.get("texts", 0) for item in of) for split, of in tars.items()}
        if not samples["train"]:
            return None
        words = ["python", "-m", "open_clip_train.main", "--dataset-type", "webdataset"]
        for split in ("train", "val"):
            if samples[split]:
                names = [PurePosixPath(item.file).stem for item in tars[split]]
                pattern = f"{self.out}/{split}/{{{names[0]}..{names[-1]}}}.tar"
                words += [f"--{split}-data", pattern, f"--{split}-num-samples", str(samples[split])]
        words += ["--workers", str(min(WORKERS, len(tars["train"]))), "--model", "ViT-B-32"]
        return shlex.join(words)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to a tar, owned by nobody and of no time."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def fill_brace(template: str) -> str:
    """Return a template with ``{c}`` for the name, as CLIP_benchmark writes it."""
    return template.replace("{}", "{c}")
