"""The same training with another seed, set beside the model."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.classification.evaluation.repetition import repetition
from pipeline.evaluation.features import untrained


@pytest.mark.parametrize("task", ["image", "text", "audio"])
def test_a_model_beside_itself_differs_in_nothing(subjects, task):
    subject, data = subjects[task]
    found = repetition(subject, subject, data.test, 40, 0)
    assert [found[name] for name in ("difference", "difference_low", "difference_high")] == [0] * 3
    assert (found["agreement"], found["p_value"]) == (1, 1)
    depths = [value for name, value in found.items() if name.startswith("cka/")]
    assert len(depths) >= 2
    assert depths == pytest.approx([1] * len(depths))


def test_an_untrained_network_beside_the_model_is_worse_and_unlike(subjects):
    subject, data = subjects["image"]
    other = replace(subject, model=untrained(subject.model, 1))
    found = repetition(subject, other, data.test, 40, 0)
    right = data.on_test.logits.argmax(axis=1) == data.test.labels
    assert found["difference"] == pytest.approx(found["accuracy"] - np.mean(right), abs=1e-5)
    assert found["difference_high"] < -0.3
    assert found["p_value"] < 0.001
    assert found["agreement"] < 0.5
    assert found["cka/late"] < 0.9
