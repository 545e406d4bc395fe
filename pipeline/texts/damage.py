"""Damage to texts.

Each function takes the severity and a seed; a severity of 0 gives the examples back as they are.
The same seed gives the same damage.
"""

from collections.abc import Sequence

import numpy as np


def typos(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Misspell this share of the words of four letters or more: swap, drop or double a letter."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(
            _misspell(word, generator)
            if len(word) >= 4 and word.isalpha() and generator.random() < share
            else word
            for word in text.split(" ")
        )
        for text in texts
    ]


def upper_case(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Write this share of the words in capitals."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(word.upper() if generator.random() < share else word for word in text.split(" "))
        for text in texts
    ]


def _misspell(word: str, generator: np.random.Generator) -> str:
    at = int(generator.integers(1, len(word) - 2))
    kind = generator.integers(3)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at] + word[at:]
