"""Whatever dies in whatever order, the store ends with what was logged: no less, no more.

Hypothesis makes up sequences of what stages, a sender and a real store do, and of who is killed
when. A plain model says what the store must hold: one of several worlds, as a call that a kill cut
short either happened or did not.
"""

import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as play

from tests.tracking.adapter import WHOLE, Tracker
from tests.tracking.faults import CUTS, TROUBLES, Dies, Disk, Killed, Store, Trouble, close_files


@dataclass
class World:
    """What was logged to a run."""

    began: bool = False
    status: str = ""
    error: str = ""
    steps: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    """The files that could be sent again: their copies go when a run is complete."""
    gone: bool = False
    """With a store that had all of it; but it may come again."""

    def after(self, change: dict[str, Any]) -> "World":
        """What it is then."""
        new = {
            key: {**getattr(self, key), **value} if isinstance(value, dict) else value
            for key, value in change.items()
        }
        if "steps" in new:
            new["steps"] = max(new["steps"], self.steps)  # some are done again after a kill
        return replace(self, **new)


@dataclass
class Story:
    """A run over all the starts of its stage."""

    name: str
    worlds: list[World] = field(default_factory=lambda: [World()])
    run: Any = None
    step: int = 0
    saved: int = 0
    """The step that the next start goes on from."""
    finished: bool = False

    @property
    def began(self) -> bool:
        return any(world.began for world in self.worlds)

    def dead(self) -> None:
        """Its process left no word about how it ended, unless it did."""
        self.run = None
        self.worlds = [
            replace(world, status="KILLED", error=LEFT) if world.status == "RUNNING" else world
            for world in self.worlds
        ]


def logged(step: int) -> dict[str, float]:
    """The metrics of a step: a series that becomes long, and a short one."""
    return {"loss": 1 / step, **({"accuracy": step / 99} if step % 8 == 1 else {})}


RUN, NAME, TEXT = st.sampled_from([0, 0, 1]), st.sampled_from("ab"), st.sampled_from("xyz")
DIES = st.none() | st.none() | st.builds(Dies, st.integers(1, 6), st.sampled_from([*CUTS]))
MEANWHILE = ("it is wiped", "run 0 goes on", "run 0 is killed", "run 0 ends", "run 0 starts")
TROUBLE = st.none() | st.builds(
    Trouble, st.integers(1, 20), st.sampled_from([*TROUBLES, *MEANWHILE])
)
LEFT = "ended without a word"
FACETS = ("points", "thinned points", "params", "tags", "files", "status", "error")
WRONG = {
    name: type(f"Wrong {name}", (AssertionError,), {}) for name in ("pending", "runs", *FACETS)
}
"""An error of its own kind for each: Hypothesis then tells the faults apart."""


def wrong(what: str, text: str) -> NoReturn:
    raise WRONG[what](text)


running = precondition(lambda machine: any(story.run for story in machine.current))
begun = precondition(lambda machine: any(story.began for story in machine.stories))


class Sequences(RuleBasedStateMachine):
    """One thing after the other, with two runs at a time."""

    def __init__(
        self, tracker: Tracker, store: Store, disk: Disk, whole: dict[str, Any], folder: Path
    ) -> None:
        super().__init__()
        self.tracker, self.store, self.disk, self.whole = tracker, store, disk, whole
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        tracker.reset(self.folder)
        self.current = [Story("run-0"), Story("run-1")]
        self.stories = [*self.current]
        actions = (
            *(self.wiped, partial(self.goes_on, 0, 3, True, None), partial(self.killed, 0)),
            *(partial(self.ends, 0, "FAILED", None), partial(self.starts, 0, None)),
        )
        store.meanwhile = dict(zip(MEANWHILE, actions, strict=True))
        store.wipe()

    def _does(
        self, story: Story, call: Callable[..., Any], *given: Any, dies: Dies | None, **change: Any
    ) -> Any:
        """Let a stage do something, and say what that changes in what the store must hold."""
        after = [world.after(change) for world in story.worlds]
        try:
            with self.disk.process(dies):
                result = call(*given)
        except Killed:
            story.worlds += [world for world in after if world not in story.worlds]
            self._dies(story)
            return None
        story.worlds = after
        return result

    def _dies(self, story: Story) -> None:
        self.tracker.dies(story.name)
        story.dead()

    def _running(self, number: int) -> Story | None:
        """That run, or the other one if only that one is under way."""
        return next((s for s in (self.current[number], *self.current) if s.run), None)

    @precondition(lambda self: not all(story.run for story in self.current))
    @rule(number=RUN, dies=DIES)
    def starts(self, number: int, dies: Dies | None) -> None:
        """A stage starts, also one that was killed, has failed, or was finished but for its end."""
        story = self.current[number]
        if story.run:
            return
        if story.finished:
            if story.name in self.tracker.pending():  # or nothing is left to be done
                again = self.tracker.begin_finished
                self._does(story, again, story.name, dies=dies, status="FINISHED", error="")
            if dies is None:
                self.current[number] = Story(f"{story.name}-{number}")
                self.stories.append(self.current[number])
            return
        if story.name not in self.tracker.pending():
            story.worlds = [replace(world, kept={}) for world in story.worlds]
        story.step = story.saved
        run = World(True, "RUNNING", params={"lr": "0.1"})
        change = {key: getattr(run, key) for key in ("began", "status", "error", "params", "gone")}
        story.run = self._does(story, self.tracker.begin, story.name, dies=dies, **change)

    @running
    @rule(number=RUN, count=st.integers(1, 20), saves=st.booleans(), dies=DIES)
    def goes_on(self, number: int, count: int, saves: bool, dies: Dies | None) -> None:
        """Logs its next steps, after a kill again those since the state that it saved last."""
        story = self._running(number)
        for left in reversed(range(count if story else 0)):
            step = story.step = story.step + 1
            last = None if left else dies
            self._does(story, story.run.metrics, logged(step), step, dies=last, steps=step)
        if saves and story and story.run:
            story.run.sync()
            story.saved = story.step

    @running
    @rule(number=RUN, name=NAME, value=TEXT, dies=DIES)
    def notes(self, number: int, name: str, value: str, dies: Dies | None) -> None:
        story, values = self._running(number), {name: value}
        self._does(story, story.run.tags, values, dies=dies, tags=values)

    @running
    @rule(number=RUN, name=NAME, text=TEXT, dies=DIES)
    def artifact(self, number: int, name: str, text: str, dies: Dies | None) -> None:
        story, path, file = self._running(number), self.folder / name, {name: text}
        path.write_text(text)
        self._does(story, story.run.artifact, path, "note", dies=dies, files=file, kept=file)

    @running
    @rule(number=RUN, status=st.sampled_from(["FINISHED", "FAILED", "KILLED"]), dies=DIES)
    def ends(self, number: int, status: str, dies: Dies | None) -> None:
        if story := self._running(number):
            story.finished = status == "FINISHED"
            error = "" if story.finished else "oh"
            end = story.run.end
            self._does(story, end, status, error, dies=dies, status=status, error=error)
            self._dies(story)

    @running
    @rule(number=RUN)
    def killed(self, number: int) -> None:
        if story := self._running(number):
            self._dies(story)

    @begun
    @rule(hurry=st.booleans(), trouble=TROUBLE, dies=DIES)
    def sends(self, hurry: bool, trouble: Trouble | None, dies: Dies | None) -> None:
        """A sender does what it can, and meets trouble."""
        self.store.meet(trouble)
        try:
            with self.disk.process(dies):
                self.tracker.send(hurry)
        except Killed:
            self.tracker.sender_dies()
        self.store.meet(None)

    @begun
    @rule()
    def wiped(self) -> None:
        """The store comes back empty."""
        pending = self.tracker.pending()
        for story in self.stories:
            gone = {} if story.run or story.name in pending else {"gone": True, "kept": {}}
            worlds = [replace(world, **gone) for world in story.worlds]
            story.worlds = [replace(world, files=world.kept) for world in worlds]
        with self.disk.process(None):
            self.store.wipe()

    @begun
    @rule()
    def syncs(self) -> None:
        """What was not pending is in the store; then nothing is, and all is there."""
        self._compare(self.tracker.pending())
        self.tracker.sync()
        if left := self.tracker.pending():
            wrong("pending", f"{left} after everything was sent")
        self._compare(set())

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.killed(0)
                self.killed(1)
                self.syncs()
        finally:
            close_files(self.folder)
            shutil.rmtree(self.folder)

    def _compare(self, pending: set[str]) -> None:
        for story in self.stories:
            if story.began and not (story.run or story.name in pending):
                self._check(story)

    def _check(self, story: Story) -> None:
        """Raise for the first facet of a run that is as in none of its worlds."""
        found = self.store.runs(story.name)
        worlds = [one for one in story.worlds if one.gone or one.began == bool(found)]
        if len(found) > 1 or not worlds:
            wrong("runs", f"{story.name}: {len(found)} in the store")
        for name in FACETS if found else ():
            about = [(self._facets(found[0], world)[name], world) for world in worlds]
            worlds = [world for (held, wanted), world in about if held == wanted]
            if not worlds:
                wanted = " or ".join(str(wanted) for (_, wanted), _ in about)
                wrong(name, f"{story.name}: the store has {about[0][0][0]}, not {wanted}")

    def _facets(self, found: dict[str, Any], world: World) -> dict[str, tuple[Any, Any]]:
        """What the store holds of a run and what it must hold."""
        tags, error = found["tags"], found["tags"].get("error", "")
        points = [found["points"].get(key, []) for key in self.whole]
        wanted = [[p for p in kept if p[0] <= world.steps] for kept in self.whole.values()]
        return {
            "points": ([p[:WHOLE] for p in points], [p[:WHOLE] for p in wanted]),
            "thinned points": (points, wanted),
            "params": (found["params"], world.params),
            "tags": ({name: tags[name] for name in "ab" if name in tags}, world.tags),
            "files": ({name: found["files"].get(name) for name in world.files}, world.files),
            "status": (found["status"], world.status),
            "error": (LEFT if LEFT in error else error, world.error),
        }


@pytest.fixture
def sequences(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Sequences]]:
    shared = Path("/dev/shm")  # noqa: S108 (sqlite commits quickly there)
    monkeypatch.setenv("DVC_ROOT", "")
    with tempfile.TemporaryDirectory(dir=shared if shared.exists() else None) as name:
        folder = Path(name)
        store = Store(monkeypatch, folder, empty_store)
        tracker = Tracker(monkeypatch, store)
        tracker.reset(folder)
        run = tracker.begin("whole")
        for step in range(1, 1000):
            run.metrics(logged(step), step)
        run.end()
        tracker.dies("whole")
        tracker.sync()
        (whole,) = store.runs("whole")
        disk = Disk(monkeypatch)
        yield lambda: Sequences(tracker, store, disk, whole["points"], folder)


def test_the_store_ends_with_what_was_logged(sequences: Callable[[], Sequences]) -> None:
    play(
        sequences,
        settings=hypothesis.settings(
            max_examples=15, stateful_step_count=20, derandomize=True, database=None
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_store_ends_with_what_was_logged_thousands_of_times(
    sequences: Callable[[], Sequences],
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    play(
        hypothesis.seed(seed)(sequences),
        settings=hypothesis.settings(max_examples=2000, stateful_step_count=40, database=None),
    )
