"""Translate the pipeline's configuration into the steps of the method (a pure function).

All outputs are below ``config.run``::

    world/                 a synthesized world, with truth.json
    data/articles|train|dev  shard sets and their columns
    tokenizer/             a tokenizer trained here
    runs/<step>/           one run folder per training step
    evaluations/           one JSON file per evaluation
    report.md, quality_speed.png
    pipeline/              stamps and logs of the steps
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launchers.config import LAST_DAY, PipelineConfig, StageSection, StudentSection, load_pipeline
from launchers.precedence import beaten, check_lengths, lengths, levels
from launchers.steps import (
    FINETUNE,
    FINETUNE_DISTILL,
    PLAIN,
    POST_TRAIN,
    POST_TRAIN_DISTILL,
    Step,
    in_order,
)
from trainer.config.flat import flatten
from trainer.config.yaml_files import plain
from trainer.errors import ConfigError
from trainer.recipes.load import setting_words
from trainer.teacher_server.kinds import LOGITS, stages

__all__ = ["PipelineConfig", "load_pipeline", "options", "pipeline_steps"]

_UNTRAINED = {
    "run.max_steps": 1,
    "optimizer.lr": 1e-30,
    "optimizer.backbone_lr": 1e-30,
    "model.trainable_layers": 0,
    "model.frozen_states": "off",
    "validation.clicks": None,
    "validation.since": None,
    "validation.until": None,
    "validation.max_impressions": None,
    "validation.patience": None,
}
"""Settings of a training that changes no weight: one step, whose update rounding swallows."""


MAX_WORDS = 2_000_000
"""Most words in all commands: the commands of many steps repeat the configuration's lists."""


def pipeline_steps(config: PipelineConfig) -> list[Step]:
    """Return all steps of the method, each after the steps that it needs.

    Raises:
        ConfigError: Overrides contradict the pipeline, such as fewer steps than copies need.
    """
    plan = _Plan(config)
    plan.data()
    plan.tokens()
    plan.teachers()
    for seed in config.seeds:
        for student in config.students_of(seed):
            plan.student(student, seed)
        plan.baselines(seed)
    plan.report()
    return in_order(plan.steps)


def options(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Translate a mapping into command-line words.

    ``{"a_b": 1, "c": True, "d": [1, 2]}`` becomes ``--a-b 1 --c --d 1 2``; False and None are
    omitted.
    """
    words: list[str] = []
    for key, value in plain(settings).items():
        if value is None or value is False:
            continue
        words.append("--" + str(key).replace("_", "-"))
        if value is not True:
            words.extend(str(v) for v in (value if isinstance(value, list | tuple) else [value]))
    return tuple(words)


def overrides(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Translate training overrides into words: dotted keys, each with its value or values.

    Sections may also be nested mappings; an empty list gives a key without values.
    """
    words: list[str] = []
    for key, value in flatten(settings).items():
        words.extend((f"--{key}", *setting_words(key, value)))
    return tuple(words)


def _refuse_repeated(step: str, words: Sequence[str]) -> None:
    """Refuse an option in the file that the pipeline itself gives to the command.

    Raises:
        ConfigError: An option is given twice; the later one would win silently.
    """
    given = [word for word in words if word.startswith("--")]
    for option in given:
        if given.count(option) > 1:
            raise ConfigError(
                f"{option} of step {step} is set by the pipeline itself; remove "
                f"{option[2:].replace('-', '_')} from the options of that command in the file"
            )


class _Plan:
    """Collects steps; each method adds the steps of one part of the method."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.root = Path(config.run)
        self.steps: list[Step] = []
        data, folder = config.data, self.root / "data"
        self.articles = data.articles_set or str(folder / "articles")
        self.train = data.train_set or str(folder / "train")
        self.dev = data.dev_set or str(folder / "dev")
        self.truth = data.truth
        self.ready: dict[str, tuple[str, ...]] = {"articles": (), "train": (), "dev": ()}
        self.evaluations: list[Step] = []
        self.num_words = 0
        self.copies: list[str] = []
        self.finetuned: list[str] = []

    def data(self) -> None:
        data = self.config.data
        needs: tuple[str, ...] = ()
        articles, train, dev = data.articles, data.train_clicks, data.dev_clicks
        if data.articles_set:
            return
        if data.synthesize is not None:
            world = self.root / "world"
            self._add(
                "synthesize",
                ("shards", "synthesize", "--out", str(world), *options(data.synthesize)),
                proof=(world / "truth.json",),
                output=world,
            )
            needs, self.truth = ("synthesize",), str(world / "truth.json")
            packed = bool(plain(data.synthesize.get("gzip")))
            articles = (str(world / ("articles.jsonl.gz" if packed else "articles.jsonl")),)
            train = (str(world / "train" / "behaviors.tsv"),)
            dev = (str(world / "dev" / "behaviors.tsv"),)
        words: tuple[str, ...] = ("--articles", *articles, *options(data.build_articles))
        self._build("build-articles", self.articles, words, needs)
        self.ready["articles"] = ("build-articles",)
        for part, inputs, target in (("train", train, self.train), ("dev", dev, self.dev)):
            words = ("--clicks", *inputs, "--article-set", self.articles)
            words += options(data.build_clicks)
            self._build(f"build-{part}", target, words, ("build-articles", *needs))
            self.ready[part] = (f"build-{part}",)

    def tokens(self) -> None:
        section, needs = self.config.tokenizer, self.ready["articles"]
        name = section.name
        words: tuple[str, ...]
        if name is None:
            folder = self.root / "tokenizer"
            name = str(folder)
            words = ("shards", "train-tokenizer", self.articles, "--out", name)
            words += ("--vocab-size", str(section.vocab_size), *options(section.train_options))
            proof = (folder / "tokenizer.json",)
            self._add("train-tokenizer", words, needs, proof=proof, output=folder)
            needs = (*needs, "train-tokenizer")
        words = ("shards", "tokenize", self.articles, "--tokenizer", name)
        if section.fields != ("title", "body"):
            words += ("--fields", ",".join(section.fields))
        for each, limit in (("title", section.title_tokens), ("body", section.body_tokens)):
            words += (f"--{each}-tokens", str(limit)) if each in section.fields else ()
        words += options(section.options)
        proof = (Path(self.articles) / "columns" / "tokens-*" / "column.json",)
        self._add("tokenize", words, needs, proof=proof)
        self.ready["articles"] = ("tokenize",)

    def teachers(self) -> None:
        config, stages = self.config, self.config.stages
        section, seed = config.teachers, config.seeds[0]
        steps = section.copy_steps
        self._check_length(stages.post_train, steps[-1])
        fixed = {"run.copies.rule": "list", "run.copies.steps": list(steps)}
        run = self._train("post-train", POST_TRAIN, seed, fixed, self.ready["articles"])
        self.copies = [str(run / "copies" / f"step_{step:08d}") for step in steps]
        self._cache(1, self.copies, (), ("post-train",))
        names = []
        for number, copy in enumerate(self.copies, start=1):
            name = f"finetune-teacher-{number}"
            needs = ("post-train", *self.ready["train"])
            run = self._train(name, FINETUNE, seed, {"model.init": copy}, needs, clicks=True)
            self.finetuned.append(str(run / "export"))
            names.append(name)
            if config.evaluate.teachers:
                self._evaluate(f"teacher-{number}", run, name, "teacher", "teacher", number)
        clicks = ("--clicks", self.train)
        self._cache(2, self.finetuned, clicks, (*names, *self.ready["train"]))

    def student(self, student: StudentSection, seed: int) -> None:
        first, second = f"stage-1-{student.name}-s{seed}", f"stage-2-{student.name}-s{seed}"
        fixed = self._start(student) | {"teachers.models": self.copies}
        run = self._train(first, POST_TRAIN_DISTILL, seed, fixed, ("cache-1",), student)
        fixed = {"model.init": str(run / "export"), "teachers.models": self.finetuned}
        needs = (first, "cache-2")
        run = self._train(second, FINETUNE_DISTILL, seed, fixed, needs, student, clicks=True)
        self._evaluate(f"{student.name}-s{seed}", run, second, student.name, "student", seed)

    def baselines(self, seed: int) -> None:
        section, needs = self.config.baselines, (*self.ready["articles"], *self.ready["train"])
        if section.plain_students:
            for student in self.config.students_of(seed):
                name = f"plain-{student.name}-s{seed}"
                fixed = {"model.backbone.layers": list(student.layers)}
                run = self._train(name, PLAIN, seed, fixed, needs, student, clicks=True)
                self._evaluate(name, run, name, f"{student.name} (plain)", "plain", seed)
        if section.plain_teacher:
            name = f"plain-teacher-s{seed}"
            run = self._train(name, PLAIN, seed, {}, needs, clicks=True)
            self._evaluate(name, run, name, "teacher (plain)", "plain", seed)
        if section.untrained:
            name = f"untrained-s{seed}"
            run = self._train(name, PLAIN, seed, _UNTRAINED, needs, clicks=True)
            self._evaluate(name, run, name, "untrained", "other", seed)
        kinds = {"random": section.random, "popularity": section.popularity}
        for kind in (kind for kind, wanted in kinds.items() if wanted):
            if kind == "random" or seed == self.config.seeds[0]:  # popularity has no seed
                name = f"{kind}-s{seed}" if kind == "random" else kind
                needs = (*self.ready["dev"], *self.ready["train"])
                self._add_evaluation(name, ("--baseline", kind), needs, kind, "baseline", seed)

    def report(self) -> None:
        out, plot = self.root / "report.md", self.root / "quality_speed.png"
        files = [step.proof[0] for step in self.evaluations]
        words: tuple[str, ...] = ("report", *files, "--out", str(out))
        if self.config.evaluate.plot:
            words += ("--plot", str(plot))
        if self.truth:
            words += ("--ceiling", self.truth)
        needs = tuple(step.name for step in self.evaluations)
        self._add("report", words, needs, proof=(out,), output=out)

    def _build(
        self, name: str, target: str, words: tuple[str, ...], needs: tuple[str, ...]
    ) -> None:
        command = ("shards", "build", *words, "--out", target)
        self._add(name, command, needs, proof=(Path(target) / "manifest.json",), output=target)

    def _cache(
        self, stage: int, models: list[str], clicks: tuple[str, ...], needs: tuple[str, ...]
    ) -> None:
        words = ("teachers", "cache", "--stage", str(stage), "--articles", self.articles, *clicks)
        words += options(self.config.teachers.cache)
        array = tuple(("--models", model) for model in models)
        folder = Path(self.articles) / "columns"
        proof = (folder / f"{stages()[str(stage)][0]}-*" / "column.json",)
        self._add(f"cache-{stage}", words, needs, array=array, proof=proof)

    def _split(self) -> dict[str, Any]:
        """Return the click task's settings for the split; the configuration may override them."""
        data = self.config.data
        if data.split == "official":
            return {}
        since = data.validate_from or LAST_DAY
        return {
            "data.clicks_until": since,
            "validation.clicks": self.train,
            "validation.since": since,
        }

    def _training_period(self) -> dict[str, Any]:
        """Return the training period of ``finetune`` as options of evaluations."""
        stage = self.config.stages.finetune
        told = self._split() | flatten(self.config.set) | flatten(stage.set)
        return {f"train_{end}": told.get(f"data.clicks_{end}") for end in ("since", "until")}

    def _start(self, student: StudentSection) -> dict[str, Any]:
        start: dict[str, Any] = {"model.backbone.layers": list(student.layers)}
        if student.init == "teacher":
            start["model.init"] = self.copies[-1]
        return start

    def _train(
        self,
        name: str,
        stage: str,
        seed: int,
        fixed: dict[str, Any],
        needs: tuple[str, ...],
        student: StudentSection | None = None,
        *,
        clicks: bool = False,
    ) -> Path:
        """Add a training step and return its run folder; the plan's own settings win."""
        folder = self.root / "runs" / name
        stages = self.config.stages
        section: StageSection = getattr(stages, stage)
        recipe, resources = section.recipe or stage, section.resources
        if stage == PLAIN:
            recipe = section.recipe or stages.finetune.recipe or FINETUNE
            resources = resources or stages.finetune.resources
        found = levels(self.config, stage, recipe, student)
        own: dict[str, Any] = {"data.articles": self.articles}
        own |= {"data.clicks": self.train} if clicks else {}
        own |= {**fixed, "run.seed": seed, "run.dir": str(folder)}
        stored = self.config.tokenizer.stored
        settings = lengths(recipe, stored, clicks=clicks)
        settings |= self._split() if clicks else {}
        for _, given in found:
            settings |= given
        check_lengths(name, settings, stored)
        settings |= own
        words = (recipe, *overrides(settings))
        if settings.get("teachers.logits") == "stored":
            column = Path(self.articles) / "columns" / f"{LOGITS}-*" / "column.json"
            self._add(f"logits-{name}", ("teachers", "logits", *words), needs, proof=(column,))
            needs = (f"logits-{name}",)
        self._add(
            name,
            ("train", *words),
            needs,
            proof=(folder / "export" / "tnr.json",),
            output=folder,
            resources=resources or self.config.resources,
            notes=() if fixed is _UNTRAINED else beaten(found, own),
        )
        return folder

    def _evaluate(
        self, name: str, run: Path, trained: str, label: str, role: str, seed: int
    ) -> None:
        needs = (trained, *self.ready["dev"])
        self._add_evaluation(name, (str(run / "export"),), needs, label, role, seed)

    def _add_evaluation(
        self,
        name: str,
        what: tuple[str, ...],
        needs: tuple[str, ...],
        label: str,
        role: str,
        seed: int,
    ) -> None:
        out = self.root / "evaluations" / f"{name}.json"
        words = ("evaluate", *what, "--articles", self.articles, "--clicks", self.dev)
        words += ("--train-clicks", self.train, *options(self._training_period()))
        words += ("--name", label, "--role", role)
        words += ("--seed", str(seed), *options(self.config.evaluate.options), "--out", str(out))
        self._add(f"evaluate-{name}", words, needs, proof=(out,), output=out)
        self.evaluations.append(self.steps[-1])

    def _add(
        self,
        name: str,
        words: tuple[str, ...],
        needs: tuple[str, ...] = (),
        *,
        array: tuple[tuple[str, ...], ...] = (),
        proof: tuple[str | Path, ...] = (),
        output: str | Path | None = None,
        resources: Any = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.num_words += len(words) + sum(map(len, array))
        if self.num_words > MAX_WORDS:
            raise ConfigError(
                f"the commands of the steps have more than {MAX_WORDS:,} words; expected fewer "
                "seeds, students, teachers or values in 'set'"
            )
        if words[0] != "train":
            _refuse_repeated(name, (*words, *(array[0] if array else ())))
        one_process = dataclasses.replace(self.config.resources, nodes=1, processes=1)
        step = Step(
            name=name,
            command=("tnr", *words),
            needs=tuple(dict.fromkeys(needs)),
            array=array,
            proof=tuple(str(path) for path in proof),
            output=None if output is None else str(output),
            resources=resources or one_process,
            notes=notes,
        )
        self.steps.append(step)

    def _check_length(self, stage: StageSection, last_copy: int) -> None:
        settings = flatten(self.config.set) | flatten(stage.set)
        longest = plain(settings.get("run.max_steps"))
        if isinstance(longest, int) and longest < last_copy:
            raise ConfigError(
                f"the last teacher is the copy of step {last_copy}, but run.max_steps of "
                f"post_train is {longest}; lower teachers.every or raise run.max_steps"
            )
