"""The entrypoints, called in this process with a command line of their own."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Call = Callable[..., str]
SMALL = ("profile=tiny", "tracking=off", "threads=1", "device=cpu")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run `stages.<name>`; returns what it printed, or, after an error, its one line."""

    def run(name: str, *overrides: str, fails: bool = False) -> str:
        module = importlib.import_module(f"stages.{name}")
        monkeypatch.setattr(sys, "argv", [name, *SMALL, *overrides])
        capfd.readouterr()
        if not fails:
            module.main()
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 1
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, printed.err
        return lines[0]

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # where training state and journals go
    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three tiny prepared data sets, made by the stage itself."""
    folder = tmp_path_factory.mktemp("prepared")
    argv = sys.argv
    try:
        for modality in ("image", "text", "audio"):
            sys.argv = ["prepare", *SMALL, f"modality={modality}", f"output={folder}/{modality}",
                        f"plots={folder}/plots/{modality}"]  # fmt: skip
            importlib.import_module("stages.prepare").main()
    finally:
        sys.argv = argv
    return folder
