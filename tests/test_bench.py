"""Every measurement runs; its numbers are for `make bench`, here ratios have wide margins."""

import importlib
import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest

import bench.__main__ as program
from bench import cifar, results
from bench.contention import beside
from bench.jobs import job
from bench.measure import (
    Failed,
    Memory,
    Row,
    alternate,
    at_least,
    at_most,
    command,
    for_comparison,
    main,
    prepare,
    ratios,
    show,
    stage,
)
from bench.plots import draw
from bench.start import start
from pipeline.prepared import read_card
from pipeline.task import find

ACCURACY = for_comparison(
    1, "a", [1], kind="accuracy", title="Digits",
    curves={"ours": [[(11, 0.991)], [(12, 0.992)]], "theirs": [[(50, 0.98), (99, 0.99)]]},
)  # fmt: skip
THROUGHPUT = for_comparison(
    2, "b", [1], kind="throughput", label="CNN", rates={"ours": [9, 10, 11], "theirs": [5, 6]}
)
GROWTH = for_comparison(
    10, "c", [1], kind="growth", rows=[3000, 30000], seconds=[[0.2, 0.3], [2.1, 2.2]]
)


def eventually(condition):
    """Whether it comes true within ten seconds."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def alive(group):
    """The running processes of a group; a zombie that nobody waits for is not running."""
    return [
        one
        for one in psutil.process_iter(["status"])
        if one.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(one.pid) == group
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", program.NUMBERS)
def test_every_measurement_gives_its_rows(name):
    rows = importlib.import_module(f"bench.{name}").measure(True)
    assert rows
    assert rows[0].number == program.NUMBERS[name]
    for row in rows:
        assert row.verdict.startswith(("met", "missed by", "skipped: --", "for comparison"))
        assert row.verdict.startswith("skipped") or row.measured != "–"
        json.dumps(row.points)
    assert name != "cifar" or bool(os.environ.get("CIFAR10")) != rows[0].verdict.startswith("skip")
    assert name != "mnist" or bool(os.environ.get("MNIST")) != rows[0].verdict.startswith("skip")


@pytest.mark.slow
def test_cifar_is_read_from_torchvisions_folder_and_trained_on(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    random = np.random.default_rng(0)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        data = {
            "data": random.integers(0, 256, (60, 3072), np.uint8),
            "labels": [n % 10 for n in range(60)],
        }
        (folder / name).write_bytes(pickle.dumps(data))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # it compares with the digests of the real files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = cifar.prepared(tmp_path, tmp_path / "data" / "image", held_out=50)
    card = read_card(data)
    assert {name: split.rows for name, split in card.splits.items()} == {
        "train": 250, "validation": 60, "test": 50
    }  # fmt: skip
    assert (card.facts.channels, card.facts.height, card.facts.classes[3]) == (3, 32, "d")
    curve = cifar._train(tmp_path, data, ["profile=tiny", "tracking=off", "training.epochs=2"])
    assert len(curve) == 2
    assert 0 < curve[0][0] < curve[1][0]
    assert 0 <= curve[1][1] <= 0.5


@pytest.mark.slow
def test_the_peer_of_the_detector_has_its_network_its_loss_and_its_data(tmp_path):
    from bench import detection  # torchvision takes seconds

    data = prepare(tmp_path, "boxes", "profile=tiny")
    one = job("detector", tmp_path, "augment=null", "precision=fp32", data=data)
    batches = replace(one.batches[0], shuffle=False)
    ours = one.loss(one.build().module, next(batches.epoch(0)))
    scenes = detection.Scenes(data, None)
    peer = detection.Reference(one.settings, data)
    rows = detection.collate([scenes[row] for row in range(batches.batch_size)])
    assert peer(*rows)["loss"].item() == pytest.approx(ours.item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "steps", "overrides"),
    [("cnn", 30, ["training.batch_size=512"]), ("rnn", 100, []), ("transformer", 15, [])],
)
def test_the_loop_stays_close_to_a_bare_one(model, steps, overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    one = job(model, tmp_path, *overrides)
    one.bare(6)  # the first steps of a process are slow
    found = alternate(
        {
            # outside DVC the sender of each run would import MLflow meanwhile
            "ours": partial(one.ours, steps, tracked=False),
            "bare": partial(one.bare, steps),
        },
        5,
    )
    assert min(found["ours"]) / min(found["bare"]) <= 1.25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modality", "most"),
    [("train_cnn", "image", 3), ("train_rnn", "audio", 3), ("finetune_transformer", "text", 7)],
)
def test_a_training_starts_soon_after_torch(name, modality, most, tmp_path):
    data = prepare(tmp_path, modality, "profile=tiny")
    found = alternate(
        {
            "ours": partial(start, tmp_path, name, data),
            "torch": partial(command, tmp_path, [sys.executable, "-c", "import torch"]),
        },
        4,
    )
    assert min(found["ours"]) / min(found["torch"]) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modality", "steps"),
    [("train_cnn", "image", 300), ("train_rnn", "audio", 60), ("finetune_transformer", "text", 10)],
)
def test_a_training_beside_a_busy_process_does_not_collapse(name, modality, steps, tmp_path):
    data = prepare(tmp_path, modality)
    call = partial(
        stage, tmp_path, name, f"data={data}", f"output={tmp_path}/m", "tracking=off",
        f"curve={tmp_path}/c.csv", f"profile.max_steps={steps}",
    )  # fmt: skip
    found = alternate({"beside": partial(beside, call), "alone": call}, 3)
    assert min(found["beside"]) / min(found["alone"]) <= 5


def test_a_place_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench.mnist", "--mnist", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        main("mnist", lambda quick: pytest.fail("measured all the same"))
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("nowhere does not exist")


def test_a_missed_goal_says_by_how_much():
    row = at_most(5, "start", 3, [3.4, 3.5, 3.6], "s")
    assert row == Row(
        5, "start", "≤ 3.000 s", "3.500 s", "3.400 – 3.600, n = 3", "missed by 0.500 s"
    )
    assert at_least(3, "rate", 1.5, [1.6, 1.5, 1.4]).verdict == "met"
    assert "| 5 | start | ≤ 3.000 s | 3.500 s |" in show([row])


def test_repetitions_alternate_and_change_direction():
    calls = []
    found = alternate({n: lambda n=n: calls.append(n) or len(calls) for n in "ab"}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert ratios(found["b"], found["a"]) == [2 / 1, 3 / 4, 6 / 5]


def test_a_measurement_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    results, page = tmp_path / "measured", tmp_path / "docs" / "performance.md"
    results.mkdir()
    page.parent.mkdir()
    page.write_text("# P\n\n<!-- measured -->\nNot measured yet.\n<!-- /measured -->\n")
    monkeypatch.setattr("bench.measure.RESULTS", results)
    monkeypatch.setattr(program, "RESULTS", results)
    monkeypatch.setattr(program, "PAGE", page)

    def run(name, quick):
        if name == "tiny":
            return "exit status 139"
        program.save(name, [THROUGHPUT])
        return None

    monkeypatch.setattr(program, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench", "tiny", "overhead"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    assert "bench.tiny failed: exit status 139" in capsys.readouterr().err
    text = page.read_text()
    assert "Not measured yet" not in text
    assert "| 6 | `bench.tiny` | – | – |  | failed: exit status 139 |" in text
    assert "| 2 | b | – | 1.000 × |" in text
    assert "](images/performance-throughput.png)" in text
    assert (page.parent / "images" / "performance-throughput.png").is_file()
    assert "performance-growth" not in text


def test_a_measurement_that_hangs_is_ended_with_what_it_started(monkeypatch):
    assert program.run("no_such_module", True) == "exit status 1"
    started, popen = [], subprocess.Popen

    def sleeper(words, **options):
        started.append(popen(["sh", "-c", "sleep 60 & wait"], **options))
        return started[0]

    monkeypatch.setattr(program.subprocess, "Popen", sleeper)
    assert program.run("tiny", True, limit=0.2) == "not done after 0 s"
    monkeypatch.undo()
    assert eventually(lambda: not alive(started[0].pid))


def test_the_plots_are_small_and_repeat(tmp_path):
    rows = [ACCURACY, THROUGHPUT, GROWTH]
    texts = draw(rows, tmp_path / "a")
    assert draw(rows, tmp_path / "b") == texts
    assert len(texts) == 3
    for name in texts:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert len(content) < 60_000
    assert "CNN" in texts["performance-throughput.png"]
    assert draw([at_most(5, "start", 3, [1])], tmp_path / "c") == {}


def test_memory_is_that_of_a_process_and_its_children(tmp_path):
    held = (
        "x = bytearray(b'1') * {}; import sys; print('{{\"a\": 1}}', flush=True); sys.stdin.read()"
    )
    child = held.format(50_000_000)
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    with Memory([sys.executable, "-c", code], tmp_path) as watched:
        assert json.loads(watched.ask("")) == {"a": 1}
        assert eventually(lambda: watched.anonymous >= 50_000_000)
        watched.finish()
    assert 50_000_000 <= watched.anonymous <= watched.all < 150_000_000
    words = [sys.executable, "-c", "import sys; sys.exit('no room')"]
    with Memory(words, tmp_path) as watched, pytest.raises(Failed, match="no room"):
        watched.ask("train")


def test_a_row_of_the_results_has_the_headline_of_its_task():
    runs = [
        {
            "seconds": seconds,
            "data": "`reviews`: 3 test",
            "numbers": {
                "bits_per_byte": value,
                "baseline/xz/bits_per_byte": 2.5,
                "baseline/xz/gain": 1.0,
                "baseline/5-grams/bits_per_byte": simple,
                "baseline/5-grams/gain": 0.5,
            },
        }
        for seconds, value, simple in [(60.0, 1.2, 1.7), (50.4, 1.1, 1.9), (40.0, 1.15, 1.8)]
    ]
    assert results.row(find(model="language_model"), runs) == (
        "| Language model (`train_language_model`) | `reviews`: 3 test | "
        "bits_per_byte 1.15 ± 0.05 | 1.8 (5-grams) | 50 s |"
    )
