"""Fine-tune a pretrained transformer on sentences.

python -m stages.finetune_transformer
python -m stages.finetune_transformer transformer.pretrained=false
"""

from pathlib import Path

from pipeline import models
from pipeline.data import text
from pipeline.data.prepared import read_card
from pipeline.settings import FinetuneTransformer
from pipeline.stage import Context, run, stage
from pipeline.training_stage import train


@stage("finetune_transformer", FinetuneTransformer)
def main(settings: FinetuneTransformer, context: Context) -> float:
    """The body; returns the best validation metric."""
    data, hardware = Path(settings.data), context.hardware
    description = models.TextModel(settings=settings.transformer, classes=read_card(data).classes)
    model, tokenizer = models.build(description)
    batches = text.load_training(
        data,
        tokenizer,
        max_length=settings.transformer.max_length,
        batch_size=settings.training.batch_size,
        device=hardware.device,
        seed=settings.seed,
        shard=hardware.shard,
    )
    name = context.written.conceal(settings.transformer.name)  # it goes into model.json
    began = settings.transformer.model_copy(update={"name": name})
    description = description.model_copy(update={"settings": began})
    return train(settings, context, model, batches, description, tokenizer)


if __name__ == "__main__":
    run(main)
