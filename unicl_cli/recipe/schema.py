"""Schema of a recipe: each key with its type, range, default and description."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, Strict, WithJsonSchema

from unicl_cli.contracts import Part


def _to_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1e5 is a float in YAML


def _check_order(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("should have the smaller number first")
    return pair


def _to_named_list(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    return [{"name": item} if isinstance(item, str) else item for item in values]


def _allow_encoder_options(schema: dict[str, Any]) -> None:
    schema["properties"].pop("part", None)
    schema["additionalProperties"] = True  # the options of the encoder named


AS_LIST = Strict(strict=False)
"""Marks a tuple, which is a list in YAML."""
Count = Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=10**15)]
MAX_STEPS, MAX_CONTEXT = 10**10, 2**17
"""The longest training, and the longest context of a text tower in tokens."""
Steps = Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=MAX_STEPS)]
"""Number of steps: times a batch's rows it fits 64 bits."""
Rows = Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=2**24)]
"""Rows that are held at once."""
Width = Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=2**16)]
"""Numbers in a state or a head of a tower."""
Depth = Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=1024)]
"""Blocks of a tower."""
Side = Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=8192)]
"""Pixels."""
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]
Weight = Annotated[float, Field(ge=0)]
Templates = Annotated[tuple[str, ...], AS_LIST, Field(min_length=1)] | str
FIGURES = ("top1", "map", "text_to_image_r1", "image_to_text_r1")
"""Metrics of a validation by the evaluators zeroshot (the first two) and retrieval."""
_PART = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"name": {"type": "string"}}}]}
BoundPart = Annotated[InstanceOf[Part], WithJsonSchema(_PART)]
"""Part whose options `binding.bind` has checked."""


class Section(BaseModel):
    """Mapping of a recipe: frozen, strict, without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, strict=True, frozen=True, use_attribute_docstrings=True
    )


class Augment(Section):
    """Image augmentation: a preset, in which every other key that is not null replaces a value."""

    name: Literal["none", "basic", "shift", "strong", "simclr", "randaug"] = "basic"
    """Preset to start from."""
    crop: Annotated[tuple[Positive, Positive], AS_LIST, AfterValidator(_check_order)] | None = None
    """Smallest and largest area of a random crop, as shares of the image, for example `[0.3, 1.0]`."""
    flip: Share | None = None
    """Probability of a horizontal flip."""
    shift: Annotated[int, Field(ge=0, le=8192)] | None = None
    """Largest random shift in pixels, in each direction."""
    noise: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of added noise; pixel values are 0 to 1."""
    jitter: Annotated[float, Field(ge=0, le=100)] | None = None
    """Strength of colour jitter."""
    grey: Share | None = None
    """Probability of converting the image to grey."""
    blur: Share | None = None
    """Probability of a Gaussian blur."""
    erase: Share | None = None
    """Probability of replacing a random rectangle by noise."""
    rand: str | None = None
    """RandAugment in timm's notation, for example `rand-m9-mstd0.5`."""


Augments = Annotated[tuple[Augment, ...], AS_LIST, BeforeValidator(_to_named_list), Field(min_length=1)]


class TrainData(Section):
    """Corpus to train on."""

    corpus: str
    """Directory written by `unicl prepare`, relative to the current directory."""
    split: str = "train"
    """Split of the corpus."""
    weight: Positive = 1.0
    """Relative frequency of its rows among the corpora of the same kind (labels or captions)."""
    limit: Count | None = None
    """Rows of each kind (labels, captions) to use; null = all."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the rows to use, for example 0.1; null = all."""
    augment: Augments | None = None
    """Augmentation of this corpus; null = `data.augment`. One entry, or one per view."""
    templates: Templates | None = None
    """Prompt templates of this corpus; null = `data.templates`."""


class Mix(Section):
    """Mix of rows with labels and rows with captions."""

    labels: Share | Literal["auto"] = "auto"
    """Share of rows with labels: exact over many batches, in one batch off by less than a row per corpus;
    auto = half if both kinds exist."""
    by: Literal["sample", "step"] = "sample"
    """Mix both kinds in every batch (sample), or alternate between whole batches of one kind (step)."""


class Data(Section):
    """Training data."""

    train: Annotated[tuple[TrainData, ...], AS_LIST, Field(min_length=1)]
    """Corpora to train on."""
    mix: Mix = Mix()
    """Mix of rows with labels and rows with captions."""
    image_size: Side = 224
    """Side of the square input of the image tower, in pixels."""
    augment: Augments = (Augment(),)
    """Image augmentation: one entry for all views, or one per view."""
    templates: Templates | None = None
    """Prompt templates of classes: `clip80`, `clip7`, `unicl81`, `none`, a file or a list; null = the corpus' own."""
    views: Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=64)] = 1
    """Number of augmented views of each image."""
    text_for_labelled: Literal["prompt", "caption", "mixed", "both"] = "mixed"
    """Text of a row with a label and captions: a prompt with the class name, a caption, either at random (mixed), or
    both, which counts the row twice and encodes its image once."""
    class_names: Literal["first", "uniform"] = "first"
    """Class name in a prompt: always the first one, or one of all names at random (uniform)."""
    balance: Share = 0.0
    """Balance of classes: drawn in proportion to their rows (0), to the square root of that (0.5), or equally (1)."""
    rows_per_class: Rows | None = None
    """Rows of each class in a batch (P×K sampling); as many classes as fill its rows with labels, all drawn equally
    often, instead of `balance`; null = rows of any class."""
    classes_per_batch: Rows | None = None
    """Classes in a batch with `rows_per_class`, which must fill it; null = as many as fill it."""
    ancestors: bool = True
    """Labels of a row in a taxonomy: its class and all classes above it, or its class alone (false)."""
    caption_labels: Literal["off", "hide", "positive"] = "off"
    """Effect of class names in captions of rows without a label: none (off), the caption is neither positive nor
    negative for rows of these classes (hide), or they are labels of the row (positive)."""
    caption_targets: Literal["unique", "text_hash"] = "unique"
    """Positives of a caption: its own row (unique), or every row with the same text (text_hash)."""
    workers: Annotated[int, Field(ge=0, le=4096)] | Literal["auto"] = "auto"
    """Number of loader processes; changes only the speed, never the samples."""
    decoder: Literal["auto", "pillow"] = "auto"
    """Image decoder; auto = the fastest JPEG decoder that gives the same pixels as Pillow. Changes only the speed."""
    resize: Literal["tensor", "pillow"] = "tensor"
    """Library that resizes random crops; tensor is four times as fast, with a few pixel values off by one."""
    augment_on: Literal["loader", "device"] = "loader"
    """Place of augmentation, except of crop and `rand`; device = on whole batches there, with other random numbers."""


class ModelSection(Section):
    """Model: `name` is a part of group `unicl.encoders`, whose options are further keys here."""

    model_config = ConfigDict(json_schema_extra=_allow_encoder_options)

    name: str = "two_tower"
    """Name of the encoder."""
    tokenizer: str | None = None
    """Tokenizer: `corpus`, `clip`, `classes` or the path of a file; null = that of the text tower, or else `corpus`."""
    context_length: Annotated[int, BeforeValidator(_to_int), Field(gt=0, le=MAX_CONTEXT)] | None = None
    """Longest text in tokens; null = 77 for the tokenizer `clip`, else 32."""
    init: str | None = None
    """Model to start from: a run, a checkpoint, `open_clip:NAME/TAG`, `local-dir:PATH` or `hf-hub:ORG/REPO`."""
    init_parts: Annotated[tuple[Literal["image", "text", "logit_scale"], ...], AS_LIST, Field(min_length=1)] | None = (
        None
    )
    """Parts to take from `init`; null = all of a run, or every matching tower of other weights."""
    part: BoundPart
    """Encoder with its options."""


class Group(Section):
    """Override for parameters, by name; the first group that matches wins."""

    match: Annotated[str, Field(min_length=1)]
    """Pattern of parameter names in model.safetensors, with `*` for any characters: `model.text.*`, `*.bias`."""
    lr_scale: Weight = 1.0
    """Factor of the learning rate, in addition to those of the tower and the layer."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of those parameters that have one; null = `optim.weight_decay`."""
    freeze: bool = False
    """Keep the parameters unchanged."""


class Optim(Section):
    """Optimizer; 1-d parameters and the logit scale have no weight decay."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """Name of the optimizer."""
    lr: Positive = 5e-4
    """Peak learning rate."""
    betas: Annotated[tuple[Below1, Below1], AS_LIST] = (0.9, 0.98)
    """Decay rates of the two moment averages (adamw)."""
    eps: Positive = 1e-6
    """Epsilon in the denominator of the update (adamw)."""
    momentum: Below1 = 0.9
    """Momentum (sgd, lars)."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """Weight decay; decoupled from the gradient in adamw."""
    clip_norm: Positive | None = 1.0
    """Largest norm of the whole gradient; null = no clipping."""
    groups: Annotated[tuple[Group, ...], AS_LIST] = ()
    """Overrides for parameters, by name; the first match wins."""


class Schedule(Section):
    """Schedule of the learning rate."""

    name: Literal["cosine", "constant"] = "cosine"
    """Shape after the warmup."""
    warmup: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Length of the warmup: steps, or below 1 a share of all steps; auto = 0.1, at most 2,000 steps."""
    floor: Share = 0.0
    """Learning rate at the end of the cosine, as a share of the peak."""


class BatchSize(Section):
    """Batch size."""

    size: Rows = 1024
    """Rows of a step, over all processes."""
    micro: Rows | Literal["auto"] = "auto"
    """Rows that a process encodes at once; changes memory only. auto = as many as fit, tried before the first step."""


class Eval(Section):
    """Evaluation on a corpus, during training and at its end."""

    corpus: str
    """Directory written by `unicl prepare`."""
    split: str | None = None
    """Split of the corpus; null = test, else val."""
    every: Count = 1000
    """Steps between two evaluations."""
    batch: Rows = 512
    """Images that a process encodes at once."""
    limit: Count | None = None
    """Rows of each kind (labels, captions) to use; null = all."""
    candidates: Literal["all", "corpus"] = "all"
    """Classes to choose from: those of the corpus and of the training data, or of the corpus alone."""
    evaluators: Annotated[tuple[BoundPart, ...], AS_LIST, Field(min_length=1)] | None = None
    """Evaluators to run, such as `[zeroshot, knn, probe]`, or `[{name: knn, k: 5}]`; null = zeroshot and retrieval."""


class Log(Section):
    """Logging."""

    every: Count = 10
    """Steps between two lines of metrics.jsonl."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], AS_LIST] = ()
    """Trackers that also receive the metrics; each needs its package."""
    project: Annotated[str, Field(min_length=1)] = "unicl"
    """Project of the run in wandb."""


class Best(Section):
    """Choice of the best checkpoint."""

    metric: Annotated[str, WithJsonSchema({"anyOf": [{"enum": [*FIGURES]}, {"type": "string"}]})] = "top1"
    """Metric to compare: of the first entry of `eval` whose split is not trained on; the first of equal values wins.
    For rows with label sets, which have no top-1, top1 means map. Other evaluators' begin with their name: knn_top1."""
    mode: Literal["max", "min"] = "max"
    """Direction in which the metric is better."""


class Checkpoint(Section):
    """Checkpoints."""

    every: Count = 1000
    """Steps between two checkpoints."""
    minutes: Positive | None = None
    """Minutes after which a checkpoint is also written; null = steps only."""
    keep: Count = 3
    """Number of the newest checkpoints to keep."""
    keep_every: Count | None = None
    """Also keep checkpoints at multiples of this step forever; null = none."""
    asynchronous: bool = True
    """Write while training continues, from a copy in host memory; false = training waits."""
    best: Best | None = None
    """Also keep the best checkpoint, which `checkpoints/best` names; null = do not compare checkpoints."""


class Parallel(Section):
    """Processes, memory and speed; none of these keys changes a result."""

    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """Strategy of several processes; auto = ddp."""
    grad_checkpoint: bool = False
    """Recompute the blocks of the towers in the backward pass: less memory, more time, the same results."""
    pack_texts: bool = True
    """Encode texts without padding, and a prefix that several texts share only once (causal text towers)."""
    text_cache: Literal["auto", "off"] = "auto"
    """Cache of text features; auto = a frozen text tower encodes each text once, if texts repeat and fit in 1 GiB."""
    image_cache: Literal["auto", "off"] = "auto"
    """Cache of image features; auto = a frozen image tower encodes each image once, before the first step, if images
    do not change from draw to draw, repeat, and their features fit in 1 GiB."""
    channels_last: bool = True
    """Memory format channels_last for images, in backbones with BatchNorm."""
    compile: bool = False
    """Compile the blocks of the towers: the first step takes minutes, later ones are faster on a GPU."""


class Ema(Section):
    """Moving average of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Share of the average that is kept in each step."""
    warmup: bool = False
    """Start with the smaller decay (1 + step) / (10 + step), until it exceeds `decay`."""


class Guard(Section):
    """Guards against divergence."""

    on_bad: Literal["skip", "stop"] = "skip"
    """Reaction to a non-finite loss or gradient: skip the update, or end the run with exit code 3 (stop)."""
    max_bad_steps: Count = 10
    """Consecutive steps with a non-finite loss or gradient that are allowed; one more ends the run with exit code 3."""
    max_bad_share: Share = 0.001
    """Share of the last 10,000 steps that may have a non-finite loss or gradient; overflows of fp16 do not count."""
    on_spike: Literal["warn", "rollback", "ignore"] = "warn"
    """Reaction to a loss or gradient norm far above the median of the last 200 log lines, three lines in a row;
    rollback = return to the checkpoint before it and continue with other samples."""
    max_rollbacks: Count = 3
    """Rollbacks allowed; one more spike ends the run with exit code 3."""


class Recipe(Section):
    """Everything that the results of a run depend on, except the machine."""

    version: Literal[1] = 1
    """Version of the recipe schema."""
    name: Annotated[str, Field(pattern=r"^[\w.\-]+$")] = "run"
    """Name of the recipe: letters, digits, `-`, `_` and `.`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all randomness."""
    run_dir: Annotated[str, Field(min_length=1)] = "runs/{name}-{hash8}"
    """Directory of the run; `{name}`, `{hash8}` (of the recipe) and `{date}` are replaced."""
    data: Data
    model: ModelSection
    loss: BoundPart
    """Loss with its options."""
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    batch: BatchSize = BatchSize()
    steps: Steps | None = None
    """Length of the run in steps; set exactly one of `steps`, `epochs`, `samples`."""
    epochs: Positive | None = None
    """Length of the run in passes over the mix, for example 0.5."""
    samples: Count | None = None
    """Length of the run in images."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of training; auto = bf16 if the device supports it, else fp32."""
    eval: Annotated[tuple[Eval, ...], AS_LIST] = ()
    """Corpora to evaluate on, during training and at its end."""
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Parallel()
    ema: Ema | None = None
    """Moving average of the weights; null = none."""
    guard: Guard = Guard()
    deterministic: bool = False
    """Refuse kernels whose results vary from run to run."""
    stages: Annotated[tuple[dict[str, Any], ...], AS_LIST] = ()
    """Stages of the run, each a patch of this recipe; empty = one stage, the recipe itself."""
