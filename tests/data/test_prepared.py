import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import prepared
from pipeline.errors import PipelineError
from tests.data.sources import contents

CARD = {
    "task": "text",
    "name": "n",
    "source": "s",
    "licence": "l",
    "citation": "c",
    "classes": ["no", "yes"],
    "seed": 3,
    "dropped": {"repeats": 0, "conflicts": 0},
}


def splits(rows=6, **columns):
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "text"
    prepared.write(folder, CARD, splits())
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "text"))


class TestWrite:
    def test_describes_each_split_with_rows_classes_and_digest(self, written):
        card = json.loads((written / "dataset.json").read_text())
        digest = contents(written)["validation.parquet"]
        described = {"rows": 6, "per_class": {"no": 3, "yes": 3}, "sha256": digest}
        assert card["splits"]["validation"] == described
        assert {**card, "splits": None} == {**CARD, "splits": None}
        assert sorted(contents(written)) == [
            "dataset.json",
            "test.parquet",
            "train.parquet",
            "validation.parquet",
        ]

    def test_gives_the_same_bytes_again(self, written, tmp_path):
        prepared.write(tmp_path / "text", CARD, splits())
        assert contents(tmp_path / "text") == contents(written)

    def test_takes_the_place_of_an_earlier_data_set(self, folder, written):
        (folder / "leftover").touch()
        prepared.write(folder, CARD, splits())
        assert contents(folder) == contents(written)
        assert [path.name for path in folder.parent.iterdir()] == ["text"]

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (lambda: with_rows("train", []), "n, split train: is empty"),
            (lambda: with_rows("test", [0, 2, 4]), "split test: has no example of class 'yes'"),
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
        with pytest.raises(PipelineError, match=message):
            prepared.write(tmp_path / "text", CARD, made())
        assert list(tmp_path.iterdir()) == []

    def test_sees_a_leak_through_case_and_blanks(self, tmp_path):
        made = splits()
        table = pa.table({"text": ["  TRAIN   1\n", "other"], "label": [1, 0]})
        made["test"] = prepared.dataset(table, made["test"].features, np.arange(2))
        with pytest.raises(PipelineError, match="row 1 of split train and row 0 of split test"):
            prepared.write(tmp_path / "text", CARD, made)


class TestRead:
    def test_gives_back_the_rows_and_the_card(self, written):
        card, table = prepared.read_split(written, "test", "text")
        assert card.classes == ["no", "yes"]
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
        with pytest.raises(PipelineError, match=r"train\.parquet .*dvc repro -f prepare@text"):
            prepared.read_split(folder, "train", "text")

    def test_notices_a_flipped_bit(self, folder):
        path = folder / "train.parquet"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(PipelineError, match=r"is not the file that dataset\.json describes"):
            prepared.read_split(folder, "train", "text")

    def test_names_a_missing_split_card_or_folder(self, folder):
        (folder / "test.parquet").unlink()
        with pytest.raises(PipelineError, match=r"test\.parquet is missing; run `dvc repro"):
            prepared.read_split(folder, "test", "text")
        (folder / "dataset.json").unlink()
        with pytest.raises(
            PipelineError, match=r"dataset\.json is missing; run `dvc repro prepare@text"
        ):
            prepared.read_card(folder)
        with pytest.raises(PipelineError, match=r"nowhere/dataset\.json is missing"):
            prepared.read_card(folder.parent / "nowhere")

    def test_refuses_a_data_set_of_another_task(self, written):
        with pytest.raises(PipelineError, match="task is text, not image"):
            prepared.read_split(written, "train", "image")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("classes", ["one"], "classes: "),
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

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (pa.table({"text": ["a", "b"]}), "can't be read"),
            (pa.table({"text": ["a", "b"], "label": [0, 0]}), "no example of class 'yes'"),
            (pa.table({"text": ["a", "b"], "label": [0, 2]}), "labels outside 0–1"),
            (pa.table({"text": ["a", "b"], "label": [0, None]}), "labels outside 0–1"),
            (pa.table({"text": ["a", "b"], "label": ["0", "1"]}), "labels outside 0–1"),
            (pa.table({"text": [], "label": pa.array([], pa.int64())}), "is empty"),
        ],
    )
    def test_refuses_labels_that_its_card_vouches_for_wrongly(self, folder, table, message):
        pq.write_table(table, folder / "train.parquet")
        card = json.loads((folder / "dataset.json").read_text())
        card["splits"]["train"]["sha256"] = contents(folder)["train.parquet"]
        (folder / "dataset.json").write_text(json.dumps(card))
        with pytest.raises(PipelineError, match=message):
            prepared.read_split(folder, "train", "text")


def test_the_digest_of_a_card_follows_the_data_and_not_its_description(folder, tmp_path):
    before = prepared.read_card(folder).digest
    prepared.write(folder, {**CARD, "name": "renamed"}, splits())
    assert prepared.read_card(folder).digest == before
    prepared.write(folder, CARD, splits(rows=8))
    assert prepared.read_card(folder).digest != before
