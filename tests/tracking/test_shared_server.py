"""docs/server.md: PostgreSQL, served artifacts, two clones, an analyst."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import copy_of_the_repository, environment, run
from tests.tracking.conftest import Server, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PASSWORD = "not-for-others"
FRESH = """
import json, sys
import mlflow
import numpy as np
model = mlflow.pyfunc.load_model("models:/image-classifier@champion")
print(json.dumps(model.predict([np.zeros((28, 28), np.uint8)])))
"""


def program(name: str) -> str:
    """A program of PostgreSQL, which Debian does not put on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return path


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """URI of an empty database of a PostgreSQL of our own, which runs as an ordinary user."""
    initdb, control = program("initdb"), program("pg_ctl")
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    # not in pytest's folder: that user could not enter it
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    secret = folder / "password"
    secret.write_text(PASSWORD)
    if user:
        for path in (folder, secret):
            shutil.chown(path, user)
    port, data = free_port(), folder / "data"

    def call(*command: str) -> None:
        done = subprocess.run(
            command,
            cwd=folder,
            user=user,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout

    try:
        call(initdb, "-D", str(data), "-U", "mlflow", "-A", "scram-sha-256",
             f"--pwfile={secret}", "--no-sync")  # fmt: skip
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
        )
        call(control, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            call(control, "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), database)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def clones(shared: Server, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clones that ran the image branch at the same time with different learning rates."""
    folders = []
    for name, rate in (("first", "lr: 0.004"), ("second", "lr: 0.02")):
        folder = copy_of_the_repository(tmp_path_factory.mktemp(name))
        params = folder / "params.yaml"
        text = params.read_text().replace("profile: full", "profile: tiny")
        params.write_text(text.replace("lr: 0.004", rate, 1))
        run(folder, "git", "commit", "-qam", name)
        folders.append(folder)

    def repro(folder: Path) -> None:
        where = {"MLFLOW_TRACKING_URI": shared.uri}
        for command in (["dvc", "repro", "evaluate@cnn"], ["make", "-o", ".venv/.ready", "sync"]):
            done = run(folder, *command, **where)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    with ThreadPoolExecutor() as together:
        list(together.map(repro, folders))
    return folders


@pytest.fixture(scope="module")
def analyst(shared: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(shared.uri)


def test_every_run_of_both_clones_is_there_below_its_own_parent(clones: list[Path], analyst: Any):
    (experiment,) = [one for one in analyst.search_experiments() if one.name != "Default"]
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    found = analyst.search_runs([experiment.experiment_id])
    assert {one.info.status for one in found} == {"FINISHED"}
    assert [one.data.tags["refused"] for one in found if "refused" in one.data.tags] == []
    parents = [one for one in found if one.data.tags["stage"] == "dvc"]
    assert len(parents) == 2
    rates = set()
    for parent in parents:
        children = [
            one for one in found if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        ]
        beside = [one for one in children if "beside" in one.data.tags]
        assert beside
        stages = {one.data.tags["dvc.stage"]: one for one in children if one not in beside}
        assert set(stages) == {"prepare@image", "train_cnn", "evaluate@cnn"}
        assert len(children) == len(beside) + 3
        ids = {one.data.tags["beside"] for one in beside}
        assert ids == {stages["evaluate@cnn"].info.run_id}
        trained, evaluated = stages["train_cnn"], stages["evaluate@cnn"]
        assert evaluated.data.tags["trained_by"] == trained.info.run_id
        accuracy = evaluated.data.metrics["test/accuracy"]
        assert trained.data.metrics["test/accuracy"] == accuracy
        assert parent.data.metrics["cnn/test/accuracy"] == accuracy
        rates.add(trained.data.params["optimizer.lr"])
    assert rates == {"0.004", "0.02"}


def test_nothing_of_the_store_is_left_in_the_clones(clones: list[Path]):
    for folder in clones:
        assert not (folder / "mlflow.db").exists()
        assert not (folder / "mlartifacts").exists()
        assert not list((folder / ".tracking").glob("*/journal.jsonl"))


def test_an_analyst_gets_figures_and_the_champion_from_the_server(
    clones: list[Path], analyst: Any, shared: Server, tmp_path: Path
):
    versions = analyst.search_model_versions("name = 'image-classifier'")
    assert len(versions) == 2
    champion = analyst.get_model_version_by_alias("image-classifier", "champion")
    figure = analyst.download_artifacts(
        champion.tags["evaluated_by"], "cnn/confusion.png", str(tmp_path)
    )
    assert Path(figure).read_bytes().startswith(b"\x89PNG")
    done = subprocess.run(
        [sys.executable, "-c", FRESH], cwd=tmp_path, capture_output=True, text=True,
        env=environment(tmp_path, MLFLOW_TRACKING_URI=shared.uri),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"label":' in done.stdout


def test_the_server_listens_on_this_machine_only(shared: Server):
    server = psutil.Process(shared.pid)
    listening = [
        connection.laddr.ip
        for process in (server, *server.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_only_pages_of_the_allowed_site_may_ask(shared: Server):
    """What a browser adds to requests of a page tells whose page it is."""
    body = json.dumps({"max_results": 1}).encode()
    answers = {}
    for site in ("https://mlflow.example.org", "https://elsewhere.example.org"):
        headers = {"Content-Type": "application/json", "Origin": site}
        address = f"{shared.uri}/ajax-api/2.0/mlflow/experiments/search"
        try:
            request = urllib.request.Request(address, body, headers)  # noqa: S310
            with urllib.request.urlopen(request) as reply:  # noqa: S310
                answers[site] = reply.status
        except urllib.error.HTTPError as error:
            answers[site] = error.code
    assert list(answers.values()) == [200, 403]


def test_the_database_is_back_after_it_was_away(database: str, shared: Server, clones: list[Path]):
    """The server keeps its connections in a pool; one that broke is replaced."""
    import psycopg2

    with (
        psycopg2.connect(database.replace("+psycopg2", "")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("select count(*) from runs")
        assert cursor.fetchone()[0] >= 8
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
            " and datname = current_database()"
        )
    from mlflow import MlflowClient

    assert wait_for(lambda: MlflowClient(shared.uri).search_experiments(), 30)
