"""Files appear whole or not at all."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import Checkpoints
from pipeline.errors import PipelineError
from pipeline.files import digest, new_directory, new_file, read_json, write_json


def test_a_failed_write_leaves_the_earlier_file_and_no_leftovers(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), new_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_folder_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "x").write_text("before")
    with pytest.raises(ZeroDivisionError), new_directory(path, "x") as temporary:
        (temporary / "x").write_text("half")
        raise ZeroDivisionError
    assert (path / "x").read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_cleared_and_what_a_live_one_writes_is_not(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".out.{dead.pid}.abc.tmp").mkdir()
    (tmp_path / f".out.{os.getpid()}.def.tmp").mkdir()
    (tmp_path / ".out.old-notes").write_text("not ours")
    with new_directory(tmp_path / "out", "x"):
        pass
    kept = {"out", f".out.{os.getpid()}.def.tmp", ".out.old-notes"}
    assert set(os.listdir(tmp_path)) == kept


def test_a_new_folder_replaces_the_earlier_one_whole(tmp_path):
    path = tmp_path / "deep" / "out"
    for name in ("old", "new"):
        with new_directory(path, "x") as temporary:
            (temporary / "x").touch()
            (temporary / name).write_text(name)
    assert set(os.listdir(path)) == {"x", "new"}
    assert os.listdir(path.parent) == ["out"]


def test_new_files_have_the_permissions_that_the_umask_leaves(tmp_path):
    with new_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
    with new_directory(tmp_path / "c", "x") as temporary:
        (temporary / "x").touch(0o600)
    (tmp_path / "b").write_text("x")
    modes = {(tmp_path / name).stat().st_mode for name in ("a", "b", "c/x")}
    assert len(modes) == 1


@pytest.mark.parametrize("present", ["thesis.txt", "more/thesis.txt"])
def test_a_folder_that_no_stage_wrote_is_not_replaced(tmp_path, present):
    (tmp_path / "out" / present).parent.mkdir(parents=True)
    (tmp_path / "out" / present).write_text("years of work")
    with (
        pytest.raises(PipelineError, match=r"has files but no model\.json"),
        new_directory(tmp_path / "out", "model.json"),
    ):
        pass
    assert (tmp_path / "out" / present).read_text() == "years of work"


FULL = r"can't be written: the disk is full \([\d,]+ bytes free"


@pytest.mark.parametrize("writer", [new_file, partial(new_directory, holds="x")])
def test_a_full_disk_is_one_line_and_keeps_what_was_there(small_disk, writer):
    write_json(small_disk / "kept.json", {"a": 1})
    with pytest.raises(PipelineError, match=FULL), writer(small_disk / "out") as temporary:
        target = temporary if writer is new_file else temporary / "x"
        target.write_bytes(bytes(1_000_000))
    assert os.listdir(small_disk) == ["kept.json"]
    assert json.loads((small_disk / "kept.json").read_text()) == {"a": 1}


def test_a_disk_that_fills_up_while_weights_or_a_state_are_written(small_disk):
    from safetensors.torch import save_file

    tensors = {"w": torch.zeros(250_000)}
    with (
        pytest.raises(PipelineError, match=FULL),
        new_directory(small_disk / "model", "x") as folder,
    ):
        save_file(tensors, folder / "model.safetensors")
    saved = Checkpoints(small_disk)
    saved.save(1, {"step": 1})
    with pytest.raises(PipelineError, match=FULL + ", about 1,000,000 bytes needed"):
        saved.save(2, {"step": 2, "model": tensors})
    assert saved.load() == {"step": 1}
    assert len(os.listdir(small_disk)) == 1


def test_a_file_in_the_way_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PipelineError, match="can't be written"), new_file(tmp_path / "file" / "a"):
        pass


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text()))
def test_equal_values_give_equal_bytes_whatever_their_order(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("json")
    write_json(folder / "a", value)
    write_json(folder / "b", dict(reversed(value.items())))
    assert digest(folder / "a") == digest(folder / "b")
    assert read_json(folder / "a", "x") == value


def test_reading_what_is_missing_or_broken_says_which_stage_makes_it(tmp_path):
    with pytest.raises(PipelineError, match=r"a.json is missing; run `dvc repro prepare@image`"):
        read_json(tmp_path / "a.json", "prepare@image")
    Path(tmp_path / "b.json").write_text("{")
    with pytest.raises(PipelineError, match=r"b.json can't be read .* delete it and run"):
        read_json(tmp_path / "b.json", "prepare@image")
