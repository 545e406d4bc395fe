"""Interpolated n-grams."""

import math

import numpy as np
import pytest

from pipeline.texts import ngrams


def test_chances_of_all_next_tokens_sum_to_one():
    random = np.random.default_rng(0)
    train = [[0, *random.integers(1, 8, 30)] for _ in range(20)]
    for context in ([0], [0, 3, 1], [0, 1, 2, 3, 4, 5]):
        last = ngrams.kneser_ney(train, [[*context, token] for token in range(8)], 8)
        assert sum(2 ** -bits[-1] for bits in last) == pytest.approx(1)


def test_what_was_seen_is_less_surprising():
    train = [[0, 1, 2, 3, 4, 5, 6, 7]] * 50
    known, other = ngrams.kneser_ney(train, [[0, 1, 2, 3, 4], [0, 4, 1, 3, 2]], 8)
    assert 2 * known.sum() < other.sum()
    assert all(math.isfinite(bits) for bits in other)


def test_no_context_reaches_into_another_document():
    train = [[0, *np.random.default_rng(0).integers(1, 8, 40)] for _ in range(9)]
    alone, together = [[0, 5, 6]], [[0, 1, 2, 3, 4], [0, 5, 6]]
    assert np.array_equal(
        ngrams.kneser_ney(train, together, 8)[1], ngrams.kneser_ney(train, alone, 8)[0]
    )


def test_large_vocabularies_have_shorter_n_grams():
    (bits,) = ngrams.kneser_ney([[0, 70_000, 90_000] * 30], [[0, 70_000, 90_000]], 100_000)
    assert bits.sum() < 4
