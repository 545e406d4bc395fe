"""What the Makefile says before it starts anything."""

import shutil

import pytest

from tests.conftest import ROOT, run

DVC = "#!/bin/sh\necho dvc was started\n"


@pytest.mark.parametrize("name", ["my proj", "my proj ü"])
def test_tiny_says_in_one_line_that_dvc_fails_in_such_a_path(name, tmp_path):
    folder = tmp_path / name
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    for path, text in (
        ("requirements.lock", ""), ("pyproject.toml", ""), (".venv/.ready", ""),
        (".venv/bin/dvc", DVC), (".venv/bin/python", "#!/bin/sh\n"),
    ):  # fmt: skip
        (folder / path).write_text(text)
        (folder / path).chmod(0o755)
    done = run(folder, "make", "tiny")
    if name.isascii():
        assert done.returncode == 0
        assert "dvc was started" in done.stdout
        return
    assert "started" not in done.stdout
    said, make = done.stderr.splitlines()
    assert said == (
        "error: DVC's temporary experiments fail in a path with other letters than ASCII "
        f"({folder}); move the project"
    )
    assert "*** [Makefile" in make  # of `make[1]` below `make test`
