"""Measure every goal: `python -m bench [--quick] [name …]`; writes docs/speed.md.

Takes about half an hour on two cores. MNIST names the folder of the full MNIST's idx files; without
it rows 1 and 9's images are skipped. Nothing else should run on the machine.
"""

import argparse
import importlib
import json
import re

from bench.measure import RESULTS, ROOT, Row, save, show

NAMES = (
    "mnist", "overhead", "finetune", "start", "tiny", "noop", "contention", "prepare", "growth",
    "larger", "inference", "tracking",
)  # fmt: skip
PAGE = ROOT / "docs" / "speed.md"


def main() -> None:
    """Run the chosen measurements, all by default, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="name")
    parser.add_argument("--quick", action="store_true", help="test the plumbing, keep no numbers")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.names or NAMES:
        print(f"bench.{name} …", flush=True)
        found = importlib.import_module(f"bench.{name}").measure(options.quick)
        rows += found
        if not options.quick:
            save(name, found)
    print(show(rows))
    if not options.quick:
        write_page()


def write_page() -> None:
    """Put the kept rows between the markers of the page."""
    kept = [json.loads((RESULTS / f"{name}.json").read_text()) for name in NAMES
            if (RESULTS / f"{name}.json").is_file()]  # fmt: skip
    machines = "; ".join(sorted({one["machine"] for one in kept}))
    table = show([Row(**row) for one in kept for row in one["rows"]])
    text = PAGE.read_text(encoding="utf-8")
    marked = r"(<!-- measured -->\n).*?(<!-- /measured -->)"
    content = f"{table}\n\n`make bench` on {machines}.\n"
    text = re.sub(marked, lambda found: f"{found[1]}{content}{found[2]}", text, flags=re.S)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
