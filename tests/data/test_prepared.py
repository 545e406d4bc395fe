import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.task import find
from tests.data.sources import contents

TASK = "image_classification"
ABOUT = {"name": "n", "source": "s", "licence": "l", "citation": "c"}
FACTS = {
    "classes": ["no", "yes"], "channels": 1, "height": 5, "width": 4, "mean": [0.5], "std": [0.1],
}  # fmt: skip
DROPPED = {"repeats": [(3, 1)], "conflicts": []}


def splits(rows=6, **columns):
    """Texts, which are short to write down: what rows hold is their task's affair."""
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    features |= {name: datasets.Value("string") for name in columns}
    made = {}
    for start, split in enumerate(prepared.SPLITS):
        table = pa.table(
            {
                "text": [f"{split} {row}" for row in range(rows)],
                "label": pa.array([row % 2 for row in range(rows)], pa.int64()),
                **{name: values[start : start + 1] * rows for name, values in columns.items()},
            }
        )
        made[split] = prepared.dataset(table, features, np.arange(rows))
    return made


def with_rows(split, rows):
    return {**splits(), split: splits()[split].select(rows)}


def write(folder, made, about=ABOUT, group=None):
    facts = find(name=TASK).settings.Facts(**FACTS)
    whole = prepared.Prepared(about, facts, DROPPED, made, prepared.text_identities, group)
    prepared.write(folder, TASK, whole, 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "image"
    write(folder, splits())
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "image"))


class TestWrite:
    def test_describes_the_data_and_each_split_with_rows_and_digest(self, written):
        card = json.loads((written / "dataset.json").read_text())
        digest = contents(written)["validation.parquet"]
        assert card.pop("splits")["validation"] == {"rows": 6, "sha256": digest}
        dropped = {"repeats": 1, "conflicts": 0}
        assert card == {"task": TASK, **ABOUT, "seed": 3, "dropped": dropped, "facts": FACTS}
        assert sorted(contents(written)) == [
            "dataset.json",
            "test.parquet",
            "train.parquet",
            "validation.parquet",
        ]

    def test_gives_the_same_bytes_again(self, written, tmp_path):
        write(tmp_path / "image", splits())
        assert contents(tmp_path / "image") == contents(written)

    def test_takes_the_place_of_an_earlier_data_set(self, folder, written):
        (folder / "leftover").touch()
        write(folder, splits())
        assert contents(folder) == contents(written)
        assert [path.name for path in folder.parent.iterdir()] == ["image"]

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (lambda: with_rows("train", []), "n, split train: is empty"),
            (
                lambda: {**splits(), "test": splits()["train"]},
                "row 0 of split train and row 0 of split test are the same example",
            ),
            (
                lambda: splits(speaker=["ann", "bob", "ann"]),
                "speaker 'ann' is in the splits train and test",
            ),
        ],
    )
    def test_refuses_what_must_not_be_trained_on_and_leaves_nothing(self, tmp_path, made, message):
        some = made()
        group = "speaker" if "speaker" in some["test"].column_names else None
        with pytest.raises(PipelineError, match=message):
            write(tmp_path / "image", some, group=group)
        assert list(tmp_path.iterdir()) == []

    def test_sees_a_leak_through_case_and_blanks(self, tmp_path):
        made = splits()
        table = pa.table({"text": ["  TRAIN   1\n", "other"], "label": [1, 0]})
        made["test"] = prepared.dataset(table, made["test"].features, np.arange(2))
        with pytest.raises(PipelineError, match="row 1 of split train and row 0 of split test"):
            write(tmp_path / "image", made)


class TestRead:
    def test_gives_back_the_rows_and_the_card(self, written):
        card, table = prepared.read_split(written, "test", TASK)
        assert card.facts == find(name=TASK).settings.Facts(**FACTS)
        assert table["text"].to_pylist() == [f"test {row}" for row in range(6)]
        assert table["label"].to_pylist() == [0, 1, 0, 1, 0, 1]

    def test_datasets_shows_the_class_names_and_writes_only_where_told(self, written, tmp_path):
        import datasets

        files = {split: str(written / f"{split}.parquet") for split in prepared.SPLITS}
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
        assert loaded["train"].features["label"] == datasets.ClassLabel(names=["no", "yes"])
        assert loaded["validation"][1] == {"text": "validation 1", "label": 1}

    @pytest.mark.parametrize("keep", [0, 1, 100, -1])
    def test_notices_a_truncated_split(self, folder, keep):
        path = folder / "train.parquet"
        size = path.stat().st_size
        os.truncate(path, keep if keep >= 0 else size - 1)
        with pytest.raises(PipelineError, match=r"train\.parquet .*dvc repro -f prepare@image"):
            prepared.read_split(folder, "train", TASK)

    def test_notices_a_flipped_bit(self, folder):
        path = folder / "train.parquet"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(PipelineError, match=r"is not the file that dataset\.json describes"):
            prepared.read_split(folder, "train", TASK)

    def test_names_a_missing_split_card_or_folder(self, folder):
        (folder / "test.parquet").unlink()
        with pytest.raises(PipelineError, match=r"test\.parquet is missing; run `dvc repro"):
            prepared.read_split(folder, "test", TASK)
        (folder / "dataset.json").unlink()
        with pytest.raises(
            PipelineError, match=r"dataset\.json is missing; run `dvc repro prepare@image"
        ):
            prepared.read_card(folder)
        with pytest.raises(PipelineError, match=r"nowhere/dataset\.json is missing"):
            prepared.read_card(folder.parent / "nowhere")

    def test_refuses_a_data_set_of_another_task(self, written):
        with pytest.raises(PipelineError, match=f"task is {TASK}, not pottery"):
            prepared.read_split(written, "train", "pottery")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("facts", {**FACTS, "classes": ["one"]}, "facts.classes: "),
            ("facts", {"classes": ["no", "yes"]}, "facts.channels: "),
            ("task", "video", "task: "),
            ("seed", "3", "seed: "),
            ("splits", {}, "splits.train is missing"),
        ],
    )
    def test_names_the_malformed_key_of_a_card(self, folder, key, value, message):
        path = folder / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        with pytest.raises(PipelineError, match=message) as caught:
            prepared.read_card(folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
    def test_refuses_a_card_that_is_no_card(self, folder, content):
        (folder / "dataset.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(PipelineError, match=r"dataset\.json"):
            prepared.read_card(folder)


def test_the_digest_of_a_card_follows_the_data_and_not_its_description(folder, tmp_path):
    before = prepared.read_card(folder).digest
    write(folder, splits(), {**ABOUT, "name": "renamed"})
    assert prepared.read_card(folder).digest == before
    write(folder, splits(rows=8))
    assert prepared.read_card(folder).digest != before
