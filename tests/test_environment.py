"""What a variable of the environment holds is used, and stands in nothing that is written."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import conf_files
from pipeline.environment import resolved
from pipeline.errors import PipelineError
from pipeline.settings import Train
from pipeline.stage import Context, stage
from pipeline.task import find
from pipeline.tracking import Run, delivery
from pipeline.training.net import Net
from pipeline.training.stage import _written
from tests.conftest import composed, schemas

CARD = type("Card", (), {"digest": "0", "task": "image_classification"})
SECRET = "se/kret-91c4"


@pytest.fixture
def compose(own_conf: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose a stage's config with PLACE, SEED and MODEL in the environment."""
    for name, value in {"PLACE": SECRET, "SEED": "12", "MODEL": "cnn"}.items():
        monkeypatch.setenv(name, value)

    def run(*argv: str, stage: str = "train_cnn") -> list[Any]:
        return composed(stage, *argv)

    return run


def of(values: Any, path: str) -> Any:
    for step in path.split("."):
        values = values[step]
    return values


class TestConfig:
    @pytest.mark.parametrize(
        ("key", "written", "value"),
        [
            ("data", "${oc.env:PLACE}", SECRET),
            ("data", "${oc.env:PLACE}/x", f"{SECRET}/x"),
            ("data", "${oc.env:NOTHING,${oc.env:PLACE}}", SECRET),
            ("data", "${oc.decode:${oc.env:PLACE}}", SECRET),
            ("data", "${oc.select:tracking.experiment}", SECRET),
            ("data", "${hydra:sweep.dir}", SECRET),
            ("data", "${.curve}", f"{SECRET}.csv"),
            ("seed", "${oc.decode:${oc.env:SEED}}", 12),
        ],
    )
    def test_a_value_that_depends_on_a_variable_is_written_as_it_was_said(
        self, compose, key, written, value
    ):
        ((settings, said),) = compose(
            f"{key}='{written}'", "curve=${oc.env:PLACE}.csv", "hydra.sweep.dir=${oc.env:PLACE}",
            "tracking.experiment=${oc.env:PLACE}",
        )  # fmt: skip
        assert getattr(settings, key) == value
        assert said.config[key] == written
        assert said.config["optimizer"] == settings.optimizer.model_dump()
        assert SECRET not in json.dumps(said.config)
        assert said.conceal(f"{SECRET}/x is missing") == "${oc.env:PLACE}/x is missing"

    def test_wherever_it_was_said(self, compose):
        own = conf_files.CONF / "train_cnn.yaml"
        own.write_text(own.read_text().replace("data: data/image", "data: ${oc.env:PLACE}"))
        params = yaml.safe_load(conf_files.PARAMS.read_text())
        params["train_cnn"]["curve"] = "${data}/curve.csv"
        conf_files.PARAMS.write_text(yaml.safe_dump(params))
        ((settings, said),) = compose()
        assert (settings.data, settings.curve) == (SECRET, f"{SECRET}/curve.csv")
        assert said.config["data"] == "${oc.env:PLACE}"
        assert said.config["curve"] == "${data}/curve.csv"

    def test_a_reference_that_is_chosen_by_a_variable_stays_one(self, compose):
        ((settings, said),) = compose("model=${oc.env:MODEL}", stage="evaluate")
        assert settings.data == "data/image"
        assert said.config["model"] == "${oc.env:MODEL}"
        assert said.config["data"] == "data/${task:${model},data}"
        assert resolved(said.config)["data"] == "data/image"

    def test_a_default_is_no_secret(self, compose):
        ((_, said),) = compose("data='${oc.env:NOTHING,data/image}'")
        assert said.config["data"] == "data/image"

    def test_a_sweep_below_a_variables_folder_writes_the_reference(self, compose, tmp_path):
        (tmp_path / SECRET).mkdir(parents=True)
        for settings, said in compose("-m", "seed=1,2", "hydra.sweep.dir=${oc.env:PLACE}"):
            assert settings.output.startswith(SECRET)
            assert SECRET not in json.dumps(said.config)
            assert resolved(said.config)["output"] == "models/cnn"

    @pytest.mark.parametrize(
        "override",
        [
            "seed=${oc.env:PLACE}", "device=${oc.env:PLACE}", "cnn.name=${oc.env:PLACE}",
            "data='${x.${oc.env:PLACE}}'", "hydra.run.dir='${x.${oc.env:PLACE}}'",
        ],
    )  # fmt: skip
    def test_no_message_has_the_value(self, compose, capsys, override):
        with pytest.raises(SystemExit):
            compose(override)
        (said,) = capsys.readouterr().err.splitlines()
        assert SECRET not in said
        assert "${oc.env:PLACE}" in said

    def test_a_logged_config_without_its_variable_is_one_line(self):
        with pytest.raises(PipelineError, match=r"data: .*'NOTHING' not found"):
            resolved({"data": "${oc.env:NOTHING}"})


class TestStage:
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
        # the journal is what is looked at; a sender would replay it and clear it away
        monkeypatch.setattr(delivery, "_start_sender", lambda journal: None)

    def written(self, tmp_path: Path) -> str:
        files = [file for file in (tmp_path / "root").rglob("*") if file.is_file()]
        assert {"identity.json", "begin.json"} <= {file.name for file in files}
        return "\n".join(file.read_text(errors="replace") for file in files)

    def start(self, compose, body) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sys, "argv", [
                    "train_cnn", "data=${oc.env:PLACE}/image", "curve=${data}.csv",
                    "tracking.flush_seconds=0.1",
                ],
            )  # fmt: skip
            with pytest.raises(SystemExit):
                stage("train_cnn", lambda: schemas()["train_cnn"], computes=False)(body)()

    def test_neither_the_journal_nor_the_state_of_a_training_has_the_value(
        self, compose, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / SECRET / "image").mkdir(parents=True)
        monkeypatch.setattr("pipeline.stage.read_card", lambda _: CARD)

        def body(settings: Train, context: Context) -> float:
            assert settings.data == f"{SECRET}/image"
            Path(settings.curve).write_text("")
            context.run.input(Path(settings.curve), name="curve")
            context.run.output(Path(settings.curve))
            context.run.artifact(Path(settings.data) / "nothing")
            raise PipelineError(f"{settings.data} is empty")

        self.start(compose, body)
        said = self.written(tmp_path) + capsys.readouterr().err
        assert SECRET not in said
        assert "PipelineError: ${oc.env:PLACE}/image is empty" in said
        assert "output.${oc.env:PLACE}/image.csv" in said

    def test_another_value_is_another_training(self, compose, tmp_path, monkeypatch):
        monkeypatch.setattr("pipeline.stage.read_card", lambda _: CARD)

        def body(settings: Train, context: Context) -> float:
            folders.append(context.checkpoints.folder)
            raise PipelineError("enough")

        folders: list[Path] = []
        for value in (SECRET, SECRET, "another"):
            monkeypatch.setenv("PLACE", value)
            self.start(compose, body)
        assert folders[0] == folders[1] != folders[2]


def test_the_model_is_described_by_the_reference(compose):
    task = find(model="transformer")
    ((settings, said),) = compose("transformer.name='${oc.env:PLACE}/base'", stage=task.about.stage)
    net = Net(task, settings.transformer, None, torch.nn.Identity())
    assert net.settings.name == f"{SECRET}/base"
    assert _written(net, Context(Run(), said)).settings.name == "${oc.env:PLACE}/base"


def test_a_repeated_training_is_given_references(compose, monkeypatch):
    from stages import repeat

    started: list[list[str]] = []

    def start(command: list[str], **_: Any) -> Any:
        started.append(command)
        raise PipelineError("enough")

    ((settings, said),) = compose(
        "model=cnn", "again=1", "data=${oc.env:PLACE}", "overrides=['curve=${oc.env:PLACE}.csv']",
        stage="repeat",
    )  # fmt: skip
    monkeypatch.setattr(repeat.subprocess, "Popen", start)
    with pytest.raises(PipelineError):
        repeat._train(settings, said.conceal)
    assert "data='${oc.env:PLACE}'" in started[0]
    assert SECRET not in " ".join(started[0])
