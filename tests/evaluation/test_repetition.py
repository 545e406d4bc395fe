"""The same training with another seed, set beside the model."""

from dataclasses import replace

import pytest

from pipeline.classification.evaluation.repetition import repetition
from pipeline.evaluation.features import untrained
from tests.evaluation.conftest import DATA


@pytest.mark.parametrize("task", DATA)
def test_a_model_beside_itself_differs_in_nothing(studies, task):
    study = studies[task]
    found = repetition(study.subject, study.subject, study.test, 40, 0)
    assert [found[name] for name in ("difference", "difference_low", "difference_high")] == [0] * 3
    assert (found["agreement"], found["p_value"]) == (1, 1)
    depths = [value for name, value in found.items() if name.startswith("cka/")]
    assert len(depths) >= 2
    assert depths == pytest.approx([1] * len(depths))


def test_an_untrained_network_beside_the_model_is_worse_and_unlike(studies):
    study = studies["image"]
    net = replace(study.subject.net, module=untrained(study.subject.model, 1))
    found = repetition(study.subject, replace(study.subject, net=net), study.test, 40, 0)
    assert found["difference"] == pytest.approx(found["accuracy"] - study.right.mean(), abs=1e-5)
    assert found["difference_high"] < -0.3
    assert found["p_value"] < 0.001
    assert found["agreement"] < 0.5
    assert found["cka/late"] < 0.9
