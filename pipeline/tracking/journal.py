"""The journal: what a stage logs is on the local disk before anything else happens to it.

One folder per run, `{root}/.tracking/<id>/`:

    journal.jsonl   by the stage: an operation per line, append-only
    begin.json      by the stage: its latest start
    source.json     beside the stage: git commit, …; from then on the journal may be sent
    uncommitted.diff  beside the stage, before source.json
    observed.jsonl  by the sender: samples of the machine
    state.json      by the sender: how far it has come; replaced atomically
    files/<…>/…     copies of the artifacts

A line that a killed process left unfinished is skipped: the call that wrote it never returned.
"""

import contextlib
import json
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.tracking.operations import FORMAT, Begin, Operation, parse
from pipeline.tracking.surroundings import is_alive

COPIED = 1_000_000  # bytes; larger files are hard-linked instead: weights are written once
UNWRITTEN = 10_000_000  # bytes kept in memory while the disk is full
RESUMABLE = 30 * 86400  # seconds that the journal of a run that was cut short is kept
_NO_TEXT = re.compile("[\ud800-\udfff]")  # what is no UTF-8 in a path, as Python reads it


def new_id(stage: str) -> str:
    """The name of a journal that no run has had: what `start(id=…)` takes."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{stage}-{uuid.uuid4().hex[:8]}"


class Log:
    """An append-only file of JSON lines. `append` takes some 10 µs: one `write`, no `fsync`."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.unwritten = bytearray()
        """What the disk has not taken yet."""
        self.lost = 0
        # A record that a kill left without its line break was none to whoever read the file since.
        whole = os.pread(self._file, path.stat().st_size, 0).rfind(b"\n") + 1
        os.ftruncate(self._file, whole)

    def append(self, operation: Operation) -> None:
        """Write one line; while the disk is full it waits in memory for the next call."""
        text = json.dumps(operation.record, separators=(",", ":"), ensure_ascii=False)
        line = _NO_TEXT.sub(lambda found: f"\\\\u{ord(found[0]):x}", text).encode() + b"\n"
        if len(self.unwritten) + len(line) > UNWRITTEN:
            self.lost += 1
            return
        self.unwritten += line
        with contextlib.suppress(OSError):  # the next call tries again
            del self.unwritten[: os.write(self._file, self.unwritten)]

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        with contextlib.suppress(OSError):
            while self.unwritten:
                del self.unwritten[: os.write(self._file, self.unwritten)]
            os.fsync(self._file)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)


def read(path: Path, offset: int = 0, limit: int = 1 << 62) -> Iterator[tuple[Operation, int]]:
    """Yield the whole operations from byte `offset` on, each with the offset of its end.

    Reads about `limit` bytes at most, but always one whole line if there is one.
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
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn line
                yield parse(json.loads(line)), offset
            if offset - start > limit:
                return


@dataclass
class State:
    """How far the sender of a journal has come."""

    sent: int = 0
    """Bytes of journal.jsonl that the store has acknowledged."""
    closed: int = 0
    """So many bytes were sent when the run was last closed."""
    status: str = "RUNNING"
    """As which it was closed."""
    observed: int = 0
    """Bytes of observed.jsonl that are in the store."""
    uri: str = ""
    """The store that this is about."""
    run_id: str | None = None
    targets: dict[str, str] = field(default_factory=dict)
    """Run ids of the other runs that operations go to."""
    parts: dict[str, str] = field(default_factory=dict)
    """What is done of the operation after `sent`, and what came of it."""
    notes: dict[str, str] = field(default_factory=dict)
    """Lines of the run's description, by input."""
    refused: list[str] = field(default_factory=list)
    """What the store will never take, and why."""
    error: str = ""
    """Why the last attempt failed."""


class Journal:
    """The folder of one run's journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.path = folder / "journal.jsonl"
        self.observed = folder / "observed.jsonl"
        self.files = folder / "files"
        self.beginning = FileLock(folder.parent / "begin.lock")
        """Held while a run begins, or what is complete is deleted."""
        self.patch = folder / "uncommitted.diff"

    def begin(self) -> Begin | None:
        """The latest start; None when there is none, or it is of another format."""
        try:
            found = json.loads((self.folder / "begin.json").read_text())
            return Begin(**found) if found["format"] == FORMAT else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write_begin(self, begin: Begin) -> None:
        """Replace the latest start; comes before it is appended to the journal."""
        replace_json(self.folder / "begin.json", vars(begin), sync=True)

    def source(self, begin: Begin) -> dict[str, Any]:
        """What the stage runs from; empty while that is not noted."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "source.json").read_text())
            return found if found["start"] == begin.start else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def note_source(self, begin: Begin, found: dict[str, Any]) -> None:
        """Keep what the stage runs from."""
        replace_json(self.folder / "source.json", {**found, "start": begin.start})

    def state(self) -> State:
        """What the sender has saved; a fresh one where nothing (readable) was saved.

        Starting from scratch is safe: every operation can be sent again.
        """
        try:
            return State(**json.loads((self.folder / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return State()

    def save(self, state: State) -> None:
        """Replace the saved state."""
        replace_json(self.folder / "state.json", asdict(state))

    def is_complete(self) -> bool:
        """Whether the store has acknowledged every whole line, and the run is closed after it.

        Without its first file it is one that `tidy` was killed at.
        """
        closed = self.state().closed
        whole = bool(closed) and next(read(self.path, closed), None) is None
        return whole or not self.path.exists()

    def is_live(self, begin: Begin) -> bool:
        """Whether the process that wrote `begin` still runs.

        One of another host does while its sender writes samples.
        """
        if begin.host == socket.gethostname():
            return is_alive(begin.pid, begin.created)
        files = [path for path in (self.path, self.observed) if path.exists()]
        age = time.time() - max((path.stat().st_mtime for path in files), default=0)
        return age < max(600, 10 * begin.system)

    def keep(self, path: Path) -> str:
        """Keep a file or folder as it is now; returns its path below `files/`."""
        name = path.name.encode(errors="backslashreplace").decode()
        target = self.files / uuid.uuid4().hex[:16] / name
        target.parent.mkdir(parents=True)
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, target, copy_function=_link, ignore=ignored)
        else:
            _link(str(path), str(target))
        return str(target.relative_to(self.files))

    def tidy(self) -> None:
        """Delete what the store has; a run that was cut short can be continued for a month."""
        with self.beginning:
            if not self.is_complete():
                return  # it has begun again meanwhile
            age = time.time() - self.path.stat().st_mtime if self.path.exists() else RESUMABLE
            if self.state().status == "FINISHED" or age >= RESUMABLE:
                self.path.unlink(missing_ok=True)  # first: others take a folder without it for none
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                shutil.rmtree(self.files, ignore_errors=True)
                self.patch.unlink(missing_ok=True)


def journals(folder: Path) -> list[tuple[Journal, Begin]]:
    """All journals below `{root}/.tracking` that this code can read, by their latest start."""
    found = [Journal(path.parent) for path in folder.glob("*/begin.json")]
    begun = [(journal, begin) for journal in found if (begin := journal.begin())]
    return sorted(begun, key=lambda one: (one[1].t, one[0].id))


def was_elsewhere(begin: Begin, root: Path) -> bool:
    """Whether this is of a workspace with another path: of this one before a move, or a copy's."""
    return begin.root != str(root)


def replace_json(path: Path, value: Any, sync: bool = False) -> None:
    """Write JSON to another name and rename it."""
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


class Thinning:
    """Which points of a metric are kept, so that a series stays under 10,000 points.

    The first 4,000 are; then one every 2 steps' distance of those, every 4, … with 500 points kept
    at each distance: 9,500 points at 2 million calls. What is kept depends on nothing but the
    points kept before, which the journal has, so a resumed run keeps the same ones.
    """

    WHOLE, SHARE = 4000, 500

    def __init__(self) -> None:
        self.kept = self._first = self._last = 0
        self._resumed: float = -math.inf
        self._distance = 1.0

    def keeps(self, step: int) -> bool:
        """Whether to keep the next point; those before an interruption were kept then."""
        if step <= self._resumed:
            return False
        if self.kept >= self.WHOLE:
            stride = 2 << (self.kept - self.WHOLE) // self.SHARE
            if step < self._last + stride * self._distance:
                return False
        self._keep(step)
        return True

    def add(self, step: int) -> None:
        """Take in a point that was kept before an interruption."""
        self._resumed = max(step, self._resumed)
        self._keep(step)

    def _keep(self, step: int) -> None:
        self.kept += 1
        self._last = step
        if self.kept == 1:
            self._first = step
        if self.kept == self.WHOLE:
            self._distance = max(1.0, (step - self._first) / (self.WHOLE - 1))
