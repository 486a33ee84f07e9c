"""Describe the configuration of ``tnr pipeline``: one YAML file, one dataclass per section.

``launchers/templates/mind.yaml`` is an example with every section explained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launchers.settings import build
from launchers.slurm import ClusterConfig
from launchers.steps import Resources
from trainer.config.text import refuse_control
from trainer.config.yaml_files import read_yaml
from trainer.errors import ConfigError

MAX_TEACHERS = 100
MAX_MODELS = 1_000
"""Most students x seeds: far above any use, so a mistyped number is refused early."""
MAX_LAYERS = 1_000
_NAME = re.compile(r"\w[\w-]*")

LAST_DAY = "2019-11-14"
"""Last day of MINDlarge_train: ``public`` validates on this day unless another day is given."""


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Source of articles and clicks: a synthesized world, the user's files, or built sets."""

    synthesize: Mapping[str, Any] | None = None
    """Options of ``tnr shards synthesize`` without the dashes, such as ``articles: 2000``."""
    articles: tuple[str, ...] = ()
    """Article files, MIND folders or zips."""
    train_clicks: tuple[str, ...] = ()
    """Training click logs (``behaviors.tsv``, MIND folders or zips)."""
    dev_clicks: tuple[str, ...] = ()
    """Labelled click logs that models are evaluated on."""
    build_articles: Mapping[str, Any] = field(default_factory=dict)
    """Further options of ``tnr shards build`` for the articles, such as ``bodies: FILE``."""
    build_clicks: Mapping[str, Any] = field(default_factory=dict)
    """Further options of ``tnr shards build`` for both click logs."""
    articles_set: str | None = None
    """An article set that exists already; nothing is built then."""
    train_set: str | None = None
    """An impression set that exists already, to train on."""
    dev_set: str | None = None
    """An impression set that exists already, to evaluate on."""
    split: Literal["official", "public"] = "official"
    """``official`` trains on the whole training log. ``public`` is for MIND's public files, whose
    test log has no labels: click tasks train on the clicks before ``validate_from``, validate on
    the rest of the training log, and export their best step. Both report on the dev log, which
    ``public`` uses for nothing else; popularity and the segments by news seen in training read the
    clicks that models train on."""
    validate_from: str | None = None
    """With ``public``: first day (or UTC time) of the validation period; None takes
    :data:`LAST_DAY`. Overrides of ``stages`` set how often to validate, on how many impressions and
    with what patience, for example ``validation.every: 1000``."""
    truth: str | None = None
    """``truth.json`` with the best reachable metrics; a synthesized world has its own."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSection:
    """An existing tokenizer, or one trained on the articles."""

    name: str | None = None
    """A folder, or a Hugging Face name in the local cache; None trains a SentencePiece model."""
    vocab_size: int = 8000
    """Vocabulary size of a trained tokenizer."""
    fields: tuple[str, ...] = ("title", "body")
    """Fields of an article to store; ``data.news_text`` of click tasks selects some of them."""
    title_tokens: int = 32
    """Number of title tokens to store."""
    body_tokens: int = 512
    """Number of body tokens to store, if ``fields`` has the body."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of ``tnr shards tokenize``, such as ``abstract-tokens: 96``."""
    train_options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of ``tnr shards train-tokenizer``."""

    @property
    def stored(self) -> dict[str, int]:
        """Return how many tokens of titles and bodies are stored, for the fields in ``fields``."""
        limits = {"title": self.title_tokens, "body": self.body_tokens}
        return {name: limit for name, limit in limits.items() if name in self.fields}


@dataclass(frozen=True, kw_only=True)
class TeachersSection:
    """The M teachers: copies of one post-training run."""

    count: int = 4
    """M of the paper."""
    every: int = 500
    """K of the paper: copies are taken at steps K, 2K, ..., M K, unless ``steps`` is given."""
    steps: tuple[int, ...] = ()
    """Steps whose copies become teachers; replaces ``every`` and ``count``."""
    cache: Mapping[str, Any] = field(default_factory=dict)
    """Further options of ``tnr teachers cache``, such as ``batch-tokens: 32768``."""

    @property
    def copy_steps(self) -> tuple[int, ...]:
        """Return the steps whose copies become teachers, in order."""
        return self.steps or tuple(self.every * (m + 1) for m in range(self.count))


@dataclass(frozen=True, kw_only=True)
class StudentSection:
    """One student, and the plain model of the same depth to compare it with."""

    name: str
    """Name in the report and in folder names."""
    layers: tuple[int, ...]
    """Backbone layers that the student keeps, counted from 0."""
    init: Literal["backbone", "teacher"] = "backbone"
    """Start from the original backbone (the paper), or from the last teacher copy."""
    seeds: tuple[int, ...] | None = None
    """Seeds of the student and of its plain counterpart; None takes the pipeline's seeds."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of both stages of the student and of its plain counterpart."""


@dataclass(frozen=True, kw_only=True)
class StageSection:
    """One kind of training: its recipe, overrides and resources."""

    recipe: str | None = None
    """Name or path of a recipe; None takes the recipe named like the stage."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides with dotted keys, such as ``run.max_steps: 200``."""
    resources: Resources | None = None
    """Machines, ranks and time; None takes the pipeline's resources."""


@dataclass(frozen=True, kw_only=True)
class StagesSection:
    """Every kind of training of the method."""

    post_train: StageSection = StageSection()
    """Step 1."""
    post_train_distill: StageSection = StageSection()
    """Stage I."""
    finetune: StageSection = StageSection()
    """Step 3: the teachers."""
    finetune_distill: StageSection = StageSection()
    """Stage II."""
    plain: StageSection = StageSection()
    """Finetuning without teachers: recipe and overrides of ``finetune``, then its own overrides."""


@dataclass(frozen=True, kw_only=True)
class BaselinesSection:
    """Models to compare the students with."""

    plain_students: bool = True
    """Models of each student's depth, finetuned on clicks alone, for every seed."""
    plain_teacher: bool = True
    """The whole backbone, finetuned on clicks alone (PLM-NR FT), for every seed."""
    untrained: bool = False
    """The whole untrained backbone under a random head and user encoder, for every seed."""
    popularity: bool = True
    """Rank articles by their clicks in the training log."""
    random: bool = True
    """Random scores, for every seed."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """How models are evaluated and reported."""

    teachers: bool = True
    """Also evaluate the M finetuned teachers."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of ``tnr evaluate``, such as ``speed-seconds: 2``."""
    plot: bool = True
    """Draw quality against speed (needs matplotlib)."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The whole method over one corpus and one click log."""

    run: str
    """Folder of all outputs."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of students and plain models; teachers are trained once, with the first seed."""
    data: DataSection = DataSection()
    """Articles and clicks."""
    tokenizer: TokenizerSection = TokenizerSection()
    """Tokens."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of every training run, such as ``model.backbone.name: bert-base-uncased``. The more
    specific setting wins: ``set`` of the stage, then ``set`` of the student, then the settings that
    the pipeline makes itself (``run.dir``, ``run.seed``); a note names each overridden setting."""
    teachers: TeachersSection = TeachersSection()
    """The M teachers."""
    students: tuple[StudentSection, ...] = (StudentSection(name="student-1", layers=(0,)),)
    """The students."""
    stages: StagesSection = StagesSection()
    """Recipes and overrides of each kind of training."""
    baselines: BaselinesSection = BaselinesSection()
    """Comparisons."""
    evaluate: EvaluateSection = EvaluateSection()
    """Evaluation and report."""
    resources: Resources = field(default_factory=Resources)
    """Resources of a step whose stage names none."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The Slurm cluster, for ``tnr pipeline submit``: a section, or the path of a cluster file."""

    def __post_init__(self) -> None:
        """Check conditions that span several sections.

        Raises:
            ConfigError: Settings are missing or contradict each other.
        """
        _check(self)

    def students_of(self, seed: int) -> list[StudentSection]:
        """Return the students that are trained with a seed."""
        return [s for s in self.students if seed in (self.seeds if s.seeds is None else s.seeds)]


def load_pipeline(path: str | Path, *, run: str | None = None) -> PipelineConfig:
    """Read a pipeline from a YAML file.

    Args:
        path: The file.
        run: Folder that replaces the file's ``run``.

    Raises:
        ConfigError: A key or value is wrong; the message names the file and the key.
    """
    content = read_yaml(path)
    if run is not None:
        content["run"] = refuse_control(run, "--out")
    if isinstance(content.get("cluster"), str):
        # The path is relative to the pipeline file.
        content["cluster"] = read_yaml(Path(path).parent / content["cluster"])
    try:
        return build(PipelineConfig, content, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_counts(config: PipelineConfig) -> None:
    """Refuse absurdly large counts before any list of that length is made."""
    teachers, seeds, students = config.teachers, len(config.seeds), len(config.students)
    counts = {
        "teachers.count": (teachers.count, MAX_TEACHERS),
        "the number of teachers.steps": (len(teachers.steps), MAX_TEACHERS),
        "the number of seeds": (seeds, MAX_MODELS),
        "the number of students": (students, MAX_MODELS),
        "the number of students x seeds": (students * seeds, MAX_MODELS),
    }
    for student in config.students:
        counts[f"the number of layers of student {student.name}"] = (
            len(student.layers),
            MAX_LAYERS,
        )
    for name, (count, most) in counts.items():
        if count > most:
            raise ConfigError(f"{name} is {count:,}; expected at most {most:,}")


def _check_unused(config: PipelineConfig) -> None:
    """Refuse settings without effect, so that no user relies on them."""
    data, tokenizer = config.data, config.tokenizer
    unused = {
        "data.validate_from": (data.validate_from is not None, "data.split: public"),
        "tokenizer.train_options": (
            bool(tokenizer.train_options),
            "training a tokenizer (tokenizer.name is set)",
        ),
        "tokenizer.vocab_size": (
            tokenizer.vocab_size != TokenizerSection.vocab_size,
            "training a tokenizer (tokenizer.name is set)",
        ),
        "data.train_clicks": (bool(data.train_clicks), "data.articles"),
        "data.dev_clicks": (bool(data.dev_clicks), "data.articles"),
        "data.build_articles": (bool(data.build_articles), "building sets"),
        "data.build_clicks": (bool(data.build_clicks), "building sets"),
    }
    there = {
        "data.split: public": data.split == "public",
        "training a tokenizer (tokenizer.name is set)": tokenizer.name is None,
        "data.articles": bool(data.articles),
        "building sets": data.articles_set is None,
    }
    for name, (is_set, needed) in unused.items():
        if is_set and not there[needed]:
            raise ConfigError(f"{name} is set, but has no effect without {needed}")


def _check(config: PipelineConfig) -> None:
    data, teachers = config.data, config.teachers
    _check_counts(config)
    sources = {
        "data.synthesize": data.synthesize is not None,
        "data.articles": bool(data.articles),
        "data.articles_set": data.articles_set is not None,
    }
    given = [name for name, there in sources.items() if there]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ConfigError(f"expected one of {', '.join(sources)}; found {found}")
    if data.articles and not (data.train_clicks and data.dev_clicks):
        raise ConfigError("data.articles needs data.train_clicks and data.dev_clicks beside it")
    if data.articles_set and not (data.train_set and data.dev_set):
        raise ConfigError("data.articles_set needs data.train_set and data.dev_set beside it")
    if not data.articles_set and (data.train_set or data.dev_set):
        # These sets would be built, and --redo would move the existing ones aside.
        raise ConfigError("data.train_set and data.dev_set belong to data.articles_set")
    _check_unused(config)
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ConfigError(
            f"seeds are {list(config.seeds)}; expected at least one, without repetition"
        )
    steps = teachers.copy_steps
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1:
        raise ConfigError(
            f"teachers would be the copies of steps {list(steps)}; expected at least one, in "
            "ascending order"
        )
    names = [student.name for student in config.students]
    for name in names:
        if names.count(name) > 1 or not _NAME.fullmatch(name):
            raise ConfigError(
                f"students: the name {name!r} must be unique, of letters, digits, - and _"
            )
    for student in config.students:
        if not student.layers:
            raise ConfigError(f"student {student.name} keeps no layers")
        if student.seeds is not None and not set(student.seeds) <= set(config.seeds):
            raise ConfigError(
                f"student {student.name} has seeds {list(student.seeds)}; the pipeline's are "
                f"{list(config.seeds)}"
            )
