"""Processes that are killed at any write to the disk, and a real store that has any trouble."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Killed(BaseException):
    """`kill -9` of the process that is at work, which can do nothing about it."""


CUTS: dict[str, Callable[[int], int]] = {
    "nothing written": lambda size: 0,
    "half written": lambda size: size // 2,
    "all but a byte written": lambda size: size - 1,
    "all written": lambda size: size,
}
WRITES = ("write", "replace", "rename", "link", "mkdir", "rmdir", "unlink", "sendfile")


class Dies(NamedTuple):
    """A process is killed at its write of this number."""

    write: int
    cut: str


class Disk:
    """Whoever writes to it may be killed.

    What goes through Python's buffered files is not counted, but what is done with them then.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._left, self._cut = 0, ""
        for name in WRITES:
            patch.setattr(os, name, partial(self._write, getattr(os, name)))

    def _write(self, real: Callable[..., Any], *given: Any, **more: Any) -> Any:
        self._left -= 1
        if self._left > 0 or not self._cut:
            return real(*given, **more)
        if self._left == 0:  # after its death a process does nothing any more
            if real.__name__ == "write":
                real(given[0], bytes(given[1])[: CUTS[self._cut](len(given[1]))])
            elif self._cut == "all written":
                real(*given, **more)
        raise Killed

    @contextmanager
    def process(self, dies: Dies | None) -> Iterator[None]:
        """What is done here is done by a process of its own."""
        before = self._left, self._cut
        self._left, self._cut = dies or (0, "")
        try:
            yield
        finally:
            self._left, self._cut = before


def close_files(folder: Path) -> None:
    """Close what killed processes had open in a folder, as the system would."""
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if file.readlink().is_relative_to(folder):
                os.close(int(file.name))


class Trouble(NamedTuple):
    """What becomes of the sender's request of this number."""

    request: int
    what: str


TROUBLES = (
    *("refused", "down from here on", "answer lost", "served twice"),
    *("the sender dies before it", "the sender dies after it"),
)


class Store:
    """A real store, which is also the client that the sender has of it; `empty` has no runs."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, empty: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._folder, self._file, self._empty = folder, folder / "mlflow.db", empty
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self._file}")
        shutil.copy(empty, self._file)
        self._client = MlflowClient(f"sqlite:///{self._file}")
        self._requests, self._meets = 0, Trouble(0, "")
        self.meanwhile: dict[str, Callable[[], None]] = {}
        """What else may happen while a request is under way, besides `TROUBLES`."""

    def meet(self, trouble: Trouble | None) -> None:
        """Count the requests from here."""
        self._requests, self._meets = 0, trouble or Trouble(0, "")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._request, name, getattr(self._client, name))

    def _request(self, name: str, serve: Callable[..., Any], *given: Any, **more: Any) -> Any:
        from mlflow.exceptions import MlflowException

        self._requests += 1
        first, what = self._meets
        if what == "down from here on" and self._requests >= first:
            raise MlflowException(f"{name}: 503")
        if self._requests != first:
            return serve(*given, **more)
        if what == "refused":
            raise MlflowException(f"{name}: 500")
        if what == "the sender dies before it":
            raise Killed
        if what in self.meanwhile:
            self.meanwhile[what]()
        # nothing can be done where somebody in between repeats what creates something
        if what == "served twice" and not name.startswith("create"):
            serve(*given, **more)
        answer = serve(*given, **more)
        if what == "answer lost":
            raise MlflowException(f"{name}: timeout")
        if what == "the sender dies after it":
            raise Killed
        return answer

    def wipe(self) -> None:
        """Replace it by an empty one."""
        self._client._tracking_client.store.engine.dispose()
        shutil.copy(self._empty, self._file)
        shutil.rmtree(self._folder / "mlartifacts", ignore_errors=True)

    def runs(self, journal: str) -> list[dict[str, Any]]:
        """What it holds of a journal."""
        places = [found.experiment_id for found in self._client.search_experiments()]
        return [
            {
                "status": run.info.status,
                "tags": run.data.tags,
                "params": run.data.params,
                "files": {
                    file.name: file.read_text()
                    for file in Path(run.info.artifact_uri.removeprefix("file://")).glob("note/*")
                },
                "points": {
                    key: sorted(
                        (point.step, point.value)
                        for point in self._client.get_metric_history(run.info.run_id, key)
                    )
                    for key in run.data.metrics
                },
            }
            for run in self._client.search_runs(places, f"tags.journal = '{journal}'")
        ]
