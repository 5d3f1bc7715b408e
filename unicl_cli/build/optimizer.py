"""Recipe to optimizer: parameter groups, weight decay, the learning rate."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from unicl_cli.build import param_groups
from unicl_cli.build.caption_labels import naming_warnings
from unicl_cli.build.data import TrainingData, total_steps
from unicl_cli.build.negatives import check_negatives
from unicl_cli.contracts import Part, Tuning
from unicl_cli.core.dist import bare
from unicl_cli.core.ema import share_of_start
from unicl_cli.core.schedule import lr_at
from unicl_cli.data.class_order import describe_few
from unicl_cli.data.mix import BOTH, LABELS
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of, format_share
from unicl_cli.recipe.load import load
from unicl_cli.recipe.schema import Group, Recipe
from unicl_cli.runs.folder import RESOLVED, find_run
from unicl_cli.storage import hub

UNDECAYED = (
    *("pos", "pos_embed", "positional_embedding", "cls_token", "relative_position_bias_table", "logit_scale"),
    *("bias_k", "bias_v"),  # of nn.MultiheadAttention: matrices by shape
)
"""Last words in the names of parameters that do not decay, whatever their shape."""
WARMUP, LONGEST_WARMUP = 0.1, 2000
"""The warm-up of a recipe that sets none: a share of the run, and the most steps (CLIP's)."""
HIGH = 1e-4
"""AdamW's learning rate above which trained weights are usually lost."""
STALE, FRESH = 0.05, 0.01
"""Share of the start weights in a finished average above which there is a warning, and that of the suggested decay."""


def recipe_warnings(recipe: Recipe, data: TrainingData) -> list[str]:
    """Return warnings about settings that are allowed and probably not meant; raise UniclError for useless ones."""
    found = check_negatives(recipe, data)
    rows = sum(strand.size for strand in data.mix.strands)
    if recipe.batch.size > rows:
        held = f"exceeds the {count_of(rows, 'row')} of the mix"
        found.append(f"batch.size {recipe.batch.size:,} {held}: each step repeats images")
    steps = total_steps(recipe, data)
    warmup = warmup_steps(recipe, steps)
    if warmup > steps:
        found.append(f"schedule.warmup of {warmup:,} steps exceeds the run of {steps:,}: optim.lr is never reached")
    found += [*average_warnings(recipe, steps), *undrawn_warnings(data, steps), *idle_loss_warnings(recipe, data)]
    found += [*naming_warnings(recipe, data.mix), *describe_few(data.order)]
    for name, rate in pretrained_rates(recipe).items():
        if rate > HIGH and recipe.optim.name == "adamw":
            found.append(
                f"model.{name} starts from trained weights but learns at {rate:g}; above {HIGH:g} they are usually "
                f"lost: try 1e-5 (or model.{name}.lr_scale, layer_decay, lora)"
            )
    return found


def undrawn_warnings(data: TrainingData, steps: int) -> list[str]:
    """Return a warning for each kind of rows of a corpus of which the run draws none: its share is too small."""
    return [
        f"data.train: in {count_of(steps, 'step')}, none of {count_of(strand.size, f'{strand.kind} row')} of "
        f"{strand.table.shards[0].parent.parent.parent} is drawn: raise its weight or data.mix.labels, or remove it"
        for strand, used in zip(data.mix.strands, data.order.used_before(steps), strict=True)
        if not used
    ]


def idle_loss_warnings(recipe: Recipe, data: TrainingData) -> list[str]:
    """Return warnings about parts of the loss that no row of the mix trains."""
    strands = data.mix.strands
    labels = [strand for strand in strands if strand.kind == LABELS]
    found: list[str] = []
    if recipe.loss.name == "multitask" and len(labels) in (0, len(strands)):
        idle, kind = ("its text tower", "labels") if labels else ("its head of classes", "captions")
        other = "loss=ce model.text=null" if labels else "loss=clip"
        found.append(
            f"loss multitask: all rows of the mix have the kind {kind}, so that {idle} is never trained: set "
            f"data.mix.labels=auto with rows of both kinds, or {other}"
        )
    has_both = any(strand.has_texts() for strand in labels)
    if recipe.data.text_for_labelled == BOTH and not has_both:
        found.append("data.text_for_labelled=both, but no row with a label has captions: prepare rows with both")
    own_text = recipe.loss.options.get("own_text")
    if own_text and has_both and recipe.data.text_for_labelled == "prompt":
        found.append(
            f"loss.own_text {own_text:g} is for captions of rows with a label, but data.text_for_labelled=prompt shows "
            "none: set data.text_for_labelled=mixed"
        )
    return found


def average_warnings(recipe: Recipe, steps: int) -> list[str]:
    """Return a warning if the moving average still consists of the first weights when the run ends."""
    if recipe.ema is None:
        return []
    kept = share_of_start(recipe.ema.decay, steps, warmup=recipe.ema.warmup)
    if kept <= STALE:
        return []
    moved = float(f"{1 - FRESH ** (1 / steps):.2g}")
    better = f"ema.decay={1 - moved:.12g}"
    ways = better if recipe.ema.warmup else f"{better} or ema.warmup=true"
    return [
        f"ema.decay {recipe.ema.decay:g}: after {count_of(steps, 'step')}, {format_share(kept, 0)} of the average is "
        f"still the start weights, and the average is the model that is evaluated and kept: try {ways}"
    ]


def pretrained_rates(recipe: Recipe) -> dict[str, float]:
    """Return the peak learning rate of each tower that starts from trained weights, all of them at one rate.

    Towers of a run that learned at this rate, or at a higher one, are left out.
    """
    model, options = recipe.model, recipe.model.part.options
    earlier = earlier_rates(model.init)
    started = set(options) if model.init is not None and model.init_parts is None else set(model.init_parts or ())
    found: dict[str, float] = {}
    for name, option in options.items():
        own = option.tuning if isinstance(option, Part) else option
        weights = option.options.get("pretrained") if isinstance(option, Part) else options.get("pretrained")
        if not isinstance(own, Tuning) or not (weights is True or name in started):
            continue
        rate = recipe.optim.lr * own.lr_scale
        if own.freeze not in (True, "all") and own.lora is None and own.layer_decay == 1 and rate > earlier[name]:
            found[name] = rate
    return found


def earlier_rates(start: str | None) -> Mapping[str, float]:
    """Return the peak learning rate of each tower of the run that a training starts from, 0 for any other tower."""
    found: dict[str, float] = defaultdict(float)
    if start is None or hub.has_form(start):
        return found
    try:
        recipe = load(str(find_run(start)[0] / RESOLVED))
    except UniclError:  # the training says what is wrong with it
        return found
    for name, option in recipe.model.part.options.items():
        tuning = option.tuning if isinstance(option, Part) else option
        if isinstance(tuning, Tuning) and tuning.freeze is False and recipe.optim.name == "adamw":
            found[name] = recipe.optim.lr * tuning.lr_scale
    return found


def undecayed_in(module: nn.Module) -> set[int]:
    """Return the ids of the parameters without weight decay: gains, biases, scales, embeddings, positions and tokens.

    So it is in CLIP, BERT and Swin. A module names further ones by timm's method ``no_weight_decay()``.
    """
    found = {id(p) for name, p in module.named_parameters() if p.ndim < 2 or name.rsplit(".", 1)[-1] in UNDECAYED}
    for part in module.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            found.add(id(part.weight))
        named: Any = getattr(part, "no_weight_decay", None)
        if callable(named):
            own = cast("Collection[str]", named())
            found |= {id(p) for name, p in part.named_parameters() if name in own}
    return found


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters of a module as groups for an optimizer: with and without weight decay."""
    plain = undecayed_in(module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in plain], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in plain], "weight_decay": 0.0},
    ]


def build_optimizer(recipe: Recipe, step: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of all trained parameters, grouped by weight decay and learning-rate factor.

    The factors are those of tower, layer and ``optim.groups``.
    """
    optim, step = recipe.optim, bare(step)
    undecayed = undecayed_in(step)
    scales, chosen, usual = (
        param_groups.rate_factors(step),
        param_groups.match_groups(optim.groups, step),
        Group(match="*"),
    )
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            own = chosen.get(name, usual)
            decay = optim.weight_decay if own.weight_decay is None else own.weight_decay
            plain = id(parameter) in undecayed
            scale = scales.get(id(parameter), 1.0) * own.lr_scale
            groups.setdefault((0.0 if plain else decay, scale, plain), []).append(parameter)
    listed: list[dict[str, Any]] = [
        # LARS adapts no rate of gains and biases, as SimCLR's; the other optimizers ignore the key
        {"params": parameters, "weight_decay": decay, "lr_scale": scale, "always_adapt": not plain}
        for (decay, scale, plain), parameters in groups.items()
    ]
    if not listed:
        raise UniclError("model: no parameter is left to train", "set freeze: false on a tower")
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
    )


def learning_rate(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the update's number."""
    schedule, warmup = recipe.schedule, warmup_steps(recipe, steps)
    return partial(lr_at, name=schedule.name, peak=recipe.optim.lr, warmup=warmup, steps=steps, floor=schedule.floor)


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Return the steps until the learning rate peaks; a recipe's value below 1 is a share of all steps."""
    warmup = recipe.schedule.warmup
    if warmup == "auto":
        return min(round(WARMUP * steps), LONGEST_WARMUP)
    return round(warmup * steps) if warmup < 1 else int(warmup)
