"""`python -m tests.golden --write`: replace the golden files by what this machine computes."""

import sys
import tempfile
from pathlib import Path

from pipeline.files import write_json
from tests import golden
from tests.workspace import prepare_all

if sys.argv[1:] != ["--write"]:
    sys.exit(__doc__)
with tempfile.TemporaryDirectory() as folder:
    prepare_all(Path(folder))
    for model in golden.MODELS:
        ran = {
            precision: golden.train(model, precision, Path(folder) / "data")
            for precision in golden.TOLERANCE
        }
        write_json(golden.FOLDER / f"{model}.json", ran)
        print(golden.FOLDER / f"{model}.json")
