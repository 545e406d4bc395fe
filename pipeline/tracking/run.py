"""What a stage holds: a `Run` whose calls append to the journal and return."""

import dataclasses
import importlib.metadata
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import PipelineError
from pipeline.tracking import operations as op
from pipeline.tracking import surroundings
from pipeline.tracking.delivery import Delivery, warn
from pipeline.tracking.journal import Journal, Log, State, Thinning, new_id, read
from pipeline.tracking.masking import clean, masked
from pipeline.tracking.provenance import described, dvc_md5, identity

if TYPE_CHECKING:
    from pipeline.settings import Tracking

Status = Literal["FINISHED", "FAILED", "KILLED"]

ALWAYS = ("mlflow", "numpy", "torch", "pydantic", "safetensors")
"""What every served model needs."""

_KEY = re.compile(r"[^\w\-. :/]")  # what MLflow refuses in names


def start(
    stage: str,
    settings: "Tracking",
    config: dict[str, Any],
    card: dict[str, Any],
    id: str | None = None,  # noqa: A002 (the word of `Run.id`)
    finished: bool = False,
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
        finished: an earlier start of the run had done everything but end.
        conceal: what a path must go through before it is written.

    Raises:
        PipelineError: the journal can't be created. (A store that can't be reached is no error.)
    """
    if not settings.enabled:
        return Run()
    root, uri = surroundings.root(), clean(surroundings.store_uri())
    journal = Journal(root / ".tracking" / (id or new_id(stage)))
    begin = op.Begin(
        start=1,
        finished=finished,
        stage=stage,
        **surroundings.this_process(),
        uri=uri,
        credentials=surroundings.credentials(uri),
        root=str(root),
        code=str(Path.cwd()),
        experiment=settings.experiment,
        config=masked(config),
        card=masked(card),
        dvc=surroundings.dvc(),
        user=surroundings.user(),
        flush=settings.flush_seconds,
        system=settings.system_seconds,
    )
    before = journal.begin()
    if before and before.uri == uri and before.root != begin.root:
        journal = Journal(journal.folder.with_name(new_id(stage)))  # the run is the original's
    try:
        journal.folder.parent.mkdir(parents=True, exist_ok=True)
        return Run(journal, begin, conceal)
    except OSError as error:
        raise PipelineError(
            f"{journal.folder} can't be written ({error.strerror or error}); mend that, or run "
            "with tracking.enabled=false"
        ) from error


class Run:
    """The run of one stage execution; without a journal one that nobody records."""

    def __init__(
        self,
        journal: Journal | None = None,
        begin: op.Begin | None = None,
        conceal: Callable[[str], str] = str,
    ) -> None:
        self.id = journal.id if journal else None
        """What `start(id=…)` takes to continue this run."""
        self._journal = journal
        self._conceal = conceal
        self._thinning = defaultdict[tuple[str, str], Thinning](Thinning)
        if journal is None or begin is None:
            return
        with journal.beginning:
            journal.folder.mkdir(exist_ok=True)
            begin = dataclasses.replace(begin, start=1 + self._remember(journal))
            self._log = Log(journal.path)
            if journal.state().sent > journal.path.stat().st_size:  # a power cut took the end
                journal.save(State())
            journal.write_begin(begin)
            self._log.append(begin)
        self._delivery = Delivery(journal, begin)

    def metrics(self, values: dict[str, float], step: int = 0, target: str = "self") -> None:
        """Log one point of each metric.

        Args:
            values: name, such as `train/loss`, and value.
            step: the x value.
            target: `self`; `trained:<md5>`, the run that wrote the weights of that md5; or
                `beside:<name>`, a run of that name next to this one.
        """
        kept = {
            key: float(value)
            for key, value in _named(values).items()
            if self._thinning[target, key].keeps(step)
        }
        if kept:
            self._append(op.Metrics(values=kept, step=step, target=target))

    def tags(self, values: dict[str, Any]) -> None:
        """Set tags. `summary` is the prefix of the run's test metrics on the dvc process's run."""
        self._append(op.Tags(values=_named(masked(values))))

    def artifact(self, path: Path, folder: str = "", target: str = "self") -> None:
        """Keep a file or folder as it is now, under `folder` in the run's artifacts.

        `target` may be `parent`: the run that stands for this `dvc repro`.
        """
        self._append_of(
            path,
            lambda journal: op.Artifact(file=journal.keep(path), folder=folder, target=target),
        )

    def input(self, path: Path, name: str, context: str = "") -> None:
        """Log what the stage reads: links to the run that made it, and a data set as such.

        Args:
            path: folder of a prepared data set or of a trained model.
            name: what the stage calls it, such as `data`.
            context: `training`, `testing`, …
        """

        def made(_: Journal) -> op.Operation:
            said = self._conceal(path.as_posix())
            tag, md5 = identity(path) or (f"output.{said}", dvc_md5(path))
            told = described(path) if tag == "data.md5" else {}
            return op.Input(
                name=name, path=said, tag=tag, digest=md5, context=context, facts=masked(told)
            )

        self._append_of(path, made)

    def output(self, path: Path) -> None:
        """Tag the run with the md5 of what it wrote, so that later stages find it by content."""

        def made(_: Journal) -> op.Operation:
            tags = {f"output.{self._conceal(path.as_posix())}": dvc_md5(path)}
            if found := identity(path):
                tags.update([found])
            return op.Tags(values=tags)

        self._append_of(path, made)

    def model(
        self, folder: Path, code: Path, packages: Sequence[str], example: Any, facts: dict[str, Any]
    ) -> None:
        """Log the trained model as an MLflow model that takes raw inputs.

        The code that loads it and the versions it needs are kept as they are now.

        Args:
            folder: what `pipeline.training.net.save` wrote.
            code: a copy of this package, of which what loads the model.
            packages: what it needs besides torch.
            example: one raw input, as JSON holds it.
            facts: go to the model's metadata; `task` is among them.
        """
        version = importlib.metadata.version
        self._append_of(
            folder,
            lambda journal: op.Model(
                file=journal.keep(folder),
                code=journal.keep(code),
                server=journal.keep(Path(__file__).with_name("served.py")),
                packages=[f"{name}=={version(name)}" for name in (*ALWAYS, *packages)],
                example=example,
                metadata=masked(facts),
            ),
        )

    def register(
        self,
        name: str,
        weights: str,
        data: str,
        test: str,
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
            test: digest of its test split.
            predictions: Parquet with the column `score`, one row per example, higher is better.
            metrics: test metrics.
            promote: whether `champion` may move.
            capped: whether training or data were cut short; such a version never takes over
                because the test data changed.
        """
        self._append_of(
            predictions,
            lambda journal: op.Register(
                name=name,
                weights=weights,
                data=data,
                test=test,
                file=journal.keep(predictions),
                metrics=_named(metrics),
                promote=promote,
                capped=capped,
            ),
        )

    def sync(self) -> None:
        """Make what was logged so far survive a power cut; called at the end of an epoch."""
        if self._journal:
            self._log.sync()
            self._delivery.look_after()

    def end(self, status: Status = "FINISHED", error: str | None = None) -> None:
        """Close the run and wait until the store has it, as long as it makes progress."""
        if not self._journal:
            return
        # a sender may have closed the run, and deleted its journal, as soon as it reads this
        self._delivery.tell_what_git_refuses()
        self._append(op.End(status=status, error=clean(error or "")))
        self._log.sync()
        if self._log.unwritten or self._log.lost:
            warn(f"the disk is full: a part of what {self._journal.folder} should hold is lost")
        self._log.close()
        self._journal = None
        self._delivery.wait()

    def _append(self, operation: op.Operation) -> None:
        if self._journal:
            self._log.append(operation)

    def _append_of(self, path: Path, made: Callable[[Journal], op.Operation]) -> None:
        """Append what `made` reads from `path`, or say why it can't be read."""
        if not self._journal:
            return
        try:
            self._log.append(made(self._journal))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # also a file that is not what its name says: whoever needs it will tell the user
            reason = getattr(error, "strerror", None) or error
            warn(self._conceal(f"{path} is not logged ({reason})"))

    def _remember(self, journal: Journal) -> int:
        """Take in what earlier processes journaled; returns how often the run was started."""
        starts = 0
        for operation, _ in read(journal.path):
            starts += isinstance(operation, op.Begin)
            if isinstance(operation, op.Metrics):
                for key in operation.values:
                    self._thinning[operation.target, key].add(operation.step)
        return starts


def _named(values: dict[str, Any]) -> dict[str, Any]:
    return {_KEY.sub("_", key)[:250]: value for key, value in values.items()}
