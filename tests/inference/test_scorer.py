"""Scores of a loss that scores pairs: the mean over the prompts of a class, each distinct prompt asked for once."""

import pytest
import torch
from toys import toy

from unicl_cli.contracts import ClassName
from unicl_cli.errors import UniclError
from unicl_cli.inference.encoder import Encoder
from unicl_cli.inference.scorer import make_scorer
from unicl_cli.losses.unicl import UniCL

IMAGES = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)


class Asked(UniCL):
    """Scores by the sum of a text's ids, and remembers how many texts it was asked about."""

    score, activation = "pair", "softmax"

    def __init__(self):
        super().__init__()
        self.asked, self.checked = [], []

    def pair_scores(self, model, images, tokens):
        self.asked.append(len(tokens))
        return tokens.sum(1).float().expand(len(images), -1)

    def check_prompts(self, tokens, tokenizer):
        self.checked.append(tokenizer.decode([[int(tokens[0, 1])]]))
        return ["a warning of the loss"]


def scorer_of(prompts, **attributes):
    loss = Asked()
    for name, value in attributes.items():
        setattr(loss, name, value)
    loaded = toy(loss)
    classes = [ClassName(str(number), (f"class {number}",)) for number in range(len(prompts))]
    return make_scorer(Encoder(loaded), classes, prompts=prompts), loss, loaded.tokenizer


def test_a_class_scores_the_mean_of_its_prompts_and_each_prompt_is_scored_once():
    prompts = [["a cat", "a photo"], ["a dog"], ["a cat"], ["a photo", "a cat"], ["a dog", "a cat", "bird"]]
    scorer, loss, tokenizer = scorer_of(prompts)
    values = [torch.stack([tokenizer([text]).sum().float() for text in own]).mean() for own in prompts]
    torch.testing.assert_close(scorer.scores(IMAGES), torch.stack(values).expand(3, -1))
    assert loss.asked == [4], "four distinct prompts, one call for a batch of images"
    assert scorer.first.tolist() == [0, 1, 2, 0, 4]
    assert loss.checked == [["a"]]
    assert scorer.warnings == (
        "1 groups of classes have the same prompts: class 0 = class 3",
        "a warning of the loss",
    )
    long = [["a cat " * 20], ["a dog"]]
    assert scorer_of(long)[0].warnings[0] == "1 of 2 prompts were cut at the context of 16 tokens"


def test_one_prompt_a_class_is_not_averaged():
    scorer, loss, tokenizer = scorer_of([["a cat"], ["a dog"], ["a cat"]])
    expected = [float(tokenizer([text]).sum()) for text in ("a cat", "a dog", "a cat")]
    assert scorer.scores(IMAGES)[0].tolist() == expected
    assert loss.asked == [2]


def test_many_prompts_of_many_classes_are_refused_unless_the_loss_says_otherwise():
    many = [[f"a cat {number}", f"a dog {number}"] for number in range(101)]
    with pytest.raises(UniclError, match="101 classes in several templates are 202 prompts") as caught:
        scorer_of(many)
    assert "--template" in caught.value.hint
    assert scorer_of(many, many_prompts=True)[0].scores(IMAGES).shape == (3, 101)
    assert scorer_of(many[:100])[0].scores(IMAGES).shape == (3, 100)
    one = [own[:1] for own in many] + [["a photo.", "something", "an object"]]  # with the column of "none of these"
    assert scorer_of(one)[0].scores(IMAGES).shape == (3, 102)
