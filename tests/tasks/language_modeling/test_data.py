"""Documents, their splits, and rows of tokens."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import net as nets
from pipeline import prepared
from pipeline.tasks.language_modeling.data import documents, encode, load
from pipeline.tasks.language_modeling.prepare import prepare
from pipeline.texts import bpe
from tests.data.sources import source
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
