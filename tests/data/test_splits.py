import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.sources import distinct, partition
from tests.data.sources import CLASSES, labels_of_three


class TestDistinct:
    def test_keeps_the_first_of_equal_examples(self):
        kept, dropped = distinct([b"x", b"y", b"x", b"x"], np.array([0, 1, 0, 0]))
        assert kept.tolist() == [0, 1]
        assert dropped == {"repeats": [(2, 0), (3, 0)], "conflicts": []}

    def test_keeps_none_of_equal_examples_whose_labels_disagree(self):
        kept, dropped = distinct([b"x", b"y", b"x", b"z", b"x"], np.array([0, 1, 0, 1, 1]))
        assert kept.tolist() == [1, 3]
        assert dropped == {"repeats": [], "conflicts": [(0, 0), (2, 0), (4, 0)]}

    @given(st.lists(st.tuples(st.binary(max_size=1), st.integers(0, 1)), min_size=1))
    def test_leaves_every_kept_example_once_with_its_only_label(self, rows):
        keys = [key for key, _ in rows]
        labels = np.array([label for _, label in rows])
        kept, dropped = distinct(keys, labels)
        assert len({keys[row] for row in kept}) == len(kept)
        for row in kept:
            assert {label for key, label in rows if key == keys[row]} == {labels[row]}
        assert len(kept) + sum(map(len, dropped.values())) == len(rows)


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
