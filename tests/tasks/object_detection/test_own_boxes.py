"""Whoever puts images with boxes below raw/ and names their format has a detector of them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.prepared import write
from pipeline.tasks.object_detection.boxes.read import TASK, Images, read
from pipeline.tasks.object_detection.data import load
from pipeline.tasks.object_detection.prepare import prepare
from tests.conftest import copy_of_the_repository, run
from tests.tasks.object_detection.drawn import CLASSES, WRITERS, coco, picture, scenes, source

SPLIT = {"coco": "annotations", "voc": "all", "yolo": "."}
"""What the files are called that `conf/boxes` names."""


def test_images_of_any_size_are_decoded_when_asked_for(tmp_path, monkeypatch):
    """A split of photographs in full size would not fit the memory."""
    coco(tmp_path / "raw", scenes(20))
    write(tmp_path / "data", TASK, prepare(source("coco", tmp_path / "raw"), 0, None), 0)
    decoded = []
    pillow = png.pillow
    monkeypatch.setattr(png, "pillow", lambda *how: decoded.append(how[1]) or pillow(*how))
    _, split = read(tmp_path / "data", "train")
    assert len(split.images) == 12
    assert not decoded
    assert len({image.shape for image in split.images[3:6]}) > 1
    assert decoded == [f"{tmp_path}/data/train.parquet, row {row}" for row in (3, 4, 5)]
    decoded.clear()
    net = SimpleNamespace(settings=SimpleNamespace(size=32))
    batches = load(tmp_path / "data", "train", net, batch_size=12, device=torch.device("cpu"))
    (batch,) = batches.epoch(0)
    assert batch.inputs["images"].shape == (12, 3, 32, 32)
    assert batch.inputs["sizes"].tolist() == [list(image.shape[1:]) for image in split.images]
    assert len(decoded) == 24


def test_an_image_that_is_corrupt_names_its_row():
    good, bad = picture(9, 9, 0), picture(9, 9, 1)[:-60]
    images = Images([good, bad], 3, Path("data/boxes/test.parquet"))
    assert images[-2].shape == (3, 9, 9)
    with pytest.raises(PipelineError, match=r"^data/boxes/test.parquet, row 1: is not an image"):
        list(images)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_repository(tmp_path_factory.mktemp("own"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_own_boxes_are_prepared_learnt_and_measured(kind, clone):
    shutil.rmtree(clone / "raw/boxes", ignore_errors=True)
    WRITERS[kind](clone / "raw/boxes", scenes(60), SPLIT[kind])
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["common"] |= {"profile": "tiny", "threads": 1}
    params["prepare"]["boxes"] = kind
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    ended = run(clone, "dvc", "repro", "prepare@boxes", "train_detector", "evaluate@detector")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    card = json.loads((clone / "data/boxes/dataset.json").read_text())
    assert card["name"] == kind
    assert card["facts"]["classes"] == CLASSES
    assert sum(split["rows"] for split in card["splits"].values()) == 60
    metrics = json.loads((clone / "metrics/detector.json").read_text())
    assert metrics["examples"] == card["splits"]["test"]["rows"] == 12
    assert 0 <= metrics["map_low"] <= metrics["map"] <= metrics["map_high"] <= 1
