"""Settings of every training run: one frozen dataclass per section, one docstring per setting.

Recipes (YAML) and the command line both go through the configuration of the run's task, so both
report a wrong key or type in the same way, before anything is allocated. A task adds settings of
its own: :mod:`trainer.config.clicks` and :mod:`trainer.config.distill` have those that several
tasks share, and the task's own file has the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple

from trainer.config.parts import Registry
from trainer.config.ranges import Count, Length, Limits, NotNegative, Positive, Share, Whole
from trainer.models.poolings import POOLINGS

Width = Annotated[int, Limits(least=1, most=1 << 20)]
Parts = tuple[tuple[str, int], ...]
"""Fields that are joined into one text, each with its longest length in tokens."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The language model inside the news encoder."""

    name: str = "random"
    """Folder of a Hugging Face encoder, the encoder's name in the local Hugging Face cache (``hf
    download NAME`` puts it there; no command contacts a hub), or ``random`` for one of the sizes
    below."""
    layers: tuple[int, ...] | None = None
    """Which layers to keep, counted from 0, lowest first; all if left out. ``0 1`` makes a
    two-layer student."""
    num_layers: Annotated[int, Limits(least=1, most=4096)] = 4
    """Layers of a ``random`` backbone, before ``layers`` selects from them."""
    hidden_size: Width = 128
    """Width of a ``random`` backbone."""
    num_heads: Annotated[int, Limits(least=1, most=65_536)] = 4
    """Attention heads of a ``random`` backbone."""
    intermediate_size: Annotated[int, Limits(least=1, most=1 << 22)] = 512
    """Feed-forward width of a ``random`` backbone."""
    max_positions: Annotated[int, Limits(least=1, most=1 << 24)] = 512
    """Positions of a ``random`` backbone: its longest text in tokens."""
    hidden_dropout: Share | None = None
    """Dropout of hidden states; None keeps the backbone's own rate (0.1 for ``random``)."""
    attention_dropout: Share | None = None
    """Dropout of attention weights; None keeps the backbone's own rate (0.1 for ``random``)."""
    relative_position_bias: bool | None = None
    """Add UniLMv2's relative position bias (32 buckets up to distance 128, shared by all layers);
    None adds the bias if the backbone's weights hold its table (``tnr convert unilmv2``)."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Settings of the language model."""

    choices: ClassVar[Mapping[str, Registry]] = {}
    """Settings that choose a part of the model, each with the registry of its parts."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The language model inside the news encoder."""
    init: str | None = None
    """Start from this exported model: its news encoder, and its user encoder if it has one. The
    export's pooling, widths, text lengths and history length become the defaults; other lengths may
    be set."""
    trainable_layers: Whole | None = None
    """Train only this many top layers of the backbone (0 trains none); None trains all of it. With
    any number, the embeddings are frozen too, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(LanguageModelConfig):
    """Settings of the news encoder."""

    pooling: str = "attention"
    """How token states become one text vector: additive attention (the paper's), the mean of the
    tokens, or the state of the first token."""
    pooling_mask: bool = True
    """Leave padding out of the pooling. The released code does not leave it out (preset
    ``released``)."""
    query_dim: Width = 200
    """Width of the queries of additive attention, in the news encoder and the user encoder."""
    news_dim: Width = 256
    """Width of news and user vectors."""

    choices: ClassVar[Mapping[str, Registry]] = {"pooling": POOLINGS}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shard sets are read, and how texts are cut and batched."""

    articles: str = ""
    """Article shard set, with a token column."""
    tokens: str | None = None
    """Folder name of the token column; may be left out if the set has exactly one."""
    max_title_tokens: Length = 24
    """Longest title in tokens, special tokens included."""
    pad_to_max: bool = False
    """Pad every text to its longest allowed length instead of the longest text of its sub-batch."""
    batch_tokens: Whole = 4096
    """Tokens in one forward pass of the encoder, padding included. The texts of a micro-batch are
    sorted by length and encoded in sub-batches of this size, each padded to its own longest text:
    the same losses and gradients with less padding. The default was the fastest on a CPU; a GPU
    wants larger forward passes. 0 encodes all texts at once; so do settings under which padding
    enters a text's vector (``pad_to_max``, no ``model.pooling_mask``, or empty history slots with a
    learned vector or as in the released code)."""
    window_shards: Count = 4
    """Shuffle rows within windows of this many shards: larger windows mix better, smaller windows
    keep reads closer together (``--dry-run`` and ``tnr shards stats --order`` measure both)."""
    workers: Annotated[int, Limits(least=0, most=1024)] = 1
    """Threads that prepare batches ahead of the training; 0 makes each batch on request. The
    batches do not depend on this number."""
    check_columns: bool = True
    """Check the tensors of token, click, teacher and frozen-state columns against their checksums
    when a process first reads them: each tensor is then read whole once, at disk speed, or at some
    GB/s from memory; ``tnr shards verify`` checks more. Sizes, shapes, offsets and ids are always
    checked."""
    cache_dir: str | None = None
    """Sets at a URL: folder on a local disk for downloaded files, shared by the ranks of a node;
    None takes ``$TNR_CACHE``, or ``~/.cache/tiny-newsrec``."""
    cache_gib: Positive = 32.0
    """Sets at a URL: size limit of the cache in GiB; must hold at least the titles and the bodies
    of one window."""
    fetch_ahead: Whole = 4
    """Sets at a URL: shards whose bodies are downloaded ahead of the window that is being read."""
    fetch_attempts: Count = 8
    """Sets at a URL: attempts per file before the run ends with an error, with growing waits
    between attempts."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, with one learning rate for the backbone and one for everything else."""

    lr: Positive = 1e-4
    """Learning rate of everything outside the backbone."""
    backbone_lr: Positive | None = None
    """Learning rate of the backbone; None uses ``lr``."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    amsgrad: bool = False
    """Use Adam's AMSGrad variant (finetuning in the released code)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: Whole = 0
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: Positive | None = None
    """Clip the gradient's norm to this value; None does not clip."""


@dataclass(frozen=True, kw_only=True)
class CopiesConfig:
    """Which steps of a post-training run become teachers."""

    rule: Literal["none", "every_k", "first_m", "last_m", "list"] = "none"
    """``every_k``: every multiple of ``every``; ``first_m``: the first ``count`` multiples (the
    paper's figure); ``last_m``: the last ``count`` multiples and the final step (released code);
    ``list``: ``steps``."""
    every: Count = 500
    """K of the paper."""
    count: Count = 4
    """M of the paper."""
    steps: tuple[int, ...] = ()
    """Steps of the rule ``list``."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the task is run: batches, length, precision, checkpoints."""

    dir: str = ""
    """Run folder; holds all files of the run."""
    seed: Annotated[int, Limits(least=0, most=2**63 - 1)] = 0
    """Seed of the order, negatives, initial weights and dropout."""
    global_batch: Count = 32
    """Samples per optimizer step, over all ranks."""
    micro_batch: Count = 32
    """Samples per forward pass on one rank; gradients are accumulated up to the global batch."""
    epochs: Positive = 1.0
    """Passes over the data, unless ``max_steps`` ends the run earlier."""
    max_steps: Count | None = None
    """Largest number of optimizer steps; None sets no limit."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 compute under autocast and keep weights and optimizer state in fp32; fp16
    scales the loss and skips steps whose scaled gradient overflows. A precision that the hardware
    only emulates is many times slower than fp32; the start of the run warns of it."""
    allow_emulated: bool = False
    """Train with the preset ``cpu_bf16`` on a CPU that only emulates bf16."""
    compile: bool = False
    """Compile the backbone's layers with ``torch.compile`` (dynamic shapes): the first step comes
    later, the others are faster."""
    activation_checkpointing: bool = False
    """Keep only the input of each backbone layer and recompute the rest in the backward pass: less
    memory, about a third more computation, the same gradients."""
    deepspeed: str | None = None
    """DeepSpeed file, by path or by its name in ds_configs (``zero2``); None trains in one process
    or under DDP."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints to keep."""
    keep_every: Count | None = None
    """Also keep the checkpoints of all multiples of this step; must be a multiple of
    ``checkpoint_every``."""
    best_metric: str | None = None
    """Keep the checkpoint that is best by this metric; ``best`` names it. The metric is a name in
    ``metrics.jsonl`` such as ``train/loss``, taken at the last log line before the checkpoint. A
    run with ``validation`` uses the validation metric instead: ``valid/auc``, highest, of the step
    itself."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which value of ``best_metric`` is the best."""
    export: Literal["best", "last"] = "best"
    """Which weights a run with ``validation`` exports at its end: those of the step that validated
    best, or those of the last step. A run without ``validation`` exports the last step."""
    background_saves: bool = True
    """Write checkpoints while training goes on; training waits only for the copy of the weights in
    memory. The first process holds this copy and the optimizer's state until both are written."""
    not_finite: Literal["stop", "skip", "reload"] = "stop"
    """What to do when a loss or gradient is not finite: end the run; skip the step; or roll back to
    the last checkpoint and skip the batch that caused it."""
    not_finite_budget: Whole = 10
    """How many steps may be skipped, or how often the run may roll back, before the run ends."""
    hang_timeout_s: Positive = 1800.0
    """End the job, with every rank's stacks in ``log/``, if a rank makes no progress within a step
    for longer than this. Start-up, the first step, validations, exports and checkpoints may take
    four times as long."""
    log_every: Count = 10
    """Steps between log lines."""
    profile_steps: tuple[int, ...] = ()
    """Steps to record with ``torch.profiler``: writes a trace of each rank to ``profile/`` and a
    table of its operators to ``log/``."""
    peak_tflops: Positive | None = None
    """Peak of one device in TFLOP/s in the run's precision, for the model FLOPs utilisation; None
    uses the known peak of common GPUs, and leaves the utilisation out elsewhere."""
    copies: CopiesConfig = field(default_factory=CopiesConfig)
    """Which steps become teachers."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation during training: keep the best step, and perhaps end early."""

    every: Count = 500
    """Steps between validations; the last step is always validated."""
    metric: str = ""
    """Metric that chooses the best step (higher is better): the step's checkpoint stays, ``best``
    names it, and ``run.export`` exports it."""
    patience: Count | None = None
    """End the run after this many validations in a row without improvement; None never ends it."""
    min_delta: NotNegative = 0.0
    """How much an improvement must exceed the last one; affects only ``patience``."""


class TextCount(NamedTuple):
    """Number of texts of one length in a micro-batch."""

    texts: int
    tokens: int
    """Length of each text, special tokens included."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ABC):
    """One training run: settings of every task, from which a task derives its own configuration."""

    task: str = ""
    """Name of the task."""
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """The model that is trained."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shard sets and lengths."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Settings of Adam."""
    run: RunConfig = field(default_factory=RunConfig)
    """Batches, length, checkpoints."""

    reads_clicks: ClassVar[bool] = False
    """Whether an epoch counts clicks, not articles."""
    batch_settings: ClassVar[tuple[str, ...]] = ()
    """Dotted names of settings that determine, with ``run.micro_batch``, how many texts a
    micro-batch has."""

    @property
    def locations(self) -> tuple[str, ...]:
        """Folders or URLs of the shard sets of the training data."""
        return (self.data.articles,)

    @property
    def takes_whole_batch(self) -> bool:
        """Whether the loss needs the whole global batch in one forward pass."""
        return False

    @property
    def validates(self) -> ValidationConfig | None:
        """Settings of the validation during training; None without validation."""
        return None

    @property
    @abstractmethod
    def texts(self) -> Sequence[Parts]:
        """Texts that the encoder reads, each of one field or several joined fields."""

    @abstractmethod
    def most_texts(self, samples: int) -> Sequence[TextCount]:
        """Return the number and length of the largest texts in a micro-batch.

        Every text is different and of the longest length.

        Args:
            samples: Samples in the micro-batch.
        """

    def check(self) -> None:  # noqa: B027  # a task may have nothing to refuse
        """Refuse settings of the task that contradict each other.

        Raises:
            ConfigError: Settings contradict each other; names the settings and the remedy.
        """


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(TrainConfig):
    """Configuration of a run that trains a news encoder, alone or with layers on top."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
