"""Train a convolutional network on images.

python -m stages.train_cnn
python -m stages.train_cnn cnn=simple optimizer.lr=0.01
python -m stages.train_cnn --multirun cnn=simple,layers,convnet
"""

from pipeline.stage import run
from pipeline.training.stage import training

main = training("image_classification")

if __name__ == "__main__":
    run(main)
