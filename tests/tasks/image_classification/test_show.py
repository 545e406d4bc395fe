"""What is seen in a network of images."""

import numpy as np
import pytest
import torch

from pipeline.evaluation import features
from pipeline.tasks.image_classification import show
from tests.evaluation import networks


@pytest.fixture
def pictures():
    return networks.pictures()


def test_the_stages_of_a_convolutional_network_are_its_last_maps_of_each_size(pictures):
    model, inputs = pictures
    found = show.map_stages(model, inputs)
    assert [stage.shape for stage in found] == [(4, 16, 16), (4, 8, 8), (6, 8, 8)]
    assert [stage.module for stage in found] == [model.net[2], model.net[3], model.net[5]]


def test_features_are_those_of_a_plain_forward_pass(pictures):
    model, inputs = pictures
    where = show.points(model, inputs)
    halves = [{"images": part} for part in inputs["images"].split(3)]
    found = features.capture(model, halves, where)
    assert list(found) == ["4×16×16", "4×8×8", "6×8×8", "head's input", "logits"]
    with torch.no_grad():
        expected = model(**inputs)
        flat = model.net[:7](inputs["images"].float() / 255)
    assert np.allclose(found["logits"], expected, atol=1e-6)
    assert np.allclose(found["head's input"], flat, atol=1e-6)
    assert found["4×16×16"].shape == (6, 4 * 16)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_mode_of_the_model_is_put_back(pictures):
    model, inputs = pictures
    model.train()
    before = model.net[1].running_mean.clone()
    show.feature_maps(model, inputs, show.map_stages(model, inputs))
    assert model.training
    assert model.net[1].training
    assert torch.equal(model.net[1].running_mean, before)


def test_receptive_fields_are_those_of_the_arithmetic(pictures):
    model, inputs = pictures
    shape = inputs["images"]
    assert show.receptive_field(model, model.net[2], shape) == (3, 3)
    assert show.receptive_field(model, model.net[3], shape) == (4, 4)
    assert show.receptive_field(model, model.net[5], shape) == (8, 8)
