"""A text is the same in pieces and in one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.tasks.language_modeling.data import encode
from pipeline.tasks.language_modeling.model import answer
from pipeline.tasks.language_modeling.network.decoder import _nucleus
from pipeline.tasks.language_modeling.writing import stream
from tests.tasks.language_modeling.conftest import scratch, stirred


def made(facts, **writing):
    how = {"tokens": 40, "temperature": 2.0, "seed": 0, **writing}
    return stirred(scratch(context=128, writing=how), facts)


def whole(net, beginning):
    with torch.inference_mode():
        return answer(net.module(**encode([beginning], net)), net)[0]["text"]


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_are_the_text_byte_for_byte(facts, seed):
    net = made(facts, seed=seed)
    pieces = list(stream(net, "A film"))
    assert len(pieces) > 5
    assert "".join(pieces).encode() == whole(net, "A film").encode()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from(["", "Été", "\n"]))
def test_of_bytes_that_are_no_text_too(facts, seed, beginning):
    """A network that was not trained writes halves of characters."""
    net = made(facts, seed=seed, temperature=5.0)
    assert "".join(stream(net, beginning)) == whole(net, beginning)


def test_a_text_ends_before_a_word_to_stop_at(facts):
    text = whole(made(facts), "A film")
    for word in (text[7:10], text[5:9], text[3]):
        net = made(facts, stop=[word, "never said"])
        expected = text[: text.index(word)]
        pieces = list(stream(net, "A film"))
        assert "".join(pieces) == whole(net, "A film") == expected
        with torch.inference_mode():
            written = list(net.module.go_on(torch.tensor([0, 70]), net.settings.writing))
        assert len(written) <= 40


def test_settings_of_the_moment_take_the_place_of_the_networks_own(facts):
    net = made(facts)
    again = "".join(stream(net, "A film", seed=3, temperature=1.0, tokens=9, top_p=0.5))
    other = made(facts, seed=3, temperature=1.0, tokens=9, top_p=0.5)
    assert again == whole(other, "A film")
    assert again != whole(net, "A film")
    with pytest.raises(ValidationError, match="top_p"):
        list(stream(net, "A film", top_p=0.0))


def test_of_a_long_beginning_the_last_tokens_are_read_that_fit(facts, capsys):
    net = made(facts, temperature=0.0)
    long = " ".join(f"{at} films" for at in range(99))
    ids = encode([long], net)["input_ids"]
    assert ids.shape[1] > 256
    with torch.inference_mode():
        expected = list(net.module.go_on(ids[0, -88:], net.settings.writing))
        assert capsys.readouterr().err == ""
        found = list(net.module.go_on(ids[0], net.settings.writing))
    assert found == expected
    said = capsys.readouterr().err
    assert said.startswith(f"warning: of a beginning of {ids.shape[1]} tokens the last 88 are read")
    assert said.count("\n") == 1
    assert "".join(stream(net, long)) == whole(net, long)


def test_more_new_tokens_than_the_context_has_place_for_are_refused(facts):
    said = "128 new tokens leave no place for a beginning in a context of 128"
    with pytest.raises(ValidationError, match=said):
        made(facts, tokens=128)
    with pytest.raises(ValueError, match=said):
        list(stream(made(facts), "A film", tokens=128))
    assert list(stream(made(facts), "A film", tokens=127))


def test_of_the_likeliest_tokens_one_is_drawn():
    chances = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert torch.equal(_nucleus(chances, 1.0), chances)
    assert _nucleus(chances, 0.5).tolist() == pytest.approx([0, 0.4, 0, 0.3])
    assert _nucleus(chances, 0.4).tolist() == pytest.approx([0, 0.4, 0, 0])
    assert _nucleus(chances, 0.95).tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3])


def test_the_whole_share_writes_what_was_written_without_it(facts):
    assert whole(made(facts, top_p=1.0), "A film") == whole(made(facts), "A film")
    greedy = whole(made(facts, temperature=0.0), "A film")
    assert whole(made(facts, top_p=1e-6), "A film") == greedy
