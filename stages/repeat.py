"""Train a model once more, with another seed, and compare the two: what is noise?

python -m stages.repeat model=cnn again=1
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline import conf_files
from pipeline.checks import DIGEST, measured
from pipeline.errors import PipelineError
from pipeline.files import digest, write_json
from pipeline.prepared import read_card
from pipeline.settings import Repeat
from pipeline.stage import Context, run, stage
from pipeline.task import find, of_a_model
from pipeline.training import net as nets


@stage("repeat", lambda: of_a_model(Repeat))
def main(settings: Repeat, context: Context) -> float:
    """The body; returns the headline of the test metrics."""
    if settings.again == settings.seed:
        raise PipelineError(
            f"report.seeds has {settings.again}, which is common.seed: that model is there "
            "already; leave it out"
        )
    data, weights, again = (Path(p) for p in (settings.data, settings.weights, settings.trained))
    run = context.run
    _train(settings, context.written.conceal)
    run.input(data, name="data", context="testing")
    run.input(weights, name="model")
    run.input(again, name="repeated")
    net = nets.load(weights)
    numbers = net.task.show.repetition(net, nets.load(again), settings, context.hardware)
    numbers = measured(net.task, "repetition", numbers, "difference", "p_value")
    test = read_card(data).splits["test"].sha256
    write_json(Path(settings.metrics), numbers | {DIGEST: test})
    run.output(Path(settings.metrics))

    logged = {f"test/{name}": value for name, value in numbers.items()}
    run.metrics(logged)
    run.metrics(logged, target=f"trained:{digest(again / nets.WEIGHTS)}")
    run.tags({"summary": f"{settings.model}/seed-{settings.again}"})
    # MLflow has the model; what is kept here are the numbers.
    shutil.rmtree(again)
    _curve(settings).unlink()
    with suppress(OSError):  # of what is not the training's it has more
        again.parent.rmdir()
    headline = net.task.about.headline
    print(
        f"seed {settings.again}: test {headline} {numbers[headline]:.4f}, "
        f"{numbers['difference']:+.4f} against seed {settings.seed}"
    )
    return numbers[headline]


def _curve(settings: Repeat) -> Path:
    """Beside the model."""
    return Path(settings.trained).parent / f"{find(model=settings.model).about.stage}.csv"


def _train(settings: Repeat, conceal: Callable[[str], str]) -> None:
    """Run the model's own training stage with the other seed, as its process.

    It logs what its command line says, so that has the references of `conceal`.
    """
    name = find(model=settings.model).about.stage
    values = {
        "seed": settings.again,
        "data": conceal(settings.data),
        "output": conceal(settings.trained),
        "curve": conceal(str(_curve(settings))),
        "device": settings.device,
        "precision": settings.precision,
        "threads": settings.threads,
        "deterministic": settings.deterministic,
        "profile.max_steps": settings.profile.max_steps,
        "tracking.enabled": settings.tracking.enabled,
    }
    overrides = [f"{key}={conf_files.literal(value)}" for key, value in values.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{name}", *overrides, *map(conceal, settings.overrides)],
        cwd=conf_files.ROOT,
    )
    try:
        status = process.wait()
    except BaseException:
        process.terminate()  # it saves its state, and the next try continues there
        process.wait()
        raise
    if status < 0:
        raise PipelineError(f"{name} with seed {settings.again} was ended by signal {-status}")
    if status:
        raise SystemExit(status)  # it has said why


if __name__ == "__main__":
    run(main)
