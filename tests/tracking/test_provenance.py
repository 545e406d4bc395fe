"""What a run was made from is recorded whatever git is configured to show, and can be restored."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.reproduce import restore, worktree
from pipeline.tracking import provenance
from pipeline.tracking.masking import clean_diff
from pipeline.tracking.provenance import written_by_dvc
from pipeline.tracking.reader import Reader, Recorded
from tests.tracking.conftest import git

PICTURE = b"\x89PNG\r\n\x00\x01" + bytes(range(256))
LINES = "".join(f"line {number}\n" for number in range(40))
LONGER = LINES.replace("line 3\n", "line 3\nmore\n").replace("line 30\n", "line 30\nmore\n")
FILES = {
    "docs/changed.png": PICTURE,
    "docs/deleted.png": PICTURE,
    "docs/shown.png": PICTURE,
    "notes/latin.txt": "fête\nça\nnaïve\n".encode("latin-1"),
    "pipeline/model.py": LINES.encode(),
    "pipeline/hidden.py": LINES.encode(),
    "pipeline/binary.py": LINES.encode(),
    "pipeline/driven.py": LINES.encode(),
    "pipeline/big.txt": b"0\n",
    "pipeline/blanks.txt": LINES.encode(),
    "pipeline/ends.txt": b"without\nan end",
    "pipeline/executable.sh": b"echo\n",
    "pipeline/link": b"a\n",
    "pipeline/moved.txt": LINES.encode(),
    "pipeline/odd.txt": "one\rtwo\r\nthree\n\f\nfour\u2028five\n".encode(),
    "conf/hub.yaml": b"name: me\napi_key: hunter2\nlr: 1\nsteps: 5\n",
    "conf/sk-learn-and-other-examples/x.yaml": b"a: 1\n",  # to a mask it looks like a token
    "params.yaml": b"lr: 1\n",
    "server.key": b"hunter1\n",
}
CHANGED = {
    "docs/changed.png": PICTURE + b"x",
    "docs/shown.png": PICTURE[:50],
    "notes/latin.txt": "fête\nÇa\nnaïve\n".encode("latin-1"),
    "pipeline/model.py": LONGER.encode(),
    "pipeline/hidden.py": LONGER.encode(),
    "pipeline/binary.py": LONGER.encode(),
    "pipeline/driven.py": LONGER.encode(),
    "pipeline/big.txt": b"".join(b"%50d\n" % number for number in range(100_000)),
    "pipeline/blanks.txt": b"a  \n \n\t\n" + LINES.encode(),
    "pipeline/ends.txt": b"with\nan end",
    "pipeline/odd.txt": "one\rtwo\r\nfour\n\f\nfour\u2028six\n".encode(),
    "conf/hub.yaml": b"name: me\napi_key: hunter2\nlr: 2\nsteps: 5\n",
    "conf/sk-learn-and-other-examples/x.yaml": b"a: 2\n",
}
HOSTILE = {
    "apply.ignoreWhitespace": "change",
    "apply.whitespace": "fix",
    "color.ui": "always",
    "core.quotePath": "false",
    "diff.autoRefreshIndex": "false",
    "diff.colorMoved": "zebra",
    "diff.context": "0",
    "diff.external": "false",
    "diff.interHunkContext": "100",
    "diff.mnemonicPrefix": "true",
    "diff.noprefix": "true",
    "diff.orderFile": "nowhere",
    "diff.own.binary": "true",
    "diff.relative": "true",
    "diff.renames": "copies",
    "diff.shout.textconv": "tr a-z A-Z <",
    "diff.suppressBlankEmpty": "true",
    "i18n.logOutputEncoding": "UTF-16",
    "log.showSignature": "true",
}
ATTRIBUTES = """\
*.txt diff=shout -text
*/hidden.py -diff
*/binary.py binary
*/driven.py diff=own
*/shown.png diff
"""


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one commit, its project in a folder of it."""
    folder = tmp_path_factory.mktemp("first")
    write(folder / "projects/dl", FILES)
    (folder / "projects/dl/.gitattributes").write_text(ATTRIBUTES)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def project(first: Path, tmp_path: Path) -> Path:
    """The project of a copy of that repository."""
    shutil.copytree(first, tmp_path / "repository")
    git(tmp_path / "repository", "status")  # git knows the copied files as those that it has
    return tmp_path / "repository/projects/dl"


def write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def recorded(project: Path) -> Recorded:
    """The run that a stage of this project would have."""
    patch = project.parents[2] / "uncommitted.diff"
    found = provenance.git(project, patch)
    assert "refused" not in found
    tags = {"mlflow.source.git.commit": found["commit"]}
    tags |= {"source.diff": found["no_diff"]} if found["no_diff"] else {}
    diff = patch.read_bytes() if patch.exists() else b""
    return Recorded("1", "train_cnn", "FINISHED", tags, {}, {}, diff, found["untracked"])


def restored(project: Path) -> tuple[Path, list[str]]:
    """The project as a repetition has it, and what that could not restore."""
    run, tree = recorded(project), project.parents[2] / "tree"
    git(project, "worktree", "add", "-q", "--detach", str(tree), run.commit)
    reasons = worktree.apply_changes(run, tree, "projects/dl/")
    return tree / "projects/dl", reasons


def files(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            str(path.readlink()) if path.is_symlink() else path.read_bytes(),
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("hostile", [{}, HOSTILE], ids=["plain", "hostile"])
def test_whatever_was_changed_is_restored_to_the_byte(hostile, project, monkeypatch):
    write(project, CHANGED)
    (project / "docs/deleted.png").unlink()
    (project / "pipeline/executable.sh").chmod(0o755)
    (project / "pipeline/link").unlink()
    (project / "pipeline/link").symlink_to("nowhere")
    git(project, "mv", "pipeline/moved.txt", "pipeline/ü\n.txt")
    (project / "params.yaml").touch()
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(hostile)))
    for number, (key, value) in enumerate(hostile.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    again, reasons = restored(project)
    assert files(again) == files(project)
    assert reasons == []


@pytest.mark.parametrize("name", ["GIT_DIFF_OPTS", "GIT_LITERAL_PATHSPECS"])
def test_no_variable_changes_the_diff(name, project, monkeypatch):
    write(project, {"pipeline/model.py": LONGER.encode(), "server.key": b"hunter2\n"})
    before = recorded(project).diff
    monkeypatch.setenv(name, {"GIT_DIFF_OPTS": "--unified=0"}.get(name, "1"))
    assert recorded(project).diff == before


def test_code_that_attributes_hide_is_masked(project):
    write(project, {"pipeline/hidden.py": b'PASSWORD = "hunter3"\n'})
    assert b'+PASSWORD = "***"' in recorded(project).diff


def test_quoted_secrets_in_a_notebook_are_masked(project):
    source = r'{"source": ["hf_token = \"hunter3\"\n", "x = {\"api_key\": \"hunter3\", \"a\": 1}"]}'
    write(project, {"x.ipynb": source.encode()})
    git(project, "add", "-N", "x.ipynb")
    masked = source.replace("hunter3", "***")
    assert f"+{masked}\n".encode() in recorded(project).diff


@pytest.mark.timeout(10)
def test_backslashes_in_a_quote_that_does_not_end_cost_no_time():
    line = '+label = "' + "\\" * 60
    assert list(clean_diff(["+++ b/x.py", "@@ -0,0 +1 @@", line]))[-1] == line


def test_secrets_of_the_commit_come_from_there_and_those_of_the_changes_from_nowhere(project):
    write(project, {"conf/hub.yaml": b"name: me\napi_key: hunter3\nlr: 2\n"})
    assert b"hunter" not in recorded(project).diff
    again, reasons = restored(project)
    assert (again / "conf/hub.yaml").read_bytes() == b"name: me\napi_key: ***\nlr: 2\n"
    assert reasons == ["its uncommitted changes held secrets, which were not recorded"]


def test_user_info_in_addresses_of_the_commit_comes_from_there(project):
    write(project, {"params.yaml": b"url: ssh://git@host/x\nlr: 1\ngone: https://me:pw@host\n"})
    git(project, "commit", "-q", "-a", "-m", "addresses")
    write(project, {"params.yaml": b"url: ssh://git@host/x\nlr: 2\n"})
    again, reasons = restored(project)
    assert (again / "params.yaml").read_bytes() == b"url: ssh://git@host/x\nlr: 2\n"
    assert reasons == []


def test_user_info_in_added_addresses_is_a_known_reason(project):
    write(project, {"params.yaml": b"url: https://me:pw@host/x\n"})
    again, reasons = restored(project)
    assert (again / "params.yaml").read_bytes() == b"url: https://***@host/x\n"
    assert reasons == ["its uncommitted changes held secrets, which were not recorded"]


def test_a_removed_line_that_looks_like_the_name_of_a_file_hides_no_secret():
    diff = [
        "--- a/x.yaml",
        "+++ b/x.yaml",
        "@@ -1,2 +1,2 @@",
        "--- x.py",
        " a: 1",
        "+token: hunter",
    ]
    assert list(clean_diff(diff))[-1] == "+token: ***"


def test_a_diff_that_is_too_long_is_not_kept_and_that_is_said(project, monkeypatch):
    monkeypatch.setattr(provenance, "DIFF_BYTES", 1000)
    write(project, {"pipeline/model.py": os.urandom(2000).hex().encode()})
    run = recorded(project)
    assert run.diff == b""
    reasons = worktree.apply_changes(run, project, "")
    assert reasons == ["uncommitted changes were not recorded: it has more than 1,000 bytes"]


def test_what_no_stage_reads_does_not_stop_a_repetition(project):
    write(project, {"notes/latin.txt": b"ca\n", "pipeline/model.py": LONGER.encode()})
    diff = recorded(project).diff
    top = project.parents[1]
    git(project, "checkout", "-q", ".")
    write(project, {"notes/latin.txt": b"other\n"})
    run = Recorded("1", "train_cnn", "FINISHED", {}, {}, {}, diff, [])
    (reason,) = worktree.apply_changes(run, top, "projects/dl/")
    assert "files that no stage reads don't apply: git apply failed: error: patch failed" in reason
    assert (project / "pipeline/model.py").read_text() == LONGER
    assert (project / "notes/latin.txt").read_bytes() == b"other\n"
    with pytest.raises(PipelineError, match="don't apply to"):
        worktree.apply_changes(run, top, "projects/dl/")  # a second time


SLOW = """#!/bin/sh
sleep 60 &  # holds the pipe
sleep 60
"""


@pytest.mark.parametrize("why", ["another owner", "not installed", "slow", "no commit", "broken"])
def test_where_git_refuses_its_first_line_is_kept(why, tmp_path, monkeypatch):
    git(tmp_path, "init", "-q", "-b", "main")
    said = {
        "another owner": f"fatal: detected dubious ownership in repository at '{tmp_path}'",
        "not installed": "git can't be run (No such file or directory)",
        "slow": "git took longer than 0.3 s",
        "no commit": "fatal: your current branch 'main' does not have any commits yet",
        "broken": f"fatal: not a git repository: {tmp_path}/gone",
    }
    if why == "another owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    if why in ("not installed", "slow"):
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin" if why == "slow" else "nowhere")
    if why == "slow":
        monkeypatch.setattr(provenance, "SECONDS", 0.3)
        write(tmp_path, {"bin/git": SLOW.encode()})
        (tmp_path / "bin/git").chmod(0o755)
    if why == "broken":  # a linked worktree in a container that has not its repository
        shutil.rmtree(tmp_path / ".git")
        (tmp_path / ".git").write_text(f"gitdir: {tmp_path}/gone\n")
    assert provenance.git(tmp_path, tmp_path / "patch") == {"refused": said[why]}


def test_no_repository_is_no_refusal(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (said,) = provenance.git(tmp_path, tmp_path / "patch").items()
    assert said == (
        "none", "fatal: not a git repository (or any of the parent directories): .git",
    )  # fmt: skip


def test_what_was_known_before_git_refused_is_kept(project):
    git(project, "config", "filter.own.clean", "false")
    git(project, "config", "filter.own.required", "true")
    (project / ".gitattributes").write_text("*.py filter=own\n")
    write(project, {"pipeline/model.py": b"new\n"})
    found = provenance.git(project, project / "patch")
    assert found["commit"] == git(project, "rev-parse", "HEAD").strip()
    assert found["refused"] == "error: external filter 'false' failed 1"


def test_a_run_without_a_commit_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    run = Recorded("1", "train_cnn", "FINISHED", {"source.git": "fatal: no"}, {}, {}, b"", [])
    said = r"run 1 has no commit \(fatal: no\), so its code can't be restored; run the stage in a"
    with pytest.raises(PipelineError, match=said), restore.again(run, Reader(), tmp_path):
        pass


def test_a_run_of_a_project_that_was_in_another_folder_is_one_line(project, tmp_path, monkeypatch):
    run, place = recorded(project), project.with_name("moved")
    project.rename(place)
    monkeypatch.setenv("DVC_ROOT", str(place))
    with (
        pytest.raises(PipelineError, match=r"has no folder projects/moved/"),
        restore.again(run, Reader(), tmp_path),
    ):
        pass
    assert len(git(place, "worktree", "list").splitlines()) == 1


def test_params_are_compared_with_those_of_the_projects_folder(project):
    write(project, {"params.yaml": b"lr: 2\n"})
    assert provenance.git(project, project / "patch")["changes"] == ["lr=2"]


def test_an_output_outside_the_repository_costs_no_record(project):
    write(project, {"dvc.yaml": b"stages: {one: {cmd: x, outs: [../../../far, /far, near]}}"})
    found = provenance.git(project, project.parents[2] / "patch")
    assert found["untracked"] == ["dvc.yaml"]


def test_the_outputs_that_dvc_writes_are_no_change_of_the_code(tmp_path):
    (tmp_path / "dvc.yaml").write_text("""
stages:
  one: {cmd: x, outs: [data/a, {models/b: {cache: false}}]}
  two:
    foreach: [x]
    do: {cmd: x, metrics: [{"metrics/${item}.json": {cache: false}}]}
""")
    names = written_by_dvc(tmp_path)
    assert {"dvc.lock", "data/a", "models/b/**", "metrics/*.json"} <= set(names)
