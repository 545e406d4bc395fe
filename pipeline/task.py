"""What a task is, and which there are.

A task is one folder below `pipeline/tasks/`, and all that is known of it stands there:

    settings.py     what it is called, and the classes of its settings and facts; loads no torch
    prepare.py      from a source to splits; loads no torch
    data_report.py  what the preparation draws; loads no torch
    data.py         from splits to batches, from raw examples to inputs
    model.py        the network, its loss, its scores, its answers
    show.py         what evaluation measures and draws

The protocols below say what each of these modules has. No task imports another one; what several
share stands beside `tasks/`, as `pipeline.classification` does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, create_model

from pipeline.errors import PipelineError
from pipeline.settings import Evaluate, Prepare, Repeat

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.figures.page import Page
    from pipeline.prepared import Card, Prepared, SplitName
    from pipeline.settings import Train, Training
    from pipeline.training.batches import Batch, Batches
    from pipeline.training.hardware import Hardware
    from pipeline.training.net import Net

TASKS = Path(__file__).with_name("tasks")

M = TypeVar("M", Evaluate, Repeat)


@dataclass(frozen=True)
class About:
    """What a task is called, here and there.

    Attributes:
        data: the prepared data set: `data/<data>`, `conf/<data>/`, `prepare@<data>`.
        model: the model: `models/<model>`, `conf/<model>/`, `evaluate@<model>`.
        stage: the stage that trains it.
        title: what a report calls the model.
        registered: the registered model that its versions belong to.
        headline: the test metric that stands for the model; its 95 % interval is in
            `<headline>_low` and `<headline>_high`.
        spelt: how it stands in a sentence, if not by its name.
        unit: how it is written: a share in percent, or a plain number.
        watched: the test metrics whose change is worth a line.
        falling: the scores and test metrics that are better the lower.
        packages: what a served model needs besides torch.
    """

    data: str
    model: str
    stage: str
    title: str
    registered: str
    headline: str
    unit: Literal["share", "number"]
    watched: tuple[str, ...]
    falling: frozenset[str] = frozenset({"loss"})
    packages: tuple[str, ...] = ()
    spelt: str | None = None

    @property
    def words(self) -> str:
        """The headline as it stands in a sentence."""
        return self.spelt or self.headline.replace("_", " ")


class SettingsModule(Protocol):
    """`settings.py`."""

    ABOUT: About
    Source: type[BaseModel]
    """Of `conf/<data>/*.yaml`: where a data set comes from and how it is cut."""
    Model: Any
    """Of `conf/<model>/*.yaml`: the network; a settings class or a union of them."""
    Facts: type[BaseModel]
    """What has to be known of a data set to build a network for it; in `dataset.json` and
    `model.json`, so JSON has to hold it."""
    Train: "type[Train]"
    """Of the training stage; the field named `ABOUT.model` holds a `Model`."""
    Parts: type[BaseModel]
    """Switches and sizes of the evaluation's parts; `conf/evaluate.yaml` need not name one that has
    a default."""


class PrepareModule(Protocol):
    """`prepare.py`."""

    def prepare(self, source: Any, seed: int, limit: int | None) -> "Prepared":
        """Read a source and cut it into splits of at most `limit` rows each.

        Raises:
            PipelineError: the source is missing, malformed or too small.
        """


class DataReportModule(Protocol):
    """`data_report.py`."""

    def data_report(self, folder: Path, card: "Card", page: "Page") -> dict[str, float]:
        """Look through a prepared data set: figures, tables and findings go to `page`.

        Returns:
            Counts for tracking, by name.
        """


class DataModule(Protocol):
    """`data.py`."""

    def load(
        self,
        folder: Path,
        split: "SplitName",
        net: "Net",
        *,
        batch_size: int,
        device: "torch.device",
        seed: int = 0,
        shuffle: bool = False,
        shard: tuple[int, int] = (0, 1),
        **options: Any,
    ) -> "Batches":
        """Batches of one split; `options` are the training's `loading`.

        Raises:
            PipelineError: the split is missing or damaged.
        """

    def encode(self, raw: Sequence[Any], net: "Net") -> "dict[str, Tensor]":
        """The network's inputs for raw examples, on the CPU: the same that `load` gives.

        Raw is what evaluation reads and what a user of the served model sends.

        Raises:
            ValueError: an example is of a kind that the task does not take.
        """

    def example(self, folder: Path) -> Any:
        """One raw example of the validation split that JSON can hold."""


class ModelModule(Protocol):
    """`model.py`; it may have more than is below, and what is not there is not called.

    `save(folder, module, tokenizer)` and `load(folder, settings, facts)`, which gives what `build`
    does in eval mode, stand in place of those of `pipeline.training.net`. `carried(net)` gives
    files by the name that they get in the folder of a model which is served elsewhere, such as
    frozen weights that `save` does not write. `settle(module, forward, batches)`, called once after
    the training with batches of the validation split, sets buffers that a network's answers decide,
    such as a threshold.
    """

    def build(self, settings: Any, facts: Any) -> "tuple[nn.Module, Any]":
        """A network with its initial weights, drawn from torch's global generator; a tokenizer.

        Raises:
            PipelineError: no such network, or none that takes such data.
        """

    def loss(self, module: "Forward", batch: "Batch", settings: "Training") -> "Tensor":
        """Mean loss over a batch, a scalar; a batch of several is weighed by `batch.weight`."""

    def score(
        self, module: "Forward", batches: "Batches", settings: "Training"
    ) -> dict[str, float]:
        """Scores over a whole split, the headline among them; `settings.monitor` names one."""

    def answer(self, output: Any, net: "Net") -> list[Any]:
        """What the network says of each example, as JSON that a user can read."""


class ShowModule(Protocol):
    """`show.py`."""

    PARTS: "Mapping[str, Callable[[Page, Any], None]]"
    """What evaluation does, in this order: each part measures and draws something of the study and
    puts it on the page. One that `Parts` has a switch for can be switched off.

    The page's numbers are finite; among them are the headline, its interval and `examples`; of a
    simpler rule `baseline/<rule>/<headline>` and `baseline/<rule>/gain`. `predictions.parquet` has
    a row for each test example; its `score`, better the higher, is what versions are compared by.
    """

    def study(
        self, net: "Net", settings: "Evaluate", hardware: "Hardware", curve: list[dict[str, str]]
    ) -> Any:
        """What the parts share: a trained network, its data; the rows of its learning curve.

        Raises:
            PipelineError: the data set is missing or damaged, or not one that the network knows.
        """

    def repetition(
        self, first: "Net", second: "Net", settings: "Repeat", hardware: "Hardware"
    ) -> dict[str, float]:
        """The scores of the second of two networks of other seeds, and how it stands to the first.

        Returns:
            The headline, its interval, `examples`, and `difference` with its `p_value`; what else
            there is to say.
        """


Forward = Callable[..., Any]
"""The network as `loss` and `score` get it: computes in the training's precision, and half
precision comes out as float32."""


@dataclass(frozen=True)
class Task:
    """One task; its modules are loaded when they are first asked for."""

    name: str
    """Of the folder."""

    @property
    def settings(self) -> SettingsModule:
        """`settings.py`.

        Raises:
            PipelineError: it can't be loaded.
        """
        try:
            return self._module("settings")
        except Exception as error:
            raise PipelineError(
                f"{self}/settings.py can't be loaded ({type(error).__name__}: {error}); mend it, "
                "for every stage reads it"
            ) from error

    @property
    def about(self) -> About:
        """What it is called."""
        return self.settings.ABOUT

    @property
    def prepare(self) -> PrepareModule:
        """`prepare.py`."""
        return self._module("prepare")

    @property
    def data_report(self) -> DataReportModule:
        """`data_report.py`."""
        return self._module("data_report")

    @property
    def data(self) -> DataModule:
        """`data.py`."""
        return self._module("data")

    @property
    def model(self) -> ModelModule:
        """`model.py`."""
        return self._module("model")

    @property
    def show(self) -> ShowModule:
        """`show.py`."""
        return self._module("show")

    def __str__(self) -> str:
        return f"pipeline/tasks/{self.name}"

    def _module(self, name: str) -> Any:
        return import_module(f"pipeline.tasks.{self.name}.{name}")


def tasks() -> list[Task]:
    """All tasks, by name."""
    return [Task(file.parent.name) for file in sorted(TASKS.glob("*/settings.py"))]


def find(*, name: str = "", data: str = "", model: str = "") -> Task:
    """The task of this name, or the one whose data set or model is called so.

    Raises:
        LookupError: there is none.
    """
    for task in tasks():
        asked = ((name, task.name), (data, task.about.data), (model, task.about.model))
        if any(one and one == its for one, its in asked):
            return task
    raise LookupError(f"no task is called {name or data or model}")


def with_sources(schema: type[Prepare]) -> type[Prepare]:
    """The settings of a stage that prepares any data set: a `Source` for each of them."""
    one: Any = Literal[tuple(task.about.data for task in tasks())]
    sources: Any = {task.about.data: (task.settings.Source, ...) for task in tasks()}
    return create_model(schema.__name__, __base__=schema, modality=(one, ...), **sources)


def of_a_model(schema: type[M]) -> type[M]:
    """The settings of a stage that is about one of the models."""
    one: Any = Literal[tuple(task.about.model for task in tasks())]
    return create_model(schema.__name__, __base__=schema, model=(one, ...))


def with_parts(schema: type[Evaluate]) -> type[Evaluate]:
    """The settings of a stage that evaluates any model: the switches of all tasks."""
    each = dict.fromkeys(task.settings.Parts for task in tasks())
    # a class has to stand before those that it derives from
    bases: Any = tuple(sorted(each, key=lambda one: -len(one.__mro__)))
    parts = create_model("Parts", __base__=bases)
    return create_model(schema.__name__, __base__=schema, parts=(parts, ...))
