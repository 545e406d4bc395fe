"""Documents, their splits, and rows of tokens."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import prepared
from pipeline.tasks.language_modeling.data import documents, encode, load
from pipeline.tasks.language_modeling.prepare import prepare
from pipeline.texts import bpe, chats
from pipeline.training import net as nets
from tests.data.sources import complaint, source
from tests.tasks.language_modeling.conftest import TASK, TEXTS, scratch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews") / "language"
    made = prepare(source("language", validation=0.002, test=0.008, vocabulary=4096), 0, None)
    prepared.write(folder, TASK.name, made, 0)
    return folder


@pytest.fixture(scope="module")
def little(facts):
    torch.manual_seed(0)
    return nets.build(TASK, scratch(), facts)


class TestReviews:
    def test_are_all_that_differ_each_in_one_split(self, reviews):
        card = prepared.read_card(reviews)
        rows = {split: card.splits[split].rows for split in prepared.SPLITS}
        assert rows == {"train": 24652, "validation": 50, "test": 200}
        assert card.dropped == {"repeats": 98}
        texts = [
            text
            for split in prepared.SPLITS
            for text in prepared.read_split(reviews, split, TASK.name)[1]["text"].to_pylist()
        ]
        assert len({" ".join(text.split()).casefold() for text in texts}) == 24902
        assert not any("<br" in text for text in texts)

    def test_have_no_groups(self):
        said = complaint(lambda: prepare(source("language", group="author"), 0, None))
        assert said.startswith("language.group: movie_reviews has no further column 'author'")

    def test_are_prepared_without_torch_and_transformers(self):
        code = (
            "import sys; from pipeline.tasks.language_modeling.prepare import prepare\n"
            "from pipeline.tasks.language_modeling.data_report import data_report\n"
            "from tests.data.sources import source\n"
            "prepare(source('language'), 0, 20)\n"
            "print(sorted({'torch', 'transformers'} & {*sys.modules}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "[]\n", done.stderr


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


class TestFolder:
    def made(self, folder):
        return prepare(source("language", kind="folder", folder=str(folder)), 0, None)

    def test_gives_its_files_and_its_lines(self, tmp_path):
        lines = [json.dumps({"text": f"Line {number}", "more": 1}) for number in range(5)]
        files = {"a/one.txt": "A file\nof two lines.", "b.txt": "Ünother", ".hidden": "x"}
        made = self.made(write(tmp_path, files | {"a/lines.jsonl": "\n".join(lines) + "\n\n"}))
        found = {text for split in prepared.SPLITS for text in made.splits[split]["text"]}
        assert found == {"A file\nof two lines.", "Ünother", *(f"Line {n}" for n in range(5))}
        prepared.write(tmp_path / "language", TASK.name, made, 0)

    def test_gives_rows_of_tables_beside_other_files(self, tmp_path):
        rows = [
            {"text": None, "prompt": f"Question {n}?", "answer": f"Answer {n}. "} for n in (1, 2)
        ]
        pq.write_table(pa.Table.from_pylist([{"text": "Text", "more": 1}]), tmp_path / "a.parquet")
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
        said = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"}]  # fmt: skip
        lines = [
            json.dumps({"prompt": "A line?", "answer": "Yes."}),
            json.dumps({"messages": said}),
        ]
        files = {"c.jsonl": "\n".join(lines), "d.txt": "A file.", "e.txt": "Ünother."}
        made = self.made(write(tmp_path, files))
        prepared.write(tmp_path / "out/language", TASK.name, made, 0)
        found = {}
        for split in prepared.SPLITS:
            _, table = prepared.read_split(tmp_path / "out/language", split, TASK.name)
            found |= dict(zip(table["text"].to_pylist(), chats.from_table(table), strict=True))

        def pair(prompt, answer):
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

        assert found == {
            "Text": "Text",
            "A file.": "A file.",
            "Ünother.": "Ünother.",
            "Question 1?\nAnswer 1.": pair("Question 1?", "Answer 1."),
            "Question 2?\nAnswer 2.": pair("Question 2?", "Answer 2."),
            "A line?\nYes.": pair("A line?", "Yes."),
            "Be short.\nHi\nHello": said,
        }

    def further(self, folder, rows, **changes):
        """What is made of rows in .jsonl and .parquet files, half of them in each; read back."""
        half = len(rows) // 2
        lines = "\n".join(json.dumps(row) for row in rows[:half])
        write(folder, {"in/a.jsonl": lines})
        pq.write_table(pa.Table.from_pylist(rows[half:]), folder / "in/b.parquet")
        at = source("language", kind="folder", folder=str(folder / "in"), **changes)
        prepared.write(folder / "language", TASK.name, prepare(at, 0, None), 0)
        return {
            split: prepared.read_split(folder / "language", split, TASK.name)[1].to_pylist()
            for split in prepared.SPLITS
        }

    def test_rows_stay_in_the_split_that_they_are_marked_with(self, tmp_path, capsys):
        rows = [
            {"text": f"Text {n}", "subset": "test" if n % 5 == 0 else "training", "more": n}
            for n in range(100)
        ]
        found = self.further(tmp_path, [*rows, {"text": "text 0", "subset": "train", "more": 0}])
        own = {row["text"]: row["subset"] for row in rows}
        assert {row["text"] for row in found["test"]} == {t for t in own if own[t] == "test"}
        assert len(found["validation"]) == 8
        assert len(found["train"]) == 72
        said = capsys.readouterr().out
        assert f"{tmp_path}/in: not read: 'more'\n" in said
        assert "80 of 81 train rows, 20 of 20 test rows; validation: 0.1 is cut from train" in said

    def test_rows_of_a_group_stay_in_one_split(self, tmp_path, capsys):
        rows = [
            {"prompt": f"Question {n}?", "answer": "Yes.", "user": n // 4, "more": [n]}
            for n in range(200)
        ]
        found = self.further(tmp_path, rows, group="user")
        users = {split: {row["user"] for row in part} for split, part in found.items()}
        assert sorted(name for names in users.values() for name in names) == sorted(
            str(number) for number in range(50)
        )
        assert {split: len(part) for split, part in found.items()} == {
            "train": 140, "validation": 20, "test": 40,
        }  # fmt: skip
        said = capsys.readouterr().out
        assert "not read: 'more'" in said
        assert "split by user, 50 groups: validation has 10.0% of the rows (wanted 10.0%); " in said

    def test_a_file_without_rows_has_neither_split_nor_group(self, tmp_path):
        write(tmp_path, {"in/c.txt": "A file."})
        rows = [{"text": f"Text {n}", "split": "train"} for n in range(9)]
        assert f"{tmp_path}/in/c.txt, line 1: split is ''" in complaint(
            lambda: self.further(tmp_path, rows)
        )

    def test_all_faults_are_told_at_once(self, tmp_path):
        lines = ['{"prompt": "x"}', '{"prompt": "x", "answer": "y"}', '{"messages": []}',
                 '{"messages": [{"role": "tool", "content": "x"}]}',
                 '{"messages": [{"role": "user", "content": " "}]}',
                 '{"messages": [{"role": "user", "content": "x"}]}']  # fmt: skip
        table = pa.Table.from_pylist([{"text": "good"}, {"text": None}])
        pq.write_table(table, tmp_path / "b.parquet")
        pq.write_table(pa.Table.from_pylist([{"word": "x"}]), tmp_path / "c.parquet")
        (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
        said = complaint(lambda: self.made(write(tmp_path, {"a.jsonl": "\n".join(lines)})))
        for part in (
            "has 8 faults: ",
            "a.jsonl, line 1: has no `answer` with words; ",
            "a.jsonl, line 3: `messages` is no list of messages; ",
            "a.jsonl, line 4: message 1 has the role 'tool', not system, user, assistant; ",
            "a.jsonl, line 5: message 1 has no `content` with words; ",
            "a.jsonl, line 6: `messages` has no answer of the assistant",
            "b.parquet, row 2: is no object with a `text`, with `messages`, or",
            "c.parquet has none of the columns text, messages, prompt, answer; ",
            "d.parquet can't be read (",
        ):
            assert part in said, said
        assert said.endswith("; mend them all")

    def test_many_faults_are_one_line(self, tmp_path):
        said = complaint(lambda: self.made(write(tmp_path, {"a.jsonl": "[]\n" * 3000})))
        assert "has 3,000 faults" in said
        assert said.endswith("; and 2,980 more; mend them all")
        assert len(said) < 4000

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({"a.txt": b"good\nbad \xff"}, "a.txt, line 2: is not UTF-8"),
            ({"a.txt": " \n"}, "a.txt, line 1: has no `text` with words"),
            ({"a.jsonl": '{"text": "x"}\n{"text": '}, "a.jsonl, line 2: is no JSON"),
            ({"a.jsonl": '{"text": "x"}\n\n{"word": 1}'}, "a.jsonl, line 3: is no object with"),
            ({"a.jsonl": '["x"]'}, "a.jsonl, line 1: is no object with"),
            ({"a.jsonl": '{"text": " "}'}, "a.jsonl, line 1: has no `text` with words"),
            ({"a.jsonl": '{"text": "\\ud800"}'}, "a.jsonl, line 1: `text` has half a character"),
            ({"b/a.pdf": "x"}, "b/a.pdf is no .txt, .jsonl or .parquet file"),
            ({"a.txt": "one"}, "has 1 documents; each split needs one"),
            ({}, "has 0 documents; each split needs one"),
        ],
    )
    def test_a_fault_is_one_line_that_names_file_and_line(self, tmp_path, files, said):
        assert said in complaint(lambda: self.made(write(tmp_path, files)))

    def test_a_missing_folder_is_named(self, tmp_path):
        assert "nowhere can't be read" in complaint(lambda: self.made(tmp_path / "nowhere"))
        assert complaint(lambda: prepare(source("language", kind="folder"), 0, None)).startswith(
            "language.folder is null"
        )

    def test_a_link_out_of_it_is_refused(self, tmp_path):
        write(tmp_path, {"outside.txt": "x", "in/a.txt": "x"})
        (tmp_path / "in/b.txt").symlink_to(tmp_path / "outside.txt")
        assert "b.txt leads out of" in complaint(lambda: self.made(tmp_path / "in"))


class TestEncoding:
    def test_is_the_same_for_the_same_texts(self):
        assert bpe.learn(TEXTS, 300) == bpe.learn(TEXTS, 300)
        assert bpe.learn(TEXTS, 300) != bpe.learn(TEXTS, 290)

    @settings(deadline=None, max_examples=60)
    @given(st.text())
    def test_gives_back_every_text(self, text):
        encoding = bpe.tokenizer(bpe.learn(TEXTS, 300))
        ids = encoding.encode(text).ids
        assert encoding.decode(ids) == text
        assert sum(len(encoding.id_to_token(one)) for one in ids) == len(text.encode())

    def test_what_ends_a_document_is_text_inside_of_one(self, little):
        assert 0 not in little.tokenizer.encode(f"a {bpe.END} b").ids


class TestDocuments:
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.text(max_size=90), min_size=1, max_size=5))
    def test_each_token_counts_once_and_each_byte(self, little, texts):
        inputs, targets = documents(texts, little).gather(torch.arange(len(texts)))
        counted = targets.tokens >= 0
        whole = [one.ids for one in little.tokenizer.encode_batch(texts)]
        found = [targets.tokens[counted & (inputs["document"] == at)[:, None]].tolist()
                 for at in range(len(texts))]  # fmt: skip
        assert found == whole
        assert targets.size == sum(len(text.encode()) for text in texts)
        assert inputs["input_ids"].shape[1] <= little.settings.context + 1

    def test_a_token_of_a_long_document_has_half_a_row_before_it(self, little):
        rows = documents([" ".join(TEXTS)], little)
        _, targets = rows.gather(torch.tensor([0]))
        first = (targets.tokens >= 0).int().argmax(1)
        half = little.settings.context // 2
        assert first.tolist() == [0, *[half] * (len(first) - 1)]

    def test_of_raw_texts_are_texts(self, little):
        with pytest.raises(ValueError, match="a text is a string, not int"):
            encode(["fine", 7], little)


class TestBatches:
    def test_of_training_count_their_targets_and_end_with_the_documents(self, reviews):
        torch.manual_seed(0)
        facts = prepared.read_card(reviews).facts
        net = nets.build(TASK, scratch(block=64, context=64), facts)
        batches = load(reviews, "train", net, batch_size=8, device=CPU, shuffle=True, tokens=20_000)
        assert 20_000 <= float(batches.weights.sum()) < 24_000
        ends = 0
        for batch in batches.epoch(0):
            counted = batch.targets.tokens >= 0
            assert batch.weight == counted.sum()
            ends += int((batch.targets.tokens == 0).sum())
            inputs = batch.inputs["input_ids"]
            assert torch.equal(
                inputs[:, 1:][counted[:, :-1]], batch.targets.tokens[:, :-1][counted[:, :-1]]
            )
        assert 40 < ends < 90  # documents

    def test_of_a_whole_split_are_its_documents(self, reviews):
        torch.manual_seed(0)
        net = nets.build(TASK, scratch(), prepared.read_card(reviews).facts)
        batches = load(reviews, "validation", net, batch_size=7, device=CPU)
        found = list(batches.epoch(0))
        texts = prepared.read_split(reviews, "validation", TASK.name)[1]["text"].to_pylist()
        assert sum(batch.targets.size for batch in found) == sum(len(t.encode()) for t in texts)
        tokens = sum(len(one.ids) for one in net.tokenizer.encode_batch(texts))
        assert sum(batch.weight for batch in found) == tokens
        assert np.isclose(float(batches.weights.sum()), tokens)
