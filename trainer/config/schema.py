"""What every training run can be told: one frozen dataclass a section, one docstring a setting.

A recipe (YAML) and the command line both go through the configuration of the run's task, so a wrong
key or a wrong type is found in the same way in both, before anything is allocated. A task adds the
settings that it alone reads: :mod:`trainer.config.clicks` and :mod:`trainer.config.distill` have
those that several tasks share, and the task's own file the rest.
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
    """Folder of a Hugging Face encoder, its name in the local Hugging Face cache (``hf download
    NAME`` puts it there; no command asks a hub), or ``random`` for one of the sizes below."""
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
    """Positions of a ``random`` backbone: the longest text in tokens it can read."""
    hidden_dropout: Share | None = None
    """Dropout of hidden states; None keeps the backbone's own (0.1 for ``random``)."""
    attention_dropout: Share | None = None
    """Dropout of attention weights; None keeps the backbone's own (0.1 for ``random``)."""
    relative_position_bias: bool | None = None
    """Add UniLMv2's relative position bias (32 buckets up to distance 128, shared by all layers);
    None adds it where the backbone's weights hold its table (``tnr convert unilmv2``)."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """The language model."""

    choices: ClassVar[Mapping[str, Registry]] = {}
    """Settings that choose a part of the model, and among which parts."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The language model inside the news encoder."""
    init: str | None = None
    """Start from this exported model: its news encoder, and its user encoder if it has one. Its
    pooling, widths, text and history lengths are then the defaults; other lengths may be set."""
    trainable_layers: Whole | None = None
    """Train only this many top layers of the backbone (0: none of it); None trains all of it.
    Whenever it is a number, the embeddings are frozen too, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(LanguageModelConfig):
    """The news encoder."""

    pooling: str = "attention"
    """How token states become one text vector: additive attention (the paper's), the mean of the
    tokens, or the state of the first one."""
    pooling_mask: bool = True
    """Leave padding out of the pooling. The released code does not (method preset ``released``)."""
    query_dim: Width = 200
    """Width of the queries of additive attention, in the news and the user encoder."""
    news_dim: Width = 256
    """Width of news and user vectors."""

    choices: ClassVar[Mapping[str, Registry]] = {"pooling": POOLINGS}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shard sets are read, and how texts are cut and batched."""

    articles: str = ""
    """Article shard set, with a token column."""
    tokens: str | None = None
    """Folder name of the token column; may be left out where the set has exactly one."""
    max_title_tokens: Length = 24
    """Longest title in tokens, special tokens included."""
    pad_to_max: bool = False
    """Pad every text to its longest length instead of the longest of its sub-batch."""
    batch_tokens: Whole = 4096
    """Tokens of one forward of the encoder, padding included. The texts of a micro-batch are sorted
    by length and encoded in sub-batches of so many, each padded to its own longest text: the same
    losses and gradients with less padding. The default is what served best on a CPU; a GPU wants
    larger forwards. 0 encodes them all at once, as do settings under which
    padding takes part in a text's vector (``pad_to_max``, no ``model.pooling_mask``, a learned
    vector or the released code's way with empty history slots)."""
    window_shards: Count = 4
    """Rows are shuffled within windows of this many shards: larger mixes better, smaller reads
    nearer (``--dry-run`` and ``tnr shards stats --order`` measure both)."""
    workers: Annotated[int, Limits(least=0, most=1024)] = 1
    """Threads that make batches ahead of the training; 0 makes each when it is asked for. The
    batches are the same whatever the number."""
    check_columns: bool = True
    """Check the tensors of token, click, teacher and frozen-state columns against their checksums
    when a process first touches them: each is then read whole once, at the speed of the disk or
    some GB/s from memory; ``tnr shards verify`` checks more. Sizes, shapes, offsets and ids are
    checked whatever is set here."""
    cache_dir: str | None = None
    """Sets at a URL: folder on a local disk for what is brought over, shared by the ranks of a
    node; None takes ``$TNR_CACHE``, or ``~/.cache/tiny-newsrec``."""
    cache_gib: Positive = 32.0
    """Sets at a URL: GiB that the cache may hold, titles and the bodies of a window at least."""
    fetch_ahead: Whole = 4
    """Sets at a URL: shards whose bodies are brought over beyond the window that is read."""
    fetch_attempts: Count = 8
    """Sets at a URL: tries a file before the run ends with an error, with growing waits between."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, with one learning rate for the backbone and one for everything else."""

    lr: Positive = 1e-4
    """Learning rate of everything outside the backbone."""
    backbone_lr: Positive | None = None
    """Learning rate of the backbone; None takes ``lr``."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    amsgrad: bool = False
    """Adam's AMSGrad variant (finetuning in the released code)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    warmup_steps: Whole = 0
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: Positive | None = None
    """Clip the gradient's norm to this; None does not clip."""


@dataclass(frozen=True, kw_only=True)
class CopiesConfig:
    """Which steps of a post-training run become teachers."""

    rule: Literal["none", "every_k", "first_m", "last_m", "list"] = "none"
    """``every_k``: every multiple of ``every``; ``first_m``: the first ``count`` of them (the
    paper's figure); ``last_m``: the last ``count`` of them and the final step (released code);
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
    """Run folder; everything about the run lives in it."""
    seed: Annotated[int, Limits(least=0, most=2**63 - 1)] = 0
    """Order, negatives, initial weights and dropout all follow from it."""
    global_batch: Count = 32
    """Samples an optimizer step, over all ranks."""
    micro_batch: Count = 32
    """Samples a forward pass on one rank; gradients are accumulated up to the global batch."""
    epochs: Positive = 1.0
    """Passes over the data, unless ``max_steps`` ends it before."""
    max_steps: Count | None = None
    """Optimizer steps at most."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 compute under autocast and keep weights and optimizer in fp32; fp16 scales the
    loss, and leaves out the steps whose scaled gradient overflows. What the hardware only emulates
    is many times slower than fp32, and is said at the start."""
    allow_emulated: bool = False
    """Train with the preset ``cpu_bf16`` on a CPU that only emulates bf16."""
    compile: bool = False
    """Compile the backbone's layers with ``torch.compile`` (dynamic shapes): slower to the first
    step, faster after it."""
    activation_checkpointing: bool = False
    """Keep only the input of each backbone layer and compute the rest again in the backward pass:
    less memory, about a third more computation, the same gradients."""
    deepspeed: str | None = None
    """DeepSpeed file, by path or by its name in ds_configs (``zero2``); None runs plainly or under
    DDP."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; the last step always makes one."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints stay."""
    keep_every: Count | None = None
    """Checkpoints of the multiples of this stay for good, beside the newest; a multiple of
    ``checkpoint_every``."""
    best_metric: str | None = None
    """The checkpoint that was best by this metric stays, and ``best`` names it: a name of
    ``metrics.jsonl`` such as ``train/loss``, taken at the last log line before the checkpoint. A
    run with ``validation`` goes by that: ``valid/auc``, highest, of the very step."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which value of ``best_metric`` is the best."""
    export: Literal["best", "last"] = "best"
    """Which weights a run with ``validation`` exports at its end: those of the step that validated
    best, or the last. A run without exports the last."""
    background_saves: bool = True
    """Write checkpoints while training goes on; training waits only for the copy of the weights in
    memory, which the first process holds, with the optimizer's state, until it is written."""
    not_finite: Literal["stop", "skip", "reload"] = "stop"
    """What a loss or gradient that is not finite does: end the run; leave the step out; or go back
    to the last checkpoint and leave out the batch that did it."""
    not_finite_budget: Whole = 10
    """How many steps may be left out, or how often the run may go back, before it ends."""
    hang_timeout_s: Positive = 1800.0
    """A rank that makes no progress within a step for longer than this ends the job, with every
    rank's stacks in ``log/``. Start-up, the first step, validations, exports and checkpoints may
    take four times as long."""
    log_every: Count = 10
    """Steps between log lines."""
    profile_steps: tuple[int, ...] = ()
    """Steps that are recorded by ``torch.profiler``: a trace of each rank in ``profile/`` and a
    table of its operators in ``log/``."""
    peak_tflops: Positive | None = None
    """Peak of one device in TFLOP/s in the run's precision, for the model FLOPs utilisation; None
    takes that of well-known GPUs, and leaves the utilisation out elsewhere."""
    copies: CopiesConfig = field(default_factory=CopiesConfig)
    """Which steps become teachers."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """When a run is measured while it trains: the best step stays, and a run that no longer
    improves may end early."""

    every: Count = 500
    """Steps between validations; the last step always has one."""
    metric: str = ""
    """What chooses the best step, highest first: its checkpoint stays, ``best`` names it, and
    ``run.export`` exports it."""
    patience: Count | None = None
    """End the run after so many validations in a row without an improvement; None never does."""
    min_delta: NotNegative = 0.0
    """How much more than the last improvement is the next one; for ``patience`` alone."""


class TextCount(NamedTuple):
    """Texts of one length in a micro-batch."""

    texts: int
    tokens: int
    """Of each, special tokens included."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ABC):
    """One training run: what every task has. A task derives its own configuration from this one."""

    task: str = ""
    """Name of the task."""
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    """The model that is trained."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shard sets and lengths."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Adam."""
    run: RunConfig = field(default_factory=RunConfig)
    """Batches, length, checkpoints."""

    reads_clicks: ClassVar[bool] = False
    """Whether the units of an epoch are clicks, and not articles."""
    batch_settings: ClassVar[tuple[str, ...]] = ()
    """Settings beside ``run.micro_batch`` that say how many texts a micro-batch has, by dotted
    name."""

    @property
    def locations(self) -> tuple[str, ...]:
        """Folders or URLs of the shard sets that are trained on."""
        return (self.data.articles,)

    @property
    def takes_whole_batch(self) -> bool:
        """Whether the loss needs the whole global batch in one forward pass."""
        return False

    @property
    def validates(self) -> ValidationConfig | None:
        """When the run is measured while it trains; None where it is not."""
        return None

    @property
    @abstractmethod
    def texts(self) -> Sequence[Parts]:
        """The texts that the encoder reads: each one field, or several joined."""

    @abstractmethod
    def most_texts(self, samples: int) -> Sequence[TextCount]:
        """The most text that a micro-batch can have: every text different and longest.

        Args:
            samples: Of the micro-batch.
        """

    def check(self) -> None:  # noqa: B027  # a task may have nothing to refuse
        """Refuse settings of the task that contradict each other.

        Raises:
            ConfigError: Naming the settings and the remedy.
        """


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(TrainConfig):
    """A run that trains a news encoder, alone or with more on top of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
