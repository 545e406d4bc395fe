"""The journal: what a stage logs is on the local disk before anything else happens to it.

One folder per run, `{root}/.tracking/<id>/`:

    journal.jsonl    written by the stage, one record per line, append-only
    observed.jsonl   system metrics, by the process beside the stage
    provenance.json  git commit, diff, …, by the same; from then on the journal may be sent
    graph.json       what dvc.yaml and dvc.lock said when dvc ended, for the run of that process
    files/<n>/…      copies of the artifacts
    begin.json       the record of the latest start
    state.json       how far the sender has come; replaced atomically
    lock             held by whoever sends the journal

A line that a killed process left unfinished is skipped: the call that wrote it never returned.
"""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

Record = dict[str, Any]

COPIED = 1_000_000  # bytes; larger files are hard-linked instead: weights are written once
UNWRITTEN = 10_000_000  # bytes kept in memory while the disk is full


def root() -> Path:
    """Where the store and the journals are: the DVC workspace, also from a temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or Path(__file__).parents[2]).resolve()


def escaped(path: Path) -> str:
    """A path as it stands in a URI: SQLAlchemy and MLflow read `%41`, `#` and `?`."""
    return quote(str(path), safe="/ ")


def sqlite_uri(file: Path) -> str:
    """The URI of a database file."""
    path = escaped(file)
    # for `sqlite:///` MLflow makes the folder of the path without reading what is escaped in it
    driver = "sqlite" if path == str(file) else "sqlite+pysqlite"
    return f"{driver}:///{path}"


def store_uri() -> str:
    """The store's: `$MLFLOW_TRACKING_URI`, or the workspace's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(root() / "mlflow.db")


def this_process() -> Record:
    """What tells a live process from a dead one: host, pid and when it was created."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "created": process.create_time()}


def is_alive(pid: int, created: float) -> bool:
    """Whether a process of this host still runs."""
    try:
        process = psutil.Process(pid)
        # the create time of one process varies with the adjustments of the clock
        return abs(process.create_time() - created) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Log:
    """An append-only file of JSON lines. `append` takes some 10 µs: one `write`, no `fsync`."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._unwritten = bytearray()
        self.lost = 0
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._unwritten += b"\n"

    def append(self, record: Record) -> None:
        """Write one record; while the disk is full it waits in memory for the next call."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if len(self._unwritten) + len(line) > UNWRITTEN:
            self.lost += 1
            return
        self._unwritten += line
        with contextlib.suppress(OSError):  # the next call tries again; `unwritten` tells
            del self._unwritten[: os.write(self._file, self._unwritten)]

    @property
    def unwritten(self) -> int:
        """Bytes that the disk has not taken yet."""
        return len(self._unwritten)

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        with contextlib.suppress(OSError):
            while self._unwritten:
                del self._unwritten[: os.write(self._file, self._unwritten)]
            os.fsync(self._file)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)


def read(path: Path, offset: int = 0, limit: int = 500_000) -> Iterator[tuple[Record, int]]:
    """Yield the whole records from byte `offset` on, each with the offset of its end.

    Reads about `limit` bytes at most, but always one whole record if there is one.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        start = file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record, offset
            if offset - start > limit:
                return


@dataclass
class State:
    """How far the senders of a journal have come."""

    sent: int = 0
    """Bytes of journal.jsonl that are in the store."""
    observed: int = 0
    """Bytes of observed.jsonl that are in the store."""
    uri: str = ""
    """The store that this is about."""
    run_id: str | None = None
    complete: int = 0
    """The start of this number has been sent to its end."""
    status: str = "RUNNING"
    """How the run ended."""
    targets: dict[str, str] = field(default_factory=dict)
    """Run ids of the other runs that records go to."""
    parts: dict[str, str] = field(default_factory=dict)
    """What is done of the record after `sent`, and what came of it."""
    notes: dict[str, str] = field(default_factory=dict)
    """Lines of the run's description, by input."""
    refused: list[str] = field(default_factory=list)
    """What the store will never take, and why."""
    closed: int = 0
    """After the start of this number nothing is left to do for the run of the dvc process above."""
    error: str = ""
    """Why the last attempt failed."""


class Journal:
    """The folder of one run's journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.path = folder / "journal.jsonl"
        self.observed = folder / "observed.jsonl"
        self.provenance = folder / "provenance.json"
        self.files = folder / "files"
        self.lock = folder / "lock"

    def begin(self) -> Record | None:
        """The record of the latest start, None when there is none (yet). Not to be changed."""
        path = self.folder / "begin.json"
        try:
            about = path.stat()
            return _parsed(path, about.st_ino, about.st_mtime_ns)
        except (OSError, ValueError):
            return None

    def noted(self, begin: Record) -> Record | None:
        """What the stage runs from, None while that is not noted."""
        try:
            found: Record = json.loads(self.provenance.read_text())
        except (OSError, ValueError):
            return None
        return found if found.get("count") == begin["count"] else None

    def note(self, begin: Record, found: Record) -> None:
        """Keep what the stage runs from."""
        _replace(self.provenance, {**found, "count": begin["count"]})

    def graph(self, begin: Record) -> dict[str, Any]:
        """What `keep_graph` kept, or empty."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "graph.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if found.get("count") == begin["count"] else {}

    def keep_graph(self, begin: Record, found: dict[str, Any]) -> None:
        """Keep what the run of the dvc process above will be told, maybe once the store is back.

        Of several senders the first saw dvc end.
        """
        if not self.graph(begin):
            _replace(self.folder / "graph.json", {**found, "count": begin["count"]})

    def is_complete(self, begin: Record) -> bool:
        """Whether the store has all of the run, up to its end."""
        return self.state().complete >= begin["count"]

    def write_begin(self, record: Record) -> None:
        """Replace the record of the latest start; comes before it is appended to the journal."""
        _replace(self.folder / "begin.json", record, sync=True)

    def state(self) -> State:
        """What the last sender saved; a fresh one where nothing (readable) was saved.

        Starting from scratch is safe: every operation of the replay is idempotent.
        """
        try:
            return State(**json.loads((self.folder / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return State()

    def is_live(self, begin: Record) -> bool:
        """Whether the process that wrote `begin` still runs.

        One of another host does while its sender writes system metrics.
        """
        if begin["host"] != socket.gethostname():
            files = [path for path in (self.path, self.observed) if path.exists()]
            age = time.time() - max((path.stat().st_mtime for path in files), default=0)
            return age < max(600, 10 * begin["system"])
        return is_alive(begin["pid"], begin["created"])

    def tidy(self) -> None:
        """Delete what is in the store.

        A run that was cut short keeps its journal for a month: a resumed training continues it.
        """
        state = self.state()
        age = time.time() - self.path.stat().st_mtime
        if state.status == "FINISHED" or age > 30 * 86400:
            self.path.unlink()  # first: others take a folder without it for none
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            shutil.rmtree(self.files, ignore_errors=True)

    def save(self, state: State) -> None:
        """Replace the saved state."""
        _replace(self.folder / "state.json", asdict(state))

    def keep(self, path: Path) -> str:
        """Keep a file or folder as it is now; returns its path below `files/`."""
        taken = len(list(self.files.iterdir())) if self.files.exists() else 0
        while True:
            try:
                (self.files / str(taken)).mkdir(parents=True)
                break
            except FileExistsError:
                taken += 1
        target = self.files / str(taken) / path.name
        if path.is_dir():
            shutil.copytree(path, target, copy_function=_link)
        else:
            _link(str(path), str(target))
        return f"{taken}/{path.name}"


@lru_cache(maxsize=256)
def _parsed(path: Path, *_version: int) -> Record:
    """What a file holds that is only ever replaced; read once, as it is asked for all the time."""
    found: Record = json.loads(path.read_text())
    return found


def _replace(path: Path, value: Any, sync: bool = False) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value))
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def _link(source: str, target: str) -> None:
    path = Path(source).resolve(strict=True)
    if path.stat().st_size > COPIED:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(path, target)
            return
    shutil.copyfile(path, target)


def journals(folder: Path) -> list[Journal]:
    """All journals below `{root}/.tracking`, the oldest first."""
    if not folder.is_dir():
        return []
    return [Journal(path.parent) for path in sorted(folder.glob("*/journal.jsonl"))]


class Thinning:
    """Which points of a metric are kept, so that a series stays under 10,000 points.

    The first 4,000 are; then every second of the next, every fourth, … with 500 points kept at
    each stride: 9,500 points at 2 million calls, 500 of them over the latest half. What is kept
    depends on nothing but the points before, so a resumed run keeps the same ones.
    """

    def __init__(self, kept: int = 0) -> None:
        self.kept = kept
        self._since = 0

    @property
    def stride(self) -> int:
        """Of so many points the next one is kept."""
        return 1 if self.kept < 4000 else 2 << (self.kept - 4000) // 500

    def keeps(self) -> bool:
        """Whether to keep the next point."""
        self._since += 1
        if self._since < self.stride and self.kept:
            return False
        self._since = 0
        self.kept += 1
        return True


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
