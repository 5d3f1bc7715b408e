"""ViLBERT against golden values, torch's attention, transformers' masking and BERT; padding, order, wrong captions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from unicl_bert.bert import Bert, Size, Special, start_small
from unicl_bert.layers import Attention
from unicl_regions.boxes import Regions
from unicl_vilbert import build_answer, build_loss, build_refer, build_vilbert
from unicl_vilbert.losses import ReferLoss, align_task, region_task
from unicl_vilbert.masking import mask_regions, row_seeds
from unicl_vilbert.model import Vilbert
from unicl_vilbert.streams import CoLayer, RegionEmbedding

from unicl_cli.api import NO_LABEL, NO_TEXT, Batch, Drawn, Part, UniclError, share_of_mean
from unicl_cli.testing import FeatureTable

WORDS, CLASSES, REGIONS, WIDTH = 30, 5, 4, 16
PAD, START, END = 0, 1, 2


def golden(rows: int, width: int, number: int) -> Tensor:
    """``f(n, d, k)`` of the references: numbers without a random generator, float64."""
    i = torch.arange(rows * width, dtype=torch.float64).view(rows, width)
    return F.normalize(torch.sin(i * 0.7 * number + number) + 0.3 * torch.cos(i * i * 0.013 * number), dim=-1)


class Table(nn.Module):
    """Regions that are the first values of the pixels: (b, R, 6) features, boxes in a row; the last may be padding."""

    width, classes, units = 6, CLASSES, ()

    def find(self, images: Tensor, extra: dict[str, Tensor]) -> Regions:
        flat = images.flatten(1)[:, : REGIONS * 6].double().unflatten(1, (REGIONS, 6)) / 255
        if "features" in extra:
            flat = extra["features"]
        boxes = extra.get("boxes", row_of_boxes().expand(len(images), -1, -1))
        return Regions(flat, boxes, extra.get("region_mask", torch.ones(flat.shape[:2], dtype=torch.bool)))

    def distributions(self, images: Tensor, found: Regions) -> Tensor:
        return (4 * found.features[..., :CLASSES]).softmax(-1)


def row_of_boxes() -> Tensor:
    left = torch.arange(REGIONS, dtype=torch.float64) / REGIONS
    sides = [left, torch.zeros(REGIONS), left + 1 / REGIONS, torch.ones(REGIONS), torch.full([REGIONS], 1 / REGIONS)]
    return torch.stack([side.double() for side in sides], 1)[None]


def built_with(regions: nn.Module, *, words: int = WORDS, width: int = WIDTH, **options: object) -> Vilbert:
    """A small model around some regions, with the ids PAD, START, END; the mask is behind the words."""
    torch.manual_seed(0)
    text = Bert(Size(words + 1, width, options.pop("layers", 2), 2, 2 * width, 12), Special(PAD, END, words))
    made = {"text": text, "regions": regions}
    sizes = {"width": width, "heads": 2, "hidden": 2 * width, "blocks": 2, "shared": width, "shared_heads": 2}
    encoder: Callable[[Part], nn.Module] = lambda part: made[part.name]  # noqa: E731
    parts = {"regions": Part("regions", {}), "text": Part("text", {})}
    return build_vilbert(encoder=encoder, chunks=1, **parts, **{**sizes, **options})


def built(**options: object) -> Vilbert:
    """A model in float64 whose weights are far from 0, so that every part tells."""
    model = built_with(Table(), **{"layers": 3, "hidden": 24, "shared": 8, **options}).double()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def batch_of(rows: int = 8, keys: list[int] | None = None, index: list[int] | None = None, **extra: Tensor) -> Batch:
    noise = torch.Generator().manual_seed(1)
    words = torch.randint(3, WORDS, (rows, 9), generator=noise)
    tokens = torch.full((rows, 12), PAD)
    for row in range(rows):
        count = 5 + row % 4
        tokens[row, 0], tokens[row, 1 : 1 + count], tokens[row, 1 + count] = START, words[row, :count], END
    drawn = [Drawn(n, n, 3, torch.zeros(1), NO_LABEL, "", 0, {}) for n in range(rows)]
    seeds = row_seeds(drawn, tokens, torch.arange(rows))
    return Batch(
        images=torch.randint(0, 256, (rows, 3, 4, 4), generator=noise, dtype=torch.uint8),
        tokens=tokens,
        text_index=torch.arange(rows) if index is None else torch.tensor(index),
        labels=torch.full([rows], NO_LABEL),
        keys=2**40 + torch.arange(rows) if keys is None else torch.tensor(keys),
        draws=torch.arange(rows),
        extra={**seeds, **extra},
    )


# -- golden values -------------------------------------------------------------------------------------------------


def test_the_divergence_of_masked_regions_has_its_golden_value():
    target, logits = (4 * golden(4, 5, 3)).softmax(-1), 3 * golden(4, 5, 5)
    part = region_task(logits, target, torch.tensor([True, False, True, False]))
    assert share_of_mean(part.values, part.valid).item() == pytest.approx(2.427591032026455, abs=1e-12)
    nothing = share_of_mean(part.values, torch.zeros(4, dtype=torch.bool))
    assert nothing == 0, "no masked region is 0, not NaN"


def test_next_sentence_has_its_golden_value():
    y = torch.tensor([0, 1, 0, 1])
    assert F.cross_entropy(3 * golden(4, 2, 9), y).item() == pytest.approx(0.461023702250345, abs=1e-12)
    hidden = (golden(4, 8, 10) @ golden(8, 8, 11).T).tanh()
    assert F.cross_entropy(hidden @ golden(2, 8, 12).T, y).item() == pytest.approx(0.7330216067843336, abs=1e-12)


class Chosen(nn.Module):
    """A model whose regions and states are the golden ones."""

    def __init__(self, found: Regions) -> None:
        super().__init__()
        self.found = found

    def find(self, images: Tensor, extra: dict[str, Tensor]) -> Regions:
        return self.found


@pytest.mark.parametrize(("target", "value"), [("bce", 0.8086726854838604), ("ce", 0.9819759528012455)])
def test_the_choice_of_a_region_has_its_golden_value(target: str, value: float, monkeypatch: pytest.MonkeyPatch):
    states = golden(10, 8, 13).view(2, 5, 8)
    loss = build_refer(image_width=8, moves_pixels=False, target=target).double()
    with torch.no_grad():
        loss.choose.weight.copy_(golden(1, 8, 14))
        loss.choose.bias.fill_(0.1)
    logits = loss.choose(states[:, 1:])[..., 0]
    iou = torch.tensor([[0.2, 0.7, 0.55, 0.1], [0.9, 0.3, 0.0, 0.0]], dtype=torch.float64)
    there = torch.tensor([[True] * 4, [True, True, False, False]])
    monkeypatch.setattr(ReferLoss, "look", lambda *_: (logits, iou, there, torch.ones(2, dtype=torch.bool)))
    out = loss(Chosen(Regions(iou, iou, there)), batch_of(2))
    assert out["loss"].item() == pytest.approx(value, abs=1e-12)
    choices = logits.masked_fill(~there, -torch.inf).argmax(1) + 1  # slot 0 is <IMG>
    assert choices.tolist() == [2, 2]
    assert out["acc@0.5"] == 0.5
    assert out["recall_of_regions"] == 1


@pytest.mark.parametrize("target", ["bce", "ce"])
def test_an_image_without_regions_is_no_hit_and_leaves_every_gradient_finite(target: str):
    loss, model = build_refer(image_width=WIDTH, moves_pixels=False, target=target).double(), built()
    extra = {
        **regions_of(batch_of(2)),
        "target_box": row_of_boxes()[:, 1].expand(2, -1),
        "has_target": torch.ones(2).bool(),
    }
    extra["region_mask"] = torch.tensor([[True] * REGIONS, [False] * REGIONS])
    out = loss(model, batch_of(2, **extra))
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert out["recall_of_regions"] == 0.5
    assert all(p.grad is None or p.grad.isfinite().all() for p in [*loss.parameters(), *model.parameters()])


# -- outside oracles -----------------------------------------------------------------------------------------------


def test_co_attention_is_torchs_attention_with_additive_masks_and_the_residual_of_the_queries():
    torch.manual_seed(0)
    layer = CoLayer((6, 10), (12, 20), 8, 2, crossed=True).double()
    words, regions = torch.randn(3, 5, 6).double(), torch.randn(3, 4, 10).double()
    has_word, has_region = torch.ones(3, 5).bool(), torch.ones(3, 4).bool()
    has_word[0, 3:], has_region[1, 2:] = False, False
    told, seen = layer(words, regions, has_word, has_region)
    for x, y, there, way, feed, found in (
        (words, regions, has_region, layer.words, layer.words_feed, told),
        (regions, words, has_word, layer.regions, layer.regions_feed, seen),
    ):
        heads = [z.view(3, -1, 2, 4).transpose(1, 2) for z in (way.query(x), way.key(y), way.value(y))]
        mask = torch.zeros(3, 1, 1, y.shape[1]).double().masked_fill(~there[:, None, None], -math.inf)
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).reshape(3, -1, 8)
        torch.testing.assert_close(found, feed(F.layer_norm(x + way.out(mixed), x.shape[-1:], eps=1e-12)))
        weights = way.weights(x, y, there)
        torch.testing.assert_close(weights @ heads[2], F.scaled_dot_product_attention(*heads, attn_mask=mask))


# -- properties of the model ---------------------------------------------------------------------------------------


def states(model: Vilbert, batch: Batch) -> tuple[Tensor, Tensor]:
    tokens = batch.tokens[batch.text_index]
    out = model(model.text_tokens(tokens), model.text.there(tokens), model.find(batch.images, batch.extra))
    return out.words, out.regions


def regions_of(batch: Batch) -> dict[str, Tensor]:
    found = Table().find(batch.images, {})
    return {
        "features": found.features,
        "boxes": found.boxes.expand(len(batch.images), -1, -1),
        "region_mask": found.there,
    }


def test_padded_regions_and_words_change_nothing_and_regions_have_no_order():
    model, batch = built(), batch_of()
    found = regions_of(batch)
    words, regions = states(model, batch._replace(extra=found))
    noise = torch.randn(len(words), 2, 6).double()
    longer = {
        "features": torch.cat([found["features"], noise], 1),
        "boxes": torch.cat([found["boxes"], found["boxes"][:, :2]], 1),
        "region_mask": torch.cat([found["region_mask"], torch.zeros(len(words), 2).bool()], 1),
    }
    padded = batch._replace(tokens=F.pad(batch.tokens[:, :10], (0, 2), value=7), extra=longer)
    more_words, more_regions = states(model, padded)
    there = model.text.there(batch.tokens)
    torch.testing.assert_close(more_words[there], words[there])
    torch.testing.assert_close(more_regions[:, : 1 + REGIONS], regions)
    order = torch.tensor([2, 0, 3, 1])
    mixed = {name: value[:, order] for name, value in found.items()}
    _, turned = states(model, batch._replace(extra=mixed))
    torch.testing.assert_close(turned[:, 1:], regions[:, 1:][:, order])


def test_without_co_attention_no_stream_learns_of_the_other():
    batch = batch_of()
    for crossed in (True, False):
        model = built(co_attention=crossed)
        words, regions = states(model, batch)
        other_words, _ = states(model, batch._replace(images=batch.images.flip(0)))
        _, other_regions = states(model, batch._replace(text_index=batch.text_index.flip(0)))
        assert torch.equal(words, other_words) != crossed
        assert torch.equal(regions, other_regions) != crossed


def test_a_masked_region_leaves_no_trace_in_the_mean_feature():
    embed = RegionEmbedding(6, 12, separate_norms=False).double()
    found = regions_of(batch_of(2))
    two = found["features"].clone()
    two[:, 1] += 1
    boxes = found["boxes"].clone()
    boxes[:, 2] = boxes[:, 1]  # overlaps the masked one, so it is left out, too
    two[:, 2] -= 1
    masked = torch.tensor([[False, True, False, False]] * 2)
    one, other = (embed(Regions(x, boxes, found["region_mask"]), masked, masked)[0] for x in (found["features"], two))
    torch.testing.assert_close(one[:, :2], other[:, :2])
    torch.testing.assert_close(one[:, 4], other[:, 4])
    assert not torch.allclose(one[:, 3], other[:, 3]), "the overlapping region itself is seen"
    shown = embed(Regions(two, boxes, found["region_mask"]), torch.zeros_like(masked), torch.zeros_like(masked))[0]
    torch.testing.assert_close(
        shown[:, 0], embed.norm(embed.feature(two.mean(1)) + embed.box(torch.tensor([0, 0, 1, 1, 1.0]).double()))
    )


def test_a_place_moves_a_region_beside_large_features_if_both_are_normed_apart():
    features, there = 20 * torch.randn(1, 2, 128, generator=torch.Generator().manual_seed(0)), torch.ones(1, 2) > 0
    left, right = torch.tensor([0.1, 0.1, 0.4, 0.4, 0.09]), torch.tensor([0.6, 0.1, 0.9, 0.4, 0.09])
    moved: dict[bool, float] = {}
    for apart in (True, False):
        torch.manual_seed(0)
        embed = RegionEmbedding(128, 64, separate_norms=apart).apply(start_small)
        seen = [
            embed(Regions(features, torch.stack(boxes)[None], there), ~there, ~there)[0][0, 1]
            for boxes in ([left, right], [right, left])
        ]
        moved[apart] = ((seen[0] - seen[1]).norm() / seen[0].norm()).item()
    assert moved[True] > 0.3
    assert moved[False] < 0.03


def test_a_loss_of_vilbert_on_another_model_is_one_line():
    refer = build_refer(image_width=4, moves_pixels=False)
    for loss in (build_loss(), refer, build_answer(model_width=4, num_classes=2)):
        with pytest.raises(UniclError, match="loss: the losses of vilbert need its two streams"):
            loss(FeatureTable(rows=4, width=4), batch_of())


def test_masked_regions_are_zeroed_nine_times_of_ten():
    seeds = torch.randint(0, 2**32, (2000,), generator=torch.Generator().manual_seed(0))
    there = torch.ones(2000, 10, dtype=torch.bool)
    there[:, 8:] = False
    chosen, zeroed = mask_regions(there, seeds, 0.15)
    assert not chosen[:, 8:].any()
    assert chosen[:, :8].float().mean() == pytest.approx(0.15, abs=0.01)
    assert (zeroed.sum() / chosen.sum()).item() == pytest.approx(0.9, abs=0.02)
    assert not (zeroed & ~chosen).any()


# -- the pre-training loss -----------------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_its_parts_by_hand():
    model, batch, loss = built(), batch_of(), build_loss(mask=0.5)
    parts = loss.tasks(model, batch)
    out = loss(model, batch)
    total = 0.0
    for part in parts.values():
        picked = [
            float(v) for v, there in zip(part.values.detach().flatten(), part.valid.flatten(), strict=True) if there
        ]
        total += sum(picked) / len(picked)
    assert out["loss"].item() == pytest.approx(total, abs=1e-12)
    assert set(out) == {"loss", "words", "regions", "align", "words_acc", "regions_acc", "align_acc"}
    halved = build_loss(mask=0.5, words=0, regions=0, align=2)(model, batch)
    assert halved["loss"].item() == pytest.approx(2 * out["align"].item())


def test_wrong_captions_are_the_neighbours_and_only_where_key_and_text_differ():
    loss, rows = build_loss(wrong=1.0), 8
    batch = batch_of(rows, keys=[1, 1, 2, 3, 4, 5, 6, 7], index=[0, 1, 2, 2, 4, NO_TEXT, 6, 7])
    tokens, has = batch.tokens[batch.text_index], batch.text_index != NO_TEXT
    wrong = loss.choose_wrong(batch, tokens, has, batch.extra["seeds"])
    assert wrong.tolist() == [False] * 6 + [True] * 2
    many = batch_of(2)._replace(extra={"seeds": torch.arange(2)})
    coins = [
        loss_of.choose_wrong(
            many._replace(extra={"seeds": torch.arange(2 * n, 2 * n + 2)}),
            many.tokens,
            has[:2],
            torch.arange(2 * n, 2 * n + 2),
        )
        for loss_of in [build_loss()]
        for n in range(2500)
    ]
    assert torch.stack(coins).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_words_and_regions_are_predicted_on_aligned_pairs_only_unless_asked():
    batch = batch_of(keys=list(range(8)))
    for misaligned in (False, True):
        loss = build_loss(mask=1.0, misaligned=misaligned)
        parts = loss.tasks(built(), batch)
        wrong = loss.choose_wrong(batch, batch.tokens, batch.text_index != NO_TEXT, batch.extra["seeds"])
        assert 0 < wrong.sum() < 8
        for name in ("words", "regions"):
            assert parts[name].valid.any(1).tolist() == ((~wrong) | misaligned).tolist()
    special = (batch.tokens == START) | (batch.tokens == END) | (batch.tokens == PAD)
    assert not (parts["words"].valid & torch.where(wrong[:, None], special[torch.arange(8) ^ 1], special)).any()


def test_a_mask_does_not_tell_that_a_pair_is_aligned(monkeypatch: pytest.MonkeyPatch):
    """Masks of aligned pairs alone gave 98.8 % of alignment and retrieval at chance."""
    batch, loss, model = batch_of(keys=list(range(8))), build_loss(mask=1.0), built()
    encode, seen = model.text.encode, list[torch.Tensor]()
    monkeypatch.setattr(
        model.text, "encode", lambda tokens, *rest, **named: seen.append(tokens) or encode(tokens, *rest, **named)
    )
    monkeypatch.setattr(
        model, "forward", lambda *given, forward=model.forward: seen.append(given[3][1]) or forward(*given)
    )
    loss.tasks(model, batch)
    assert (seen[0] == model.text.special.mask).any(1).all()
    assert seen[1].any(1).all()


@pytest.mark.parametrize("options", [{"mask": 0.0}, {"wrong": 0.0}])
def test_nothing_masked_is_a_finite_loss_with_every_gradient(options: dict[str, float]):
    model, loss = built(), build_loss(**options)
    batch = batch_of(index=[NO_TEXT] * 8) if "mask" in options else batch_of()
    out = loss(model, batch)
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_chunks_change_neither_value_nor_gradient():
    batch, results = batch_of(), []
    for chunks in (1, 3):
        model, loss = built(), build_loss(mask=0.4)
        model.chunks = chunks
        out = loss(model, batch)["loss"]
        out.backward()
        results.append((out, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1])


def test_a_share_with_an_odd_number_of_rows_is_refused():
    with pytest.raises(UniclError, match=r"a process has 3 rows"):
        build_loss()(built(), batch_of(3))


def test_a_pair_score_is_the_log_odds_of_alignment_and_knows_no_neighbours():
    model, batch, loss = built(), batch_of(), build_loss()
    with torch.no_grad():
        scores = loss.pair_scores(model, batch.images, batch.tokens[:3])
        alone = loss.pair_scores(model, batch.images[4:5], batch.tokens[2:3])
        states = model(model.text_tokens(batch.tokens), model.text.there(batch.tokens), model.find(batch.images, {}))
        two = model.align(model.pooled(states)).softmax(1)[:, 1]
    assert scores.shape == (8, 3)
    torch.testing.assert_close(scores[4:5, 2:3], alone)
    torch.testing.assert_close(scores.diagonal().sigmoid(), two[:3])
    part = align_task(
        torch.stack([torch.zeros(3), scores.diagonal()], 1), torch.tensor([True, False, True]), torch.ones(3).bool()
    )
    assert part.values.tolist() == pytest.approx(
        F.binary_cross_entropy(two[:3].float(), torch.tensor([1.0, 0, 1]), reduction="none").tolist(), abs=1e-5
    )


def test_attention_refuses_heads_that_do_not_divide_the_width():
    with pytest.raises(UniclError, match="width 10 is not a multiple of heads 3"):
        Attention(10, 10, 10, 3)
