"""Metrics and their uncertainty, against worked examples and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classification.evaluation import metrics
from pipeline.classification.evaluation.metrics import probabilities
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.intervals import bootstrap, share

CLASSES = ["cat", "dog", "eel"]


@pytest.fixture
def answers():
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=400)
    logits = generator.normal(size=(400, 3)).astype(np.float32)
    logits[np.arange(400), labels] += 1.5
    return logits, labels


def test_scores_agree_with_scikit_learn(answers):
    from sklearn import metrics as reference

    logits, labels = answers
    guesses = logits.argmax(axis=1)
    found = metrics.scores(logits, labels, CLASSES)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(labels, guesses)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, guesses), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1.mean(), abs=1e-6)
    assert found["loss"] == pytest.approx(
        reference.log_loss(labels, probabilities(logits)), abs=1e-6
    )
    for index, name in enumerate(CLASSES):
        assert found[f"precision/{name}"] == pytest.approx(precision[index], abs=1e-6)
        assert found[f"recall/{name}"] == pytest.approx(recall[index], abs=1e-6)
    assert (
        metrics.confusion(guesses, labels, 3) == reference.confusion_matrix(labels, guesses)
    ).all()


def test_scores_are_sorted_and_repeat(answers):
    found = metrics.scores(*answers, CLASSES)
    assert list(found) == sorted(found)
    assert found == metrics.scores(*answers, CLASSES)
    assert found["examples"] == 400


def test_a_class_that_is_never_predicted_or_never_occurs_scores_zero():
    logits = np.array([[5.0, 0, 0], [5.0, 0, 0]])
    found = metrics.scores(logits, np.array([0, 1]), CLASSES)
    assert found["precision/dog"] == found["recall/dog"] == found["recall/eel"] == 0
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2, abs=1e-6)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.r_[np.ones(900), np.zeros(100)]
    low, high = bootstrap(values, seed=1)
    margin = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    assert low == pytest.approx(0.9 - margin, abs=0.002)
    assert high == pytest.approx(0.9 + margin, abs=0.002)


def test_the_interval_covers_the_truth_in_about_95_of_100_cases():
    generator = np.random.default_rng(3)
    covered = 0
    for seed in range(200):
        low, high = bootstrap(generator.normal(size=80), seed)
        covered += low <= 0 <= high
    assert 178 <= covered <= 199


def test_calibration_error_of_a_perfectly_calibrated_set_is_zero():
    # Of ten answers given with 80 % confidence eight are right, of four with 50 % two.
    chances = np.array([[0.8, 0.2]] * 10 + [[0.5, 0.5]] * 4)
    labels = np.array([0] * 8 + [1] * 2 + [0, 0, 1, 1])
    assert metrics.calibration_error(chances, labels) == pytest.approx(0, abs=1e-12)


def test_calibration_error_of_certain_and_wrong_answers_is_one():
    assert metrics.calibration_error(np.array([[1.0, 0.0]] * 5), np.ones(5, dtype=int)) == 1


def test_temperature_undoes_a_known_scaling():
    generator = np.random.default_rng(5)
    logits = generator.normal(scale=2, size=(20_000, 4))
    chances = probabilities(logits)
    draws = generator.random(20_000)[:, None]
    labels = (draws > chances.cumsum(axis=1)).sum(axis=1)
    assert metrics.temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert metrics.temperature(logits * 3, labels) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("count", [6, 60, 600])
def test_temperature_of_a_set_without_an_error_stays_modest(count):
    labels = np.arange(count) % 2
    found = metrics.temperature(np.eye(2)[labels] * 9, labels)
    # The best constant confidence under Platt's targets: 1 - eps/2 with eps = 1 / (count + 2).
    assert found == pytest.approx(9 / np.log(2 * (count + 2) - 1), rel=0.01)


@pytest.mark.parametrize(("hits", "count"), [(10, 10), (0, 7), (61, 64), (500, 1000)])
def test_the_interval_of_a_share_is_wilsons(hits, count):
    from scipy.stats import binomtest

    value, interval = share(np.arange(count) < hits)
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert value == hits / count
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.floats(0.05, 20), st.integers(0, 99))
def test_temperature_never_changes_an_answer(value, seed):
    logits = np.random.default_rng(seed).normal(size=(20, 3))
    assert (probabilities(logits, value).argmax(1) == logits.argmax(1)).all()


def test_mcnemar_gives_the_worked_example():
    def mcnemar(only_first: int, only_second: int) -> float:
        first = np.arange(20) < only_first
        second = np.arange(20) >= 20 - only_second
        return compare(first, second).p_value

    # 10 against 3 discordant pairs: 2 * P(X <= 3 | 13, 1/2) = 2 * 378 / 8192
    assert mcnemar(10, 3) == pytest.approx(2 * 378 / 8192)
    assert mcnemar(3, 10) == mcnemar(10, 3)
    assert mcnemar(0, 0) == 1
    assert mcnemar(7, 7) == 1


def test_a_paired_comparison_sees_what_two_intervals_hide():
    generator = np.random.default_rng(0)
    first = generator.random(1000) < 0.9
    second = first | (np.arange(1000) % 50 == 0)  # never worse, sometimes better
    found = compare(first, second)
    assert found.only_first == 0
    assert found.only_second == (second & ~first).sum()
    assert found.gain == pytest.approx(second.mean() - first.mean())
    assert found.interval.low >= 0
    assert compare(second, first).gain == -found.gain
    assert compare(first, first)[:1] + compare(first, first)[2:] == (0, 0, 0, 1)


def test_scores_that_are_no_hits_are_compared_by_rank():
    from scipy.stats import wilcoxon

    generator = np.random.default_rng(0)
    first = generator.normal(size=60)
    second = first + generator.normal(0.3, size=60)
    found = compare(first, second)
    assert found.gain == pytest.approx((second - first).mean())
    assert (found.only_first, found.only_second) == ((second < first).sum(), (second > first).sum())
    assert found.p_value == pytest.approx(wilcoxon(first, second).pvalue)


def test_comparing_different_examples_is_refused():
    with pytest.raises(ValueError, match="same examples"):
        compare(np.ones(3, bool), np.ones(4, bool))
