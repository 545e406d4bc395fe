"""The MLflow store, made safe for several processes. Senders write to it, `Reader` reads."""

import json
import os
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow.store.db.utils
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.errors import PipelineError
from pipeline.tracking.masking import clean
from pipeline.tracking.surroundings import database, escaped, lock, sqlite_uri

# the sender has its own retries; MLflow's would block it for up to an hour
mlflow.store.db.utils.MAX_RETRY_COUNT = 1

# the user's, which may have credentials: `set_tracking_uri` replaces the variable
GIVEN = os.environ.get("MLFLOW_TRACKING_URI", "")

ARTIFACTS = "mlartifacts"
METRICS, PARAMS = 1000, 50  # per request: the API's limit; and about 300 kB
PARAM, TAG = 6000, 8000  # characters


class Store:
    """One MLflow store.

    Args:
        uri: without credentials, as journals carry it. Where `MLFLOW_TRACKING_URI` is the same
            with credentials, those are used.
        root: folder of the default store.

    Raises:
        PipelineError: it is of another version of MLflow; or it is the workspace's own, and its
            artifacts are in another one.
        Exception: the store can't be reached; try again later.
    """

    def __init__(self, uri: str, root: Path) -> None:
        self.uri = GIVEN if GIVEN and clean(GIVEN) == uri else uri
        self._database = _sqlite(self.uri)
        # keeps other processes of this machine from creating the same thing twice
        if self._database:
            self.lock = FileLock(f"{self._database}.lock", timeout=60)
        else:
            self.lock = lock(root / ".tracking", f"{uri} opened")
            self.lock.timeout = 60
        mlflow.set_tracking_uri(self.uri)
        with self.lock:  # of several first users all but one would crash in the migrations
            if self._database and not self._database.exists():
                _create(self._database)
            try:
                self.client = MlflowClient(self.uri, self.uri)
                self.client.search_experiments(max_results=1)
            except MlflowException as error:
                if "out-of-date database schema" not in str(error):
                    raise
                raise PipelineError(
                    f"{clean(uri)} is of another version of MLflow; if that is an older one, make "
                    f"a backup and run: mlflow db upgrade {shlex.quote(clean(uri))}"
                ) from error
        if self._database == database(root) and (places := elsewhere(self._database)):
            before = unquote(places[0].removesuffix(f"/{ARTIFACTS}"))
            raise PipelineError(
                f"{root} was {before} when its runs were recorded, and nothing is sent there; "
                "`python -m pipeline.tracking moved` backs mlflow.db up and lets it be here"
            )

    def answers(self) -> bool:
        """Whether the store can be reached at all."""
        try:
            self.client.search_experiments(max_results=1)
        except Exception:  # whatever it is: the caller has the error that counts
            return False
        return True

    def experiment(self, name: str) -> str:
        """Id of the experiment, created if it is missing, restored if it was deleted."""
        with self.lock:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                # absolute: a relative one would die with a temporary copy of the workspace
                place = self._database and escaped(self._database.parent / ARTIFACTS)
                try:
                    return self.client.create_experiment(name, artifact_location=place or None)
                except MlflowException:
                    found = self.client.get_experiment_by_name(name)  # another machine did
                    if found is None:
                        raise
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)

    def find(self, tag: str, value: str, experiment: str | None = None) -> list[Run]:
        """Runs with that tag, the oldest first; in all experiments unless one is given."""
        if experiment:
            places = [experiment]
        else:
            places = [found.experiment_id for found in self.client.search_experiments()]
        quoted = value.replace("'", "")
        return sorted(
            self.client.search_runs(places, f"tags.`{tag}` = '{quoted}'", max_results=1000),
            key=lambda run: (run.info.start_time, run.info.run_id),
        )

    def find_or_create(
        self, experiment: str, tag: str, value: str, name: str, start: int, tags: dict[str, str]
    ) -> str:
        """Id of the one run with that tag."""
        with self.lock:
            if found := self.find(tag, value, experiment):
                return str(found[0].info.run_id)
            tags = {**tags, tag: value}
            run = self.client.create_run(experiment, start, tags=tags, run_name=name)
            return str(run.info.run_id)

    def log(
        self,
        run_id: str,
        metrics: Iterable[Metric] = (),
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> list[str]:
        """Send metrics, params and tags; returns a line for each that the store refuses.

        A param that the run has with another value keeps it: MLflow's params are immutable.

        Raises:
            Exception: there is no such run, or the store can't be reached; try again later.
        """
        refused: list[str] = []
        kinds: list[tuple[str, list[Any], int]] = [
            ("metrics", list(metrics), METRICS),
            ("params", [Param(k, v[:PARAM]) for k, v in (params or {}).items()], PARAMS),
            ("tags", [RunTag(k, v[:TAG]) for k, v in (tags or {}).items()], PARAMS),
        ]
        for kind, items, size in kinds:
            for first in range(0, len(items), size):
                refused += self._batch(run_id, kind, items[first : first + size])
        return refused

    def _batch(self, run_id: str, kind: str, items: list[Any]) -> list[str]:
        part: dict[str, Any] = {kind: items}
        try:
            self.client.log_batch(run_id, **part)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(items) == 1:
                return [f"{items[0].key}: {clean(str(error))[:300]}"]
            if self.client.get_run(run_id).info.lifecycle_stage == "deleted":
                return [f"{kind}: run {run_id} is deleted"]
            return [line for item in items for line in self._batch(run_id, kind, [item])]
        return []

    def close(self, run_id: str, status: str, end: int) -> None:
        """End a run, unless somebody has deleted it meanwhile."""
        try:
            self.client.set_terminated(run_id, status, end)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise

    def untag(self, run_id: str, tag: str) -> None:
        """Take a tag away from a run, if it has it and nobody has deleted the run."""
        run = self.client.get_run(run_id)
        if tag in run.data.tags and run.info.lifecycle_stage == "active":
            self.client.delete_tag(run_id, tag)

    def data(
        self, run_id: str, path: str, digest: str, context: str, facts: dict[str, Any]
    ) -> None:
        """Log a data set that a run reads; `facts` are those of `provenance.described`."""
        columns = [{"name": k, "type": v} for k, v in facts.get("schema", {}).items()]
        data = Dataset(
            name=path,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": path, **facts.get("source", {})}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps(facts.get("profile", {})),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(run_id, [DatasetInput(data, tags)])

    def model(self, run_id: str) -> str | None:
        """Id of the model that a run has logged whole."""
        place = self.client.get_run(run_id).info.experiment_id
        found = self.client.search_logged_models([place], f"source_run_id = '{run_id}'")
        ready = [str(model.model_id) for model in found if model.status == "READY"]
        return ready[0] if ready else None

    @staticmethod
    def link(run: Run) -> str:
        """Markdown that opens a run in MLflow's UI."""
        place = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        return f"[{run.info.run_name}]({place})"

    def file(self, run_id: str, path: Path, folder: str) -> None:
        """Write an artifact, a file or a folder with what is in it."""
        if path.is_dir():
            inner = f"{folder}/{path.name}" if folder else path.name
            self.client.log_artifacts(run_id, str(path), inner)
        else:
            self.client.log_artifact(run_id, str(path), folder or None)


def elsewhere(file: Path) -> list[str]:
    """The folders of artifacts of a database that was made in another folder."""
    here = escaped(file.parent / ARTIFACTS)
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT artifact_location FROM experiments").fetchall()
    places = {place.removeprefix("file://") for (place,) in rows if place}
    return sorted(place for place in places - {here} if place.endswith(f"/{ARTIFACTS}"))


def relocate(file: Path) -> tuple[int, Path]:
    """Let the artifacts of a database be beside it, wherever they were.

    Returns:
        How many values were changed, and the backup that was made before.
    """
    here, changed = escaped(file.parent / ARTIFACTS), 0
    backup = file.with_name(f"{file.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    with FileLock(f"{file}.lock", timeout=60), closing(sqlite3.connect(file)) as connection:
        with closing(sqlite3.connect(backup)) as copy:
            connection.backup(copy)
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        columns = [
            (table, column[1])
            for (table,) in tables.fetchall()
            for column in connection.execute(f'PRAGMA table_info("{table}")')
        ]
        places = product(elsewhere(file), ("", "file://"), columns)
        with connection:  # all or nothing
            for place, kind, (table, column) in places:
                start, now = kind + place, kind + here
                # the names are the database's own
                change = f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '  # noqa: S608  # nosec B608
                where = f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?'
                given = (now, len(start) + 1, start, len(start) + 1, f"{start}/")
                found = connection.execute(change + where, given)
                changed += found.rowcount
    return changed, backup


def _create(file: Path) -> None:
    """Make an empty store; MLflow can't go on where its migrations were cut short.

    In a process of its own: what a failed attempt leaves in MLflow's caches would spoil the next.
    """
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    code = (
        "import sys, mlflow; mlflow.MlflowClient(*sys.argv[1:]).search_experiments(max_results=1)"
    )
    uri = sqlite_uri(draft)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, uri, uri], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            raise OSError(" ".join(done.stderr.splitlines()[-1:]))
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _sqlite(uri: str) -> Path | None:
    """The database file of an sqlite URI, None of any other."""
    parts = urlsplit(uri, allow_fragments=False)  # to SQLAlchemy a `#` is part of the name
    if parts.scheme.partition("+")[0] != "sqlite":
        return None
    return Path(unquote(parts.path[1:])).absolute()
