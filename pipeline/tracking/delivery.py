"""The stage's side of sending: it starts a sender, starts another, and waits at its end."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from pipeline.tracking.journal import Journal, read
from pipeline.tracking.masking import clean
from pipeline.tracking.operations import Begin
from pipeline.tracking.surroundings import lock

LOG = "sender.log"
"""Below `.tracking/`: what went wrong in sender processes."""


class Delivery:
    """The sending of one journal since its start `begin`, as the stage sees it."""

    def __init__(self, journal: Journal, begin: Begin) -> None:
        self._journal = journal
        self._begin = begin
        self._told = False
        self._sender = _start_sender(journal)

    def look_after(self) -> None:
        """Start another sender if there is none, and say once what git refuses."""
        self.tell_what_git_refuses()
        self._see_to_a_sender()

    def wait(self) -> None:
        """Wait for the store, as long as it makes progress; then say what it does not have."""
        before, patience, look = None, time.monotonic() + self._begin.flush, 0.0
        while not self._journal.is_complete():
            state = self._journal.state()
            if (progress := (state.sent, len(state.parts))) != before:
                before, patience = progress, time.monotonic() + self._begin.flush
            self.tell_what_git_refuses()
            if time.monotonic() > patience:
                self._tell_what_is_pending()
                return
            if time.monotonic() > look:
                self._see_to_a_sender()
                look = time.monotonic() + 0.5
            time.sleep(0.02)

    def _see_to_a_sender(self) -> None:
        if self._sender is None or self._sender.poll() is not None:
            alone = lock(self._journal.folder.parent, self._begin.uri)
            with contextlib.suppress(OSError), alone.acquire(timeout=0):
                self._sender = _start_sender(self._journal)

    def tell_what_git_refuses(self) -> None:
        """Say once why it is not recorded what this stage runs from."""
        refused = "" if self._told else self._journal.source(self._begin).get("refused")
        if refused:
            warn(f"what this stage runs from is not recorded whole; git says: {refused}")
            self._told = True

    def _tell_what_is_pending(self) -> None:
        folder, state = self._journal.folder, self._journal.state()
        pending = sum(1 for _ in read(self._journal.path, state.sent))
        log = []
        with contextlib.suppress(OSError):  # there is none if no sender could be started
            log = (folder.parent / LOG).read_text(errors="replace").splitlines()
        why = state.error or (log[-1] if log else "")
        warn(
            f"{pending} records of this run are not in the store yet ({why or 'no answer'}); "
            f"they are kept in {folder}, and the next stage or `make sync` sends them"
        )


def warn(text: str) -> None:
    """Say what the user should know of, without credentials."""
    print(f"tracking: {clean(text)}", file=sys.stderr, flush=True)


def _start_sender(journal: Journal) -> subprocess.Popen[bytes] | None:
    try:
        with (journal.folder.parent / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline.tracking.sender", str(journal.folder)],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                # Ctrl-C is for the stage, which then says how it ended
                start_new_session=True,
            )
    except OSError as error:
        warn(f"the sender did not start ({error})")
        return None
