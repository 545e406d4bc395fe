"""The same training with another seed, set beside the model."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.evaluation.features import untrained
from pipeline.training.net import Net
from tests.evaluation.conftest import CPU, DATA


def repetition(first: Net, second: Net, folder) -> dict[str, float]:
    asked: Any = SimpleNamespace(
        data=str(folder), weights="models", seed=0, batch_size=64, compared=40
    )
    return first.task.show.repetition(first, second, asked, CPU)


@pytest.mark.parametrize("data", DATA)
def test_a_model_beside_itself_differs_in_nothing(studies, folders, data):
    net = studies[data].subject.net
    found = repetition(net, net, folders[data])
    assert [found[name] for name in ("difference", "difference_low", "difference_high")] == [0] * 3
    assert (found["agreement"], found["p_value"]) == (1, 1)
    depths = [value for name, value in found.items() if name.startswith("cka/")]
    assert len(depths) >= 2
    assert depths == pytest.approx([1] * len(depths))


def test_an_untrained_network_beside_the_model_is_worse_and_unlike(studies, folders):
    study = studies["image"]
    net = study.subject.net
    found = repetition(net, replace(net, module=untrained(net.module, 1)), folders["image"])
    assert found["difference"] == pytest.approx(found["accuracy"] - study.right.mean(), abs=1e-5)
    assert found["difference_high"] < -0.3
    assert found["p_value"] < 0.001
    assert found["agreement"] < 0.5
    assert found["cka/late"] < 0.9
