"""params.yaml, the command line and the schema give one config, or one clear line."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config
from pipeline.settings import TrainCNN

PARAMS = yaml.safe_load(config.PARAMS.read_text())


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose train_cnn's config from the given params.yaml and command line."""

    def run(*argv: str, params: Any = None, text: str | None = None) -> list[TrainCNN]:
        file = tmp_path / "params.yaml"
        file.write_text(text if text is not None else yaml.safe_dump(params or PARAMS))
        monkeypatch.setattr(config, "PARAMS", file)
        monkeypatch.setattr(sys, "argv", ["train_cnn", *argv])
        monkeypatch.chdir(config.ROOT)
        composed: list[TrainCNN] = []
        config.main("train_cnn", TrainCNN, composed.append)
        return composed

    return run


def changed(path: str, value: Any) -> dict[str, Any]:
    params = yaml.safe_load(yaml.safe_dump(PARAMS))
    *parents, last = path.split(".")
    section = params
    for parent in parents:
        section = section[parent]
    section[last] = value
    return params


class TestValues:
    def test_params_yaml_decides_what_the_command_line_leaves_open(self, compose):
        (settings,) = compose(params=changed("train_cnn.optimizer.lr", 0.125))
        assert settings.optimizer.lr == 0.125
        assert settings.cnn.name == PARAMS["train_cnn"]["cnn"]
        assert settings.seed == PARAMS["common"]["seed"]
        assert settings.threads is None
        assert settings.deterministic is True
        assert settings.profile.max_steps is None

    def test_the_command_line_wins_over_params_yaml(self, compose):
        (settings,) = compose("optimizer.lr=0.5", "cnn=simple", "profile=tiny")
        assert (settings.optimizer.lr, settings.cnn.name) == (0.5, "simple")
        assert settings.profile.max_steps is not None

    def test_a_plain_value_under_a_groups_name_chooses_the_file(self, compose):
        (settings,) = compose(params=changed("train_cnn.cnn", "layers"))
        assert settings.cnn.name == "layers"

    def test_scientific_notation_is_a_number(self, compose):
        (settings,) = compose(text=yaml.safe_dump(PARAMS).replace("lr: 0.004", "lr: 2e-3"))
        assert settings.optimizer.lr == pytest.approx(0.002)

    def test_null_and_lists_keep_their_types(self, compose):
        params = changed("train_cnn.training.clip_norm", None)
        params["train_cnn"]["optimizer"]["betas"] = [0.8, 0.95]
        (settings,) = compose(params=params)
        assert settings.training.clip_norm is None
        assert settings.optimizer.betas == [0.8, 0.95]

    @pytest.mark.parametrize(
        "text", ["a b", "a, b", "it's", 'say "x"', "a=b", "[x]", "100%", "C:\\dir\\", "é", ""]
    )
    def test_strings_with_blanks_commas_and_quotes_arrive_unchanged(self, compose, text):
        params = changed("train_cnn.data", text)
        (settings,) = compose(params=params)
        assert settings.data == text

    def test_the_working_directory_does_not_matter(self, compose, tmp_path, monkeypatch):
        (here,) = compose()
        monkeypatch.chdir(tmp_path)
        (there,) = compose()
        assert here == there

    def test_a_sweep_runs_every_combination_apart_from_dvcs_outputs(self, compose):
        first, second = compose("--multirun", "cnn=simple,layers", "hydra.sweep.dir=multirun/test")
        assert (first.cnn.name, second.cnn.name) == ("simple", "layers")
        assert (first.output, second.output) == (
            "multirun/test/0/models/cnn",
            "multirun/test/1/models/cnn",
        )
        (plain,) = compose()
        assert plain.output == "models/cnn"

    def test_flags_may_stand_before_and_after_overrides(self, compose):
        assert [s.seed for s in compose("seed=1,2", "--multirun")] == [1, 2]
        assert [s.seed for s in compose("--multirun", "seed=1,2")] == [1, 2]

    def test_cfg_job_prints_the_same_config(self, compose, capsys):
        assert compose("--cfg", "job", params=changed("train_cnn.optimizer.lr", 0.25)) == []
        assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == 0.25


class TestErrors:
    def line(self, compose, capsys, *argv: str, **given: Any) -> str:
        with pytest.raises(SystemExit) as ended:
            compose(*argv, **given)
        assert ended.value.code == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        assert len(lines) == 1, lines
        return lines[0]

    def test_a_typo_in_params_yaml_names_the_line_and_the_nearest_key(self, compose, capsys):
        params = changed("train_cnn.optimizer", {"lrr": 0.1})
        where = yaml.safe_dump(params)[: yaml.safe_dump(params).index("lrr")].count("\n") + 1
        assert self.line(compose, capsys, params=params) == (
            f"error: train_cnn.optimizer.lrr (params.yaml:{where}) is not a setting; "
            "did you mean lr?"
        )

    def test_a_typo_in_a_section(self, compose, capsys):
        params = {**PARAMS, "train_cn": PARAMS["train_cnn"]}
        assert "train_cn (params.yaml:" in (line := self.line(compose, capsys, params=params))
        assert line.endswith("is not a stage; did you mean train_cnn?")

    def test_a_typo_in_common(self, compose, capsys):
        line = self.line(compose, capsys, params=changed("common.devise", "cpu"))
        assert line.startswith("error: common.devise (params.yaml:")
        assert line.endswith("did you mean device?")

    def test_a_typo_on_the_command_line(self, compose, capsys):
        assert self.line(compose, capsys, "trainign.epochs=2") == (
            "error: trainign.epochs (command line) is not a setting; did you mean training?"
        )

    def test_a_typo_in_a_conf_file_names_the_file(self, compose, capsys, tmp_path, monkeypatch):
        import shutil

        shutil.copytree(config.CONF, tmp_path / "conf")
        monkeypatch.setattr(config, "CONF", tmp_path / "conf")
        monkeypatch.setattr(config, "ROOT", tmp_path)
        with (tmp_path / "conf/cnn/convnet.yaml").open("a") as file:
            file.write("\ndropot: 0.5\n")
        line = self.line(compose, capsys)
        assert line.startswith("error: cnn.dropot (conf/cnn/convnet.yaml:")
        assert line.endswith("is not a setting; did you mean dropout?")

    def test_an_unknown_choice_lists_the_known_ones(self, compose, capsys):
        line = self.line(compose, capsys, "cnn=convnett")
        assert "cnn (command line) is 'convnett'" in line
        assert "convnet, layers" in line

    @pytest.mark.parametrize(
        ("override", "part"),
        [
            ("training.epochs=0", "training.epochs (command line) is 0: Input should be greater"),
            ("training.epochs=two", "is 'two': Input should be a valid integer"),
            ("training.epochs=1.5", "is 1.5: Input should be a valid integer"),
            ("device=gpu", "device (command line) is 'gpu'"),
            ("precision=int8", "precision (command line) is 'int8'"),
            ("cnn.dropout=1", "cnn.dropout (command line) is 1"),
            ("optimizer.betas=[0.9]", "optimizer.betas (command line)"),
            ("cnn.name=os.system", "cnn (command line)"),
            ("optimizer.lr=[1", "command line:"),
            ("+surprise=1", "surprise (command line) is not a setting"),
            ("seed=???", "seed"),
        ],
    )
    def test_a_bad_value_is_named_with_its_key(self, compose, capsys, override, part):
        assert part in self.line(compose, capsys, override)

    @pytest.mark.parametrize("text", ["train_cnn: [", "- a\n- b\n", "common: 3\n", "\t"])
    def test_a_broken_params_file_is_one_line(self, compose, capsys, text):
        assert "params.yaml" in self.line(compose, capsys, text=text)

    def test_a_missing_params_file(self, compose, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(config, "PARAMS", tmp_path / "nowhere" / "params.yaml")
        monkeypatch.setattr(sys, "argv", ["train_cnn"])
        with pytest.raises(SystemExit):
            config.main("train_cnn", TrainCNN, print)
        assert "params.yaml is missing" in capsys.readouterr().err


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(plain | st.lists(plain, max_size=4))
def test_every_value_survives_hydras_override_grammar(value: Any):
    if "${" in str(value):
        return
    (override,) = OverridesParser.create().parse_overrides([f"key={config._literal(value)}"])
    parsed = override.value()
    strip = [getattr(v, "text", v) for v in parsed] if isinstance(parsed, list) else parsed
    assert getattr(strip, "text", strip) == value
