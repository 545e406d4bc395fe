"""Boxes on one's own picture, as docs/detection.md draws them; answers as COCO has them."""

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.figures.style import save
from pipeline.task import find
from pipeline.tasks.object_detection.boxes.pictures import LEAST, picture
from pipeline.tasks.object_detection.evaluation.metrics import average_precision, coco_results
from pipeline.tasks.object_detection.settings import Facts
from pipeline.training import net as nets
from tests.conftest import ROOT
from tests.models.presets import preset
from tests.tasks.object_detection.drawn import boxes

ORANGE = np.array([0xD5, 0x5E, 0x00]) / 255


def orange(file: Path) -> np.ndarray:
    """Where a drawn picture is orange, [rows, columns]."""
    return (np.abs(matplotlib.image.imread(file)[..., :3] - ORANGE) < 0.02).all(-1)


@pytest.mark.parametrize(("size", "times"), [((1000, 500), 1), ((80, 40), 10)])
def test_a_picture_has_its_own_pixels_and_a_box_where_one_was_found(tmp_path, size, times):
    Image.new("L", size, 90).save(tmp_path / "in.png")
    box = [size[0] * 0.25, size[1] * 0.5, size[0] * 0.75, size[1] * 0.9]
    answer = [{"box": box, "label": "owl", "score": 0.87}]
    save(picture(tmp_path / "in.png", answer), tmp_path / "out.png")
    drawn = orange(tmp_path / "out.png")
    assert drawn.shape == (size[1] * times, size[0] * times)
    assert max(drawn.shape) >= LEAST
    rows, columns = np.flatnonzero(drawn.sum(1) > drawn.shape[1] / 3), np.flatnonzero(drawn.any(0))
    edges = [columns[0], rows[0], columns[-1], rows[-1]]
    # the name stands above the upper edge
    assert edges[0::2] == pytest.approx([box[0] * times, box[2] * times], abs=6)
    assert edges[3] == pytest.approx(box[3] * times, abs=6)
    assert drawn[: int(box[1] * times)].any()


def test_what_is_no_image_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(PipelineError, match=r"notes\.txt: is not an image that can be read"):
        picture(tmp_path / "notes.txt", [])


def test_the_page_draws_boxes_on_a_picture(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/detection.md").read_text()
    (snippet,) = [one for one in re.findall(r"```python\n(.*?)```", page, re.S) if "save(" in one]
    torch.manual_seed(0)
    small = preset("detector", "ttfnet", size=64, channels=[8, 16], depth=[1, 1], neck=8)
    facts = Facts(classes=["cat", "dog"], channels=1, sizes=[10.0, 20.0], whole=False)
    one = nets.build(find(name="object_detection"), small, facts)
    with torch.no_grad():
        one.module.head.bias[4:] = 2  # sure everywhere
    (tmp_path / "models/detector").mkdir(parents=True)
    nets.save(tmp_path / "models/detector", one)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})  # noqa: S102
    assert "'label': 'cat'" in capsys.readouterr().out
    assert orange(tmp_path / "boxes.png").sum() > 100


def test_cocos_own_reader_finds_in_the_results_what_was_found():
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    truth = [
        boxes((2, 3, 30, 40, 0)), boxes(),
        boxes((5, 5, 25, 25, 1), (40, 8, 60, 30, 0)),
    ]  # fmt: skip
    found = [
        boxes((3, 3, 31, 40, 0, 0.9)), boxes((1, 1, 9, 9, 0, 0.3)),
        boxes((5, 6, 25, 25, 1, 0.8), (44, 8, 63, 30, 0, 0.4)),
    ]  # fmt: skip
    results = json.loads(json.dumps(coco_results(found)))
    assert results[0] == {
        "image_id": 0, "category_id": 0, "bbox": [3.0, 3.0, 28.0, 37.0], "score": 0.9
    }  # fmt: skip
    quiet = {"print_function": lambda *_: None}
    annotations = [
        {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(coco_results(truth), 1)
    ]
    whole = COCO(
        {"images": [{"id": n} for n in range(3)], "annotations": annotations,
         "categories": [{"id": n, "name": str(n)} for n in range(2)]}, **quiet,
    )  # fmt: skip
    judge = COCOeval_faster(whole, whole.loadRes(results), "bbox", **quiet)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == pytest.approx(average_precision(found, truth, 2).map, abs=1e-6)
