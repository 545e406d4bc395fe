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


def start(folder: Path, name: str, *overrides: str) -> None:
    """Run `stages.<name>` with its state in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        patch.setattr(sys, "argv", [name, *SMALL, *overrides])
        importlib.import_module(f"stages.{name}").main()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny prepared images, made by the stage itself."""
    folder = tmp_path_factory.mktemp("prepared")
    places = f"output={folder}/image", f"plots={folder}/plots/image"
    start(folder, "prepare", "modality=image", *places)
    return folder


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of those images, `cnn`, and its learning curve, `curve.csv`."""
    folder = tmp_path_factory.mktemp("trained")
    places = f"output={folder}/cnn", f"curve={folder}/curve.csv"
    start(folder, "train_cnn", f"data={prepared}/image", *places)
    return folder
