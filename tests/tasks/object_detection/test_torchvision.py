"""torchvision's detectors are trained, resumed, saved, measured and asked as the project's own."""

import hashlib
import re

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.task import find
from pipeline.tasks.object_detection import model as detector
from pipeline.tasks.object_detection.settings import Facts
from pipeline.training import net as nets
from pipeline.training.batches import Batch
from tests.models.presets import names, preset
from tests.tasks import test_contract as contract
from tests.tasks.test_contract import (
    House,
    settings,
    test_a_network_that_was_saved_answers_the_same,
    test_a_training_that_was_stopped_goes_on_to_the_same_bits,
    test_encode_gives_what_load_gives,
)

__all__ = [
    "test_a_network_that_was_saved_answers_the_same",
    "test_a_training_that_was_stopped_goes_on_to_the_same_bits",
    "test_encode_gives_what_load_gives",
]
TASK = find(name="object_detection")
FACTS = Facts(classes=["a", "b", "c"], channels=1, sizes=[10.0, 20.0], whole=False)
KNOWN = sorted(set(names("detector")) - {"ttfnet"})
EACH = [name if name == "ssdlite" else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN]


@pytest.fixture(scope="module", params=EACH)
def house(request, tmp_path_factory):
    threads = torch.get_num_threads()
    found = House(TASK, tmp_path_factory.mktemp("house"))
    found.train = settings(
        "train_detector", f"detector={request.param}", "detector.size=64", "training.batch_size=8",
        "optimizer.name=adamw", "optimizer.lr=0.001",
    )  # fmt: skip
    yield found
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def trained(house, tmp_path_factory):
    one = house.build()
    return one, house.fit(one, tmp_path_factory.mktemp("states")), None


def build(name="ssdlite", facts=FACTS, **changes):
    torch.manual_seed(0)
    return nets.build(TASK, preset("detector", name, **{"size": 64, **changes}), facts)


def squares(count=8):
    """Grey images of a bright square, or a dark one of another class, and its box."""
    images = torch.full((count, 1, 64, 64), 110, dtype=torch.uint8)
    boxes, labels = torch.zeros(count, 1, 4), torch.arange(count)[:, None] % 2
    for row in range(count):
        x = 4 * (row % 4) + 4
        images[row, :, 20:44, x : x + 24] = 250 - 240 * (row % 2)
        boxes[row, 0] = torch.tensor([x, 20, x + 24, 44])
    inputs = {"images": images, "sizes": torch.full((count, 2), 64)}
    return Batch(inputs, (boxes, labels), float(count), float(count))


def test_the_presets_are_torchvisions_three():
    assert KNOWN == ["faster_rcnn", "fcos", "ssdlite"]
    assert sum(parameter.numel() for parameter in build().module.parameters()) == 2_234_240


def test_eval_gives_boxes_and_no_loss_so_only_precision_is_scored(house, trained):
    one, progress, _ = trained
    assert set(house.score(one)) == {"map", "map_50"}
    assert list(progress.curve[-1])[4:] == ["validation_map", "validation_map_50"]


def test_to_go_by_the_loss_is_refused_at_the_start(capsys):
    with pytest.raises(SystemExit):
        settings("train_detector", "detector=ssdlite", "training.monitor=loss")
    said = capsys.readouterr().err
    assert re.fullmatch(r".*training\.monitor is 'loss'; .* map or map_50\n", said), said
    assert settings("train_detector", "training.monitor=loss").training.monitor == "loss"


def test_a_batch_too_small_for_its_norms_is_one_line():
    with pytest.raises(PipelineError, match=r"^a batch of 1 .* training\.batch_size") as caught:
        detector.loss(build().module, squares(1), None)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_its_evaluation_measures_and_draws(house, trained, tmp_path):
    contract.test_every_part_of_the_evaluation_measures_and_draws(house, trained, tmp_path)


@pytest.mark.slow
def test_the_training_finds_squares_and_tells_them_apart():
    one, batch = build(), squares()
    optimizer = torch.optim.AdamW(one.module.parameters(), lr=0.003)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = detector.loss(one.module, batch, None)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    one.module.eval()
    for module in one.module.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()  # its running means are made for thousands of steps
    with torch.inference_mode():
        found = detector.decode(one.module(**batch.inputs))
    for boxes, true, label in zip(found, *batch.targets, strict=True):
        assert boxes.labels[0] == label.item()
        assert abs(boxes.corners[0] - true[0].numpy()).max() < 6


def test_a_grey_image_is_one_whose_channels_are_alike():
    coloured = FACTS.model_copy(update={"channels": 3})
    found = []
    for facts in (FACTS, coloured):
        one, inputs = build(facts=facts), dict(squares(2).inputs)
        inputs["images"] = inputs["images"].expand(-1, facts.channels, -1, -1)
        one.module.eval()
        with torch.inference_mode():
            found.append(detector.decode(one.module(**inputs)))
    for first, second in zip(*found, strict=True):
        assert len(first.scores)
        assert (first.corners == second.corners).all()
        assert (first.scores == second.scores).all()


def test_boxes_come_back_in_pixels_of_the_image_as_it_came():
    one, inputs = build().module.eval(), squares(1).inputs
    with torch.inference_mode():
        (here,) = detector.decode(one(**inputs))
        (large,) = detector.decode(one(inputs["images"], torch.tensor([[128, 256]])))
    assert len(here.scores)
    assert large.corners.max() <= 256
    assert large.corners[:, 1::2].max() <= 128
    # what lies below 32 is no part of the image
    seen = here.corners[here.corners[:, 1] < 32] * 4
    assert 0 < len(seen) < len(here.corners)
    assert large.corners == pytest.approx(seen.clip(max=[256, 128, 256, 128]), abs=1e-3)


@pytest.mark.parametrize("name", EACH)
def test_boxes_are_where_they_are_in_float32_whatever_autocast_says(name):
    one = build(name, size=160).module.eval()
    for where, part in one.net.named_modules():
        if re.search(r"bbox_(pred|reg)$|regression_head\.module_list\.\d\.1$", where):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.constant_(part.bias, 7 / 128)  # alike in both types
    last = getattr(one.net, "roi_heads", one.net)
    last.score_thresh, last.nms_thresh, last.detections_per_img = 0.0, 1.0, 10**6
    last.topk_candidates = 10**6
    if name == "faster_rcnn":
        one.net.rpn.nms_thresh = 1.0
        one.net.rpn._pre_nms_top_n = one.net.rpn._post_nms_top_n = {"testing": 10**6}
    inputs = {"images": squares(1).inputs["images"].repeat(1, 1, 3, 3)[..., :160, :160]}
    inputs["sizes"] = torch.tensor([[160, 160]])
    every = []
    for enabled in (False, True):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            ((corners, labels, _),) = one(**inputs)["found"]
        every.append(corners[labels == 0].unique(dim=0))
    exact, found = every
    assert len(found) > 500
    assert torch.cdist(found, exact, p=torch.inf).amin(1).max() < 1e-3


def test_what_lies_under_an_ignored_box_is_not_seen_in_training():
    one = build()
    box = torch.tensor([[4.0, 4, 28, 28], [20.0, 20, 52, 52]]).repeat(2, 1, 1)
    labels = torch.tensor([[0, -3]] * 2)
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (2, 1, 64, 64), generator=generator, dtype=torch.uint8)
    losses = []
    for place in (None, (40, 40), (24, 24), (60, 60)):
        images = base.clone()
        if place:
            images[:, :, place[0], place[1]] ^= 128
        inputs = {"images": images, "sizes": torch.full((2, 2), 64)}
        with torch.no_grad():
            loss = detector.loss(one.module, Batch(inputs, (box, labels), 2.0, 2.0), None)
        losses.append(loss.item())
    plain, ignored, true, elsewhere = losses
    assert plain == ignored
    assert plain != true
    assert plain != elsewhere


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """As torchvision's files: of another number of classes."""
    path = tmp_path_factory.mktemp("weights") / "ssdlite.pth"
    coco = FACTS.model_copy(update={"classes": [str(number) for number in range(90)]})
    torch.manual_seed(7)
    one = nets.build(TASK, preset("detector", "ssdlite", size=64), coco)
    torch.save(one.module.net.state_dict(), path)
    return path


class TestWeights:
    def given(self, file):
        return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    def test_all_but_the_classes_come_from_a_file_and_go_with_the_model(self, file, tmp_path):
        held, state = torch.load(file), build(weights=self.given(file)).module.net.state_dict()
        for name, value in state.items():
            alike = held[name].shape == value.shape
            assert alike != bool(re.search(r"classification_head\.module_list\.\d\.1\.", name)), (
                name
            )
            assert not alike or torch.equal(held[name], value), name

    @pytest.mark.parametrize("name", EACH)
    def test_the_classes_are_new_even_where_there_are_as_many(self, name, tmp_path):
        path, new = tmp_path / "own.pth", build(name).module.net.state_dict()
        held = {key: value + 1 for key, value in new.items()}
        torch.save(held, path)
        state = build(name, weights=self.given(path)).module.net.state_dict()
        own = [key for key, value in state.items() if torch.equal(value, new[key])]
        assert {key for key in state if not torch.equal(state[key], held[key])} == set(own)
        layers = {"fcos": "cls_logits", "faster_rcnn": "box_predictor", "ssdlite": "classification"}
        assert own
        assert all(layers[name] in key for key in own)
        assert len(own) == {"fcos": 2, "faster_rcnn": 4, "ssdlite": 12}[name]

    def test_a_saved_model_needs_the_file_no_more(self, file, tmp_path):
        other = tmp_path / "own.pth"
        other.write_bytes(file.read_bytes())
        one = build(weights=self.given(other))
        (tmp_path / "model").mkdir()
        nets.save(tmp_path / "model", one)
        other.unlink()
        again = nets.load(tmp_path / "model")
        assert again.settings == one.settings
        for name, value in one.module.state_dict().items():
            assert torch.equal(value, again.module.state_dict()[name]), name

    def test_a_wrong_file_or_none_is_one_line(self, file, tmp_path):
        with pytest.raises(PipelineError, match=r"^detector\.weights: .*sha256 .*, expected 0000"):
            build(weights={"file": str(file), "sha256": "0" * 64})
        with pytest.raises(PipelineError, match=r"^detector\.weights: .*none\.pth can't be read"):
            build(weights={"file": str(tmp_path / "none.pth"), "sha256": "0" * 64})
        for content in (b"no weights", b""):
            bad = tmp_path / "bad.pth"
            bad.write_bytes(content)
            with pytest.raises(PipelineError, match=r"^detector\.weights: .*is no file of weights"):
                build(weights=self.given(bad))
        odd = tmp_path / "odd.pth"
        torch.save({"backbone.x": torch.zeros(3)}, odd)
        with pytest.raises(PipelineError, match=r"^detector\.weights: .*not of ssdlite320.*lacks"):
            build(weights=self.given(odd))
