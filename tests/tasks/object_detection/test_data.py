"""Scenes, and what is read of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.images.mnist import mnist5k
from pipeline.task import find
from pipeline.tasks.object_detection import data
from pipeline.tasks.object_detection import prepare as prepare_boxes
from pipeline.tasks.object_detection.boxes import scenes
from pipeline.tasks.object_detection.boxes.read import TASK, boxes_of, read
from pipeline.training import net as nets
from pipeline.training.net import Net
from tests.data.sources import boxes_source
from tests.models.presets import preset

ROWS = 40


@pytest.fixture(scope="module")
def made():
    return prepare_boxes.prepare(boxes_source(), 0, ROWS)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    place = tmp_path_factory.mktemp("prepared") / "boxes"
    prepared.write(place, TASK, made, 0)
    return place


@pytest.fixture(scope="module")
def net(folder) -> Net:
    settings = preset("detector", "ttfnet", size=64, channels=[4, 8], depth=[1, 1], neck=4)
    return nets.build(find(name=TASK), settings, prepared.read_card(folder).facts)


def some(count: int):
    digits, labels = mnist5k()
    return digits[:count], labels[:count]


class TestScenes:
    def test_a_scene_is_a_function_of_its_number_whatever_the_count(self):
        digits, labels = some(50)
        pictures = scenes.photographs()
        few = scenes.compose(3, digits, labels, pictures, (1, 2))
        many = scenes.compose(5, digits, labels, pictures, (1, 2))
        for one, other in zip(few, many[:3], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        assert not np.array_equal(many[3].image, many[4].image)

    def test_boxes_lie_inside_and_hardly_overlap(self):
        digits, labels = some(200)
        for scene in scenes.compose(60, digits, labels, scenes.photographs(), (0, 0)):
            x1, y1, x2, y2 = scene.boxes.T
            assert (x1 >= 0).all() and (y1 >= 0).all()  # noqa: PT018
            assert (x2 <= scenes.SIDE).all() and (y2 <= scenes.SIDE).all()  # noqa: PT018
            assert ((y2 - y1) >= scenes.SMALLEST).all()
            assert ((y2 - y1) <= scenes.LARGEST).all()
            corners = [tuple(box) for box in scene.boxes.tolist()]
            for number, box in enumerate(corners):
                for other in corners[:number]:
                    assert scenes._overlap(box, other) < scenes.OVERLAP

    def test_some_scenes_are_empty(self):
        digits, labels = some(50)
        found = scenes.compose(200, digits, labels, scenes.photographs(), (0, 0))
        assert 0.03 < np.mean([len(scene.labels) == 0 for scene in found]) < 0.15

    def test_a_box_is_where_the_ink_of_a_digit_was_drawn(self, monkeypatch):
        drawn, paste = [], scenes._paste

        def noted(random, canvas, ink, top, left):
            drawn.append([left, top, left + ink.shape[1], top + ink.shape[0]])
            paste(random, canvas, ink, top, left)

        monkeypatch.setattr(scenes, "_paste", noted)
        digit = np.zeros((28, 28), np.uint8)
        digit[4:20, 10:18] = 255
        assert scenes._ink(digit) == (10, 4, 18, 20)
        (found,) = scenes.compose(1, digit[None], np.array([3]), scenes.photographs(), (0, 0))
        assert len(found.labels)
        assert drawn[-len(found.labels) :] == found.boxes.tolist()


class TestPrepare:
    def test_no_digit_is_in_two_splits(self, monkeypatch):
        used = []
        monkeypatch.setattr(
            prepare_boxes, "compose",
            lambda count, digits, *rest: used.append({one.tobytes() for one in digits})
            or scenes.compose(count, digits, *rest),
        )  # fmt: skip
        prepare_boxes.prepare(boxes_source(), 0, 2)
        train, validation, test = used
        assert len(train) + len(validation) + len(test) == 5000
        assert not train & validation
        assert not train & test
        assert not validation & test

    def test_the_card_says_what_the_splits_share(self, made):
        assert "which all splits share" in made.about["source"]
        assert made.facts.whole

    def test_a_cap_takes_the_first_scenes(self, made):
        few = prepare_boxes.prepare(boxes_source(), 0, 5)
        whole, part = made.splits["test"].data.table, few.splits["test"].data.table
        assert part.column("image").to_pylist() == whole.column("image").to_pylist()[:5]

    def test_load_dataset_shows_images_boxes_and_names(self, folder):
        import datasets

        row = datasets.Dataset.from_parquet(
            str(folder / "test.parquet"), cache_dir=str(folder.parent / "cache")
        )
        assert row.features["image"] == datasets.Image()
        assert row.features["labels"].feature.names == [str(digit) for digit in range(10)]
        assert len(row[0]["boxes"]) == len(row[0]["labels"])


class TestRead:
    def test_what_was_composed_comes_back(self, made, folder):
        _, split = read(folder, "train")
        table = made.splits["train"].data.table
        assert len(split.images) == ROWS
        for one, boxes in zip(split.boxes, table["boxes"].to_pylist(), strict=True):
            assert one.corners.tolist() == boxes

    def test_a_box_without_area_names_its_row(self, made, tmp_path):
        import pyarrow as pa

        table = made.splits["test"].data.table
        rows = table["boxes"].to_pylist()
        row = next(number for number, boxes in enumerate(rows) if boxes)
        rows[row][0][2] = rows[row][0][0]
        place = table.column_names.index("boxes")
        broken = table.set_column(place, "boxes", pa.array(rows, table.schema.field("boxes").type))
        with pytest.raises(PipelineError, match=f"row {row}: has a box without area"):
            boxes_of(broken, 10, tmp_path / "test.parquet")

    def test_a_batch_weighs_as_its_boxes_and_at_least_one_for_an_image(self, folder, net):
        batches = data.load(folder, "train", net, batch_size=8, device=torch.device("cpu"))
        for batch in batches.epoch(0):
            count = (batch.targets[1] >= 0).sum(1)
            assert batch.weight == count.clamp_min(1).sum()

    def test_boxes_are_the_networks_pixels(self, folder, net):
        _, split = read(folder, "train")
        batch = next(
            data.load(folder, "train", net, batch_size=4, device=torch.device("cpu")).epoch(0)
        )
        boxes, labels = batch.targets
        for row in range(4):
            found = boxes[row][labels[row] >= 0]
            assert found.tolist() == (split.boxes[row].corners / 2).tolist()


class TestAnyImage:
    def test_one_that_is_not_square_is_fitted_into_the_upper_left(self, net):
        file = io.BytesIO()
        Image.new("L", (200, 100), 255).save(file, "PNG")
        found = data.encode([file.getvalue()], net)
        assert found["sizes"].tolist() == [[100, 200]]
        image = found["images"][0, 0]
        assert (image[:32] == 255).all()
        assert (image[32:] == data.GREY).all()

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 500), (333, 77), (65, 64)])
    def test_its_longer_side_becomes_the_size(self, height, width):
        rows, columns = data.fitted_sides(height, width, 64)
        assert max(rows, columns) == 64
        assert min(rows, columns) >= 1

    def test_bytes_that_are_no_image_are_a_clear_error(self, net):
        with pytest.raises(ValueError, match="not an image that can be read"):
            data.encode([b"GIF or so"], net)
