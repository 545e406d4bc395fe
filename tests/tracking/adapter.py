"""The tracker as `test_model` drives it: all that this test knows of the tracker's inside."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.settings import Tracking
from pipeline.tracking import delivery, journal, run, sender, surroundings

WHOLE = 5
"""So many points of a series are all kept; for the test fewer than 4,000."""


class Tracker:
    """One tracker whose stages and sender work in this process, when they are told to."""

    def __init__(self, patch: pytest.MonkeyPatch, client: Any) -> None:
        from pipeline.tracking import replay, store

        self._replay, self._processes = replay, 0
        patch.setattr(store, "MlflowClient", lambda *uris: client)
        patch.setattr(store, "METRICS", 5)  # per request, so that a batch has several
        patch.setattr(journal, "is_alive", lambda pid, created: pid in self._alive)
        patch.setattr(surroundings, "this_process", self._process)
        patch.setattr(run, "warn", lambda text: None)
        patch.setattr(delivery, "warn", lambda text: None)
        patch.setattr(delivery, "_start_sender", lambda journal: None)
        patch.setattr(sender, "_say", lambda error: f"{type(error).__name__}: {error}")
        patch.setattr(replay, "BATCH", replay.BATCH)
        patch.setattr(journal.Thinning, "WHOLE", WHOLE)
        patch.setattr(journal.Thinning, "SHARE", 4)

    def reset(self, folder: Path) -> None:
        """Go to a workspace."""
        os.environ["DVC_ROOT"] = str(folder)
        self._folder = folder / ".tracking"
        self._alive: set[int] = set()
        self._pids: dict[str, int] = {}
        self.sender_dies()

    def _process(self) -> dict[str, Any]:
        self._alive.add(self._processes)
        return {"host": journal.socket.gethostname(), "pid": self._processes, "created": 0.0}

    def begin(self, name: str, finished: bool = False) -> tracking.Run:
        """The start of a stage, or another one."""
        self._processes += 1
        self._pids[name] = self._processes
        settings = Tracking.model_construct(
            enabled=True, experiment="model", flush_seconds=0.0, system_seconds=1.0
        )
        return tracking.start("train_cnn", settings, {"lr": 0.1}, {}, name, finished)

    def begin_finished(self, name: str) -> None:
        """What `stage.py` does when a stage that remembers to have finished starts again."""
        self.begin(name, finished=True).end()
        self.dies(name)

    def dies(self, name: str) -> None:
        """The process of the stage is gone."""
        self._alive.discard(self._pids[name])

    def send(self, hurry: bool) -> None:
        """Let the sender work until it waits; in no hurry it collects points for a batch."""
        self._replay.BATCH = (-1.0 if hurry else 1e9), 100_000
        for one, begin in journal.journals(self._folder):
            if not one.source(begin):
                one.note_source(begin, {})
        self._sender = self._sender or sender.Sender(self._folder, surroundings.store_uri())
        while self._sender.step():
            pass

    def sender_dies(self) -> None:
        """The next one knows only what is on the disk."""
        self._sender: sender.Sender | None = None

    def sync(self) -> None:
        """`make sync`, with no other sender at work."""
        self.sender_dies()
        sender.sync(self._folder)

    def pending(self) -> set[str]:
        """The runs of which the store lacks something, as `make sync` sees it."""
        return {one.id for one, _ in sender.leftovers(self._folder)}
