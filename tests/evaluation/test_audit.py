"""The data report: planted duplicates and leaks are found and named."""

import numpy as np
import pytest

from pipeline.evaluation import audit
from pipeline.figures.page import Page


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    train = generator.integers(256, size=(40, 1, 8, 8), dtype=np.uint8)
    test = generator.integers(256, size=(20, 1, 8, 8), dtype=np.uint8)
    return {"train": train, "test": test}


@pytest.fixture
def near(monkeypatch):
    monkeypatch.setattr(audit, "BLOCK", 16)

    def found(splits):
        features = {split: audit.dense_features(part) for split, part in splits.items()}
        return audit.near_duplicates(features, 0.95)

    return found


def test_clean_splits_have_no_duplicates(images, near):
    assert near(images) == []


def test_a_planted_leak_is_found(images, near):
    images["test"][7] = images["train"][31]
    assert near(images) == [audit.Duplicate(("train", 31), ("test", 7), 1.0)]


def test_a_duplicate_within_a_split_is_found(images, near):
    images["train"][5] = images["train"][2]
    assert near(images) == [audit.Duplicate(("train", 2), ("train", 5), 1.0)]


def test_all_duplicates_are_counted_and_the_closest_are_listed(images, tmp_path):
    images["train"][:] = images["train"][0]
    images["test"][:10] = images["train"][0]
    features = {split: audit.dense_features(part) for split, part in images.items()}
    told, numbers = audit.list_duplicates(Page(tmp_path), features, 0.95, "here")
    within, across = 40 * 39 // 2 + 10 * 9 // 2, 40 * 10
    assert within + across > 1000
    assert numbers == {"near_duplicates/within": within, "near_duplicates/across": across}
    assert told.startswith(f"{across} pairs across splits and {within} within one")
    listed = (tmp_path / "near_duplicates.csv").read_text().splitlines()
    assert len(listed) == 1 + audit.LISTED


def test_a_near_duplicate_across_splits_is_found(images, near):
    images["test"][3] = np.clip(images["train"][9] * 0.8 + np.eye(8) * 20, 0, 255)
    found = near(images)
    assert [(pair.first, pair.second) for pair in found] == [(("train", 9), ("test", 3))]
    assert 0.95 < found[0].similarity < 1


def test_texts_are_the_same_without_regard_to_case_and_blanks():
    splits = {"train": ["A fine  film .", "dull"], "test": ["a fine film ."]}
    found = audit.near_duplicates(audit.text_features(splits), 0.95)
    assert found == [audit.Duplicate(("train", 0), ("test", 0), 1.0)]


def test_a_reworded_sentence_is_a_near_duplicate():
    generator = np.random.default_rng(0)
    words = [f"word{i}" for i in range(400)]
    texts = [" ".join(generator.choice(words, size=15)) for _ in range(200)]
    near = texts[17].split()
    near[3] = "other"
    splits = {"train": texts[:150], "test": [*texts[150:], " ".join(near)]}
    found = audit.near_duplicates(audit.text_features(splits), 0.8)
    assert [(pair.first, pair.second) for pair in found] == [(("train", 17), ("test", 50))]
    assert audit.text_features({"train": ["a"], "test": ["a"]})["train"].shape == (1, 1)


def test_balance_and_sizes_are_counted():
    counts = audit.balance({"train": np.array([0, 1, 1])}, ["no", "yes", "never"])
    assert counts == {"train": {"no": 1, "yes": 2, "never": 0}}
    assert audit.summary(np.arange(5)) == {"min": 0, "q1": 1, "median": 2, "q3": 3, "max": 4}
