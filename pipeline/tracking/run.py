"""What a stage holds: a `Run` whose calls append to the journal and return."""

import base64
import contextlib
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from pipeline.errors import PipelineError
from pipeline.tracking import provenance
from pipeline.tracking.content import described, dvc_md5, identity
from pipeline.tracking.journal import (
    Journal,
    Log,
    Record,
    Thinning,
    read,
    root,
    store_uri,
    this_process,
)
from pipeline.tracking.masking import clean, masked

if TYPE_CHECKING:
    from pipeline.settings import Tracking

Status = Literal["FINISHED", "FAILED", "KILLED"]

_KEY = re.compile(r"[^\w\-. :/]")  # what MLflow refuses in names


def start(
    stage: str,
    settings: "Tracking",
    config: dict[str, Any],
    card: dict[str, Any],
    id: str | None = None,  # noqa: A002 (the word of `Run.id`)
    conceal: Callable[[str], str] = str,
) -> "Run":
    """Begin the run of one stage execution.

    Args:
        stage: name of the stage, the name of the run outside DVC.
        settings: `enabled=False` gives a run that nobody records.
        config: the full config; secrets are masked before they are written anywhere.
        card: the device card.
        id: `Run.id` of the run, from `new_id`: it begins, or goes on where it began before. Known
            before the run begins, it can be kept where no kill comes between the two.
        conceal: what a path must go through before it is written.

    Raises:
        PipelineError: the journal can't be created. (A store that can't be reached is no error.)
    """
    if not settings.enabled:
        return Run()
    folder = root() / ".tracking"
    uri = store_uri()
    journal = Journal(folder / (id or new_id(stage)))
    begin = {
        "op": "begin",
        "t": _now(),
        "stage": stage,
        **this_process(),
        "uri": clean(uri),
        "root": str(root()),
        "code": str(Path.cwd()),
        "experiment": settings.experiment,
        "config": masked(config),
        "card": masked(card),
        "dvc": provenance.dvc(),
        "user": provenance.user(),
        "flush": settings.flush_seconds,
        "system": settings.system_seconds,
    }
    try:
        journal.folder.mkdir(parents=True, exist_ok=True)
        return JournaledRun(journal, begin, conceal)
    except OSError as error:
        raise PipelineError(
            f"{journal.folder} can't be written ({error.strerror or error}); mend that, or run "
            "with tracking.enabled=false"
        ) from error


def new_id(stage: str) -> str:
    """A name that no run has had: what `start(id=…)` takes."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{stage}-{uuid.uuid4().hex[:8]}"


class Run:
    """A run that nobody records; `JournaledRun` is the other kind. Both take the same calls."""

    id: str | None = None
    """What `start(id=…)` takes to continue this run."""

    def metrics(self, values: dict[str, float], step: int = 0, target: str = "self") -> None:
        """Log one point of each metric.

        Args:
            values: name, such as `train/loss`, and value.
            step: the x value.
            target: `self`; `parent`, the run that stands for this `dvc repro`; `trained:<md5>`,
                the run that wrote the weights of that md5; or `beside:<name>`, a run of that name
                next to this one.
        """

    def params(self, values: dict[str, Any]) -> None:
        """Log parameters besides the config's, which `start` logs; nested ones are flattened."""

    def tags(self, values: dict[str, Any], target: str = "self") -> None:
        """Set tags."""

    def artifact(self, path: Path, folder: str = "", target: str = "self") -> None:
        """Keep a file or folder as it is now, under `folder` in the run's artifacts."""

    def input(self, path: Path, name: str, context: str = "", **facts: Any) -> None:
        """Log what the stage reads: links to the run that made it, and a data set as such.

        Args:
            path: folder of a prepared data set or of a trained model.
            name: what the stage calls it, such as `data`.
            context: `training`, `testing`, …
            facts: of a data set instead of what its files say: `source`, `schema` (column name →
                type), `profile`, as JSON.
        """

    def output(self, path: Path) -> None:
        """Tag the run with the md5 of what it wrote, so that later stages find it by content."""

    def model(
        self, folder: Path, task: str, classes: list[str], example: str | bytes, **facts: Any
    ) -> None:
        """Log the trained model as an MLflow model that takes raw inputs.

        Args:
            folder: what `pipeline.models.save` wrote.
            task: `image`, `text` or `audio`.
            classes: names of the outputs in their order.
            example: one raw input: PNG bytes, a sentence, WAV bytes.
            facts: go to the model's metadata.
        """

    def register(
        self,
        name: str,
        weights: str,
        data: str,
        predictions: Path,
        metrics: dict[str, float],
        promote: bool,
        capped: bool,
    ) -> None:
        """Register the evaluated model; let it take the alias `champion` if it is better.

        Args:
            name: such as `image-classifier`.
            weights: md5 of its weights, which finds the model.
            data: digest of the data set it was tested on.
            predictions: Parquet with the columns `label` and `prediction`, one row per example.
            metrics: test metrics.
            promote: whether `champion` may move.
            capped: whether training or data were cut short; such a version never takes over
                because the data changed.
        """

    def sync(self) -> None:
        """Make what was logged so far survive a power cut; called at the end of an epoch."""

    def end(self, status: Status = "FINISHED", error: str | None = None) -> None:
        """Close the run and wait until the store has it, as long as it makes progress."""


class JournaledRun(Run):
    """A run whose calls append to a journal. Not one of them talks to the store."""

    def __init__(self, journal: Journal, begin: Record, conceal: Callable[[str], str]) -> None:
        self.id = journal.id
        self._conceal = conceal
        self._journal = journal
        self._flush = float(begin["flush"])
        self._thinning: dict[tuple[str, str], Thinning] = {}
        self._journaled: dict[tuple[str, str], int] = {}
        self._count = 1 + self._remember()
        self._log = Log(journal.path)
        self._ended = False
        begin = {**begin, "count": self._count}
        journal.write_begin(begin)
        self._log.append(begin)
        self._sender: subprocess.Popen[bytes] | None = None
        self._start_sender()

    @override
    def metrics(self, values: dict[str, float], step: int = 0, target: str = "self") -> None:
        kept = {
            key: float(value)
            for key, value in _named(values).items()
            if self._keeps(target, key, step)
        }
        if kept:
            self._append("metrics", target, step=step, values=kept)

    @override
    def params(self, values: dict[str, Any]) -> None:
        self._append("params", values=masked(values))

    @override
    def tags(self, values: dict[str, Any], target: str = "self") -> None:
        self._append("tags", target, values=_named(masked(values)))

    @override
    def artifact(self, path: Path, folder: str = "", target: str = "self") -> None:
        with self._harmless(path):
            self._append("artifact", target, file=self._journal.keep(path), folder=folder)

    @override
    def input(self, path: Path, name: str, context: str = "", **facts: Any) -> None:
        with self._harmless(path):
            said = self._conceal(str(path))
            tag, md5 = identity(path) or (self._output_tag(path), dvc_md5(path))
            if tag == "data.md5":
                facts = described(path) | facts
            self._append(
                "input", name=name, path=said, tag=tag, digest=md5, context=context,
                facts=masked(facts),
            )  # fmt: skip

    @override
    def output(self, path: Path) -> None:
        with self._harmless(path):
            tags = {self._output_tag(path): dvc_md5(path)}
            if found := identity(path):
                tags[found[0]] = found[1]
            self._append("tags", values=tags)

    @override
    def model(
        self, folder: Path, task: str, classes: list[str], example: str | bytes, **facts: Any
    ) -> None:
        with self._harmless(folder):
            given = example if isinstance(example, str) else base64.b64encode(example).decode()
            self._append(
                "model", file=self._journal.keep(folder), task=task, classes=classes,
                example=given, facts=masked(facts),
            )  # fmt: skip

    @override
    def register(
        self,
        name: str,
        weights: str,
        data: str,
        predictions: Path,
        metrics: dict[str, float],
        promote: bool,
        capped: bool,
    ) -> None:
        with self._harmless(predictions):
            self._append(
                "register", name=name, weights=weights, data=data, metrics=_named(metrics),
                file=self._journal.keep(predictions), promote=promote, capped=capped,
            )  # fmt: skip

    @override
    def sync(self) -> None:
        self._log.sync()
        if self._sender is not None and self._sender.poll() is not None:
            self._start_sender()

    @override
    def end(self, status: Status = "FINISHED", error: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        self._append("end", status=status, error=clean(error or ""))
        self.sync()
        if self._log.unwritten or self._log.lost:
            _warn(f"the disk is full: a part of what {self._journal.folder} should hold is lost")
        self._log.close()
        self._drain()

    def _output_tag(self, path: Path) -> str:
        return f"output.{self._conceal(path.as_posix())}"

    def _append(self, op: str, target: str = "self", **record: Any) -> None:
        self._log.append({"op": op, "t": _now(), "target": target, **record})

    def _keeps(self, target: str, key: str, step: int) -> bool:
        if step <= self._journaled.get((target, key), step - 1):
            return False  # logged before the interruption, with the same value
        return self._thinning.setdefault((target, key), Thinning()).keeps()

    def _remember(self) -> int:
        """Take in what an earlier process journaled; returns how often the run was started."""
        count = 0
        for record, _ in read(self._journal.path, limit=1 << 62):
            count += record["op"] == "begin"
            for key in record["values"] if record["op"] == "metrics" else ():
                name = (record["target"], key)
                self._journaled[name] = max(self._journaled.get(name, 0), record["step"])
                self._thinning.setdefault(name, Thinning()).kept += 1
        return count

    def _start_sender(self) -> None:
        try:
            with (self._journal.folder / "send.log").open("ab") as log:
                self._sender = subprocess.Popen(
                    [sys.executable, "-m", "pipeline.tracking.send", str(self._journal.folder)],
                    cwd=Path(__file__).parents[2],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    # Ctrl-C is for the stage, which then says how it ended
                    start_new_session=True,
                )
        except OSError as error:
            _warn(f"the sender did not start ({error})")

    def _drain(self) -> None:
        before, patience = None, time.monotonic() + self._flush
        while True:
            state = self._journal.state()
            if state.complete >= self._count or not self._journal.path.exists():
                return
            progress = (state.sent, len(state.parts))
            if progress != before:
                before, patience = progress, time.monotonic() + self._flush
            dead = self._sender is None or self._sender.poll() is not None
            if time.monotonic() > patience or dead:
                break
            time.sleep(0.02)
        state = self._journal.state()
        if state.complete >= self._count:
            return
        pending = sum(1 for _ in read(self._journal.path, state.sent, limit=1 << 62))
        log = []
        with contextlib.suppress(OSError):  # there is none if no sender could be started
            log = (self._journal.folder / "send.log").read_text(errors="replace").splitlines()
        why = state.error or (log[-1] if log else "")
        _warn(
            f"{pending} records of this run are not in the store yet ({why or 'no answer'}); "
            f"they are kept in {self._journal.folder}, and the next stage or `make sync` sends them"
        )

    @contextlib.contextmanager
    def _harmless(self, path: Path) -> Any:
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # also a file that is not what its name says: whoever needs it will tell the user
            reason = getattr(error, "strerror", None) or error
            _warn(self._conceal(f"{path} is not logged ({reason})"))


def _named(values: dict[str, Any]) -> dict[str, Any]:
    return {_KEY.sub("_", key)[:250]: value for key, value in values.items()}


def _now() -> int:
    return int(time.time() * 1000)


def _warn(text: str) -> None:
    print(f"tracking: {clean(text)}", file=sys.stderr, flush=True)
