"""The same bytes every time, wherever and however it runs, and after being killed anywhere."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline.task import tasks
from tests.data import prepare_tiny
from tests.data.sources import ROOT, SMALL, contents


def start(mode, folder, *before, cwd=ROOT, **environment):
    return subprocess.Popen(
        [*before, sys.executable, "-m", "tests.data.prepare_tiny", mode, str(folder)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_bytes_depend_on_neither_environment_nor_threads_nor_cwd(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    process = start(
        "everything",
        tmp_path / "there",
        cwd=tmp_path,
        PYTHONHASHSEED="1234",
        LC_ALL="tr_TR.UTF-8",
        TZ="Asia/Tokyo",
        OMP_NUM_THREADS="3",
        ARROW_NUM_THREADS="1",
        HOME=str(home),
    )
    prepare_tiny.everything(tmp_path / "here")
    _, complaints = process.communicate()
    assert complaints == ""
    expected = contents(tmp_path / "here")
    known = {task.about.data for task in tasks()} & {*SMALL}
    assert {name.split("/")[0] for name in expected} == known
    assert len(expected) == 4 * len(known)
    assert contents(tmp_path / "there") == expected
    # neither ~/.cache nor anything else
    assert list(home.iterdir()) == []


def check_kills(folder, kills):
    prepare_tiny.write_images(folder / "reference", 0)
    expected = contents(folder / "reference")
    place = folder / "data" / "image"
    moments = random.Random(0)
    process = start("for_ever", place)
    for _ in range(kills):
        process.stdin.write("again\n")
        process.stdin.flush()
        writer = int(process.stdout.readline())
        time.sleep(moments.uniform(0, 0.15))
        os.kill(writer, signal.SIGKILL)
        # all of a data set or nothing, at every moment
        assert contents(place) in (expected, {})
    process.communicate()
    assert process.returncode == 0
    prepare_tiny.write_images(place, 0)
    assert contents(place) == expected


def test_killed_while_writing_the_next_run_gives_the_same_bytes(tmp_path):
    check_kills(tmp_path, 10)


@pytest.mark.slow
def test_killed_500_times_while_writing_the_next_run_gives_the_same_bytes(tmp_path):
    check_kills(tmp_path, 500)


def test_a_full_disk_is_one_clear_line_and_leaves_the_earlier_data_set(tmp_path):
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=6m tmpfs "$0" && exec "$@"']
    if shutil.which("unshare") is None or subprocess.run([*mount, tmp_path, "true"]).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    output, complaints = start("until_full", tmp_path, *mount, str(tmp_path)).communicate()
    assert complaints == ""
    message, state = output.splitlines()
    assert message.startswith(f"{tmp_path}/image can't be written: the disk is full")
    assert state == "True ['image']"
