"""Damage to images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images import damage
from pipeline.tasks.image_classification.show import KIND
from tests.evaluation.damaged import check


def raw():
    generator = np.random.default_rng(0)
    images = np.zeros((9, 1, 20, 28), np.uint8)
    images[:, :, 6:14, 8:20] = generator.integers(100, 256, size=(9, 1, 8, 12))
    return images


@pytest.mark.parametrize("kind", KIND.corruptions, ids=lambda kind: kind.name)
def test_each_kind_starts_with_no_damage_and_repeats(kind):
    check(kind, raw(), raw())


def test_noise_has_the_given_deviation():
    grey = np.full((50, 1, 20, 20), 128, np.uint8)
    assert damage.noise(grey, 0.1, 0).std() == pytest.approx(25.5, rel=0.03)


def test_blur_spreads_a_point_and_keeps_its_sum():
    point = np.zeros((1, 1, 21, 21), np.uint8)
    point[0, 0, 10, 10] = 255
    blurred = damage.blur(point, 1.0)[0, 0].astype(float)
    assert blurred.sum() == pytest.approx(255, rel=0.08)
    assert blurred[10, 10] == blurred.max() == pytest.approx(255 / (2 * np.pi), abs=1.5)
    assert np.array_equal(blurred, blurred.T)


@given(st.integers(1, 6), st.integers(0, 20))
def test_a_shift_moves_without_loss_where_there_is_room(pixels, seed):
    images = np.zeros((8, 1, 21, 21), np.uint8)
    images[:, :, 10, 10] = 200
    moved = damage.shift(images, pixels, seed)
    rows, columns = np.nonzero(moved.any(axis=(0, 1)))
    assert moved.sum() == images.sum()
    assert {abs(int(p) - 10) for p in (*rows, *columns)} <= {0, pixels}


def test_a_shift_further_than_the_image_leaves_black():
    assert damage.shift(np.full((3, 1, 4, 4), 9, np.uint8), 6, 0).sum() == 0


def test_a_quarter_turn_turns_a_quarter():
    image = np.zeros((1, 1, 8, 8), np.uint8)
    image[0, 0, 0, :] = 100
    turned = damage.rotate(image, 90, 0)[0, 0]
    assert any(np.array_equal(turned, np.rot90(image[0, 0], k)) for k in (1, 3))
