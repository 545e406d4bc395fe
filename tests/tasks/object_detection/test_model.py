"""The detector: targets, losses, peaks, answers, learning."""

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.task import find
from pipeline.tasks.object_detection import model as detector
from pipeline.tasks.object_detection.augment import changes
from pipeline.tasks.object_detection.settings import Augment, Facts
from pipeline.training import net as nets
from pipeline.training.batches import Batch
from pipeline.training.muon import Muon
from tests.models.presets import preset

FACTS = Facts(classes=["a", "b", "c"], channels=1, sizes=[10.0, 20.0], whole=False)
SHAPE = torch.Size([1, 3, 16, 16])


def build(**changes) -> nets.Net:
    torch.manual_seed(0)
    return nets.build(find(name="object_detection"), preset("detector", "ttfnet", **changes), FACTS)


def perfect(boxes, labels, size=(64, 64), whole=False):
    """What a network would say that knows these boxes [1, m, 4]."""
    heat, corners, _ = detector.targets(boxes, labels, SHAPE)
    logits = torch.logit(heat.clamp(1e-4, 0.99))
    return {"heat": logits, "boxes": corners, "sizes": torch.tensor([size]), "whole": whole}


BOXES = torch.tensor([[[4.0, 8.0, 20.0, 30.0], [40.0, 36.0, 60.0, 60.0], [0.0, 0.0, 0.0, 0.0]]])
LABELS = torch.tensor([[2, 0, -1]])


def test_the_preset_has_as_many_weights_as_it_says():
    net = nets.build(
        find(name="object_detection"), preset("detector", "ttfnet"),
        Facts(classes=[str(n) for n in range(10)], channels=1, sizes=[10.0, 20.0], whole=False),
    )  # fmt: skip
    count = sum(parameter.numel() for parameter in net.module.parameters())
    assert count == 426_894


def test_muon_moves_all_filters_but_those_of_the_head():
    net = build().module
    moved = Muon(net, 0.05, [0.9, 0.99]).momenta
    others = {name for name, p in net.named_parameters() if p.ndim > 1 and p not in moved}
    assert others == {"head.weight"}


def test_a_depth_of_other_stages_is_a_clear_error():
    with pytest.raises(PipelineError, match=r"^detector\.depth has 2 stages, detector\.channels 3"):
        build(depth=[2, 2])


def test_targets_have_one_peak_for_each_box_at_its_centre():
    heat, boxes, weight = detector.targets(BOXES, LABELS, SHAPE)
    assert torch.nonzero(heat == 1).tolist() == [[0, 0, 12, 12], [0, 2, 4, 3]]
    assert boxes[0, :, 4, 3].tolist() == BOXES[0, 0].tolist()
    assert boxes[0, :, 12, 12].tolist() == BOXES[0, 1].tolist()
    assert weight.sum() == pytest.approx(2)


def test_an_image_without_boxes_has_a_finite_loss_and_no_peak():
    heat, _, weight = detector.targets(torch.zeros(1, 1, 4), torch.full((1, 1), -1), SHAPE)
    assert heat.max() == weight.max() == 0
    assert detector.focal(torch.zeros(SHAPE), heat, torch.ones(1, 16, 16)).isfinite()


def test_a_centre_costs_least_when_it_is_as_sure_as_its_box_is_good():
    heat, _, _ = detector.targets(BOXES[:, :1], LABELS[:, :1], SHAPE)
    chances = torch.linspace(0.01, 0.99, 99)
    for quality in (0.3, 0.8):
        good = torch.full((1, 16, 16), quality)
        costs = [
            detector.focal(torch.where(heat == 1, chance.logit(), -20.0), heat, good)
            for chance in chances
        ]
        assert chances[torch.stack(costs).argmin()] == pytest.approx(quality, abs=0.006)


def test_giou_is_one_for_the_same_box_and_below_zero_far_apart():
    first = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10]])
    second = torch.tensor([[0.0, 0, 10, 10], [30.0, 30, 40, 40]])
    same, apart = detector.giou(first, second).tolist()
    assert same == pytest.approx(1)
    assert apart == pytest.approx(0 - (1600 - 200) / 1600)


@pytest.mark.parametrize(("size", "factor"), [((64, 64), (1, 1)), ((256, 192), (4, 4))])
def test_peaks_come_back_in_pixels_of_the_image_as_it_came(size, factor):
    (found,) = detector.decode(perfect(BOXES, LABELS, size))
    order = np.argsort(found.corners[:, 0])
    sure = order[found.scores[order] > 0.9]
    expected = BOXES[0, :2].numpy() * np.array(factor * 2)
    expected = np.minimum(expected, np.array([size[1], size[0]] * 2))
    assert np.allclose(found.corners[sure], expected)
    assert found.labels[sure].tolist() == [2, 0]


def test_a_box_is_the_mean_of_what_the_cells_around_its_peak_say_by_their_chances():
    output = perfect(BOXES, LABELS)
    output["boxes"][0, :, 4, 4] += 8
    (found,) = detector.decode(output)
    chances = output["heat"][0].sigmoid().amax(0)[3:6, 2:5]
    moved = 8 * chances[1, 2] / chances.sum()
    assert moved > 0.1
    first = found.corners[(found.labels == 2) & (found.scores > 0.9)]
    assert np.allclose(first, BOXES[0, :1] + moved.item(), atol=1e-3)


def test_where_all_boxes_end_at_whole_pixels_of_their_images_those_found_do():
    given = perfect(BOXES, LABELS, (48, 48)), perfect(BOXES, LABELS, (48, 48), whole=True)
    (loose,), (whole,) = map(detector.decode, given)
    assert (whole.corners == loose.corners.round()).all()
    assert (whole.corners != loose.corners).any()


def test_a_box_that_is_nothing_at_whole_pixels_is_left_out():
    corners = torch.tensor([[1.6, 2.0, 2.4, 9.0], [1.4, 2.0, 2.6, 9.0]])
    output = {"found": [[corners, torch.tensor([0, 1]), torch.tensor([0.9, 0.8])]]}
    (loose,), (whole,) = (detector.decode({**output, "whole": one}) for one in (False, True))
    assert loose.corners.tolist() == corners.tolist()
    assert whole.corners.tolist() == [[1, 2, 3, 9]]
    assert (whole.labels.tolist(), whole.scores.tolist()) == ([1], loose.scores[1:].tolist())


def test_an_answer_is_json_with_the_surest_first():
    import json

    net = build(size=64)
    (found,) = detector.answer(perfect(BOXES, LABELS), net)
    assert json.loads(json.dumps(found)) == found
    assert [set(one) for one in found] == [{"box", "label", "score"}] * len(found)
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)


def test_sixty_steps_find_a_bright_square():
    net = build(size=64, channels=[8, 16], depth=[1, 1], neck=16)
    images = torch.full((8, 1, 64, 64), 40, dtype=torch.uint8)
    boxes, labels = torch.zeros(8, 1, 4), torch.zeros(8, 1, dtype=torch.int64)
    for row in range(8):
        x = 4 * (row % 4) + 4
        images[row, :, 20:36, x : x + 16] = 220
        boxes[row, 0] = torch.tensor([x, 20, x + 16, 36])
    inputs = {"images": images, "sizes": torch.full((8, 2), 64)}
    batch = Batch(inputs, (boxes, labels), 8.0, 8.0)
    training = find(name="object_detection").settings.DetectorTraining(
        epochs=1, batch_size=8, accumulate=1, schedule="constant", warmup=0.0, clip_norm=None,
        patience=None, monitor="map", log_every=1, save_minutes=5, compile=None, box_weight=5.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.module.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = detector.loss(net.module, batch, training)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5
    net.module.eval()
    with torch.inference_mode():
        found = detector.decode(net.module(**inputs))
    for one, true in zip(found, boxes[:, 0].numpy(), strict=True):
        assert np.abs(one.corners[0] - true).max() < 4


def test_gradients_reach_every_weight():
    net = build(size=64)
    images = torch.randint(0, 256, (2, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    output = net.module(images.to(torch.uint8), torch.full((2, 2), 64))
    heat, boxes, weight = detector.targets(
        BOXES.expand(2, -1, -1), LABELS.expand(2, -1), output["heat"].shape
    )
    loss = detector.focal(output["heat"], heat, torch.ones_like(weight))
    (loss + ((1 - detector.giou(output["boxes"], boxes)) * weight).sum()).backward()
    for parameter in net.module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


class TestAugment:
    def change(self, images, boxes, labels, **config):
        quiet = {"translate": 0.0, "scale": 0.0, "flip": False, "contrast": 0.0, "invert": False}
        change = changes(Augment(**{**quiet, **config}))
        inputs = {"images": images, "sizes": torch.full((len(images), 2), 64)}
        batch = Batch(inputs, (boxes, labels), 1.0, 1.0)
        return change(batch, torch.Generator().manual_seed(0))

    def test_nothing_asked_for_changes_nothing(self):
        images = torch.randint(0, 256, (1, 1, 64, 64)).to(torch.uint8)
        made = self.change(images, BOXES, LABELS)
        assert torch.allclose(made.inputs["images"], images.float(), atol=1e-2)
        assert torch.allclose(made.targets[0][:, :2], BOXES[:, :2])
        assert torch.equal(made.targets[1], LABELS)

    @pytest.mark.parametrize(
        "config",
        [{"translate": 0.2}, {"scale": 0.3}, {"flip": True}, {"translate": 0.1, "scale": 0.2}],
    )
    def test_a_bright_square_stays_in_its_box(self, config):
        count = 16
        images = torch.zeros(count, 1, 64, 64, dtype=torch.uint8)
        images[:, :, 24:40, 20:44] = 255
        boxes = torch.tensor([[20.0, 24, 44, 40]]).repeat(count, 1)[:, None]
        made = self.change(images, boxes, torch.zeros(count, 1, dtype=torch.int64), **config)
        for image, (x1, y1, x2, y2) in zip(
            made.inputs["images"][:, 0], made.targets[0][:, 0].tolist(), strict=True
        ):
            rows, columns = ((image > 127).any(side).nonzero() for side in (1, 0))
            assert abs(rows.min() - y1) <= 1
            assert abs(rows.max() + 1 - y2) <= 1
            assert abs(columns.min() - x1) <= 1
            assert abs(columns.max() + 1 - x2) <= 1

    def test_boxes_are_cut_at_the_border_and_dropped_when_little_is_left(self):
        images = torch.zeros(64, 1, 64, 64, dtype=torch.uint8)
        boxes = torch.tensor([[0.0, 0, 8, 8]]).repeat(64, 1)[:, None]
        made = self.change(images, boxes, torch.zeros(64, 1, dtype=torch.int64), translate=0.2)
        corners, labels = made.targets
        assert corners.min() >= 0
        assert corners.max() <= 64
        kept = (labels >= 0)[:, 0]
        assert 0 < kept.sum() < 64
        sides = corners[kept, 0, 2:] - corners[kept, 0, :2]
        assert (sides.prod(1) > 0.25 * 64).all()

    def test_the_same_generator_gives_the_same_batch(self):
        images = torch.randint(0, 256, (4, 1, 64, 64)).to(torch.uint8)
        boxes, labels = BOXES.repeat(4, 1, 1), LABELS.repeat(4, 1)
        config = {"translate": 0.1, "scale": 0.1, "contrast": 0.3, "invert": True}
        first, second = (self.change(images, boxes, labels, **config) for _ in range(2))
        assert torch.equal(first.inputs["images"], second.inputs["images"])
        assert torch.equal(first.targets[0], second.targets[0])
