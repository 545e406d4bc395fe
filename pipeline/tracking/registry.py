"""The registry: every evaluated model is a version, the best one is the champion.

The alias `champion` moves only when a version is better on the same test examples by McNemar's
exact test (McNemar 1947: of the examples that one of the two gets right and the other wrong, are
there more on one side than chance would give?), or when the data changed and the profile caps
nothing.
"""

import tempfile
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from pipeline.tracking.journal import Record
from pipeline.tracking.serving import show_metrics
from pipeline.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SIGNIFICANT = 0.05
FOLDER = "predictions"
"""Where the artifacts of an evaluation's run hold its predictions."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same examples."""

    better: int
    """How many only the candidate gets right."""
    worse: int
    """How many only the champion gets right."""

    @property
    def p(self) -> float:
        """Chance that two equal models differ this much or more (exact, two-sided)."""
        n, least = self.better + self.worse, min(self.better, self.worse)
        tail = sum(comb(n, k) for k in range(least + 1))
        return min(1.0, 2 * tail / 2**n)

    @property
    def wins(self) -> bool:
        """Whether the candidate is better, and not by chance."""
        return self.better > self.worse and self.p < SIGNIFICANT


def register(
    store: Store, run_id: str, trained: str | None, predictions: Path, record: Record
) -> str | None:
    """Make the evaluated model a version and decide about the champion.

    Args:
        store: where.
        run_id: run of the evaluation.
        trained: run that trained the model; None when it is not on this store.
        predictions: Parquet with `label` and `prediction`.
        record: what `Run.register` journaled.

    Returns the version; None when the store has no logged model of these weights.
    """
    client, name = store.client, record["name"]
    model_id = trained and _model_of(store, trained)
    if not trained or not model_id:
        return None
    store.file(run_id, predictions, FOLDER)
    show_metrics(store, trained, model_id, "test/")
    with store.locked():
        version = _version(store, name, model_id, trained)
        tags = {
            "data.digest": record["data"],
            "weights.md5": record["weights"],
            "trained_by": trained,
            "evaluated_by": run_id,
            "predictions": f"{FOLDER}/{predictions.name}",
            # of `test/accuracy` and `test/precision/7` the first: the run has the rest
            **{k: f"{v:.6g}" for k, v in record["metrics"].items() if k.count("/") < 2},
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
    record: Record,
) -> tuple[bool, str, dict[str, str]]:
    if not record["promote"]:
        return False, "champion stays: promotion is off (tracking.promote)", {}
    if champion is None:
        return True, f"version {version} is champion: there was none", {}
    before = str(champion.version)
    if before == version:  # also after an answer that was lost
        return False, champion.tags.get("decision", f"version {version} stays champion"), {}
    if champion.tags.get("data.digest") != record["data"]:
        if record["capped"]:
            return False, f"version {before} stays champion: {version} is of a capped profile", {}
        return True, f"version {version} follows {before} as champion: the data changed", {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = store.client.download_artifacts(
                champion.tags["evaluated_by"], champion.tags["predictions"], folder
            )
            found = compare(predictions, Path(theirs))
        except (KeyError, FileNotFoundError, MlflowException) as error:
            code = getattr(error, "error_code", "RESOURCE_DOES_NOT_EXIST")
            if code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False, f"version {before} stays champion: its predictions are gone", {}
    numbers = (
        f"on {found.better} test examples only {version} is right, on {found.worse} only {before}, "
        f"McNemar's exact p = {found.p:.3g}"
    )
    what = (
        f"version {version} follows {before} as champion"
        if found.wins
        else f"version {before} stays champion against {version}"
    )
    tags = {"better": str(found.better), "worse": str(found.worse), "p": f"{found.p:.6g}"}
    named = {f"mcnemar.{key}": value for key, value in tags.items()}
    return found.wins, f"{what}: {numbers}", {"compared_to": before, **named}


def compare(ours: Path, theirs: Path) -> Comparison:
    """Compare two tables of predictions, example by example.

    Raises:
        KeyError: they are not of the same examples.
    """
    import pyarrow.parquet

    columns = ["label", "prediction"]
    first, second = (pyarrow.parquet.read_table(path, columns=columns) for path in (ours, theirs))
    labels = first["label"].to_pylist()
    if labels != second["label"].to_pylist():
        raise KeyError("other examples")
    guesses = zip(first["prediction"].to_pylist(), second["prediction"].to_pylist(), strict=True)
    pairs = [
        (our == label, their == label) for label, (our, their) in zip(labels, guesses, strict=True)
    ]
    return Comparison(pairs.count((True, False)), pairs.count((False, True)))


def _model_of(store: Store, run_id: str) -> str | None:
    place = store.client.get_run(run_id).info.experiment_id
    found = store.client.search_logged_models([place], f"source_run_id = '{run_id}'")
    ready = [model for model in found if model.status == "READY"]
    return str(ready[0].model_id) if ready else None


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
