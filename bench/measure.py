"""What the measurements share: alternating repetitions, stages as processes, rows of the table."""

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "measured"


@dataclass(frozen=True)
class Row:
    """One line of the table in docs/speed.md.

    Attributes:
        number: of the goal.
        what: what was measured.
        goal: in words.
        measured: the median, in words; "–" for a row that was skipped.
        spread: smallest and largest of the repetitions.
        verdict: "met", "missed by …" or "skipped: why".
    """

    number: int
    what: str
    goal: str
    measured: str = "–"
    spread: str = ""
    verdict: str = ""


Measure = Callable[[bool], list[Row]]
"""Measures its rows; given True, so briefly that only the plumbing is tested."""


def at_most(number: int, what: str, limit: float, values: Sequence[float], unit: str = "×") -> Row:
    """A row whose median must not pass `limit`."""
    middle = statistics.median(values)
    verdict = "met" if middle <= limit else f"missed by {_number(middle - limit)} {unit}".rstrip()
    return _row(number, what, f"≤ {_number(limit)} {unit}", values, unit, verdict)


def at_least(number: int, what: str, limit: float, values: Sequence[float], unit: str = "×") -> Row:
    """A row whose median must reach `limit`."""
    middle = statistics.median(values)
    verdict = "met" if middle >= limit else f"missed by {_number(limit - middle)} {unit}".rstrip()
    return _row(number, what, f"≥ {_number(limit)} {unit}", values, unit, verdict)


def alternate(candidates: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Call each candidate in turn, `times` rounds; what they return, in order."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
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


def stage(folder: Path, name: str, *overrides: str, **environment: str) -> float:
    """Seconds of a stage as a process, its tracking store in `folder`; its output is not shown."""
    return command(folder, [sys.executable, "-m", f"stages.{name}", *overrides], **environment)


def command(folder: Path, words: Sequence[str], cwd: Path = ROOT, **environment: str) -> float:
    """Seconds of a command that must succeed."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    own |= {"DVC_ROOT": str(folder), "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", **environment}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    ended = subprocess.run(
        words, cwd=cwd, env={**own, "PATH": path}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if ended.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return seconds


def answer(module: str, *arguments: str, cwd: Path = ROOT) -> dict[str, Any]:
    """The last line, JSON, of a module run as a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    if ended.returncode:
        sys.exit(f"{module} {' '.join(arguments)} failed:\n{ended.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def mnist() -> str | None:
    """The folder of the full MNIST's idx files, from the environment variable MNIST."""
    return os.environ.get("MNIST")


def no_mnist(number: int, what: str, goal: str) -> Row:
    """The row that says why it was skipped."""
    return Row(number, what, goal, verdict="skipped: set MNIST to the folder of the idx files")


def prepare(folder: Path, modality: str, *overrides: str) -> Path:
    """A prepared data set in `folder`."""
    data = folder / "data" / modality
    stage(folder, "prepare", f"modality={modality}", f"output={data}", "tracking=off", *overrides)
    return data


def copy_of_the_repository(folder: Path) -> Path:
    """The project's files as they are, as a git repository with this environment."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "bench"]):
        subprocess.run([*git, *words], cwd=folder, check=True, capture_output=True)
    return folder


def peak_of_children() -> int:
    """Bytes: the largest resident set of the child processes so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def machine() -> str:
    """The hardware, for people."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {found[1] if found else platform.processor()}, no GPU"


def save(name: str, rows: Sequence[Row]) -> None:
    """Keep the rows of one measurement as JSON."""
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def show(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| # | what | goal | measured | spread | verdict |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.number} | {r.what} | {r.goal} | {r.measured} | {r.spread} | {r.verdict} |"
        for r in sorted(rows, key=lambda row: row.number)
    ]
    return "\n".join(lines)


def main(name: str, measure: Measure) -> None:
    """One measurement as a program: `python -m bench.<name> [--quick]`."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}")
    parser.add_argument("--quick", action="store_true", help="test the plumbing, keep no numbers")
    quick = parser.parse_args().quick
    rows = measure(quick)
    if not quick:
        save(name, rows)
    print(show(rows))


def _row(
    number: int, what: str, goal: str, values: Sequence[float], unit: str, verdict: str
) -> Row:
    spread = f"{_number(min(values))} – {_number(max(values))}, n = {len(values)}"
    return Row(
        number, what, goal.rstrip(), f"{_number(statistics.median(values))} {unit}".rstrip(),
        spread, verdict,
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
