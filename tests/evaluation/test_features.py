"""What is inside a network, and where its answers come from."""

import pytest
import torch

from pipeline.evaluation import features
from pipeline.evaluation.similarity import linear_cka
from tests.evaluation import networks


@pytest.fixture
def pictures():
    return networks.pictures()


def maps(model):
    """Its last feature maps."""
    return features.Point("maps", model.net[5], lambda _args, output, _inputs: output.flatten(1))


def test_hooks_are_taken_off_after_an_error(pictures):
    model, _ = pictures
    with pytest.raises(RuntimeError):
        features.capture(model, [{"images": torch.zeros(1, 3, 16, 16)}], [maps(model)])
    assert not any(module._forward_hooks for module in model.modules())


def test_an_untrained_copy_has_other_weights_and_the_same_buffers(pictures):
    model, inputs = pictures
    model.register_buffer("mean", torch.tensor(0.3))
    fresh, again = (features.untrained(model, 1) for _ in range(2))
    assert fresh.mean == model.mean
    assert torch.equal(fresh.net[0].weight, again.net[0].weight)
    assert not torch.equal(fresh.net[0].weight, model.net[0].weight)
    assert not fresh.training
    encoder = networks.bert()
    other = features.untrained(encoder, 1)
    assert not torch.equal(other.classifier.weight, encoder.classifier.weight)
    found = [features.capture(m, [inputs], [maps(m)]) for m in (model, fresh)]
    assert linear_cka(found[0]["maps"], found[1]["maps"]) < 0.99


def test_early_middle_and_late_are_first_middle_and_last():
    assert features.depths(["a", "b", "c", "d", "e"]) == {"early": "a", "middle": "c", "late": "e"}
    assert features.depths(["a", "b"]) == {"early": "a", "late": "b"}
    assert features.depths(["a"]) == {"late": "a"}
