"""Logits of prompts adjusted by the share of their class, against the matrix of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from unicl_cli.contracts import NO_KEY, NO_LABEL, NO_TEXT, LabelSets
from unicl_cli.core.batch_columns import KNOWN, LABEL_SET, OWN_TEXT, SHOWN
from unicl_cli.errors import UniclError
from unicl_cli.losses.unicl import UniCL
from unicl_cli.testing import FeatureTable, batch_of

COUNTS = [1, 6, 90, 3]
CLASSES, WIDTH = len(COUNTS), 5
ROWS = st.tuples(st.integers(NO_LABEL, CLASSES - 1), st.sampled_from(["prompt", "caption", "caption", "none"]))


@settings(max_examples=30)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=12).filter(lambda rows: any(kind != "none" for _, kind in rows)),
    power=st.floats(-2, 2),
    options=st.fixed_dictionaries(
        {"fold": st.booleans(), "tile": st.sampled_from([None, 3]), "own_text": st.floats(0, 1)}
    ),
    columns=st.booleans(),
    sets=st.booleans(),
)
def test_a_constant_of_the_class_is_added_to_the_logits_of_images_alone(rows, power, options, columns, sets):
    """Prompts of classes, captions with and without a label, rows without text; value and gradients, in float64."""
    count = len(rows)
    labels = [label for label, _ in rows]
    kinds = ["caption" if label == NO_LABEL and kind == "prompt" else kind for label, kind in rows]
    texts = [
        {"prompt": label, "caption": CLASSES + n, "none": NO_TEXT}[kind]
        for n, (label, kind) in enumerate(zip(labels, kinds, strict=True))
    ]
    shown = torch.tensor([label if kind == "prompt" else NO_LABEL for label, kind in zip(labels, kinds, strict=True)])
    batch = batch_of(labels, texts)._replace(tokens=torch.arange(CLASSES + count)[:, None])
    own = torch.where(torch.tensor([kind == "caption" for kind in kinds]), torch.arange(count) + 50, NO_KEY)
    found = LabelSets(1, (0,) * CLASSES, ("",)) if sets else None
    extra = {LABEL_SET: batch.labels[:, None], SHOWN: shown, KNOWN: torch.ones_like(shown)}
    batch = batch._replace(extra={OWN_TEXT: own, **(extra if sets else {})})
    model, loss = FeatureTable(40, WIDTH), UniCL(label_sets=found, **options)
    loss.adjust_logits(COUNTS, power)
    prompts = torch.arange(CLASSES)[:, None] + 30
    if columns:
        loss.add_class_columns(prompts)
    out = loss.double()(model, batch)

    valid = [n for n, text in enumerate(texts) if text != NO_TEXT]
    u = F.normalize(model.image, dim=1)[valid]
    v = F.normalize(model.text, dim=1)[[texts[n] for n in valid]]
    y, said = batch.labels[valid], shown[valid]
    priors = (power * (torch.tensor(COUNTS).double() / sum(COUNTS)).log()).float().double()
    prior = F.pad(priors, (0, 1))[said]  # the last one is that of a caption
    same, own_row = ((y[:, None] == y) & (y[:, None] != NO_LABEL)).double(), torch.eye(len(valid)).double()
    share = ((said == NO_LABEL).double() * options["own_text"]).masked_fill(y == NO_LABEL, 1)[:, None]
    text_target = share * own_row + (1 - share) * same / same.sum(1, keepdim=True).clamp(min=1)
    if columns:
        v = torch.cat([v, F.normalize(model.text, dim=1)[prompts[:, 0]]])
        prior, same = torch.cat([prior, priors]), torch.cat([same, (y[:, None] == torch.arange(CLASSES)).double()], 1)
        own_row = F.pad(own_row, (0, CLASSES))
    image_target = share * own_row + (1 - share) * same / same.sum(1, keepdim=True).clamp(min=1)
    logits = model.scale() * u @ v.T
    per_image = -(image_target * (logits + prior).log_softmax(1)).sum(1).mean()
    per_text = -(text_target * logits[:, : len(valid)].T.log_softmax(1)).sum(1).mean()
    wanted, inputs = (per_image + per_text) / 2, [model.image, model.text, model.logit_scale]
    assert out["loss_per_image"].item() == pytest.approx(per_image.item(), abs=1e-12)
    assert out["loss"].item() == pytest.approx(wanted.item(), abs=1e-12)
    grads = [torch.autograd.grad(3 * x, inputs) for x in (out["loss"], wanted)]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_a_mix_without_labels_and_a_loss_without_the_image_term_are_refused():
    with pytest.raises(UniclError, match=r"loss.logit_adjustment: no row of data.train has a label"):
        UniCL().adjust_logits([0, 0], 1.0)
    with pytest.raises(UniclError, match=r"loss.logit_adjustment: has no effect without the term image"):
        UniCL(["text"]).adjust_logits([1, 2], 1.0)
