"""Train a detector on images with boxes.

python -m stages.train_detector
python -m stages.train_detector optimizer.lr=0.003 training.epochs=20
"""

from pipeline.stage import run
from pipeline.training.stage import training

main = training("object_detection")

if __name__ == "__main__":
    run(main)
