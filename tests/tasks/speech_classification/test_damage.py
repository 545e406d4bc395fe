"""Damage to clips."""

import numpy as np
import pytest

from pipeline.sounds import damage
from pipeline.tasks.speech_classification.show import KIND
from tests.evaluation.damaged import check


def raw():
    return [np.sin(np.arange(800 + 50 * i) / 20).astype(np.float32) / 2 for i in range(4)]


@pytest.mark.parametrize("kind", KIND.corruptions, ids=lambda kind: kind.name)
def test_each_kind_starts_with_no_damage_and_repeats(kind):
    check(kind, raw(), raw())


def test_hiss_has_the_given_ratio_to_the_signal():
    wave = (np.sin(np.arange(20_000) / 9) / 4).astype(np.float32)
    rest = damage.hiss([wave], 20, 0)[0] - wave
    ratio = 10 * np.log10(np.mean(wave**2) / np.mean(rest**2))
    assert ratio == pytest.approx(20, abs=0.2)
    assert not damage.hiss([np.zeros(50, np.float32)], 10, 0)[0].any()


def test_tempo_changes_the_length():
    wave = np.arange(1000, dtype=np.float32) / 1000
    assert len(damage.tempo([wave], 2)[0]) == 500
    assert len(damage.tempo([wave], 0.5)[0]) == pytest.approx(2000, abs=2)
    assert len(damage.tempo([np.zeros(1, np.float32)], 1.3)[0]) == 1
