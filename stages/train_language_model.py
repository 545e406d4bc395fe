r"""Train a language model, or adapters of one that is there.

python -m stages.train_language_model
python -m stages.train_language_model language_model=scratch tokens=2000000 optimizer.lr=0.003 \
  training.batch_size=16
"""

from pipeline.stage import run
from pipeline.training.stage import training

main = training("language_modeling")

if __name__ == "__main__":
    run(main)
