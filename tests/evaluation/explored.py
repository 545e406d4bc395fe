"""The interactive page, read back: its charts as plotly wrote them, and hostile content for it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline.classification.evaluation.exploration import FILE, exploration
from pipeline.classification.evaluation.predictions import Predictions
from pipeline.classification.evaluation.study import Study
from pipeline.classification.evaluation.subject import Subject
from pipeline.classification.examples import Examples, sample_rows
from pipeline.evaluation.page import Page

HARM = "<script>window.harm=1</script><img src=x onerror='window.harm=2'>"
CLASSES = [f"</script>{HARM}", "R&D <b>bold</b>"]


def write(
    subject: Subject, test: Examples, answers: Predictions, folder: Path, most: int = 80
) -> Path:
    """The page of a small evaluation, whose features nothing else has computed."""
    rows = sample_rows(len(test), most, 0)
    exploration(Page(folder), subject, test, answers, rows, None, 0, "small")
    return folder / FILE


def renamed(subject: Subject, classes: list[str]) -> Subject:
    """The same model, with other names of the classes."""
    facts = subject.net.facts.model_copy(update={"classes": classes})
    return replace(subject, net=replace(subject.net, facts=facts))


def hostile(study: Study) -> tuple[Subject, Examples]:
    """The same model of texts, with class names and sentences that would like to be markup."""
    texts = [f"<a href='javascript:{HARM}'>here</a> & {text}" for text in study.test.raw]
    test = Examples(texts, study.test.labels, {"<b>note</b>": [HARM] * len(texts)})
    return renamed(study.subject, CLASSES), test


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
