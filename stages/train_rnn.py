"""Train a recurrent network on spoken digits.

python -m stages.train_rnn
python -m stages.train_rnn rnn=lstm
"""

from pipeline.stage import run
from pipeline.training.stage import training

main = training("speech_classification")

if __name__ == "__main__":
    run(main)
