"""Train a recurrent network on spoken digits.

python -m stages.train_rnn
python -m stages.train_rnn rnn=lstm
"""

from pathlib import Path

from pipeline import models
from pipeline.data import audio
from pipeline.data.prepared import read_card
from pipeline.settings import TrainRNN
from pipeline.stage import Context, run, stage
from pipeline.training_stage import train


@stage("train_rnn", TrainRNN)
def main(settings: TrainRNN, context: Context) -> float:
    """The body; returns the best validation metric."""
    data, hardware = Path(settings.data), context.hardware
    batches = audio.load_training(
        data,
        batch_size=settings.training.batch_size,
        device=hardware.device,
        seed=settings.seed,
        shard=hardware.shard,
    )
    card = read_card(data)
    description = models.SpeechModel(
        settings=settings.rnn, classes=card.classes, sample_rate=card.sample_rate
    )
    model, _ = models.build(description)
    return train(settings, context, model, batches, description)


if __name__ == "__main__":
    run(main)
