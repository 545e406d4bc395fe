"""What all tasks share asks for nothing that only classifiers have."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from pipeline.batches import Batches
from pipeline.checkpoint import Checkpoints
from pipeline.environment import register_tasks
from pipeline.errors import PipelineError
from pipeline.evaluation.learning import learning
from pipeline.evaluation.page import FINDINGS, Page
from pipeline.figures.style import look
from pipeline.hardware import configure
from pipeline.report.numbers import headline, seeds
from pipeline.reproduce import restore
from pipeline.settings import (
    Evaluate,
    Optimizer,
    Profile,
    Settings,
    Stage,
    Tracking,
    Training,
)
from pipeline.task import About, tasks, with_parts
from pipeline.tracking.parents import _row
from pipeline.tracking.provenance import described
from pipeline.training import Loop

ABOUT = About(
    data="table", model="mlp", stage="train_mlp", title="MLP", registered="r", headline="r2",
    unit="number", watched=("r2",),
)  # fmt: skip


def test_the_learning_curves_of_a_score_that_is_no_share(tmp_path):
    row = {"epoch": "1", "lr": "0.1", "train_loss": "30", "validation_loss": "40"}
    curve = [{**row, "validation_r2": "-0.5"}, {**row, "epoch": "2", "validation_r2": "0.25"}]
    page = Page(tmp_path)
    with look():
        learning(page, curve, "mlp", ABOUT, "squared error")
    page.close()
    (figure,) = json.loads((tmp_path / "figures.json").read_text())
    assert "Validation r2 is best after epoch 2 of 2: 0.25." in figure["text"]
    assert (tmp_path / "learning_curves.png").stat().st_size


def test_a_headline_that_falls_is_best_where_it_is_lowest(tmp_path):
    """Of a task whose scores have no loss."""
    about = replace(ABOUT, headline="rmse", falling=frozenset({"rmse"}))
    row = {"epoch": "1", "lr": "0.1", "train_loss": "-30", "validation_rmse": "2.5"}
    page = Page(tmp_path)
    with look():
        learning(page, [row, {**row, "epoch": "2", "validation_rmse": "3"}], "mlp", about, "nats")
    page.close()
    (figure,) = json.loads((tmp_path / "figures.json").read_text())
    assert "Validation rmse is best after epoch 1 of 2: 2.5." in figure["text"]
    rules = {"baseline/mean/rmse": 4.0, "baseline/mean/gain": 1.5}
    rules |= {"baseline/nearest/rmse": 3.0, "baseline/nearest/gain": 0.5}
    assert headline(rules, about) == ("nearest", 3.0, 0.5)


def test_a_data_report_without_findings_can_be_replaced_and_read(tmp_path):
    """The file is what tells an earlier output, and the report reads it."""
    Page(tmp_path).close()
    assert json.loads((tmp_path / FINDINGS).read_text()) == []


def test_a_monitor_that_is_no_score_is_said(tmp_path):
    loop = Training(
        epochs=1, batch_size=4, accumulate=1, schedule="constant", warmup=0.0, clip_norm=None,
        patience=None, monitor="r3", log_every=1, save_minutes=60, compile=None,
    )  # fmt: skip
    tracking = Tracking(
        enabled=False, experiment="x", flush_seconds=1, system_seconds=1, promote=False
    )
    hardware = configure(
        Stage(
            seed=0,
            device="cpu",
            precision="fp32",
            threads=1,
            deterministic=True,
            profile=Profile(max_examples=None, max_steps=None),
            tracking=tracking,
        )
    )
    values = torch.randn(4, 2)
    batches = Batches(4, torch.device("cpu"), lambda i: ({"input": values[i]}, values[i]), 4)
    task: Any = SimpleNamespace(
        loss=lambda module, batch, _: ((module(**batch.inputs) - batch.targets) ** 2).mean(),
        score=lambda module, batches, _: {"loss": 1.0, "r2": 0.5},
    )
    with pytest.raises(PipelineError, match=r"^training\.monitor is 'r3'; the scores are loss, r2"):
        Loop(
            nn.Linear(2, 2), batches, batches, task=task, settings=loop, hardware=hardware, seed=0,
            optimizer=Optimizer(lr=0.1, weight_decay=0, betas=[0.9, 0.9]),
            checkpoints=Checkpoints(tmp_path), log=lambda *_: None,
        ).fit()  # fmt: skip


def test_a_repetition_that_counts_no_equal_answers(tmp_path):
    numbers = {"r2": 0.5, "r2_low": 0.4, "r2_high": 0.6, "difference": 0.1, "p_value": 0.5}
    (tmp_path / "seeds").mkdir()
    for seed in (1, 2):
        text = json.dumps({**numbers, "examples": 9, "r2": 0.5 + seed / 10})
        (tmp_path / f"seeds/mlp-{seed}.json").write_text(text)
    found = seeds(tmp_path, "mlp", "r2", 0.4, [1, 2])
    assert found
    assert not found.agree


def test_what_mlflow_shows_of_a_data_set_are_its_facts(tmp_path):
    card = {"name": "x", "facts": {"names": ["a", "b"]}, "splits": {"test": {"rows": 3}}}
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    assert described(tmp_path)["profile"] == {"rows": {"test": 3}, "names": ["a", "b"]}


def test_the_table_of_a_dvc_process_has_the_headline_of_each_task(monkeypatch):
    own = SimpleNamespace(about=ABOUT)
    monkeypatch.setattr("pipeline.tracking.parents.tasks", lambda: [*tasks(), own])
    run = SimpleNamespace(
        data=SimpleNamespace(metrics={"validation/loss": 3.0, "validation/r2": 0.25}),
        info=SimpleNamespace(end_time=None),
    )
    store: Any = SimpleNamespace(link=lambda _: "link")
    assert "| validation/r2 0.2500 |" in _row(store, "train_mlp", "ran", [], run)


def test_a_task_whose_parts_have_no_switches_may_come_first(monkeypatch):
    bare = SimpleNamespace(settings=SimpleNamespace(Parts=Settings))
    monkeypatch.setattr("pipeline.task.tasks", lambda: [bare, *tasks()])
    parts = with_parts(Evaluate).model_fields["parts"].annotation
    assert parts
    assert "probes" in parts.model_fields


def test_a_config_that_asks_for_the_tasks_resolves_in_place():
    """As `python -m stages.report --cfg job --resolve` shows it."""
    register_tasks()
    config = OmegaConf.create({"data": "${tasks:}"})
    OmegaConf.resolve(config)
    assert config.data == {task.about.model: f"data/{task.about.data}" for task in tasks()}


def test_a_repeated_stage_composes_its_config_and_no_group(tmp_path, monkeypatch):
    """The config that was recorded has all values; a group that nobody chose would be missed."""
    shown = []
    monkeypatch.setattr(restore, "_python", lambda *a, **_: shown.append(a) or _Ended())
    conf = tmp_path / "conf"
    conf.mkdir()
    for file in ("base.yaml", "prepare.yaml"):
        (conf / file).write_text(Path("conf", file).read_text())
    restore._run_stage("prepare", {"seed": 1}, tmp_path, "sqlite:///x")
    written = yaml.safe_load((conf / "prepare.yaml").read_text())
    assert written["defaults"] == ["base", {"override hydra/job_logging": "none"}, "_self_"]
    assert shown[0][2] == "stages.prepare"


class _Ended:
    returncode = 0
    stdout = ""
