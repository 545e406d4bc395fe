"""A box that is ignored is not learnt, and to find it is neither right nor wrong."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.prepared import read_split, write
from pipeline.tasks.object_detection.boxes.read import read
from pipeline.tasks.object_detection.data import load
from pipeline.tasks.object_detection.evaluation.matches import match
from pipeline.tasks.object_detection.evaluation.metrics import average_precision
from pipeline.tasks.object_detection.model import STRIDE, focal, targets
from pipeline.tasks.object_detection.prepare import prepare
from tests.tasks.object_detection.drawn import Drawn, boxes, coco, scenes, source

TRUE = [boxes((0, 0, 10, 10, 0, 1)), boxes((0, 0, 10, 10, 1, 1))]
CROWD = [boxes((20, 20, 60, 60, 0, 0)), boxes()]
RIGHT = (0, 0, 10, 10, 0, 0.5)


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ((22, 22, 30, 30, 0, 0.9), 0),  # within it, however small
        ((40, 40, 78, 60, 0, 0.9), 0),  # for more than half
        ((22, 22, 30, 30, 1, 0.9), 1),  # of another class
        ((50, 50, 90, 90, 0, 0.9), 1),  # for less than half
        ((0, 0, 10, 10, 0, 0.4), 1),  # a duplicate elsewhere
    ],
)
def test_what_lies_on_an_ignored_box_is_not_counted(more, wrong):
    found = [boxes(*sorted([more, RIGHT], key=lambda row: -row[5])), boxes((0, 0, 10, 10, 1, 0.5))]
    made = match(found, TRUE, CROWD)
    assert len(made.score) - made.right[0].sum() == wrong
    assert len(made.true_label) == 2
    precise = average_precision(found, TRUE, 2, ignored=CROWD)
    assert precise.recall == pytest.approx(1)
    assert (precise.map_50 < 1 - 1e-6) == bool(wrong and more[5] > 0.5)
    assert len(match(found, TRUE).score) == 3


def test_a_true_box_within_an_ignored_one_is_still_to_be_found():
    crowd = [boxes((0, 0, 50, 50, 0, 0)), boxes()]
    found = [boxes(RIGHT), boxes()]
    assert match(found, TRUE, crowd).right[:, 0].all()
    assert average_precision(found, TRUE, 1, ignored=crowd).recall == pytest.approx(1)


def test_an_ignored_box_changes_no_gradient_but_takes_its_own_place_out():
    shape, class_ = torch.Size([1, 2, 16, 16]), 1
    box = torch.tensor([[[4.0, 4.0, 20.0, 20.0], [30.0, 30.0, 62.0, 54.0]]])
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gradients, others = [], []
    for label in (-1, -2 - class_):
        heat, *rest = targets(box, torch.tensor([[0, label]]), shape)
        (gradient,) = torch.autograd.grad(focal(logits, heat, torch.ones_like(heat[:, 0])), logits)
        gradients.append(gradient)
        others.append(rest)
    without, with_ignored = gradients
    middles = (torch.arange(16) + 0.5) * STRIDE
    across, down = ((low < middles) & (middles < high) for low, high in ((30, 62), (30, 54)))
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[0, class_] = down[:, None] & across
    assert inside.sum() == 7 * 5
    assert with_ignored[inside].abs().max() < 1e-12 < without[inside].abs().min()
    assert torch.equal(with_ignored[~inside], without[~inside])
    for one, other in zip(*others, strict=True):
        assert torch.equal(one, other)


def test_crowds_of_coco_come_to_the_batches_as_what_they_are(tmp_path):
    crowd = Drawn(64, 32, [(2, (8.0, 4.0, 40.0, 30.0), True), (0, (1.0, 2.0, 9.0, 8.0), False)])
    coco(tmp_path / "raw", [*scenes(12), *[crowd] * 6])
    made = prepare(source("coco", tmp_path / "raw"), 0, None)
    write(tmp_path / "data", "object_detection", made, 0)
    _, table = read_split(tmp_path / "data", "train", "object_detection")
    crowded = [sum(row) for row in table["ignore"].to_pylist()]
    assert 0 < sum(crowded) < len(crowded)
    _, split = read(tmp_path / "data", "train")
    assert [len(one.labels) for one in split.ignored] == crowded
    assert not [one for one in split.boxes if (one.scores != 1).any()]

    net = SimpleNamespace(settings=SimpleNamespace(size=32))
    batches = load(tmp_path / "data", "train", net, batch_size=99, device=torch.device("cpu"))
    (batch,) = batches.epoch(0)
    corners, labels = batch.targets
    assert (labels < -1).sum(1).tolist() == crowded
    assert (labels >= 0).sum(1).tolist() == [len(one.labels) for one in split.boxes]
    assert set(labels[labels < -1].tolist()) == {-2 - 2}
    assert corners[labels < -1][0].tolist() == [4, 2, 20, 15]
