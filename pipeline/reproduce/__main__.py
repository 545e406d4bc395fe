"""Run a recorded run again, from what was recorded, and compare.

    python -m pipeline.reproduce <MLflow run id>          (make reproduce RUN=<MLflow run id>)

The run's commit is checked out into a temporary worktree, its uncommitted changes are applied, its
config, device, precision and thread count are restored, its inputs are found by their content, and
the stage runs there. The answer is *identical*, *within tolerance* (exit status 0) or *different*
(exit status 1), with every known reason for a difference.
"""

import sys
import tempfile
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.reproduce.restore import again
from pipeline.reproduce.verdict import Result, judge
from pipeline.streams import make_safe
from pipeline.tracking.reader import Reader


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        result = reproduce(arguments[0])
    except PipelineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(result)
    return int(result.verdict == "different")


def reproduce(run_id: str) -> Result:
    """Run a recorded run again and compare.

    Raises:
        PipelineError: the run did not finish, or can't be restored: its commit, its changes or
            its inputs are not to be had here.
    """
    reader = Reader()
    before = reader.read(run_id)
    if before.status != "FINISHED":
        hint = "; if it has ended, `make sync` sends the rest" if before.status == "RUNNING" else ""
        raise PipelineError(
            f"run {run_id} is {before.status}; only a finished run can be compared{hint}"
        )
    with tempfile.TemporaryDirectory(prefix="reproduce-") as place:
        folder = Path(place).resolve()
        with again(before, reader, folder) as reproduction:
            return judge(before, reproduction, reader, folder)


if __name__ == "__main__":
    make_safe()
    sys.exit(main(sys.argv[1:]))
