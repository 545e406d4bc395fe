from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.classification.data.labels import cap, check, labelled_files, labels_of, numbered
from pipeline.errors import PipelineError
from tests.data.sources import CLASSES, labels_of_three


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

    @pytest.mark.parametrize("names", [("train", "test"), ("Training", "val", "TEST")])
    def test_of_splits_are_not_taken_for_classes(self, tmp_path, names):
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.wav").touch()
        with pytest.raises(PipelineError, match=r"has folders of splits \(\w+, .*per class there"):
            labelled_files(str(tmp_path), "audio.folder", frozenset({".wav"}))
        (tmp_path / "bus").mkdir()
        found = labelled_files(str(tmp_path), "audio.folder", frozenset({".wav"}))
        assert sorted(label for _, label in found) == sorted(names)

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


class TestClassNames:
    def test_stay_as_they_are_given(self):
        assert numbered(["negative", "Positive ", "negative"], "x")[0] == ["Positive ", "negative"]

    def test_that_nobody_can_tell_apart_are_a_question(self):
        names = ["positive"] * 40 + ["Positive"] * 12
        with pytest.raises(PipelineError, match=r"^x: 'Positive' \(12 times\) and 'positive' \(40"):
            numbered(names, "x")

    @pytest.mark.parametrize(
        "names",
        [
            ["a", "b", "a;b"],
            ["a", "b", "c", "a; b"],
            ["red", "green", "green, red"],
            ["a;b", "b;c", "d"],
            ["a;b;c", "b;c"],
            ["['a', 'b']", "['a']"],
            ['["a"]', "[]"],
        ],
    )
    def test_that_are_several_labels_are_refused(self, names):
        with pytest.raises(
            PipelineError, match=r"^x: .* is several labels in one, and multi-label"
        ):
            numbered(names * 3, "x")

    @pytest.mark.parametrize(
        "names",
        [
            ["rock;pop", "jazz"],
            ["rock", "rock;pop", "jazz"],
            ["a", "b", "c|a"],
            ["news|sport", "news|art", "shop|sport"],
            ["Washington, D.C.", "Washington", "Paris, Texas", "Paris"],
            ["a;b", "b;c", "d", "e", "f"],
        ],
    )
    def test_with_signs_that_part_labels_elsewhere_are_kept_and_said(self, names, capsys):
        assert numbered(names, "x")[0] == sorted(names)
        assert capsys.readouterr().out.endswith(": each is taken as one class\n")

    @pytest.mark.parametrize("names", [["[UNK]", "[0, 10]"], ["a b", "a/b"], ["[", "]"]])
    def test_of_other_signs_are_kept_without_a_word(self, names, capsys):
        assert numbered(names, "x")[0] == sorted(names)
        assert "several" not in capsys.readouterr().out


class TestLabelsOf:
    def test_gives_the_labels(self):
        table = pa.table({"text": ["x", "y", "z"], "label": [1, 0, 2]})
        assert labels_of(table, CLASSES, Path("x.parquet")).tolist() == [1, 0, 2]

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
            labels_of(table, ["no", "yes"], Path("x.parquet"))


def test_a_split_without_a_class_is_refused():
    with pytest.raises(PipelineError, match="split test: has no example of class 'b'"):
        check(np.array([0, 2, 0]), CLASSES, "split test")
