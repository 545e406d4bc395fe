"""The process that sends: `python -m pipeline.tracking.sender <journal folder>`.

Each stage starts one, and one of them sends for all: see docs/tracking.md. The stage waits for it
only at its end. It is a process because a thread would hold the GIL while it imports mlflow (a
second), and small training steps would wait for it.
"""

import os
import shutil
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import psutil
from filelock import Timeout

from pipeline.streams import make_safe
from pipeline.tracking import provenance
from pipeline.tracking.journal import Journal, Log, journals, read, was_elsewhere
from pipeline.tracking.masking import clean
from pipeline.tracking.operations import Begin, Metrics, now
from pipeline.tracking.parents import Graph, Parent, close_parent, parent_file, read_parents
from pipeline.tracking.surroundings import credentials, give_way, lock, quiet
from pipeline.tracking.system import Sampler

if TYPE_CHECKING:
    from pipeline.tracking.replay import Replay
    from pipeline.tracking.store import Store

POLL = 0.2  # seconds between two looks at the journals
LOOK = 1.0  # seconds between two looks at what nobody waits for: each holds up a core that trains
BACKOFF = 5.0  # seconds, the longest pause between two attempts
WAIT = 60  # seconds that `sync` gives to senders that are at work
NOTED = 30  # seconds in which a stage's source is noted, or its process has died


def main(folder: str) -> None:
    """Note what a stage runs from, and send if nobody else does."""
    give_way()
    quiet()
    journal = Journal(Path(folder))
    begin = journal.begin()
    if begin is None:
        return
    if not journal.source(begin):
        journal.note_source(begin, provenance.git(Path.cwd(), journal.patch))
    os.chdir(begin.root)  # a temporary copy goes with dvc, and DVC's library needs a folder
    place, alone = journal.folder.parent, lock(journal.folder.parent, begin.uri)
    while not journal.is_complete():
        # a stage may be asking whether it is free
        with suppress(Timeout), alone.acquire(timeout=POLL):
            Sender(place, begin.uri).run()
            return
        if begin.credentials == [] or journal.state().run_id:
            return  # who sends will send this too
        time.sleep(LOOK)  # the sender lacks the credentials


class Sender:
    """Sends the journals below `{root}/.tracking` of one store. Whoever calls it holds `lock`."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder = folder
        self._uri = uri
        self._store: Store | None = None
        self._credentials = set(credentials(uri))
        self._replays: dict[tuple[str, int], Replay] = {}
        self._graphs: dict[Path, Graph] = {}
        self._complete: dict[str, tuple[Begin, int]] = {}
        self.failed = False
        """Whether something could not be sent in the last step."""

    def run(self) -> None:
        """Send until there is nothing left and nobody who could add more, or nothing moves."""
        over, woken = Event(), Event()
        Thread(target=self._sample, args=(over, woken), name="samples", daemon=True).start()
        moved, pause, known = time.monotonic(), POLL, set[str]()
        while True:
            progress = self.step()
            # a second, so not before; and later the folder of the code may be gone
            import pipeline.tracking.models  # noqa: F401

            pending, parents = self.pending(), read_parents(self._folder, self._uri)
            ages = {j.id: (now() - b.t) / 1000 for j, b in pending if j.is_live(b)}
            if ages.keys() - known:
                woken.set()
            known = {*ages}
            begun = [begin for _, begin in pending] + [parent.begin for _, parent in parents]
            patience = max((begin.flush for begin in begun), default=0)
            if progress or ages or any(parent.lives() for _, parent in parents):
                moved = time.monotonic()
            elif not (pending or parents) or time.monotonic() - moved > patience:
                over.set()
                return
            if self.failed and not progress:
                pause = min(2 * max(pause, 0.25), BACKOFF)
            else:
                # A stage waits at its end for the next look: for a fiftieth of its time
                pause = min(LOOK, max(POLL, min(ages.values(), default=0) / 50))
            if not progress:
                time.sleep(pause)

    def step(self) -> bool:
        """Send what there is, the oldest journal first; returns whether anything moved."""
        moved = self.failed = False
        pending = self.pending()
        with suppress(OSError):  # a full disk: the next step tries again
            # before a journal is sent: its stage waits for that, and dvc for the stage
            self._watch(pending)
        for journal, begin in pending:
            before = _progress(journal)
            try:
                self._send(journal, begin)
            except Exception as error:  # whatever the store does, the journal stays
                self.failed = True
                state, text = journal.state(), _say(error)
                if state.error != text:  # for the stage's warning
                    state.error = text
                    with suppress(OSError):  # the disk is full here too
                        journal.save(state)
                if not (self._store and self._store.answers()):
                    return moved  # the others would only wait for it as long
            finally:
                moved = moved or _progress(journal) != before
        return self._close_parents() or moved

    def pending(self) -> list[tuple[Journal, Begin]]:
        """Journals that the store does not have all of, or whose run is still open."""
        found = []
        for journal, begin in journals(self._folder):
            mine = begin.uri == self._uri and self._credentials >= {*begin.credentials}
            mine = mine and not was_elsewhere(begin, self._folder.parent)
            if not mine or (begin.host != socket.gethostname() and journal.is_live(begin)):
                continue
            size = journal.path.stat().st_size if journal.path.exists() else 0
            if self._complete.get(journal.id) == (begin, size):
                continue
            if not journal.is_complete():
                found.append((journal, begin))
            else:
                self._complete[journal.id] = begin, size
                self._replays.pop((journal.id, begin.start), None)
                if journal.path.exists() or not journal.is_live(begin):
                    journal.tidy()
        return found

    def _send(self, journal: Journal, begin: Begin) -> None:
        alive = journal.is_live(begin)
        if next(read(journal.path), None) is None:
            if not alive:  # killed before it could write its first line
                shutil.rmtree(journal.folder, ignore_errors=True)
            return
        if alive and not journal.source(begin) and now() - begin.t < NOTED * 1000:
            return
        store = self._open()
        if (key := (journal.id, begin.start)) not in self._replays:
            from pipeline.tracking.replay import Replay

            self._replays[key] = Replay(journal, begin, store)
        self._replays[key].step(alive)

    def _open(self) -> "Store":
        if self._store is None:
            from pipeline.tracking.store import Store

            self._store = Store(self._uri, self._folder.parent)
        return self._store

    def _watch(self, pending: list[tuple[Journal, Begin]]) -> None:
        """Keep what each dvc process reads and writes, and when it was gone."""
        for _, begin in pending:
            if begin.parent and not (path := parent_file(self._folder, begin)).exists():
                Parent(begin).save(path)
        for path, parent in read_parents(self._folder, self._uri):
            graph = self._graphs.setdefault(path, Graph(Path(parent.begin.code)))
            if parent.lives():
                graph.look()
            elif graph.watched and not parent.end:
                # later the user may have changed the files, or have begun another repro
                parent.end, parent.graph = now(), graph.found()
                parent.save(path)

    def _close_parents(self) -> bool:
        """Close the run of each dvc process that is gone, after all of its stages."""
        closed = False
        for path, parent in read_parents(self._folder, self._uri):
            mine = [begin for _, begin in self.pending() if begin.parent == parent.begin.parent]
            graph = self._graphs.get(path)
            unseen = graph is None or (graph.watched and not parent.end)  # its end is noted first
            if mine or parent.lives() or unseen:
                continue
            try:
                if parent.run_id:
                    close_parent(self._open(), parent)
            except Exception as error:  # as with a journal: the file stays
                if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    self.failed = True
                    _say(error)
                    continue
            path.unlink()
            closed = True
        return closed

    def _sample(self, over: Event, woken: Event) -> None:
        """Sample the machine for each stage of this host that runs."""
        samplers: dict[tuple[str, int], Sampler] = {}
        while not over.is_set():
            pause = LOOK
            for journal, begin in journals(self._folder):
                here = begin.uri == self._uri and begin.host == socket.gethostname()
                if not here or not journal.is_live(begin) or journal.is_complete():
                    continue
                with suppress(OSError, psutil.Error):  # it has ended meanwhile; a full disk
                    if (key := (journal.id, begin.start)) not in samplers:
                        seen = [one for one, _ in read(journal.observed)]
                        before = [one.step for one in seen if isinstance(one, Metrics)]
                        samplers[key] = Sampler(Log(journal.observed), begin, before)
                    pause = min(pause, samplers[key].sample_if_due())
            woken.wait(pause)
            woken.clear()


def leftovers(folder: Path) -> list[tuple[Journal, Begin]]:
    """Journals of dead processes that the store does not have all of."""
    return [
        (journal, begin)
        for journal, begin in journals(folder)
        if not journal.is_complete() and not journal.is_live(begin)
    ]


def sync(folder: Path) -> int:
    """Send what dead processes left behind; returns how many runs the store has now.

    One attempt for each store, unless another sender is at work for longer than `WAIT`.
    """

    def own() -> list[tuple[Journal, Begin]]:
        return [one for one in leftovers(folder) if not was_elsewhere(one[1], folder.parent)]

    before, end = own(), time.monotonic() + WAIT
    uris = {begin.uri for _, begin in before}
    for uri in sorted(uris | {parent.begin.uri for _, parent in read_parents(folder)}):
        while time.monotonic() < end:
            with suppress(Timeout), lock(folder, uri).acquire(timeout=0):
                sender = Sender(folder, uri)
                while sender.step():
                    pass
                break
            parents = [parent for _, parent in read_parents(folder, uri) if not parent.lives()]
            if not parents and all(begin.uri != uri for _, begin in own()):
                break
            time.sleep(POLL)
    return sum(journal.is_complete() for journal, _ in before)


def _progress(journal: Journal) -> tuple[int, int, int, int]:
    state = journal.state()
    return state.sent, state.closed, state.observed, len(state.parts)


def _say(error: Exception) -> str:
    """Write one line to the log; returns it without the time."""
    text = clean(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    print(time.strftime("%FT%TZ", time.gmtime()), text, file=sys.stderr, flush=True)
    return text


if __name__ == "__main__":
    make_safe()  # its log may lie on a full disk
    main(sys.argv[1])
