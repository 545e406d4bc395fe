"""Nothing that is printed ends a program or changes its exit status."""

import argparse
import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import measure
from pipeline import config
from tests.conftest import ROOT, environment, schemas

START = "import sys; from pipeline.streams import make_safe; make_safe()\n"
END = "open('done', 'w').close(); sys.exit(3)"
LINES = "for _ in range(9999): print('x' * 99); print('y' * 99, file=sys.stderr)\n"


def ended(
    folder: Path, code: str, how: str = "", unbuffered: str = "", **streams
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a shell that redirects its streams so."""
    command = ["sh", "-c", f'exec "$0" -c "$1" {how}', sys.executable, f"{START}{code}{END}"]
    variables = environment(
        folder, PYTHONPATH=str(ROOT), PYTHONIOENCODING="iso-8859-1", PYTHONUNBUFFERED=unbuffered
    )
    streams = streams or {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(command, cwd=folder, env=variables, check=False, **streams)
    assert (folder / "done").exists(), done.stderr
    assert done.returncode == 3
    return done


def test_what_an_encoding_lacks_is_escaped(tmp_path):
    done = ended(tmp_path, "print('é → 1'); print('é → 2', file=sys.stderr)\n")
    assert done.stdout == "é \\u2192 1\n".encode("iso-8859-1")
    assert done.stderr == "é \\u2192 2\n".encode("iso-8859-1")


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere_and_its_number_is_no_files(how, tmp_path):
    child = "import subprocess; subprocess.run([sys.executable, '-c', 'print(5, flush=True)'])\n"
    code = f"{LINES}sys.stdout.flush(); data = open('data', 'w')\n{child}"
    ended(tmp_path, f"{code}assert data.fileno() > 2\n", how)
    assert (tmp_path / "data").read_text() == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_readers_that_have_left_change_nothing(unbuffered, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    ended(tmp_path, LINES, unbuffered=unbuffered, stdout=writing, stderr=writing)
    os.close(writing)


def test_a_full_disk_below_the_output_changes_nothing(tmp_path):
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    with (tmp_path / "log").open("w") as log:
        ended(tmp_path, LINES, stdout=log, stderr=log, preexec_fn=limit)
    assert 0 < (tmp_path / "log").stat().st_size <= 1000


def test_a_pipe_that_does_not_block_loses_no_line(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb") as pipe:
        program = subprocess.Popen(
            [sys.executable, "-c", f"{START}for n in range(99999): print(n)"],
            cwd=ROOT, stdout=writing,
        )  # fmt: skip
        os.close(writing)
        time.sleep(0.3)  # it fills up
        assert pipe.read().split() == [str(n).encode() for n in range(99999)]
    assert program.wait() == 0


def programs() -> list[Path]:
    files = [path for part in ("pipeline", "stages") for path in (ROOT / part).rglob("*.py")]
    data = ROOT / "pipeline/tasks/speech_classification/espeak.py"  # its output is no message
    return [path for path in files if "__main__" in path.read_text() and path != data]


@pytest.mark.parametrize("path", programs(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_begins_with_it(path):
    last = ast.parse(path.read_text()).body[-1]
    assert isinstance(last, ast.If)
    stages = path.parent.name == "stages"
    assert ast.unparse(last.body[0]) == ("run(main)" if stages else "make_safe()")


@pytest.mark.parametrize(
    "begin",
    [
        lambda: config.main("train_cnn", schemas()["train_cnn"], lambda *_: None),
        lambda: measure.options(argparse.ArgumentParser()),
    ],
    ids=["stage", "bench"],
)
def test_stages_and_measurements_begin_with_it(begin, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setattr(sys, "stdout", None)
    begin()
    assert sys.stdout is not None
    sys.stdout.close()


@pytest.mark.slow
def test_a_training_without_readers_ends_as_with_them(tmp_path):
    prepare = ("modality=image", "profile=tiny", "tracking=off")
    prepare += (f"output={tmp_path}/data", f"plots={tmp_path}/plots")
    train = (f"data={tmp_path}/data", f"output={tmp_path}/m", f"curve={tmp_path}/c.csv")
    reading, writing = os.pipe()
    os.close(reading)
    for stage, arguments in {"prepare": prepare, "train_cnn": (*train, "cnn=simple")}.items():
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}", *arguments],
            cwd=ROOT, stdout=writing, stderr=writing, check=False,
            env=environment(tmp_path, DVC_ROOT=str(tmp_path)),
        )  # fmt: skip
        assert done.returncode == 0
    os.close(writing)
    assert (tmp_path / "m" / "model.safetensors").is_file()
