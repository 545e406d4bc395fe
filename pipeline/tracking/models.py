"""The trained model in the store: an MLflow model that takes raw inputs, and its versions.

Every evaluated model is a version, the best one is the champion: the alias moves only when a
version is better on the same test examples by evaluation's paired test, or when the test data
changed and the profile caps nothing.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME

from pipeline.evaluation.comparison import compare_files
from pipeline.nested import flat
from pipeline.tracking.operations import Begin, Model, Register
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SIGNIFICANT = 0.05
FOLDER = "predictions"
"""Where the artifacts of an evaluation's run hold its predictions."""


def log_model(store: Store, run_id: str, files: Path, model: Model, begin: Begin) -> None:
    """Put the trained model among a journal's `files` into the store."""
    client = store.client
    run = client.get_run(run_id)
    place, name = run.info.experiment_id, begin.stage
    md5 = {"weights.md5": run.data.tags.get("weights.md5", "")}
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
            tags={"task": model.metadata["task"], **md5},
            params=run.data.params,
            model_type=model.metadata["task"],
        )
    )
    if logged.status == "READY":
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        about = mlflow.models.Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            metadata={
                **model.metadata,
                **md5,
                **{f"device.{key}": value for key, value in flat(begin.card).items()},
            },
        )
        _save(folder, files, model, about)
        client.log_model_artifacts(logged.model_id, str(folder))
    outputs = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _show_metrics(store, run_id, str(logged.model_id), "validation/")
    client.finalize_logged_model(logged.model_id, "READY")


def _show_metrics(store: Store, run_id: str, model_id: str, prefix: str) -> None:
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


def _save(folder: Path, files: Path, model: Model, about: "mlflow.models.Model") -> None:
    """Write the MLflow model into a new folder; `about` is what MLmodel says besides."""
    mlflow.pyfunc.save_model(
        path=folder,
        python_model=files / model.server,
        artifacts={"model": str(files / model.file)},
        code_paths=[str(files / model.code)],
        pip_requirements=model.packages,
        mlflow_model=about,
    )
    # MLflow would run the model to save the example: seconds in which the stage's end waits
    (folder / "input_example.json").write_text(json.dumps([model.example]))
    request = json.dumps({"inputs": [model.example]})
    (folder / "serving_input_example.json").write_text(request)
    about.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "json_object",
    }
    about.save(str(folder / MLMODEL_FILE_NAME))


def register(
    store: Store, run_id: str, trained: str | None, predictions: Path, record: Register
) -> str | None:
    """Make the model of the run `trained` a version and decide about the champion.

    Returns the version; None when the store has no logged model of these weights.
    """
    client, name = store.client, record.name
    model_id = trained and store.model(trained)
    if not trained or not model_id:
        return None
    store.file(run_id, predictions, FOLDER)
    _show_metrics(store, trained, model_id, "test/")
    with store.lock:
        version = _version(store, name, model_id, trained)
        tags = {
            "data.digest": record.data,
            "test.digest": record.test,
            "weights.md5": record.weights,
            "trained_by": trained,
            "evaluated_by": run_id,
            "predictions": f"{FOLDER}/{predictions.name}",
            # of `test/accuracy` and `test/precision/7` the first: the run has the rest
            **{k: f"{v:.6g}" for k, v in record.metrics.items() if k.count("/") < 2},
        }
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        champion = _champion(store, name)
        moves, why, numbers = _decide(store, version, champion, predictions, record)
        for key, value in {**numbers, "decision": why}.items():
            client.set_model_version_tag(name, version, key, value)
        if champion and str(champion.version) != version:
            client.set_model_version_tag(name, champion.version, f"decision.{version}", why)
        newest = max(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))
        client.set_registered_model_alias(name, "candidate", str(newest))
        if moves:
            client.set_registered_model_alias(name, "champion", version)
    return version


def _decide(
    store: Store,
    version: str,
    champion: "ModelVersion | None",
    predictions: Path,
    record: Register,
) -> tuple[bool, str, dict[str, str]]:
    if not record.promote:
        return False, "champion stays: promotion is off (tracking.promote)", {}
    if champion is None:
        return True, f"version {version} is champion: there was none", {}
    before = str(champion.version)
    if before == version:  # also after an answer that was lost
        return False, champion.tags.get("decision", f"version {version} stays champion"), {}
    tags = champion.tags  # an older version has no digest of the test split
    if tags.get("test.digest") != record.test and tags.get("data.digest") != record.data:
        if record.capped:
            return False, f"version {before} stays champion: {version} is of a capped profile", {}
        return True, f"version {version} follows {before} as champion: the data changed", {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = store.client.download_artifacts(
                champion.tags["evaluated_by"], champion.tags["predictions"], folder
            )
            found = compare_files(Path(theirs), predictions)
        except (KeyError, ValueError, FileNotFoundError, MlflowException) as error:
            code = getattr(error, "error_code", "RESOURCE_DOES_NOT_EXIST")
            if code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False, f"version {before} stays champion: its predictions are gone", {}
    better, worse, p = found.only_second, found.only_first, found.p_value
    numbers = (
        f"{version} does better on {better} test examples, {before} on {worse}, "
        f"paired test p = {p:.3g}"
    )
    wins = found.gain > 0 and p < SIGNIFICANT
    what = (
        f"version {version} follows {before} as champion"
        if wins
        else f"version {before} stays champion against {version}"
    )
    tags = {"paired.better": str(better), "paired.worse": str(worse), "paired.p": f"{p:.6g}"}
    return wins, f"{what}: {numbers}", {"compared_to": before, **tags}


def _version(store: Store, name: str, model_id: str, trained: str) -> str:
    client = store.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("model") == source:
            return str(version.version)
    # `source` itself MLflow would look up in the store that this process has opened last
    place = client.get_logged_model(model_id).artifact_location
    made = client.create_model_version(
        name, place, trained, tags={"model": source}, model_id=model_id
    )
    return str(made.version)


def _champion(store: Store, name: str) -> Any:
    try:
        return store.client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
