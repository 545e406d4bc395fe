"""Whoever puts images with boxes below raw/ and names their format has a detector of them."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import copy_of_the_repository, run
from tests.tasks.object_detection.drawn import CLASSES, WRITERS, scenes

SPLIT = {"coco": "annotations", "voc": "all", "yolo": "."}
"""What the files are called that `conf/boxes` names."""


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
