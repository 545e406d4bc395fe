"""What every stage does around its body: config, hardware, tracking, errors, signals."""

import atexit
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pipeline import conf_files, config, interrupts, launcher, machine, tracking
from pipeline.errors import PipelineError
from pipeline.files import refuse_endless, refuse_foreign
from pipeline.prepared import read_card
from pipeline.schema import places
from pipeline.settings import Input, Output, Stage, Train
from pipeline.tracking.provenance import dvc_md5

if TYPE_CHECKING:
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.training.hardware import Hardware

S = TypeVar("S", bound=Stage)

APART = frozenset({"evaluation", "figures", "report", "reproduce", "tracking"})
"""Packages, beside `tasks/`, that neither train a model nor serve one."""


@dataclass(frozen=True)
class Context:
    """What a stage's body is handed besides its settings.

    Attributes:
        run: the MLflow run of this execution.
        written: the config as it may be written down.
        checkpoints: training stages only: the saved states of this very training.
    """

    run: tracking.Run
    written: config.Written
    checkpoints: "Checkpoints | None" = None
    _hardware: "Hardware | None" = None

    @property
    def hardware(self) -> "Hardware":
        """Device, precision and threads."""
        if self._hardware is None:
            raise ValueError("a stage declared with computes=False has no hardware")
        return self._hardware


def stage(
    name: str, schema: Callable[[], type[S]], computes: bool = True
) -> Callable[[Callable[[S, Context], float | None]], Callable[[], None]]:
    """Make an entrypoint of a stage's body.

    The entrypoint composes and checks the config, configures the hardware, opens the MLflow run
    (for a training that was killed, its own run again), calls the body and closes the run:
    FINISHED, FAILED with the error as a tag, or KILLED by a signal. Exit status: 0; 1 after an
    error; 128 + n after signal n. The value the body returns is the objective of a Hydra sweep.

    The settings class is asked for when the stage starts. A stage that does not compute with torch
    says so, and starts a second faster.
    """

    def decorate(body: Callable[[S, Context], float | None]) -> Callable[[], None]:
        def interruptible(settings: S, written: config.Written) -> float | None:
            try:
                with interrupts.handled():
                    return _execute(name, settings, written, body, computes)
            except interrupts.Interrupted as interrupted:
                print(f"{name}: {interrupted}", file=sys.stderr)
                raise SystemExit(128 + interrupted.number) from None

        return lambda: config.main(name, schema(), interruptible)

    return decorate


def run(main: Callable[[], None]) -> None:
    """Call the entrypoint of this program and end the process."""
    try:
        main()
    except PipelineError as error:
        config.fail(str(error))
    leave(0)


def leave(status: int) -> NoReturn:
    """End the process after what is registered for its end.

    The interpreter is not taken apart, which takes up to two seconds after an import of
    transformers and changes nothing any more.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def check_places(settings: Stage) -> None:
    """Make sure that what a stage would replace is its own, and that what it reads has an end.

    Raises:
        PipelineError: an output is there already and is no earlier one, or anything else that the
            settings name lies in it, or it lies in an input; an input is or has a device, a FIFO
            or a socket.
    """
    named: list[tuple[str, Path, Output | Input]]
    named = [*places(settings, Output), *places(settings, Input)]
    for key, path, mark in named:
        try:
            if isinstance(mark, Output):
                refuse_foreign(path, mark.kind, mark.mark)
            else:
                refuse_endless(path)
        except PipelineError as error:
            raise PipelineError(f"{key}: {error}") from error
    for (key, path, mark), (other, inside, read) in product(named, named):
        if not isinstance(mark, Output) or key == other:
            continue
        ends = (_place(inside), Path(os.path.realpath(inside)))  # of a link, both would be lost
        if any(end.is_relative_to(_place(path)) for end in ends):
            raise PipelineError(
                f"{other}: {inside} is in {path}, which the stage replaces ({key}); "
                "name another place"
            )
        if isinstance(read, Input) and _place(path).is_relative_to(ends[1]):
            raise PipelineError(
                f"{key}: {path} is in {inside}, which another stage makes ({other}) and would "
                "replace; name another place"
            )


def _execute(
    name: str,
    settings: S,
    written: config.Written,
    body: Callable[[S, Context], float | None],
    computes: bool,
) -> float | None:
    check_places(settings)
    leads = launcher.shard()[0] == 0  # the first of several keeps the records
    with ExitStack() as stack:
        states, hardware, journal, done = None, None, tracking.new_id(name), None
        if isinstance(settings, Train):
            from pipeline.training.checkpoint import checkpoints

            data = read_card(Path(settings.data))
            values = settings.model_dump(exclude={"tracking"})
            said = {key: value for key, value in written.config.items() if key in values}
            code = _digest_of_code(data.task)
            identity = {"config": said, "data": data.digest, "code": code}
            if said != values:  # what the environment gave decides too, and is not kept
                text = json.dumps(values, sort_keys=True)
                identity["values"] = hashlib.sha256(text.encode()).hexdigest()
            folder = tracking.root() / ".checkpoints"
            states = stack.enter_context(checkpoints(folder, name, identity, leads))
            journal, done = states.recall("journal") or journal, states.recall("finished")
            if leads:  # before the run begins: a kill in between must not leave a second run
                states.remember("journal", journal)
        if computes:
            from pipeline.training.hardware import card, configure

            hardware = configure(settings)
            facts = card(hardware)
        else:
            facts = machine.card()
        run = tracking.Run()
        if leads:
            run = tracking.start(
                stage=name,
                settings=settings.tracking,
                config=written.config,
                card=facts,
                id=journal,
                finished=bool(done),
                conceal=written.conceal,
            )
        try:
            if swallowed := interrupts.pending():
                raise interrupts.Interrupted(swallowed)
            if done and done["outputs"] == _digests(settings):
                print(f"{name}: another process has just done this; its outputs are taken")
                result = done["result"]
            else:
                # the run of one that was killed at its very end has everything but this end
                log = tracking.Run() if done else run
                result = body(settings, Context(log, written, states, hardware))
        except BaseException as error:
            ended = isinstance(error, interrupts.Interrupted | KeyboardInterrupt)
            reason = written.conceal(f"{type(error).__name__}: {error}")
            run.end("KILLED" if ended else "FAILED", error=reason)
            raise
        if states and leads:
            states.remember("finished", {"result": result, "outputs": _digests(settings)})
        run.end("FINISHED")
        return result


def _digests(settings: Stage) -> dict[str, str]:
    """The md5 of each output of a training that is there."""
    paths = {key: Path(getattr(settings, key)) for key in ("output", "curve")}
    return {key: dvc_md5(path) for key, path in paths.items() if path.exists()}


def _place(path: Path) -> Path:
    """Where an entry stands, whatever a link there leads to."""
    return Path(os.path.realpath(path.parent)) / path.name


def _digest_of_code(task: str) -> str:
    """sha256 of the modules that decide what a training of this task computes."""
    package = conf_files.ROOT / "pipeline"
    after = {"prepare.py", "data_report.py", "show.py", "damage.py"}
    sources = []
    for file in sorted(package.rglob("*.py")):
        folders = file.relative_to(package).parts[:-1]
        if folders[:1] == ("tasks",):  # below its own folder a task may call a module what it likes
            apart = folders[1:2] != (task,) or (folders[2:] == () and file.name in after)
        else:
            apart = file.name in after or not APART.isdisjoint(folders)
        if not apart:
            sources.append(file.read_bytes())
    return hashlib.sha256(b"".join(sources)).hexdigest()
