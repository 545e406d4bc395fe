"""Take the README's picture of MLflow: the runs table of this workspace's store.

python -m tests.browser.screenshots

The newest repro is expanded, with the test accuracy of each model.
"""

import argparse
from pathlib import Path
from typing import Any

from tests.browser import analyst
from tests.conftest import ROOT, environment

TARGET = ROOT / "docs" / "images" / "mlflow.png"
LIMIT = 300_000  # bytes
# shown, and those of the second line, which are there at first, not
COLUMNS = [
    "test/accuracy", "cnn/test/accuracy", "transformer/test/accuracy", "rnn/test/accuracy",
    "Source", "Models",
]  # fmt: skip


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=ROOT, help="repository with the store")
    parser.add_argument("--to", type=Path, default=TARGET)
    options = parser.parse_args()
    if analyst.chromium() is None:
        raise SystemExit("chromium is not installed")
    store = options.store.resolve()
    with (
        analyst.ui(store, environment(store)) as address,
        analyst.browser() as chrome,
        analyst.page(chrome, height=860) as page,
    ):
        page.goto(address)
        _prepare(page)
        options.to.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.to)
    size = options.to.stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{options.to} has {size:,} bytes, more than {LIMIT:,}")
    print(f"{options.to}: {size:,} bytes")


def _prepare(page: Any) -> None:
    analyst.expand(page, analyst.parents(page)[0])
    analyst.toggle_columns(page, *COLUMNS)
    page.mouse.click(5, 5)
    page.wait_for_timeout(500)


if __name__ == "__main__":
    main()
