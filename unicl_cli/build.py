"""Recipe to objects: mix, tokenizer, Step, optimizer. Knows every part."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unicl_cli import registry, tuning
from unicl_cli.contracts import ClassName, Part, Tokenizer, Tuning
from unicl_cli.core.dist import bare
from unicl_cli.core.loop import Step
from unicl_cli.core.machine import cores
from unicl_cli.core.prompts import load_templates
from unicl_cli.core.recompute import recompute_blocks
from unicl_cli.core.sampler import Alternation, Mixture
from unicl_cli.core.schedule import lr_at
from unicl_cli.core.switches import switched
from unicl_cli.data import loader
from unicl_cli.data.corpus import Corpus, open_corpus
from unicl_cli.data.device_augment import DeviceAugment
from unicl_cli.data.tokenizers import TextTokenizer, class_tokenizer, clip_tokenizer, corpus_tokenizer, load_tokenizer
from unicl_cli.data.transforms import Augment, TrainTransform, augment, halves
from unicl_cli.errors import UniclError
from unicl_cli.recipe import Recipe
from unicl_cli.sections import Group, TrainData

UNDECAYED = ("pos", "pos_embed", "positional_embedding", "cls_token", "relative_position_bias_table", "logit_scale")
HIGH = 1e-4
"""AdamW's learning rate above which trained weights are hardly fine-tuned."""
PLACE = "place"
"""Attribute of a tower: the name of its folder in TOWERS."""
TOWERS = "towers"
"""Folder of a run with what towers need beside recipe and weights, each its own: configurations, tokenizers."""
WHOLE = "model"
"""The folder there of a model that is one part, not nested towers."""


class Data(NamedTuple):
    """The corpora of a recipe as one mix. ``templates`` are those of the first corpus with classes, for evaluation."""

    mix: loader.Mix
    order: Mixture | Alternation
    classes: tuple[ClassName, ...]
    templates: tuple[str, ...]
    checksums: dict[str, str]
    late: DeviceAugment | None


def merged_classes(corpora: Sequence[Corpus]) -> tuple[tuple[ClassName, ...], list[NDArray[np.int64]]]:
    """The classes of all corpora in order, equal keys once, and for each corpus its class -> class of the union."""
    union: dict[str, int] = {}
    classes: list[ClassName] = []
    maps: list[NDArray[np.int64]] = []
    for corpus in corpora:
        for item in corpus.classes:
            if item.key not in union:
                union[item.key] = len(union)
                classes.append(item)
        maps.append(np.array([union[item.key] for item in corpus.classes], np.int64))
    return tuple(classes), maps


def templates_of(corpus: Corpus, *specs: str | Sequence[str] | None) -> tuple[str, ...]:
    """The first given template list, else the corpus's own."""
    return load_templates(next((spec for spec in specs if spec is not None), corpus.templates))


def augments_of(recipe: Recipe, item: TrainData) -> list[Augment]:
    """Augmentation of a corpus's pictures, view by view: one entry for all views, or one a view."""
    entries = recipe.data.augment if item.augment is None else item.augment
    if len(entries) not in (1, recipe.data.views):
        raise UniclError(
            f"data.augment has {len(entries)} entries for {recipe.data.views} views",
            "give one entry, or one a view (data.views)",
        )
    ops = [augment(entry.name, entry.model_dump(exclude={"name"})) for entry in entries]
    return ops * (recipe.data.views // len(ops))


def transform_of(recipe: Recipe, item: TrainData) -> TrainTransform:
    """What the loader does to a corpus's pictures."""
    data, ops = recipe.data, augments_of(recipe, item)
    if data.augment_on == "device":
        ops = [halves(op)[0] for op in ops]
    return TrainTransform(data.image_size, ops, recipe.seed, decoder=data.decoder, resize=data.resize)


def late_augment(recipe: Recipe) -> DeviceAugment | None:
    """What the device does to the pictures of a batch after the loader."""
    if recipe.data.augment_on == "loader":
        return None
    wanted = [[halves(op)[1] for op in augments_of(recipe, item)] for item in recipe.data.train]
    if any(ops != wanted[0] for ops in wanted):
        raise UniclError(
            "data.augment_on=device wants the same augmentation for all corpora, crop and rand apart",
            "leave augment out of data.train, or set data.augment_on=loader",
        )
    return DeviceAugment(wanted[0], recipe.seed)


def build_data(recipe: Recipe) -> Data:
    """Opens every corpus of the recipe; nothing is read but manifests and, for shares of a corpus, keys."""
    corpora = [open_corpus(item.corpus) for item in recipe.data.train]
    classes, maps = merged_classes(corpora)
    strands: list[loader.Strand] = []
    for item, corpus, labels in zip(recipe.data.train, corpora, maps, strict=True):
        if item.split not in corpus.splits:
            raise UniclError(f"{item.corpus}: has no split '{item.split}'", f"it has {', '.join(corpus.splits)}")
        strands += loader.strands_of(
            corpus,
            item.split,
            labels=labels,
            templates=templates_of(corpus, item.templates, recipe.data.templates),
            transform=transform_of(recipe, item),
            weight=item.weight,
            fraction=1.0 if item.fraction is None else item.fraction,
            limit=item.limit,
        )
    strands = wanted_kinds(strands, recipe)
    texts = loader.Texts(recipe.data.text_for_labelled, recipe.data.class_names, recipe.seed)
    try:
        order = loader.order(
            strands,
            labels=recipe.data.mix.labels,
            by=recipe.data.mix.by,
            batch_size=recipe.batch.size,
            seed=recipe.seed,
        )
    except ValueError as error:
        raise UniclError(f"batch.size: {error}", "use a larger batch.size or fewer corpora") from error
    named = [(item, corpus) for item, corpus in zip(recipe.data.train, corpora, strict=True) if corpus.classes]
    first = named[0] if named else (recipe.data.train[0], corpora[0])
    templates = templates_of(first[1], first[0].templates, recipe.data.templates)
    checksums = {item.corpus: corpus.checksum for item, corpus in zip(recipe.data.train, corpora, strict=True)}
    return Data(loader.Mix(strands, texts), order, classes, templates, checksums, late_augment(recipe))


def wanted_kinds(strands: list[loader.Strand], recipe: Recipe) -> list[loader.Strand]:
    """Without the kinds of which the mix takes nothing; an empty mix is an error."""
    share = recipe.data.mix.labels
    kept = [s for s in strands if not (share == 0 and s.kind == loader.LABELS)]
    kept = [s for s in kept if not (share == 1 and s.kind != loader.LABELS)]
    if not kept:
        kinds = sorted({s.kind for s in strands}) or ["nothing"]
        raise UniclError(
            f"data.mix.labels is {share}, but the corpora hold {' and '.join(kinds)} only",
            "set data.mix.labels=auto, or add a corpus of the other kind",
        )
    return kept


def check_learnable(recipe: Recipe, data: Data) -> None:
    """What could never teach anything is refused: one class and nothing else, no texts for a text loss."""
    if all(s.kind == loader.LABELS for s in data.mix.strands) and len(loader.present(data.mix.strands)) == 1:
        raise UniclError(
            "the corpora have one class and nothing else: there is nothing to tell apart",
            "add a second class, or captions: unicl prepare --labels … --captions …",
        )
    reads = recipe.model.name == "open_clip" or recipe.model.part.options.get("text") is not None
    if reads and any(s.kind == "images" for s in data.mix.strands):
        raise UniclError(
            "a corpus holds pictures without label or text, and the model has a text tower",
            "set model.text=null and a loss without texts, or prepare the pictures with labels or captions",
        )


def doubts(recipe: Recipe, data: Data) -> list[str]:
    """What is allowed, and hardly meant."""
    rows = sum(strand.size for strand in data.mix.strands)
    twice = f"batch.size {recipe.batch.size} is more than the {rows} rows of the mix: each step sees pictures twice"
    fast = [
        f"optim.lr makes {rate:g} for model.{name}, which begins with trained weights: more than {HIGH:g} undoes them "
        f"soon; 1e-5 is usual (or model.{name}.lr_scale, layer_decay, lora)"
        for name, rate in trained_rates(recipe).items()
        if rate > HIGH and recipe.optim.name == "adamw"
    ]
    steps = total_steps(recipe, data)
    warmup = warmup_of(recipe, steps)
    slow = f"schedule.warmup of {warmup:,} steps is longer than the run of {steps:,}: optim.lr is never reached"
    return [twice] * (recipe.batch.size > rows) + [slow] * (warmup > steps) + fast


def trained_rates(recipe: Recipe) -> dict[str, float]:
    """Peak learning rate of each tower that begins with trained weights, and whose own weights all learn alike."""
    model, options = recipe.model, recipe.model.part.options
    begun = set(options) if model.init is not None and model.init_parts is None else set(model.init_parts or ())
    found: dict[str, float] = {}
    for name, option in options.items():
        own = option.tuning if isinstance(option, Part) else option
        weights = option.options.get("pretrained") if isinstance(option, Part) else options.get("pretrained")
        if not isinstance(own, Tuning) or not (weights is True or name in begun):
            continue
        if own.freeze not in (True, "all") and own.lora is None and own.layer_decay == 1:
            found[name] = recipe.optim.lr * own.lr_scale
    return found


def total_steps(recipe: Recipe, data: Data) -> int:
    """Updates of the whole run; an epoch is the pass in which the strand that lasts longest is seen once."""
    if recipe.steps is not None:
        return recipe.steps
    if recipe.samples is not None:
        return math.ceil(recipe.samples / recipe.batch.size)
    order = data.order
    parts = (order.first, order.second) if isinstance(order, Alternation) else (order,)
    turns = (order.part, 1 - order.part) if isinstance(order, Alternation) else (1,)
    passes = [
        stream.rows / (share * turn * order.batch_size)
        for mixture, turn in zip(parts, turns, strict=True)
        for stream, share in zip(mixture.streams, mixture.shares, strict=True)
        if share
    ]
    return math.ceil((recipe.epochs or 1) * max(passes))


def build_tokenizer(recipe: Recipe, data: Data) -> TextTokenizer:
    """``corpus`` (fitted on the mix), ``clip``, ``classes`` or a file."""
    name = recipe.model.tokenizer or "corpus"
    length = recipe.model.context_length or (77 if name == "clip" else 32)
    if name == "corpus":
        return corpus_tokenizer(data.mix.all_texts(), length)
    if name == "clip":
        return clip_tokenizer(length)
    if name == "classes":
        return class_tokenizer([item.names[0] for item in data.classes])
    return load_tokenizer(Path(name), length)


def build_step(
    recipe: Recipe,
    tokenizer: Callable[[], TextTokenizer],
    classes: tuple[ClassName, ...],
    chunks: int,
    trained: Path | None = None,
) -> tuple[Step, Tokenizer | None]:
    """Model and loss with the recipe's seed, and the text tower's tokenizer: the recipe's, else the tower's own.

    ``trained`` is the run whose weights are going to replace these: towers take their files from it and load no others.
    """
    torch.manual_seed(recipe.seed)
    options = recipe.model.part.options
    places = count()

    def encoder(part: Part) -> nn.Module:
        place = f"{next(places)}-{part.name.rpartition('/')[2]}"
        stored = None if trained is None else trained / TOWERS / place
        tower = cast("nn.Module", registry.make("encoders", part, {**context, "stored": lambda: stored}))
        setattr(tower, tuning.TUNING, part.tuning)
        setattr(tower, PLACE, place)
        return tower

    context: dict[str, Callable[[], Any]] = {
        "encoder": lambda: encoder,
        "chunks": lambda: chunks,
        "classes": lambda: classes,
        "num_classes": lambda: len(classes),
        "embed_dim": lambda: options.get("embed_dim"),
        "image_size": lambda: recipe.data.image_size,
        "vocab_size": lambda: tokenizer().vocab_size,
        "context_length": lambda: tokenizer().context_length,
        "eot_id": lambda: tokenizer().eot_id,
        "pad_id": lambda: tokenizer().pad_id,
        "image_width": lambda: model.image_width,
        "stored": lambda: None if trained is None else trained / TOWERS / WHOLE,
    }
    model = registry.make("encoders", recipe.model.part, context)
    tuning.name_towers(model, options)
    if recipe.parallel.grad_checkpoint and not recompute_blocks(model):
        raise UniclError("parallel.grad_checkpoint: no tower of this model lists its blocks", "set it to false")
    switched(model, pack_texts=recipe.parallel.pack_texts, channels_last=recipe.parallel.channels_last)
    tuning.freeze(model)
    loss = cast("nn.Module", registry.make("losses", recipe.loss, context))
    if getattr(model, "text", model) is None:
        return Step(model, loss), None
    own = owned(model, "tokenizer")
    return Step(model, loss), own if own is not None and recipe.model.tokenizer is None else tokenizer()


def owned(model: nn.Module, name: str) -> Any:
    """What the first part of the model that has an attribute ``name`` says; None where none does."""
    return next((getattr(module, name) for module in model.modules() if hasattr(module, name)), None)


def store_towers(step: nn.Module, run: Path) -> None:
    """Each tower that has files of its own (a method ``store``) writes them into the run."""
    for tower in step.modules():
        if hasattr(tower, "store"):
            folder = run / TOWERS / str(getattr(tower, PLACE, WHOLE))
            folder.mkdir(parents=True, exist_ok=True)
            cast("Any", tower).store(folder)


def no_decay(name: str, parameter: nn.Parameter, embeddings: set[int]) -> bool:
    """Gains, biases, scales, embeddings and positions keep their size, as in CLIP and Swin."""
    return parameter.ndim < 2 or id(parameter) in embeddings or name.rsplit(".", 1)[-1] in UNDECAYED


def adapt(recipe: Recipe, step: nn.Module) -> bool:
    """Adapters beside the weights that the model has by now, and what ``optim.groups`` freezes; were adapters added?"""
    torch.manual_seed(recipe.seed)  # however many numbers the weights have taken
    adapted = tuning.adapt(step)
    tuning.freeze_groups(recipe.optim.groups, step)
    if not any(parameter.requires_grad for parameter in step.parameters()):
        hint = "let a tower learn: model.image.freeze, model.text.freeze, model.logit_scale.learn, optim.groups"
        raise UniclError("every parameter is frozen: there is nothing to train", hint)
    return adapted


def build_optimizer(recipe: Recipe, step: nn.Module) -> torch.optim.Optimizer:
    """Groups by weight decay and by the factors of tower, layer and ``optim.groups``; what is frozen takes no part."""
    optim, step = recipe.optim, bare(step)
    tables = (nn.Embedding, nn.EmbeddingBag)
    embeddings = {id(m.weight) for m in step.modules() if isinstance(m, tables)}
    scales, chosen, usual = tuning.rates(step), tuning.grouped(optim.groups, step), Group(match="*")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            own = chosen.get(name, usual)
            decay = optim.weight_decay if own.weight_decay is None else own.weight_decay
            decay = 0.0 if no_decay(name, parameter, embeddings) else decay
            groups.setdefault((decay, scales.get(id(parameter), 1.0) * own.lr_scale), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]
    if not listed:
        raise UniclError("no parameter is left to train", "set freeze: false on a tower")
    if optim.name == "adamw":
        return torch.optim.AdamW(listed, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    if optim.name == "sgd":
        return torch.optim.SGD(listed, lr=optim.lr, momentum=cast("Any", optim).momentum, nesterov=optim.nesterov)
    from timm.optim.lars import Lars

    return Lars(
        cast("Any", listed),
        lr=optim.lr,
        momentum=cast("Any", optim).momentum,
        trust_coeff=0.001,
        eps=0.0,
        always_adapt=True,
    )


def rate(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the update's number."""
    schedule, warmup = recipe.schedule, warmup_of(recipe, steps)
    return partial(lr_at, name=schedule.name, peak=recipe.optim.lr, warmup=warmup, steps=steps, floor=schedule.floor)


def warmup_of(recipe: Recipe, steps: int) -> int:
    """Steps until the learning rate is at its peak; below 1 the recipe gives a share of all."""
    warmup = recipe.schedule.warmup
    return round(warmup * steps) if warmup < 1 else int(warmup)


def worker_count(recipe: Recipe, device: torch.device, local_world: int) -> int:
    """``auto``: none on a CPU, where decoding and training share the cores anyway; else the cores of a process, ≤ 8."""
    if recipe.data.workers != "auto":
        return recipe.data.workers
    return 0 if device.type == "cpu" else min(8, cores() // local_world)


def build_image_tower(part: Part | str, image_size: int) -> nn.Module:
    """An image tower alone, by its name and options, for models that bring their own rest."""
    bound = registry.bind("encoders", part)
    context: dict[str, Callable[[], Any]] = {"image_size": lambda: image_size, "stored": lambda: None}
    return cast("nn.Module", registry.make("encoders", bound, context))
