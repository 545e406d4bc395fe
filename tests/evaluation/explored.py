"""The interactive page, read back: its charts as plotly wrote them, and hostile content for it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline.classification.data.examples import Examples
from pipeline.classification.evaluation.exploration import FILE, exploration
from pipeline.classification.evaluation.study import Study
from pipeline.classification.evaluation.subject import Subject
from pipeline.figures.page import Page

HARM = "<script>window.harm=1</script><img src=x onerror='window.harm=2'>"
CLASSES = [f"</script>{HARM}", "R&D <b>bold</b>"]


def write(study: Study, folder: Path, **changes: Any) -> Path:
    """The page of a small evaluation, whose features nothing else has computed."""
    alone = study.parts.model_copy(update={"probes": False, "similarity": False})
    fresh = replace(study, **changes, parts=alone, name="small")
    fresh.on_test = study.on_test
    exploration(Page(folder), fresh)
    return folder / FILE


def renamed(subject: Subject, classes: list[str]) -> Subject:
    """The same model, with other names of the classes."""
    facts = subject.net.facts.model_copy(update={"classes": classes})
    return replace(subject, net=replace(subject.net, facts=facts))


def hostile(study: Study) -> dict[str, Any]:
    """What to change for class names and sentences that would like to be markup."""
    texts = [f"<a href='javascript:{HARM}'>here</a> & {text}" for text in study.test.raw]
    test = Examples(texts, study.test.labels, {"<b>note</b>": [HARM] * len(texts)})
    return {"subject": renamed(study.subject, CLASSES), "test": test}


def charts(html: str) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """(traces, layout) of each chart by its name."""
    found = {}
    decoder = json.JSONDecoder()
    for start in re.finditer(r'Plotly\.newPlot\(\s*"(\w+)",\s*(?=\[)', html):
        traces, end = decoder.raw_decode(html, start.end())
        comma = re.compile(r",\s*").match(html, end)
        assert comma is not None
        found[start[1]] = traces, decoder.raw_decode(html, comma.end())[0]
    return found


class Elements(HTMLParser):
    """The elements of a page with their attributes, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
