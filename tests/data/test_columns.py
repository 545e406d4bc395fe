"""What further columns of a table say of its rows."""

import pytest

from pipeline.columns import NAMES, Columns
from pipeline.sources import SPLIT_OF, Told
from tests.data.sources import complaint


def told(*rows, group=None):
    columns = Columns("text", "x.csv", group, ("text", "label"))
    for number, row in enumerate(rows, 1):
        columns.add(f"x.csv, row {number}", {"text": "t", "label": "l", **row})
    return columns.told()


class TestSplits:
    @pytest.mark.parametrize("name", [*NAMES, "Split", " SUBSET "])
    @pytest.mark.parametrize("spelling", SPLIT_OF)
    def test_are_told_in_any_usual_spelling(self, name, spelling, capsys):
        found = told({name: "TRAIN"}, {name: f" {spelling.title()} "})
        assert found == Told(["train", SPLIT_OF[spelling]])
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("value", ["tset", "", None, "0"])
    @pytest.mark.parametrize("name", NAMES)
    def test_of_another_name_are_a_fault_with_their_row(self, name, value):
        said = complaint(lambda: told({name: "train"}, {name: value}))
        assert said.startswith(f"x.csv, row 2: {name} is {value or ''!r}, not train, validation")

    def test_that_a_row_lacks_are_a_fault(self):
        assert "x.csv, row 1: split is ''" in complaint(lambda: told({}, {"split": "train"}))

    @pytest.mark.parametrize("name", NAMES[1:])
    def test_are_not_told_by_a_column_that_holds_other_things(self, name, capsys):
        assert told({name: "0"}, {name: "9"}) == Told()
        assert capsys.readouterr().out == f"x.csv: not read: '{name}'\n"

    def test_are_what_a_column_split_has_to_tell(self):
        assert "split is '0', not train" in complaint(lambda: told({"split": 0}, {"split": 9}))

    def test_are_told_by_the_column_of_the_surest_name(self, capsys):
        assert told({"fold": "test", "split": "dev"}) == Told(["validation"])
        assert capsys.readouterr().out == "x.csv: not read: 'fold'\n"


class TestGroups:
    def test_are_the_values_of_the_named_column(self):
        assert told({"author": " Ann "}, {"author": 7}, group="author") == Told(
            None, ["Ann", "7"], "author"
        )

    @pytest.mark.parametrize("value", ["", " ", None])
    def test_that_a_row_lacks_are_a_fault(self, value):
        said = complaint(lambda: told({"author": "Ann"}, {"author": value}, group="author"))
        assert said == "x.csv, row 2: has no author; fill it in or remove the row"

    @pytest.mark.parametrize("group", ["writer", "label"])
    def test_of_no_further_column_are_a_fault(self, group):
        said = complaint(lambda: told({"author": "Ann", "stars": 1}, group=group))
        assert said.startswith(
            f"text.group: x.csv has no further column '{group}'; it has 'author'"
        )

    def test_in_two_splits_are_a_fault(self):
        rows = [{"split": split, "author": "Ann"} for split in ("train", "train", "test")]
        said = complaint(lambda: told(*rows, group="author"))
        assert said == (
            "x.csv: author 'Ann' is in the splits train (x.csv, row 1) and test (x.csv, row 3) of "
            "column 'split'; mend them, or set text.group to null"
        )


class TestColumnsThatNobodyReads:
    def test_are_named_once(self, capsys):
        told({"date": "x", "stars": 3}, {"date": "y", "stars": 4, "more": 1})
        assert capsys.readouterr().out == "x.csv: not read: 'date', 'stars', 'more'\n"

    @pytest.mark.parametrize("name", ["author", "Authors", "patient_id", "userId", "SPEAKER"])
    def test_are_offered_as_groups_if_they_are_called_so(self, name, capsys):
        told({"date": "x", name: "Ann"})
        assert capsys.readouterr().out == (
            f"x.csv: not read: 'date', '{name}'; `text.group: {name}` would keep all rows of one "
            f"{name} in one split\n"
        )

    @pytest.mark.parametrize("name", ["authority", "superuser", "date"])
    def test_are_not_offered_for_a_part_of_a_word(self, name, capsys):
        told({name: "x"})
        assert "would keep" not in capsys.readouterr().out

    def test_are_not_offered_beside_a_group(self, capsys):
        told({"author": "Ann", "session": 1}, group="author")
        assert capsys.readouterr().out == "x.csv: not read: 'session'\n"
