"""One journal on its way into a store. Every operation can be sent again without doubling anything.

* A run is looked up by its `journal` tag before it is created.
* A metric point keeps the time it was journaled at, which MLflow's key of a point contains.
* Params, tags, inputs and artifacts replace themselves.
"""

import time
from collections.abc import Callable
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from pipeline.nested import flat
from pipeline.tracking.journal import Journal, State, journals, read
from pipeline.tracking.masking import clean
from pipeline.tracking.operations import Begin, Metrics, Operation, Tags, text
from pipeline.tracking.store import PARAM, Store

BATCH = 10.0, 100_000  # seconds and bytes of metrics that are sent together while the stage runs
PIECE = 500_000  # bytes read at once


class WaitingError(Exception):
    """What is looked for is in another journal, which the store does not have yet."""


class Replay:
    """One journal, as its latest start `begin` left it, on its way into one store."""

    def __init__(self, journal: Journal, begin: Begin, store: Store) -> None:
        self.journal = journal
        self.store = store
        self.begin = begin
        self.state = journal.state()
        if self.state.uri != begin.uri:  # another store knows nothing of what the first one has
            self.state = State(uri=begin.uri)
        self._flushed = 0.0
        self._read = self.state.sent
        """End of what is read; of it, what is not sent yet waits in the two below."""
        self._metrics: dict[str, list[Metric]] = {}
        self._tags: dict[str, str] = {}

    def step(self, alive: bool) -> None:
        """Send the next piece of the journal; close the run if there never will be one.

        Args:
            alive: metrics wait for more of them to come: sqlite takes 15 ms of CPU for a batch.

        Raises:
            WaitingError: another journal has to be sent before.
            Exception: the store can't be reached; the next step goes on from what it has got.
        """
        before = (self.state.sent, self.state.observed)
        due = not alive or time.monotonic() - self._flushed > BATCH[0]
        try:
            self._send_journal(due)
            if due and self.state.run_id:
                self._send_observed()
            is_over = not alive and before == (self.state.sent, self.state.observed)
            if is_over and not self.journal.is_complete():
                self._close_killed()
        except Exception as error:
            if self._is_gone(error):
                # wiped or replaced: begin again, the journal still has everything
                self.state = State(uri=self.begin.uri)
                self.journal.save(self.state)
            self._metrics.clear()
            self._tags.clear()
            self._read = self.state.sent
            raise

    def _close_killed(self) -> None:
        """Close the run of a process that died without closing it."""
        files = (self.journal.path, self.journal.observed)
        times = [operation.t for file in files for operation, _ in read(file)]
        if not self.begin.finished:
            self.tag(error=f"process {self.begin.pid} on {self.begin.host} ended without a word")
        self.close("FINISHED" if self.begin.finished else "KILLED", max(times))
        self.journal.save(self.state)

    def _send_journal(self, due: bool) -> None:
        for operation, position in read(self.journal.path, self._read, PIECE):
            if not operation.waits and self._read != self.state.sent:
                self._sent(self._read)
            self._read = position
            self._send(operation)
            if not operation.waits:
                self._sent(position)
        if self._read - self.state.sent > (0 if due else BATCH[1]):
            self._sent(self._read)

    def _send(self, operation: Operation) -> None:
        """One that no retry can help is noted and left out."""
        try:
            operation.send(self)
        except (KeyError, FileNotFoundError) as error:
            self._refused([f"{operation.record['op']}: {type(error).__name__} {error}"])
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or isinstance(operation, Begin):
                raise
            self._refused([f"{operation.record['op']}: {clean(str(error))}"])

    def _send_observed(self) -> None:
        end = self.state.observed
        for operation, position in read(self.journal.observed, end, PIECE):
            operation.send(self)
            end = position
        if end != self.state.observed:
            self._flush()
            self.state.observed = end
            self.journal.save(self.state)

    def _sent(self, end: int) -> None:
        self._flush()
        self.state.sent = end
        self.state.parts = {}
        self.state.error = ""
        self.journal.save(self.state)

    def _is_gone(self, error: Exception) -> bool:
        """Whether the store has lost the run, and not something else that was asked for."""
        code = getattr(error, "error_code", "")
        if code == "RESOURCE_DOES_NOT_EXIST" and self.state.run_id:
            try:
                self.store.client.get_run(self.run_id)
            except MlflowException as again:
                return bool(again.error_code == code)
        return False

    # what operations call

    @property
    def run_id(self) -> str:
        """Of the run that the journal is about."""
        if self.state.run_id is None:
            raise KeyError(f"{self.journal.path} does not start with a begin")
        return self.state.run_id

    def part(self, name: str, action: Callable[[], str | None]) -> str:
        """Do a part of an operation; when the store fails later on, it is not done again."""
        if name not in self.state.parts:
            self.state.parts[name] = action() or ""
            self.journal.save(self.state)
        return self.state.parts[name]

    def reopen(self) -> None:
        """Let the run go on as if its earlier start had not been interrupted."""
        self.store.client.update_run(self.run_id, "RUNNING")
        self.store.untag(self.run_id, "error")

    def write(self, name: str, content: str) -> None:
        """Write a text artifact, as a part of an operation."""
        self.part(name, lambda: self.store.client.log_text(self.run_id, content, name))

    def points(self, metrics: Metrics) -> None:
        """Take metrics into the next batch."""
        self._metrics.setdefault(metrics.target, []).extend(
            Metric(key, value, metrics.t, metrics.step) for key, value in metrics.values.items()
        )

    def tag(self, **tags: str) -> None:
        """Take tags of the run into the next batch."""
        self._tags |= tags

    def params(self, values: dict[str, Any]) -> None:
        """Log params; what the run has with another value already becomes a tag."""
        params = {key: text(value) for key, value in flat(values).items()}
        if cut := [key for key, value in params.items() if len(value) > PARAM]:
            self.tag(truncated=", ".join(cut))
        known = self.store.client.get_run(self.run_id).data.params
        for key, value in params.items():
            if key in known and known[key] != value[:PARAM]:
                self.tag(**{f"changed.{key}": f"{known[key]} → {value}"})
        new = {key: value for key, value in params.items() if key not in known}
        self._refused(self.store.log(self.run_id, params=new))

    def target(self, name: str) -> str | None:
        """Id of the run that an operation goes to; see `Run.metrics` and `Run.artifact`."""
        kind, _, value = name.partition(":")
        if kind == "self":
            return self.run_id
        if kind == "trained" and name not in self.state.targets:
            found = self.find("weights.md5", value)
            self.state.targets[name] = found.info.run_id if found else ""
            self.tag(trained_by=self.state.targets[name] or "not found")
        if kind == "beside" and name not in self.state.targets:
            self.state.targets[name] = self._open_beside(value)
        return self.state.targets.get(name) or None

    def _open_beside(self, name: str) -> str:
        """A run of its own next to this one, below the same parent."""
        tags = {"stage": self.begin.stage, "beside": self.run_id}
        if parent := self.state.targets.get("parent"):
            tags["mlflow.parentRunId"] = parent
        experiment = self.store.experiment(self.begin.experiment)
        key = f"{self.journal.id}/{name}"
        return self.store.find_or_create(experiment, "journal", key, name, self.begin.t, tags)

    def find(self, tag: str, value: str) -> Any:
        """The newest run with that tag, other than this one; None without one.

        Raises:
            WaitingError: the run that will have it is not in the store yet.
        """
        found = [run for run in self.store.find(tag, value) if run.info.run_id != self.run_id]
        if not found:
            self.refuse_if_coming(tag, value)
        return found[-1] if found else None

    def refuse_if_coming(self, tag: str, value: str) -> None:
        """Raise WaitingError if another journal is about to give a run that tag."""
        for other, begin in journals(self.journal.folder.parent):
            same = (begin.uri, begin.root) == (self.begin.uri, self.begin.root)
            if same and other.id != self.journal.id and not other.is_complete():
                tags = [one for one, _ in read(other.path) if isinstance(one, Tags)]
                if any(one.values.get(tag) == value for one in tags):
                    raise WaitingError(f"the run of {other.id} is not in the store yet")

    def close(self, status: str, end: int) -> None:
        """Close the run and those beside it, when all of them is sent."""
        self._flush()
        self._send_observed()
        beside = [run for name, run in self.state.targets.items() if name.startswith("beside:")]
        for run_id in [*beside, self.run_id]:
            self.store.close(run_id, status, end)
        if status == "FINISHED":  # it may have been closed as killed before
            self.store.untag(self.run_id, "error")
        self.state.closed, self.state.status = self._read, status

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        for target in [target for target in self._metrics if target != "self"]:
            if run_id := self.target(target):
                known = self.store.client.get_run(run_id).data.metrics
                # an evaluation that is repeated gives the same values: no second point
                new = [p for p in self._metrics[target] if known.get(p.key) != p.value]
                self._refused(self.store.log(run_id, {(p.key, p.step): p for p in new}.values()))
        # last: the lookup of a target tags this run
        if self._metrics or self._tags:
            points = self._metrics.get("self", [])
            self._refused(self.store.log(self.run_id, points, tags=self._tags))
        self._metrics.clear()
        self._tags.clear()

    def _refused(self, lines: list[str]) -> None:
        """Note on the run what the store will never take."""
        if new := [line[:500] for line in lines if line[:500] not in self.state.refused]:
            self.state.refused += new
            self.store.log(self.run_id, tags={"refused": "\n".join(self.state.refused)})
