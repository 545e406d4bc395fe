"""Real stores, real servers, real processes."""

import base64
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipeline.settings import Tracking

hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def _store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("work space")
    shutil.copy(empty_store, folder)
    return folder


@pytest.fixture
def workspace(_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a store that the tests share; each has its own experiments."""
    monkeypatch.setenv("DVC_ROOT", str(_store))
    return _store


@pytest.fixture
def own_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a store of the test's own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Tracking:
    return Tracking(
        enabled=True,
        experiment=request.node.name,
        flush_seconds=20.0,
        system_seconds=0.5,
        promote=True,
    )


@pytest.fixture
def client(workspace: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{workspace}/mlflow.db")


def runs(client: Any, experiment: str) -> list[Any]:
    """Runs of an experiment, the oldest first."""
    found = client.get_experiment_by_name(experiment)
    return list(reversed(client.search_runs([found.experiment_id]))) if found else []


def points(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    """Every (step, value) that the store has of a metric, in the order of steps."""
    history = client.get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in history)


def text(client: Any, run_id: str, name: str, folder: Path) -> str:
    """The text of an artifact."""
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text()


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true answer of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing within {seconds} s")


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Server:
    """A real `mlflow server` that can be killed and started again on the same port."""

    def __init__(self, folder: Path, database: str = "") -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._database = database or f"sqlite:///{folder}/server.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--workers", "1"),
                *("--artifacts-destination", str(self._folder / "artifacts")),
            ],
            env={
                **os.environ,
                "MLFLOW_BACKEND_STORE_URI": self._database,
                "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://mlflow.example.org",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(lambda: self._answers() or self._process.poll() is not None, 120)
        assert self._process.poll() is None, "the server did not start"
        return self

    @property
    def pid(self) -> int:
        """Of the process that started the workers."""
        assert self._process
        return self._process.pid

    def kill(self) -> None:
        """`kill -9` of the server and its workers, if it runs."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop_answering(self) -> None:
        """The port stays open, nobody answers."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP)

    def answer_again(self) -> None:
        assert self._process
        os.killpg(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as reply:  # noqa: S310
                return bool(reply.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


class Flaky:
    """A proxy before a server: of five requests two get a 500, one of them after it was served.

    With a password it fails nobody, but asks for it. `kinds` are what a request may meet; one that
    is "unanswered" hangs.
    """

    def __init__(
        self,
        behind: int,
        kinds: tuple[str, ...] = ("heard", "unheard", "heard", "answer lost", "heard"),
        password: str = "",
    ) -> None:
        self.failures = 0
        self.kinds = kinds
        self._lock = threading.Lock()
        self._random = random.Random(7)
        proxy = self
        allowed = "Basic " + base64.b64encode(f"team:{password}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length) if length else None
                if (
                    self.headers.get("Transfer-Encoding") == "chunked"
                ):  # so MLflow sends empty files
                    assert self.rfile.readline() + self.rfile.readline() == b"0\r\n\r\n"
                    body = b""
                kind = "heard" if password else proxy.next()
                if kind == "unanswered":
                    time.sleep(60)
                    return
                if password and self.headers.get("Authorization") != allowed:
                    self.send_response(401)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if kind != "unheard":
                    server = http.client.HTTPConnection("127.0.0.1", behind, timeout=30)
                    own = ("host", "transfer-encoding")
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
                    server.request(self.command, self.path, body, headers)
                    answer = server.getresponse()
                    content = answer.read()
                if kind == "heard":
                    self.send_response(answer.status)
                    self.send_header(
                        "Content-Type", answer.getheader("Content-Type") or "application/json"
                    )
                else:
                    content = b"{}"
                    self.send_response(500)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def next(self) -> str:
        with self._lock:
            kind = self._random.choice(self.kinds)
            self.failures += kind != "heard"
            return kind

    def recover(self) -> None:
        """Fail nobody from now on."""
        self.kinds = ("heard",)

    def __enter__(self) -> "Flaky":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system with room for a store; `fill` leaves it none."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can make a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leave not a byte free on it."""
    with (
        (disk / "filler").open("wb", buffering=0) as filler,
        pytest.raises(OSError, match="No space left"),
    ):
        while True:
            filler.write(b"x" * 4096)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A git repository with the library in it, one commit."""
    folder = tmp_path / "clone"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline", ignore=ignore)
    (folder / "params.yaml").write_text("train_cnn:\n  lr: 0.01\n")
    (folder / ".gitignore").write_text("__pycache__/\n.tracking/\nmlflow.db*\nmlartifacts/\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    command = ["git", *name, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


STAGE = """
import sys, time
from pathlib import Path
from pipeline import tracking
from pipeline.settings import Tracking
settings = Tracking(
    enabled=True, experiment={experiment!r}, flush_seconds={flush}, system_seconds=0.5, promote=True
)
"""


def stage(
    folder: Path, body: str, experiment: str, flush: float = 20.0, **environment: str
) -> subprocess.Popen[str]:
    """Start a process that runs `body` as a stage in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-c", STAGE.format(experiment=experiment, flush=flush) + body],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sync(status: int = 0) -> str:
    """What `make sync` says, which has to end with that status."""
    command = [sys.executable, "-m", "pipeline.tracking", "sync"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout
