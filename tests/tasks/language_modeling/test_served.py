"""What a served language model takes and says."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.settings import Tracking
from tests.tasks.language_modeling.conftest import TASK, adapted, stirred
from tests.tracking.answers import fresh, log, logged


@pytest.mark.slow
def test_a_language_model_goes_on_with_texts_where_its_base_is_not(
    workspace: Path, settings: Tracking, client: Any, tmp_path: Path, base: Path, facts: Any
) -> None:
    """The file with the frozen weights went along, and no package that has it is asked for."""
    file = tmp_path / "own.gguf"
    file.write_bytes(base.read_bytes())
    net = stirred(adapted(file), facts)
    log(settings, net, "A film", tmp_path)
    file.unlink()
    model = logged(client, settings.experiment)
    answers = fresh(
        workspace,
        model.model_id,
        [],
        "['A film', 'The end of it was ' * 30, {'prompt': 'A film?'}]",
    )
    assert [set(answer) for answer in answers] == [{"text"}] * 4
    assert answers[0] == answers[3]
    with torch.inference_mode():
        here = TASK.model.answer(net.module(**TASK.data.encode(["A film"], net)), net)
    assert answers[0] == here[0]
    place = client.get_logged_model(model.model_id).artifact_location.removeprefix("file://")
    assert "smollm2" not in (Path(place) / "requirements.txt").read_text()
    assert (Path(place) / "artifacts/language_model/base.gguf").is_file()
