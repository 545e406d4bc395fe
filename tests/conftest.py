"""What several test modules share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 300 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


ROOT = Path(__file__).parents[1]


def copy_of_the_repository(folder: Path) -> Path:
    """A git repository of its own with the project's files as they are now, and DVC in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a user in a fresh shell: this Python first on the path, no leftovers."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "HYDRA_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    author = {f"GIT_{who}_{what}": "test@example.org" if what == "EMAIL" else "test"
              for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}  # fmt: skip
    return {
        **keep,
        "PATH": path,
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder.parent),
        **author,
        **more,
    }


def run(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, in `folder`; its output is text."""
    return subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One headless Chromium for all tests: playwright's driver starts once in a process."""
    from tests.browser import analyst

    if analyst.chromium() is None:
        pytest.skip("chromium is not installed")
    with analyst.browser() as browser:
        yield browser
