"""Fine-tune a pretrained transformer on sentences.

python -m stages.finetune_transformer
python -m stages.finetune_transformer transformer.pretrained=false
"""

from pipeline.stage import run
from pipeline.training.stage import training

main = training("text_classification")

if __name__ == "__main__":
    run(main)
