"""Damage: none at the first severity, more at each next, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import corruptions


def raw(task):
    generator = np.random.default_rng(0)
    if task == "image":
        images = np.zeros((9, 1, 20, 28), np.uint8)
        images[:, :, 6:14, 8:20] = generator.integers(100, 256, size=(9, 1, 8, 12))
        return images
    if task == "text":
        return ["a truly wonderful film , full of surprise", "dull and lifeless throughout"] * 5
    return [np.sin(np.arange(800 + 50 * i) / 20).astype(np.float32) / 2 for i in range(4)]


KINDS = [(task, kind) for task, kinds in corruptions.CORRUPTIONS.items() for kind in kinds]


@pytest.mark.parametrize(("task", "kind"), KINDS, ids=[f"{t}-{k.name}" for t, k in KINDS])
def test_each_kind_starts_with_no_damage_and_repeats(task, kind):
    clean = raw(task)
    same = kind.apply(clean, kind.severities[0], 0)
    assert all(np.array_equal(a, b) for a, b in zip(clean, same, strict=True))
    for severity in kind.severities[1:]:
        first, again = (kind.apply(clean, severity, 7) for _ in range(2))
        assert len(first) == len(clean)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert any(not np.array_equal(a, b) for a, b in zip(first, clean, strict=True))
        if task == "image":
            assert (first.shape, first.dtype) == (clean.shape, np.uint8)
    assert all(np.array_equal(a, b) for a, b in zip(clean, raw(task), strict=True))


def test_noise_has_the_given_deviation():
    grey = np.full((50, 1, 20, 20), 128, np.uint8)
    assert corruptions.noise(grey, 0.1, 0).std() == pytest.approx(25.5, rel=0.03)


def test_blur_spreads_a_point_and_keeps_its_sum():
    point = np.zeros((1, 1, 21, 21), np.uint8)
    point[0, 0, 10, 10] = 255
    blurred = corruptions.blur(point, 1.0)[0, 0].astype(float)
    assert blurred.sum() == pytest.approx(255, rel=0.08)
    assert blurred[10, 10] == blurred.max() == pytest.approx(255 / (2 * np.pi), abs=1.5)
    assert np.array_equal(blurred, blurred.T)


@given(st.integers(1, 6), st.integers(0, 20))
def test_a_shift_moves_without_loss_where_there_is_room(pixels, seed):
    images = np.zeros((8, 1, 21, 21), np.uint8)
    images[:, :, 10, 10] = 200
    moved = corruptions.shift(images, pixels, seed)
    rows, columns = np.nonzero(moved.any(axis=(0, 1)))
    assert moved.sum() == images.sum()
    assert {abs(int(p) - 10) for p in (*rows, *columns)} <= {0, pixels}


def test_a_shift_further_than_the_image_leaves_black():
    assert corruptions.shift(np.full((3, 1, 4, 4), 9, np.uint8), 6, 0).sum() == 0


def test_a_quarter_turn_turns_a_quarter():
    image = np.zeros((1, 1, 8, 8), np.uint8)
    image[0, 0, 0, :] = 100
    turned = corruptions.rotate(image, 90, 0)[0, 0]
    assert any(np.array_equal(turned, np.rot90(image[0, 0], k)) for k in (1, 3))


def test_typos_hit_the_share_of_long_words_asked_for():
    text = ["wonderful " * 999 + "a of it"]
    damaged = corruptions.typos(text, 0.25, 0)[0].split(" ")
    assert sum(word != "wonderful" for word in damaged[:999]) == pytest.approx(250, abs=45)
    assert damaged[-3:] == ["a", "of", "it"]
    assert corruptions.upper_case(text, 1, 0) == [text[0].upper()]


def test_hiss_has_the_given_ratio_to_the_signal():
    wave = (np.sin(np.arange(20_000) / 9) / 4).astype(np.float32)
    rest = corruptions.hiss([wave], 20, 0)[0] - wave
    ratio = 10 * np.log10(np.mean(wave**2) / np.mean(rest**2))
    assert ratio == pytest.approx(20, abs=0.2)
    assert not corruptions.hiss([np.zeros(50, np.float32)], 10, 0)[0].any()


def test_tempo_changes_the_length():
    wave = np.arange(1000, dtype=np.float32) / 1000
    assert len(corruptions.tempo([wave], 2)[0]) == 500
    assert len(corruptions.tempo([wave], 0.5)[0]) == pytest.approx(2000, abs=2)
    assert len(corruptions.tempo([np.zeros(1, np.float32)], 1.3)[0]) == 1
