"""Names that plugins and scripts may import; semantic versioning covers exactly these. Importing it loads no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded, load_model
    from unicl_cli.build.model import build_image_tower
    from unicl_cli.contracts import (
        NO_KEY,
        NO_LABEL,
        NO_TEXT,
        Batch,
        ClassName,
        DatasetSource,
        Drawn,
        Features,
        LabelSets,
        LogitScale,
        Loss,
        Metric,
        Model,
        Part,
        Row,
        Sample,
        Sink,
        Tokenizer,
        Tower,
        TowerTraits,
    )
    from unicl_cli.core.checkpoint import load_optimizer, load_weights, read_tensors, save
    from unicl_cli.core.checkpoint_files import newest, read_facts
    from unicl_cli.core.dist import bare, gather, rank, shard, share_of_mean, world_size
    from unicl_cli.core.label_sets import set_columns
    from unicl_cli.core.loop import Plan, Step, fit, freeze_idle
    from unicl_cli.core.sampler import seed_of
    from unicl_cli.core.schedule import lr_at
    from unicl_cli.data.class_names import read_class_file, read_classes
    from unicl_cli.data.class_numbers import match_labels
    from unicl_cli.data.number_spellings import read_whole_numbers
    from unicl_cli.data.pictures import Extent, ImageError, open_image, read_extent
    from unicl_cli.data.sources.tar_members import iter_members
    from unicl_cli.errors import UniclError
    from unicl_cli.evaluate.classifier import prompts_of, zeroshot_classifier
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, EvalRows, Evaluator, MediaKind, RowSets
    from unicl_cli.kernels.targets import Target
    from unicl_cli.launch.accelerator import start_accelerator
    from unicl_cli.losses.contrast import both_ways, contrast, contrast_tiled, supcon_loss
    from unicl_cli.model import TwoTower, add_projection, at_least_float32, chunked

_HOME = {
    "unicl_cli.build.model": ("build_image_tower",),
    "unicl_cli.contracts": (
        *("NO_KEY", "NO_LABEL", "NO_TEXT", "Batch", "ClassName", "DatasetSource", "Drawn", "Features", "LabelSets"),
        *("LogitScale", "Loss", "Metric", "Model", "Part", "Row", "Sample", "Sink", "Tokenizer", "Tower"),
        "TowerTraits",
    ),
    "unicl_cli.evaluator_contracts": ("EvalCorpus", "EvalModel", "EvalRows", "Evaluator", "MediaKind", "RowSets"),
    "unicl_cli.core.label_sets": ("set_columns",),
    "unicl_cli.core.checkpoint": ("load_optimizer", "load_weights", "read_tensors", "save"),
    "unicl_cli.core.checkpoint_files": ("newest", "read_facts"),
    "unicl_cli.core.dist": ("bare", "gather", "rank", "shard", "share_of_mean", "world_size"),
    "unicl_cli.launch.accelerator": ("start_accelerator",),
    "unicl_cli.core.loop": ("Plan", "Step", "fit", "freeze_idle"),
    "unicl_cli.core.sampler": ("seed_of",),
    "unicl_cli.core.schedule": ("lr_at",),
    "unicl_cli.data.class_names": ("read_class_file", "read_classes"),
    "unicl_cli.data.class_numbers": ("match_labels",),
    "unicl_cli.data.number_spellings": ("read_whole_numbers",),
    "unicl_cli.data.pictures": ("Extent", "ImageError", "open_image", "read_extent"),
    "unicl_cli.data.sources.tar_members": ("iter_members",),
    "unicl_cli.errors": ("UniclError",),
    "unicl_cli.evaluate.classifier": ("prompts_of", "zeroshot_classifier"),
    "unicl_cli.build.load": ("Loaded", "load_model"),
    "unicl_cli.kernels.targets": ("Target",),
    "unicl_cli.losses.contrast": ("both_ways", "contrast", "contrast_tiled", "supcon_loss"),
    "unicl_cli.model": ("TwoTower", "add_projection", "at_least_float32", "chunked"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "NO_KEY",
    "NO_LABEL",
    "NO_TEXT",
    "Batch",
    "ClassName",
    "DatasetSource",
    "Drawn",
    "EvalCorpus",
    "EvalModel",
    "EvalRows",
    "Evaluator",
    "Extent",
    "Features",
    "ImageError",
    "LabelSets",
    "Loaded",
    "LogitScale",
    "Loss",
    "MediaKind",
    "Metric",
    "Model",
    "Part",
    "Plan",
    "Row",
    "RowSets",
    "Sample",
    "Sink",
    "Step",
    "Target",
    "Tokenizer",
    "Tower",
    "TowerTraits",
    "TwoTower",
    "UniclError",
    "add_projection",
    "at_least_float32",
    "bare",
    "both_ways",
    "build_image_tower",
    "chunked",
    "contrast",
    "contrast_tiled",
    "fit",
    "freeze_idle",
    "gather",
    "iter_members",
    "load_model",
    "load_optimizer",
    "load_weights",
    "lr_at",
    "match_labels",
    "newest",
    "open_image",
    "prompts_of",
    "rank",
    "read_class_file",
    "read_classes",
    "read_extent",
    "read_facts",
    "read_tensors",
    "read_whole_numbers",
    "save",
    "seed_of",
    "set_columns",
    "shard",
    "share_of_mean",
    "start_accelerator",
    "supcon_loss",
    "world_size",
    "zeroshot_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"unicl_cli.api has no '{name}'")
    return getattr(import_module(_MODULE[name]), name)
