"""Chats: who says what, and how the template of a tokenizer writes it down."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import pyarrow as pa

ROLES = ("system", "user", "assistant")
ANSWERS = "assistant"
"""Whose messages are learnt; all others are context."""
SEPARATOR = "\n"
"""Between messages where there is no template."""

Message = dict[str, str]
"""With `role` and `content`."""
Document = str | list[Message]


class Part(NamedTuple):
    """A piece of a document.

    A `special` one is the name of one token; in a `message` somebody else speaks, and in `context`
    nobody does.
    """

    text: str
    kind: Literal["context", "message", "answer", "special"]


class Frame(NamedTuple):
    """What a network expects around texts.

    Attributes:
        start: the token before a document.
        ends: tokens after which nothing is written; the first one is learnt at the end of a text.
        template: of chats, for Jinja; None puts the messages below each other.
        names: what the template may call tokens, such as `eos_token`.
        special: names of tokens that are no text.
    """

    start: int
    ends: tuple[int, ...]
    template: str | None = None
    names: Mapping[str, Any] = {}
    special: tuple[str, ...] = ()


def document(row: Any) -> Document:
    """What a row of a user's table is: its `text`, `messages`, or `prompt` and `answer`.

    Blanks around a text or a message are left out.

    Raises:
        ValueError: says what is wrong.
    """
    found = row if isinstance(row, dict) else {}
    if found.get("text") is not None:
        return _words(found, "text")
    if found.get("messages") is not None:
        messages = chat(found)
        if all(message["role"] != ANSWERS for message in messages[1:]):
            raise ValueError(
                f"`messages` has no answer of the {ANSWERS}, and nothing else is learnt"
            )
        return messages
    if found.get("prompt") is not None or found.get("answer") is not None:
        answer = {"role": ANSWERS, "content": _words(found, "answer")}
        return [{"role": "user", "content": _words(found, "prompt")}, answer]
    raise ValueError("is no object with a `text`, with `messages`, or with `prompt` and `answer`")


def chat(row: Any) -> list[Message]:
    """The messages of `{"messages": […]}` or `{"prompt": …}`.

    Raises:
        ValueError: says what is wrong.
    """
    if not isinstance(row, dict) or not {"messages", "prompt"} & row.keys():
        raise ValueError("is no object with `messages` or a `prompt`")
    if row.get("messages") is None:
        return [{"role": "user", "content": _words(row, "prompt")}]
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` is no list of messages")
    made = []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise ValueError(f"message {number} has the role {role!r:.40}, not {', '.join(ROLES)}")
        made.append({"role": role, "content": _words(message, "content", f"message {number} ")})
    return made


def _words(row: dict[str, Any], name: str, where: str = "") -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}has no `{name}` with words")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}`{name}` has half a character ({error.reason})") from error
    return text.strip()


def from_table(table: pa.Table) -> list[Document]:
    """The documents of a prepared split: texts, or the messages of a chat."""
    texts: list[Document] = table["text"].to_pylist()
    if "messages" not in table.column_names:
        return texts
    chats = table["messages"].to_pylist()
    return [text if said is None else said for text, said in zip(texts, chats, strict=True)]


def plain(document: Document) -> str:
    """All that is said, without a template."""
    if isinstance(document, str):
        return document
    return SEPARATOR.join(message["content"] for message in document)


def learnt(document: Document) -> list[str]:
    """What of it is learnt, and measured by its bytes."""
    if isinstance(document, str):
        return [document]
    return [message["content"] for message in document if message["role"] == ANSWERS]


def before_last_answer(messages: list[Message]) -> list[Message]:
    """What the last answer is given to."""
    last = max(at for at, message in enumerate(messages) if message["role"] == ANSWERS)
    return messages[:last]


def parts(document: Document, frame: Frame, *, asked: bool = False) -> list[list[Part]]:
    """A document in pieces, in their order; what stands in a message is never a special token.

    It is one list; or one for each answer, all that comes before it as context, where the template
    writes something else before an answer once others follow it (an empty block of thoughts, say).

    Args:
        document: a text is an answer to nothing.
        frame: whose template is used; it is told not to think if else it asks for an answer by
            other words than stand before one.
        asked: whether the next message of the assistant is begun.

    Raises:
        ValueError: the template does not take these messages, loses one or words of one, or writes
            before an answer what it does not write when it asks for one; blanks may differ.
    """
    if isinstance(document, str):
        return [[Part(document, "answer")]]
    said = [{**one, "content": f"\ufdd0{number}\ufdd0"} for number, one in enumerate(document)]
    answers = [number for number, one in enumerate(said) if one["role"] == ANSWERS]
    # by the first answer alone, so that whoever asks for one decides as a training did
    at = next(filter(None, answers), len(said))
    first = [*said[:at], {"role": ANSWERS, "content": f"\ufdd0{at}\ufdd0"}]
    if _unlike(first, at, _written(first, frame), frame):
        frame = frame._replace(names={"enable_thinking": False, **frame.names})
    whole = _written(said, frame, asked)
    if asked or not any(_unlike(said, at, whole, frame) for at in answers):
        made = [list(_joined(whole, document, frame, answers, asked))]
    else:
        made = []
        for at in answers:
            whole = _written(said[: at + 1], frame)
            if fault := _unlike(said, at, whole, frame):
                raise ValueError(f"the tokenizer's chat template {fault}")
            made.append(list(_joined(whole, document[: at + 1], frame, [at])))
    if [part.text for one in made for part in one if part.kind == "answer"] != learnt(document):
        raise ValueError("the tokenizer's chat template changes the order of answers")
    return made


def _unlike(said: list[Message], at: int, whole: str, frame: Frame) -> str:
    """How an answer is asked for by other words than stand before it, or nothing."""
    if not at:  # nobody can ask for the first message
        return ""
    before, begun = whole.split(f"\ufdd0{at}\ufdd0")[0], _written(said[:at], frame, asked=True)
    if begun.rstrip() == before.rstrip():
        return ""
    by, has = _parting(begun, before)
    return f"asks for an answer by {by!r}, but has {has!r} before one"


def _parting(*texts: str) -> list[str]:
    """What two texts that differ have where they part, up to a message."""
    at = next(at for at, (one, other) in enumerate(zip_longest(*texts)) if one != other)
    same = texts[0][:at].rpartition("\ufdd0")[2][-20:]
    return [same + one[at:].partition("\ufdd0")[0][:40] for one in texts]


def _written(messages: list[Message], frame: Frame, asked: bool = False) -> str:
    """What the template makes of messages, each of which is found in it once."""
    if frame.template is None:
        return SEPARATOR.join(one["content"] for one in messages) + SEPARATOR * asked
    whole = _render(frame.template, messages, asked, frame.names)
    for number, one in enumerate(messages, 1):
        if whole.count(one["content"]) != 1:
            raise ValueError(
                f"the tokenizer's chat template leaves out or repeats message {number} "
                f"({one['role']})"
            )
    return whole


def _joined(
    whole: str,
    document: list[Message],
    frame: Frame,
    answers: Sequence[int],
    asked: bool = False,
) -> Iterator[Part]:
    """Context between special tokens and answers is one piece, as its tokenizer would meet it."""
    if frame.template is not None:  # it may read what stands in a message
        marked = re.sub("\ufdd0(\\d+)\ufdd0", lambda m: document[int(m[1])]["content"], whole)
        real = _render(frame.template, document, asked, frame.names)
        if real.split() != marked.split():
            has, due = _parting(" ".join(real.split()), " ".join(marked.split()))
            raise ValueError(
                "the tokenizer's chat template cuts or moves words of a message, such as thoughts "
                f"in an answer: it writes {has!r} instead of {due!r}; leave such words out"
            )
    apart, context = "|".join(["\ufdd0\\d+\ufdd0", *map(re.escape, frame.special)]), ""
    kind: Literal["context", "message"] = "context"
    for piece in re.split(f"({apart})", whole):
        if piece.startswith("\ufdd0"):
            number = int(piece.strip("\ufdd0"))
            if number not in answers:
                context, kind = context + document[number]["content"], "message"
                continue
            made = Part(document[number]["content"], "answer")
        elif piece in frame.special:
            made = Part(piece, "special")
        else:
            context += piece
            continue
        if context:
            yield Part(context, kind)
        context, kind = "", "context"
        yield made
    if context:
        yield Part(context, kind)


def _render(template: str, messages: list[Message], asked: bool, names: Mapping[str, Any]) -> str:
    import jinja2

    try:
        return _compiled(template).render(
            messages=messages, add_generation_prompt=asked, tools=None, **names
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses it: {error}") from error


@cache
def _compiled(template: str) -> Any:
    """As transformers has it, so that a template reaches and changes nothing, but without a clock.

    What is written of equal chats on two days is the same then.
    """
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.globals["raise_exception"] = raise_exception
    # a mark of transformers' own around answers
    tag = re.compile(r"(\{%-?\s*)(end)?generation(?=\s*-?%\})")
    return made.from_string(tag.sub(lambda m: m[1] + ("endif" if m[2] else "if true"), template))
