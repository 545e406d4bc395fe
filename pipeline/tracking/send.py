"""The sender: `python -m pipeline.tracking.send <journal folder>`, a process beside the stage.

A process and not a thread, because a thread would hold the GIL while it imports mlflow (a second)
and while SQLAlchemy works, and small training steps would wait for it. It runs niced, tails the
journal and replays it into the store; when nothing is left to do it takes care of journals that
other, dead processes left behind. The stage never waits for it except at its end.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.tracking import provenance
from pipeline.tracking.journal import Journal, Log, Record, journals, read
from pipeline.tracking.lineage import changes, close_parent, duty, watch
from pipeline.tracking.masking import clean
from pipeline.tracking.system import Sampler

if TYPE_CHECKING:
    from pipeline.tracking.replay import Replay
    from pipeline.tracking.store import Store

POLL = 0.1  # seconds between two looks at the journal
BACKOFF = 5.0  # seconds, the longest pause between two attempts


def main(folder: str) -> None:
    """Send the journal of a stage that runs beside this process, then what others left behind."""
    os.nice(10)
    quiet()
    journal = Journal(Path(folder))
    begin = journal.begin()
    if begin is None:
        return
    _observe(journal, begin)
    steps = sum(1 for _ in read(journal.observed, limit=1 << 62))
    sampler = Sampler(Log(journal.observed), begin["pid"], begin["system"], steps)
    senders = Senders(journal.folder.parent)
    with locked(journal, wait=600) as mine:  # an earlier sender of it may be about to leave
        if mine:
            Sending(journal, begin, senders).run()
            sampler.stop()
            if journal.state().complete >= begin["count"]:
                senders.finish(journal, begin, watch(journal, begin))
    senders.send_leftovers()


class Senders:
    """What the senders of one process share: the stores, and the view on all journals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stores: dict[str, Store] = {}
        self._nested = False

    def store(self, begin: Record) -> "Store":
        """The store that a journal belongs to."""
        from pipeline.tracking.store import Store

        uri = begin["uri"]
        if uri not in self._stores:
            self._stores[uri] = Store(uri, Path(begin["root"]))
        return self._stores[uri]

    def leftovers(self) -> list[tuple[Journal, Record]]:
        """Journals of dead processes that are not in the store, or whose parent is still open."""
        found = []
        for journal in journals(self.folder):
            begin = journal.begin()
            if begin and not journal.is_live(begin):
                sent = journal.state().complete >= begin["count"]
                todo = not sent or duty(journal, begin) == "close"
                if todo and journal.path.exists():  # not cleared away by another meanwhile
                    found.append((journal, begin))
        return found

    def finish(self, journal: Journal, begin: Record, graph: dict[str, Any]) -> None:
        """Close the run of the dvc process, if this was its last stage, and clear away."""
        state = journal.state()
        todo = duty(journal, begin)
        if todo == "wait":
            return
        if todo == "close" and (parent := state.targets.get("parent")):
            try:
                close_parent(self.store(begin), parent, graph)
            except Exception as error:  # as in `Sending.run`: the next sender closes it
                note_failure(journal, error)
                return
        state.parent_closed = True
        journal.save(state)
        journal.tidy()

    def send_leftovers(self, wait: float = 0, patience: float | None = None) -> int:
        """Send what dead processes left behind; returns how many runs are now in the store.

        Args:
            wait: seconds to wait for another sender that is at work on a journal.
            patience: seconds without progress; by default what the journal's stage had set.
        """
        if self._nested:
            return 0
        self._nested = True
        done = 0
        try:
            for journal, begin in self.leftovers():
                with locked(journal, wait) as mine:
                    if mine:
                        Sending(journal, begin, self).run(patience)
                        if journal.state().complete >= begin["count"]:
                            self.finish(journal, begin, {})
                done += not journal.path.exists() or journal.state().complete >= begin["count"]
        finally:
            self._nested = False
        return done


class Sending:
    """Sends one journal until it has an end, its process is dead, or nothing moves."""

    def __init__(self, journal: Journal, begin: Record, senders: Senders) -> None:
        self._journal = journal
        self._begin = begin
        self._senders = senders
        self._replay: Replay | None = None

    def run(self, patience: float | None = None) -> None:
        """Keep sending: while the stage lives for ever, then while there is progress."""
        from pipeline.tracking.replay import SupersededError

        moved, pause, before, swept = time.monotonic(), POLL, None, False
        patience = self._begin["flush"] if patience is None else patience
        while True:
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
            if self._replay and self._replay.state.complete >= self._begin["count"]:
                return
            if progress or alive:
                moved = time.monotonic()
            if time.monotonic() - moved > patience:
                return
            if not progress and not swept and self._replay and self._replay.state.run_id:
                swept = True
                self._senders.send_leftovers(patience=0)
            if not progress:
                time.sleep(pause)

    def _step(self, alive: bool) -> bool:
        from pipeline.tracking.replay import Replay, SupersededError

        if self._replay is None:
            store = self._senders.store(self._begin)
            ask = self._senders.send_leftovers
            self._replay = Replay(self._journal, store, self._begin, lambda: ask(wait=20) > 0)
        progress = self._replay.step()
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
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.CRITICAL)


def _observe(journal: Journal, begin: Record) -> None:
    """Note what the stage runs from, at its start: later the working tree may have changed."""
    found = {**provenance.git(Path.cwd()), "changes": changes(Path.cwd())}
    temporary = journal.provenance.with_suffix(".tmp")
    temporary.write_text(json.dumps({**found, "count": begin["count"]}))
    temporary.replace(journal.provenance)


if __name__ == "__main__":
    main(sys.argv[1])
