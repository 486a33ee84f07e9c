"""What a training run can be told: one frozen dataclass a section, one docstring a field.

A recipe (YAML) and the command line both go through this schema, so a wrong key or a wrong type is
found in the same way in both, before anything is allocated. Checks that need more than one section
live in :mod:`trainer.config.validate`.
"""

from dataclasses import dataclass, field
from typing import Literal

TaskName = Literal["post_train", "post_train_distill", "finetune", "finetune_distill"]
TextField = Literal["title", "abstract", "body", "category"]
Pooling = Literal["attention", "mean", "cls"]
UserEncoder = Literal["additive", "nrms", "last_k_mean"]
HistoryPadding = Literal["mask", "learned"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The language model inside the news encoder."""

    name: str = "random"
    """Folder of a Hugging Face encoder, its name in the local Hugging Face cache (``hf download
    NAME`` puts it there; no command asks a hub), or ``random`` for one of the sizes below."""
    layers: tuple[int, ...] | None = None
    """Which layers to keep, counted from 0, lowest first; all if left out. ``0 1`` makes a
    two-layer student."""
    num_layers: int = 4
    """Layers of a ``random`` backbone, before ``layers`` selects from them."""
    hidden_size: int = 128
    """Width of a ``random`` backbone."""
    num_heads: int = 4
    """Attention heads of a ``random`` backbone."""
    intermediate_size: int = 512
    """Feed-forward width of a ``random`` backbone."""
    max_positions: int = 512
    """Positions of a ``random`` backbone: the longest text in tokens it can read."""
    hidden_dropout: float | None = None
    """Dropout of hidden states; None keeps the backbone's own (0.1 for ``random``)."""
    attention_dropout: float | None = None
    """Dropout of attention weights; None keeps the backbone's own (0.1 for ``random``)."""
    relative_position_bias: bool | None = None
    """Add UniLMv2's relative position bias (32 buckets up to distance 128, shared by all layers);
    None adds it where the backbone's weights hold its table (``tnr convert unilmv2``)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The news encoder and, in the click tasks, the user encoder."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The language model inside the news encoder."""
    init: str | None = None
    """Start from this exported model: its news encoder, and its user encoder if it has one. Its
    pooling, widths, text and history lengths are then the defaults; other lengths may be set."""
    pooling: Pooling = "attention"
    """How token states become one text vector."""
    pooling_mask: bool = True
    """Leave padding out of the pooling. The released code does not (method preset ``released``)."""
    query_dim: int = 200
    """Width of the queries of additive attention, in the news and the user encoder."""
    news_dim: int = 256
    """Width of news and user vectors."""
    user_encoder: UserEncoder = "additive"
    """How clicked articles become a user: additive attention over the history (the paper's), the
    same after self-attention among the articles (NRMS), or the mean of the last ``user_last_k``
    clicked articles, which learns nothing but the vector of a user without any."""
    user_heads: int = 16
    """Self-attention heads of the NRMS user encoder; each is ``news_dim / user_heads`` wide."""
    user_last_k: int = 10
    """Most recent clicks that ``last_k_mean`` takes the mean of, at most ``data.history_length``.
    Earlier ones are not read, nor encoded."""
    history_padding: HistoryPadding = "mask"
    """Empty history slots: left out, or a learned vector that takes part while training (released
    code). A user without any history is the learned vector with ``mask``, in training and in use
    alike; with ``learned`` it is that vector in training, and zero in use, where all candidates
    score 0."""
    trainable_layers: int | None = None
    """Train only this many top layers of the backbone (0: none of it); None trains all of it.
    Whenever it is a number, the embeddings are frozen too, as in the paper."""
    frozen_states: Literal["off", "float16", "float32"] = "off"
    """Click tasks whose ``trainable_layers`` leaves layers frozen: read what the frozen layers say
    about a text from a column of the article set, stored in this type, instead of computing it at
    every step. The column is filled when a run first needs it, by all its ranks, and serves every
    run whose embeddings and frozen layers are the same, whatever is above them. It takes tokens x
    width x bytes: MIND's 101,527 titles of 14 tokens on average, 768 wide in float16, 2.2 GB.
    Of a set at a URL it is filled in ``data.cache_dir`` on each node, where it stays: it is not
    counted in ``data.cache_gib``.
    Frozen layers are then without dropout; without the column they have it. float32 gives the same
    losses and gradients otherwise; float16 halves the column and rounds states to 11 bits."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shard sets are read, and how texts and impressions are cut."""

    articles: str = ""
    """Article shard set, with a token column."""
    clicks: str | None = None
    """Impression shard set to train on (click tasks)."""
    clicks_since: str | None = None
    """Train on the clicks from this date or time on (``2019-11-09``, ``2019-11-09T06:00:00``); None
    begins with the log. UTC: MIND's times have no zone, and are taken as UTC."""
    clicks_until: str | None = None
    """Train on the clicks before this date or time, itself not included; None ends with the log.
    ``2019-11-14`` leaves MINDlarge_train's last day to ``validation``. Clicks without a time are
    left out where there is a bound."""
    tokens: str | None = None
    """Folder name of the token column; may be left out where the set has exactly one."""
    news_text: tuple[TextField, ...] = ("title",)
    """Click tasks: what the encoder reads of an article, joined into one text in this order, each
    field cut to its own length (``max_..._tokens``); one that an article lacks is left out. The
    token column must store them (``tnr shards tokenize --fields``). ``category`` is the words of
    category and subcategory. Post-training matches titles with bodies whatever is set here."""
    max_title_tokens: int = 24
    """Longest title in tokens, special tokens included."""
    max_abstract_tokens: int = 64
    """Longest abstract in tokens, special tokens included."""
    max_body_tokens: int = 512
    """Longest body in tokens, special tokens included."""
    max_category_tokens: int = 10
    """Longest category in tokens, special tokens included."""
    pad_to_max: bool = False
    """Pad every text to its longest length instead of the longest of its sub-batch."""
    batch_tokens: int = 4096
    """Tokens of one forward of the encoder, padding included. The texts of a micro-batch are sorted
    by length and encoded in sub-batches of so many, each padded to its own longest text: the same
    losses and gradients with less padding. The default is what served best on a CPU; a GPU wants
    larger forwards. 0 encodes them all at once, as do settings under which
    padding takes part in a text's vector (``pad_to_max``, no ``model.pooling_mask``, a learned
    vector or the released code's way with empty history slots)."""
    num_negatives: int = 9
    """Negatives a sample: titles of the whole corpus in post-training, in finetuning candidates of
    the same impression whose article was not clicked in it. Each click of an impression is a sample
    with negatives of its own."""
    negatives_from: Literal["corpus", "window"] = "corpus"
    """Post-training only: draw negatives from the whole corpus, or from the ``window_shards``
    shards that the sample is in. The window needs no other shard at hand, but is less diverse: at
    2 M articles in shards of 4,096, the negatives of 200 global batches of 32 are 15,900 different
    articles of 4 shards instead of 56,800 of all 489. They are harder to tell apart only where
    neighbours in the set are alike; in a set in random order they are not (measured)."""
    static_negatives: bool = False
    """Draw a sample's negatives once for all epochs (released code) instead of anew in every
    epoch."""
    in_batch_negatives: bool = False
    """Post-training only: the titles of the other samples of the global batch are the negatives."""
    history_length: int = 50
    """Most recent clicks of a user that are read; sets keep them oldest first (``tnr shards build
    --history-order``)."""
    user_block: int = 1
    """Click tasks only: so many clicks of one user at most come together in the order, as far as
    ``window_shards`` holds them; 1 shuffles every click by itself. They share the user's history,
    so a batch names fewer distinct titles and costs less; but a batch of n clicks in blocks of k
    tells of about n / k users, so its gradient is noisier. Every click still comes once an epoch,
    and the blocks are shuffled. On a made-up log with MIND's lengths a batch of 32 in blocks of up
    to 8 has 9 users and 360 distinct titles instead of 32 and 860; ``--dry-run`` says it of any
    log. Where a user's clicks are spread over the whole log, as in MIND, ``window_shards`` must
    hold all of it (any number from that of its shards on)."""
    share_titles: Literal["rank", "all", "auto"] = "rank"
    """Click tasks over several ranks: each rank encodes the titles that its own clicks name
    (``rank``); or the distinct titles that the clicks of all ranks name at the same time are dealt
    out, each is encoded on one rank, and the vectors are gathered with their gradients (``all``):
    the same losses and gradients without dropout, fewer titles, as many of like lengths on every
    rank, for two exchanges of vectors a forward pass. It pays with many ranks and popular titles:
    ``--dry-run`` says how many are left. ``auto`` shares where at most 90% are, counted in batches
    of the first epoch; the start of a run says what it is."""
    window_shards: int = 4
    """Rows are shuffled within windows of this many shards: larger mixes better, smaller reads
    nearer (``--dry-run`` and ``tnr shards stats --order`` measure both)."""
    workers: int = 1
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
    cache_gib: float = 32.0
    """Sets at a URL: GiB that the cache may hold, titles and the bodies of a window at least."""
    fetch_ahead: int = 4
    """Sets at a URL: shards whose bodies are brought over beyond the window that is read."""
    fetch_attempts: int = 8
    """Sets at a URL: tries a file before the run ends with an error, with growing waits between."""

    @property
    def news_parts(self) -> tuple[tuple[str, int], ...]:
        """Fields of ``news_text``, each with its longest length in tokens."""
        return tuple((name, int(getattr(self, f"max_{name}_tokens"))) for name in self.news_text)


@dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """The M teachers of a distillation, in order."""

    models: tuple[str, ...] = ()
    """Exported teacher models (folders)."""
    source: Literal["stored", "live"] = "stored"
    """``stored`` reads the columns of ``tnr teachers cache``; ``live`` runs every teacher at every
    step (the oracle of the tests and the yardstick of the benchmark)."""
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """How the columns to read are stored (``tnr teachers cache --dtype``)."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """How the columns to read were computed (``tnr teachers cache --compute``)."""
    logits: Literal["computed", "stored"] = "computed"
    """Stage I: score a body's titles with the teachers' vectors, or read the scores that ``tnr
    teachers logits`` has stored of every epoch's negatives, ``1 + N`` a sample. That saves
    something where ``loss.embedding`` is 0: no vectors are read, no rows but the bodies' own."""
    follow: bool = False
    """Start while the columns are being filled: a batch that needs a cell which is not there yet
    waits for it, and says so. The batches are those of a run that started later. Articles are drawn
    from everywhere unless ``data.negatives_from`` is ``window``, so other runs wait for almost all
    cells. A run that waits answers a signal to stop once the cell has come."""
    follow_timeout_s: float = 900.0
    """With ``follow``: no new cell of any teacher for so long ends the run with an error; less than
    ``run.hang_timeout_s``."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms of the loss, and the switches between the paper and its released
    code."""

    target: float = 1.0
    """Weight of the cross-entropy with the true label."""
    distill: float = 1.0
    """Weight of the cross-entropy with the teachers' soft label."""
    embedding: float = 1.0
    """Weight of the distance between projected teacher vectors and the student's."""
    temperature: float = 1.0
    """T_DP and T_FT of the paper."""
    temperature_squared: bool = True
    """Multiply the distillation loss by the temperature squared (paper; the released code does
    not)."""
    shared_projection: bool = False
    """Stage II: one projection a teacher for news and user vectors (released code) instead of
    two."""
    padded_slots: bool = False
    """Stage II: empty history slots take part in the embedding loss (released code)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, with one learning rate for the backbone and one for everything else."""

    lr: float = 1e-4
    """Learning rate of everything outside the backbone."""
    backbone_lr: float | None = None
    """Learning rate of the backbone; None takes ``lr``."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    amsgrad: bool = False
    """Adam's AMSGrad variant (finetuning in the released code)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this; None does not clip."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Measuring a click task on held-out impressions while it trains: the best step stays, and a
    run that no longer improves may end early.

    The numbers are those of ``tnr evaluate`` on the step's export, in bf16 where the run is, else
    in fp32. All ranks take part; with ZeRO-3 each holds the whole model meanwhile. An improvement
    is saved at once, whatever ``run.checkpoint_every`` says.
    """

    clicks: str | None = None
    """Labelled impression set over ``data.articles``; None validates nothing. It may be
    ``data.clicks`` itself, with bounds that have no impression in common."""
    since: str | None = None
    """Validate on the impressions from this date or time on; see ``data.clicks_since``."""
    until: str | None = None
    """Validate on the impressions before this date or time, itself not included."""
    max_impressions: int | None = None
    """Take at most so many of them, evenly over the log and always the same ones; None takes all.
    """
    every: int = 500
    """Steps between validations; the last step always has one."""
    metric: Literal["auc", "mrr", "ndcg5", "ndcg10"] = "auc"
    """Which of MIND's metrics, highest first, chooses the best step: its checkpoint stays, ``best``
    names it, and ``run.export`` exports it."""
    patience: int | None = None
    """End the run after so many validations in a row without an improvement; None never does."""
    min_delta: float = 0.0
    """How much more than the last improvement is the next one; for ``patience`` alone."""


@dataclass(frozen=True, kw_only=True)
class CopiesConfig:
    """Which steps of a post-training run become teachers."""

    rule: Literal["none", "every_k", "first_m", "last_m", "list"] = "none"
    """``every_k``: every multiple of ``every``; ``first_m``: the first ``count`` of them (the
    paper's figure); ``last_m``: the last ``count`` of them and the final step (released code);
    ``list``: ``steps``."""
    every: int = 500
    """K of the paper."""
    count: int = 4
    """M of the paper."""
    steps: tuple[int, ...] = ()
    """Steps of the rule ``list``."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the task is run: batches, length, precision, checkpoints."""

    dir: str = ""
    """Run folder; everything about the run lives in it."""
    seed: int = 0
    """Order, negatives, initial weights and dropout all follow from it."""
    global_batch: int = 32
    """Samples an optimizer step, over all ranks."""
    micro_batch: int = 32
    """Samples a forward pass on one rank; gradients are accumulated up to the global batch."""
    epochs: float = 1.0
    """Passes over the data, unless ``max_steps`` ends it before."""
    max_steps: int | None = None
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
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always makes one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    keep_every: int | None = None
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
    not_finite_budget: int = 10
    """How many steps may be left out, or how often the run may go back, before it ends."""
    hang_timeout_s: float = 1800.0
    """A rank that makes no progress within a step for longer than this ends the job, with every
    rank's stacks in ``log/``. Start-up, the first step, validations, exports and checkpoints may
    take four times as long."""
    log_every: int = 10
    """Steps between log lines."""
    profile_steps: tuple[int, ...] = ()
    """Steps that are recorded by ``torch.profiler``: a trace of each rank in ``profile/`` and a
    table of its operators in ``log/``."""
    peak_tflops: float | None = None
    """Peak of one device in TFLOP/s in the run's precision, for the model FLOPs utilisation; None
    takes that of well-known GPUs, and leaves the utilisation out elsewhere."""
    copies: CopiesConfig = field(default_factory=CopiesConfig)
    """Which steps become teachers."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: a task, its model, its data and how it is run."""

    task: TaskName
    """``post_train`` (step 1), ``post_train_distill`` (stage I), ``finetune`` (step 3),
    ``finetune_distill`` (stage II)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shard sets and lengths."""
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    """Teachers of the distillation tasks."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and switches of the loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Adam."""
    run: RunConfig = field(default_factory=RunConfig)
    """Batches, length, checkpoints."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Held-out impressions (click tasks)."""

    @property
    def clicks_read(self) -> int:
        """Most recent clicks of a user that the user encoder of a click task reads."""
        if self.model.user_encoder == "last_k_mean":
            return min(self.model.user_last_k, self.data.history_length)
        return self.data.history_length
