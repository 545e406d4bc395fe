"""What all tasks share asks for nothing that only classifiers have."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

import pipeline.tasks
from pipeline import conf_files
from pipeline.environment import register_tasks
from pipeline.errors import PipelineError
from pipeline.evaluation.learning import learning
from pipeline.figures.page import FINDINGS, Page
from pipeline.figures.style import look
from pipeline.files import refuse_foreign, write_json
from pipeline.report.numbers import headline, seeds
from pipeline.reproduce import restore
from pipeline.settings import Evaluate, Optimizer, Settings, Training
from pipeline.stage import _digest_of_code
from pipeline.task import About, Task, tasks, with_parts
from pipeline.tracking.masking import masked
from pipeline.tracking.parents import _row
from pipeline.tracking.provenance import described
from pipeline.training import net
from pipeline.training import stage as training_stage
from pipeline.training.batches import Batches
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import configure
from pipeline.training.loop import Loop
from pipeline.training.stage import shipped, training
from stages import evaluate, prepare, repeat
from tests.conftest import ROOT, run, stage_settings
from tests.test_your_own_task import ADDED, blocks, merged

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
    page.close("model")
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
    page.close("model")
    (figure,) = json.loads((tmp_path / "figures.json").read_text())
    assert "Validation rmse is best after epoch 1 of 2: 2.5." in figure["text"]
    rules = {"baseline/mean/rmse": 4.0, "baseline/mean/gain": 1.5}
    rules |= {"baseline/nearest/rmse": 3.0, "baseline/nearest/gain": 0.5}
    assert headline(rules, about) == ("nearest", 3.0, 0.5)


def test_a_data_report_without_findings_can_be_replaced_and_read(tmp_path):
    """The file is what tells an earlier output, and the report reads it."""
    page = Page(tmp_path)
    page.numbers["rows"] = 3  # a task may keep its counts there
    page.close("data")
    assert json.loads((tmp_path / FINDINGS).read_text()) == []


def test_a_monitor_that_is_no_score_is_said(tmp_path):
    loop = Training(
        epochs=1, batch_size=4, accumulate=1, schedule="constant", warmup=0.0, clip_norm=None,
        patience=None, monitor="r3", log_every=1, save_minutes=60, compile=None,
    )  # fmt: skip
    hardware = configure(stage_settings())
    values = torch.randn(4, 2)
    batches = Batches(4, torch.device("cpu"), lambda i: ({"input": values[i]}, values[i]), 4)
    task: Any = SimpleNamespace(
        loss=lambda module, batch, _: ((module(**batch.inputs) - batch.targets) ** 2).mean(),
        score=lambda module, batches, _: {"loss": 1.0, "r2": 0.5},
    )
    with pytest.raises(PipelineError, match=r"^training\.monitor is 'r3'; the scores are loss, r2"):
        Loop(
            nn.Linear(2, 2), batches, batches, task=task, settings=loop, hardware=hardware, seed=0,
            optimizer=Optimizer(name="adamw", lr=0.1, weight_decay=0, betas=[0.9, 0.9]),
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


class House:
    """A workspace with the task of docs/your-own-task.md, whose stages run in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.tasks, self._capsys = folder, folder / "pipeline/tasks", capsys
        for name in ("pipeline", "conf"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        for path, text in blocks().items():
            if path in ADDED:
                old = yaml.safe_load((ROOT / path).read_text())
                text = yaml.safe_dump(merged(old, yaml.safe_load(text)), sort_keys=False)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)

    def edit(self, file: str, old: str, new: str) -> None:
        """Change a module of the task."""
        path = self.tasks / "regression" / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def start(self, main: Callable[[], None], *overrides: str) -> str:
        """Run a stage; what it says on standard error, one line when it fails."""
        common = ["profile=tiny", "tracking=off", "device=cpu", "precision=fp32", "threads=1"]
        self._capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["stage", *common, *overrides])
            ended = 0
            try:
                main()
            except SystemExit as error:
                ended = error.code
        said = self._capsys.readouterr().err if ended else ""
        assert said.count("\n") == bool(ended)
        return said

    def forget(self) -> None:
        """Let the modules of the tasks be loaded anew."""
        for name in list(sys.modules):
            if name.startswith(("pipeline.tasks.regression", "pipeline.tasks.other")):
                del sys.modules[name]

    def trained(self) -> None:
        """Prepare the data and train the model."""
        assert not self.start(prepare.main, "modality=table")
        assert not self.start(training("regression"))


@pytest.fixture
def house(tmp_path, monkeypatch, capsys) -> Iterator[House]:
    own = House(tmp_path, capsys)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, place in (("ROOT", ""), ("CONF", "conf"), ("PARAMS", "params.yaml")):
        monkeypatch.setattr(conf_files, name, tmp_path / place)
    monkeypatch.setattr("pipeline.task.TASKS", own.tasks)
    monkeypatch.setattr(pipeline.tasks, "__path__", [*pipeline.tasks.__path__, str(own.tasks)])
    threads = torch.get_num_threads()
    yield own
    own.forget()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("float('nan')", "nan"), ("torch.tensor(error)", "tensor("), ("float('inf')", "inf"),
        ("'0.5'", "'0.5'"),
    ],
)  # fmt: skip
def test_a_score_that_is_no_finite_number_is_named(house, value, shown):
    house.edit("model.py", '"r2": 1 - error / target.var(correction=0).item()', f'"r2": {value}')
    assert not house.start(prepare.main, "modality=table")
    said = house.start(training("regression"))
    assert said.startswith(f"error: pipeline.tasks.regression.model.score: r2 is {shown}")
    assert not (house.folder / "models").exists()


def test_an_evaluation_is_checked_before_anything_is_replaced(house):
    house.trained()
    assert not house.start(evaluate.main, "model=mlp")
    before = {p: p.read_bytes() for top in ("metrics", "plots") for p in files(house.folder / top)}
    show = house.tasks / "regression/show.py"
    whole = show.read_text()
    numbers, predictions = '"examples": len(pairs)}', 'table = {"score": _score(study.pairs), "'
    where = "pipeline/tasks/regression/show.py, PARTS"
    for old, new, said in (
        (numbers, numbers.replace("}", ', "gain": float("nan")}'), f"{where}: gain is nan"),
        ('"r2_low": low, ', "", f"{where}: r2_low is missing"),
        (
            "    pq.write_table",
            "    return\n    pq.write_table",
            f"{where}: predictions.parquet is",
        ),
        (predictions, predictions.replace("score", "scores", 1), f"{where}: predictions.parquet"),
        ("    pq.write_table(pa.table(table)", "    pq.write_table(pa.table(table)[1:]", where),
    ):
        show.write_text(whole)
        house.edit("show.py", old, new)
        house.forget()
        assert house.start(evaluate.main, "model=mlp").startswith(f"error: {said}"), new
    after = {p: p.read_bytes() for top in ("metrics", "plots") for p in files(house.folder / top)}
    assert after == before


def test_metrics_with_many_numbers_before_the_headline_are_an_earlier_output(tmp_path):
    (output,) = (one for one in Evaluate.model_fields["metrics"].metadata if one)
    numbers = {f"precision/{name}": 0.5 for name in range(500)} | {"r2_high": 0.5}
    write_json(tmp_path / "mlp.json", numbers)
    refuse_foreign(tmp_path / "mlp.json", output.kind, output.mark)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_repetition_without_its_difference_is_named(house, monkeypatch):
    house.edit("show.py", 'numbers["difference"] =', "_ =")
    house.trained()
    shutil.copytree(house.folder / "models/mlp", house.folder / "models/seeds/mlp-1/mlp")
    monkeypatch.setattr(repeat, "_train", lambda *_: None)
    said = house.start(repeat.main, "model=mlp", "again=1")
    where = "pipeline/tasks/regression/show.py, repetition"
    assert said.startswith(f"error: {where}: difference is missing")
    assert not (house.folder / "metrics").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('data="table"', 'data="other"', "'other' is ABOUT.data in {} and ABOUT.data in {}"),
        ('model="mlp"', 'model="net"', "'net' is ABOUT.model in {} and ABOUT.model in {}"),
        ('data="table"', 'data="net"', "'net' is ABOUT.data in {} and ABOUT.model in {}"),
        ('stage="train_mlp"', 'stage="train_other"', "'train_other' is ABOUT.stage in {} and"),
        ('registered="table-r', 'registered="other-r', "'other-regressor' is ABOUT.registered in"),
    ],
)
def test_two_tasks_of_one_name_are_both_named(house, old, new, said):
    other(house)
    house.edit("settings.py", old, new)
    line = house.start(prepare.main, "modality=image")
    assert line.startswith(
        "error: " + said.format("pipeline/tasks/regression", "pipeline/tasks/other")
    )


def other(house: House) -> None:
    """A second task that is the first one's twin, with names of its own."""
    folder = house.tasks / "other"
    folder.mkdir()
    text = (house.tasks / "regression/settings.py").read_text()
    for old, new in (
        ('"table"', '"other"'), ('"mlp"', '"net"'), ('"train_mlp"', '"train_other"'),
        ('"table-regressor"', '"other-regressor"'),
    ):  # fmt: skip
        text = text.replace(old, new)
    (folder / "settings.py").write_text(text)
    shutil.copytree(house.folder / "conf/table", house.folder / "conf/other")
    params = yaml.safe_load((house.folder / "params.yaml").read_text())
    params["prepare"]["other"] = "diabetes"
    (house.folder / "params.yaml").write_text(yaml.safe_dump(params))


def test_two_switches_of_one_name_and_two_types_are_refused_too(house):
    other(house)
    assert not house.start(prepare.main, "modality=table")
    house.forget()
    for kind in ("bool", "int"):
        for name, own in (("other", "bool"), ("regression", kind)):
            with (house.tasks / name / "settings.py").open("a") as file:
                file.write(f"\n\nclass Parts(Settings):\n    scatter: {own}\n")
        said = house.start(prepare.main, "modality=table")
        house.forget()
        assert bool(said) == (kind == "int")
    assert said.startswith("error: 'scatter' is a setting of Parts in pipeline/tasks/regression ")
    assert "and a setting of Parts in pipeline/tasks/other" in said


def test_facts_of_any_kind_that_json_holds_are_read_as_they_were(house):
    house.edit("settings.py", "    names: list[str]", "    place: Path\n    names: tuple[str, ...]")
    house.edit(
        "settings.py",
        "from pipeline import settings",
        "from pathlib import Path\n\nfrom pipeline import settings",
    )
    house.edit("prepare.py", "Facts(names=names", "Facts(place=Path('a'), names=tuple(names)")
    house.edit("prepare.py", "import numpy as np", "from pathlib import Path\n\nimport numpy as np")
    house.trained()
    facts = net.load(house.folder / "models/mlp").facts
    assert facts.place == Path("a")
    assert facts.names[-1] == "target"
    assert not house.start(evaluate.main, "model=mlp")


@pytest.mark.parametrize(
    ("kind", "value", "fault"),
    [
        ("Any", "mean", "Unable to serialize unknown type: <class 'numpy.ndarray'>"),
        ("Any", "np.float32(1)", "Unable to serialize unknown type: <class 'numpy.float32'>"),
        ("Any", "(1, 2)", "more=(1, 2)"),
        ("Any", "object()", "Unable to serialize unknown type"),
    ],
)
def test_facts_that_json_does_not_hold_are_refused(house, kind, value, fault):
    house.edit("settings.py", "    names: list[str]", f"    more: {kind}\n    names: list[str]")
    house.edit(
        "settings.py",
        "from pipeline import settings",
        "from typing import Any\n\nfrom pipeline import settings",
    )
    house.edit("prepare.py", "Facts(names", f"Facts(more={value}, names")
    said = house.start(prepare.main, "modality=table")
    assert said.startswith("error: pipeline/tasks/regression: dataset.json can't hold its Facts (")
    assert fault in said
    assert not (house.folder / "data").exists()


def test_a_modules_place_says_whether_it_counts_and_is_shipped(house, monkeypatch, tmp_path):
    """A task may call its own modules as the house calls those that a training does without."""
    own = house.tasks / "regression/report"
    (own / "regression").mkdir(parents=True)
    for folder in (own, own / "regression"):
        (folder / "show.py").write_text("")
    away = house.tasks / "other/regression"
    away.mkdir(parents=True)
    (house.tasks / "classification").mkdir()  # a task of that name
    monkeypatch.setattr(
        training_stage, "__file__", str(house.folder / "pipeline/training/stage.py")
    )
    found = shipped(Task("regression"), tmp_path / "shipped")
    assert (found / "tasks/regression/report/regression/show.py").exists()
    assert (found / "classification/model.py").exists()
    assert sorted(path.name for path in (found / "tasks").iterdir()) == [
        "__init__.py",
        "regression",
    ]
    assert not (found / "evaluation").exists()
    assert not (found / "classification/evaluation").exists()

    before = _digest_of_code("regression")
    for path in (
        away / "x.py",
        house.tasks / "regression/show.py",
        house.folder / "pipeline/report/x.py",
    ):
        path.write_text("1")
        assert _digest_of_code("regression") == before, path
    (own / "show.py").write_text("1")
    assert _digest_of_code("regression") != before


def test_what_a_nested_setting_takes_from_the_environment_is_not_written(house, monkeypatch):
    house.edit(
        "settings.py",
        "    hidden: list[int]",
        "    hidden: list[int]\n    notes: dict[str, list[str]]",
    )
    (house.folder / "conf/mlp/two_layers.yaml").write_text(
        "hidden: [64]\nnotes: {a: ['${oc.env:PLACE}/x']}\n"
    )
    monkeypatch.setenv("PLACE", "/home/somebody")
    house.trained()
    assert net.load(house.folder / "models/mlp").settings.notes == {"a": ["${oc.env:PLACE}/x"]}


def test_a_secret_is_masked_wherever_it_is_nested():
    nested = {"a": [{"b": [{"hf_token": "abc"}]}], "overrides": ["mlp.hf_token=abc", "x.seed=1"]}
    assert masked(nested) == {
        "a": [{"b": [{"hf_token": "***"}]}], "overrides": ["mlp.hf_token=***", "x.seed=1"],
    }  # fmt: skip
    assert masked("https://x.org/?token=abc&page=2") == "https://x.org/?token=***&page=2"


@pytest.mark.parametrize(
    "stage",
    [
        "prepare",
        *(pytest.param(s, marks=pytest.mark.slow) for s in (tasks()[0].about.stage, "evaluate")),
    ],
)
def test_settings_of_another_task_that_cant_be_loaded_are_one_line(stage, tmp_path):
    for name in ("pipeline", "stages", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    file = tmp_path / "pipeline/tasks/other/settings.py"
    file.parent.mkdir()
    file.write_text("ABOUT = (\n")
    ended = run(tmp_path, sys.executable, "-m", f"stages.{stage}", "tracking=off")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "error: pipeline/tasks/other/settings.py can't be loaded (Syntax"
    )
    assert ended.stderr.count("\n") == 1


def test_a_stage_without_its_conf_file_may_be_called_otherwise(house):
    house.edit("settings.py", '"train_mlp"', '"train_mpl"')
    said = house.start(training("regression"))
    assert said.startswith("error: conf/train_mpl.yaml is missing in ")
    assert said.endswith("or correct the stage's name, 'train_mpl'\n")
