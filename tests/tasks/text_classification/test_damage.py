"""Damage to texts."""

import pytest

from pipeline.tasks.text_classification.show import KIND
from pipeline.texts import damage
from tests.evaluation.damaged import check


def raw():
    return ["a truly wonderful film , full of surprise", "dull and lifeless throughout"] * 5


@pytest.mark.parametrize("kind", KIND.corruptions, ids=lambda kind: kind.name)
def test_each_kind_starts_with_no_damage_and_repeats(kind):
    check(kind, raw(), raw())


def test_typos_hit_the_share_of_long_words_asked_for():
    text = ["wonderful " * 999 + "a of it"]
    misspelt = damage.typos(text, 0.25, 0)[0].split(" ")
    assert sum(word != "wonderful" for word in misspelt[:999]) == pytest.approx(250, abs=45)
    assert misspelt[-3:] == ["a", "of", "it"]
    assert damage.upper_case(text, 1, 0) == [text[0].upper()]
