"""Reads from the MLflow store what runs left there."""

import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import PipelineError
from pipeline.tracking.masking import clean
from pipeline.tracking.surroundings import quiet, root, store_uri

if TYPE_CHECKING:
    from pipeline.tracking.store import Store

Series = dict[str, list[tuple[int, float]]]
"""(step, value) of each metric, by step."""


@dataclass(frozen=True)
class Recorded:
    """One run of a stage; `diff` is what was not committed, for `git apply`."""

    run_id: str
    stage: str
    status: str
    tags: dict[str, str]
    config: dict[str, Any]
    card: dict[str, Any]
    diff: bytes
    untracked: list[str]

    @property
    def commit(self) -> str:
        """Full git commit; empty outside a repository."""
        return self.tags.get("mlflow.source.git.commit", "")


class Reader:
    """One MLflow store.

    Args:
        uri: of the store; by default that of `$MLFLOW_TRACKING_URI` or of the workspace.
    """

    def __init__(self, uri: str = "") -> None:
        self.uri = uri or store_uri()

    @cached_property
    def store(self) -> "Store":
        """The store, opened.

        Raises:
            PipelineError: it can't be.
        """
        from pipeline.tracking.store import Store

        quiet()
        try:
            return Store(self.uri, root())
        except PipelineError:
            raise
        except Exception as error:  # each kind of store has its own
            raise PipelineError(
                f"the store {clean(self.uri)} can't be opened: {_first_line(error)}"
            ) from error

    def runs(self, stage: str) -> list[str]:
        """Ids of a stage's runs, the oldest first, without those that a stage put beside itself."""
        found = self.store.find("stage", stage)
        return [run.info.run_id for run in found if "beside" not in run.data.tags]

    def read(self, run_id: str) -> Recorded:
        """A run with its config and device card.

        Raises:
            PipelineError: there is no such run, it is not of a stage, or the store does not have
                all of it.
        """
        from mlflow.exceptions import MlflowException

        client, place = self.store.client, clean(self.uri)
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise PipelineError(
                    f"run {run_id} is not on {place}; `make ui` shows the runs there, `make sync` "
                    "sends what is pending, and MLFLOW_TRACKING_URI names another store"
                ) from error
            raise PipelineError(
                f"run {run_id!r} can't be read from {place}: {_first_line(error)}"
            ) from error
        tags = dict(run.data.tags)
        if "stage" not in tags:
            experiment = client.get_experiment(run.info.experiment_id).name
            raise PipelineError(
                f"run {run_id} of the experiment {experiment} was not made by a stage of this "
                "project, and can't be repeated"
            )
        if (stage := tags["stage"]) == "dvc":
            raise PipelineError(
                f"run {run_id} is not the run of one stage; take the id of one of those below it"
            )
        if "beside" in tags:
            raise PipelineError(
                f"run {run_id} was made by another one; take the id of that: {tags['beside']}"
            )
        config, card = self._file(run_id, "config.yaml"), self._file(run_id, "device.json")
        if not config or not card:
            raise PipelineError(
                f"run {run_id} has no config.yaml or device.json on the store; if it is not sent "
                "yet, `make sync` sends it"
            )
        return Recorded(
            run_id=run_id,
            stage=stage,
            status=run.info.status,
            tags=tags,
            config=yaml.safe_load(config),
            card=json.loads(card),
            diff=self._file(run_id, "source/uncommitted.diff"),
            untracked=self._file(run_id, "source/untracked.txt").decode().split("\n")[:-1],
        )

    def series(self, run_id: str) -> Series:
        """Every point of every metric but times, memory and system metrics."""
        client = self.store.client
        names = [
            name
            for name in client.get_run(run_id).data.metrics
            if not name.startswith(("time/", "memory/", "system/"))
        ]
        return {
            name: sorted((p.step, p.value) for p in client.get_metric_history(run_id, name))
            for name in names
        }

    def weights(self, run_id: str, folder: Path) -> Path | None:
        """The model that a run logged, downloaded into `folder`; None without one."""
        import mlflow

        model_id = self.store.model(run_id)
        if model_id is None:
            return None
        got = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{model_id}", dst_path=str(folder), tracking_uri=self.uri
        )
        return next(Path(got).rglob("model.safetensors"), None)

    def _file(self, run_id: str, name: str) -> bytes:
        """An artifact, empty where there is none."""
        client, folder = self.store.client, name.rpartition("/")[0]
        if name not in [file.path for file in client.list_artifacts(run_id, folder or None)]:
            return b""
        with tempfile.TemporaryDirectory() as place:
            return Path(client.download_artifacts(run_id, name, place)).read_bytes()


def _first_line(error: Exception) -> str:
    return clean(str(error)).partition("\n")[0]
