"""Masked words as in transformers; random numbers that depend on the row alone."""

import pytest
import torch
from torch import Tensor
from unicl_bert.masking import mask_words, uniform


def test_masked_words_have_the_statistics_of_transformers():
    from transformers import BertTokenizer, DataCollatorForLanguageModeling

    rows, length, vocabulary = 400, 50, 1000
    seeds = torch.randint(0, 2**32, (rows,), generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(5, vocabulary - 1, (rows, length), generator=torch.Generator().manual_seed(1))
    hidden = mask_words(tokens, torch.ones_like(tokens, dtype=torch.bool), seeds, 0.15, (vocabulary - 1, vocabulary))
    names = {f"w{n}": n for n in range(vocabulary)} | {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    names["[MASK]"] = names.pop(f"w{vocabulary - 1}")
    words = [name for name, _ in sorted(names.items(), key=lambda pair: pair[1])]
    collator = DataCollatorForLanguageModeling(
        BertTokenizer(vocab={word: n for n, word in enumerate(dict.fromkeys(words))}), seed=0
    )
    mask = collator.tokenizer.mask_token_id
    theirs, labels = collator.torch_mask_tokens(tokens.clone(), torch.zeros_like(tokens, dtype=torch.bool))

    def shares(chosen: Tensor, seen: Tensor, mask: int) -> list[float]:
        count = int(chosen.sum())
        same, hid = (seen == tokens) & chosen, (seen == mask) & chosen
        return [count / tokens.numel(), int(hid.sum()) / count, int(same.sum()) / count]

    ours = shares(hidden.chosen, hidden.tokens, vocabulary - 1)
    for mine, other in zip(ours, shares(labels != -100, theirs, mask), strict=True):
        assert mine == pytest.approx(other, abs=0.03)
    assert ours == pytest.approx([0.15, 0.8, 0.1], abs=0.02)
    assert torch.equal(hidden.tokens[~hidden.chosen], tokens[~hidden.chosen])
    others = hidden.tokens[hidden.chosen & (hidden.tokens != vocabulary - 1) & (hidden.tokens != tokens)]
    assert len(others.unique()) > 150, "random words are of the whole vocabulary"


def test_random_numbers_of_a_row_are_uniform_and_do_not_depend_on_their_count():
    seeds = torch.randint(0, 2**32, (2000,), generator=torch.Generator().manual_seed(0))
    few, many = uniform(seeds, 3, 0), uniform(seeds, 40, 0)
    assert torch.equal(few, many[:, :3])
    assert not torch.equal(few, uniform(seeds, 3, 1))
    assert torch.equal(uniform(seeds[5:6], 3, 0), few[5:6])
    counts = torch.histc(many.float(), 20, 0, 1) / many.numel()
    assert counts.min() > 0.045
    assert counts.max() < 0.055
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.1
    assert torch.corrcoef(torch.stack([few[:, 0], uniform(seeds, 1, 3)[:, 0]]))[0, 1].abs() < 0.06
