"""Whatever is wrong: one line that names it, exit status 1, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image


def nothing_written(folder: Path) -> bool:
    return not folder.exists() and not list(folder.parent.glob(f".{folder.name}.*"))


class TestPrepare:
    def test_a_missing_file(self, call, tmp_path):
        line = call(
            "prepare", "modality=text", "text=csv", f"text.file={tmp_path}/none.csv",
            f"output={tmp_path}/out", f"plots={tmp_path}/plots", fails=True,
        )  # fmt: skip
        assert f"text.file: {tmp_path}/none.csv can't be read (No such file" in line
        assert nothing_written(tmp_path / "out")

    def test_an_empty_data_set(self, call, tmp_path):
        (tmp_path / "empty.csv").write_text("text,label\n")
        line = call(
            "prepare", "modality=text", "text=csv", f"text.file={tmp_path}/empty.csv",
            f"output={tmp_path}/out", f"plots={tmp_path}/plots", fails=True,
        )  # fmt: skip
        assert "empty.csv has no rows" in line
        assert nothing_written(tmp_path / "out")

    def test_a_class_that_can_not_be_in_every_split(self, call, tmp_path):
        rows = [f"text {i},common" for i in range(30)] + ["only one,rare"]
        (tmp_path / "rare.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
        line = call(
            "prepare", "modality=text", "text=csv", f"text.file={tmp_path}/rare.csv",
            f"output={tmp_path}/out", f"plots={tmp_path}/plots", fails=True,
        )  # fmt: skip
        assert "rare" in line
        assert nothing_written(tmp_path / "out")

    def test_a_corrupt_image(self, call, tmp_path):
        for name in ("cat", "dog"):
            (tmp_path / "images" / name).mkdir(parents=True)
            for i in range(10):
                Image.new("L", (8, 8), i * 20 + len(name)).save(
                    tmp_path / "images" / name / f"{i}.png"
                )
        (tmp_path / "images/dog/3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        line = call(
            "prepare", "modality=image", "image=folder", f"image.folder={tmp_path}/images",
            f"output={tmp_path}/out", f"plots={tmp_path}/plots", fails=True,
        )  # fmt: skip
        assert "dog/3.png" in line
        assert nothing_written(tmp_path / "out")

    def test_an_unknown_modality(self, call):
        assert "modality" in call("prepare", "modality=video", fails=True)


class TestTraining:
    def outputs(self, folder: Path) -> tuple[str, str]:
        return f"output={folder}/model", f"curve={folder}/curve.csv"

    @pytest.mark.parametrize("stage", ["train_cnn", "finetune_transformer", "train_rnn"])
    def test_data_that_was_not_prepared(self, call, tmp_path, stage):
        line = call(stage, f"data={tmp_path}/image", *self.outputs(tmp_path), fails=True)
        assert f"{tmp_path}/image/dataset.json is missing; run `dvc repro prepare@image`" in line
        assert nothing_written(tmp_path / "model")

    @pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
    def test_a_damaged_split(self, call, prepared, tmp_path, damage):
        data = tmp_path / "image"
        shutil.copytree(prepared / "image", data)
        split = data / "train.parquet"
        content = bytearray(split.read_bytes())
        if damage == "truncate":
            split.write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            content[len(content) // 2] ^= 1
            split.write_bytes(content)
        else:
            split.unlink()
        line = call("train_cnn", f"data={data}", *self.outputs(tmp_path), fails=True)
        assert str(split) in line
        assert "prepare@image" in line
        assert nothing_written(tmp_path / "model")

    def test_data_of_another_kind(self, call, prepared, tmp_path):
        line = call("train_rnn", f"data={prepared}/image", *self.outputs(tmp_path), fails=True)
        assert "image" in line
        assert nothing_written(tmp_path / "model")

    def test_a_loss_that_is_not_finite(self, call, prepared, tmp_path, monkeypatch):
        line = call(
            "train_cnn", f"data={prepared}/image", *self.outputs(tmp_path), "optimizer.lr=1e30",
            "training.clip_norm=null", "training.warmup=0.0", "precision=fp32", fails=True,
        )  # fmt: skip
        assert "model.score: loss is nan" in line
        assert "lower optimizer.lr" in line
        assert nothing_written(tmp_path / "model")
        assert nothing_written(tmp_path / "curve.csv")

    def test_a_device_that_is_not_there(self, call, prepared, tmp_path, monkeypatch):
        line = call(
            "train_cnn", f"data={prepared}/image", "device=cuda:31", *self.outputs(tmp_path),
            fails=True,
        )  # fmt: skip
        assert "device: cuda:31 is not on this machine" in line

    def test_a_store_that_can_not_be_written(self, call, prepared, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / "file"))
        line = call(
            "prepare",
            "modality=image",
            f"output={tmp_path}/out",
            f"plots={tmp_path}/plots",
            "tracking=mlflow",
            fails=True,
        )
        assert f"{tmp_path}/file/.tracking" in line
        assert nothing_written(tmp_path / "out")

    def test_an_output_that_can_not_be_written(self, call, prepared, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        line = call(
            "train_cnn", f"data={prepared}/image", f"output={tmp_path}/file/model",
            f"curve={tmp_path}/curve.csv", fails=True,
        )  # fmt: skip
        assert f"{tmp_path}/file/model can't be written" in line


class TestEvaluate:
    def arguments(self, data: Path, weights: Path, folder: Path) -> list[str]:
        return [
            "model=cnn", f"data={data}", f"weights={weights}", f"curve={weights.parent}/curve.csv",
            f"metrics={folder}/metrics.json", f"plots={folder}/plots",
        ]  # fmt: skip

    def test_a_model_that_was_not_trained(self, call, prepared, tmp_path):
        line = call(
            "evaluate", *self.arguments(prepared / "image", tmp_path / "cnn", tmp_path), fails=True
        )
        assert f"{tmp_path}/cnn/model.json is missing; run `dvc repro train_cnn`" in line
        assert nothing_written(tmp_path / "plots")

    def test_damaged_weights(self, call, prepared, trained, tmp_path):
        shutil.copytree(trained, tmp_path / "trained")
        weights = tmp_path / "trained/cnn/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-7])
        line = call(
            "evaluate",
            *self.arguments(prepared / "image", tmp_path / "trained/cnn", tmp_path), fails=True,
        )  # fmt: skip
        assert f"{weights} is damaged" in line
        assert nothing_written(tmp_path / "metrics.json")

    def test_a_model_of_other_classes(self, call, prepared, trained, tmp_path):
        shutil.copytree(prepared / "image", tmp_path / "image")
        card = json.loads((tmp_path / "image/dataset.json").read_text())
        card["facts"]["classes"][0] = "nought"
        (tmp_path / "image/dataset.json").write_text(json.dumps(card))
        line = call(
            "evaluate", *self.arguments(tmp_path / "image", trained / "cnn", tmp_path), fails=True
        )
        assert "nought" in line
        assert nothing_written(tmp_path / "metrics.json")

    @pytest.mark.slow
    def test_the_same_model_gives_the_same_bytes(self, call, prepared, trained, tmp_path):
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
            call("evaluate", *self.arguments(prepared / "image", trained / "cnn", folder))
        first, second = (
            {file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
            for folder in (tmp_path / "a", tmp_path / "b")
        )
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == []
