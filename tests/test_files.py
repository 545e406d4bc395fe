"""Files appear whole or not at all."""

import errno
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from pipeline.errors import PipelineError
from pipeline.files import digest, new_directory, new_file, read_json, write_json
from pipeline.training.checkpoint import Checkpoints


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
    (tmp_path / f".out.{dead.pid}.abcdefgh.tmp").mkdir()
    (tmp_path / f".out.{dead.pid}.bcdefghi.tmp").touch()
    kept = {f".out.{os.getpid()}.abcdefgh.tmp"}
    kept |= {
        f".out.{dead.pid}.{end}" for end in ("notes", "notes.tmp", "abcdefgh.old", "x.tmp.txt")
    }
    for name in kept:
        (tmp_path / name).write_text("not ours")
    link, target = tmp_path / f".out.{dead.pid}.cdefghij.tmp", tmp_path / "target"
    target.mkdir()
    link.symlink_to(target)
    with new_directory(tmp_path / "out", "x"):
        pass
    assert set(os.listdir(tmp_path)) == kept | {"out", link.name, target.name}


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


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may have more than 300 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def big(library: str, path: Path) -> None:
    """Write a megabyte with a library."""
    if library == "torch":
        with path.open("wb") as file:
            torch.save(torch.zeros(250_000), file)
    elif library == "safetensors":
        save_file({"w": torch.zeros(250_000)}, path)
    elif library == "pyarrow":
        pq.write_table(pa.table({"x": np.random.default_rng(0).random(125_000)}), path)
    elif library == "tokenizers":
        words = {str(number): number for number in range(50_000)}
        Tokenizer(WordLevel(words, unk_token="0")).save(str(path))
    else:
        path.write_bytes(bytes(1_000_000))


@pytest.mark.parametrize("library", ["python", "torch", "safetensors", "pyarrow", "tokenizers"])
def test_a_limit_on_the_size_of_files_is_told_like_a_full_disk(small_files, tmp_path, library):
    (tmp_path / "out").write_text("before")
    with pytest.raises(PipelineError) as caught, new_file(tmp_path / "out") as temporary:
        big(library, temporary)
    assert "out can't be written: a file may not be so large (`ulimit -f`) (" in str(caught.value)
    assert (tmp_path / "out").read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError(f"I/O error: Disk quota exceeded (os error {errno.EDQUOT})"),
    ],
)
def test_a_disk_quota_is_told_like_a_full_disk(tmp_path, error):
    with (
        pytest.raises(PipelineError, match="out can't be written: the disk quota is used up"),
        new_directory(tmp_path / "out", "x"),
    ):
        raise error
    assert os.listdir(tmp_path) == []


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
