"""Train a convolutional network on images.

python -m stages.train_cnn
python -m stages.train_cnn cnn=simple optimizer.lr=0.01
python -m stages.train_cnn --multirun cnn=simple,layers,convnet
"""

from pathlib import Path

from pipeline import models
from pipeline.data import image
from pipeline.data.prepared import read_card
from pipeline.settings import TrainCNN
from pipeline.stage import Context, run, stage
from pipeline.training_stage import train


@stage("train_cnn", TrainCNN)
def main(settings: TrainCNN, context: Context) -> float:
    """The body; returns the best validation metric."""
    data, hardware = Path(settings.data), context.hardware
    batches = image.load_training(
        data,
        batch_size=settings.training.batch_size,
        device=hardware.device,
        seed=settings.seed,
        augment=settings.augment,
        shard=hardware.shard,
        in_memory_limit=settings.in_memory_limit,
    )
    card = read_card(data)
    mean, std = image.pixel_statistics(batches[0])
    description = models.ImageModel(
        settings=settings.cnn,
        classes=card.classes,
        channels=card.channels,
        height=card.height,
        width=card.width,
        mean=mean,
        std=std,
    )
    model, _ = models.build(description)
    return train(settings, context, model, batches, description)


if __name__ == "__main__":
    run(main)
