"""params.yaml, the command line and the schema give one config, or one clear line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import conf_files
from pipeline.settings import Train
from tests.conftest import composed

PARAMS = yaml.safe_load(conf_files.PARAMS.read_text())


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose train_cnn's config from the given params.yaml and command line."""

    def run(*argv: str, params: Any = None, text: str | None = None) -> list[Train]:
        file = tmp_path / "params.yaml"
        file.write_text(text if text is not None else yaml.safe_dump(params or PARAMS))
        monkeypatch.setattr(conf_files, "PARAMS", file)
        return [settings for settings, _ in composed("train_cnn", *argv)]

    monkeypatch.setattr(conf_files, "ROOT", tmp_path)  # where sweeps go
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

    @pytest.mark.parametrize("plus", ["+", "++"])
    def test_a_plus_does_not_matter(self, compose, plus):
        (settings,) = compose(f"{plus}optimizer.lr=0.5", f"{plus}training.clip_norm=2")
        assert (settings.optimizer.lr, settings.training.clip_norm) == (0.5, 2)
        (settings,) = compose(f"{plus}cnn=simple", f"{plus}profile=tiny")
        assert (settings.cnn.name, settings.profile.max_examples) == ("simple", 100)

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
        ("data", "curve"),
        [
            ("a b", "a, b"), ("it's", 'say "x"'), ("a=b", "[x]"), ("100%", "C:\\dir\\"), ("é", ""),
        ],
    )  # fmt: skip
    def test_strings_with_blanks_commas_and_quotes_arrive_unchanged(self, compose, data, curve):
        params = changed("train_cnn.data", data)
        params["train_cnn"]["curve"] = curve
        (settings,) = compose(params=params)
        assert (settings.data, settings.curve) == (data, curve)

    def test_the_working_directory_does_not_matter(self, compose, tmp_path, monkeypatch):
        (here,) = compose()
        monkeypatch.chdir(tmp_path.parent)
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


LIKE_OTHERS = [
    ("training.epochs=1.5", "is 1.5: Input should be a valid integer"),
    ("precision=int8", "precision (command line) is 'int8'"),
    ("cnn.dropout=1", "cnn.dropout (command line) is 1"),
    ("+training.epochs=0", "training.epochs (command line) is 0: Input should be greater"),
    ("cnn=", "cnn (command line) is '', and conf/cnn has only: convnet"),
    ("cnn=a/b", "cnn (command line) is 'a/b', and conf/cnn has only: convnet"),
    ("~cnn=3", "cnn (command line) is 3, and conf/cnn has only: convnet"),
    ("~optimizer.lrr", "optimizer.lrr (command line) is not a setting; did you mean lr?"),
    ("~training.epochs=3", "training.epochs (command line) can't be deleted; give it"),
    ("optimizer.lr=nan", "optimizer.lr (command line) is nan: Input should be a finite"),
]
"""Of values on the command line."""


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
        assert line.endswith("and is not a stage; did you mean train_cnn?")

    def test_a_typo_in_common(self, compose, capsys):
        line = self.line(compose, capsys, params=changed("common.devise", "cpu"))
        assert line.startswith("error: common.devise (params.yaml:")
        assert line.endswith("did you mean device?")

    def test_a_typo_on_the_command_line(self, compose, capsys):
        assert self.line(compose, capsys, "trainign.epochs=2") == (
            "error: trainign (command line) is not a setting; did you mean training?"
        )

    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("train_cnn.epochz", "train_cnn.training.epochs"),
            ("train_cnn.epochs", "train_cnn.training.epochs"),
            ("common.epochs", "train_cnn.training.epochs"),
            ("train_cnn.optimizer.epochs", "train_cnn.training.epochs"),
            ("train_cnn.chanels", "train_cnn.cnn.channels"),
            ("train_cnn.sed", "seed"),
        ],
    )
    def test_a_key_in_the_wrong_place_is_told_the_right_one(self, compose, capsys, key, meant):
        line = self.line(compose, capsys, params=changed(key, 3))
        assert line.startswith(f"error: {key} (params.yaml:")
        assert line.endswith(f" is not a setting; did you mean {meant}?")

    def test_a_key_in_the_wrong_place_of_the_command_line_is_told_the_right_one(
        self, compose, capsys
    ):
        line = self.line(compose, capsys, "+optimizer.epochs=3")
        assert line.endswith(" is not a setting; did you mean training.epochs?")

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("train_cnn.cnn", None, "train_cnn.cnn (params.yaml:{line}) is None, and conf/cnn has"),
            ("train_cnn.cnn", 3, "train_cnn.cnn (params.yaml:{line}) is 3, and conf/cnn has only"),
            ("train_cnn.cnn", "", "train_cnn.cnn (params.yaml:{line}) is '', and conf/cnn has"),
            ("train_cnn.cnn", "a/b", "train_cnn.cnn (params.yaml:{line}) is 'a/b', and conf/cnn"),
            ("train_cnn.cnn", "${x}", "train_cnn.cnn (params.yaml:{line}) is '${{x}}', and conf/"),
            ("common.profile", 3, "common.profile (params.yaml:{line}) is 3, and conf/profile has"),
            ("common.profile", "???", "common.profile (params.yaml:{line}) is not chosen; set c"),
            ("common.seed", b"hi", "common.seed (params.yaml:{line}) is b'hi'; write a string"),
            ("common.seed", {"a"}, "common.seed (params.yaml:{line}) is malformed: Value 'set'"),
            (
                "train_cnn.training.epochs",
                "???",
                "train_cnn.training.epochs (params.yaml:{line}) has no value; set "
                "train_cnn.training.epochs in params.yaml or training.epochs on the command line",
            ),
            (
                "common.seed",
                "???",
                "common.seed (params.yaml:{line}) has no value; set common.seed",
            ),
            (
                "train_cnn.training.epochs",
                "${common.seed}",
                "train_cnn.training.epochs (params.yaml:{line}) has no value: Interpolation key "
                "'common.seed' not found; correct the ${{…}}",
            ),
            ("common.seed", "${oc.env:NOPE}", "common.seed (params.yaml:{line}) has no value: Key"),
            ("common.seed", "${nope", "common.seed (params.yaml:{line}) is malformed: no viable"),
            ("train_cnn.optimizer", [1], "train_cnn.optimizer (params.yaml:{line}) is malformed: "),
            (
                "train_cnn.optimizer.lr",
                float("inf"),
                "train_cnn.optimizer.lr (params.yaml:{line}) is inf: Input should be a finite",
            ),
        ],
    )
    def test_a_bad_value_in_params_yaml_is_named_with_its_line(
        self, compose, capsys, path, value, message
    ):
        text = yaml.safe_dump(changed(path, value), sort_keys=False)
        section, last = f"{path.split('.')[0]}:", f"  {path.split('.')[-1]}:"
        above = text[: text.index(last, text.index(section))]
        line = self.line(compose, capsys, text=text)
        assert line.startswith(f"error: {message.format(line=above.count(chr(10)) + 1)}")

    @pytest.mark.parametrize("chosen", [(), pytest.param(("cnn=convnet",), marks=pytest.mark.slow)])
    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ("dropout:", "dropot:", "cnn.dropot (conf/cnn/convnet.yaml:{line}) is not a setting; "),
            ("dropout:", "# ", "cnn.dropout (conf/cnn/convnet.yaml) has no value; set"),
            ("name:", "# ", "cnn.name (conf/cnn/convnet.yaml) has no value; set"),
            ("name: ", "name: x", "cnn.name (conf/cnn/convnet.yaml:{line}) is 'xconvnet'; it may "),
            (
                "depth: ",
                "depth: ??? # ",
                "cnn.depth (conf/cnn/convnet.yaml:{line}) has no value; ",
            ),
            ("depth: ", "depth: ${x}", "cnn.depth (conf/cnn/convnet.yaml:{line}) has no value: In"),
            ("depth: ", "depth: ${", "depth (conf/cnn/convnet.yaml:{line}) is malformed: "),
            ("depth: ", "name: ", "conf/cnn/convnet.yaml is not valid YAML: "),
            ("depth: ", "depth: &a [*a] # ", "conf/cnn/convnet.yaml is nested without end; "),
        ],
    )
    def test_a_fault_in_a_preset_names_its_file(
        self, compose, capsys, own_conf, chosen, before, after, message
    ):
        preset = own_conf / "cnn/convnet.yaml"
        above, _, below = preset.read_text().partition(before)
        preset.write_text(f"{above}{after}{below}")
        line = self.line(compose, capsys, *chosen)
        assert line.startswith(f"error: {message.format(line=above.count(chr(10)) + 1)}")

    @pytest.mark.parametrize("kind", ["empty", "missing", "folder"])
    @pytest.mark.parametrize(
        ("name", "empty", "missing"),
        [
            ("cnn/convnet", "cnn.name ({}) has no value; set", "train_cnn.cnn (params.yaml:"),
            ("profile/full", "profile.max_examples ({}) has no", "common.profile (params."),
            ("train_cnn", "common.profile (params.yaml:2) is not in {} nor", "{} is missing in"),
            ("base", "common.profile (params.yaml:2) is not in conf/train_cnn.yaml nor {}; add it",
             "{} is missing; restore it, or correct what names it (In 'train_cnn': Could not"),
        ],
    )  # fmt: skip
    def test_an_empty_or_missing_conf_file_is_named(
        self, compose, capsys, own_conf, name, kind, empty, missing
    ):
        file = own_conf / f"{name}.yaml"
        file.unlink()
        if kind == "empty":
            file.touch()
        elif kind == "folder":
            file.mkdir()
        folder = "{} can't be read (Is a directory); restore it from git"
        message = {"empty": empty, "missing": missing, "folder": folder}[kind]
        line = self.line(compose, capsys, text=yaml.safe_dump(PARAMS, sort_keys=False))
        assert line.startswith(f"error: {message.format(f'conf/{name}.yaml')}")

    def test_another_stage_without_its_conf_file_is_named(self, compose, capsys, own_conf):
        (own_conf / "train_rnn.yaml").unlink()
        line = self.line(compose, capsys)
        assert line.startswith("error: train_rnn (params.yaml:")
        assert "has no conf/train_rnn.yaml" in line

    def test_an_unknown_choice_lists_the_known_ones(self, compose, capsys):
        line = self.line(compose, capsys, "cnn=convnett")
        assert "cnn (command line) is 'convnett'" in line
        assert "convnet, layers" in line

    @pytest.mark.parametrize(
        ("override", "part"),
        [
            ("training.epochs=0", "training.epochs (command line) is 0: Input should be greater"),
            ("training.epochs=two", "is 'two': Input should be a valid integer"),
            ("device=gpu", "device (command line) is 'gpu'"),
            ("optimizer.betas=[0.9]", "optimizer.betas (command line)"),
            ("cnn.name=os.system", "cnn.name (command line) is 'os.system'; it may be 'simple'"),
            ("optimizer.lr=[1", "command line:"),
            ("+surprise=1", "surprise (command line) is not a setting"),
            ("+optimizer.lrr=1", "optimizer.lrr (command line) is not a setting; did you mean lr?"),
            (
                "seed=???",
                "seed (command line) has no value; set common.seed in params.yaml or seed",
            ),
            (
                "training.epochs=???",
                "has no value; set train_cnn.training.epochs in params.yaml or",
            ),
            ("training.epochs=${x}", "training.epochs (command line) has no value: Interpolation"),
            ('data="${x"', "data (command line) is malformed: no viable alternative at input"),
            ("training=[1]", "training (command line) is malformed: Cannot merge"),
            ("cnn=null", "cnn (command line) is None, and conf/cnn has only: convnet"),
            ("cnn=3,'simple'", "cnn (command line) is 3, and conf/cnn has only: convnet"),
            ("cnn=simple,layers", "command line: Ambiguous value for argument"),
            ("~cnn", "cnn (command line) has no value; set"),
            ("~cnn=layers", "cnn (command line) is not chosen; set train_cnn.cnn in params.yaml"),
            ("hydra/launcher=nothing", "is 'nothing', and conf/hydra/launcher has only: basic"),
            ("hydra.job.env_copy=${x}", "hydra.job.env_copy (command line) has no value: Interpo"),
            ('optimizer.betas=["${x"]', "optimizer.betas (command line) is malformed: no viable"),
            ("~optimizer.lr", "optimizer.lr (command line) can't be deleted; give it a value"),
            ("threads=100000", "threads (command line) is 100000: Input should be less than or"),
            ("optimizer.lr=inf", "optimizer.lr (command line) is inf: Input should be a finite"),
            *(pytest.param(*one, marks=pytest.mark.slow) for one in LIKE_OTHERS),
        ],
    )
    def test_a_bad_value_is_named_with_its_key(self, compose, capsys, override, part):
        assert part in self.line(compose, capsys, override)

    @pytest.mark.parametrize(
        "text", ["train_cnn: [", "- a\n- b\n", "common: 3\n", "\t", "3", "common: {seed: &a [*a]}"]
    )
    def test_a_broken_params_file_is_one_line(self, compose, capsys, text):
        assert "params.yaml" in self.line(compose, capsys, text=text)

    def test_a_folder_in_the_place_of_params_yaml(self, compose, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(conf_files, "PARAMS", tmp_path)
        with pytest.raises(SystemExit):
            composed("train_cnn")
        assert "can't be read (Is a directory); restore it" in capsys.readouterr().err

    def test_a_missing_params_file(self, compose, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(conf_files, "PARAMS", tmp_path / "nowhere" / "params.yaml")
        with pytest.raises(SystemExit):
            composed("train_cnn")
        assert "params.yaml is missing" in capsys.readouterr().err


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(plain | st.lists(plain, max_size=4))
@example("a\\\n")
def test_every_value_survives_hydras_override_grammar(value: Any):
    if "${" in str(value):
        return
    (override,) = OverridesParser.create().parse_overrides([f"key={conf_files.literal(value)}"])
    parsed = override.value()
    strip = [getattr(v, "text", v) for v in parsed] if isinstance(parsed, list) else parsed
    assert getattr(strip, "text", strip) == value
