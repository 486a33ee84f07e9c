"""What tasks that read a click log are told beside the rest: histories, candidates, users."""

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
from trainer.models.user_encoders import USER_ENCODERS
from trainer.models.user_encoders.base import UserEncoder

TextField = Literal["title", "abstract", "body", "category"]
HistoryPadding = Literal["mask", "learned"]


@dataclass(frozen=True, kw_only=True)
class ClickModelConfig(ModelConfig):
    """The news encoder and the user encoder."""

    user_encoder: str = "additive"
    """How clicked articles become a user: additive attention over the history (the paper's), the
    same after self-attention among the articles (NRMS), or the mean of the last ``user_last_k``
    clicked articles, which learns nothing but the vector of a user without any."""
    history_padding: HistoryPadding = "mask"
    """Empty history slots: left out, or a learned vector that takes part while training (released
    code). A user without any history is the learned vector with ``mask``, in training and in use
    alike; with ``learned`` it is that vector in training, and zero in use, where all candidates
    score 0."""
    frozen_states: Literal["off", "float16", "float32"] = "off"
    """Where ``trainable_layers`` leaves layers frozen: read what the frozen layers say
    about a text from a column of the article set, stored in this type, instead of computing it at
    every step. The column is filled when a run first needs it, by all its ranks, and serves every
    run whose embeddings and frozen layers are the same, whatever is above them. It takes tokens x
    width x bytes: MIND's 101,527 titles of 14 tokens on average, 768 wide in float16, 2.2 GB.
    Of a set at a URL it is filled in ``data.cache_dir`` on each node, where it stays: it is not
    counted in ``data.cache_gib``.
    Frozen layers are then without dropout; without the column they have it. float32 gives the same
    losses and gradients otherwise; float16 halves the column and rounds states to 11 bits."""

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
    """Train on the clicks from this date or time on (``2019-11-09``, ``2019-11-09T06:00:00``); None
    begins with the log. UTC: MIND's times have no zone, and are taken as UTC."""
    clicks_until: str | None = None
    """Train on the clicks before this date or time, itself not included; None ends with the log.
    ``2019-11-14`` leaves MINDlarge_train's last day to ``validation``. Clicks without a time are
    left out where there is a bound."""
    news_text: tuple[TextField, ...] = ("title",)
    """What the encoder reads of an article, joined into one text in this order, each
    field cut to its own length (``max_..._tokens``); one that an article lacks is left out. The
    token column must store them (``tnr shards tokenize --fields``). ``category`` is the words of
    category and subcategory."""
    max_abstract_tokens: Length = 64
    """Longest abstract in tokens, special tokens included."""
    max_body_tokens: Length = 512
    """Longest body in tokens, special tokens included."""
    max_category_tokens: Length = 10
    """Longest category in tokens, special tokens included."""
    num_negatives: Count = 9
    """Negatives a sample: candidates of the same impression whose article was not clicked in it.
    Each click of an impression is a sample with negatives of its own."""
    static_negatives: bool = False
    """Draw a sample's negatives once for all epochs (released code) instead of anew in every
    epoch."""
    history_length: Count = 50
    """Most recent clicks of a user that are read; sets keep them oldest first (``tnr shards build
    --history-order``)."""
    user_block: Count = 1
    """So many clicks of one user at most come together in the order, as far as
    ``window_shards`` holds them; 1 shuffles every click by itself. They share the user's history,
    so a batch names fewer distinct titles and costs less; but a batch of n clicks in blocks of k
    tells of about n / k users, so its gradient is noisier. Every click still comes once an epoch,
    and the blocks are shuffled. On a made-up log with MIND's lengths a batch of 32 in blocks of up
    to 8 has 9 users and 360 distinct titles instead of 32 and 860; ``--dry-run`` says it of any
    log. Where a user's clicks are spread over the whole log, as in MIND, ``window_shards`` must
    hold all of it (any number from that of its shards on)."""
    share_titles: Literal["rank", "all", "auto"] = "rank"
    """Over several ranks: each rank encodes the titles that its own clicks name
    (``rank``); or the distinct titles that the clicks of all ranks name at the same time are dealt
    out, each is encoded on one rank, and the vectors are gathered with their gradients (``all``):
    the same losses and gradients without dropout, fewer titles, as many of like lengths on every
    rank, for two exchanges of vectors a forward pass. It pays with many ranks and popular titles:
    ``--dry-run`` says how many are left. ``auto`` shares where at most 90% are, counted in batches
    of the first epoch; the start of a run says what it is."""

    @property
    def news_parts(self) -> Parts:
        """Fields of ``news_text``, each with its longest length in tokens."""
        return tuple((name, int(getattr(self, f"max_{name}_tokens"))) for name in self.news_text)


@dataclass(frozen=True, kw_only=True)
class ClickValidationConfig(ValidationConfig):
    """Measuring on held-out impressions while the run trains: the best step stays, and a run that
    no longer improves may end early.

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
    max_impressions: Count | None = None
    """Take at most so many of them, evenly over the log and always the same ones; None takes all.
    """
    metric: Literal["auc", "mrr", "ndcg5", "ndcg10"] = "auc"
    """Which of MIND's metrics, highest first, chooses the best step: its checkpoint stays, ``best``
    names it, and ``run.export`` exports it."""


@dataclass(frozen=True, kw_only=True)
class ClickConfig(EncoderConfig):
    """A run over clicks."""

    model: ClickModelConfig = field(default_factory=ClickModelConfig)
    """The model that is trained."""
    data: ClickDataConfig = field(default_factory=ClickDataConfig)
    """Shard sets and lengths."""
    validation: ClickValidationConfig = field(default_factory=ClickValidationConfig)
    """Held-out impressions."""

    reads_clicks: ClassVar[bool] = True
    batch_settings: ClassVar[tuple[str, ...]] = ("data.num_negatives", "data.history_length")

    @property
    def encodes_empty_slots(self) -> str | None:
        """The setting by which empty history slots are encoded, as the released code does."""
        is_learned = self.model.history_padding == "learned"
        return "model.history_padding learned" if is_learned else None

    @property
    def clicks_read(self) -> int:
        """Most recent clicks of a user that the user encoder reads."""
        return self.user_encoder.clicks_read(self.data.history_length)

    @property
    def user_encoder(self) -> UserEncoder:
        """The user encoder that is chosen, with its settings."""
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
    """Ranks share vectors only where one does not depend on the texts beside it."""
    wanted = f"data.share_titles {config.data.share_titles}"
    if config.encodes_empty_slots:
        raise ConfigError(
            f"{wanted} does not go with empty history slots that are encoded "
            f"({config.encodes_empty_slots}): leave it at rank"
        )
    if not config.model.pooling_mask and not config.data.pad_to_max:
        raise ConfigError(
            f"{wanted} without model.pooling_mask would change the vectors, which then depend on "
            "the longest text beside them: set data.pad_to_max, or leave it at rank"
        )


def _check_frozen_states(config: ClickConfig) -> None:
    model, backbone = config.model, config.model.backbone
    asked = f"model.frozen_states is {model.frozen_states}, but "
    if model.trainable_layers is None:
        raise ConfigError(
            f"{asked}model.trainable_layers is none: every layer is trained, none is frozen; set "
            "it to how many top layers are trained, or leave model.frozen_states off"
        )
    layers = None
    if backbone.layers is not None:
        layers = len(backbone.layers)
    elif backbone.name == "random" and model.init is None:
        layers = backbone.num_layers
    if layers is not None and model.trainable_layers >= layers:
        raise ConfigError(
            f"{asked}model.trainable_layers {model.trainable_layers} leaves none of the backbone's "
            f"{layers} layers frozen; lower it, or leave model.frozen_states off"
        )
    takes_padding = "data.pad_to_max true" if config.data.pad_to_max else None
    if not model.pooling_mask:
        takes_padding = "model.pooling_mask false"
    setting = takes_padding or config.encodes_empty_slots
    if setting is not None:
        raise ConfigError(
            f"{asked}{setting} lets padding or empty slots be encoded, whose states are not "
            "stored; change it, or leave model.frozen_states off"
        )


def _check_validation(config: ClickConfig) -> None:
    """Bounds in time and the section ``validation``, as far as they can be checked without data."""
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
    wanted = f"valid/{validation.metric}"
    if run.best_metric not in (None, wanted):
        raise ConfigError(
            f"run.best_metric is {run.best_metric}, but this run validates, and the best step is "
            f"that of {wanted}: leave it out, or choose with validation.metric"
        )


def _check_unused(validation: ClickValidationConfig) -> None:
    """Someone who sets these believes that something is validated."""
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
