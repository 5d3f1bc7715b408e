"""Names that plugins and scripts may import; semantic versioning covers exactly these. Importing it loads no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unicl_cli.build.load import Loaded, copy_model, load_model
    from unicl_cli.build.model import build_image_tower
    from unicl_cli.build.optimizer import decay_groups
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
    )
    from unicl_cli.core.checkpoint import load_optimizer, load_weights, read_tensors, save
    from unicl_cli.core.checkpoint_files import newest, read_facts
    from unicl_cli.core.dist import bare, gather, gather_rows, rank, shard, share_of_mean, world_size
    from unicl_cli.core.image_cache import EncodedImages, reads_no_images
    from unicl_cli.core.label_sets import set_columns
    from unicl_cli.core.loop import Plan, Step, fit, freeze_idle
    from unicl_cli.core.sampler import seed_of
    from unicl_cli.core.schedule import lr_at
    from unicl_cli.core.sinks import JsonlSink
    from unicl_cli.core.towers import traits_of
    from unicl_cli.data.class_names import read_class_file, read_classes
    from unicl_cli.data.class_numbers import match_labels
    from unicl_cli.data.coco import CocoImage, CocoObject, CocoSet, find_coco, read_coco
    from unicl_cli.data.decoding import decode_pixels
    from unicl_cli.data.fetch import Fetcher
    from unicl_cli.data.media import find_audio_fault, read_imu
    from unicl_cli.data.number_spellings import read_whole_numbers
    from unicl_cli.data.pictures import Extent, ImageError, open_image, read_extent
    from unicl_cli.data.run_lengths import mask_of_runs
    from unicl_cli.data.shape_scenes import write_shape_scenes
    from unicl_cli.data.sources.media_files import read_files, stamp_files
    from unicl_cli.data.sources.row_spool import spool_rows
    from unicl_cli.data.sources.tar_members import iter_members
    from unicl_cli.data.tokenizers import corpus_tokenizer, load_tokenizer
    from unicl_cli.encoders.neck import TowerPyramid, find_pyramid_tower
    from unicl_cli.errors import UniclError, csv_cell, escape_control, print_line, write_note
    from unicl_cli.evaluate.classifier import prompts_of, zeroshot_classifier
    from unicl_cli.evaluator_contracts import EvalCorpus, EvalModel, EvalRows, Evaluator, MediaKind, RowSets
    from unicl_cli.inference.answer_stream import csv_lines, format_error, json_lines, write_answers
    from unicl_cli.inference.image_batches import ImageBatch, answer_images, read_batches
    from unicl_cli.inference.image_inputs import ImageInput, open_inputs, read_image
    from unicl_cli.inference.image_names import check_any_exists, check_form, check_inputs
    from unicl_cli.kernels.targets import Target
    from unicl_cli.launch.accelerator import start_accelerator
    from unicl_cli.launch.process import is_peer
    from unicl_cli.launch.stopping import StopFlag
    from unicl_cli.launch.workers import run_on_devices
    from unicl_cli.losses.contrast import both_ways, contrast, contrast_tiled, supcon_loss
    from unicl_cli.model import TwoTower, add_projection, at_least_float32, chunked
    from unicl_cli.recipe.schema import Section
    from unicl_cli.recipe.settings import load_settings
    from unicl_cli.runs.folder import locate_model
    from unicl_cli.runs.settings_file import check_settings, newest_weights, read_settings
    from unicl_cli.runs.training import ModuleRun, train_module
    from unicl_cli.storage.files import read_regular, write_output
    from unicl_cli.storage.json_output import print_json, report_write_error, write_document
    from unicl_cli.storage.json_text import parse_json
    from unicl_cli.storage.spool import Spool
    from unicl_cli.tower_contracts import Tokenizer, Tower, TowerTraits

_HOME = {
    "unicl_cli.build.load": "Loaded copy_model load_model",
    "unicl_cli.build.model": "build_image_tower",
    "unicl_cli.build.optimizer": "decay_groups",
    "unicl_cli.contracts": (
        "Batch ClassName DatasetSource Drawn Features LabelSets LogitScale Loss Metric Model NO_KEY NO_LABEL "
        "NO_TEXT Part Row Sample Sink"
    ),
    "unicl_cli.core.checkpoint": "load_optimizer load_weights read_tensors save",
    "unicl_cli.core.checkpoint_files": "newest read_facts",
    "unicl_cli.core.dist": "bare gather gather_rows rank shard share_of_mean world_size",
    "unicl_cli.storage.files": "read_regular write_output",
    "unicl_cli.core.image_cache": "EncodedImages reads_no_images",
    "unicl_cli.storage.json_output": "print_json report_write_error write_document",
    "unicl_cli.storage.json_text": "parse_json",
    "unicl_cli.core.label_sets": "set_columns",
    "unicl_cli.core.loop": "Plan Step fit freeze_idle",
    "unicl_cli.core.sampler": "seed_of",
    "unicl_cli.core.schedule": "lr_at",
    "unicl_cli.core.sinks": "JsonlSink",
    "unicl_cli.storage.spool": "Spool",
    "unicl_cli.core.towers": "traits_of",
    "unicl_cli.data.class_names": "read_class_file read_classes",
    "unicl_cli.data.class_numbers": "match_labels",
    "unicl_cli.data.coco": "CocoImage CocoObject CocoSet find_coco read_coco",
    "unicl_cli.data.decoding": "decode_pixels",
    "unicl_cli.data.fetch": "Fetcher",
    "unicl_cli.data.media": "find_audio_fault read_imu",
    "unicl_cli.data.number_spellings": "read_whole_numbers",
    "unicl_cli.data.pictures": "Extent ImageError open_image read_extent",
    "unicl_cli.data.run_lengths": "mask_of_runs",
    "unicl_cli.data.shape_scenes": "write_shape_scenes",
    "unicl_cli.data.sources.media_files": "read_files stamp_files",
    "unicl_cli.data.sources.row_spool": "spool_rows",
    "unicl_cli.data.sources.tar_members": "iter_members",
    "unicl_cli.data.tokenizers": "corpus_tokenizer load_tokenizer",
    "unicl_cli.encoders.neck": "TowerPyramid find_pyramid_tower",
    "unicl_cli.errors": "UniclError csv_cell escape_control print_line write_note",
    "unicl_cli.evaluate.classifier": "prompts_of zeroshot_classifier",
    "unicl_cli.evaluator_contracts": "EvalCorpus EvalModel EvalRows Evaluator MediaKind RowSets",
    "unicl_cli.inference.answer_stream": "csv_lines format_error json_lines write_answers",
    "unicl_cli.inference.image_batches": "ImageBatch answer_images read_batches",
    "unicl_cli.inference.image_inputs": "ImageInput open_inputs read_image",
    "unicl_cli.inference.image_names": "check_any_exists check_form check_inputs",
    "unicl_cli.kernels.targets": "Target",
    "unicl_cli.launch.accelerator": "start_accelerator",
    "unicl_cli.launch.process": "is_peer",
    "unicl_cli.launch.stopping": "StopFlag",
    "unicl_cli.launch.workers": "run_on_devices",
    "unicl_cli.losses.contrast": "both_ways contrast contrast_tiled supcon_loss",
    "unicl_cli.model": "TwoTower add_projection at_least_float32 chunked",
    "unicl_cli.recipe.schema": "Section",
    "unicl_cli.recipe.settings": "load_settings",
    "unicl_cli.runs.folder": "locate_model",
    "unicl_cli.runs.settings_file": "check_settings newest_weights read_settings",
    "unicl_cli.runs.training": "ModuleRun train_module",
    "unicl_cli.tower_contracts": "Tokenizer Tower TowerTraits",
}
"""Module -> the names that it is asked for, in one text."""
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

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
    "EncodedImages",
    "EvalCorpus",
    "EvalModel",
    "EvalRows",
    "Evaluator",
    "Extent",
    "Features",
    "Fetcher",
    "ImageBatch",
    "ImageError",
    "ImageInput",
    "JsonlSink",
    "LabelSets",
    "Loaded",
    "LogitScale",
    "Loss",
    "MediaKind",
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
    "Spool",
    "Step",
    "StopFlag",
    "Target",
    "Tokenizer",
    "Tower",
    "TowerPyramid",
    "TowerTraits",
    "TwoTower",
    "UniclError",
    "add_projection",
    "answer_images",
    "at_least_float32",
    "bare",
    "both_ways",
    "build_image_tower",
    "check_any_exists",
    "check_form",
    "check_inputs",
    "check_settings",
    "chunked",
    "contrast",
    "contrast_tiled",
    "copy_model",
    "corpus_tokenizer",
    "csv_cell",
    "csv_lines",
    "decay_groups",
    "decode_pixels",
    "escape_control",
    "find_audio_fault",
    "find_coco",
    "find_pyramid_tower",
    "fit",
    "format_error",
    "freeze_idle",
    "gather",
    "gather_rows",
    "is_peer",
    "iter_members",
    "json_lines",
    "load_model",
    "load_optimizer",
    "load_settings",
    "load_tokenizer",
    "load_weights",
    "locate_model",
    "lr_at",
    "mask_of_runs",
    "match_labels",
    "newest",
    "newest_weights",
    "open_image",
    "open_inputs",
    "parse_json",
    "print_json",
    "print_line",
    "prompts_of",
    "rank",
    "read_batches",
    "read_class_file",
    "read_classes",
    "read_coco",
    "read_extent",
    "read_facts",
    "read_files",
    "read_image",
    "read_imu",
    "read_regular",
    "read_settings",
    "read_tensors",
    "read_whole_numbers",
    "reads_no_images",
    "report_write_error",
    "run_on_devices",
    "save",
    "seed_of",
    "set_columns",
    "shard",
    "share_of_mean",
    "spool_rows",
    "stamp_files",
    "start_accelerator",
    "supcon_loss",
    "train_module",
    "traits_of",
    "world_size",
    "write_answers",
    "write_document",
    "write_note",
    "write_output",
    "write_shape_scenes",
    "zeroshot_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"unicl_cli.api has no '{name}'")
    return getattr(import_module(_MODULE[name]), name)
