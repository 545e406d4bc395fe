"""Row 16: fine-tuning a language model with adapters, against transformers' Trainer and peft.

The peer is written here after the documentation of transformers and peft: the same network, frozen
in bf16, adapters of the same rank beside the same linear maps, and the same texts one behind the
other, cut into windows that leave no padding (`group_texts` of run_clm.py), as many tokens a step;
fused AdamW, the pipeline's learning rates, no gradient checkpoints. It validates and saves at the
end, as the pipeline does. The pipeline measures both sets of adapters on the same reviews.

The peer writes with its adapters merged into the weights; the pipeline leaves them beside.
"""

import json
import resource
import statistics
import sys
from itertools import chain, islice
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
    timed,
)  # fmt: skip

BASE = "base"
TOKENS = 20_480
WINDOW = 512
WINDOWS = (64, 128, 256, 512)
BEGINNING, NEW = "This movie is", 128


def measure(quick: bool) -> list[Row]:
    """A short training, a validation and a text by each side, each time in a process of its own."""
    seeds = (0,) if quick else (0, 1, 2)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    with scratch() as folder:
        data = prepare(folder, "language", *(["profile=tiny"] if quick else []))
        answer("bench.language", "base", str(data), "0", "0")
        for seed in seeds:
            for name in runs if seed % 2 == 0 else reversed(runs):
                words = name, str(data), str(seed), str(3 * WINDOW if quick else TOKENS)
                runs[name].append(answer("bench.language", *words))
    ours, peer = ({key: [one[key] for one in some] for key in some[0]} for some in runs.values())
    bits = [statistics.mean(side["bits"]) for side in (ours, peer)]
    steps = [statistics.median(one) for one in zip(*ours["steps"], strict=True)]

    def told(key: str) -> str:
        return " against ".join(f"{statistics.median(side[key]):,.1f}" for side in (ours, peer))

    return [
        at_least(
            16, f"SmolLM2, tokens/s against the best Trainer with peft, {told('training')}", 1.3,
            ratios(ours["training"], peer["training"]), kind="throughput", label="SmolLM2, tokens",
            rates={"this pipeline": ours["training"], "Trainer at its best": peer["training"]},
        ),
        at_most(
            16, f"bits per byte behind it, {bits[0]:.3f} against {bits[1]:.3f}, seeds {seeds}",
            0.01, [bits[0] - bits[1]], "bits",
        ),
        for_comparison(
            16, f"memory of that training, {told('memory')} GiB",
            ratios(ours["memory"], peer["memory"]),
        ),
        for_comparison(
            16, f"evaluation, tokens/s against `Trainer.evaluate`, {told('evaluation')}",
            ratios(ours["evaluation"], peer["evaluation"]),
        ),
        for_comparison(
            16, f"writing with a cache, tokens/s against `generate`, {told('writing')}",
            ratios(ours["writing"], peer["writing"]),
        ),
        for_comparison(
            16, f"forward and backward with windows of {WINDOWS} tokens, "
            f"{', '.join(f'{one:.2f}' for one in steps)} s: the last against the first",
            [one[-1] / one[0] for one in ours["steps"]],
        ),
    ]  # fmt: skip


def _base(data: Path, *_: int) -> dict[str, Any]:
    """Write the untrained network as transformers reads it."""
    from bench.jobs import job
    from pipeline.training import net as nets

    one = job("language_model", data, "language_model.merge=true", data=data)
    (data.parent / BASE).mkdir()
    nets.save(data.parent / BASE, one.build())
    return {}


def _ours(data: Path, seed: int, tokens: int) -> dict[str, Any]:
    from bench.jobs import job  # isort: skip (as in a stage: sets what torch reads when imported)
    import torch

    from pipeline.tasks.language_modeling.data import Targets, encode
    from pipeline.training.batches import Batch

    one = job("language_model", data, f"seed={seed}", f"tokens={tokens}", data=data)
    (train, validation), net, device = one.batches, one.build(), one.hardware.device
    trained = float(train.weights[torch.cat(train.order(0))].sum())
    found: dict[str, Any] = {"training": trained / one.ours(len(train), tracked=False, net=net)}
    found["memory"] = _peak()

    def evaluate() -> None:
        found["bits"] = one.score(net, validation)["bits_per_byte"]

    found["evaluation"] = float(validation.weights.sum()) / timed(evaluate)

    module: Any = net.module
    module.frame = module.frame._replace(ends=())  # so that all tokens are written
    prompt = encode([BEGINNING], net)["input_ids"][0].to(device)
    how = net.settings.writing.model_copy(update={"tokens": NEW, "temperature": 0.0})
    with torch.inference_mode():
        found["writing"] = NEW / timed(lambda: list(module.go_on(prompt, how)))

    module.train()

    def step(batch: Batch) -> None:
        loss = one.loss(module, batch)
        loss.backward()
        float(loss)  # waits for the device

    found["steps"] = []
    for window in WINDOWS:
        ids = torch.randint(1000, (2, window), device=device)
        inputs = {"input_ids": ids, "lengths": ids[:, 0], "document": ids[:, 0]}
        batch = Batch(inputs, Targets(ids, 0), ids.numel(), ids.numel())
        found["steps"].append(min(timed(lambda batch=batch: step(batch)) for _ in range(3)))
    return found


def _peer(data: Path, seed: int, tokens: int) -> dict[str, Any]:
    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )  # fmt: skip

    # Not through the pipeline: importing it changes what the process does with memory and threads.
    tokenizer = AutoTokenizer.from_pretrained(data.parent / BASE)
    plain = AutoModelForCausalLM.from_pretrained(data.parent / BASE, dtype=torch.bfloat16)
    set_seed(seed)
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(plain, adapters)

    def windows(split: str, tokens: int | None) -> Any:
        texts = pq.read_table(data / f"{split}.parquet", columns=["text"])["text"].to_pylist()
        end = [tokenizer.eos_token_id]
        every = chain.from_iterable(tokenizer(text).input_ids + end for text in texts)
        ids = list(islice(every, tokens))
        rows = [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)]
        return Dataset.from_dict({"input_ids": rows, "labels": rows})

    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(data.parent / "trainer"), num_train_epochs=1, seed=seed, bf16=True,
            per_device_train_batch_size=1, per_device_eval_batch_size=2, learning_rate=0.001,
            warmup_steps=0.1, adam_beta2=0.99, optim="adamw_torch_fused", logging_steps=10,
            eval_strategy="epoch", save_strategy="epoch", prediction_loss_only=True,
            report_to="none", disable_tqdm=True, use_cpu=not torch.accelerator.is_available(),
        ),
        train_dataset=windows("train", tokens),
        eval_dataset=windows("validation", None),
        data_collator=default_data_collator,
    )  # fmt: skip
    count, told = (len(rows) * WINDOW for rows in (trainer.train_dataset, trainer.eval_dataset))
    found: dict[str, Any] = {"training": count / timed(trainer.train), "memory": _peak()}
    found["evaluation"] = told / timed(trainer.evaluate)
    weights = get_peft_model_state_dict(model)
    prompt = tokenizer(BEGINNING, return_tensors="pt").input_ids.to(model.device)
    merged = model.merge_and_unload().eval()
    how = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}
    found["writing"] = NEW / timed(lambda: merged.generate(prompt, **how))

    from bench.jobs import job  # nothing of the peer is measured any more

    one = job("language_model", data, data=data)
    net: Any = one.build()
    names = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    assert not net.module.llama.load_state_dict(names, strict=False).unexpected_keys
    found["bits"] = one.score(net, one.batches[1])["bits_per_byte"]
    return found


def _peak() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    if len(sys.argv) == 5:
        side = {"base": _base, "ours": _ours, "peer": _peer}[sys.argv[1]]
        print(json.dumps(side(Path(sys.argv[2]), *map(int, sys.argv[3:]))))
    else:
        main("language", measure)
