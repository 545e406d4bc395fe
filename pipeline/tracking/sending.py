"""Journals on their way into their stores: one (`Sending`), and what was left behind (`Senders`).

Whoever sends a journal holds its lock. What fails is tried again; the journal stays until the
store has all of it.
"""

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pipeline.tracking.journal import Journal, Record, journals
from pipeline.tracking.lineage import close_parent, duty, family
from pipeline.tracking.masking import clean

if TYPE_CHECKING:
    from pipeline.tracking.replay import Replay
    from pipeline.tracking.store import Store

POLL = 0.2  # seconds between two looks at the journal
LOOK = 1.0  # seconds between two looks at what nobody waits for: each holds up a core that trains
BACKOFF = 5.0  # seconds, the longest pause between two attempts


class Senders:
    """What sends in one process share: the stores, and the view on all journals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stores: dict[str, Store] = {}
        self._opening: dict[str, threading.Lock] = {}

    def store(self, begin: Record) -> "Store":
        """The store that a journal belongs to."""
        from pipeline.tracking.store import Store

        uri = begin["uri"]
        with self._opening.setdefault(uri, threading.Lock()):
            if uri not in self._stores:
                self._stores[uri] = Store(uri, Path(begin["root"]))
            return self._stores[uri]

    def leftovers(self, of: str | None = None) -> list[tuple[Journal, Record]]:
        """Journals of dead processes that are not in the store, or whose parent is still open.

        Args:
            of: only those of this family.
        """
        found = []
        for journal in journals(self.folder):
            begin = journal.begin()
            if not begin or (of and family(journal, begin) != of):
                continue
            if journal.is_complete(begin):
                closed = journal.state().closed >= begin["count"]
                todo = not closed and duty(journal, begin) != "wait"
            else:
                todo = not journal.is_live(begin)
            if todo and journal.path.exists():  # not cleared away by another meanwhile
                found.append((journal, begin))
        return found

    def finish(self, journal: Journal, begin: Record) -> None:
        """Close the run of the dvc process, if this was its last stage, and clear away."""
        todo, now = duty(journal, begin), journal.begin()
        if todo == "wait" or not now or now["count"] != begin["count"]:
            return
        state = journal.state()
        if todo == "close" and (parent := state.targets.get("parent")):
            try:
                close_parent(self.store(begin), parent, journal.graph(begin))
            except Exception as error:  # as in `Sending.run`: the next sender closes it
                note_failure(journal, error)
                return
        state.closed = begin["count"]
        journal.save(state)
        journal.tidy()

    def tidy(self) -> None:
        """Delete what was kept of runs that were cut short, a month on."""
        for journal in journals(self.folder):
            begin = journal.begin()
            if begin and journal.state().closed >= begin["count"] and not journal.is_live(begin):
                with locked(journal, wait=0) as mine:
                    if mine:
                        journal.tidy()

    def send_leftovers(
        self, wait: float = 0, patience: float | None = None, of: str | None = None
    ) -> int:
        """Send what dead processes left behind; returns how many runs are now in the store.

        Args:
            wait: seconds to wait for another sender that is at work on a journal.
            patience: seconds without progress; by default what the journal's stage had set. One
                attempt where the store has just failed with another journal.
            of: only those of this family.
        """
        done, failed = 0, set[str]()
        for journal, begin in self.leftovers(of):
            with locked(journal, wait) as mine:
                if mine:
                    once = 0 if begin["uri"] in failed else patience
                    Sending(journal, begin, self, lambda: False).run(once)
                    if journal.is_complete(begin):
                        self.finish(journal, begin)
                    elif journal.path.exists():
                        failed.add(begin["uri"])
            done += not journal.path.exists() or journal.is_complete(begin)
        return done


class Sending:
    """Sends one journal until it has an end, its process is dead, or nothing moves.

    Args:
        journal: what to send.
        begin: record of the start it is sent for.
        senders: where the stores are.
        ask_others: sends what other journals hold back; returns whether that was anything.
    """

    def __init__(
        self, journal: Journal, begin: Record, senders: Senders, ask_others: Callable[[], bool]
    ) -> None:
        self._journal = journal
        self._begin = begin
        self._senders = senders
        self._ask_others = ask_others
        self._replay: Replay | None = None

    def run(self, patience: float | None = None) -> None:
        """Keep sending: while the stage lives for ever, then while there is progress."""
        from pipeline.tracking.replay import SupersededError

        moved, pause, before = time.monotonic(), POLL, None
        patience = self._begin["flush"] if patience is None else patience
        while not self._journal.is_complete(self._begin):
            alive = self._journal.is_live(self._begin)
            try:
                progress = self._step(alive)
                pause = POLL
            except SupersededError:
                return
            except Exception as error:  # whatever the store does, the journal stays
                got = self._replay and (self._replay.state.sent, len(self._replay.state.parts))
                progress = got != before
                pause = POLL if progress else min(2 * max(pause, 0.25), BACKOFF)
                before = got
                note_failure(self._journal, error)
            if progress or alive:
                moved = time.monotonic()
            if progress:
                continue
            if time.monotonic() - moved > patience:
                return
            # A stage waits at its end for the next look: for a fiftieth of its time at most.
            age = time.time() - self._begin["t"] / 1000 if alive else 0
            time.sleep(max(pause, min(age / 50, LOOK)))

    def _step(self, alive: bool) -> bool:
        from pipeline.tracking.replay import Replay, SupersededError

        if self._replay is None:
            store = self._senders.store(self._begin)
            self._replay = Replay(self._journal, store, self._begin, self._ask_others)
        progress = self._replay.step(patient=alive)
        if not progress and not alive:
            if self._replay.state.run_id:
                self._replay.close_killed()
            else:  # killed before it could write its first line
                shutil.rmtree(self._journal.folder, ignore_errors=True)
                raise SupersededError
        return progress


def note_failure(journal: Journal, error: Exception) -> None:
    """Remember why the store did not take something, for the stage's warning and the log."""
    text = clean(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    state = journal.state()
    if state.error != text:
        state.error = text
        with suppress(OSError):  # the disk is full here too
            journal.save(state)
        print(time.strftime("%FT%TZ", time.gmtime()), text, file=sys.stderr, flush=True)


@contextmanager
def locked(journal: Journal, wait: float) -> Iterator[bool]:
    """Hold the journal's lock.

    False if another sender still has it after `wait` seconds, or has cleared the journal away.
    """
    lock = FileLock(journal.lock)
    try:
        lock.acquire(timeout=wait)
    except (Timeout, FileNotFoundError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def quiet() -> None:
    """Make mlflow in this process silent, impatient and deaf to what the user exported."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.CRITICAL)
