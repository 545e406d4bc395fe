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
from types import SimpleNamespace
from unittest import mock

import numpy as np
import psutil
import pytest
import torch

import bench.__main__ as program
from bench import cifar, gpu, results
from bench.contention import beside
from bench.device import enough
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
    put,
    ratios,
    show,
    stage,
)
from bench.plots import draw
from bench.start import start
from bench.synthetic import images
from pipeline.prepared import read_card
from pipeline.task import find
from tests.conftest import ROOT, run

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
    assert 0 < curve[0].clock < curve[1].clock
    assert curve[0].seconds <= curve[1].seconds < curve[1].clock
    assert 0 <= curve[1].accuracy <= 0.5


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


@pytest.mark.slow
def test_all_parts_for_a_gpu_run_through_without_one(tmp_path):
    file = tmp_path / "gpu.json"
    ended = run(ROOT, "bench/gpu.sh", str(file), PYTHON=sys.executable)
    assert ended.returncode == 0, ended.stderr
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert all(one["found"] for one in parts.values())
    if parts["device"]["found"]["card"]["device"] == "cpu":
        skipped = [name for name, one in parts.items() if "skipped" in str(one["found"])]
        assert skipped == ["tests", "precisions", "compiling"]
        assert parts["tests"]["found"] == {"pytest -m gpu": {"skipped": "there is no CUDA device"}}
        assert "*not measured*" in gpu.section(file)


def test_a_part_that_hangs_or_dies_keeps_what_it_found():
    said = "import os, sys, time; print('{\"a\": [1]}', flush=True)\n"
    found = gpu.run([sys.executable, "-c", f"{said}sys.exit('no room')"], 20)
    assert found["found"] == {"a": [1]}
    assert found["error"] == "exit status 1: no room\n"
    child = "os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '60'); time.sleep(60)"
    found = gpu.run([sys.executable, "-c", said + child], 1)
    assert found["found"] == {"a": [1]}
    assert found["error"] == "not done after 1 s"
    assert found["seconds"] < 10


def test_a_call_that_fails_does_not_end_its_part(tmp_path, monkeypatch, capfd):
    def calls(place):
        def skip():
            raise gpu.Skipped("there is none")

        return {
            "a": lambda: place.folder.name, "b": lambda: 1 / 0, "c": skip, "d": lambda: print("d")
        }  # fmt: skip

    monkeypatch.setitem(gpu.PARTS, "some", (calls, 9))
    monkeypatch.setenv("DVC_ROOT", "elsewhere")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    gpu.part("some", tmp_path)
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == [
        {"a": tmp_path.name},
        {"b": {"error": "ZeroDivisionError: division by zero"}},
        {"c": {"skipped": "there is none"}},
        {"d": None},
    ]


def test_the_page_has_what_a_gpu_gave_with_its_name_or_that_nothing_was_measured(tmp_path):
    page, file = tmp_path / "page.md", tmp_path / "gpu.json"
    page.write_text("a\n<!-- gpu -->\nold\n<!-- /gpu -->\nb\n")
    put(page, "gpu", gpu.section(file))
    nothing = "On a GPU: *not measured*, none was in reach.\n"
    assert page.read_text() == f"a\n<!-- gpu -->\n{nothing}<!-- /gpu -->\nb\n"
    card = {"device": "cuda:0", "device_name": "NVIDIA Y"}
    parts = {
        "device": {"seconds": 1, "found": {"card": card}},
        "sizes": {"found": {"cnn, 64": {"a": 1.5, "b": [1, 2]}}, "error": "not done\nafter 9 s"},
    }
    file.write_text(json.dumps({"parts": parts}))
    assert gpu.section(file).splitlines()[2:] == [
        "| part | what | found |",
        "|---|---|---|",
        "| sizes | cnn, 64 | a: 1.5; b: 1, 2 |",
        "| sizes | – | error: not done after 9 s |",
    ]
    assert "NVIDIA Y" in gpu.section(file)
    card["device"] = "cpu"
    file.write_text(json.dumps({"parts": parts}))
    assert gpu.section(file) == nothing


class Timed:
    """A training that takes a second for 200 steps, on a device of this kind."""

    def __init__(self, kind):
        self.hardware = SimpleNamespace(device=torch.device(kind))

    def ours(self, steps, tracked):
        return steps / 200


def test_an_accelerator_is_measured_for_ten_seconds_at_least():
    assert enough(Timed("cpu"), 60) == 60
    assert enough(Timed("cuda"), 60) == 34 * 60
    assert enough(Timed("cuda"), 4000) == 4000


@pytest.mark.parametrize("loop", ["ours", "bare"])
def test_both_loops_compute_in_the_same_precision(loop, tmp_path):
    data = images(tmp_path / "data", 40, 28, 1)
    one = job("cnn", tmp_path, "cnn=simple", "training.batch_size=20", data=data)
    net, kinds = one.build(), set()
    net.module.register_forward_hook(lambda *given: kinds.add(given[2].dtype))
    one = replace(one, hardware=replace(one.hardware, precision="fp16"), build=lambda: net)
    scaler = torch.amp.GradScaler
    with mock.patch.object(scaler, "scale", autospec=True, side_effect=scaler.scale) as scale:
        getattr(one, loop)(2, **({"tracked": False} if loop == "ours" else {}))
    assert kinds == {torch.float16}
    assert scale.call_count == 2


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
