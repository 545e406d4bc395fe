"""What is measured of a language model."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.figures.page import Page
from pipeline.tasks.language_modeling.data import documents
from pipeline.tasks.language_modeling.evaluation import depths, heads, memory, words
from pipeline.tasks.language_modeling.evaluation.study import Study, numbers, per_byte, score
from pipeline.tasks.language_modeling.network.adapters import LowRank
from pipeline.tasks.language_modeling.settings import Parts
from pipeline.tasks.language_modeling.show import baselines
from pipeline.texts.tables import movie_reviews
from tests.tasks.language_modeling.conftest import TEXTS, stir
from tests.test_training import STAGE, configure

LONG = [" ".join(TEXTS), *TEXTS[:3]]


@pytest.fixture(scope="module")
def hardware():
    return configure(STAGE)


@pytest.fixture
def study(net, hardware):
    parts = Parts(compared_documents=3, depth_documents=4, other_sentences=5, repeated_tokens=6)
    chosen = SimpleNamespace(seed=0, parts=parts, model="language_model")
    return Study(net, chosen, hardware, [], LONG)


def test_every_token_is_read_once_and_every_byte_counted(study):
    found = study.read
    whole = [one.ids for one in study.net.tokenizer.encode_batch(LONG)]
    assert [part.tolist() for part in found.tokens] == whole
    assert found.sizes.tolist() == [len(text.encode()) for text in LONG]
    long = words._token_bytes(study.net)
    assert [int(long[part].sum()) for part in found.tokens] == found.sizes.tolist()
    half = study.net.settings.context // 2
    assert all((part[half:] >= half).all() for part in found.before)


def test_bits_are_those_of_the_loss(study):
    inputs, targets = documents(LONG, study.net).gather(torch.arange(len(LONG)))
    with torch.inference_mode():
        nats = float(study.net.module(**inputs, targets=targets.tokens).double().sum())
    assert study.read.bits.sum() == pytest.approx(nats / math.log(2), rel=1e-6)


def test_the_mean_score_is_minus_the_headline(study):
    found = numbers(study.read, 0)
    assert score(study.read).mean() == pytest.approx(-found["bits_per_byte"])
    assert found["bits_per_byte_low"] < found["bits_per_byte"] < found["bits_per_byte_high"]


def test_the_network_before_its_training_is_only_borrowed(study):
    after = study.read.bits
    if any(isinstance(one, LowRank) for one in study.net.module.modules()):
        with study.untouched():
            before = study.reads(LONG).bits
        stir(study.net)  # other adapters, the same base
        with study.untouched():
            assert study.reads(LONG).bits == pytest.approx(before)
        stirred = study.reads(LONG).bits
        assert not np.allclose(stirred, before)
    else:
        with study.untouched() as net:
            assert net.module is not study.net.module
        assert study.reads(LONG).bits == pytest.approx(after)


def test_the_read_out_of_the_last_layer_is_the_network_itself(study):
    found = depths._by_depth(study.net, TEXTS[:3], LONG, study.hardware)
    assert found[max(found)] == pytest.approx(float(per_byte(study.read.pairs)), rel=1e-5)


def test_a_linear_map_is_found():
    torch.manual_seed(0)
    states, weights = torch.randn(400, 6), torch.randn(6, 6)
    fitted = depths._fitted(states, states @ weights + 3)
    torch.testing.assert_close(fitted(states), states @ weights + 3, rtol=0.02, atol=0.05)


def test_the_longest_run_is_found_exactly():
    corpus = b"the end of it was better" + b"\xff" + b"a bad film"
    for text, run in [("so the end of him", "the end of "), ("film the", "film"), ("xyz", ""),
                      ("bett a bad", "a bad"), ("", "")]:  # fmt: skip
        assert memory.longest_run(text.encode(), corpus).decode() == run


@settings(deadline=None, max_examples=200)
@given(st.text("ab", max_size=20), st.text("ab", max_size=30))
def test_no_run_is_longer(text, corpus):
    found = memory.longest_run(text.encode(), corpus.encode()).decode()
    assert found in text
    assert found in corpus
    size = len(found) + 1
    assert not any(text[at : at + size] in corpus for at in range(len(text) - size + 1))


def test_samples_that_copy_a_training_document_are_told(study, tmp_path, monkeypatch):
    page = Page(tmp_path)
    monkeypatch.setattr(Study, "split", lambda *_: ["one two three four five", "six"])
    monkeypatch.setattr(Study, "samples", [("A", "nothing", "so two three fox")])
    monkeypatch.setattr(
        Study, "writes", lambda _, begun, net=None: ["six" if net is None else "four five"]
    )
    memory.recall(page, study)
    assert page.numbers["recall/bytes"] == len(" two three fo")
    assert page.numbers["recall/bytes_before"] == len("four five")
    assert "' two three fo'" in page.facts["copied"]
    rows = (tmp_path / "recall.csv").read_text().splitlines()
    assert rows[2] == "before,one two three four five,9,four five"
    assert rows[-1] == "after,one two three four five,3,six"


def test_what_baselines_see_of_chats_is_told(study, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "split", lambda *_: TEXTS)
    chat = [{"role": "user", "content": "A film?"}, {"role": "assistant", "content": "A bad film."}]
    page = Page(tmp_path)
    baselines(page, study)
    study = dataclasses.replace(study, texts=[*TEXTS, chat])
    baselines(page, study)
    said = ["without the prompts" in table["caption"] for table in page._tables]
    assert said == [False, True]


def test_what_is_forgotten_is_the_bits_that_other_texts_take_more(study, tmp_path):
    page = Page(tmp_path)
    memory.forgetting(page, study)
    sentences = [text for text, _ in movie_reviews("rotten_tomatoes")[0]]
    drawn = np.random.default_rng(0).choice(len(sentences), 5, replace=False)
    some = [sentences[row] for row in drawn]
    now = float(per_byte(study.reads(some).pairs))
    with study.untouched() as net:
        before = float(per_byte(study.reads(some, net).pairs))
    assert page.numbers["forgetting/bits_per_byte"] == pytest.approx(now)
    assert page.numbers["forgetting/lost"] == pytest.approx(now - before, abs=1e-9)
    low, high = page.numbers["forgetting/lost_low"], page.numbers["forgetting/lost_high"]
    assert low <= page.numbers["forgetting/lost"] <= high


def test_a_head_that_copies_has_all_its_weight_behind_the_earlier_token():
    length = 5
    weights = torch.zeros(2, 3, 2 * length, 2 * length)
    for at in range(length):
        weights[:, 1, length + at, at + 1] = 1  # a copy
        weights[:, 2, length + at, at] = 1  # the same token
    assert heads._induction(weights, length) == [0, 1, 0]


def test_attention_is_watched_and_the_network_stays_as_it_was(study, tmp_path):
    page = Page(tmp_path)
    before = study.read.bits
    used = study.net.module.llama.config._attn_implementation
    heads.heads(page, study)
    assert study.net.module.llama.config._attn_implementation == used
    assert np.array_equal(study.reads(LONG).bits, before)
    # random weights know neither run
    size = math.log2(study.net.tokenizer.get_vocab_size())
    assert page.numbers["heads/first_bits"] > size - 1
    assert 0 < page.numbers["heads/best"] < 1
    rows = (tmp_path / "heads.csv").read_text().splitlines()
    config = study.net.module.llama.config
    assert len(rows) == 1 + config.num_hidden_layers * config.num_attention_heads


def test_damage_to_chats_leaves_answers_as_they_are():
    said = [{"role": "user", "content": "was it good"}, {"role": "assistant", "content": "yes"}]
    hurt = words._hurt(["a text", said], words.DAMAGES["capitals"][2], 1.0, 0)
    assert hurt == ["A TEXT", [{"role": "user", "content": "WAS IT GOOD"}, said[1]]]


def test_chats_are_gone_on_with_from_their_last_question(study):
    said = [{"role": "user", "content": "was it good"}, {"role": "assistant", "content": "yes"}]
    study.texts = ["a text", said]
    assert [row[0] for row in study.samples] == ["was it good"]
