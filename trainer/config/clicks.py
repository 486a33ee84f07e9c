"""Settings of tasks that read a click log: histories, candidates, users."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from shards.periods import parse_period
from trainer.config.parts import Registry, part_of
from trainer.config.ranges import Count, Length
from trainer.config.schema import (
    DataConfig,
    EncoderConfig,
    ModelConfig,
    Parts,
    TextCount,
    ValidationConfig,
)
from trainer.errors import ConfigError, UsageError
from trainer.evaluate.evaluators import EVALUATORS
from trainer.models.user_encoders import USER_ENCODERS
from trainer.models.user_encoders.base import UserEncoder

TextField = Literal["title", "abstract", "body", "category"]
HistoryPadding = Literal["mask", "learned"]


@dataclass(frozen=True, kw_only=True)
class ClickModelConfig(ModelConfig):
    """Settings of the news encoder and the user encoder."""

    user_encoder: str = "additive"
    """How clicked articles become a user vector: additive attention over the history (the paper's),
    self-attention among the articles before the additive attention (NRMS), or the mean of the last
    ``user_last_k`` clicked articles, which learns only the vector of users without a history."""
    history_padding: HistoryPadding = "mask"
    """How empty history slots are treated: ``mask`` leaves them out; with ``learned``, a learned
    vector stands in them during training (released code). A user without a history gets the learned
    vector under ``mask``, in training and in use alike; under ``learned`` such a user gets the
    vector in training but zeros in use, where all candidates then score 0."""
    frozen_states: Literal["off", "float16", "float32"] = "off"
    """When ``trainable_layers`` freezes layers: read the frozen layers' hidden states of a text
    from a column of the article set, stored in this type, instead of computing the states at every
    step. All ranks fill the column when a run first needs it. Every run with the same embeddings
    and frozen layers shares the column, whatever its layers above. The column takes tokens x width
    x bytes: 2.2 GB for MIND's 101,527 titles of 14 tokens on average, 768 wide, in float16. For a
    set at a URL, the column is filled in ``data.cache_dir`` on each node and stays there; it does
    not count towards ``data.cache_gib``. With the column, frozen layers have no dropout; without
    it, they do. Apart from dropout, float32 gives the same losses and gradients; float16 halves the
    column and rounds states to 11 bits."""

    choices: ClassVar[Mapping[str, Registry]] = {
        **ModelConfig.choices,
        "user_encoder": USER_ENCODERS,
    }


@dataclass(frozen=True, kw_only=True)
class ClickDataConfig(DataConfig):
    """Which shard sets are read, and how texts and impressions are cut."""

    clicks: str | None = None
    """Impression shard set to train on."""
    clicks_since: str | None = None
    """Train on clicks from this date or time on (``2019-11-09``, ``2019-11-09T06:00:00``); None
    starts at the beginning of the log. Times are UTC: MIND's times have no zone and are taken as
    UTC."""
    clicks_until: str | None = None
    """Train on clicks before this date or time (exclusive); None continues to the end of the log.
    ``2019-11-14`` leaves MINDlarge_train's last day to ``validation``. If there is a bound, clicks
    without a time are left out."""
    news_text: tuple[TextField, ...] = ("title",)
    """Fields of an article that the encoder reads, joined into one text in this order, each cut to
    its own length (``max_..._tokens``); a field that an article lacks is left out. The token column
    must store the fields (``tnr shards tokenize --fields``). ``category`` means the words of
    category and subcategory."""
    max_abstract_tokens: Length = 64
    """Longest abstract in tokens, special tokens included."""
    max_body_tokens: Length = 512
    """Longest body in tokens, special tokens included."""
    max_category_tokens: Length = 10
    """Longest category in tokens, special tokens included."""
    num_negatives: Count = 9
    """Negatives per sample: candidates of the same impression whose article was not clicked in it.
    Each click of an impression is a sample with its own negatives."""
    static_negatives: bool = False
    """Draw a sample's negatives once for all epochs (released code), not anew in each epoch."""
    history_length: Count = 50
    """How many of a user's most recent clicks are read; sets keep clicks oldest first (``tnr shards
    build --history-order``)."""
    user_block: Count = 1
    """Keep up to this many clicks of one user together in the order, as far as ``window_shards``
    holds them; 1 shuffles every click by itself. Clicks of one user share the user's history, so a
    batch has fewer distinct titles and costs less; but a batch of n clicks in blocks of k covers
    only about n / k users, so its gradient is noisier. Every click still comes once per epoch, and
    the blocks are shuffled. On a made-up log with MIND's lengths, a batch of 32 in blocks of up to
    8 has 9 users and 360 distinct titles instead of 32 and 860; ``--dry-run`` shows these counts
    for any log. If a user's clicks are spread over the whole log, as in MIND, set ``window_shards``
    to at least the log's number of shards."""
    share_titles: Literal["rank", "all", "auto"] = "rank"
    """How several ranks share titles. ``rank``: each rank encodes the titles that its own clicks
    name. ``all``: the distinct titles of all ranks' clicks in the same pass are divided among the
    ranks, each title is encoded on one rank, and the vectors are gathered with their gradients.
    ``all`` gives the same losses and gradients without dropout, encodes fewer titles, and gives
    every rank about the same number of titles of each length; it costs two exchanges of vectors per
    forward pass. It pays with many ranks and popular titles: ``--dry-run`` shows how many titles
    are left. ``auto`` shares titles if at most 90% are left, counted in batches of the first epoch;
    the start of a run prints the choice."""

    @property
    def news_parts(self) -> Parts:
        """Fields of ``news_text``, each with its longest length in tokens."""
        return tuple((name, int(getattr(self, f"max_{name}_tokens"))) for name in self.news_text)


@dataclass(frozen=True, kw_only=True)
class ClickValidationConfig(ValidationConfig):
    """Validation on held-out impressions during training: keep the best step, perhaps end early.

    The metrics are those of ``tnr evaluate`` on the step's export, in bf16 if the run uses bf16,
    otherwise in fp32. All ranks take part; with ZeRO-3 each rank holds the whole model meanwhile. A
    step that improves the metric is saved at once, whatever ``run.checkpoint_every`` is.
    """

    clicks: str | None = None
    """Labelled impression set over ``data.articles``; None turns validation off. The set may be
    ``data.clicks`` itself if the bounds have no impression in common."""
    since: str | None = None
    """Validate on the impressions from this date or time on; see ``data.clicks_since``."""
    until: str | None = None
    """Validate on the impressions before this date or time (exclusive)."""
    max_impressions: Count | None = None
    """Validate on at most this many impressions, spread evenly over the log and always the same;
    None takes all."""
    evaluator: str = "mind"
    """What is measured: ``mind`` measures ``auc``, ``mrr``, ``ndcg5`` and ``ndcg10``."""
    metric: str = "auc"
    """Which of the evaluator's metrics (higher is better) chooses the best step: the step's
    checkpoint stays, ``best`` names it, and ``run.export`` exports it."""

    choices: ClassVar[Mapping[str, Registry]] = {"evaluator": EVALUATORS}


@dataclass(frozen=True, kw_only=True)
class ClickConfig(EncoderConfig):
    """Configuration of a run over clicks."""

    model: ClickModelConfig = field(default_factory=ClickModelConfig)
    """The model that is trained."""
    data: ClickDataConfig = field(default_factory=ClickDataConfig)
    """Shard sets and lengths."""
    validation: ClickValidationConfig = field(default_factory=ClickValidationConfig)
    """Validation on held-out impressions."""

    reads_clicks: ClassVar[bool] = True
    batch_settings: ClassVar[tuple[str, ...]] = ("data.num_negatives", "data.history_length")

    @property
    def encodes_empty_slots(self) -> str | None:
        """The setting that makes empty history slots be encoded, as in the released code."""
        is_learned = self.model.history_padding == "learned"
        return "model.history_padding learned" if is_learned else None

    @property
    def clicks_read(self) -> int:
        """How many of a user's most recent clicks the user encoder reads."""
        return self.user_encoder.clicks_read(self.data.history_length)

    @property
    def user_encoder(self) -> UserEncoder:
        """The chosen user encoder with its settings."""
        part: UserEncoder = part_of(self.model, "user_encoder")
        return part

    @property
    def locations(self) -> tuple[str, ...]:
        """See :attr:`TrainConfig.locations`."""
        return (*super().locations, self.data.clicks or "")

    @property
    def validates(self) -> ValidationConfig | None:
        """See :attr:`TrainConfig.validates`."""
        return None if self.validation.clicks is None else self.validation

    @property
    def texts(self) -> Sequence[Parts]:
        """See :attr:`TrainConfig.texts`."""
        return (self.data.news_parts,)

    def most_texts(self, samples: int) -> Sequence[TextCount]:
        """See :meth:`TrainConfig.most_texts`."""
        parts = self.data.news_parts
        texts = samples * (self.clicks_read + 1 + self.data.num_negatives)
        return (TextCount(texts, sum(limit for _, limit in parts) - (len(parts) - 1)),)

    def check(self) -> None:
        """See :meth:`TrainConfig.check`."""
        data, model = self.data, self.model
        if not data.clicks:
            raise ConfigError(f"data.clicks is not set: task {self.task} reads an impression set")
        if not data.news_text:
            raise ConfigError("data.news_text is empty: name at least one field, such as title")
        if len(set(data.news_text)) < len(data.news_text):
            raise ConfigError(f"data.news_text {' '.join(data.news_text)} names a field twice")
        self.user_encoder.check(model.news_dim, data.history_length)
        if data.share_titles != "rank":
            _check_shared_titles(self)
        if model.frozen_states != "off":
            _check_frozen_states(self)
        _check_validation(self)
        super().check()


def _check_shared_titles(config: ClickConfig) -> None:
    """Refuse shared titles if a vector depends on the other texts of its batch."""
    wanted = f"data.share_titles {config.data.share_titles}"
    if config.encodes_empty_slots:
        raise ConfigError(
            f"{wanted} is not possible while empty history slots are encoded "
            f"({config.encodes_empty_slots}): leave it at rank"
        )
    if not config.model.pooling_mask and not config.data.pad_to_max:
        raise ConfigError(
            f"{wanted} without model.pooling_mask would change the vectors, which then depend on "
            "the longest text next to them: set data.pad_to_max, or leave it at rank"
        )


def _check_frozen_states(config: ClickConfig) -> None:
    model, backbone = config.model, config.model.backbone
    asked = f"model.frozen_states is {model.frozen_states}, but "
    if model.trainable_layers is None:
        raise ConfigError(
            f"{asked}model.trainable_layers is not set, so every layer is trained: set it to the "
            "number of top layers to train, or leave model.frozen_states off"
        )
    layers = None
    if backbone.layers is not None:
        layers = len(backbone.layers)
    elif backbone.name == "random" and model.init is None:
        layers = backbone.num_layers
    if layers is not None and model.trainable_layers >= layers:
        raise ConfigError(
            f"{asked}model.trainable_layers {model.trainable_layers} freezes none of the "
            f"backbone's {layers} layers: lower it, or leave model.frozen_states off"
        )
    takes_padding = "data.pad_to_max true" if config.data.pad_to_max else None
    if not model.pooling_mask:
        takes_padding = "model.pooling_mask false"
    setting = takes_padding or config.encodes_empty_slots
    if setting is not None:
        raise ConfigError(
            f"{asked}{setting} causes padding or empty slots to be encoded, whose states are not "
            "stored: change it, or leave model.frozen_states off"
        )


def _check_validation(config: ClickConfig) -> None:
    """Check the time bounds and the section ``validation``, as far as possible without data."""
    data, validation, run = config.data, config.validation, config.run
    bounds = {
        "data.clicks_": (data.clicks_since, data.clicks_until),
        "validation.": (validation.since, validation.until),
    }
    for section, (since, until) in bounds.items():
        try:
            parse_period(since, until, section)
        except UsageError as error:
            raise ConfigError(str(error)) from error
    if validation.clicks is None:
        _check_unused(validation)
        return
    metrics = part_of(validation, "evaluator").metrics
    if validation.metric not in metrics:
        raise ConfigError(
            f"validation.metric is {validation.metric!r}; expected one of "
            f"{', '.join(map(repr, metrics))}"
        )
    wanted = f"valid/{validation.metric}"
    if run.best_metric not in (None, wanted):
        raise ConfigError(
            f"run.best_metric is {run.best_metric}, but this run validates and picks its best "
            f"step by {wanted}: leave run.best_metric out, and choose with validation.metric"
        )


def _check_unused(validation: ClickValidationConfig) -> None:
    """Refuse settings of a validation that is off: whoever sets them expects one."""
    unused = {
        "since": validation.since,
        "until": validation.until,
        "patience": validation.patience,
        "max_impressions": validation.max_impressions,
    }
    for name, value in unused.items():
        if value is not None:
            raise ConfigError(
                f"validation.{name} is set, but validation.clicks is not: name the impression set "
                "to validate on"
            )
