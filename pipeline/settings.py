"""The settings that all stages or all trainings share: types, ranges, what they mean.

`conf/` and `params.yaml` hold values; this file and those of the tasks say which are allowed. The
composed config of a stage is checked against its class before anything is loaded or allocated.
Library functions take the small classes (`Training`, `Optimizer`, …), never a whole stage's config.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Fraction = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Output:
    """Marks a setting that names a place which the stage replaces.

    Attributes:
        kind: what the stage puts there.
        mark: what every such output has: a folder a file of this name, a file these words near its
            start. Without it, what lies there is not the stage's own.
    """

    kind: Literal["folder", "file"]
    mark: str


@dataclass(frozen=True)
class Input:
    """Marks a setting that names a file or folder which the stage reads."""


InputPath = Annotated[str, Input()]
Trained = Annotated[str, Output("folder", "model.json")]
Metrics = Annotated[str, Output("file", '_high": ')]  # of the headline's interval


class Settings(BaseModel):
    """Base: unknown keys are refused, types are not coerced, values don't change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Profile(Settings):
    """How much of the work is done: `tiny` caps it for CI, `full` does not."""

    max_examples: PositiveInt | None
    """Rows per prepared split, at most."""
    max_steps: PositiveInt | None
    """Optimizer steps of one training, at most."""


class Tracking(Settings):
    """What MLflow gets; nothing here changes a result."""

    enabled: bool
    """Without it nothing is logged and mlflow is not imported."""
    experiment: Annotated[str, Field(min_length=1)]
    """MLflow experiment that the runs are put in."""
    flush_seconds: Annotated[float, Field(gt=0)]
    """How long the end of a stage waits for a store that does not answer."""
    system_seconds: Annotated[float, Field(gt=0)]
    """Interval of the system metrics (CPU, memory, GPU)."""
    promote: bool
    """Whether an evaluation may move the alias `champion` to the version it registers."""


class Stage(Settings):
    """What every stage has."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    """Decides the splits, the initial weights, the order of the data, augmentation and dropout."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps|xpu(:\d+)?)$")]
    """`auto` takes cuda, then xpu, then mps, then the CPU; a named one must be there and usable."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    """`auto` is bf16 where the device computes in it, else fp16 on tensor cores, else fp32.

    `tf32` is fp32 but for products, which keep ten bits of the mantissa. It and fp16 need cuda.
    """
    threads: Annotated[int, Field(gt=0, le=1024)] | None
    """CPU threads of torch; null takes the number of usable cores. Results depend on it."""
    deterministic: bool
    """Only operations that repeat to the bit; one without is an error, on MPS a warning."""
    profile: Profile
    tracking: Tracking


# prepare


class Source(Settings):
    """Where a data set comes from and how it is cut."""

    name: Annotated[str, Field(min_length=1)]
    validation: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the examples, or of their speakers, in the validation split."""


class Prepare(Stage):
    """`stages.prepare`: a source becomes one prepared data set."""

    modality: str
    """Which data set to prepare; the source of each is a field of that name."""
    output: Annotated[str, Output("folder", "dataset.json")]
    """Folder of the prepared data set."""
    plots: Annotated[str, Output("folder", "findings.json")]
    """Folder of the data report: balance, sizes, duplicates, a sheet of samples."""


# training


class Optimizer(Settings):
    """How weights move."""

    name: Literal["adamw", "muon"]
    """AdamW (Loshchilov & Hutter 2019) moves all; or Muon (Jordan et al. 2024) matrices and
    filters, at the same rate, and AdamW the rest."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decoupled; not applied to biases and norms."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class Training(Settings):
    """The loop, for every model."""

    epochs: PositiveInt
    batch_size: PositiveInt
    """Examples per forward pass and process."""
    accumulate: PositiveInt
    """Batches per optimizer step (gradient accumulation)."""
    schedule: Literal["linear", "cosine", "constant"]
    """Learning rate after the warm-up: down to zero on a line or a half cosine, or constant."""
    warmup: Fraction
    """Share of the steps in which the learning rate rises from zero."""
    clip_norm: Annotated[float, Field(gt=0)] | None
    """Gradients are scaled down to this global norm."""
    patience: PositiveInt | None
    """Early stopping: epochs without a better validation metric; null never stops."""
    monitor: str
    """Validation score that decides the best checkpoint."""
    log_every: PositiveInt
    """Steps between two points of the training loss."""
    save_minutes: Annotated[float, Field(gt=0)]
    """Minutes between two saves of the training state, at most; epochs save, too."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None
    """Mode of `torch.compile`; all but `default` record CUDA graphs, for each shape of a batch
    anew. Null compiles nothing."""


class Train(Stage):
    """What the training stages share; each adds the settings of its model."""

    data: InputPath
    """Folder of the prepared data set."""
    output: Trained
    """Folder of the trained model."""
    curve: Annotated[str, Output("file", "epoch,step,lr,train_loss,")]
    """Table of the learning curve."""
    optimizer: Optimizer
    training: Training

    @property
    def loading(self) -> dict[str, Any]:
        """What the task's `load` is told besides."""
        return {}


class Evaluate(Stage):
    """`stages.evaluate`: the test split, once."""

    model: str
    """Which of the trained models."""
    data: InputPath
    weights: InputPath
    """Folder of the trained model."""
    curve: InputPath
    metrics: Metrics
    """JSON of the test metrics."""
    plots: Annotated[str, Output("folder", "predictions.parquet")]
    """Folder of tables and figures."""
    batch_size: PositiveInt
    mistakes: PositiveInt
    """How many mistakes the sheet shows, the most confident first."""
    parts: Any
    """Switches and sizes of what is measured and drawn."""


class Repeat(Stage):
    """`stages.repeat`: the same training with another seed, set beside the model."""

    model: str
    """Which of the trained models."""
    again: Annotated[int, Field(ge=0, lt=2**31)]
    """The other seed; the prepared data stays as it is."""
    data: InputPath
    weights: InputPath
    """Folder of the trained model."""
    overrides: list[str]
    """Further values for the training stage, such as `optimizer.lr=0.01`."""
    trained: Trained
    """Folder of the model while it is compared; it and its learning curve are then removed."""
    metrics: Metrics
    """JSON of its test metrics and of the comparison."""
    batch_size: PositiveInt
    compared: Annotated[int, Field(gt=1)]
    """Test examples that the stages of the two networks are compared on, at most."""


class Report(Stage):
    """The settings of `stages.report`."""

    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]]
    """Seeds besides `common.seed` that every model is trained with too; DVC's `repeat` does it."""
    data: Annotated[dict[str, str], Input()]
    """Name of each model, in the order to show them, and the folder of its data set."""
    metrics: InputPath
    """Folder of the test metrics; `seeds/<model>-<seed>.json` below it are those of other seeds."""
    plots: InputPath
    """Folder of each model's tables and figures."""
    data_plots: Annotated[str | None, Input()]
    """Folder of each data set's tables and figures; null leaves them out."""
    models: InputPath
    """Folder of the trained models."""
    html: Annotated[str, Output("file", "<title>What was learnt</title>")]
    """The report as one self-contained page."""
    markdown: Annotated[str, Output("file", "# What was learnt, and is it any good?")]
    """The report for a pull request; its images are links into `plots`."""
