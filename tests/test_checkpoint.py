"""A saved state is whole or refused, belongs to one run, and has one writer."""

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import KEEP, Checkpoints, checkpoints

IDENTITY = {"config": {"optimizer": {"lr": 0.1}}, "data": "abc", "code": "def"}


def state(step: int) -> dict:
    return {"step": step, "model": {"w": torch.full((100,), float(step))}}


def test_the_newest_state_is_loaded_and_old_ones_are_removed(tmp_path):
    saved = Checkpoints(tmp_path)
    for step in (3, 20, 100):
        saved.save(step, state(step))
    assert len(list(tmp_path.glob("*.pt"))) == KEEP
    loaded = saved.load()
    assert loaded["step"] == 100
    assert torch.equal(loaded["model"]["w"], torch.full((100,), 100.0))


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, capsys, damage):
    saved = Checkpoints(tmp_path)
    saved.save(1, state(1))
    saved.save(2, state(2))
    newest = max(tmp_path.glob("*.pt"))
    content = bytearray(newest.read_bytes())
    if damage == "truncate":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert saved.load()["step"] == 1
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_a_malicious_state_is_not_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/owned",))

    from pipeline.files import digest

    file = tmp_path / "attack.pt"
    torch.save({"x": Attack()}, file)
    file.rename(tmp_path / f"0000000001-{digest(file, 'sha256')}.pt")
    with pytest.raises(pickle.UnpicklingError):
        Checkpoints(tmp_path).load()
    assert not (tmp_path / "owned").exists()


def test_success_removes_the_states_and_failure_keeps_them(tmp_path):
    with checkpoints(tmp_path, "train", IDENTITY) as saved:
        saved.save(1, state(1))
    assert not saved.folder.exists()
    with pytest.raises(RuntimeError), checkpoints(tmp_path, "train", IDENTITY) as saved:
        saved.save(1, state(1))
        raise RuntimeError
    with checkpoints(tmp_path, "train", IDENTITY) as saved:
        assert saved.load()["step"] == 1


def test_another_config_starts_anew_and_says_why(tmp_path, capsys):
    with pytest.raises(RuntimeError), checkpoints(tmp_path, "train", IDENTITY) as saved:
        saved.save(1, state(1))
        raise RuntimeError
    other = {**IDENTITY, "config": {"optimizer": {"lr": 0.2}}}
    with checkpoints(tmp_path, "train", other) as saved:
        assert saved.load() is None
    said = capsys.readouterr().out
    assert "(config.optimizer.lr: 0.1 → 0.2) and is left alone; starting anew" in said


OWNER = """
import sys
import threading
from pathlib import Path
from pipeline.training.checkpoint import checkpoints
with checkpoints(Path({folder!r}), "train", {identity!r}) as saved:
    saved.remember("begun", 1)
    print("ready", flush=True)
    sys.stdin.read()
    saved.remember("finished", 2)
"""


@pytest.mark.parametrize(("dies", "found"), [(True, (1, None)), (False, (1, 2))])
def test_a_second_process_waits_and_goes_on_or_finds_what_the_first_remembers(
    tmp_path, capsys, dies, found
):
    code = OWNER.format(folder=str(tmp_path), identity=IDENTITY)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    first = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], **pipes)
    assert first.stdout.readline() == b"ready\n"
    over = threading.Timer(0.5, first.kill if dies else first.stdin.close)
    over.start()
    with checkpoints(tmp_path, "train", IDENTITY) as saved:
        assert (saved.recall("begun"), saved.recall("finished")) == found
    first.wait()
    said = capsys.readouterr().out
    assert (
        said
        == f"another process ({first.pid}) is running train with this config; waiting for its end\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_trains_at_a_time(tmp_path):
    code = (
        "import time; from pathlib import Path\n"
        "from pipeline.training.checkpoint import checkpoints\n"
        f"with checkpoints(Path({str(tmp_path)!r}), 'train', {IDENTITY!r}) as saved:\n"
        "    (saved.folder / 'alone').mkdir(); time.sleep(0.3); (saved.folder / 'alone').rmdir()"
    )
    command = [sys.executable, "-c", code]
    several = [subprocess.Popen(command, cwd=Path(__file__).parents[1]) for _ in range(4)]
    assert [one.wait() for one in several] == [0, 0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_the_states_were_removed_does_not_disturb_the_next_success(tmp_path):
    with checkpoints(tmp_path, "train", IDENTITY) as saved:
        left = tmp_path / f".{saved.folder.name}.gone"
        left.mkdir()
        (left / "0000000001-a.pt").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_training_under_way_is_not_called_a_saved_state(tmp_path, capsys):
    other = {**IDENTITY, "config": {"seed": 1}}
    with checkpoints(tmp_path, "train", IDENTITY) as saved:
        saved.save(1, state(1))
        with checkpoints(tmp_path, "train", other):
            assert capsys.readouterr().out == ""


def test_half_a_write_is_cleared_and_never_read(tmp_path):
    with pytest.raises(RuntimeError), checkpoints(tmp_path, "train", IDENTITY) as saved:
        saved.save(1, state(1))
        (saved.folder / ".0000000002.pt.abc.tmp").write_bytes(b"half")
        raise RuntimeError
    with checkpoints(tmp_path, "train", IDENTITY) as saved:
        assert saved.load()["step"] == 1
        assert not list(saved.folder.glob("*.tmp"))
