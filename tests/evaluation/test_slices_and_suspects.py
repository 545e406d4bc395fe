"""Slices, suspects and baselines: what was planted is found."""

import numpy as np
import pytest

from pipeline.classification.evaluation import baselines
from pipeline.classification.evaluation.suspects import confident_mistakes, suspects
from pipeline.evaluation.probes import fit_and_predict, one_thread
from pipeline.evaluation.slices import bands, slices, worst


def test_the_worst_slice_is_named():
    right = np.r_[np.ones(50), np.zeros(20), np.ones(30), np.zeros(3)].astype(bool)
    accents = ["us"] * 50 + ["scots"] * 50 + ["rare"] * 3
    found = slices(right, {"accent": accents, "all": ["all"] * 103})
    assert [(part.kind, part.name, part.examples) for part in found] == [
        ("accent", "us", 50),
        ("accent", "scots", 50),
        ("all", "all", 103),
    ]
    bad = worst(found)
    assert bad is not None
    assert (bad.name, bad.accuracy) == ("scots", 0.6)
    assert bad.low < 0.6 < bad.high
    assert worst([]) is None


def test_bands_hold_equal_shares_and_keep_equal_values_together():
    values = np.arange(100)
    names = bands(values, "words")
    assert list(dict.fromkeys(names)) == [
        "0–24 words",
        "25–49 words",
        "50–74 words",
        "75–99 words",
    ]
    assert set(bands(np.full(10, 7), "words")) == {"7 words"}
    assert bands(np.array([0.1, 0.9]), "s") == ["0.10 s", "0.90 s"]


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_predict

    images, labels = load_digits(return_X_y=True)
    planted = np.random.default_rng(0).choice(len(labels), 30, replace=False)
    wrong = labels.copy()
    wrong[planted] = (wrong[planted] + 1 + planted % 8) % 10
    model = LogisticRegression(C=0.2, max_iter=300)
    folds = KFold(5, shuffle=True, random_state=0)
    with one_thread():
        chances = cross_val_predict(model, images / 16, wrong, cv=folds, method="predict_proba")
    return chances, wrong, set(planted.tolist())


def test_planted_label_errors_are_found(digits):
    chances, labels, planted = digits
    found = suspects(chances, labels, most=40)
    assert len(planted & {suspect.row for suspect in found}) >= 27
    assert len(planted & {suspect.row for suspect in found[:20]}) >= 18
    assert [s.margin for s in found] == sorted((s.margin for s in found), reverse=True)
    assert all(s.label == labels[s.row] != s.prediction for s in found)


def test_a_model_that_believes_every_label_suspects_none():
    labels = np.arange(10) % 2
    assert suspects(np.eye(2)[labels] * 0.8 + 0.1, labels, most=9) == []


def test_mistakes_come_the_most_confident_first():
    chances = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    assert confident_mistakes(chances, np.array([1, 1, 1, 0]), 2).tolist() == [0, 3]
    assert confident_mistakes(chances, np.array([0, 0, 1, 1]), 2).tolist() == []


def test_a_gain_is_stated_with_interval_and_p_value():
    found = baselines.baseline("majority", np.arange(100) < 50, np.arange(100) < 90)
    assert (found.accuracy, found.gain) == (0.5, pytest.approx(0.4))
    assert 0.28 < found.gain_low < 0.4 < found.gain_high < 0.52
    assert found.p_value == pytest.approx(2 * 0.5**40)


def test_tfidf_and_logistic_regression_learn_sentiment_words():
    train = ["good fine film", "good film", "fine film", "bad dull film", "bad film", "dull film"]
    features = baselines.tfidf(train, ["fine", "dull"])
    labels = np.array([1, 1, 1, 0, 0, 0])
    assert fit_and_predict(features[0], labels, features[1]).tolist() == [1, 0]
    alone = baselines.tfidf(["a", "b"], ["a"])
    assert alone[0].shape == (2, 2)


def test_standardised_features_use_the_training_splits_moments():
    train, test = np.array([[0.0, 5], [2, 5]]), np.array([[4.0, 5]])
    first, second = baselines.standardise(train, test)
    assert first.tolist() == [[-1, 0], [1, 0]]
    assert second.tolist() == [[3, 0]]
