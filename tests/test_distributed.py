"""Two processes train the model that one trains with batches of twice the size, and end as one."""

import csv
import itertools
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import interrupts
from pipeline.classification import model as classifier
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.hardware import configure
from pipeline.training.loop import Loop
from tests.conftest import ROOT, run
from tests.test_training import OPTIMIZER, STAGE, TRAINING, net, split

COMMON = ("tracking=off", "cnn=simple", "augment=null", "device=cpu", "precision=fp32", "threads=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed") / "image"
    prepare = ("stages.prepare", "modality=image", "profile=tiny", "tracking=off")
    done = run(ROOT, sys.executable, "-m", *prepare, f"output={folder}")
    assert done.returncode == 0, done.stderr
    return folder


Trained = tuple[dict[str, torch.Tensor], list[float]]


def train(
    folder: Path, data: Path, size: int, *launcher: str, more: tuple[str, ...] = ()
) -> Trained:
    """Weights, and the training loss of each epoch."""
    stage = ("-m", "stages.train_cnn", f"data={data}", f"output={folder}/m")
    done = run(
        ROOT, sys.executable, *launcher, *stage, f"curve={folder}/c.csv", *COMMON,
        "training.epochs=2", f"training.batch_size={size}", *more, DVC_ROOT=str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 2/2") == 1
    assert not list(folder.glob(".checkpoints/*/*"))
    with (folder / "c.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    return load_file(folder / "m" / "model.safetensors"), losses


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, data):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    weights, losses = train(tmp_path / "one", data, 32)
    together = train(tmp_path / "two", data, 16, *torchrun)
    # also where each step has two batches, and a state is saved whenever losses are exchanged
    often = ("training.accumulate=2", "training.save_minutes=0.0001", "training.log_every=1")
    gathered = train(tmp_path / "four", data, 8, *torchrun, more=often)
    for found, curve in (together, gathered):
        assert curve == pytest.approx(losses, rel=1e-4)
        for name, expected in weights.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def train_as(rank: int, folder: Path, signals: dict[int, int]) -> dict[str, Any]:
    """How one of two processes saves and ends that are sent SIGTERM in the named steps.

    Its clock shows the steps, in seconds: one in the first process, a hundred in the second.
    """
    loop: Loop | None = None
    saved: list[int] = []
    calls, saving, meetings = itertools.count(1), [False], []
    data = replace(split(64, 1, batch_size=2, shuffle=True), shard=(rank, 2))

    def collate(*index):
        if next(calls) == signals.get(rank):
            os.kill(os.getpid(), signal.SIGTERM)
        return data.collate(*index)

    def meets(collective):
        return lambda *given, **how: meetings.append(saving[0]) or collective(*given, **how)

    def save(states, step, state):
        saving[0] = True
        if signals:
            time.sleep(0.3)  # the other process could long have ended
        store(states, step, state)
        saving[0] = False
        saved.append(step)

    with interrupts.handled(), pytest.MonkeyPatch.context() as patch:
        store = Checkpoints.save
        patch.setattr(Checkpoints, "save", save)
        patch.setattr(time, "monotonic", lambda: 100**rank * loop.progress.step if loop else 0)
        for name in ("all_reduce", "broadcast", "barrier"):
            patch.setattr(torch.distributed, name, meets(getattr(torch.distributed, name)))
        loop = Loop(
            net(), replace(data, collate=collate), split(40, 2), task=classifier,
            settings=TRAINING.model_copy(update={"save_minutes": 5 / 60}), optimizer=OPTIMIZER,
            hardware=replace(configure(STAGE), shard=(rank, 2)), seed=5,
            checkpoints=Checkpoints(folder), log=lambda metrics, step: None,
        )  # fmt: skip
        ended = 0
        try:
            loop.fit()
        except interrupts.Interrupted as asked:
            ended = asked.number
        states = sorted(int(file.name.split("-")[0]) for file in folder.glob("*.pt"))
    return {
        "ended": ended, "step": loop.progress.step, "saved": saved, "states": states,
        "met in a save": any(meetings), "meetings": len(meetings),
        "weights": [value.tolist() for value in loop.model.state_dict().values()],
    }  # fmt: skip


def two_processes(folder: str) -> None:
    """Write down, for each of two processes, how its trainings ended."""
    for rank in (0, 1):
        if os.fork():
            continue
        try:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                timeout=timedelta(seconds=20),
            )  # fmt: skip
            at = Path(folder)
            found = {
                "whole": train_as(rank, at / "whole", {}),
                "one": train_as(rank, at / "one", {1: 7}),
                "one again": train_as(rank, at / "one", {}),
                "both": train_as(rank, at / "both", {0: 7, 1: 7}),
                "both again": train_as(rank, at / "both", {}),
            }
            (at / f"{rank}.json").write_text(json.dumps(found))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.wait()
    os.wait()


@pytest.mark.slow  # torch's compiler comes with them, in each process
def test_two_processes_save_by_the_clock_of_the_first_and_end_together(tmp_path):
    code = f"from tests.test_distributed import two_processes; two_processes({str(tmp_path)!r})"
    done = run(ROOT, sys.executable, "-c", code)
    assert (tmp_path / "1.json").exists(), done.stdout + done.stderr
    first, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["whole"]["saved"] == [6, 12, 16, 22, 28, 32, 38, 44, 48]
    for name, ending in first.items():
        stopped = name in ("one", "both")
        for mine in (ending, other[name]):
            assert (mine["ended"], mine["step"]) == ((15, 8) if stopped else (0, 48))
            assert not stopped or mine["states"] == [6, 8]
            assert not mine["met in a save"]
            assert mine["meetings"] == ending["meetings"]
            assert stopped or mine["weights"] == first["whole"]["weights"]
        assert other[name]["saved"] == []
