"""Figures of thousands of classes draw no more than those of dozens."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from pipeline.classification.evaluation import parts
from pipeline.evaluation.slices import Slice
from pipeline.figures.data import balance_and_sizes
from pipeline.figures.evidence import Clip, evidence
from pipeline.figures.matrices import confusion_matrix


def names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def balance(count: int):
    rows = {name: 3 + number % 5 for number, name in enumerate(names(count))}
    sizes = np.arange(9.0)
    return balance_and_sizes({"train": rows, "test": rows}, {"train": sizes, "test": sizes}, "", "")


def confusion(count: int):
    return confusion_matrix(np.eye(count, dtype=np.int64), names(count), "")


def gathered(count: int):
    heard = np.random.default_rng(0).normal(size=(9, count)).astype(np.float32)
    return evidence([Clip(np.zeros((4, 9), np.float32), heard, 1.0, "")], names(count), "")


@pytest.mark.parametrize("figure", [balance, confusion, gathered])
def test_two_thousand_classes_are_not_drawn_one_by_one(figure):
    drawn = figure(2000)
    assert len(drawn.findobj()) <= len(figure(60).findobj()) + 200


def test_of_many_slices_the_worst_are_drawn_in_their_order(monkeypatch, tmp_path):
    found = [Slice("class", name, 5, n % 7 / 7, 0.0, 1.0) for n, name in enumerate(names(2000))]
    drawn: list[str] = []
    monkeypatch.setattr(parts, "slices", lambda *_: found)
    monkeypatch.setattr(
        parts, "groups", lambda *_: {"class": SimpleNamespace(names=[], order=names(2000))}
    )
    monkeypatch.setattr(
        parts.curves, "intervals", lambda rows, *_, **__: drawn.extend(row[1] for row in rows)
    )
    monkeypatch.setattr(parts.Page, "figure", lambda *_, text, **__: texts.append(text))
    texts: list[str] = []
    study = MagicMock(right=np.ones(5, bool))
    parts.by_slice(parts.Page(tmp_path), study)
    assert drawn == [f"class {7 * n}" for n in range(parts.MOST_SLICES)]
    assert "Of 2000 slices the 120 worst are shown." in texts[0]
    assert len((tmp_path / "slices.csv").read_text().splitlines()) == 2001
