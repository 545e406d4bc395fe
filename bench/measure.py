"""What the measurements share: alternating repetitions, stages as processes, rows of the table."""

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "measured"
PAGE = ROOT / "docs" / "performance.md"
PLACES = {
    "MNIST": "folder of the full MNIST's idx files",
    "MNIST_PROGRAM": "pytorch/examples' mnist/main.py",
    "CIFAR10": "torchvision's folder of CIFAR-10",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of the table in docs/performance.md.

    Attributes:
        number: of the goal.
        what: what was measured.
        goal: in words.
        measured: the median, in words; "–" for a row that was skipped.
        spread: smallest and largest of the repetitions.
        verdict: "met", "missed by …", "skipped: why", "failed: why", or "for comparison" of what
            has no goal.
        points: raw numbers for the plots; `bench.plots` says which.
    """

    number: int
    what: str
    goal: str
    measured: str = "–"
    spread: str = ""
    verdict: str = ""
    points: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):  # noqa: N818
    """A command that a measurement needs did not succeed."""


Measure = Callable[[bool], list[Row]]
"""Measures its rows; given True, so briefly that only the plumbing is tested."""


def at_most(
    number: int, what: str, limit: float, values: Sequence[float], unit: str = "×", **points: Any
) -> Row:
    """A row whose median must not pass `limit`."""
    above = statistics.median(values) - limit
    return _row(number, what, f"≤ {_number(limit)} {unit}", values, unit, above, points)


def at_least(
    number: int, what: str, limit: float, values: Sequence[float], unit: str = "×", **points: Any
) -> Row:
    """A row whose median must reach `limit`."""
    below = limit - statistics.median(values)
    return _row(number, what, f"≥ {_number(limit)} {unit}", values, unit, below, points)


def for_comparison(
    number: int, what: str, values: Sequence[float], unit: str = "×", **points: Any
) -> Row:
    """A row without a goal."""
    return _row(number, what, "–", values, unit, None, points)


def alternate(candidates: Mapping[str, Callable[[], T]], times: int) -> dict[str, list[T]]:
    """Call each candidate in turn, `times` rounds; what they return, in order."""
    found: dict[str, list[T]] = {name: [] for name in candidates}
    for turn in range(times):
        # every other round backwards: what drifts on the machine falls on all of them
        names = list(candidates)
        for name in names if turn % 2 == 0 else reversed(names):
            found[name].append(candidates[name]())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def timed(call: Callable[[], Any]) -> float:
    """Seconds a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for outputs and the tracking store, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def stage(folder: Path, name: str, *overrides: str) -> float:
    """Seconds of a stage as a process, its tracking store in `folder`; its output is not shown."""
    return command(folder, [sys.executable, "-m", f"stages.{name}", *overrides])


def command(folder: Path, words: Sequence[str], cwd: Path = ROOT) -> float:
    """Seconds of a command that must succeed."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    own |= {"DVC_ROOT": str(folder), "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    ended = subprocess.run(
        words, cwd=cwd, env={**own, "PATH": path}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if ended.returncode:
        shown = f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
        raise Failed(f"{' '.join(words)} failed:\n{shown}")
    return seconds


def answer(module: str, *arguments: str, cwd: Path = ROOT) -> dict[str, Any]:
    """The last line, JSON, of a module run as a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise Failed(f"{module} {' '.join(arguments)} failed:\n{ended.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


class Memory:
    """A process whose memory, with that of all its children, is sampled while it runs.

    Attributes:
        anonymous: most bytes seen that are not pages of a file (PSS: a page that two processes
            share counts half in each).
        all: most bytes seen, pages of mapped files included.
    """

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.anonymous = self.all = 0
        self.words = words
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed on exit
        self.process = subprocess.Popen(
            words, cwd=cwd, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Memory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.ended.set()
        self.thread.join()
        self.errors.close()

    def ask(self, line: str) -> str:
        """Send a line and wait for the last line of JSON that answers it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout:
            if answer.startswith("{"):
                return answer
        raise self._failure()

    def finish(self) -> None:
        """Close the input and wait for the end."""
        self.process.communicate()
        if self.process.returncode:
            raise self._failure()

    def _failure(self) -> Failed:
        self.errors.seek(0)
        return Failed(f"{' '.join(self.words)} failed:\n{self.errors.read()[-4000:]}")

    def _sample(self) -> None:
        import psutil

        while not self.ended.wait(0.05):
            with contextlib.suppress(psutil.Error, OSError):
                root = psutil.Process(self.process.pid)
                held = [_held(one.pid) for one in (root, *root.children(recursive=True))]
                self.anonymous = max(self.anonymous, sum(some for some, _ in held))
                self.all = max(self.all, sum(every for _, every in held))


def _held(pid: int) -> tuple[int, int]:
    """Anonymous and all memory of one process, bytes (PSS)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = {name: 1024 * int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", text)}
    return found["Pss_Anon"] + found["Pss_Shmem"], found["Pss"]


def inside_dvc(module: str, *arguments: str) -> dict[str, Any]:
    """What `answer` gives, of a module run as a DVC stage: one warm sender serves all its runs."""
    with scratch() as folder:
        words = shlex.join([sys.executable, "-m", module, *arguments])
        told = folder / "answer.json"
        line = f"cd {shlex.quote(str(ROOT))} && {words} > {shlex.quote(str(told))}"
        (folder / "dvc.yaml").write_text(json.dumps({"stages": {"bench": {"cmd": line}}}))
        command(folder, ["dvc", "init", "--quiet", "--no-scm"], cwd=folder)
        command(folder, ["dvc", "repro", "--quiet"], cwd=folder)
        found: dict[str, Any] = json.loads(told.read_text("utf-8").strip().splitlines()[-1])
    return found


def options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given on the command line; places of data and peers go into the environment."""
    with mock.patch.dict(os.environ):  # the package sets what the peers shall not have
        from pipeline.streams import make_safe
    make_safe()
    parser.add_argument("--quick", action="store_true", help="test the plumbing, keep no numbers")
    for name, what in PLACES.items():
        parser.add_argument(
            f"--{name.lower().replace('_', '-')}", metavar="PATH", type=Path, dest=name,
            help=f"{what}; by default what the environment variable {name} names",
        )  # fmt: skip
    given = parser.parse_args()
    places = {name: path for name in PLACES if (path := getattr(given, name))}
    for name, path in places.items():
        if not path.exists():
            parser.error(f"{path} does not exist")
        os.environ[name] = str(path.resolve())
    return given


def mnist() -> str | None:
    """The folder of the full MNIST's idx files, from the environment variable MNIST."""
    return os.environ.get("MNIST")


def no_mnist(number: int, what: str, goal: str) -> Row:
    """The row that says why it was skipped."""
    return Row(
        number, what, goal, verdict="skipped: --mnist does not name the folder of the idx files"
    )


def prepare(folder: Path, modality: str, *overrides: str) -> Path:
    """A prepared data set in `folder`."""
    data = folder / "data" / modality
    stage(
        folder, "prepare", f"modality={modality}", f"output={data}", "tracking=off",
        f"plots={folder}/plots", *overrides,
    )  # fmt: skip
    return data


def copy_of_the_repository(folder: Path) -> Path:
    """A git repository of its own with the project's files as they are now, and DVC in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    git = ["git", "-c", "user.name=copy", "-c", "user.email=copy@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return folder


def machine() -> str:
    """The hardware, for people."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpu = (
        shutil.which(words[0])
        and subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    )
    return f"{cores} cores of {found[1] if found else platform.processor()}, " + (
        gpu[0] if gpu else "no GPU"
    )


def save(name: str, rows: Sequence[Row]) -> None:
    """Keep the rows of one measurement as JSON."""
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def show(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| # | what | goal | measured | spread | verdict |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.number} | {r.what} | {r.goal} | {r.measured} | {r.spread} | {r.verdict} |"
        for r in sorted(rows, key=lambda row: row.number)
    ]
    return "\n".join(lines)


def put(page: Path, marker: str, content: str) -> None:
    """Replace what stands between two markers of a page."""
    text = page.read_text(encoding="utf-8")
    between = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    text = re.sub(between, lambda found: f"{found[1]}{content}{found[2]}", text, flags=re.S)
    page.write_text(text, encoding="utf-8")


def main(name: str, measure: Measure) -> None:
    """One measurement as a program: `python -m bench.<name> [--quick]`."""
    quick = options(argparse.ArgumentParser(prog=f"python -m bench.{name}")).quick
    rows = measure(quick)
    if not quick:
        save(name, rows)
    print(show(rows))


def _row(
    number: int,
    what: str,
    goal: str,
    values: Sequence[float],
    unit: str,
    missed: float | None,
    points: dict[str, Any],
) -> Row:
    verdict = "for comparison"
    if missed is not None:
        verdict = "met" if missed <= 0 else f"missed by {_number(missed)} {unit}".rstrip()
    return Row(
        number,
        what,
        goal.rstrip(),
        f"{_number(statistics.median(values))} {unit}".rstrip(),
        f"{_number(min(values))} – {_number(max(values))}, n = {len(values)}",
        verdict,
        points,
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
