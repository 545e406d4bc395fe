"""What is inside a network, and where its answers come from."""

import pytest
import torch
from torch import nn

from pipeline.evaluation import explain, features
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


def test_integrated_gradients_of_a_linear_function_are_its_terms():
    weights = torch.tensor([2.0, -1.0, 0.5])
    found = explain.integrated_gradients(
        lambda x: x @ weights, torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 0.0])
    )
    assert torch.allclose(found, torch.tensor([2.0, -1.0, 2.0]))


def test_integrated_gradients_agree_with_captum_and_are_complete():
    from captum.attr import IntegratedGradients

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    point, start = torch.randn(6), torch.randn(6)
    ours = explain.integrated_gradients(lambda x: net(x)[:, 0], point, start)
    theirs = IntegratedGradients(net).attribute(point[None], start[None], n_steps=50)[0]
    assert torch.allclose(ours, theirs.float(), atol=1e-4)
    assert ours.sum().item() == pytest.approx((net(point) - net(start)).item(), abs=1e-5)
