"""Which process leads: the launcher's variables count together or not at all."""

import os
import sys

import pytest

from pipeline import launcher, tracking
from pipeline.errors import PipelineError
from pipeline.stage import stage
from pipeline.training import hardware
from tests.conftest import schemas, stage_settings

WHOLE = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in (*launcher.LAUNCHED, *launcher.MPI_SIZES):
        monkeypatch.setenv(name, "")  # so that what the code deletes comes back as it was
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "stray",
    [
        {"RANK": "1"}, {"LOCAL_RANK": "1"}, {"WORLD_SIZE": "1"}, {"RANK": "1", "LOCAL_RANK": "1"},
        {"RANK": ""}, {"MASTER_ADDR": "10.0.0.1"}, {"PMI_SIZE": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_what_another_tool_left_is_ignored_with_one_line(stray, monkeypatch, capsys):
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    chosen = hardware.configure(stage_settings())
    assert chosen.shard == (0, 1)
    assert chosen.leads
    assert not os.environ.keys() & stray.keys()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert ", ".join(stray) in line
    assert launcher.shard() == (0, 1)
    assert not capsys.readouterr().err


def test_a_stray_rank_keeps_no_stage_from_its_records(monkeypatch):
    started: list[str] = []

    def start(**about):
        started.append(about["stage"])
        return tracking.Run()

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(tracking, "start", start)
    monkeypatch.setattr(sys, "argv", ["prepare", "modality=text"])
    started_as = stage("prepare", lambda: schemas()["prepare"], computes=False)
    started_as(lambda settings, context: None)()
    assert started == ["prepare"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({**WHOLE, "MASTER_ADDR": ""}, "no MASTER_ADDR;"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE=4"),
        ({**WHOLE, "RANK": "2"}, "RANK=2"),
        ({**WHOLE, "RANK": "first"}, "RANK=first"),
        ({**WHOLE, "MASTER_PORT": "-1"}, "MASTER_PORT=-1"),
        ({**WHOLE, "MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
    ],
    ids=str,
)
def test_several_processes_that_can_not_meet_are_one_line(asked, said, monkeypatch):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PipelineError, match="torchrun") as error:
        hardware.configure(stage_settings())
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("launched", "said", "found"),
    [
        (WHOLE, {"LOCAL_WORLD_SIZE": "2"}, 2), (WHOLE, {"LOCAL_WORLD_SIZE": "1"}, 1),
        (WHOLE, {}, 1), (WHOLE, {"LOCAL_WORLD_SIZE": "many"}, 1),
        (WHOLE, {"LOCAL_WORLD_SIZE": "0"}, 1), ({}, {"LOCAL_WORLD_SIZE": "8"}, 1),
    ],
)  # fmt: skip
def test_the_processes_of_one_machine_are_counted(launched, said, found, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    for name, value in {**launched, **said}.items():
        monkeypatch.setenv(name, value)
    assert launcher.local_processes() == found


def test_the_whole_set_counts(monkeypatch):
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert launcher.shard() == (1, 2)
