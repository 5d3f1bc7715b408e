"""Words for splits: the usual forms in any case, and words that only look like them."""

import pytest

from unicl_cli.data.sources.splits import find_splits, split_of


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", "train Train TRAINING training_set train2017 train-images trainset data_train TrainingSet"),
        ("val", "val valid VALIDATION Dev development eval public-test PublicTest val_2017 validation.set"),
        ("test", "test Testing TEST_IMAGES tst private_test PrivateTest test2 testset"),
        (None, "cat trainer testament images set data 0 1 2017 contest training-wheels electric_train extra"),
    ],
)
def test_a_word_names_a_split_in_any_case_and_form(split, words):
    assert {word: split_of(word) for word in words.split()} == dict.fromkeys(words.split(), split)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("Train cat", {"Train": "train"}),
        ("seg_train seg_test seg_pred", {"seg_train": "train", "seg_test": "test"}),
        ("dogs-training dogs-dev", {"dogs-training": "train", "dogs-dev": "val"}),
        ("electric_train electric_bus", {}),
        ("cat dog", {}),
    ],
)
def test_a_shared_beginning_of_folder_names_is_dropped_only_before_two_splits(words, found):
    assert find_splits(words.split()) == found
