"""Training state on disk: written whole, checked when read, locked while in use, gone on success.

The state of a run lies in `<root>/.checkpoints/<stage>-<key>/`, where the key is a digest of the
config, the input data and the code, so a run never continues from another one's state. DVC does
not know the folder: it deletes a stage's outputs before it runs the stage.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout
from torch.utils._pytree import tree_leaves

from pipeline.files import digest, explained, new_file, write_json
from pipeline.nested import differences

SAVING = 0.05
"""Share of its time that a training spends on saves after its epochs, but the first and last."""
KEEP = 2
"""States kept: the newest may turn out damaged."""


@dataclass
class Checkpoints:
    """The saved states of one training.

    Attributes:
        folder: where they lie.
        saved_at: when the last save ended, or this began, by `time.monotonic`.
        seconds: what that save took.
    """

    folder: Path
    saved_at: float = field(default_factory=lambda: time.monotonic())
    seconds: float = 0.0

    def age(self) -> float:
        """Seconds since the last save."""
        return time.monotonic() - self.saved_at

    def are_dear(self) -> bool:
        """Whether one more like the last, by now, would take more than its share of the time."""
        return self.seconds > SAVING * self.age()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state of tensors, numbers, strings, lists and dicts as `<step>-<sha256>.pt`.

        The digest is of the file's bytes. Older states beyond the last two are removed.

        Raises:
            PipelineError: the disk is full; the earlier states stay usable.
        """
        started = time.monotonic()
        needs = sum(one.nbytes for one in tree_leaves(state) if isinstance(one, torch.Tensor))
        with new_file(self.folder / f"{step:010d}.pt", needs) as temporary:
            torch.serialization.set_crc32_options(False)  # the sha256 says more
            # Through Python's own file, whose error on a full disk says that it is full.
            with temporary.open("wb") as file:
                torch.save(state, file)
            checksum = digest(temporary, "sha256")
        (self.folder / f"{step:010d}.pt").replace(self.folder / f"{step:010d}-{checksum}.pt")
        for old in self._files()[KEEP:]:
            old.unlink()
        self.saved_at = time.monotonic()
        self.seconds = self.saved_at - started

    def load(self) -> dict[str, Any] | None:
        """The newest undamaged state with its tensors on the CPU, or None where there is none."""
        for file in self._files():
            if digest(file, "sha256") == file.stem.split("-")[1]:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                return state
            print(f"warning: {file} is damaged; going back to the state before", file=sys.stderr)
        return None

    def remember(self, name: str, value: Any) -> None:
        """Keep a small value beside the states."""
        write_json(self.folder / f"{name}.json", value)

    def recall(self, name: str) -> Any:
        """The value kept under a name, or None."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("*-*.pt"), reverse=True)


@contextmanager
def checkpoints(
    root: Path, stage: str, identity: dict[str, Any], leads: bool = True
) -> Iterator[Checkpoints]:
    """The states of a training, removed on success.

    A second process with the same identity waits: it goes on from the states that the first one
    leaves when it dies, or finds what the first one remembers when that succeeds.

    Args:
        root: folder of all training states.
        stage: name of the stage.
        identity: JSON-like values that decide the result: config, digests of data and code.
        leads: False for all but the first process of a data-parallel training: they only read.

    Raises:
        PipelineError: the folder can't be written.
    """
    text = json.dumps(identity, sort_keys=True)
    folder = root / f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not leads:
        yield Checkpoints(folder)
        return
    lock = _lock(folder, stage)
    try:
        with explained(folder):
            (folder / "pid").write_text(str(os.getpid()))
        saved = Checkpoints(folder)
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed: the lock is ours
            leftover.unlink()
        if not (folder / "identity.json").is_file():
            _say_why_new(root, stage, identity)
            saved.remember("identity", identity)
        yield saved
        if any(psutil.pid_exists(int(one.suffix[1:])) for one in folder.glob("waiting.*")):
            return
        # Under another name first: one who waits would make the lock anew in a half-empty folder.
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)  # of a process that was killed right here
        shutil.rmtree(folder.rename(gone))
    finally:
        lock.release()


def _lock(folder: Path, stage: str) -> FileLock:
    """Make the folder and hold its lock; who waits for it leaves a file there meanwhile."""
    lock, waiting = FileLock(folder / "lock"), folder / f"waiting.{os.getpid()}"
    try:
        with explained(folder):
            while True:
                # again: who held the lock may have removed the folder at its end
                folder.mkdir(parents=True, exist_ok=True)
                with suppress(Timeout, FileNotFoundError):
                    lock.acquire(timeout=1 if waiting.exists() else 0)
                    return lock
                with suppress(FileNotFoundError):
                    if not waiting.exists():
                        owner = (folder / "pid").read_text()
                        who = f"another process ({owner}) is running {stage} with this config"
                        print(f"{who}; waiting for its end", flush=True)
                    waiting.touch()
    finally:
        waiting.unlink(missing_ok=True)


def _say_why_new(root: Path, stage: str, identity: dict[str, Any]) -> None:
    """Explain, where a state of the same stage was left, why it is not continued."""
    for other in sorted(root.glob(f"{stage}-*/identity.json")):
        if not any(other.parent.glob("*-*.pt")):
            continue  # it is just beginning, or failed before its first state
        try:
            with FileLock(other.parent / "lock", timeout=0):
                before = json.loads(other.read_text(encoding="utf-8"))
        except (Timeout, OSError):
            continue  # under way, or done meanwhile
        changed = [
            f"{name}: {str(old)[:20]} → {str(new)[:20]}"
            for name, old, new in differences(before, identity)
        ]
        print(
            f"A saved state in {other.parent} is of another run ({'; '.join(changed[:3])}) and is "
            "left alone; starting anew"
        )
