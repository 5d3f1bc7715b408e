"""A probe as a file: it answers as the fitted classifier does, only on its own model and from no other file."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unicl_cli.contracts import ClassName, Features
from unicl_cli.core.loop import Step
from unicl_cli.errors import UniclError
from unicl_cli.evaluate.logistic_regression import Linear
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.linear_probe import load_probe, make_probe_scorer, save_probe
from unicl_cli.jobs.evaluators.options import ProbeOptions, check_options
from unicl_cli.jobs.evaluators.probe import Classifier
from unicl_cli.jobs.probe import as_linear_probe

CLASSES = (ClassName("n1", ("cat", "puss")), ClassName("n2", ("unseen",)), ClassName("n3", ("Löwe",)))


class Linear3(nn.Module):
    """Features are a linear map of the mean colour."""

    embed_dim = image_width = 3

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.see = nn.Linear(3, 3)
        nn.init.normal_(self.see.weight, generator=torch.Generator().manual_seed(seed))

    def encode_image(self, images):
        pooled = self.see(images.float().mean((2, 3)) / 255)
        return Features(pooled, pooled)


def encoder(seed: int = 0) -> Encoder:
    loaded = SimpleNamespace(
        name="runs/toy", step=Step(Linear3(seed), nn.Identity()).eval(), transform=SimpleNamespace(size=(8, 8))
    )
    return Encoder(loaded)  # pyright: ignore[reportArgumentType]


def fitted() -> Classifier:
    g = torch.Generator().manual_seed(3)
    bias = torch.tensor([[0.5, -torch.inf, -0.5]], dtype=torch.float64)
    linear = Linear(torch.randn(1, 3, 3, generator=g, dtype=torch.float64), bias)
    return Classifier(lambda x: linear.logits(x)[0].argmax(1), 1.0, [], linear)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_saved_probe_answers_as_the_fitted_classifier(normalize, tmp_path):
    one, trained = encoder(), fitted()
    options = ProbeOptions(normalize=normalize)
    save_probe(as_linear_probe(one, trained, CLASSES, options), tmp_path / "p.safetensors", {"top1": 0.5})
    probe = load_probe(tmp_path / "p.safetensors")
    assert (probe.classes, probe.model, probe.point) == ((CLASSES[0], CLASSES[2]), "runs/toy", "pre")
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    features = one.encode_image(images).pooled
    features = nn.functional.normalize(features, dim=1) if normalize else features
    scorer = make_probe_scorer(one, probe)
    assert trained.linear is not None
    expected = trained.linear.logits(features)[0][:, [0, 2]]
    torch.testing.assert_close(scorer.scores(images).double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(scorer.probabilities(scorer.scores(images)).sum(1), torch.ones(20))


def test_a_probe_is_refused_on_another_model(tmp_path):
    save_probe(as_linear_probe(encoder(), fitted(), CLASSES, ProbeOptions()), tmp_path / "p", {})
    with pytest.raises(UniclError, match="fitted on other features than those of runs/toy") as caught:
        make_probe_scorer(encoder(seed=1), load_probe(tmp_path / "p"))
    assert "--model runs/toy" in str(caught.value.hint)


def test_other_files_are_refused(tmp_path):
    text, weights, cut = tmp_path / "text", tmp_path / "model.safetensors", tmp_path / "cut"
    text.write_text("{}")
    save_file({"weights": torch.zeros(2, 2)}, weights)
    save_probe(as_linear_probe(encoder(), fitted(), CLASSES, ProbeOptions()), cut, {})
    cut.write_bytes(cut.read_bytes()[:-8])
    for file in (text, weights, cut, tmp_path / "missing"):
        with pytest.raises(UniclError, match="not a saved probe"):
            load_probe(file)


def test_a_strength_belongs_to_a_regression():
    assert check_options(ProbeOptions(c=0.1)).c == 0.1
    with pytest.raises(UniclError, match="method knn has no C"):
        check_options(ProbeOptions(method="knn", c=0.1))
