"""What evaluation measures and draws of a language model."""

import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline import net as nets
from pipeline.errors import PipelineError
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.intervals import Floats, Integers, Interval, bootstrap, rounded
from pipeline.evaluation.learning import learning
from pipeline.evaluation.page import Page
from pipeline.figures.curves import Reliability, reliability_diagram
from pipeline.figures.style import BLUE, CYCLE, LINES, MARKERS, MUTED, ORANGE, canvas
from pipeline.figures.tokens import Passage, surprise
from pipeline.hardware import Hardware
from pipeline.net import Net
from pipeline.prepared import SplitName, read_split
from pipeline.settings import Evaluate, Repeat
from pipeline.tasks.language_modeling.data import TASK, documents, encode
from pipeline.tasks.language_modeling.model import LanguageModel, LowRank, answer
from pipeline.tasks.language_modeling.settings import ABOUT, Parts
from pipeline.texts import bpe, damage, ngrams

BATCH = 8
"""Documents that are read at once."""
SHOWN, EXCERPT = 2, 110
BINS = 15
PROMPTS = (
    "This movie is",
    "The best thing about this film was the",
    "I would not recommend it to anyone, because",
)
PLACES = (0, 16, 64, 256, 1024)
"""Edges of what a token has before it."""
RIDGE = 1e-3
"""Of a read-out, as a share of the mean variance of what it reads."""
DEPTHS = 6
DAMAGES: dict[str, tuple[str, tuple[float, ...], Callable[[Sequence[str], float, int], Any]]] = {
    "typos": ("share of the long words", (0, 0.1, 0.25, 0.5), damage.typos),
    "capitals": ("share of the words", (0, 0.5, 1), damage.upper_case),
}


class Read(NamedTuple):
    """What a network says of documents.

    Attributes:
        bits: of each document.
        sizes: its bytes.
        tokens: the tokens of each without `END`, [documents] of [tokens].
        nats, surest, right: of each token, see `model.Said`.
        before: tokens that the network saw before each.
    """

    bits: Floats
    sizes: Floats
    tokens: list[Integers]
    nats: list[Floats]
    surest: list[Floats]
    right: list[Floats]
    before: list[Integers]

    @property
    def pairs(self) -> Floats:
        """Bits and bytes of each document, [n, 2]."""
        return np.stack([self.bits, self.sizes], axis=1)

    def first(self, most: int) -> "Read":
        """Of the first documents."""
        parts: Any = (part[:most] for part in self)
        return Read(*parts)


@dataclass
class Study:
    """What the parts share.

    Attributes:
        net: the trained network, on the hardware's device.
        settings: of the stage.
        hardware: what it computes on.
        curve: rows of the learning curve's table.
        texts: the test documents.
    """

    net: Net
    settings: Evaluate
    hardware: Hardware
    curve: Sequence[Mapping[str, str]]
    texts: list[str]

    @property
    def parts(self) -> Parts:
        """Switches and sizes."""
        return self.settings.parts

    @property
    def name(self) -> str:
        """What figures call the model."""
        return self.settings.model

    @cached_property
    def read(self) -> Read:
        """The test documents, by the trained network."""
        return self.reads(self.texts)

    @cached_property
    def before(self) -> Read:
        """The first of them, by the network before its training."""
        with self.untouched() as net:
            return self.reads(self.texts[: self.parts.compared_documents], net)

    @contextmanager
    def untouched(self) -> Iterator[Net]:
        """The network before its training."""
        adapters = [one for one in self.net.module.modules() if isinstance(one, LowRank)]
        if not adapters:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                net = nets.build(self.net.task, self.net.settings, self.net.facts)
            net.module.to(self.hardware.device).eval()
            yield net
            return
        shares = [one.share for one in adapters]
        for one in adapters:
            one.share = 0.0
        try:
            yield self.net
        finally:
            for one, share in zip(adapters, shares, strict=True):
                one.share = share

    def reads(self, texts: Sequence[str], net: Net | None = None) -> Read:
        """Documents, by a network."""
        return read(net or self.net, texts, self.hardware)

    def split(self, split: SplitName, most: int) -> list[str]:
        """The first documents of a split."""
        table = read_split(Path(self.settings.data), split, TASK)[1]
        texts: list[str] = table["text"].slice(0, most).to_pylist()
        return texts


def study(
    net: Net, settings: Evaluate, hardware: Hardware, curve: Sequence[Mapping[str, str]]
) -> Study:
    """A trained network and the test documents.

    Raises:
        PipelineError: the data set is missing or damaged.
    """
    return _open(net, settings, hardware, curve)


def repetition(first: Net, second: Net, settings: Repeat, hardware: Hardware) -> dict[str, float]:
    """The second network's numbers; how it stands to the first on the same test documents."""
    before, now = (_open(net, settings, hardware, ()).read for net in (first, second))
    numbers = _numbers(now, settings.seed)
    gains = np.stack([now.bits - before.bits, now.sizes], axis=1)
    low, high = bootstrap(gains, settings.seed, _per_byte)
    against = compare(_score(before), _score(now), settings.seed)
    told = {"difference": float(_per_byte(gains)), "difference_low": low, "difference_high": high}
    return rounded(numbers | told | {"p_value": against.p_value})


def _open(net: Net, settings: Any, hardware: Hardware, curve: Any) -> Study:
    card, table = read_split(Path(settings.data), "test", TASK)
    if card.facts != net.facts:
        raise PipelineError(
            f"{settings.weights} was trained on other texts than {settings.data} has; train it "
            "on these first"
        )
    net.module.to(hardware.device).eval()
    return Study(net, settings, hardware, curve, table["text"].to_pylist())


def read(net: Net, texts: Sequence[str], hardware: Hardware) -> Read:
    """What a network says of every token of some documents."""
    rows = documents(texts, net)
    long = rows.tokens.offsets[rows.first].diff()
    found: dict[int, tuple[Any, ...]] = {}
    for index in long.argsort(stable=True).split(BATCH):
        inputs, targets = rows.gather(index)
        counted = targets.tokens >= 0
        parts = _said(net, inputs, targets.tokens, hardware)
        place = counted.nonzero()[:, 1] + 1
        document = inputs["document"].repeat_interleave(counted.sum(1))
        counts = document.bincount(minlength=len(index)).tolist()
        told = [targets.tokens[counted], *parts, place]
        each = zip(*(part.cpu().split(counts) for part in told), strict=True)
        for number, values in zip(index.tolist(), each, strict=True):
            found[number] = tuple(value.numpy() for value in values)
    tokens, nats, surest, right, before = (
        [found[number][part] for number in range(len(texts))] for part in range(5)
    )
    nats = [part.astype(np.float64) for part in nats]
    bits = np.array([part.sum() / log(2) for part in nats])
    return Read(bits, rows.sizes.double().numpy(), tokens, nats, surest, right, before)


def _model(net: Net) -> LanguageModel:
    model: Any = net.module
    return model


def _said(net: Net, inputs: dict[str, Tensor], targets: Tensor, hardware: Hardware) -> Any:
    device = hardware.device
    with torch.inference_mode(), hardware.accelerator.autocast():
        states, told = _model(net).counted(inputs["input_ids"].to(device), targets.to(device))
        return _model(net).judge(states, told)


def _per_byte(pairs: Floats) -> Floats:
    """Bits per byte of documents by their bits and bytes [..., n, 2]."""
    sums = pairs.sum(axis=-2)
    return sums[..., 0] / sums[..., 1]


def _score(found: Read) -> Floats:
    """Of each document; their mean is minus the bits per byte of all, so long ones weigh more."""
    return -found.bits / found.sizes.mean()


def _numbers(found: Read, seed: int) -> dict[str, float]:
    low, high = bootstrap(found.pairs, seed, _per_byte)
    nats = np.concatenate(found.nats)
    return {
        "bits_per_byte": float(_per_byte(found.pairs)),
        "bits_per_byte_low": low,
        "bits_per_byte_high": high,
        "loss": float(nats.mean()),
        "bytes_per_token": float(found.sizes.sum() / len(nats)),
        "examples": len(found.bits),
    }


def scores(page: Page, study: Study) -> None:
    """The numbers of `metrics/<model>.json`, and the table that versions are compared by."""
    found, settings = study.read, study.net.settings
    page.numbers |= _numbers(found, study.settings.seed)
    bits = page.numbers["bits_per_byte"]
    page.columns["Perplexity by token"] = f"{np.exp(page.numbers['loss']):.1f}"
    page.facts |= {
        "bytes": f"{int(found.sizes.sum()):,} in {len(found.bits)} documents, "
        f"{page.numbers['bytes_per_token']:.2f} by token; each counts once",
        "context": f"up to {settings.context} tokens; a longer document is read in pieces that "
        f"overlap by {settings.context // 2}, so that a token has at least that many before it",
        "share of its bytes that a document would need": f"{bits / 8:.1%}",
    }
    table = {"score": _score(found), "bits": found.bits, "bytes": found.sizes.astype(np.int64)}
    pq.write_table(pa.table(table), page.folder / "predictions.parquet")


def _learning(page: Page, study: Study) -> None:
    learning(page, study.curve, study.name, ABOUT, "nats by token")


def baselines(page: Page, study: Study) -> None:
    """xz, n-grams of tokens, and the network before its training."""
    found, parts = study.read, study.parts
    whole = len(lzma.compress("\n\n\n".join(study.texts).encode(), preset=9)) * 8
    rows: list[tuple[str, Read, float, Floats | None]] = [
        ("xz", found, whole / found.sizes.sum(), None)
    ]
    encoding = bpe.tokenizer(study.net.facts.merges)
    train = study.split("train", parts.ngram_documents)
    known, told = (
        [[0, *one.ids] for one in encoding.encode_batch(texts)] for texts in (train, study.texts)
    )
    counted = [bits.sum() for bits in ngrams.kneser_ney(known, told, encoding.get_vocab_size())]
    rows.append(("5-grams", found, sum(counted) / found.sizes.sum(), np.array(counted)))
    some = study.before
    first = found.first(len(some.bits))
    rows.append(("untouched", first, float(_per_byte(some.pairs)), some.bits))
    shown = []
    for name, ours, value, bits in rows:
        own = float(_per_byte(ours.pairs))
        page.numbers |= {
            f"baseline/{name}/bits_per_byte": value,
            f"baseline/{name}/gain": value - own,
        }
        p = "—" if bits is None else f"{compare(-bits, -ours.bits).p_value:.2g}"
        shown.append([name, f"{value:.3f}", f"{own:.3f}", f"{len(ours.bits)}", p])
    page.show(
        "Simpler rules, in bits per byte: xz -9 of all test documents in one file, "
        f"Kneser-Ney 5-grams of {len(train):,} training documents, and the network as it was "
        "before this training; p of the paired test over documents",
        ["Rule", "Its bits", "The model's", "Documents", "p"],
        shown,
    )


def surprises(page: Page, study: Study) -> None:
    """Two documents coloured token by token, before and after the training."""
    passages = []
    for row in range(min(SHOWN, len(study.before.bits))):
        for label, found in (("before", study.before), ("after", study.read)):
            shown = _pieces(study.net, found.tokens[row][:EXCERPT])
            bits = found.nats[row][:EXCERPT] / log(2)
            about = f"test row {row}, {label} training: {bits.mean():.2f} bits by token"
            passages.append(Passage(shown, bits.tolist(), about))
    page.figure(
        "surprise",
        surprise(passages, f"{study.name}: surprise, token by token"),
        title="What surprises it",
        text="The deeper the colour, the more bits a token took after those before it; the deepest "
        "stands for 12 and more. Below each other: the network before its training, and after it. "
        "What grows pale is what was learnt of these texts.",
        alt="; ".join(one.about for one in passages),
    )


def _pieces(net: Net, tokens: Integers) -> list[str]:
    return [net.tokenizer.decode([int(token)]) for token in tokens]


def writing(page: Page, study: Study) -> None:
    """What is written after fixed beginnings, before and after the training."""
    inputs = {
        name: value.to(study.hardware.device) for name, value in encode(PROMPTS, study.net).items()
    }

    def written(net: Net) -> list[str]:
        with torch.inference_mode(), study.hardware.accelerator.autocast():
            return [one["text"] for one in answer(net.module(**inputs), net)]

    with study.untouched() as net:
        before = written(net)
    rows = list(zip(PROMPTS, before, written(study.net), strict=True))
    how = study.net.settings.writing
    page.show(
        f"What it writes: up to {how.tokens} tokens at temperature {how.temperature:g}, seed "
        f"{how.seed}",
        ["Beginning", "Before training", "After"],
        [[" ".join(cell.split()) for cell in row] for row in rows],
    )
    columns = ["beginning", "before", "after"]
    page.table("writing", (dict(zip(columns, row, strict=True)) for row in rows), columns)


def places(page: Page, study: Study) -> None:
    """Bits per byte by what stands before a token, and by the document's length."""
    found = study.read
    long = _token_bytes(study.net)
    sizes = long[np.concatenate(found.tokens)]
    bits, place = np.concatenate(found.nats) / log(2), np.concatenate(found.before)
    edges = [*PLACES[:-1], max(PLACES[-1], int(place.max()) + 1)]
    groups = np.digitize(place, edges) - 1
    by_place = [
        (f"{low}–{high - 1}", float(bits[groups == at].sum() / sizes[groups == at].sum()))
        for at, (low, high) in enumerate(pairwise(edges))
        if (groups == at).any()
    ]
    limits = np.quantile(found.sizes, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(limits, found.sizes)
    by_size = []
    for at in range(4):
        part = found.pairs[quarter == at]
        if len(part):
            name = f"{int(part[:, 1].min()):,}–{int(part[:, 1].max()):,}"
            by_size.append((name, float(_per_byte(part)), bootstrap(part, 0, _per_byte)))
    figure = canvas(8, 3)
    left, right = figure.subplots(1, 2, sharey=True)
    left.bar([name for name, _ in by_place], [value for _, value in by_place], color=BLUE)
    left.set(xlabel="tokens seen before", ylabel="bits per byte")
    values = np.array([value for _, value, _ in by_size])
    ends = np.array([list(span) for *_, span in by_size])
    reach = np.abs(ends.T - values)
    right.bar([name for name, *_ in by_size], values, color=ORANGE, yerr=reach, ecolor=MUTED)
    right.set_xlabel("bytes of the document, a quarter of them each")
    right.tick_params(axis="x", labelsize=7)
    page.figure(
        "places",
        figure,
        title="Bits by place and by length",
        text="Left: the more of a document the network has seen, the less its next token takes; "
        "where that ends, more context is of no use. Right: short documents take more, because "
        "more of them is beginning.",
        alt="; ".join(f"after {name} tokens {value:.2f}" for name, value in by_place),
    )
    rows = [{"kind": "tokens before", "group": n, "bits_per_byte": v} for n, v in by_place]
    rows += [{"kind": "bytes", "group": n, "bits_per_byte": v} for n, v, _ in by_size]
    page.table("places", rows, ["kind", "group", "bits_per_byte"])


def _token_bytes(net: Net) -> Integers:
    """Bytes of each token: in a byte-level vocabulary a letter stands for a byte."""
    size = net.tokenizer.get_vocab_size()
    return np.array([len(net.tokenizer.id_to_token(token)) for token in range(size)])


def calibration(page: Page, study: Study) -> None:
    """How often the likeliest next token is the one, by its chance."""
    surest, right = (np.concatenate(part).astype(np.float64) for part in study.read[4:6])
    edges = np.linspace(0, 1, BINS + 1)
    place = np.minimum((surest * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    held = count > 0
    means = [np.bincount(place, part, BINS)[held] / count[held] for part in (surest, right)]
    table = Reliability(edges[:-1][held], edges[1:][held], means[0], means[1], count[held])
    error = float(np.abs(means[0] - means[1]) @ count[held] / len(surest))
    page.numbers |= {"ece": error, "accuracy": float(right.mean())}
    page.figure(
        "reliability",
        reliability_diagram(table, None, [error], f"{study.name}: calibration"),
        title="Is it as sure as it should be?",
        text=f"The likeliest next token is the one in {right.mean():.1%} of {len(right):,} cases, "
        f"and its mean chance is {surest.mean():.1%}. The expected calibration error, in {BINS} "
        f"bins, is {error:.1%}.",
        alt=f"Accuracy against confidence of next tokens; expected calibration error {error:.1%}.",
    )
    rows = [
        {"confidence": one, "accuracy": other, "examples": int(many)}
        for one, other, many in zip(*means, count[held], strict=True)
    ]
    page.table("reliability", rows, ["confidence", "accuracy", "examples"])


def robustness(page: Page, study: Study) -> None:
    """Bits per byte of damaged documents."""
    most, seed = study.parts.damaged_documents, study.settings.seed
    whole = study.read.first(most)
    rows: list[dict[str, Any]] = []
    for name, (_, levels, hurt) in DAMAGES.items():
        for level in levels:
            found = study.reads(hurt(study.texts[:most], level, seed)) if level else whole
            value, span = float(_per_byte(found.pairs)), bootstrap(found.pairs, seed, _per_byte)
            row = {"kind": name, "severity": level, "bits_per_byte": value}
            rows.append(row | {"low": span.low, "high": span.high})
        page.numbers[f"robustness/{name}"] = value
    figure = canvas(6.4, 2.9)
    panels = figure.subplots(1, len(DAMAGES), sharey=True)
    for axes, (name, (unit, *_)) in zip(panels, DAMAGES.items(), strict=True):
        own = [row for row in rows if row["kind"] == name]
        at, values = [row["severity"] for row in own], [row["bits_per_byte"] for row in own]
        axes.fill_between(
            at, [r["low"] for r in own], [r["high"] for r in own], color=BLUE, alpha=0.16, lw=0
        )
        axes.plot(at, values, color=BLUE, marker="o")
        axes.set_title(name)
        axes.set_xlabel(unit, fontsize=8)
        axes.grid(axis="y")
    panels[0].set_ylabel("bits per byte")
    page.figure(
        "robustness",
        figure,
        title="What damage costs",
        text=f"The first {len(whole.bits)} test documents with misspelt words, or with words in "
        "capitals; bands are 95 % intervals over documents. Fewer documents than the headline has.",
        alt="; ".join(f"{r['kind']} {r['severity']:g}: {r['bits_per_byte']:.2f}" for r in rows),
    )
    page.table("robustness", rows, ["kind", "severity", "bits_per_byte", "low", "high"])


def memory(page: Page, study: Study) -> None:
    """What the training took off training documents, beside what it took off others."""
    texts = study.split("train", study.parts.known_documents)
    now = study.reads(texts)
    with study.untouched() as net:
        before = study.reads(texts, net)
    known = np.stack([before.bits - now.bits, now.sizes], axis=1)
    some = len(study.before.bits)
    others = np.stack([study.before.bits - study.read.bits[:some], study.before.sizes], axis=1)
    gap = float(_per_byte(known) - _per_byte(others))
    span = _gap(known, others, study.settings.seed)
    page.numbers |= {"memory/gap": gap, "memory/gap_low": span.low, "memory/gap_high": span.high}
    page.facts["memory"] = (
        f"the training took {_per_byte(known):.3f} bits per byte off the first {len(texts)} "
        f"training documents and {_per_byte(others):.3f} off {some} test documents; the "
        f"difference, {gap:.3f} ({span.low:.3f} to {span.high:.3f}), is what was memorised of them"
    )


def _gap(known: Floats, others: Floats, seed: int) -> Interval:
    """95 % bootstrap interval of the difference, each group drawn for itself."""
    generator = np.random.default_rng(seed)
    draws = [
        _per_byte(part[generator.integers(len(part), size=(2000, len(part)))])
        for part in (known, others)
    ]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return Interval(float(low), float(high))


def read_out(page: Page, study: Study) -> None:
    """Bits per byte of a linear read-out of each depth, of the network after and before training.

    A ridge regression from the states of a depth to those after the last norm, which the network's
    own unembedding then reads (as the tuned lens of Belrose et al. 2023, in closed form).
    """
    count = study.parts.depth_documents
    fitted, tested = study.split("validation", count), study.texts[:count]
    with study.untouched() as net:
        before = _by_depth(net, fitted, tested, study.hardware)
    found = {"after": _by_depth(study.net, fitted, tested, study.hardware), "before": before}
    figure = canvas(6, 3)
    axes = figure.subplots()
    for number, (label, values) in enumerate(found.items()):
        axes.plot(list(values), list(values.values()), color=CYCLE[number], ls=LINES[number],
                  marker=MARKERS[number], label=f"{label} training")  # fmt: skip
    axes.set(xlabel="layer (0: the embeddings)", ylabel="bits per byte")
    axes.grid()
    axes.legend()
    page.figure(
        "depths",
        figure,
        title="Where the answer is made",
        text="What a linear read-out of each depth knows of the next token: fitted on "
        f"{len(fitted)} validation documents, measured on the first {len(tested)} test documents. "
        "A straight line down is work shared by all layers; a flat end is layers that add little.",
        alt="; ".join(f"layer {layer}: {bits:.2f}" for layer, bits in found["after"].items()),
    )
    rows = [
        {"network": label, "layer": layer, "bits_per_byte": value}
        for label, values in found.items()
        for layer, value in values.items()
    ]
    page.table("depths", rows, ["network", "layer", "bits_per_byte"])


def _by_depth(
    net: Net, fitted: Sequence[str], tested: Sequence[str], hardware: Hardware
) -> dict[int, float]:
    layers = _model(net).llama.config.num_hidden_layers
    chosen = np.unique(np.linspace(0, layers, min(layers + 1, DEPTHS)).round()).astype(int).tolist()
    seen, _, _ = _states(net, fitted, chosen, hardware)
    told, targets, size = _states(net, tested, chosen, hardware)
    found = {}
    for layer in chosen:
        states = told[layer]
        if layer < layers:
            states = _fitted(seen[layer], seen[layers])(states)
        with torch.inference_mode(), hardware.accelerator.autocast():
            found[layer] = (
                float(_model(net).judge(states, targets).nats.double().sum()) / log(2) / size
            )
    return found


def _fitted(states: Tensor, last: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression [n, width] → [n, width] in float64."""
    before, after = states.double(), last.double()
    middle, end = before.mean(0), after.mean(0)
    centred = before - middle
    square = centred.T @ centred
    square += torch.eye(len(square), dtype=square.dtype, device=square.device) * (
        RIDGE * square.diagonal().mean()
    )
    weights = torch.linalg.solve(square, centred.T @ (after - end))
    return lambda told: ((told.double() - middle) @ weights + end).float()


def _states(
    net: Net, texts: Sequence[str], chosen: Sequence[int], hardware: Hardware
) -> tuple[dict[int, Tensor], Tensor, int]:
    """States of the tokens that count at some depths, the targets, and the documents' bytes."""
    rows = documents(texts, net)
    found: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    every, size = [], 0
    for index in torch.arange(len(texts)).split(BATCH):
        inputs, targets = rows.gather(index)
        ids, tokens = (part.to(hardware.device) for part in (inputs["input_ids"], targets.tokens))
        with torch.inference_mode(), hardware.accelerator.autocast():
            states = _model(net).states(ids, output_hidden_states=True).hidden_states
        for layer in chosen:
            found[layer].append(states[layer][tokens >= 0].float())
        every.append(tokens[tokens >= 0])
        size += targets.size
    return {layer: torch.cat(part) for layer, part in found.items()}, torch.cat(every), size


PARTS = {
    "scores": scores,
    "learning": _learning,
    "baselines": baselines,
    "surprise": surprises,
    "writing": writing,
    "places": places,
    "calibration": calibration,
    "robustness": robustness,
    "memory": memory,
    "depths": read_out,
}
