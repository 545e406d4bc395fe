import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.sources import Told, deal, distinct, partition, partition_groups, spelt_alike
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


SHARES = {"validation": 0.1, "test": 0.2}


def authors(random, count, rows):
    """Groups of different sizes and leanings to the classes 0 and 1."""
    groups, labels = list[str](), list[int]()
    for number in range(count):
        size = int(random.integers(1, 2 * rows // count))
        groups += [f"author {number}"] * size
        labels += random.binomial(1, random.uniform(), size).tolist()
    return groups, np.array(labels)


class TestGroups:
    @settings(max_examples=8, deadline=None)
    @given(st.integers(3, 30), st.integers(0, 2**31 - 1))
    def test_are_never_in_two_splits_and_no_row_is_lost(self, count, seed):
        groups, labels = authors(np.random.default_rng(seed), count, 10 * count)
        parts = partition_groups(labels, CLASSES, groups, "author", SHARES, seed, "here")
        assert sorted(np.concatenate(list(parts.values())).tolist()) == [*range(len(groups))]
        mine = [{groups[row] for row in rows} for rows in parts.values()]
        assert all(mine)
        assert sum(map(len, mine)) == len(set(groups))

    @pytest.mark.parametrize("seed", range(5))
    def test_come_near_the_wanted_shares_of_rows_and_classes(self, seed, capsys):
        groups, labels = authors(np.random.default_rng(seed), 40, 2000)
        parts = partition_groups(labels, CLASSES, groups, "author", SHARES, seed, "here")
        for split, share in SHARES.items():
            rows = parts[split]
            assert abs(len(rows) / len(labels) - share) < 0.02
            assert abs(labels[rows].mean() - labels.mean()) < 0.03
        assert "here: split by author, 40 groups: validation has " in capsys.readouterr().out

    def test_say_how_near_they_come(self, capsys):
        groups, labels = ["a"] * 6 + ["b"] * 2 + ["c"] * 2, np.array([0, 1] * 3 + [0, 1, 0, 0])
        partition_groups(labels, ["no", "yes"], groups, "author", SHARES, 0, "here")
        said = capsys.readouterr().out
        assert said in (
            "here: split by author, 3 groups: "
            "validation has 20.0% of the rows (wanted 10.0%), 'no' is 50.0% of them (of all: "
            "60.0%); test has 20.0% of the rows (wanted 20.0%), 'no' is 100.0% of them (of all: "
            "60.0%)\n",
            "here: split by author, 3 groups: "
            "validation has 20.0% of the rows (wanted 10.0%), 'no' is 100.0% of them (of all: "
            "60.0%); test has 20.0% of the rows (wanted 20.0%), 'no' is 50.0% of them (of all: "
            "60.0%)\n",
        )

    def test_follow_the_seed_and_nothing_else(self):
        groups, labels = authors(np.random.default_rng(0), 40, 400)
        first, again, other = (
            partition_groups(labels, CLASSES, groups, "author", SHARES, seed, "x")
            for seed in (1, 1, 2)
        )
        assert all((first[split] == again[split]).all() for split in first)
        assert set(first["test"]) != set(other["test"])

    def test_give_a_rare_class_to_every_split_if_they_can(self):
        groups = [f"author {number // 5}" for number in range(100)]
        labels = np.zeros(100, np.int64)
        labels[[0, 35, 70]] = 1
        parts = partition_groups(labels, CLASSES, groups, "author", SHARES, 0, "x")
        assert all(set(labels[rows]) == {0, 1} for rows in parts.values())

    def test_fewer_than_splits_are_refused(self):
        with pytest.raises(PipelineError, match=r"here: has 2 author \('a', 'b'\), too few for"):
            partition_groups(np.array([0, 1] * 2), CLASSES, [*"aabb"], "author", SHARES, 0, "here")


class TestDeal:
    ROWS = np.arange(100)
    LABELS = ROWS % 2

    def dealt(self, splits, groups=None, kept=ROWS):
        told = Told(splits, groups, "author" if groups else None)
        return deal(kept, self.LABELS, ["no", "yes"], SHARES, 0, "here", told)

    def test_without_anything_told_is_the_plain_cut(self):
        kept = self.ROWS[5:]
        parts = deal(kept, self.LABELS, ["no", "yes"], SHARES, 3, "here", Told())
        plain = partition(self.LABELS[kept], ["no", "yes"], SHARES, 3, "here")
        assert {split: rows.tolist() for split, rows in parts.items()} == {
            split: kept[rows].tolist() for split, rows in plain.items()
        }

    @given(st.data())
    def test_never_moves_a_row_out_of_its_own_split(self, data):
        splits = data.draw(
            st.lists(st.sampled_from(["train", "validation", "test"]), min_size=100, max_size=100)
            .filter(lambda drawn: {*drawn} == {"train", "validation", "test"})
        )  # fmt: skip
        for split, rows in self.dealt(splits).items():
            assert sorted(rows) == [row for row in self.ROWS if splits[row] == split]

    @pytest.mark.parametrize("missing", ["validation", "test"])
    @pytest.mark.parametrize("grouped", [True, False])
    def test_cuts_a_split_that_is_not_there_from_train(self, missing, grouped, capsys):
        other = ({"validation", "test"} - {missing}).pop()
        splits = ["train"] * 60 + [other] * 40
        groups = [f"author {row // 4}" for row in self.ROWS] if grouped else None
        parts = self.dealt(splits, groups)
        assert sorted(parts[other]) == [*range(60, 100)]
        assert sorted([*parts["train"], *parts[missing]]) == [*range(60)]
        assert len(parts[missing]) == pytest.approx(60 * SHARES[missing], abs=2)
        said = capsys.readouterr().out
        assert f"60 of 60 train rows, 40 of 40 {other} rows" in said
        assert f"{missing}: {SHARES[missing]} is cut from train" in said
        assert f"{other}: {SHARES[other]} is not used" in said
        if groups:
            mine = {groups[row] for row in parts[missing]}
            assert mine.isdisjoint(groups[row] for row in parts["train"])
            assert "split by author, 15 groups" in said

    def test_cuts_both_where_all_is_train(self, capsys):
        parts = self.dealt(["train"] * 100)
        assert {split: len(rows) for split, rows in parts.items()} == {
            "train": 70, "validation": 10, "test": 20,
        }  # fmt: skip
        assert "is not used" not in capsys.readouterr().out

    def test_says_how_many_rows_repeats_cost(self, capsys):
        self.dealt(["train"] * 80 + ["test"] * 20, kept=self.ROWS[:95])
        assert "80 of 80 train rows, 15 of 20 test rows" in capsys.readouterr().out

    def test_needs_rows_to_learn_from(self):
        with pytest.raises(PipelineError, match="here: no row is marked train"):
            self.dealt(["validation", "test"] * 50)


@pytest.mark.parametrize(
    "other", ["Très bon", " très bon", "très bon ", "très  bon", "tre\u0300s bon"]
)
def test_names_that_nobody_can_tell_apart_are_a_question(other):
    question = spelt_alike({"très bon": 40, "bon": 30, other: 12})
    assert f"{other!r} (12 times)" in question
    assert "'très bon' (40 times)" in question
    assert "are they one class?" in question


def test_names_that_differ_by_more_are_none():
    assert (
        spelt_alike(dict.fromkeys(["a b", "ab", "a-b", "c", "ç", "Maße", "Masse", "m²", "m2"], 1))
        is None
    )
