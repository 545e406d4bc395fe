from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classification.labels import (
    cap,
    check,
    column,
    distinct,
    labelled_files,
    numbered,
    partition,
)
from pipeline.errors import PipelineError

CLASSES = ["a", "b", "c"]
labels_of_three = st.lists(st.integers(0, 2), min_size=30, max_size=200).filter(
    lambda labels: min(labels.count(number) for number in range(3)) >= 3
)


class TestDistinct:
    def test_keeps_the_first_of_equal_examples(self):
        kept, dropped = distinct([b"x", b"y", b"x", b"x"], np.array([0, 1, 0, 0]))
        assert kept.tolist() == [0, 1]
        assert dropped == {"repeats": 2, "conflicts": 0}

    def test_keeps_none_of_equal_examples_whose_labels_disagree(self):
        kept, dropped = distinct([b"x", b"y", b"x", b"z", b"x"], np.array([0, 1, 0, 1, 1]))
        assert kept.tolist() == [1, 3]
        assert dropped == {"repeats": 0, "conflicts": 3}

    @given(st.lists(st.tuples(st.binary(max_size=1), st.integers(0, 1)), min_size=1))
    def test_leaves_every_kept_example_once_with_its_only_label(self, rows):
        keys = [key for key, _ in rows]
        labels = np.array([label for _, label in rows])
        kept, dropped = distinct(keys, labels)
        assert len({keys[row] for row in kept}) == len(kept)
        for row in kept:
            assert {label for key, label in rows if key == keys[row]} == {labels[row]}
        assert len(kept) + sum(dropped.values()) == len(rows)


class TestPartition:
    @given(labels_of_three, st.integers(0, 2**31 - 1))
    def test_deals_out_every_row_once(self, labels, seed):
        parts = partition(np.array(labels), CLASSES, {"validation": 0.1, "test": 0.2}, seed, "x")
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))

    @given(labels_of_three, st.floats(0.01, 0.49), st.floats(0.01, 0.49))
    def test_gives_every_split_every_class(self, labels, validation, test):
        shares = {"validation": validation, "test": test}
        for rows in partition(np.array(labels), CLASSES, shares, 0, "x").values():
            assert set(np.array(labels)[rows]) == {0, 1, 2}

    def test_keeps_the_shares_within_each_class(self):
        labels = np.repeat([0, 1, 2], [1000, 500, 100])
        parts = partition(labels, CLASSES, {"validation": 0.1, "test": 0.2}, 3, "x")
        counts = {split: np.bincount(labels[rows]).tolist() for split, rows in parts.items()}
        assert counts == {
            "train": [700, 350, 70],
            "validation": [100, 50, 10],
            "test": [200, 100, 20],
        }

    def test_follows_the_seed_and_nothing_else(self):
        labels = np.repeat([0, 1, 2], 20)
        first, again, other = (partition(labels, CLASSES, {"test": 0.5}, s, "x") for s in (1, 1, 2))
        assert all((first[split] == again[split]).all() for split in first)
        assert set(first["test"]) != set(other["test"])

    def test_refuses_a_class_with_fewer_examples_than_splits(self):
        labels = np.array([0] * 9 + [1] * 2 + [2] * 9)
        with pytest.raises(PipelineError, match="here: 'b' has 2 distinct examples, too few"):
            partition(labels, CLASSES, {"validation": 0.1, "test": 0.2}, 0, "here")


class TestCap:
    @given(labels_of_three, st.integers(3, 60), st.randoms())
    def test_takes_classes_as_evenly_as_they_allow(self, labels, limit, random):
        rows = np.array(random.sample(range(len(labels)), len(labels)))
        chosen = cap(rows, np.array(labels), limit)
        assert len(chosen) == min(limit, len(labels))
        counts = np.bincount(np.array(labels)[chosen], minlength=3)
        available = np.bincount(labels, minlength=3)
        # a class has fewer than another only where it has no more to give
        assert all(counts[i] >= counts.max() - 1 or counts[i] == available[i] for i in range(3))

    def test_keeps_the_order_of_the_rows(self):
        assert cap(np.array([3, 1, 0, 2]), np.array([0, 0, 1, 1]), 3).tolist() == [3, 1, 0]

    def test_refuses_a_limit_below_the_number_of_classes(self):
        with pytest.raises(PipelineError, match="max_examples=2 is fewer than the 3 classes"):
            cap(np.arange(6), np.array([0, 1, 2, 0, 1, 2]), 2)


class TestLabelledFiles:
    def test_come_sorted_with_the_name_of_their_folder(self, tmp_path):
        for name in ("b/2.wav", "b/1.wav", "a/3.WAV", ".git/x", "a/.DS_Store"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
        found = labelled_files(str(tmp_path), "audio.folder", frozenset({".wav"}))
        assert [(path.name, label) for path, label in found] == [
            ("3.WAV", "a"),
            ("1.wav", "b"),
            ("2.wav", "b"),
        ]

    @pytest.mark.parametrize("link", ["a/passwd.wav", "b"])
    def test_never_leave_their_folder_through_a_link(self, tmp_path, link):
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret.wav").touch()
        (tmp_path / "data" / "a").mkdir(parents=True)
        target = tmp_path / "outside"
        (tmp_path / "data" / link).symlink_to(target if link == "b" else target / "secret.wav")
        with pytest.raises(PipelineError, match=f"{link} leads out of"):
            labelled_files(str(tmp_path / "data"), "audio.folder", frozenset({".wav"}))

    def test_may_be_links_into_the_cache_of_dvc(self, linked):
        Path("raw/a").mkdir(parents=True)
        Path("raw/a/1.wav").touch()
        linked("raw")
        assert Path("raw/a/1.wav").is_symlink()
        assert len(labelled_files("raw", "audio.folder", frozenset({".wav"}))) == 1

    def test_may_be_links_within_their_folder(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.wav").touch()
        (tmp_path / "a" / "2.wav").symlink_to("1.wav")
        assert len(labelled_files(str(tmp_path), "audio.folder", frozenset({".wav"}))) == 2

    @pytest.mark.parametrize("name", ["a/x\n.wav", "a/\udcff.wav", "\x1b[2J/x.wav"])
    def test_have_names_that_can_be_shown(self, tmp_path, name):
        path = tmp_path / name
        path.parent.mkdir()
        path.touch()
        with pytest.raises(PipelineError, match="unprintable") as caught:
            labelled_files(str(tmp_path), "audio.folder", frozenset({".wav"}))
        assert str(caught.value).isprintable()

    def test_are_regular_files(self, tmp_path):
        import os

        (tmp_path / "a").mkdir()
        os.mkfifo(tmp_path / "a" / "endless.wav")
        with pytest.raises(PipelineError, match=r"endless.wav is not a file of type \.wav"):
            labelled_files(str(tmp_path), "audio.folder", frozenset({".wav"}))

    def test_need_a_folder_with_classes_in_it(self, tmp_path):
        wav = frozenset({".wav"})
        with pytest.raises(PipelineError, match=r"audio\.folder is null"):
            labelled_files(None, "audio.folder", wav)
        with pytest.raises(PipelineError, match="nowhere is not a folder"):
            labelled_files(str(tmp_path / "nowhere"), "audio.folder", wav)
        with pytest.raises(PipelineError, match="is empty"):
            labelled_files(str(tmp_path), "audio.folder", wav)
        (tmp_path / "loose.wav").touch()
        with pytest.raises(PipelineError, match=r"loose\.wav is in no class"):
            labelled_files(str(tmp_path), "audio.folder", wav)


def test_class_numbers_follow_the_sorted_names():
    classes, labels = numbered(["dog", "cat", "dog"], "x")
    assert classes == ["cat", "dog"]
    assert labels.tolist() == [1, 0, 1]
    with pytest.raises(PipelineError, match="here has 1 class"):
        numbered(["dog"], "here")


class TestColumn:
    def test_gives_the_labels(self):
        table = pa.table({"text": ["x", "y", "z"], "label": [1, 0, 2]})
        assert column(table, CLASSES, Path("x.parquet")).tolist() == [1, 0, 2]

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (pa.table({"text": ["a", "b"]}), "has no column 'label'; prepare it again"),
            (pa.table({"label": [0, 0]}), "no example of class 'yes'"),
            (pa.table({"label": [0, 2]}), "labels outside 0–1"),
            (pa.table({"label": [0, -1]}), "labels outside 0–1"),
            (pa.table({"label": [0, None]}), "labels outside 0–1"),
            (pa.table({"label": ["0", "1"]}), "labels outside 0–1"),
            (pa.table({"label": pa.array([], pa.int64())}), "is empty"),
        ],
    )
    def test_refuses_labels_that_the_card_does_not_know(self, table, message):
        with pytest.raises(PipelineError, match=f"^x.parquet.*{message}"):
            column(table, ["no", "yes"], Path("x.parquet"))


def test_a_split_without_a_class_is_refused():
    with pytest.raises(PipelineError, match="split test: has no example of class 'b'"):
        check(np.array([0, 2, 0]), CLASSES, "split test")
