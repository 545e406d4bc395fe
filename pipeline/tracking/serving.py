"""Logs a trained model as an MLflow model that anybody can load and feed raw inputs."""

import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from pipeline.tracking.journal import Record, flat
from pipeline.tracking.store import Store

SHIPPED = ("__init__.py", "errors.py", "files.py", "settings.py", "models")
"""What of `pipeline` a model needs to be loaded."""

NEEDED = {
    "image": ("pillow", "torchvision"),
    "text": ("transformers", "tokenizers"),
    "audio": ("scipy",),
}
ALWAYS = ("mlflow", "numpy", "torch", "pydantic", "safetensors")


def log_model(store: Store, run_id: str, files: Path, record: Record, begin: Record) -> str:
    """Put the folder of a trained model into the store; returns the id of the logged model.

    Args:
        store: where to.
        run_id: the run that trained it.
        files: folder of the journal's files.
        record: what `Run.model` journaled.
        begin: the start of the run, for the device card.
    """
    client = store.client
    run = client.get_run(run_id)
    place, name = run.info.experiment_id, begin["stage"]
    found = client.search_logged_models(
        [place], f"source_run_id = '{run_id}' AND name = '{name}'", max_results=1
    )
    # a name of its own for each run: the answer to an earlier attempt may have been lost
    logged = (
        found[0]
        if found
        else client.create_logged_model(
            place,
            name,
            run_id,
            tags={"task": record["task"], "weights.md5": run.data.tags.get("weights.md5", "")},
            params=run.data.params,
            model_type=f"{record['task']} classifier",
        )
    )
    if logged.status == "READY":
        return str(logged.model_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        about = Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            metadata={
                "task": record["task"],
                "classes": record["classes"],
                "weights.md5": run.data.tags.get("weights.md5", ""),
                **{f"device.{key}": value for key, value in flat(begin["card"]).items()},
                **record["facts"],
            },
        )
        save(folder, files / record["file"], record, about)
        client.log_model_artifacts(logged.model_id, str(folder))
    outputs = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    show_metrics(store, run_id, str(logged.model_id), "validation/")
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def show_metrics(store: Store, run_id: str, model_id: str, prefix: str) -> None:
    """Show the latest values of a run's metrics on its logged model too."""
    keys = [key for key in store.client.get_run(run_id).data.metrics if key.startswith(prefix)]
    latest = [
        max(store.client.get_metric_history(run_id, key), key=lambda p: (p.step, p.timestamp))
        for key in sorted(keys)
    ]
    # the same points, so that the run does not get another one
    store.log(
        run_id,
        [
            Metric(point.key, point.value, point.timestamp, point.step, model_id, run_id=run_id)
            for point in latest
        ],
    )


def save(folder: Path, model: Path, record: dict[str, Any], about: Model) -> None:
    """Write the MLflow model.

    Args:
        folder: where to; created.
        model: what `pipeline.models.save` wrote.
        record: `task` and `example`.
        about: what MLmodel says besides.
    """
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary) / "pipeline"
        code.mkdir()
        source = Path(__file__).parents[1]
        for name in SHIPPED:
            if (source / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source / name, code / name, ignore=ignored)
            else:
                shutil.copyfile(source / name, code / name)
        mlflow.pyfunc.save_model(
            path=folder,
            python_model=Path(__file__).with_name("served.py"),
            artifacts={"model": str(model)},
            code_paths=[str(code)],
            pip_requirements=requirements(record["task"]),
            mlflow_model=about,
        )
    # MLflow would run the model to save the example: seconds in which the stage's end waits
    (folder / "input_example.json").write_text(json.dumps([record["example"]]))
    request = json.dumps({"inputs": [record["example"]]})
    (folder / "serving_input_example.json").write_text(request)
    about.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "json_object",
    }
    about.save(str(folder / MLMODEL_FILE_NAME))


def requirements(task: str) -> list[str]:
    """Packages the model needs, at the versions it was trained with."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in (*ALWAYS, *NEEDED[task])]
