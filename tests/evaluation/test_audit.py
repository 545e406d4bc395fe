"""The data report: planted duplicates and leaks are found and named."""

import numpy as np
import pytest

from pipeline.evaluation import audit


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    train = generator.integers(256, size=(40, 1, 8, 8), dtype=np.uint8)
    test = generator.integers(256, size=(20, 1, 8, 8), dtype=np.uint8)
    return {"train": train, "test": test}


def near(splits):
    features = {split: audit.dense_features(part) for split, part in splits.items()}
    return audit.near_duplicates(features, block=16)


def test_clean_splits_have_no_duplicates(images):
    assert near(images) == []


def test_a_planted_leak_is_found(images):
    images["test"][7] = images["train"][31]
    found = near(images)
    assert found == [audit.Duplicate(("train", 31), ("test", 7), 1.0)]
    assert audit.across(found) == found


def test_a_duplicate_within_a_split_is_listed_and_not_across(images):
    images["train"][5] = images["train"][2]
    found = near(images)
    assert found == [audit.Duplicate(("train", 2), ("train", 5), 1.0)]
    assert audit.across(found) == []


def test_a_near_duplicate_across_splits_is_found(images):
    images["test"][3] = np.clip(images["train"][9] * 0.8 + np.eye(8) * 20, 0, 255)
    found = near(images)
    assert [(pair.first, pair.second) for pair in found] == [(("train", 9), ("test", 3))]
    assert 0.95 < found[0].similarity < 1


def test_texts_are_the_same_without_regard_to_case_and_blanks():
    splits = {"train": ["A fine  film .", "dull"], "test": ["a fine film ."]}
    found = audit.near_duplicates(audit.text_features(splits))
    assert found == [audit.Duplicate(("train", 0), ("test", 0), 1.0)]


def test_a_reworded_sentence_is_a_near_duplicate():
    generator = np.random.default_rng(0)
    words = [f"word{i}" for i in range(400)]
    texts = [" ".join(generator.choice(words, size=15)) for _ in range(200)]
    near = texts[17].split()
    near[3] = "other"
    splits = {"train": texts[:150], "test": [*texts[150:], " ".join(near)]}
    found = audit.near_duplicates(audit.text_features(splits), threshold=0.8)
    assert [(pair.first, pair.second) for pair in found] == [(("train", 17), ("test", 50))]
    assert audit.text_features({"train": ["a"], "test": ["a"]})["train"].shape == (1, 1)


def test_balance_and_sizes_are_counted():
    counts = audit.balance({"train": np.array([0, 1, 1])}, ["no", "yes", "never"])
    assert counts == {"train": {"no": 1, "yes": 2, "never": 0}}
    assert audit.summary(np.arange(5)) == {"min": 0, "q1": 1, "median": 2, "q3": 3, "max": 4}
