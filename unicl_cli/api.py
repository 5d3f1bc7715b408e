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
    from unicl_cli.core.dist import bare, gather, gather_rows, rank, shard, share_of_mean, world_size
    from unicl_cli.core.files import write_output
    from unicl_cli.core.json_output import print_json
    from unicl_cli.core.label_sets import set_columns
    from unicl_cli.core.loop import Plan, Step, fit, freeze_idle
    from unicl_cli.core.sampler import seed_of
    from unicl_cli.core.schedule import lr_at
    from unicl_cli.core.towers import traits_of
    from unicl_cli.data.class_names import read_class_file, read_classes
    from unicl_cli.data.class_numbers import match_labels
    from unicl_cli.data.coco import CocoImage, CocoObject, CocoSet, find_coco, read_coco
    from unicl_cli.data.decoding import decode_pixels
    from unicl_cli.data.number_spellings import read_whole_numbers
    from unicl_cli.data.pictures import Extent, read_extent
    from unicl_cli.data.run_lengths import mask_of_runs
    from unicl_cli.data.shape_scenes import write_shape_scenes
    from unicl_cli.data.sources.tar_members import iter_members
    from unicl_cli.errors import UniclError, print_line, write_note
    from unicl_cli.evaluate.classifier import prompts_of, zeroshot_classifier
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, EvalRows, Evaluator, RowSets
    from unicl_cli.kernels.targets import Target
    from unicl_cli.launch.accelerator import start_accelerator
    from unicl_cli.launch.process import is_peer
    from unicl_cli.launch.stopping import StopFlag
    from unicl_cli.launch.workers import run_on_devices
    from unicl_cli.losses.contrast import both_ways, contrast, contrast_tiled, supcon_loss
    from unicl_cli.model import at_least_float32, chunked
    from unicl_cli.recipe.schema import Section
    from unicl_cli.recipe.settings import load_settings
    from unicl_cli.runs.folder import locate_model
    from unicl_cli.runs.settings_file import check_settings, newest_weights, read_settings
    from unicl_cli.runs.training import ModuleRun, train_module

_HOME = {
    "unicl_cli.build.model": ("build_image_tower",),
    "unicl_cli.contracts": (
        *("NO_KEY", "NO_LABEL", "NO_TEXT", "Batch", "ClassName", "DatasetSource", "Drawn", "Features", "LabelSets"),
        *("LogitScale", "Loss", "Metric", "Model", "Part", "Row", "Sample", "Sink", "Tokenizer", "Tower"),
        "TowerTraits",
    ),
    "unicl_cli.evaluator_contracts": ("EvalCorpus", "EvalModel", "EvalRows", "Evaluator", "RowSets"),
    "unicl_cli.core.label_sets": ("set_columns",),
    "unicl_cli.core.checkpoint": ("load_optimizer", "load_weights", "read_tensors", "save"),
    "unicl_cli.core.checkpoint_files": ("newest", "read_facts"),
    "unicl_cli.core.dist": ("bare", "gather", "gather_rows", "rank", "shard", "share_of_mean", "world_size"),
    "unicl_cli.launch.accelerator": ("start_accelerator",),
    "unicl_cli.core.loop": ("Plan", "Step", "fit", "freeze_idle"),
    "unicl_cli.core.sampler": ("seed_of",),
    "unicl_cli.core.schedule": ("lr_at",),
    "unicl_cli.data.class_names": ("read_class_file", "read_classes"),
    "unicl_cli.data.class_numbers": ("match_labels",),
    "unicl_cli.data.number_spellings": ("read_whole_numbers",),
    "unicl_cli.data.pictures": ("Extent", "read_extent"),
    "unicl_cli.data.sources.tar_members": ("iter_members",),
    "unicl_cli.core.files": ("write_output",),
    "unicl_cli.core.json_output": ("print_json",),
    "unicl_cli.core.towers": ("traits_of",),
    "unicl_cli.data.decoding": ("decode_pixels",),
    "unicl_cli.launch.process": ("is_peer",),
    "unicl_cli.launch.stopping": ("StopFlag",),
    "unicl_cli.launch.workers": ("run_on_devices",),
    "unicl_cli.recipe.schema": ("Section",),
    "unicl_cli.recipe.settings": ("load_settings",),
    "unicl_cli.runs.folder": ("locate_model",),
    "unicl_cli.runs.settings_file": (
        "check_settings",
        "newest_weights",
        "read_settings",
    ),
    "unicl_cli.runs.training": ("ModuleRun", "train_module"),
    "unicl_cli.data.coco": (
        "CocoImage",
        "CocoObject",
        "CocoSet",
        "find_coco",
        "read_coco",
    ),
    "unicl_cli.data.run_lengths": ("mask_of_runs",),
    "unicl_cli.data.shape_scenes": ("write_shape_scenes",),
    "unicl_cli.errors": ("UniclError", "print_line", "write_note"),
    "unicl_cli.evaluate.classifier": ("prompts_of", "zeroshot_classifier"),
    "unicl_cli.build.load": ("Loaded", "load_model"),
    "unicl_cli.kernels.targets": ("Target",),
    "unicl_cli.losses.contrast": ("both_ways", "contrast", "contrast_tiled", "supcon_loss"),
    "unicl_cli.model": ("at_least_float32", "chunked"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "NO_KEY",
    "NO_LABEL",
    "NO_TEXT",
    "Batch",
    "ClassName",
    "CocoImage",
    "CocoObject",
    "CocoSet",
    "DatasetSource",
    "Drawn",
    "EvalCorpus",
    "EvalModel",
    "EvalRows",
    "Evaluator",
    "Extent",
    "Features",
    "LabelSets",
    "Loaded",
    "LogitScale",
    "Loss",
    "Metric",
    "Model",
    "ModuleRun",
    "Part",
    "Plan",
    "Row",
    "RowSets",
    "Sample",
    "Section",
    "Sink",
    "Step",
    "StopFlag",
    "Target",
    "Tokenizer",
    "Tower",
    "TowerTraits",
    "UniclError",
    "at_least_float32",
    "bare",
    "both_ways",
    "build_image_tower",
    "check_settings",
    "chunked",
    "contrast",
    "contrast_tiled",
    "decode_pixels",
    "find_coco",
    "fit",
    "freeze_idle",
    "gather",
    "gather_rows",
    "is_peer",
    "iter_members",
    "load_model",
    "load_optimizer",
    "load_settings",
    "load_weights",
    "locate_model",
    "lr_at",
    "mask_of_runs",
    "match_labels",
    "newest",
    "newest_weights",
    "print_json",
    "print_line",
    "prompts_of",
    "rank",
    "read_class_file",
    "read_classes",
    "read_coco",
    "read_extent",
    "read_facts",
    "read_settings",
    "read_tensors",
    "read_whole_numbers",
    "run_on_devices",
    "save",
    "seed_of",
    "set_columns",
    "shard",
    "share_of_mean",
    "start_accelerator",
    "supcon_loss",
    "train_module",
    "traits_of",
    "world_size",
    "write_note",
    "write_output",
    "write_shape_scenes",
    "zeroshot_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"unicl_cli.api has no '{name}'")
    return getattr(import_module(_MODULE[name]), name)
