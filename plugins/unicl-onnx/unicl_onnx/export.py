"""The export of a loaded model to ONNX graphs, each compared in onnxruntime at sizes it was not traced with."""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from unicl_cli.api import ClassName, Loaded, Tokenizer, UniclError
from unicl_onnx.graphs import ImageGraph, TextGraph, classify_graph, scale_and_bias

SCHEMA = "unicl/onnx/1"
GRAPHS = ("image.onnx", "text.onnx", "classify.onnx")
"""The files of graphs; the weights of a large one lie next to it, in a file with ``.data`` appended to its name."""
START, END = "<start_of_text>", "<end_of_text>"
"""The tokens around a text in the tokenizers that unicl makes."""
TOLERANCE = 1e-4
"""Largest difference allowed for unit vectors; for logits, times the scale."""
ONE_FILE = 1_800_000_000
"""Maximum bytes of weights inside a graph; larger ones go to a file next to it, since ONNX files end at 2 GiB."""
LARGEST_BATCH = 4096
NOWHERE: dict[str, str | None] = {"key": None, "group": None, "parent": None}
TEXTS = ("a photo of a cat.", "dog", "the third of five small images, seen from above", "one two three four five six")


class Graph(NamedTuple):
    """A module to export: ``free`` are sizes that may vary, ``checks`` are inputs of other sizes than ``traced``."""

    module: nn.Module
    traced: Tensor
    checks: Sequence[Tensor]
    free: dict[int, Any]
    names: tuple[str, str]
    tolerance: float


def export(loaded: Loaded, out: Path, classes: tuple[str, ...], *, opset: int) -> dict[str, Any]:
    """Write all of ``out`` or nothing; return the content of ``meta.json``. Raise UniclError if a graph differs."""
    check_exportable(loaded, out, classes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
        part = Path(folder) / "export"
        part.mkdir()
        found = {name: export_graph(graph, part / name, opset) for name, graph in build_graphs(loaded, classes).items()}
        save = getattr(loaded.tokenizer, "save", None)
        if save is not None:
            save(part / "tokenizer.json")
        facts = describe(loaded, classes, found, opset, tokenizer=save is not None)
        write_json(part / "preprocessing.json", preprocessing(loaded))
        write_json(part / "meta.json", facts)
        move_into_place(part, out)
    return facts


def move_into_place(part: Path, out: Path) -> None:
    """Move every file into ``out``, `meta.json` last; delete the graphs of an earlier export, keep other files."""
    out.mkdir(exist_ok=True)
    for graph in GRAPHS:
        for old in (out / graph, out / f"{graph}.data"):
            old.unlink(missing_ok=True)
    for file in sorted(part.iterdir(), key=lambda file: file.name == "meta.json"):
        file.replace(out / file.name)


def check_exportable(loaded: Loaded, out: Path, classes: tuple[str, ...]) -> None:
    """Raise UniclError for a model that cannot be exported, or a folder that contains something else."""
    if getattr(loaded.step.loss, "score", "text") == "pair":
        raise UniclError(f"{loaded.name} scores pairs: it has no separate towers to export", "use a two-tower model")
    if classes and (loaded.tokenizer is None or getattr(loaded.step.loss, "score", "text") != "text"):
        raise UniclError(f"{loaded.name} does not classify by texts", "remove --classes")
    for template in loaded.templates if classes else ():
        if "{}" not in template and "{c}" not in template:
            raise UniclError(
                f"--template '{template}': has no place for the class name", "write {} where the name goes"
            )
    check_folder(out)


def check_folder(out: Path) -> None:
    """Raise UniclError unless ``out`` is new, empty or an earlier export: its files would be replaced."""
    if os.path.lexists(out) and not (out.is_dir() and (is_export(out) or not any(out.iterdir()))):
        raise UniclError(f"{out}: contains files that are not an export", "use an empty or a new folder: -o DIR")


def is_export(folder: Path) -> bool:
    """Return whether a folder has the `meta.json` of an export: a run has a file of that name, too."""
    file = folder / "meta.json"
    try:
        facts: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None  # a pipe would hang
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and cast("dict[str, Any]", facts).get("schema") == SCHEMA


def build_graphs(loaded: Loaded, classes: tuple[str, ...]) -> dict[str, Graph]:
    """Build the graph of each file, to be traced with two rows: a size of 0 or 1 would become a constant."""
    dim = torch.export.Dim
    batch = dim("batch", min=1, max=LARGEST_BATCH)
    images = [noise_images(loaded, count) for count in (2, 1, 5)]
    model = loaded.step.model
    image = Graph(ImageGraph(model), images[0], images[1:], {0: batch}, ("pixels", "image_embeds"), TOLERANCE)
    found = {"image.onnx": image}
    if loaded.tokenizer is not None:
        length = loaded.tokenizer.context_length
        tokens = [loaded.tokenizer(TEXTS[:count]) for count in (2, 1, 4)] if length > 1 else one_token_per_text(loaded)
        free = {0: batch} if length == 1 else {0: batch, 1: dim("length", min=1, max=length)}
        found["text.onnx"] = Graph(TextGraph(model), tokens[0], tokens[1:], free, ("tokens", "text_embeds"), TOLERANCE)
    if classes:
        graph = classify_graph(loaded, classes)
        tolerance = TOLERANCE * max(1.0, graph.scale)
        found["classify.onnx"] = Graph(graph, images[0], images[1:], {0: batch}, ("pixels", "logits"), tolerance)
    return found


def noise_images(loaded: Loaded, count: int) -> Tensor:
    """Draw uint8 (count, 3, H, W) of noise."""
    noise = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, *loaded.transform.size), generator=noise, dtype=torch.uint8)


def one_token_per_text(loaded: Loaded) -> list[Tensor]:
    """Return tokens for a tower that has one vector per class and knows no other texts."""
    count = loaded.tokenizer.vocab_size if loaded.tokenizer is not None else 0
    return [torch.arange(rows)[:, None] % count for rows in (2, 1, 4)]


def export_graph(graph: Graph, path: Path, opset: int) -> dict[str, Any]:
    """Export a graph and compare it with the model; return its size in bytes and the largest difference."""
    module = graph.module.eval()
    weights = sum(x.numel() * x.element_size() for x in [*module.parameters(), *module.buffers()])
    into, outof = graph.names
    sys.stderr.write(f"{path.name}: exporting\n")
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own code
        torch.onnx.export(
            module,
            (graph.traced,),
            str(path),
            dynamo=True,
            dynamic_shapes=(graph.free,),
            opset_version=opset,
            external_data=weights > ONE_FILE,
            input_names=[into],
            output_names=[outof],
            verbose=False,
        )
    difference = max(largest_differences(graph, path))
    if not difference <= graph.tolerance:
        raise UniclError(
            f"{path.name} differs from the model by {difference:.1e}, more than {graph.tolerance:.1e}",
            "report this as a bug; nothing was written",
            exit_code=1,
        )
    return {
        "bytes": sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
        "max_difference": difference,
        "input": into,
        "output": outof,
    }


def largest_differences(graph: Graph, path: Path) -> list[float]:
    """Return the largest difference at each size, in onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    into, outof = graph.names
    with torch.no_grad():
        ours = [graph.module(x).numpy() for x in (graph.traced, *graph.checks)]
    theirs = [session.run([outof], {into: x.numpy()})[0] for x in (graph.traced, *graph.checks)]
    return [float(np.abs(a - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True)]


def preprocessing(loaded: Loaded) -> dict[str, Any]:
    """Describe the steps from an image to ``pixels``; mean and standard deviation are inside the graphs."""
    height, width = loaded.transform.size
    return {
        "schema": SCHEMA,
        "height": height,
        "width": width,
        "layout": "uint8 (batch, 3, height, width)",
        "channels": "RGB",
        "transparency": "white",
        "steps": list(loaded.transform.words),
    }


def text_reading(tokenizer: Tokenizer | None, *, is_saved: bool) -> dict[str, Any] | None:
    """Describe the steps from a text to ``tokens``, with the special tokens of a tokenizer that is a file."""
    if tokenizer is None:
        return None
    cleaned = "ftfy, HTML entities, white space, lower case" if getattr(tokenizer, "clean", False) else None
    length, pad = tokenizer.context_length, getattr(tokenizer, "pad_id", None)
    facts = {"file": None, "context_length": length, "pad_id": pad, "clean": cleaned}
    if not is_saved:
        return facts
    library = cast("Any", tokenizer).library
    library = getattr(library, "backend_tokenizer", library)  # one of transformers holds what the file does
    vocabulary: dict[str, int] = library.get_vocab()
    special = {token.content: number for number, token in library.get_added_tokens_decoder().items()}
    tokenizer([""])  # unicl's own sets it as it encodes
    plain = bool(library.encode_special_tokens)
    ends = {name: vocabulary[name] for name in (START, END) if name in vocabulary}
    steps = [
        *([f"clean the text: {cleaned}"] if cleaned else []),
        *(
            ["set encode_special_tokens = True: a special token that is spelled out in a text is plain text"]
            if plain
            else []
        ),
        f"encode with the special tokens, truncated to {length} tokens, the end token included",
        f"pad on the right with {pad} to the longest text",
    ]
    return facts | {
        "file": "tokenizer.json",
        "eot_id": getattr(tokenizer, "eot_id", None),
        "special_tokens": special | ends,
        "encode_special_tokens": plain,
        "steps": steps,
    }


def describe(
    loaded: Loaded, classes: tuple[str, ...], found: dict[str, Any], opset: int, *, tokenizer: bool
) -> dict[str, Any]:
    """Return the content of ``meta.json``."""
    scale, bias = scale_and_bias(loaded)
    return {
        "schema": SCHEMA,
        "model": loaded.name,
        "opset": opset,
        "graphs": found,
        "tokenizer": text_reading(loaded.tokenizer, is_saved=tokenizer),
        "logit_scale": scale,
        "logit_bias": bias,
        "activation": getattr(loaded.step.loss, "activation", "softmax"),
        "classes": list(classes),
        "class_groups": place_in_groups(loaded, classes),
        "templates": list(loaded.templates) if classes else [],
        "model_classes": [item.names[0] for item in loaded.classes],
        "model_class_groups": [describe_group(item) for item in loaded.classes],
    }


def place_in_groups(loaded: Loaded, classes: tuple[str, ...]) -> list[dict[str, str | None]]:
    """Return the key, group and parent of each class, by its name among the model's classes; null for another name.

    Classes of one group compete in a softmax; those of several groups do not.
    """
    found: dict[str, dict[str, str | None]] = {}
    for item in loaded.classes:
        name = item.names[0]
        found[name] = NOWHERE if name in found else describe_group(item)
    return [found.get(name, NOWHERE) for name in classes]


def describe_group(item: ClassName) -> dict[str, str | None]:
    """Return the key of a class, its group and the key of its parent; null for what it does not have."""
    return {"key": item.key, "group": item.group or None, "parent": item.parent or None}


def write_json(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
