"""The process beside a stage: `python -m pipeline.tracking.send <journal folder>`.

It runs niced, notes what the stage runs from and samples system metrics. One of the processes of
a dvc process and store, the first, is also the sender; it alone imports mlflow:

* It holds the lock of the family (`lineage.family`) and lives until the dvc process is gone.
* It sends each journal of the family from the moment its provenance is noted: a thread for each,
  so that none waits for another that hangs. The thread holds the journal's lock.
* It looks after journals that other, dead processes left behind: when a stage starts, and at the
  end, which is when dvc is gone, everything is sent and the parent run is closed.
* The others stand by: they leave with their stage, and one takes over when the sender dies, whose
  locks the system then releases.

Outside DVC every stage has a sender of its own, which leaves when the run is in the store. The
stage never waits for any of them except at its end. They are processes because a thread would
hold the GIL while it imports mlflow (a second) and while SQLAlchemy works, and small training
steps would wait for it.
"""

import hashlib
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from filelock import FileLock, Timeout

from pipeline.streams import make_safe
from pipeline.tracking import provenance
from pipeline.tracking.graph import Graph
from pipeline.tracking.journal import Journal, Log, Record, journals, read
from pipeline.tracking.lineage import changes, duty, dvc_lives, family, parent_key
from pipeline.tracking.sending import LOOK, POLL, Senders, Sending, locked, quiet
from pipeline.tracking.system import Sampler


def main(folder: str) -> None:
    """Watch a stage, and send its journal and its family's unless another process does."""
    _give_way()
    quiet()
    journal = Journal(Path(folder))
    begin = journal.begin()
    if begin is None:
        return

    def wanted() -> bool:
        unsent = journal.path.exists() and not journal.is_complete(begin)
        return unsent and journal.is_live(begin)

    before = [record["step"] for record, _ in read(journal.observed, limit=1 << 62)]
    Sampler(Log(journal.observed), begin["pid"], begin["system"], before, wanted)
    # now: later the working tree may have changed
    found = {**provenance.git(Path.cwd()), "changes": changes(Path.cwd())}
    journal.note(begin, found)
    os.chdir(begin["root"])  # a temporary copy goes with dvc, and DVC's library needs a folder
    name = hashlib.sha256(family(journal, begin).encode()).hexdigest()[:16]
    lock = FileLock(journal.folder.parent / f"{name}.lock")
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if not wanted():
                return
            time.sleep(LOOK)
            continue
        senders = Senders(journal.folder.parent)
        Sender(journal, begin, senders).run()
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        senders.send_leftovers(patience=0)
        senders.tidy()
        return


def _give_way() -> None:
    """Let what trains go first."""
    os.nice(10)
    if hasattr(os, "SCHED_BATCH"):  # waking up, it interrupts nobody
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if os.getsid(0) == os.getpid():  # where sessions share the cores, `nice` counts within one
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text("10")  # sched(7)


class Sender:
    """Sends the journals of one family, until nobody can add another."""

    def __init__(self, journal: Journal, begin: Record, senders: Senders) -> None:
        self._journal = journal
        self._begin = begin
        self._family = family(journal, begin)
        self._senders = senders
        self._graph = Graph(Path(begin["code"]))
        self._threads: dict[tuple[str, int], Thread] = {}
        self._sending: set[tuple[str, int]] = set()
        self._sweep: Thread | None = None
        self._sent = Event()
        self._over = Event()

    def run(self) -> None:
        """Return when the dvc process is gone and everything is sent, or nothing moves."""
        import pipeline.tracking.replay  # noqa: F401 (before threads want it at the same time)

        graph: Record | None = None
        try:
            while True:
                self._sent.clear()
                alive = dvc_lives(self._journal, self._begin)
                if self._start_threads() and not (self._sweep and self._sweep.is_alive()):
                    self._sweep = Thread(target=self._senders.send_leftovers, args=(0, 0))
                    self._sweep.start()
                if graph is None:
                    self._graph.look()
                    # later the user may have changed the files, or have begun another repro
                    graph = None if alive else self._end()
                if not alive and not self._sending:
                    break
                # the next stage begins when this one has ended
                self._sent.wait(LOOK if self._sending else POLL)
            for journal, begin in self._senders.leftovers(of=self._family):
                with suppress(OSError):  # another has just sent it and cleared it away
                    journal.keep_graph(begin, graph or {})
            self._senders.send_leftovers(patience=0, of=self._family)
        finally:
            self._over.set()
        for thread in self._threads.values():
            thread.join()

    def _end(self) -> Record:
        """What the run of the dvc process is told, which has just ended."""
        graph = {"end": int(time.time() * 1000)}
        return {**graph, **self._graph.found()} if parent_key(self._begin) else graph

    def _start_threads(self) -> bool:
        """Begin to send what has appeared; returns whether anything has."""
        started = False
        for journal in journals(self._senders.folder):
            begin = journal.begin()
            if not begin or family(journal, begin) != self._family:
                continue
            key = (journal.id, begin["count"])
            if key not in self._threads and journal.noted(begin):
                self._threads[key] = Thread(target=self._send, args=(journal, begin, key))
                self._sending.add(key)
                self._threads[key].start()
                started = True
        return started

    def _send(self, journal: Journal, begin: Record, key: tuple[str, int]) -> None:
        def ask_others() -> bool:
            return self._senders.send_leftovers(wait=20) > 0

        try:
            with locked(journal, wait=600) as mine:  # an earlier sender may be about to leave
                if mine:
                    Sending(journal, begin, self._senders, ask_others).run()
                    self._done(key)
                    if journal.is_complete(begin):
                        # the run of the dvc process is closed after the latest of its stages
                        while duty(journal, begin) != "none" and not self._over.wait(POLL):
                            pass
                        self._senders.finish(journal, begin)
        finally:
            self._done(key)

    def _done(self, key: tuple[str, int]) -> None:
        self._sending.discard(key)
        self._sent.set()


if __name__ == "__main__":
    make_safe()  # its log may lie on a full disk
    main(sys.argv[1])
