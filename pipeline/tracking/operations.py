"""What a stage can log: each kind is written, read and sent here and nowhere else.

A line of a journal is `{"op": "metrics", "t": …, …}`: the name of a class below and its fields.
"""

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from typing_extensions import override

from pipeline.nested import flat

if TYPE_CHECKING:
    from pipeline.tracking.replay import Replay

FORMAT = 4
"""Of the journals; one of another format is for the code that wrote it."""

NOTE = "mlflow.note.content"


def now() -> int:
    """Milliseconds since the epoch, as MLflow wants them."""
    return int(time.time() * 1000)


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """One call of a stage."""

    waits: ClassVar[bool] = False
    """Whether it is sent with others of its kind."""

    t: int = field(default_factory=now)

    @property
    def record(self) -> dict[str, Any]:
        """The line of the journal."""
        return {"op": type(self).__name__.lower(), **vars(self)}

    @abstractmethod
    def send(self, to: "Replay") -> None:
        """Do it in the store; done again, it changes nothing."""


def parse(record: dict[str, Any]) -> Operation:
    """The operation of a line.

    Raises:
        KeyError, TypeError: it is none.
    """
    return OPERATIONS[record["op"]](**{k: v for k, v in record.items() if k != "op"})


@dataclass(frozen=True, kw_only=True)
class Begin(Operation):
    """The stage has started.

    Attributes:
        start: 1, or how often the run was started, when it goes on.
        finished: an earlier start had done everything but end.
        pid, created: of the stage's process, see `surroundings.this_process`.
        uri: of the store, without credentials.
        credentials: the variables that hold them.
        root: the workspace with store and journals.
        code: where the stage runs, which may be a temporary copy of it.
        dvc: see `surroundings.dvc`.
        flush: seconds without progress that the stage waits at its end.
        system: seconds between two samples of the machine.
    """

    format: int = FORMAT
    start: int
    finished: bool
    stage: str
    host: str
    pid: int
    created: float
    uri: str
    credentials: list[str]
    root: str
    code: str
    experiment: str
    config: dict[str, Any]
    card: dict[str, Any]
    dvc: dict[str, Any]
    user: str
    flush: float
    system: float

    @property
    def parent(self) -> str | None:
        """What names the dvc process above; None outside DVC."""
        process = self.dvc.get("process")
        # hundredths of a second, as the kernel counts them: a clock that is set changes nothing
        return process and f"{self.host}:{process['pid']}:{round(process['created'] * 100)}"

    @override
    def send(self, to: "Replay") -> None:
        to.begin = self
        if to.state.run_id:  # a store that was wiped meanwhile has to get the earlier starts too
            to.store.client.get_run(to.state.run_id)
        from pipeline.tracking.parents import open_parent  # which reads begins

        source = to.journal.source(self) or {"refused": "it was not noted in time"}
        # no part: a store that was wiped before it had the run knows no experiment either
        experiment = to.store.experiment(self.experiment)
        name, tags = self.dvc.get("stage") or self.stage, {"stage": self.stage}
        folder = to.journal.folder.parent
        if parent := to.part(
            "parent", lambda: open_parent(to.store, experiment, self, source, folder)
        ):
            to.state.targets["parent"] = tags["mlflow.parentRunId"] = parent
        to.state.run_id = to.state.run_id or to.store.find_or_create(
            experiment, "journal", to.journal.id, name, self.t, tags
        )
        to.write("config.yaml", yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        to.write("device.json", json.dumps(self.card, indent=2) + "\n")
        if self.start > 1:
            to.part("status", to.reopen)
            if not self.finished:
                tags["resumed"] = str(self.start - 1)
        if source.get("dirty"):
            if (patch := to.journal.patch).exists():
                to.part(patch.name, lambda: to.store.file(to.run_id, patch, "source"))
            to.write("source/untracked.txt", "\n".join(source.get("untracked", [])) + "\n")
        facts: dict[str, Any] = {
            "host": self.host,
            "dvc.stage": self.dvc.get("stage"),
            "dvc.experiment": self.dvc.get("experiment"),
            "mlflow.user": self.user,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": f"stages.{self.stage}",
            "mlflow.source.git.commit": source.get("commit"),
            "mlflow.source.git.branch": source.get("branch"),
            "mlflow.source.git.repoURL": source.get("remote"),
            "mlflow.source.git.dirty": source.get("dirty"),
            "source.git": source.get("refused") or source.get("none"),
            "source.diff": source.get("no_diff"),
            **{f"device.{key}": value for key, value in flat(self.card).items()},
        }
        to.tag(**tags, **{k: text(v) for k, v in facts.items() if v not in (None, "")})
        to.part("params", lambda: to.params(self.config))


@dataclass(frozen=True, kw_only=True)
class Metrics(Operation):
    """One point of each metric."""

    waits: ClassVar[bool] = True

    values: dict[str, float]
    step: int
    target: str = "self"

    @override
    def send(self, to: "Replay") -> None:
        to.points(self)


@dataclass(frozen=True, kw_only=True)
class Tags(Operation):
    """Tags of the run."""

    waits: ClassVar[bool] = True

    values: dict[str, Any]

    @override
    def send(self, to: "Replay") -> None:
        to.tag(**{key: text(value) for key, value in self.values.items()})


@dataclass(frozen=True, kw_only=True)
class Artifact(Operation):
    """A file or folder that the journal keeps, and its folder in the run."""

    file: str
    folder: str
    target: str

    @override
    def send(self, to: "Replay") -> None:
        if run_id := to.target(self.target):
            to.store.file(run_id, to.journal.files / self.file, self.folder)


@dataclass(frozen=True, kw_only=True)
class Input(Operation):
    """What the stage reads: `tag` and `digest` find the run that made it."""

    name: str
    path: str
    tag: str
    digest: str
    context: str
    facts: dict[str, Any]

    @override
    def send(self, to: "Replay") -> None:
        if self.tag == "data.md5":
            to.store.data(to.run_id, self.path, self.digest, self.context or "input", self.facts)
        found = to.find(self.tag, self.digest)
        made_by = found.info.run_id if found else "not found"
        to.tag(**{f"input.{self.name}.md5": self.digest, f"input.{self.name}.run_id": made_by})
        maker = to.store.link(found) if found else "no run on this store"
        to.state.notes[self.name] = f"- `{self.path}` ({self.digest[:8]}), made by {maker}"
        to.tag(**{NOTE: "Inputs\n\n" + "\n".join(to.state.notes.values())})


@dataclass(frozen=True, kw_only=True)
class Model(Operation):
    """The trained model: `file` is its folder among the journal's files.

    There, too, are the `code` that loads it and the `server`, which MLflow runs to answer.
    """

    file: str
    code: str
    server: str
    packages: list[str]
    example: Any
    metadata: dict[str, Any]

    @override
    def send(self, to: "Replay") -> None:
        # a second, ten beside other work: a stage that waits should see that it goes on
        to.part("MLflow's models", lambda: import_module("pipeline.tracking.models").__name__)
        from pipeline.tracking.models import log_model

        log_model(to.store, to.run_id, to.journal.files, self, to.begin)


@dataclass(frozen=True, kw_only=True)
class Register(Operation):
    """An evaluated model; see `Run.register`."""

    name: str
    weights: str
    data: str
    test: str
    file: str
    metrics: dict[str, float]
    promote: bool
    capped: bool

    @override
    def send(self, to: "Replay") -> None:
        from pipeline.tracking.models import register

        trained = to.target(f"trained:{self.weights}")
        predictions = to.journal.files / self.file
        version = register(to.store, to.run_id, trained, predictions, self)
        if not version:
            to.refuse_if_coming("weights.md5", self.weights)
        found = version or "not registered: the model is not on this store"
        to.tag(**{f"registered.{self.name}": found})


@dataclass(frozen=True, kw_only=True)
class End(Operation):
    """The stage has ended."""

    status: str
    error: str

    @override
    def send(self, to: "Replay") -> None:
        if self.error:
            to.tag(error=self.error)
        to.close(self.status, self.t)


OPERATIONS = {kind.__name__.lower(): kind for kind in Operation.__subclasses__()}


def text(value: Any) -> str:
    """A tag's or param's value."""
    return value if isinstance(value, str) else json.dumps(value)
