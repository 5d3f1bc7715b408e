"""The sections of a recipe: each key with its type, its range, its default and what it means."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, Strict, WithJsonSchema

from unicl_cli.contracts import Part


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # YAML's 1e5 is a float


def _one_or_many(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    return [{"name": item} if isinstance(item, str) else item for item in values]


def _flat(schema: dict[str, Any]) -> None:
    schema["properties"].pop("part", None)
    schema["additionalProperties"] = True  # the options of the encoder named


AS_LIST = Strict(strict=False)
"""A tuple that YAML writes as a list."""
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Templates = Annotated[tuple[str, ...], AS_LIST, Field(min_length=1)] | str
_PART = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"name": {"type": "string"}}}]}
BoundPart = Annotated[InstanceOf[Part], WithJsonSchema(_PART)]
"""A part that `registry.bind` has checked."""


class Section(BaseModel):
    """A mapping of a recipe: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, strict=True, frozen=True, use_attribute_docstrings=True
    )


class Augment(Section):
    """A preset of `data/transforms.py`; every other key replaces the preset's value where it is not null."""

    name: Literal["none", "basic", "shift", "strong", "simclr", "randaug"] = "basic"
    """The preset."""
    crop: Annotated[tuple[Positive, Positive], AS_LIST] | None = None
    """Least and largest area of a random crop, as a share of the image."""
    flip: Share | None = None
    """Probability of a mirror image."""
    shift: Annotated[int, Field(ge=0)] | None = None
    """Largest shift in pixels, each way."""
    noise: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of added noise; pixels are 0..1."""
    jitter: Annotated[float, Field(ge=0)] | None = None
    """Strength of colour jitter."""
    grey: Share | None = None
    """Probability of a grey image."""
    blur: Share | None = None
    """Probability of a blur."""
    erase: Share | None = None
    """Probability that a rectangle becomes noise."""
    rand: str | None = None
    """timm's RandAugment string, for example `rand-m9-mstd0.5`."""


Augments = Annotated[tuple[Augment, ...], AS_LIST, BeforeValidator(_one_or_many), Field(min_length=1)]


class TrainData(Section):
    """One corpus of the mix."""

    corpus: str
    """Directory that `unicl prepare` wrote, relative to the current directory."""
    split: str = "train"
    """The corpus' split."""
    weight: Positive = 1.0
    """How often its rows are drawn, relative to the other corpora of the same kind."""
    limit: Count | None = None
    """Use only this many rows."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Use only this share of the rows."""
    augment: Augments | None = None
    """Instead of `data.augment`; one entry, or one a view."""
    templates: Templates | None = None
    """Instead of `data.templates`."""


class Mix(Section):
    """How label rows and caption rows share a batch."""

    labels: Share | Literal["auto"] = "auto"
    """Share of each global batch that carries labels, exact; auto = half where both kinds exist."""
    by: Literal["sample", "step"] = "sample"
    """Mix inside a batch, or let whole steps take turns."""


class Data(Section):
    """What is learned from."""

    train: Annotated[tuple[TrainData, ...], AS_LIST, Field(min_length=1)]
    """The corpora."""
    mix: Mix = Mix()
    """Labels against captions."""
    image_size: Count = 224
    """Side of the square image that the image tower sees, in pixels."""
    augment: Augments = (Augment(),)
    """One entry for all views, or one a view."""
    templates: Templates | None = None
    """Prompts for class names: the name of a list, a file or a list; null = what the corpus says."""
    views: Count = 1
    """Augmented views of each image."""
    text_for_labelled: Literal["prompt", "caption", "mixed"] = "mixed"
    """The text of a row that has a label and captions."""
    class_names: Literal["first", "uniform"] = "first"
    """Which of a class' names a prompt takes."""
    caption_targets: Literal["unique", "text_hash"] = "unique"
    """Whether captions of equal text are positives of each other."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes; changes speed only, never samples."""
    decoder: Literal["auto", "pillow"] = "auto"
    """auto = JPEGs by the fastest decoder whose pixels are Pillow's; changes speed only."""
    resize: Literal["tensor", "pillow"] = "tensor"
    """Who resizes random crops; tensor is four times as fast, its levels the same but for a few that are off by one."""
    augment_on: Literal["loader", "device"] = "loader"
    """Where all but crop and `rand` is done; device = for whole batches there, with other random numbers."""


class ModelSection(Section):
    """The model: `name` is a part of group `unicl.encoders`, whose options stand beside these keys."""

    model_config = ConfigDict(json_schema_extra=_flat)

    name: str = "two_tower"
    """The model's name."""
    tokenizer: str | None = None
    """corpus | clip | classes | the path of a file; null = the text tower's own, else corpus."""
    context_length: Count | None = None
    """Longest text in tokens; null = 77 for clip, else 32."""
    init: str | None = None
    """A model to start from, in any form that `--model` takes."""
    init_parts: Annotated[tuple[Literal["image", "text", "logit_scale"], ...], AS_LIST, Field(min_length=1)] | None = (
        None
    )
    """Take only these from `init`; null = all of a run, of other weights each tower that is the same."""
    part: BoundPart
    """The encoder with its options."""


class Group(Section):
    """Parameters by name that learn otherwise; of several groups the first that matches counts."""

    match: Annotated[str, Field(min_length=1)]
    """Names as in model.safetensors, `*` for any characters: `model.text.*`, `*.bias`."""
    lr_scale: Weight = 1.0
    """Times the learning rate, beside the factors of tower and layer."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Instead of `optim.weight_decay`, for what decays at all."""
    freeze: bool = False
    """Not trained."""


class Optim(Section):
    """The optimizer; no weight decay for 1-d parameters and the logit scale."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    """The optimizer's name."""
    lr: Positive = 5e-4
    """Peak learning rate."""
    betas: Annotated[tuple[Below1, Below1], AS_LIST] = (0.9, 0.98)
    """adamw's averages."""
    eps: Positive = 1e-6
    """adamw's epsilon."""
    momentum: Below1 = 0.9
    """Of sgd and lars."""
    nesterov: bool = False
    """Of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """Decoupled in adamw."""
    clip_norm: Positive | None = 1.0
    """Largest norm of the whole gradient; null = no clipping."""
    groups: Annotated[tuple[Group, ...], AS_LIST] = ()
    """Parameters that learn otherwise, by name."""


class Schedule(Section):
    """The learning rate over the run."""

    name: Literal["cosine", "constant"] = "cosine"
    """The shape after the warm-up."""
    warmup: Annotated[float, Field(ge=0)] = 500.0
    """Below 1 a share of the steps, else steps."""
    floor: Share = 0.0
    """Where the cosine ends, as a share of the peak."""


class BatchSize(Section):
    """How many samples a step has."""

    size: Count = 1024
    """Of all processes together."""
    micro: Count | Literal["auto"] = "auto"
    """Rows of a process encoded at once; changes memory only. auto = as many as fit, tried before the first step."""


class Eval(Section):
    """Zero-shot on a corpus during training and at its end."""

    corpus: str
    """Directory that `unicl prepare` wrote."""
    split: str | None = None
    """null = test, else val."""
    every: Count = 1000
    """In steps."""
    batch: Count = 512
    """Images encoded at once."""
    limit: Count | None = None
    """Use only this many rows."""


class Log(Section):
    """What is written down."""

    every: Count = 10
    """In steps."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], AS_LIST] = ()
    """Who gets the figures beside metrics.jsonl; each needs its package."""
    project: Annotated[str, Field(min_length=1)] = "unicl"
    """The project that wandb files the run under."""


class Best(Section):
    """Which checkpoint is the best one."""

    metric: Literal["top1", "text_to_image_r1", "image_to_text_r1"] = "top1"
    """A figure of the first entry of `eval`."""
    mode: Literal["max", "min"] = "max"
    """Whether more is better, or less."""


class Checkpoint(Section):
    """When the state is saved."""

    every: Count = 1000
    """In steps."""
    minutes: Positive | None = None
    """Also after this time."""
    keep: Count = 3
    """How many of the newest stay."""
    keep_every: Count | None = None
    """Those of every so many steps stay for good."""
    asynchronous: bool = True
    """Write while the training goes on, from a copy in the host's memory; false = the training waits."""
    best: Best | None = None
    """The best one stays too, and `checkpoints/best` names it; null = none is singled out."""


class Parallel(Section):
    """How the machine computes: processes, memory against time, what is faster; changes no number."""

    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """auto = ddp."""
    grad_checkpoint: bool = False
    """Compute the towers' blocks again in backward instead of keeping them: less memory, more time, same numbers."""
    pack_texts: bool = True
    """Encode texts without their padding, and beginnings that they share once; for causal text towers."""
    text_cache: Literal["auto", "off"] = "auto"
    """auto = a frozen text tower encodes each text once, where texts come often and have room in 1 GiB."""
    channels_last: bool = True
    """Images with their channels last, for backbones with BatchNorm."""
    compile: bool = False
    """Compile the towers' blocks: minutes at the first step, faster ones after it on a GPU."""


class Ema(Section):
    """A moving average of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Share of the old average that each step keeps."""
    warmup: bool = False
    """At first keep less: (1 + step) / (10 + step), until that is more than `decay`."""


class Guard(Section):
    """What a run does about trouble."""

    on_bad: Literal["skip", "stop"] = "skip"
    """An update whose loss or gradient is not finite is left out, or ends the run with exit code 3."""
    max_bad_steps: Count = 10
    """More steps than this in a row whose loss or gradient is not finite end the run with exit code 3."""
    max_bad_share: Share = 0.001
    """So does a larger share of the last 10,000 steps; overflows of fp16 do not count here."""
    on_spike: Literal["warn", "rollback", "ignore"] = "warn"
    """When loss or gradient norm lie far above the median of the last 200 lines for three lines; rollback = go back to
    the checkpoint from before, and on with other samples."""
    max_rollbacks: Count = 3
    """The next spike that calls for one ends the run with exit code 3."""


class Recipe(Section):
    """Everything that a run's numbers depend on; the machine is not in it."""

    version: Literal[1] = 1
    """Of the recipe's schema."""
    name: Annotated[str, Field(pattern=r"^[\w.\-]+$")] = "run"
    """Letters, digits, `-`, `_` and `.`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of everything random."""
    run_dir: Annotated[str, Field(min_length=1)] = "runs/{name}-{hash8}"
    """Where the run is written; `{name}`, `{hash8}` (of the recipe) and `{date}` are filled in."""
    data: Data
    model: ModelSection
    loss: BoundPart
    """The loss with its options."""
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    batch: BatchSize = BatchSize()
    steps: Count | None = None
    """Length of the run: steps, or epochs, or samples."""
    epochs: Positive | None = None
    """Full passes over the mix."""
    samples: Count | None = None
    """Images seen."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto = bf16 where the device has it, else fp32."""
    eval: Annotated[tuple[Eval, ...], AS_LIST] = ()
    """Measured during training and at its end."""
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Parallel()
    ema: Ema | None = None
    """null = no average."""
    guard: Guard = Guard()
    deterministic: bool = False
    """Refuse kernels whose result varies from run to run."""
    stages: Annotated[tuple[dict[str, Any], ...], AS_LIST] = ()
    """Stages of the run, each a patch of this recipe; none = one stage, the recipe itself."""
