"""Data, weights and config are read, never obeyed; what is malformed is one line, never a wreck."""

import ast
import contextlib
import io
import os
import pickle
import shutil
import sys
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import conf_files, prepared
from pipeline.errors import PipelineError
from pipeline.files import digest, write_json
from pipeline.task import find
from pipeline.training import net
from tests.conftest import composed
from tests.data.sources import complaint, image_folder, source
from tests.models.presets import preset

SOURCES = [
    path for folder in ("pipeline", "stages") for path in (conf_files.ROOT / folder).rglob("*.py")
]
FUZZ = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
TIMES = pytest.mark.parametrize("times", [6, pytest.param(100, marks=pytest.mark.slow)])
"""Of what takes a large part of a second each time."""


class Attack:
    """What unpickling this would do."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


@given(st.text())
def test_whatever_a_message_quotes_it_is_one_line_that_a_terminal_shows(quoted):
    message = str(PipelineError(f"{quoted} can't be read"))
    assert message.isprintable()
    assert message.encode().endswith(b" can't be read")
    assert quoted in message or not quoted.isprintable()


class TestCode:
    def calls(self, path: Path) -> list[tuple[str, ast.Call]]:
        tree = ast.parse(path.read_text())
        return [
            (ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)
        ]

    @pytest.mark.parametrize(
        "path", SOURCES, ids=lambda path: str(path.relative_to(conf_files.ROOT))
    )
    def test_nothing_that_runs_what_it_reads(self, path):
        for name, call in self.calls(path):
            keywords = {one.arg: ast.unparse(one.value) for one in call.keywords}
            assert name not in ("eval", "exec", "compile", "__import__", "os.system"), name
            assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), name
            assert not name.startswith(("pickle.", "marshal.", "shelve.", "dill.", "joblib.")), name
            assert keywords.get("shell", "False") == "False", name
            assert keywords.get("allow_pickle", "False") == "False", name
            assert keywords.get("trust_remote_code", "False") == "False", name
            if name == "Image.open":  # some of Pillow's readers start other programs
                assert "formats" in keywords
            if name == "torch.load":
                assert keywords["weights_only"] == "True"
            if name.endswith(".from_pretrained") and "Auto" in name:
                safe = None in keywords and keywords[None] == "TRUSTED"
                assert safe or keywords.get("trust_remote_code") == "False", name

    def test_the_servers_answer_this_machine_only(self, monkeypatch, tmp_path, empty_store):
        from pipeline.tracking import __main__ as tracking

        started: list[list[str]] = []
        shutil.copy(empty_store, tmp_path)
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.setattr(os, "execve", lambda _, command, __: started.append(command))
        monkeypatch.setattr(sys, "argv", ["tracking", "ui"])
        tracking.main(["ui"])
        (command,) = started
        assert command[command.index("--host") + 1] == "127.0.0.1"


@pytest.fixture
def compose(own_conf: Path) -> Callable[..., list[Any]]:
    """Compose train_cnn's config from params.yaml and conf/ as files of the test's own."""
    return partial(composed, "train_cnn")


def outcome(call: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """`success`, or the one line of the message; anything else fails."""
    status = None
    try:
        call()
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err.splitlines()
    if status is None:
        return "success"
    assert status == 1
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    return said[0]


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
HARM = "harm"  # a file that no test may find


class TestConfig:
    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            pytest.param("pathlib.Path.touch", marks=pytest.mark.slow),
            pytest.param("builtins.open", marks=pytest.mark.slow),
        ],
    )
    @pytest.mark.parametrize("where", ["setting", "callback", "logger"])
    def test_a_file_that_names_a_callable_calls_nothing(
        self, target, where, compose, tmp_path, capsys
    ):
        harm = tmp_path / "harm"
        call = {"_target_": target, "_args_": [str(harm), "w"][: 1 + (target == "builtins.open")]}
        if target == "os.system":
            call["_args_"] = [f"touch {harm}"]
        content: dict[str, Any] = {"cnn": {"name": "simple"}}
        if where == "setting":
            content["cnn"] |= call
        elif where == "callback":
            content["hydra"] = {"callbacks": {"evil": call}}
        else:
            handler = {"()": target, "command": f"touch {harm}", "file": str(harm)}
            log = {"version": 1, "handlers": {"x": handler}, "root": {"handlers": ["x"]}}
            content["hydra"] = {"job_logging": log}
        evil = tmp_path / "conf/cnn/evil.yaml"
        evil.write_text("# @package _global_\n" + yaml.safe_dump(content))
        said = outcome(lambda: compose("cnn=evil"), capsys)
        assert not harm.exists()
        assert said != "success"

    @pytest.mark.parametrize("name", ["params.yaml", "conf/cnn/simple.yaml"])
    @pytest.mark.parametrize(
        ("content", "part"),
        [
            (BOMB, "has more than 10,000 values or 50 levels, with its aliases written out"),
            ("x: " + "[" * 90_000, "has more than 10,000 values or 50 levels"),
            ("- " * 40_000, "has more than 10,000 values or 50 levels"),
            ("".join(f"a{n}: 1\n" for n in range(6_000)), "has more than 10,000 values"),
            (f"x: {'y' * 200_000}", "is larger than 100,000 bytes; shorten it"),
            (f"x: {'1' * 5_000}", "has a value of more than 4,000 characters"),
            (f"x: 0x{'f' * 50_000}", "has a value of more than 4,000 characters"),
        ],
        ids=["aliases", "flow", "block", "keys", "bytes", "digits", "hexadecimal"],
    )
    @pytest.mark.timeout(60)  # what is written out in full never ends
    def test_a_file_that_would_fill_the_memory_is_refused(
        self, name, content, part, compose, capsys
    ):
        (conf_files.ROOT / name).write_text(content)
        assert f"error: {name} {part}" in outcome(compose, capsys)

    @pytest.mark.parametrize("value", ["[" * 2_000, "[" * 200 + "]" * 200, "1" * 5_000])
    def test_an_override_that_would_fill_the_stack_is_refused(self, value, compose, capsys):
        said = outcome(lambda: compose(f"seed={value}"), capsys)
        assert "(command line) has more than 4,000 characters or 50 levels" in said

    @pytest.mark.parametrize("name", ["params.yaml", "conf/cnn/simple.yaml"])
    def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(self, name, compose, capsys):
        (conf_files.ROOT / name).unlink()
        os.mkfifo(conf_files.ROOT / name)
        assert f"error: {name} is not a file" in outcome(compose, capsys)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--experimental-rerun", "x.pickle"], ["--experimental-rerun=x.pickle"],
            ["--experimental", "x.pickle"], ["--e=x.pickle"], ["seed=1", "--exp", "x.pickle"],
            ["--config-dir", "."], ["-cd", "."], ["--config-path=/"], ["-cp", "/"],
            ["--config-name=report"], ["--config-n", "report"], ["-cn", "report"],
        ],
    )  # fmt: skip
    def test_no_option_runs_a_pickle_or_reads_config_from_elsewhere(
        self, arguments, compose, capsys, tmp_path
    ):
        (tmp_path / "x.pickle").write_bytes(pickle.dumps(Attack(tmp_path / HARM)))
        said = outcome(lambda: compose(*arguments), capsys)
        assert " (command line) runs code or reads config that is not in conf/" in said
        assert not (tmp_path / HARM).exists()

    @pytest.mark.parametrize(
        "override",
        [
            "+hydra.callbacks.x={_target_:builtins.open,_args_:[harm,w]}",
            "+hydra.callbacks.x._target_=stages.report.main",
            "hydra.callbacks=${x}",
            "hydra.searchpath=[file:///tmp]",
            "+hydra.job.env_set.PYTHONPATH=/tmp",
            "hydra.job.env_copy=[HOME]",
            "hydra.launcher._target_=builtins.open",
            "++hydra.job_logging.handlers.x={class:logging.FileHandler,filename:harm}",
            "hydra.hydra_logging.handlers.console.stream=ext://this.s",
            "cnn=../../evil",
        ],
    )
    def test_no_override_calls_code_or_reads_config_from_elsewhere(
        self, override, compose, capsys, tmp_path
    ):
        (tmp_path / "evil.yaml").write_text("name: simple\n")
        said = outcome(lambda: compose(override), capsys)
        assert " config " in said or " conf/" in said
        assert not (tmp_path / HARM).exists()

    @pytest.mark.parametrize("setting", ["callbacks", "job_logging"])
    def test_a_text_that_becomes_a_mapping_calls_nothing_either(
        self, setting, compose, capsys, tmp_path
    ):
        call = f"x: {{_target_: builtins.open, _args_: [{tmp_path / HARM}, w]}}"
        value = f"${{oc.select:nothing,{{{call}}}}}"
        content = {"cnn": {"name": "simple"}, "hydra": {setting: value}}
        evil = tmp_path / "conf/cnn/evil.yaml"
        evil.write_text("# @package _global_\n" + yaml.safe_dump(content))
        assert f"hydra.{setting} is " in outcome(lambda: compose("cnn=evil"), capsys)
        sweep = ("--multirun", "cnn=simple,evil", "hydra.sweep.dir=multirun")
        assert f"hydra.{setting} is " in outcome(lambda: compose(*sweep), capsys)
        assert not (tmp_path / HARM).exists()

    def test_a_preset_takes_in_no_file_from_elsewhere(self, compose, capsys, tmp_path):
        (tmp_path / "outside.yaml").write_text("name: simple\n")
        (tmp_path / "conf/cnn/evil.yaml").write_text("defaults: [../../outside]\n")
        assert "is not in conf/" in outcome(lambda: compose("cnn=evil"), capsys)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--cfg", "job"], ["--help"], ["--info", "searchpath"], ["-sc", "install=bash"],
            ["--multirun", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1",
             "hydra.sweep.dir=multirun"],
        ],
    )  # fmt: skip
    def test_what_hydra_offers_otherwise_is_there(self, arguments, compose, capsys):
        with contextlib.suppress(SystemExit):  # of --help, with 0
            compose(*arguments)
        assert "error: " not in capsys.readouterr().err

    @TIMES
    def test_any_line_of_params_may_be_anything(self, times, compose, capsys):
        original = conf_files.PARAMS.read_text()

        @settings(FUZZ, max_examples=times)
        @given(
            line=st.integers(0, 39),
            text=st.text(max_size=12)
            | st.sampled_from(["x: [", "? ", "- a", "&a *a", "!!python/name:os.system"]),
        )
        def check(line: int, text: str) -> None:
            lines = original.splitlines()
            lines[line % len(lines)] = text
            conf_files.PARAMS.write_text("\n".join(lines), "utf-8", "surrogatepass")
            said = outcome(compose, capsys)
            assert said == "success" or "params.yaml" in said

        check()

    @TIMES
    def test_any_command_line_is_taken_or_refused_in_one_line(self, times, compose, capsys):
        @settings(FUZZ, max_examples=times)
        @given(st.lists(st.text(max_size=15).filter(lambda t: not t.startswith("-")), max_size=3))
        def check(arguments: list[str]) -> None:
            said = outcome(lambda: compose(*arguments), capsys)
            assert said == "success" or "command line" in said

        check()

    @TIMES
    def test_any_value_of_a_setting_is_taken_or_refused_in_one_line(self, times, compose, capsys):
        original = conf_files.PARAMS.read_text()

        @settings(FUZZ, max_examples=times)
        @given(
            key=st.sampled_from(
                [
                    "optimizer.lr", "training.epochs", "augment.scale", "seed", "device", "data",
                    "threads",
                ]
            ),
            value=st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=8)
            | st.lists(st.integers(), max_size=2)
            | st.dictionaries(st.text("ab", min_size=1, max_size=2), st.integers(), max_size=2),
        )  # fmt: skip
        def check(key: str, value: Any) -> None:
            params = yaml.safe_load(original)
            section = params["common" if key in params["common"] else "train_cnn"]
            *above, last = key.split(".")
            for step in above:
                section = section.setdefault(step, {})
            section[last] = value
            conf_files.PARAMS.write_text(yaml.safe_dump(params))
            said = outcome(compose, capsys)
            assert said == "success" or "params.yaml" in said

        check()

    @TIMES
    def test_any_conf_file_is_taken_or_refused_in_one_line(self, times, compose, capsys):
        @settings(FUZZ, max_examples=times)
        @given(content=st.binary(max_size=30), name=st.sampled_from(["train_cnn", "cnn/simple"]))
        def check(content: bytes, name: str) -> None:
            path = conf_files.CONF / f"{name}.yaml"
            original = path.read_bytes()
            path.write_bytes(original[: len(original) // 2] + content)
            try:
                said = outcome(lambda: compose("cnn=simple"), capsys)
            finally:
                path.write_bytes(original)
            assert said == "success" or f"conf/{name}.yaml" in said

        check()


def damaged(content: bytes, cut: float, at: float, byte: int) -> bytes:
    """The first part of a file, with one byte changed."""
    found = bytearray(content[: max(1, int(len(content) * cut))])
    found[int((len(found) - 1) * at)] = byte
    return bytes(found)


DAMAGE = {
    "cut": st.just(1.0) | st.floats(0, 1), "at": st.floats(0, 1), "byte": st.integers(0, 255)
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of all three kinds, and what was prepared from them."""
    folder = tmp_path_factory.mktemp("small")
    image_folder(folder / "pictures")
    rows = "".join(f"the {n} is {'good' if n % 2 else 'bad'},{n % 2}\n" for n in range(24))
    (folder / "rows.csv").write_text(f"text,label\n{rows}")
    random = np.random.default_rng(0)
    for label in ("no", "yes"):
        (folder / "clips" / label).mkdir(parents=True)
        for speaker in range(6):
            with wave.open(str(folder / f"clips/{label}/s{speaker}_{label}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(random.integers(-9999, 9999, 400, np.int16).tobytes())
    for modality in ("image", "text", "audio"):
        prepare(folder, modality, folder / "data" / modality)
    return folder


def prepare(folder: Path, modality: str, output: Path) -> None:
    own = {
        "image": {"kind": "folder", "folder": str(folder / "pictures")},
        "text": {"kind": "csv", "file": str(folder / "rows.csv")},
        "audio": {"kind": "folder", "folder": str(folder / "clips")},
    }[modality]
    task = find(data=modality)
    made = task.prepare.prepare(source(modality, validation=0.2, test=0.3, **own), 0, None)
    prepared.write(output, task.name, made, 0)


def load(modality: str, folder: Path) -> Any:
    device: Any = torch.device("cpu")
    return find(data=modality).data.load(folder, "train", None, batch_size=4, device=device)  # type: ignore[arg-type]


class TestData:
    @FUZZ
    @given(**DAMAGE)
    @pytest.mark.parametrize(
        ("modality", "name"),
        [("image", "pictures/cat/3.png"), ("text", "rows.csv"), ("audio", "clips/no/s2_no.wav")],
    )
    def test_a_damaged_source_is_prepared_or_refused_whole(
        self, small, tmp_path_factory, modality, name, cut, at, byte
    ):
        path, output = small / name, tmp_path_factory.mktemp("out") / modality
        original = path.read_bytes()
        path.write_bytes(damaged(original, cut, at, byte))
        try:
            said = complaint(lambda: prepare(small, modality, output))
        finally:
            path.write_bytes(original)
        assert os.listdir(output.parent) == ([] if said else [modality])

    @FUZZ
    @given(**DAMAGE)
    @pytest.mark.parametrize("modality", ["image", "audio"])
    @pytest.mark.parametrize("vouched", [False, True])
    def test_a_damaged_split_is_read_or_refused_also_if_its_card_vouches_for_it(
        self, small, tmp_path_factory, modality, vouched, cut, at, byte
    ):
        folder = tmp_path_factory.mktemp("data") / modality
        shutil.copytree(small / "data" / modality, folder)
        split = folder / "train.parquet"
        split.write_bytes(damaged(split.read_bytes(), cut, at, byte))
        if vouched:
            card = yaml.safe_load((folder / "dataset.json").read_text())
            card["splits"]["train"]["sha256"] = digest(split, "sha256")
            write_json(folder / "dataset.json", card)
        said = complaint(lambda: load(modality, folder))
        assert not said or str(split) in said

    @FUZZ
    @given(**DAMAGE)
    def test_a_damaged_card_is_read_or_refused(self, small, tmp_path_factory, cut, at, byte):
        folder = tmp_path_factory.mktemp("data") / "text"
        shutil.copytree(small / "data/text", folder)
        card = folder / "dataset.json"
        card.write_bytes(damaged(card.read_bytes(), cut, at, byte))
        said = complaint(lambda: prepared.read_split(folder, "train", "text_classification"))
        # of a digest that was changed, the file that it is not the one of
        assert not said or str(card) in said or str(folder / "train.parquet") in said

    def test_a_path_inside_the_data_is_never_followed(self, small, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        secret = tmp_path / "secret.png"
        Image.new("RGB", (5, 4), (1, 2, 3)).save(secret)
        folder = tmp_path / "image"
        shutil.copytree(small / "data/image", folder)
        table = pq.read_table(folder / "train.parquet")
        rows = [{"bytes": None, "path": str(secret)} for _ in range(table.num_rows)]
        column = pa.array(rows, table.schema.field("image").type)
        table = table.set_column(table.schema.get_field_index("image"), "image", column)
        pq.write_table(table, folder / "train.parquet")
        card = yaml.safe_load((folder / "dataset.json").read_text())
        card["splits"]["train"]["sha256"] = digest(folder / "train.parquet", "sha256")
        write_json(folder / "dataset.json", card)
        said = complaint(lambda: load("image", folder))
        assert said
        assert "train.parquet" in said

    @pytest.mark.parametrize("name", ["..", "../../harm", "/harm"])
    def test_a_path_as_a_class_name_writes_nowhere_else(self, small, tmp_path, name):
        rows = (small / "rows.csv").read_text().replace(",1\n", f",{name}\n")
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "rows.csv").write_text(rows)
        prepare(tmp_path / "in", "text", tmp_path / "in" / "data" / "text")
        assert os.listdir(tmp_path) == ["in"]
        assert sorted(os.listdir(tmp_path / "in")) == ["data", "rows.csv"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "cnn"
    folder.mkdir()
    task = find(model="cnn")
    facts = task.settings.Facts(
        classes=["a", "b"], channels=1, height=8, width=8, mean=[0.5], std=[0.5]
    )
    net.save(folder, net.build(task, preset("cnn", "simple"), facts))
    return folder


class TestModels:
    @FUZZ
    @given(name=st.sampled_from(["model.json", "model.safetensors"]), **DAMAGE)
    def test_a_damaged_model_is_read_or_refused(self, saved, tmp_path_factory, name, cut, at, byte):
        folder = tmp_path_factory.mktemp("model") / "cnn"
        shutil.copytree(saved, folder)
        file = folder / name
        file.write_bytes(damaged(file.read_bytes(), cut, at, byte))
        if name == "model.safetensors":
            about = yaml.safe_load((folder / "model.json").read_text())
            write_json(folder / "model.json", {**about, "sha256": digest(file, "sha256")})
        said = complaint(lambda: net.load(folder))
        assert not said or str(folder) in said

    @pytest.mark.parametrize("how", ["torch.save", "pickle"])
    def test_pickled_weights_are_not_run(self, saved, tmp_path, how):
        folder = shutil.copytree(saved, tmp_path / "cnn")
        content = io.BytesIO()
        (torch.save if how == "torch.save" else pickle.dump)(Attack(tmp_path / "harm"), content)
        (folder / "model.safetensors").write_bytes(content.getvalue())
        about = yaml.safe_load((folder / "model.json").read_text())
        about["sha256"] = digest(folder / "model.safetensors", "sha256")
        write_json(folder / "model.json", about)
        with pytest.raises(PipelineError, match=r"model\.safetensors"):
            net.load(folder)
        assert not (tmp_path / "harm").exists()
