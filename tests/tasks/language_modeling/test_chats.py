"""Prompts and answers, and chats: what is context, what is learnt, what is measured."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipeline import prepared
from pipeline.errors import PipelineError
from pipeline.figures.page import Page
from pipeline.figures.style import look
from pipeline.tasks.language_modeling import model as models
from pipeline.tasks.language_modeling.data import blocks, documents, encode, example, load
from pipeline.tasks.language_modeling.data_report import data_report
from pipeline.tasks.language_modeling.prepare import prepare
from pipeline.texts.chats import Frame, parts
from pipeline.training import net as nets
from pipeline.training.batches import Batch
from tests.conftest import copy_of_the_repository, run
from tests.data.sources import source
from tests.tasks.language_modeling.conftest import (
    SPECIAL,
    TASK,
    TEMPLATE,
    pretrained,
    scratch,
    stirred,
)

CPU = torch.device("cpu")
SAID = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How was the film?"},
    {"role": "assistant", "content": "It was good."},
    {"role": "user", "content": "And the <|im_end|> of it?"},
    {"role": "assistant", "content": "A bad end."},
]
PAIR = [{"role": "user", "content": "Was it good?"}, {"role": "assistant", "content": "It was."}]
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if SWITCH %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""An empty block of thoughts before the last answer, and with a switch where one is asked for."""
READING = THINKING.replace(
    "'<think>\n\n",
    "'<think>\n' + m['content'].rpartition('</think>')[0].split('<think>')[-1].strip() + '\n",
    1,
).replace("m['content'] +", "m['content'].split('</think>')[-1].lstrip() +")
"""As before, but thoughts that stand in the last answer go into the block, others are left out."""
SWITCH = "enable_thinking is defined and not enable_thinking"


@pytest.fixture
def asked(folder, facts):
    """A network with a chat template."""
    return stirred(pretrained(folder, block=64, context=64), facts)


@pytest.fixture
def plain(facts):
    """A network without a template."""
    return stirred(scratch(block=64, context=64), facts)


class TestParts:
    frame = Frame(0, (0,), TEMPLATE, {}, tuple(SPECIAL))

    def test_what_stands_in_a_message_is_no_special_token(self):
        [found] = parts(SAID[3:], self.frame)
        assert [part.text for part in found] == [
            "<|im_start|>", "user\nAnd the <|im_end|> of it?", "<|im_end|>", "\n",
            "<|im_start|>", "assistant\n", "A bad end.", "<|im_end|>", "\n",
        ]  # fmt: skip
        assert [part.kind[0] for part in found] == list("smscscasc")

    def test_without_a_template_messages_stand_below_each_other(self):
        bare = self.frame._replace(template=None)
        assert parts(PAIR, bare) == [[("Was it good?\n", "message"), ("It was.", "answer")]]
        assert parts(PAIR[:1], bare, asked=True) == [[("Was it good?\n", "message")]]

    @pytest.mark.parametrize(
        ("template", "said"),
        [
            ("{{ raise_exception('no system here') }}", "refuses it: no system here"),
            ("{% for m in messages %}", "refuses it: "),
            ("{{ messages[0]['content'] }}", r"leaves out or repeats message 2 \(assistant\)"),
            ("{{ messages[1]['content'] }}", r"leaves out or repeats message 1 \(user\)"),
            (
                "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
                "asks for an answer by '', but has 'assistant: ' before one",
            ),
            (
                "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<' }}{% endif %}",
                r"asks for an answer by '\]<', but has '\]\[' before one",
            ),
            (
                THINKING.replace("SWITCH", "false"),
                r"by '.*assistant\\n', but has '.*assistant\\n<think>\\n\\n</think>\\n\\n' before",
            ),
            (
                "{{ ('C' if add_generation_prompt else 'D') + ' is before it all. ' }}" + TEMPLATE,
                "asks for an answer by 'C is before it all. .*', but has 'D is before it all. .*' ",
            ),
            ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses it: "),
        ],
    )
    def test_a_template_that_does_not_fit_is_told(self, template, said):
        with pytest.raises(ValueError, match=said):
            parts(PAIR, self.frame._replace(template=template))

    @pytest.mark.parametrize("at", [2, 4])
    @pytest.mark.parametrize("asked", [False, True])
    def test_thoughts_that_the_template_reads_are_refused(self, at, asked):
        template = self.frame._replace(template=READING.replace("SWITCH", SWITCH))
        assert len(parts(SAID, template, asked=asked)) == (1 if asked else 2)
        thought = {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nIt was good."}
        chat = [*SAID[:at], thought, *SAID[at + 1 :]]
        said = "cuts or moves words of a message, such as thoughts in an answer: it writes '.*' "
        said += "instead of '.*Well.*'; leave such words out$"
        with pytest.raises(ValueError, match=said):
            parts(chat, template, asked=asked)
        assert parts(chat, self.frame, asked=asked)

    def test_a_template_may_change_blanks_in_a_message(self):
        fewer = TEMPLATE.replace("| trim", ".replace('\n\n', '\n')")
        chat = [PAIR[0], {"role": "assistant", "content": "It was.\n\nReally."}]
        [found] = parts(chat, self.frame._replace(template=fewer))
        assert "It was.\n\nReally." in [part.text for part in found]

    def test_a_template_that_calls_a_clock_is_refused(self):
        clock = "{{ strftime_now('%d') }}" + TEMPLATE
        with pytest.raises(ValueError, match="'strftime_now' is undefined"):
            parts(PAIR, self.frame._replace(template=clock))

    def test_marks_around_answers_and_todays_date_change_nothing(self):
        marked = "{% for m in messages %}{%- generation -%} {{ m['content'] }}{% endgeneration %}"
        template = "{{ strftime_now is defined }}" + marked + "{% endfor %}"
        [found] = parts(PAIR, self.frame._replace(template=template))
        assert "".join(part.text for part in found) == "FalseWas it good?It was."


class TestTokens:
    def test_are_those_of_the_tokenizers_own_template(self, asked, folder):
        from transformers import AutoTokenizer

        reader = AutoTokenizer.from_pretrained(folder)
        chat = [one for one in SAID if "<|" not in one["content"]]
        expected = reader.apply_chat_template(chat, return_dict=True)["input_ids"]
        inputs, targets = documents([chat], asked).gather(torch.tensor([0]))
        assert inputs["input_ids"][0].tolist() == expected
        counted = targets.tokens[targets.tokens >= 0].tolist()
        assert reader.decode(counted) == "It was good.A bad end."
        assert targets.size == len("It was good.A bad end.")
        more = reader.apply_chat_template(chat[:2], add_generation_prompt=True, return_dict=True)
        found = encode([{"messages": chat[:2]}], asked)
        assert found["input_ids"][0].tolist() == more["input_ids"]

    @pytest.mark.parametrize("chat", [SAID, PAIR, [PAIR[1], *SAID[1:]]])
    def test_before_each_answer_stands_what_asks_for_it(self, facts, chat):
        net = nets.build(TASK, scratch(block=400, context=400), facts)
        template = THINKING.replace("SWITCH", SWITCH)
        net.module.frame = net.module.frame._replace(template=template)
        answers = [at for at, one in enumerate(chat) if one["role"] == "assistant"]
        for rows in (documents([chat], net), blocks([chat], net, None)):
            inputs, targets = rows.gather(torch.arange(len(rows.sizes)))
            each = zip(answers, inputs["input_ids"], targets.tokens, strict=True)
            for at, ids, wanted in each:
                learnt = wanted >= 0
                told = net.tokenizer.decode(wanted[learnt].tolist())
                assert told.startswith(chat[at]["content"])
                if at:
                    begun = encode([{"messages": chat[:at]}], net)["input_ids"][0].tolist()
                    assert "<think>" in net.tokenizer.decode(begun)
                    assert ids[: int(learnt.nonzero()[0]) + 1].tolist() == begun
        size = sum(len(chat[at]["content"]) for at in answers)
        assert documents([chat], net).sizes.tolist() == [size]

    def test_rows_in_which_nothing_is_measured_are_left_out(self, facts):
        net = nets.build(TASK, scratch(block=16, context=16), facts)
        net.module.frame = net.module.frame._replace(template=THINKING.replace("SWITCH", SWITCH))
        chat, long = PAIR * 6, [{"role": "user", "content": "Was it good? " * 20}, PAIR[1]]
        for one in (chat, long):
            rows = documents([one], net)
            _, targets = rows.gather(torch.tensor([0]))
            assert (targets.tokens >= 0).any(1).all()
            told = net.tokenizer.decode(targets.tokens[targets.tokens >= 0].tolist())
            assert told == "It was." * (len(one) // 2)
            assert rows.counted.sum() == (targets.tokens >= 0).sum()

    def test_the_end_of_an_answer_is_learnt_and_not_measured(self, asked, plain, tmp_path):
        for net, end in ((asked, "<|im_end|>"), (plain, "<|endoftext|>")):
            data = prepared_chats(tmp_path / end, [PAIR], more=3)
            trained = load(data, "train", net, batch_size=9, device=CPU, shuffle=True)
            (batch,) = trained.epoch(0)
            ids = batch.targets.tokens
            ends = int((ids == net.tokenizer.token_to_id(end)).sum())
            assert ends == len(ids) == trained.examples
            assert batch.weight == int((ids >= 0).sum())
            measured = load(data, "train", net, batch_size=9, device=CPU)
            (batch,) = measured.epoch(0)
            assert not (batch.targets.tokens == net.tokenizer.token_to_id(end)).any()
            assert batch.weight == int((ids >= 0).sum()) - ends

    @pytest.mark.parametrize(
        ("behind", "learnt"),
        [
            (" <|im_end|>\n", "It was. <|im_end|>"),
            ("<|im_end|>\n", "It was.<|im_end|>"),
            ("\n\n", "It was.\n\n<|im_end|>"),
            ("", "It was.<|im_end|>"),
        ],
    )
    def test_an_answer_is_learnt_up_to_its_end(self, asked, behind, learnt):
        template = (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
            "{% if m['role'] == 'assistant' %}{{ BEHIND }}{% else %}{{ '<|im_start|>' }}"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        ).replace("BEHIND", repr(behind))
        asked.module.frame = asked.module.frame._replace(template=template)
        assert is_learnt(PAIR, asked) == learnt

    def test_no_message_of_others_is_learnt_with_the_end_of_an_answer(self, asked):
        template = "{% for m in messages %}{{ m['content'] + '\n' }}{% if m['role'] == 'user' %}"
        template += "{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        asked.module.frame = asked.module.frame._replace(template=template)
        assert is_learnt([*PAIR, *PAIR], asked) == "It was.\nIt was.\n<|im_end|>"

    def test_a_block_in_which_nothing_is_learnt_is_left_out(self, facts, tmp_path):
        net = nets.build(TASK, scratch(block=4, context=8), facts)
        long = [{"role": "user", "content": "Was it good? " * 20}, PAIR[1]]
        data = prepared_chats(tmp_path, [long], more=3)
        for split in prepared.SPLITS:
            batches = load(data, split, net, batch_size=1, device=CPU, shuffle=True)
            assert all(batch.weight > 0 for batch in batches.epoch(0))

    def test_chats_that_are_cut_are_counted(self, plain, capsys):
        long = [{"role": "user", "content": "Was it good? " * 40}, PAIR[1]]
        blocks(["A text. " * 80, PAIR, long], plain, None)
        assert capsys.readouterr().out == "1 of 2 chats are cut at language_model.block=64\n"
        blocks([PAIR, PAIR], plain, None)
        assert capsys.readouterr().out == ""

    def test_a_chat_that_its_template_refuses_is_named(self, asked):
        asked.module.frame = asked.module.frame._replace(template="{{ raise_exception('no') }}")
        with pytest.raises(PipelineError, match=r"row 1: the tokenizer's chat template refuses it"):
            documents(["a text", PAIR], asked)
        with pytest.raises(ValueError, match="refuses it"):
            encode([{"prompt": "Hi"}], asked)

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            ({"word": 1}, "is no object with `messages` or a `prompt`"),
            ({"messages": "Hi"}, "`messages` is no list of messages"),
            ({"prompt": 3}, "has no `prompt` with words"),
        ],
    )
    def test_what_is_no_chat_is_refused(self, plain, raw, said):
        with pytest.raises(ValueError, match=said):
            encode([raw], plain)


class TestLoss:
    def test_is_the_mean_over_the_tokens_of_the_answers(self, asked):
        inputs, targets = documents([PAIR], asked).gather(torch.tensor([0]))
        batch = nets_batch(inputs, targets)
        ids = inputs["input_ids"][0]
        logits = asked.module.llama(input_ids=ids[None]).logits[0].log_softmax(-1)
        answer = asked.tokenizer.encode("It was.", add_special_tokens=False).ids
        start = next(at for at in range(len(ids)) if ids[at : at + len(answer)].tolist() == answer)
        by_hand = [-logits[start + at - 1, token] for at, token in enumerate(answer)]
        loss = models.loss(asked.module, batch, None)
        torch.testing.assert_close(loss, torch.stack(by_hand).mean(), rtol=1e-5, atol=1e-5)
        scores = models.score(asked.module, one_epoch(batch), None)
        expected = float(torch.stack(by_hand).sum()) / math.log(2) / len("It was.")
        assert scores["bits_per_byte"] == pytest.approx(expected, rel=1e-5)

    def test_no_gradient_comes_from_what_the_prompt_is_followed_by(self, plain):
        """Were a token of the prompt a target, the row of the head that says it would move."""
        inputs, targets = documents([PAIR], plain).gather(torch.tensor([0]))
        heads = torch.zeros(plain.tokenizer.get_vocab_size(), requires_grad=True)
        logits = plain.module.logits
        plain.module.logits = lambda states: logits(states) + heads
        models.loss(plain.module, nets_batch(inputs, targets), None).backward()
        assert heads.grad is not None
        # of a softmax only a target's gradient is below zero
        learnt = {*plain.tokenizer.encode("It was.").ids}
        assert {*(heads.grad < 0).nonzero()[:, 0].tolist()} <= learnt


class TestAnswers:
    def test_end_where_a_message_ends(self, asked):
        end = asked.tokenizer.token_to_id("<|im_end|>")
        said = asked.module.go_on(
            torch.tensor([0]), asked.settings.writing.model_copy(update={"tokens": 40})
        )
        assert end in asked.module.frame.ends
        assert end not in list(said)

    def test_the_example_is_what_the_last_answer_is_given_to(self, tmp_path, asked):
        found = example(prepared_chats(tmp_path, [SAID], more=3))
        assert found["messages"][-1]["role"] == "user"
        with torch.inference_mode():
            answers = models.answer(asked.module(**encode([found], asked)), asked)
        assert [*answers[0]] == ["text"]


class TestReport:
    def test_tells_what_is_learnt_and_which_prompts_are_equal(self, tmp_path):
        asked = [{"role": "user", "content": "Which film?"}]
        said = [[*asked, {"role": "assistant", "content": f"Film {n}."}] for n in range(10)]
        data = prepared_chats(tmp_path, said, more=0)
        page = Page(tmp_path / "plots")
        with look():
            found = data_report(data, prepared.read_card(data), page)
            page.close("data")
        assert found["answers_share"] == pytest.approx(len("Film 0.") / len("Which film?Film 0."))
        train = prepared.read_card(data).splits["train"].rows
        assert found["equal_prompts/within"] == train - 1
        assert found["equal_prompts/across"] == 10 - train > 0
        assert page.findings["Answers of a chat in training"].startswith("7 to 7 bytes")
        assert page.findings["Before the last answer"].startswith("11 to 11 bytes")
        assert page.findings["Chats in training"].startswith(
            f"{train} chats of {2 * train} messages; "
        )
        figures = (tmp_path / "plots/figures.json").read_text()
        assert f"The first lines of {2 * train} texts and messages." in figures
        assert f"train: {7 * train} bytes of a chat's answers" in figures

    def test_says_nothing_of_chats_where_there_are_none(self, tmp_path):
        (tmp_path / "raw").mkdir()
        for number in range(5):
            (tmp_path / f"raw/{number}.txt").write_text(f"A text, the {number}th.")
        chosen = source("language", kind="folder", folder=str(tmp_path / "raw"))
        prepared.write(tmp_path / "language", TASK.name, prepare(chosen, 0, None), 0)
        page = Page(tmp_path / "plots")
        with look():
            data = tmp_path / "language"
            found = data_report(data, prepared.read_card(data), page)
        assert "answers_share" not in found
        assert not [name for name in page.findings if "hat" in name or "prompt" in name]


def nets_batch(inputs, targets):
    count = float((targets.tokens >= 0).sum())
    return Batch(inputs, targets, count, count)


def is_learnt(chat, net):
    """The text of the tokens that a training on a chat learns."""
    rows = blocks([chat], net, None)
    _, targets = rows.gather(torch.arange(len(rows.sizes)))
    told = targets.tokens[targets.tokens >= 0].tolist()
    return net.tokenizer.decode(told, skip_special_tokens=False)


def one_epoch(batch):
    return SimpleNamespace(epoch=lambda _: [batch])


def chats(folder: Path, said: list, more: int) -> None:
    """These chats and as many pairs more, as JSON lines and as a table."""
    folder.mkdir(parents=True)
    lines = "\n".join(json.dumps({"messages": one}) for one in said)
    (folder / "chats.jsonl").write_text(lines)
    rows = [{"prompt": f"Was film {n} good?", "answer": f"Film {n} was."} for n in range(more)]
    if rows:
        pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")


def prepared_chats(folder: Path, said: list, more: int) -> Path:
    """The data set of these chats and as many pairs more."""
    chats(folder / "raw", said, more)
    made = prepare(source("language", kind="folder", folder=str(folder / "raw")), 0, None)
    prepared.write(folder / "language", TASK.name, made, 0)
    return folder / "language"


@pytest.mark.slow
def test_own_pairs_are_prepared_learnt_and_measured(tmp_path: Path) -> None:
    clone = copy_of_the_repository(tmp_path)
    shutil.rmtree(clone / "raw/texts", ignore_errors=True)
    chats(clone / "raw/texts", [SAID, PAIR], more=60)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["common"] |= {"profile": "tiny", "threads": 1}
    params["prepare"]["language"] = "folder"
    params["train_language_model"]["language_model"] = "scratch"
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    ended = run(
        clone, "dvc", "repro", "prepare@language", "train_language_model",
        "evaluate@language_model",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    card = json.loads((clone / "data/language/dataset.json").read_text())
    assert sum(split["rows"] for split in card["splits"].values()) == 62
    metrics = json.loads((clone / "metrics/language_model.json").read_text())
    assert metrics["examples"] == card["splits"]["test"]["rows"] == 13
    table = pq.read_table(clone / "plots/language_model/predictions.parquet")
    answers = sum(
        len(message["content"].encode())
        for chat in pq.read_table(clone / "data/language/test.parquet")["messages"].to_pylist()
        for message in chat
        if message["role"] == "assistant"
    )
    assert sum(table["bytes"].to_pylist()) == answers
