"""A copy of the repository with small prepared data, and stage processes that start at once.

A stage spends two seconds on imports. The nursery is a process that has done them: each stage
started in it is forked from there, is a process of its own that signals and kill -9 can reach, and
runs the same entrypoint with the same command line.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psutil

from tests.conftest import copy_of_the_repository, environment

STAGES = {"cnn": "train_cnn", "transformer": "finetune_transformer", "rnn": "train_rnn"}
ROWS = 240
QUICK = {
    "cnn": ["training.epochs=4", "training.batch_size=16", "training.log_every=2"],
    "transformer": [
        "transformer=folder", "transformer.name=encoder", "transformer.max_length=16",
        "training.epochs=4", "training.batch_size=16", "training.log_every=2",
    ],
    "rnn": ["training.epochs=4", "training.batch_size=16", "training.log_every=2"],
}  # fmt: skip
"""Overrides of a training of 60 steps that takes a few seconds at most."""
PARTS = (
    "probes", "similarity", "pictures", "baselines", "calibration", "slices", "robustness",
    "suspects", "exploration",
)  # fmt: skip
BARE = [*(f"parts.{part}=false" for part in PARTS), "mistakes=1"]
"""Overrides of an evaluation without any part that can be switched off."""


@cache
def workspace(base: Path) -> Path:
    """The copy; one per test session, `base` being its temporary folder."""
    folder = base / "workspace"
    folder.mkdir()
    copy_of_the_repository(folder)
    prepare_all(folder)
    return folder


def prepare_all(folder: Path) -> None:
    """Prepare the data sets and write an encoder of 2 layers."""
    from tests.data.sources import prepare_small

    prepare_small(folder / "data", ROWS)
    encoder(folder / "encoder")


def encoder(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "film", "good", "bad", "."]
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(folder)


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file that a training wrote to `folder`."""
    files = [folder / "curve.csv", *sorted((folder / "model").iterdir())]
    return {file.name: file.read_bytes() for file in files}


@dataclass
class Ended:
    """How a stage process ended: its exit status (negative: killed by that signal), its words."""

    status: int
    output: str
    seconds: float


class Stage:
    """A stage process of the nursery."""

    def __init__(self, nursery: "Nursery", pid: int, log: Path) -> None:
        self._nursery, self.pid, self._log = nursery, pid, log
        self._started = time.monotonic()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; a process that is gone already is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def output(self) -> str:
        """What it has said so far, standard error included."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Return when it has said `text`, or has ended."""
        end = time.monotonic() + seconds
        while psutil.pid_exists(self.pid) and text not in self.output():
            if time.monotonic() > end:
                raise AssertionError(f"{text!r} is not in: {self.output()}")
            time.sleep(0.005)

    def wait(self) -> Ended:
        """Wait for its end."""
        status = self._nursery.wait()
        return Ended(status, self.output(), time.monotonic() - self._started)


class Nursery:
    """Starts the stages of a workspace, one at a time."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self._logs, self._count = folder, logs, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.workspace"],
            cwd=folder,
            env=environment(folder, OMP_WAIT_POLICY="passive"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self, stage: str, *arguments: str, kill: str = "", memory: int = 0, **variables: str
    ) -> Stage:
        """Start a stage.

        Args:
            stage: such as `train_cnn`.
            arguments: its command line.
            memory: bytes that it may take beyond what it starts with.
            kill: `<module>:<function>:<before|after>:<n>[:<signal>]`: it sends itself SIGKILL, or
                that signal, at the n-th call of that function: an exact place for what else is a
                matter of luck.
            variables: of its environment.
        """
        self._count += 1
        log = self._logs / f"{self._count}-{stage}.log"
        job = {
            "stage": stage, "arguments": arguments, "kill": kill, "memory": memory,
            "variables": variables, "log": str(log),
        }  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Stage(self, int(self._process.stdout.readline()), log)

    def run(self, stage: str, *arguments: str, **how: Any) -> Ended:
        """Start a stage and wait for its end."""
        return self.start(stage, *arguments, **how).wait()

    def wait(self) -> int:
        """Exit status of the latest stage."""
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the nursery and with it what it started."""
        for child in psutil.Process(self._process.pid).children():
            child.kill()
        self._process.kill()
        self._process.wait()


def _serve() -> None:
    for name in ("prepare", *STAGES.values(), "evaluate"):
        importlib.import_module(f"stages.{name}")
    for late in (
        "torch._dynamo", "transformers.models.bert.modeling_bert", "datasets",
        "matplotlib.backends.backend_agg",
    ):  # fmt: skip
        importlib.import_module(late)
    gc.freeze()  # or each stage's collections walk, and copy, all that was imported here

    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(job)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(job: dict[str, Any]) -> NoReturn:
    from pipeline.stage import leave

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.stdin = io.TextIOWrapper(io.BytesIO())
    os.environ.update(job["variables"])
    sys.argv = [job["stage"], *job["arguments"]]
    if job["kill"]:
        _arm(job["kill"])
    if job["memory"]:
        most = psutil.Process().memory_info().vms + job["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    status = 0
    try:
        sys.modules[f"stages.{job['stage']}"].main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
        status = 1
    leave(status)


def _arm(place: str) -> None:
    module, function, when, count, *other = place.split(":")
    number = getattr(signal, f"SIG{other[0]}") if other else signal.SIGKILL
    holder: Any = importlib.import_module(module)
    *path, name = function.split(".")
    for step in path:
        holder = getattr(holder, step)
    original: Callable[..., Any] = getattr(holder, name)
    calls = 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if when == "before" and calls == int(count):
            os.kill(os.getpid(), number)
        result = original(*arguments, **named)
        if when == "after" and calls == int(count):
            os.kill(os.getpid(), number)
        return result

    setattr(holder, name, deadly)


if __name__ == "__main__":
    _serve()
