"""Replays a journal into a store. Every operation can be repeated without doubling anything.

* A run is looked up by its `journal` tag before it is created.
* A metric point keeps the time it was journaled at, which MLflow's key of a point contains.
* Params, tags, inputs and artifacts replace themselves.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException

from pipeline.tracking.journal import Journal, Record, State, flat, journals, read
from pipeline.tracking.lineage import NOTE, abandon, link, open_parent
from pipeline.tracking.masking import clean
from pipeline.tracking.store import PARAM, RunGoneError, Store

BATCH = 10.0, 100_000  # seconds and bytes of metrics that are sent together while the stage runs


class SupersededError(Exception):
    """The run was started again: the sender of that start goes on."""


class WaitingError(Exception):
    """What is looked for is in another journal, which the store does not have yet."""


class Replay:
    """One journal on its way into one store.

    Args:
        journal: what to send.
        store: where to.
        begin: record of the start that this sender belongs to; it goes no further.
        ask_others: sends what other journals hold back; returns whether that was anything. Called
            when a run is looked for and not found.
    """

    def __init__(
        self, journal: Journal, store: Store, begin: Record, ask_others: Callable[[], bool]
    ) -> None:
        self.journal = journal
        self.store = store
        self.begin = begin
        self.state = journal.state()
        if self.state.uri != begin["uri"]:  # another store knows nothing of what the first one has
            self.state = State(uri=begin["uri"])
        self._ask_others = ask_others
        self._flushed = 0.0
        self._read = self.state.sent
        """End of what is read; of it, what is not sent yet waits in the two below."""
        self._metrics: dict[str, list[Metric]] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._handlers: dict[str, Callable[[Record], None]] = {
            "begin": self._begin,
            "metrics": self._log_metrics,
            "params": self._log_params,
            "tags": self._log_tags,
            "artifact": self._log_artifact,
            "input": self._log_input,
            "model": self._log_model,
            "register": self._register,
            "end": self._end,
        }

    def step(self, patient: bool = False) -> bool:
        """Send the next piece of the journal; returns whether anything was sent.

        Args:
            patient: metrics wait for more of them to come: sqlite takes 15 ms of CPU for a batch.

        Raises:
            SupersededError: the journal goes on with another start.
            Exception: the store can't be reached; what it has got is remembered.
        """
        before = (self.state.sent, self.state.observed)
        due = not patient or time.monotonic() - self._flushed > BATCH[0]
        try:
            self._send_journal(due)
            if due and self.state.run_id:
                self._send_observed()
        except Exception as error:
            if self._is_gone(error):
                # wiped or replaced: begin again, the journal still has everything
                self._save(State(uri=self.begin["uri"]))
            self._metrics.clear()
            self._tags.clear()
            self._read = self.state.sent
            raise
        return before != (self.state.sent, self.state.observed)

    def close_killed(self) -> None:
        """Close the run of a process that died without closing it."""
        times = [record["t"] for record, _ in read(self.journal.path, limit=1 << 62)]
        times += [record["t"] for record, _ in read(self.journal.observed, limit=1 << 62)]
        note = f"process {self.begin['pid']} on {self.begin['host']} ended without a word"
        self.store.log(self._own, tags={"error": note})
        self._close("KILLED", max(times))
        self._save(self.state)

    def _send_journal(self, due: bool) -> None:
        for record, position in read(self.journal.path, self._read):
            if record["op"] == "begin" and record["count"] > self.begin["count"]:
                raise SupersededError
            waits = record["op"] in ("metrics", "tags")
            if not waits and self._read != self.state.sent:
                self._sent(self._read)
            self._apply(record)
            self._read = position
            if not waits:
                self._sent(position)
        if self._read - self.state.sent > (0 if due else BATCH[1]):
            self._sent(self._read)

    def _apply(self, record: Record) -> None:
        """Do what a record says; one that no retry can help is noted and left out."""
        try:
            self._handlers[record["op"]](record)
        except (KeyError, FileNotFoundError) as error:
            self._refused([f"{record['op']}: {type(error).__name__} {error}"])
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or record["op"] == "begin":
                raise
            self._refused([f"{record['op']}: {clean(str(error))}"])

    def _send_observed(self) -> bool:
        end = self.state.observed
        for record, position in read(self.journal.observed, end):
            self._log_metrics(record)
            end = position
        if end != self.state.observed:
            self._flush()
            self.state.observed = end
            self._save(self.state)
            return True
        return False

    def _sent(self, end: int) -> None:
        self._flush()
        self.state.sent = end
        self.state.parts = {}
        self.state.error = ""
        self._save(self.state)

    def _is_gone(self, error: Exception) -> bool:
        """Whether the store has lost the run."""
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            try:
                self.store.client.get_run(self._own)
            except MlflowException as again:
                return bool(again.error_code == error.error_code)
        return isinstance(error, RunGoneError)

    def _save(self, state: State) -> None:
        self.state = state
        self.journal.save(state)

    # targets

    @property
    def _own(self) -> str:
        if self.state.run_id is None:
            raise ValueError(f"{self.journal.path} does not start with a begin record")
        return self.state.run_id

    def _experiment(self) -> str:
        return self.store.experiment(self.begin["experiment"])

    def _run_id(self, target: str) -> str | None:
        if target == "self":
            return self._own
        if target not in self.state.targets and target.startswith("trained:"):
            found = self.find("weights.md5", target.partition(":")[2])
            self.state.targets[target] = found or ""
            self._tag("self", trained_by=found or "not found")
        if target not in self.state.targets and target.startswith("beside:"):
            self.state.targets[target] = self._open_beside(target.partition(":")[2])
        return self.state.targets.get(target) or None

    def _open_beside(self, name: str) -> str:
        """A run of its own next to this one, below the same parent."""
        tags = {"stage": self.begin["stage"], "beside": self._own}
        if parent := self.state.targets.get("parent"):
            tags["mlflow.parentRunId"] = parent
        key = f"{self.journal.id}/{name}"
        start = self.begin["t"]
        return self.store.find_or_create(self._experiment(), "journal", key, name, start, tags)

    def find(self, tag: str, value: str) -> str | None:
        """Id of the newest run with that tag, other than this one.

        Raises:
            WaitingError: the run that will have it is not in the store yet.
        """
        while True:
            runs = [run for run in self.store.find(tag, value) if run.info.run_id != self._own]
            if runs:
                return str(runs[-1].info.run_id)
            if not self._ask_others():
                self._refuse_if_coming(tag, value)
                return None

    def _refuse_if_coming(self, tag: str, value: str) -> None:
        """Raise WaitingError if another journal is about to give a run that tag."""
        for other in journals(self.journal.folder.parent):
            begin = other.begin()
            if (
                begin
                and other.id != self.journal.id
                and begin["uri"] == self.begin["uri"]
                and not other.is_complete(begin)
                and any(
                    record["op"] == "tags" and record["values"].get(tag) == value
                    for record, _ in read(other.path, limit=1 << 62)
                )
            ):
                raise WaitingError(f"the run of {other.id} is not in the store yet")

    # operations

    def _begin(self, record: Record) -> None:
        start, experiment, tags = record["t"], self._experiment(), {"stage": record["stage"]}
        # nothing: the process beside the stage was killed before it could look
        provenance = self.journal.noted(record) or {}
        parent = self._part(
            "parent", lambda: open_parent(self.store, experiment, record, provenance)
        )
        before = self.state.targets.get("parent", parent)
        if before != parent:
            self._part("parent before", lambda: abandon(self.store, before, start))
        if parent:
            self.state.targets["parent"] = tags["mlflow.parentRunId"] = parent
        name = record["dvc"].get("stage") or record["stage"]
        self.state.run_id = self._part(
            "run",
            lambda: self.store.find_or_create(
                experiment, "journal", self.journal.id, name, start, tags
            ),
        )
        config = yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True)
        self._write("config.yaml", config)
        self._write("device.json", json.dumps(record["card"], indent=2) + "\n")
        self._tags["self"] = self._facts(record, provenance)
        if record["count"] > 1:
            self._part("status", self._reopen)
            self._tags["self"]["resumed"] = str(record["count"] - 1)
        if provenance.get("dirty"):
            self._write("source/uncommitted.diff", provenance["diff"])
            self._write("source/untracked.txt", "\n".join(provenance["untracked"]) + "\n")
        self._part("params", lambda: self._log_params({"values": record["config"]}))

    def _reopen(self) -> None:
        """Let the run go on as if its earlier start had not been interrupted."""
        client = self.store.client
        client.update_run(self._own, "RUNNING")
        if "error" in client.get_run(self._own).data.tags:
            client.delete_tag(self._own, "error")

    def _write(self, name: str, text: str) -> None:
        self._part(name, lambda: self.store.text(self._own, text, name))

    def _part(self, name: str, action: Callable[[], str | None]) -> str:
        """Do a part of a record; when the store fails later on, it is not done again."""
        if name not in self.state.parts:
            self.state.parts[name] = action() or ""
            self._save(self.state)
        return self.state.parts[name]

    def _facts(self, record: Record, provenance: dict[str, Any]) -> dict[str, str]:
        facts: dict[str, Any] = {
            "host": record["host"],
            "mlflow.parentRunId": self.state.targets.get("parent"),
            "dvc.stage": record["dvc"].get("stage"),
            "dvc.experiment": record["dvc"].get("experiment"),
            "mlflow.user": record["user"],
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": f"stages.{record['stage']}",
            "mlflow.source.git.commit": provenance.get("commit"),
            "mlflow.source.git.branch": provenance.get("branch"),
            "mlflow.source.git.repoURL": provenance.get("remote"),
            "mlflow.source.git.dirty": provenance.get("dirty"),
            **{f"device.{key}": value for key, value in flat(record["card"]).items()},
        }
        return {key: _text(value) for key, value in facts.items() if value not in (None, "")}

    def _log_metrics(self, record: Record) -> None:
        self._metrics.setdefault(record.get("target", "self"), []).extend(
            Metric(key, value, record["t"], record["step"])
            for key, value in record["values"].items()
        )

    def _log_params(self, record: Record) -> None:
        params = {key: _text(value) for key, value in flat(record["values"]).items()}
        if cut := [key for key, value in params.items() if len(value) > PARAM]:
            self._tag("self", truncated=", ".join(cut))
        known = self.store.client.get_run(self._own).data.params
        for key, value in params.items():
            if key in known and known[key] != value[:PARAM]:
                self._tag("self", **{f"changed.{key}": f"{known[key]} → {value}"})
        new = {key: value for key, value in params.items() if key not in known}
        self._refused(self.store.log(self._own, params=new))

    def _log_tags(self, record: Record) -> None:
        self._tag(
            record["target"], **{key: _text(value) for key, value in record["values"].items()}
        )

    def _log_artifact(self, record: Record) -> None:
        if run_id := self._run_id(record["target"]):
            self.store.file(run_id, self.journal.files / record["file"], record["folder"])

    def _log_input(self, record: Record) -> None:
        name, digest, path = record["name"], record["digest"], record["path"]
        if record["tag"] == "data.md5":
            facts = record["facts"]
            columns = [{"name": k, "type": v} for k, v in facts.get("schema", {}).items()]
            data = Dataset(
                name=path,
                digest=digest,
                source_type="local",
                source=json.dumps({"uri": path, **facts.get("source", {})}),
                schema=json.dumps({"mlflow_colspec": columns}),
                profile=json.dumps(facts.get("profile", {})),
            )
            context = [InputTag("mlflow.data.context", record["context"] or "input")]
            self.store.client.log_inputs(self._own, [DatasetInput(data, context)])
        made_by = self.find(record["tag"], digest)
        self._tag(
            "self",
            **{f"input.{name}.md5": digest, f"input.{name}.run_id": made_by or "not found"},
        )
        maker = link(self.store.client.get_run(made_by)) if made_by else "no run on this store"
        self.state.notes[name] = f"- `{path}` ({digest[:8]}), made by {maker}"
        note = "Inputs\n\n" + "\n".join(self.state.notes.values())
        self._tag("self", **{NOTE: note})

    def _log_model(self, record: Record) -> None:
        from pipeline.tracking.serving import log_model  # a second

        log_model(self.store, self._own, self.journal.files, record, self.begin)

    def _register(self, record: Record) -> None:
        from pipeline.tracking.registry import register

        trained = self._run_id(f"trained:{record['weights']}")
        predictions = self.journal.files / record["file"]
        version = register(self.store, self._own, trained, predictions, record)
        if not version:
            self._refuse_if_coming("weights.md5", record["weights"])
        found = version or "not registered: the model is not on this store"
        self._tag("self", **{f"registered.{record['name']}": found})

    def _end(self, record: Record) -> None:
        if record["error"]:
            self._tag("self", error=record["error"])
        self._flush()
        while self._send_observed():
            pass
        self._close(record["status"], record["t"])

    def _close(self, status: str, end: int) -> None:
        beside = [run for name, run in self.state.targets.items() if name.startswith("beside:")]
        for run_id in [*beside, self._own]:
            self.store.close(run_id, status, end)
        self.state.complete, self.state.status = self.begin["count"], status

    # what is collected into batches

    def _tag(self, target: str, **tags: str) -> None:
        self._tags.setdefault(target, {}).update(tags)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        for target in dict.fromkeys([*self._metrics, *self._tags]):
            if target == "self" or not (run_id := self._run_id(target)):
                continue
            known = self.store.client.get_run(run_id).data.metrics
            points = self._metrics.get(target, [])
            # an evaluation that is repeated gives the same values: no second point
            new = [point for point in points if known.get(point.key) != point.value]
            self._refused(self.store.log(run_id, new, tags=self._tags.get(target)))
        # last: the lookup of a target tags this run
        own = (self._metrics.get("self", []), None, self._tags.get("self", {}))
        self._refused(self.store.log(self._own, *own))
        self._metrics.clear()
        self._tags.clear()

    def _refused(self, lines: list[str]) -> None:
        """Note on the run what the store will never take."""
        for line in lines:
            if line not in self.state.refused:
                self.state.refused.append(line[:500])
                self.store.log(self._own, tags={"refused": "\n".join(self.state.refused)})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
