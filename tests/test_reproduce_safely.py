"""A repetition writes and removes nothing outside its worktree, whatever the run's paths are."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.files import digest, new_directory, new_file
from pipeline.reproduce import restore, worktree
from pipeline.tracking.reader import Reader, Recorded
from tests.conftest import copy_of_the_repository, run
from tests.workspace import BARE, QUICK, workspace

CONTENT = {"dataset.json": "card", "model.safetensors": "weights"}


def seen(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every path below a folder but in `.git/worktrees`: type, time, and what is in it."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if ".git/worktrees" in name or name.endswith("/.git"):
            continue
        about = path.lstat()
        within = ""
        if path.is_symlink():
            within = str(path.readlink())
        elif path.is_file():
            within = digest(path)
        found[name] = (about.st_mode, about.st_mtime_ns, about.st_ino, within)
    return found


def fill(folder: Path) -> Path:
    """What passes for prepared data and for a model."""
    folder.mkdir(parents=True)
    for name, text in CONTENT.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a repository, `ws`, and, beside it, `out`."""
    ws, out = tmp_path / "ws", tmp_path / "out"
    for folder in ("data/image", "models/cnn", "plots/cnn"):
        fill(ws / folder)
    for folder in ("mydata", "mymodel", "big/data", "outputs"):
        fill(out / folder)
    (ws / "plots/train_cnn.csv").write_text("epoch\n")
    (out / "curve.csv").write_text("epoch\n")
    (ws / "linked").symlink_to(out / "big")
    (ws / ".gitignore").write_text("data/\nmodels/\nplots/\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        run(ws, "git", *words)
    monkeypatch.setenv("DVC_ROOT", str(ws))
    return tmp_path


RUNS: dict[str, Recorded] = {}


def recorded(place: Path, stage: str, **config: Any) -> str:
    """The id of a run as the store would have it, of the repository as it is."""
    digests = {name: digest(place / "out/mydata" / name) for name in CONTENT}
    tags = {
        "mlflow.source.git.commit": run(place / "ws", "git", "rev-parse", "HEAD").stdout.strip()
    }
    if "data" in config and stage != "report":
        tags |= {"input.data.md5": digests["dataset.json"], "input.data.run_id": "prepare"}
    if "weights" in config:
        tags |= {"input.model.md5": digests["model.safetensors"], "input.model.run_id": "train_cnn"}
    config = {"device": "cpu", **config}
    RUNS[stage] = Recorded(stage, stage, "FINISHED", tags, config, {"device": "cpu"}, b"", [])
    return stage


class Store:
    """Stands in for the MLflow store."""

    def __init__(self, uri: str = "") -> None:
        pass

    def read(self, run_id: str) -> Recorded:
        return RUNS[run_id]

    def runs(self, stage: str) -> list[str]:
        return [stage]


OUTPUTS = ("output", "curve", "metrics", "plots", "trained", "html", "markdown")


@pytest.fixture
def repeated(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Repeats a run with a stage that writes its outputs as stages do; returns its config."""
    configs: dict[str, dict[str, Any]] = {}

    def stage(name: str, config: dict[str, Any], tree: Path, uri: str) -> None:
        configs[name] = config
        for key, file in (("data", "dataset.json"), ("weights", "model.safetensors")):
            if isinstance(config.get(key), str):
                assert (tree / config[key] / file).read_text() == CONTENT[file]
        reads = {"evaluate": ("curve",), "report": ("metrics", "plots")}.get(name, ())
        assert all((tree / config[key]).exists() for key in reads if key in config)
        for key in set(OUTPUTS) & config.keys() - set(reads):
            path = tree / config[key]
            assert tree in Path(os.path.realpath(path)).parents
            if path.suffix:
                with new_file(path) as new:
                    new.write_text("new")
            else:
                with new_directory(path, "dataset.json") as new:
                    for file, text in CONTENT.items():
                        (new / file).write_text(text)

    monkeypatch.setattr(restore, "_run_stage", stage)
    monkeypatch.setattr(restore, "Reader", Store)

    def repeat(run_id: str) -> dict[str, Any]:
        folder = place.parent / f"{place.name}-temporary"
        folder.mkdir()
        try:
            with restore.again(RUNS[run_id], Store(), folder) as done:
                assert done.config == configs[run_id]
                return configs[run_id]
        finally:
            assert not list(folder.glob("*/tree"))
            shutil.rmtree(folder)

    return repeat


PATHS = {
    "absolute data": ("train_cnn", {"data": "{out}/mydata", "output": "models/x"}),
    "absolute data in the workspace": ("train_cnn", {"data": "{ws}/data/image", "output": "m"}),
    "data by ..": ("train_cnn", {"data": "../out/mydata", "output": "m"}),
    "data by .. within": ("train_cnn", {"data": "models/../data/image", "output": "m"}),
    "data through a link of the commit": ("train_cnn", {"data": "linked/data", "output": "m"}),
    "output in linked data": ("train_cnn", {"data": "data/image", "output": "data/image/model"}),
    "absolute output": ("train_cnn", {"data": "data/image", "output": "{out}/outputs"}),
    "absolute output in the workspace": (
        "train_cnn", {"data": "data/image", "output": "{ws}/models/cnn"},
    ),
    "output by ..": ("train_rnn", {"data": "data/image", "output": "../out/outputs"}),
    "output through a link of the commit": (
        "train_cnn", {"data": "data/image", "output": "linked/data"},
    ),
    "absolute curve": (
        "finetune_transformer",
        {"data": "data/image", "output": "m", "curve": "{out}/curve.csv"},
    ),
    "evaluation of absolute weights": (
        "evaluate",
        {
            "data": "{out}/mydata", "weights": "{out}/mymodel", "curve": "{out}/curve.csv",
            "metrics": "{out}/metrics.json", "plots": "{out}/outputs",
        },
    ),
    "evaluation by ..": (
        "evaluate",
        {
            "data": "../out/mydata", "weights": "../out/mymodel", "curve": "../out/curve.csv",
            "metrics": "../out/metrics.json", "plots": "../out/outputs",
        },
    ),
    "evaluation into its model": (
        "evaluate",
        {
            "data": "data/image", "weights": "models/cnn", "curve": "plots/train_cnn.csv",
            "metrics": "models/cnn/metrics.json", "plots": "models/cnn/plots",
        },
    ),
    "preparation of an absolute folder": (
        "prepare",
        {
            "image": {"folder": "{out}/mydata"}, "output": "{out}/outputs",
            "plots": "{ws}/plots/cnn",
        },
    ),
    "preparation into its folder": (
        "prepare", {"image": {"folder": "data/image"}, "output": "data/image/x", "plots": "p"},
    ),
    "repetition": (
        "repeat",
        {
            "data": "{ws}/data/image", "weights": "models/cnn", "trained": "{out}/outputs",
            "metrics": "{out}/curve.csv", "overrides": ["curve={out}/curve.csv"],
        },
    ),
    "report": (
        "report",
        {
            "data": {"cnn": "{out}/mydata"}, "metrics": "plots", "plots": "plots",
            "html": "plots/report.html", "markdown": "{out}/report.md",
        },
    ),
}  # fmt: skip


def filled(value: Any, place: Path) -> Any:
    if isinstance(value, dict):
        return {key: filled(one, place) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, place) for one in value]
    return value.format(ws=place / "ws", out=place / "out")


@pytest.mark.parametrize("name", PATHS)
def test_nothing_outside_the_worktree_changes(name, place, repeated):
    stage, paths = PATHS[name]
    run_id = recorded(place, stage, **filled(paths, place))
    before = seen(place)
    config = repeated(run_id)
    assert seen(place) == before
    if "absolute data" in name:
        assert config["data"] == filled(paths, place)["data"]


@pytest.mark.parametrize("data", ["{out}/mydata", "../out/mydata", "{ws}/data/image"])
def test_an_input_that_has_changed_is_made_in_the_worktree(data, place, repeated):
    data = filled(data, place)
    recorded(place, "prepare", output=data, plots="plots/data")
    run_id = recorded(place, "train_cnn", data=data, output="models/cnn")
    (place / "ws" / data / "dataset.json").write_text("another card")
    before = seen(place)
    config = repeated(run_id)
    assert seen(place) == before
    assert config["data"] == ("data/image" if "image" in data else "reproduced/data/mydata")


def test_weights_that_are_gone_are_made_in_the_worktree_with_their_curve(place, repeated):
    paths = {"data": f"{place}/out/mydata", "curve": f"{place}/out/curve.csv"}
    recorded(place, "train_cnn", output=f"{place}/out/mymodel", **paths)
    run_id = recorded(
        place, "evaluate", weights=f"{place}/out/mymodel", metrics="m.json", plots="p", **paths
    )
    shutil.rmtree(place / "out/mymodel")
    before = seen(place)
    config = repeated(run_id)
    assert seen(place) == before
    assert config["weights"] == "reproduced/weights/mymodel"
    assert config["curve"] == "reproduced/curve/curve.csv"


NAMES = st.sampled_from(["a", "b", "a/b", "b/a"])
TARGETS = st.sampled_from(["{out}", "{out}/a", "../out", "../../out/a", "..", "b", "a", "."])
ROOTS = st.sampled_from(["", "", "", "{tree}/", "{out}/", "../out/"])
STEPS = st.lists(st.sampled_from(["a", "b", ".."]), min_size=1, max_size=4)


@given(folders=st.sets(NAMES), links=st.dictionaries(NAMES, TARGETS), root=ROOTS, steps=STEPS)
@settings(max_examples=100, deadline=None)
def test_what_is_inside_or_freed_never_leads_out(folders, links, root, steps):
    with tempfile.TemporaryDirectory() as base:
        tree, out = Path(base, "tree"), Path(base, "out")
        tree.mkdir()
        (out / "a/b").mkdir(parents=True)
        (out / "b").write_text("kept")
        for name in folders:
            (tree / name).mkdir(parents=True, exist_ok=True)
        for name, target in links.items():
            with contextlib.suppress(OSError):  # a folder is there, or no folder for it
                (tree / name).symlink_to(target.format(out=out))
        path = root.format(tree=tree, out=out) + "/".join(steps)

        def outside() -> dict[str, Any]:
            found = {n: about for n, about in seen(Path(base)).items() if not n.startswith("tree")}
            return {**found, "tree": tree.is_dir() and not tree.is_symlink()}

        before = outside()
        if worktree.inside(tree, path):
            with contextlib.suppress(OSError):  # a loop of links
                (tree / path).mkdir(parents=True, exist_ok=True)
                (tree / path / "new").write_text("new")
            assert outside() == before
        with contextlib.suppress(PipelineError, OSError):
            place = worktree.free(tree, path)
            assert not os.path.lexists(place)
            place.write_text("new")
        assert outside() == before


def test_a_link_is_removed_and_not_followed(place):
    tree = place / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "data").symlink_to(place / "out")
    before = seen(place / "out")
    with pytest.raises(PipelineError, match="data/mydata leads out of the worktree"):
        worktree.free(tree, "data/mydata")
    with pytest.raises(PipelineError, match="leads out"):
        worktree.free(tree, "inner/../../out/mydata")
    with pytest.raises(PipelineError, match="leads out"):
        worktree.free(tree, "inner/..")
    with pytest.raises(PipelineError, match="leads out"):
        worktree.free(tree, place / "out/mydata")
    assert worktree.free(tree, "inner/../data") == tree / "data"
    assert list(tree.iterdir()) == [tree / "inner"]
    assert seen(place / "out") == before


READ_ONLY = """
set -e
mkdir -p ws/.git/worktrees
for folder in ws out; do mount --bind $folder $folder; done
mount --bind ws/.git/worktrees ws/.git/worktrees
for folder in ws out; do mount -o remount,bind,ro $folder; done
! touch ws/x out/x 2>/dev/null
cd ws  # the folder that is now read-only, not the one below it
exec "$@"
"""
MOUNTED = ("unshare", "-m", "sh", "-c", READ_ONLY, "sh")


@pytest.mark.slow
def test_whole_repetitions_while_all_else_is_read_only(tmp_path):
    base, ws, out = tmp_path, tmp_path / "ws", tmp_path / "out"
    ws.mkdir()
    copy_of_the_repository(ws)
    shutil.copytree(workspace(tmp_path.parent) / "data/audio", out / "mydata")
    if run(base, *MOUNTED, "true").returncode:
        pytest.skip("this machine does not let this user mount folders read-only")
    (base / "store").mkdir()  # elsewhere: who reads it takes a lock beside it
    uri = f"sqlite:///{base}/store/mlflow.db"

    def start(*command: str) -> str:
        done = run(base if command[0] == "unshare" else ws, *command, MLFLOW_TRACKING_URI=uri)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()[-1]

    small = ("profile=tiny", "threads=1")
    start(
        "python", "-m", "stages.train_rnn", *small, *QUICK["rnn"], "data=../out/mydata",
        f"output={out}/model", f"curve={ws}/plots/curve.csv",
    )  # fmt: skip
    start(
        "python", "-m", "stages.evaluate", *small, *BARE, "model=rnn", f"data={out}/mydata",
        f"weights={out}/model", f"curve={ws}/plots/curve.csv", f"metrics={out}/metrics.json",
        f"plots={ws}/data",
    )  # fmt: skip
    start("python", "-m", "pipeline.tracking", "sync")
    before = {folder: seen(folder) for folder in (ws, out)}
    for stage in ("train_rnn", "evaluate"):
        (run_id,) = Reader(uri).runs(stage)
        said = start(*MOUNTED, "python", "-m", "pipeline.reproduce", run_id)
        assert said.startswith("identical: the outputs and ")
    assert {folder: seen(folder) for folder in (ws, out)} == before
