"""What the settings name is looked at first: outputs must be the stage's own, inputs must end."""

import os
import socket
import stat
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml

from pipeline import conf_files, settings
from pipeline.errors import PipelineError
from pipeline.files import new_directory, new_file
from pipeline.schema import places
from pipeline.settings import Input, Output, Stage
from pipeline.stage import check_places
from tests.conftest import composed

NEEDED = {
    "prepare": ["modality=text"],
    "evaluate": ["model=cnn"],
    "repeat": ["model=cnn", "again=1"],
}
STAGES = sorted(path.stem for path in (conf_files.ROOT / "stages").glob("[!_]*.py"))


@cache
def chosen_by(stage: str, *overrides: str) -> Stage:
    """The settings that a command line of a stage leads to."""
    ((settings, _),) = composed(stage, *NEEDED.get(stage, []), *overrides)
    return settings


def file(path: Path) -> None:
    path.write_text('{"accuracy": "years of work", "examples": 9}')


def folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device needs root")


def unix_socket(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as bound:
        patch.chdir(path.parent)  # a socket's path may have 107 characters
        bound.bind(path.name)


def link_to_file(path: Path) -> None:
    (path.parent / "target").write_text("years of work")
    path.symlink_to("target")


def link_to_folder(path: Path) -> None:
    (path.parent / "target").mkdir()
    path.symlink_to("target")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


ENDLESS = [device, os.mkfifo, unix_socket]
FOREIGN = [file, folder, *ENDLESS, link_to_file, link_to_folder, link_to_nothing, link_to_itself]


def seen(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What lies in a folder: inode, type and time of change of each entry."""
    return {
        str(path): (entry.st_ino, entry.st_mode, entry.st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        for entry in [path.lstat()]
    }


def refusal(chosen: Stage) -> str:
    with pytest.raises(PipelineError) as caught:
        check_places(chosen)
    return str(caught.value)


class TestOutputs:
    @pytest.mark.parametrize("stage", STAGES)
    def test_what_is_not_the_stages_own_is_never_replaced(self, stage, tmp_path):
        chosen = chosen_by(stage)
        for key, _, mark in places(chosen, Output):
            for number, make in enumerate(FOREIGN):
                path = tmp_path / f"{key}-{number}" / "out"
                path.parent.mkdir()
                make(path)
                for name in (path, path / "..") if path.is_dir() else (path,):
                    before = seen(tmp_path)
                    said = refusal(chosen.model_copy(update={key: str(name)}))
                    assert said.startswith(f"{key}: {name} "), said
                    assert seen(tmp_path) == before
            (tmp_path / "loop").unlink(missing_ok=True)
            link_to_itself(tmp_path / "loop")
            said = refusal(chosen.model_copy(update={key: f"{tmp_path}/loop/out"}))
            assert f"{key}: {tmp_path}/loop/out can't be written" in said
            for name in ("..", ".", "/", ""):
                assert f"names no {mark.kind}" in refusal(chosen.model_copy(update={key: name}))

    @pytest.mark.parametrize("stage", STAGES)
    def test_they_are_marked_where_conf_says_that_they_are_outputs(self, stage):
        values = yaml.safe_load((conf_files.CONF / f"{stage}.yaml").read_text())
        named = {key for key, value in values.items() if str(value).startswith("${output:")}
        assert named
        assert {key for key, _, _ in places(chosen_by(stage), Output)} == named

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stage_refuses_before_it_computes(self, stage, call, tmp_path):
        key, _, mark = next(places(chosen_by(stage), Output))
        precious = tmp_path / "precious"
        (file if mark.kind == "folder" else folder)(precious)
        before = seen(tmp_path)
        line = call(stage, *NEEDED.get(stage, []), f"{key}={precious}", fails=True)
        assert line.startswith(f"error: {key}: {precious} is not a {mark.kind}")
        assert seen(tmp_path) == before

    def test_what_is_empty_or_an_earlier_output_may_be_replaced(self, tmp_path):
        for stage in STAGES:
            chosen = chosen_by(stage)
            for key, _, mark in places(chosen, Output):
                path = tmp_path / stage / key
                path.parent.mkdir(exist_ok=True)
                path.mkdir() if mark.kind == "folder" else path.touch()
                check_places(chosen.model_copy(update={key: str(path)}))
                if mark.kind == "folder":
                    (path / mark.mark).touch()
                else:
                    path.write_text(f"<!doctype html>{mark.mark} and more")
                check_places(chosen.model_copy(update={key: str(path)}))

    def test_what_stages_wrote_is_known_as_an_earlier_output(self, prepared, trained, tmp_path):
        data = f"output={prepared}/image", f"plots={prepared}/plots/image"
        check_places(chosen_by("prepare", "modality=image", *data))
        check_places(
            chosen_by(
                "train_cnn", f"data={prepared}/image", f"output={trained}/cnn",
                f"curve={trained}/curve.csv",
            )
        )  # fmt: skip
        for name in ("cnn", "rnn", "transformer"):  # git has them
            check_places(chosen_by("evaluate", f"metrics={conf_files.ROOT}/metrics/{name}.json"))

    @pytest.mark.parametrize(
        ("stage", "values", "fault"),
        [
            ("train_cnn", {"output": "m", "curve": "m/curve.csv"}, "curve: m/curve.csv is in m"),
            ("train_cnn", {"output": "m", "curve": "./m"}, "curve: m is in m"),
            ("evaluate", {"plots": "p", "curve": "p/train.csv"}, "curve: p/train.csv is in p"),
            ("repeat", {"trained": "m", "weights": "x/../m"}, "weights: x/../m is in m"),
            ("train_cnn", {"output": "own", "data": "link"}, "data: link is in own"),
            ("train_cnn", {"output": "own", "data": "own/away"}, "data: own/away is in own"),
        ],
    )
    def test_nothing_else_that_the_stage_names_lies_in_them(
        self, stage, values, fault, tmp_path, monkeypatch
    ):
        chosen = chosen_by(stage).model_copy(update=values)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "x").mkdir()
        (tmp_path / "own/data").mkdir(parents=True)
        (tmp_path / "own/model.json").touch()
        (tmp_path / "own/away").symlink_to(tmp_path / "x")
        (tmp_path / "link").symlink_to("own/data")
        assert refusal(chosen).startswith(f"{fault}, which the stage replaces")

    @pytest.mark.parametrize("key", ["output", "curve"])
    def test_they_lie_in_no_input_which_would_take_them_away_when_it_is_made_again(
        self, key, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data/image").mkdir(parents=True)
        (tmp_path / "link").symlink_to("data")
        for inside in ("data/image/m", "link/image/deep/m"):
            chosen = chosen_by("train_cnn").model_copy(update={key: inside})
            assert f"{key}: {inside} is in data/image" in refusal(chosen)


class TestInputs:
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_device_fifo_or_socket_is_refused_also_in_a_folder(self, stage, tmp_path):
        overrides = ["image=folder", "text=csv", "audio=folder"] if stage == "prepare" else []
        chosen = chosen_by(stage, *overrides)
        keys = [key for key, _, _ in places(chosen, Input)]
        assert keys
        for make in ENDLESS:
            folder = tmp_path / make.__name__ / "folder"
            folder.mkdir(parents=True)
            make(folder.parent / "endless")
            (folder / "link").symlink_to("../endless")
            for key, path in product(keys, (folder.parent / "endless", folder)):
                said = refusal(changed(chosen, key, str(path)))
                assert said.startswith(f"{key}: {path}")
                assert "is a device, a FIFO or a socket" in said

    def test_a_stage_does_not_wait_for_a_fifo(self, call, tmp_path):
        os.mkfifo(tmp_path / "rows.csv")
        line = call("prepare", "modality=text", "text=csv", f"text.file={tmp_path}/rows.csv",
                    f"output={tmp_path}/out", f"plots={tmp_path}/plots", fails=True)  # fmt: skip
        assert line.startswith(f"error: text.file: {tmp_path}/rows.csv is a device, a FIFO")


def changed(model: settings.Settings, key: str, value: str) -> Stage:
    """A copy with another value at a key such as `image.folder`, or `data.cnn` of a mapping."""
    first, _, rest = key.partition(".")
    if rest:
        inner = getattr(model, first)
        value = {**inner, rest: value} if isinstance(inner, dict) else changed(inner, rest, value)
    return model.model_copy(update={first: value})


class TestLinksThatDvcMade:
    """With `cache.type symlink` and a cache outside the workspace."""

    def test_are_replaced_and_their_targets_stay(self, linked, tmp_path):
        Path("models/cnn/more").mkdir(parents=True)
        Path("plots").mkdir()
        for name in ("models/cnn/model.json", "models/cnn/more/x", "plots/train_cnn.csv"):
            Path(name).write_text(f"epoch,step,{name}")
        linked("models/cnn")
        linked("plots/train_cnn.csv")
        links = [Path(name) for name in ("models/cnn/model.json", "plots/train_cnn.csv")]
        assert all(link.resolve().is_relative_to(tmp_path / "cache") for link in links)
        before = seen(tmp_path / "cache")
        check_places(chosen_by("train_cnn"))
        with new_directory(Path("models/cnn"), "model.json") as made:
            (made / "model.json").write_text("new")
        with new_file(Path("plots/train_cnn.csv")) as temporary:
            temporary.write_text("new")
        assert [link.is_symlink() for link in links] == [False, False]
        assert [link.read_text() for link in links] == ["new", "new"]
        assert os.listdir("models/cnn") == ["model.json"]
        assert seen(tmp_path / "cache") == before

    def test_an_output_folder_may_be_such_a_link(self, linked, tmp_path):
        Path("models").mkdir()
        Path("models/cnn").write_text("was a file")
        linked("models/cnn")
        before = seen(tmp_path / "cache")
        check_places(chosen_by("train_cnn"))
        with new_directory(Path("models/cnn"), "model.json") as made:
            (made / "model.json").write_text("new")
        assert not Path("models/cnn").is_symlink()
        assert seen(tmp_path / "cache") == before

    def test_a_link_to_anywhere_else_is_refused_there_too(self, linked, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        Path("models").mkdir()
        Path("models/cnn").symlink_to(tmp_path / "elsewhere")
        assert refusal(chosen_by("train_cnn")).startswith("output: models/cnn is a link to")
