import pytest
import torch

from pipeline.tasks.image_classification.augment import affine
from pipeline.tasks.image_classification.settings import Augment

NONE = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "flip": False}


def change(images, seed=0, **config):
    generator = torch.Generator(images.device).manual_seed(seed)
    return affine(Augment(**{**NONE, **config}))({"images": images}, generator)["images"]


def noise(*shape):
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("shape", [(4, 1, 28, 28), (3, 3, 7, 12)])
def test_no_change_gives_back_the_image_exactly(shape):
    images = noise(*shape)
    assert torch.equal(change(images), images)


def test_a_flip_mirrors_about_every_second_image_exactly():
    images = noise(400, 3, 7, 12)
    changed = change(images, flip=True)
    same = (changed == images).flatten(1).all(1)
    mirrored = (changed == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_a_shift_moves_each_image_by_its_own_amount_up_to_the_limit():
    images = torch.zeros(500, 1, 41, 41, dtype=torch.uint8)
    images[:, :, 20, 20] = 255
    moved = change(images, translate=0.2).float()
    weight = moved / moved.sum((2, 3), keepdim=True)
    place = torch.arange(41.0)
    x = (weight.sum(2) * place).sum(-1).squeeze() - 20
    y = (weight.sum(3) * place).sum(-1).squeeze() - 20
    # 0.2 of 41 pixels is 8.2
    assert 7.7 < x.abs().max() <= 8.3
    assert 7.7 < y.abs().max() <= 8.3
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.15
    assert abs(float(x.mean())) < 0.8


@pytest.mark.parametrize("shape", [(41, 41), (31, 61)])
def test_a_rotation_keeps_lengths_on_square_and_oblong_images(shape):
    images = torch.zeros(300, 1, *shape, dtype=torch.uint8)
    middle = shape[0] // 2, shape[1] // 2
    images[:, :, middle[0], middle[1] + 12] = 255
    images[:, :, middle[0], middle[1] + 11] = 255
    turned = change(images, degrees=30.0).float()
    weight = turned / turned.sum((2, 3), keepdim=True)
    x = (weight.sum(2) * torch.arange(float(shape[1]))).sum(-1).squeeze() - middle[1]
    y = (weight.sum(3) * torch.arange(float(shape[0]))).sum(-1).squeeze() - middle[0]
    assert (torch.hypot(x, y) - 11.5).abs().max() < 0.3
    angles = torch.rad2deg(torch.atan2(y, x))
    assert 28.5 < angles.abs().max() <= 30.5
    assert angles.min() < -20 < 20 < angles.max()


def test_a_zoom_changes_the_area_within_its_limits():
    images = torch.zeros(300, 1, 60, 60, dtype=torch.uint8)
    images[:, :, 20:40, 20:40] = 200
    side = (change(images, scale=0.25).float().sum((1, 2, 3)) / 200).sqrt()
    assert 14.5 < side.min() < 15.7
    assert 24.3 < side.max() < 25.3


def test_pixels_from_outside_are_black():
    images = torch.full((50, 1, 20, 20), 255, dtype=torch.uint8)
    assert (change(images, translate=0.3) == 0).any(dim=(1, 2, 3)).float().mean() > 0.95


def test_only_the_given_generator_is_drawn_from():
    images = noise(8, 1, 28, 28)
    config = {"degrees": 10.0, "translate": 0.1, "scale": 0.1}
    before = torch.get_rng_state()
    first = change(images, seed=3, **config)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(change(images, seed=3, **config), first)
    assert not torch.equal(change(images, seed=4, **config), first)


def test_other_inputs_pass_through_and_the_originals_stay():
    images = noise(4, 1, 9, 9)
    copy, other = images.clone(), torch.arange(4)
    inputs = {"images": images, "other": other}
    generator = torch.Generator().manual_seed(0)
    result = affine(Augment(degrees=40, translate=0.1, scale=0.1, flip=False))(inputs, generator)
    assert torch.equal(images, copy)
    assert result["other"] is other
    assert result["images"].dtype == torch.uint8


def test_the_largest_turn_of_90_degrees_is_an_exact_quarter_turn(monkeypatch):
    images = noise(2, 3, 33, 33)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[1.0, 0.5, 0.5, 0.5]] * 2))
    assert torch.equal(change(images, degrees=90.0), images.rot90(1, (2, 3)))


@pytest.mark.gpu
def test_the_host_never_waits_for_the_device():
    images = noise(64, 1, 28, 28).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    augment = affine(Augment(degrees=10, translate=0.1, scale=0.1, flip=True))
    augment({"images": images}, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        changed = augment({"images": images}, generator)["images"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert changed.shape == images.shape
