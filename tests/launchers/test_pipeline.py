"""The pipeline's configuration and its plan: which steps, with which commands, resting on what."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import launchers
from launchers.config import PipelineConfig, load_pipeline
from launchers.pipeline import options, overrides, pipeline_steps
from launchers.settings import build
from launchers.stamps import proved
from launchers.steps import Step
from shards.errors import UsageError
from trainer.cli.demo import hold_out
from trainer.cli.main import main
from trainer.cli.pipeline import check_steps
from trainer.errors import ConfigError

TEMPLATES = Path(launchers.__file__).parent / "templates"
SMALL = {
    "run": "R",
    "data": {"synthesize": {"articles": 300, "gzip": True}},
    "teachers": {"count": 2, "every": 10},
}


def plan(**changes) -> dict[str, Step]:
    config = build(PipelineConfig, SMALL | changes, "")
    return {step.name: step for step in pipeline_steps(config)}


def words_after(step: Step, option: str) -> list[str]:
    """The values of an option in a command."""
    rest = list(step.command[step.command.index(option) + 1 :])
    ends = [place for place, word in enumerate(rest) if word.startswith("--")]
    return rest[: ends[0]] if ends else rest


def test_the_method_s_steps_in_its_order():
    assert list(plan()) == [
        *("synthesize", "build-articles", "build-train", "build-dev"),
        *("train-tokenizer", "tokenize", "post-train", "cache-1"),
        *("finetune-teacher-1", "evaluate-teacher-1"),
        *("finetune-teacher-2", "evaluate-teacher-2", "cache-2"),
        *("stage-1-student-1-s0", "stage-2-student-1-s0", "evaluate-student-1-s0"),
        *("plain-student-1-s0", "evaluate-plain-student-1-s0"),
        *("plain-teacher-s0", "evaluate-plain-teacher-s0"),
        *("evaluate-random-s0", "evaluate-popularity", "report"),
    ]


def test_what_one_step_makes_is_what_the_next_one_reads():
    steps = plan()
    assert words_after(steps["build-articles"], "--articles") == ["R/world/articles.jsonl.gz"]
    copies = [f"R/runs/post-train/copies/step_{n:08d}" for n in (10, 20)]
    assert words_after(steps["post-train"], "--run.copies.steps") == ["10", "20"]
    assert [words[1] for words in steps["cache-1"].array] == copies
    first, second = steps["stage-1-student-1-s0"], steps["stage-2-student-1-s0"]
    assert words_after(first, "--teachers.models") == copies
    assert words_after(first, "--model.backbone.layers") == ["0"]
    assert words_after(steps["finetune-teacher-2"], "--model.init") == [copies[1]]
    finetuned = [f"R/runs/finetune-teacher-{m}/export" for m in (1, 2)]
    assert [words[1] for words in steps["cache-2"].array] == finetuned
    assert words_after(steps["cache-2"], "--clicks") == ["R/data/train"]
    assert words_after(second, "--model.init") == ["R/runs/stage-1-student-1-s0/export"]
    assert words_after(second, "--teachers.models") == finetuned
    assert "--model.backbone.layers" not in second.command  # the export has them alone already
    assert set(second.needs) == {"stage-1-student-1-s0", "cache-2"}
    assert second.proof == ("R/runs/stage-2-student-1-s0/export/tnr.json",)
    plain = steps["plain-student-1-s0"]
    assert words_after(plain, "--model.backbone.layers") == ["0"]
    assert plain.command[2] == "finetune"
    assert "--teachers.models" not in plain.command
    evaluation = steps["evaluate-student-1-s0"]
    assert evaluation.command[2] == "R/runs/stage-2-student-1-s0/export"
    report = steps["report"]
    assert words_after(report, "--ceiling") == ["R/world/truth.json"]
    listed = report.command[2 : report.command.index("--out")]
    made = [s.proof[0] for name, s in steps.items() if name.startswith("evaluate-")]
    assert list(listed) == made


def test_logits_that_a_student_reads_are_stored_by_its_own_words():
    given = {"loss.embedding": 0, "teachers.logits": "stored"}
    steps = plan(stages={"post_train_distill": {"set": given}}, seeds=[3, 5])
    for seed in (3, 5):
        logits = steps[f"logits-stage-1-student-1-s{seed}"]
        student = steps[f"stage-1-student-1-s{seed}"]
        assert logits.command == ("tnr", "teachers", "logits", *student.command[2:])
        assert words_after(logits, "--run.seed") == [str(seed)]
        assert (logits.needs, student.needs) == (("cache-1",), (logits.name,))
    assert "logits-stage-2-student-1-s3" not in steps


def test_students_and_plain_models_run_over_seeds_but_teachers_once():
    steps = plan(seeds=[3, 5])
    for name in ("stage-1-student-1", "stage-2-student-1", "plain-student-1", "plain-teacher"):
        for seed in ("3", "5"):
            assert words_after(steps[f"{name}-s{seed}"], "--run.seed") == [seed]
    assert words_after(steps["post-train"], "--run.seed") == ["3"]
    assert "evaluate-popularity" in steps
    assert "evaluate-random-s5" in steps


def test_overrides_go_from_the_whole_to_the_student_and_the_plan_wins():
    steps = plan(
        set={"optimizer": {"lr": 1.0}, "data.num_negatives": 1, "run.dir": "elsewhere"},
        stages={
            "finetune": {"set": {"optimizer.lr": 2.0, "run.max_steps": 7}},
            "plain": {"set": {"run.max_steps": 9}},
        },
        students=[{"name": "s", "layers": [0, 2], "set": {"optimizer.lr": 3.0}, "init": "teacher"}],
    )

    def value(name: str, key: str) -> list[str]:
        return words_after(steps[name], f"--{key}")

    assert value("post-train", "optimizer.lr") == ["1.0"]
    assert value("finetune-teacher-1", "optimizer.lr") == ["2.0"]
    assert value("plain-s-s0", "optimizer.lr") == ["3.0"]
    assert value("plain-s-s0", "run.max_steps") == ["9"]
    assert value("plain-teacher-s0", "optimizer.lr") == ["2.0"]
    assert value("stage-1-s-s0", "model.backbone.layers") == ["0", "2"]
    assert value("stage-1-s-s0", "model.init") == ["R/runs/post-train/copies/step_00000020"]
    assert value("post-train", "run.dir") == ["R/runs/post-train"]


PUBLIC = """\
tnr train finetune --data.max_title_tokens 30 \
--data.clicks_until 2019-11-14 --validation.clicks R/data/train \
--validation.since 2019-11-14 --validation.every 50 --data.articles R/data/articles \
--data.clicks R/data/train --model.init R/runs/post-train/copies/step_00000010 --run.seed 0 \
--run.dir R/runs/finetune-teacher-1
tnr train finetune_distill --data.max_title_tokens 30 \
--data.clicks_until 2019-11-14 --validation.clicks R/data/train \
--validation.since 2019-11-13 --data.articles R/data/articles --data.clicks R/data/train \
--model.init R/runs/stage-1-student-1-s0/export \
--teachers.models R/runs/finetune-teacher-1/export R/runs/finetune-teacher-2/export \
--run.seed 0 --run.dir R/runs/stage-2-student-1-s0
tnr train finetune --data.max_title_tokens 30 \
--data.clicks_until 2019-11-14 --validation.clicks R/data/train \
--validation.since 2019-11-14 --validation.every 50 --data.articles R/data/articles \
--data.clicks R/data/train --model.backbone.layers 0 --run.seed 0 \
--run.dir R/runs/plain-student-1-s0
"""


def test_public_split_holds_out_the_last_day_of_training_and_reports_on_dev():
    sets = {
        "finetune": {"set": {"validation.every": 50}},
        "finetune_distill": {"set": {"validation.since": "2019-11-13"}},
    }
    data = SMALL["data"] | {"split": "public", "validate_from": "2019-11-14"}
    public, official = plan(data=data, stages=sets), plan()
    names = ("finetune-teacher-1", "stage-2-student-1-s0", "plain-student-1-s0")
    assert "".join(shlex.join(public[name].command) + "\n" for name in names) == PUBLIC
    check_steps([public[name] for name in names])
    for name, step in public.items():
        if name.startswith(("build-", "cache-", "post-", "stage-1-")):
            assert step == official[name]
        if name.startswith("evaluate-"):
            assert words_after(step, "--clicks") == ["R/data/dev"]
            assert words_after(step, "--train-until") == ["2019-11-14"]
    told = [word for step in official.values() for word in step.command]
    unwanted = ("--validation.", "--data.clicks_", "--train-since", "--train-until")
    assert not any(word.startswith(unwanted) for word in told)


@pytest.mark.parametrize(("stored", "read"), [(32, 30), (24, 24), (16, 16)])
def test_all_click_tasks_read_as_much_of_a_title_and_no_more_than_is_stored(stored, read):
    """Whatever they start from: an export of post-training would give them its own 24."""
    steps = plan(tokenizer={"title_tokens": stored, "body_tokens": 100})
    for name in ("finetune-teacher-2", "stage-2-student-1-s0", "plain-student-1-s0"):
        assert words_after(steps[name], "--data.max_title_tokens") == [str(read)]
    for name in ("post-train", "stage-1-student-1-s0"):
        assert words_after(steps[name], "--data.max_body_tokens") == ["100"]
        short = "--data.max_title_tokens" in steps[name].command
        assert short == (stored < 24)
    own = plan(set={"data.max_title_tokens": 20})["finetune-teacher-1"]
    assert words_after(own, "--data.max_title_tokens") == ["20"]


def test_lengths_that_are_not_stored_are_refused_before_anything_is_made():
    with pytest.raises(ConfigError, match=r"40, but tokenizer\.title_tokens stores 32: raise"):
        plan(set={"data.max_title_tokens": 40})


def test_settings_of_all_runs_go_to_the_tasks_that_read_them():
    common = {"data.history_length": 7, "run.max_steps": 50, "run.sed": 1}
    student = {"name": "s", "layers": [0], "set": {"loss.temperature": 3}}
    steps = plan(set=common, students=[student])
    runs = [name for name, step in steps.items() if step.command[1] == "train"]
    of_clicks = {name for name in runs if "--data.clicks" in steps[name].command}
    distilled = {"stage-1-s-s0", "stage-2-s-s0"}
    assert distilled - of_clicks and of_clicks - distilled
    for name in runs:
        words = steps[name].command
        assert ("--data.history_length" in words) == (name in of_clicks)
        assert ("--loss.temperature" in words) == (name in distilled)
        assert "--run.max_steps" in words
        assert "--run.sed" in words, "to be refused by name"


def test_evaluations_are_told_the_period_that_finetuning_is_told():
    early = {"set": {"data.clicks_since": "2019-11-10", "data.clicks_until": "2019-11-12"}}
    steps = plan(stages={"finetune": early})
    for name in ("evaluate-popularity", "evaluate-student-1-s0"):
        assert words_after(steps[name], "--train-since") == ["2019-11-10"]
        assert words_after(steps[name], "--train-until") == ["2019-11-12"]


def test_parts_can_be_left_out():
    steps = plan(
        data={"articles_set": "A", "train_set": "T", "dev_set": "D"},
        tokenizer={"name": "some/bert"},
        baselines=dict.fromkeys(("plain_students", "plain_teacher", "popularity", "random"), False),
        evaluate={"teachers": False, "plot": False},
    )
    assert not any(name.startswith(("synth", "build", "plain", "train-tok")) for name in steps)
    assert steps["tokenize"].needs == ()
    assert [name for name in steps if name.startswith("evaluate")] == ["evaluate-student-1-s0"]
    assert "--plot" not in steps["report"].command
    assert "--ceiling" not in steps["report"].command
    assert words_after(steps["evaluate-student-1-s0"], "--clicks") == ["D"]


def test_an_untrained_model_is_a_run_of_one_step_that_changes_nothing():
    assert not any("untrained" in name for name in plan())
    steps = plan(baselines={"untrained": True})
    step = steps["untrained-s0"]
    assert words_after(step, "--optimizer.lr") == ["1e-30"]
    assert words_after(step, "--run.max_steps") == ["1"]
    assert words_after(steps["evaluate-untrained-s0"], "--name") == ["untrained"]
    check_steps([step])
    # A split that validates while it trains: the one step has nothing to validate.
    validation = {"validation.max_impressions": 500, "validation.until": "2019-11-15"}
    steps = plan(
        baselines={"untrained": True},
        data=SMALL["data"] | {"split": "public"},
        stages={"finetune": {"set": validation | {"validation.patience": 2}}},
    )
    check_steps([steps["untrained-s0"], steps["plain-teacher-s0"]])


def test_fields_that_are_tokenized_and_read():
    changes = {
        "tokenizer": {"fields": ["title", "abstract"], "options": {"abstract-tokens": 96}},
        "set": {"data.news_text": ["title", "abstract"]},
    }
    steps = plan(**changes)
    words = steps["tokenize"].command
    assert words_after(steps["tokenize"], "--fields") == ["title,abstract"]
    assert words_after(steps["tokenize"], "--abstract-tokens") == ["96"]
    assert "--title-tokens" in words and "--body-tokens" not in words
    read = words_after(steps["finetune-teacher-1"], "--data.news_text")
    assert read == ["title", "abstract"]
    assert "--fields" not in plan()["tokenize"].command
    assert words_after(plan()["tokenize"], "--body-tokens") == ["512"]


def test_words_of_options_and_overrides():
    given = {"a_b": 1, "c": True, "d": False, "e": None, "f": [1, 2]}
    assert options(given) == ("--a-b", "1", "--c", "--f", "1", "2")
    assert overrides({"a": {"b": None, "c": True}, "d.e": [], "f": 0.5}) == (
        *("--a.b", "null", "--a.c", "true", "--d.e", "--f", "0.5"),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"studnets": []}, "studnets is not a setting; did you mean students"),
        ({"students": [{"layers": [0]}]}, r"students\[0\]\.name is missing"),
        ({"students": [{"name": "a", "layers": "x"}]}, r"layers\[0\] is 'x' \(str\); expected int"),
        ({"students": [{"name": "a", "layers": [0], "init": "b"}]}, "one of backbone, teacher"),
        ({"students": [{"name": "a/b", "layers": [0]}]}, "name 'a/b' must be unique"),
        ({"students": [{"name": "a", "layers": []}]}, "keeps no layers"),
        ({"seeds": []}, "expected at least one"),
        ({"seeds": [True]}, "expected int"),
        ({"data": {}}, "found none of them"),
        ({"data": {"articles": ["a"]}}, "needs data.train_clicks"),
        ({"data": {"synthesize": {}, "train_set": "T"}}, "belong to data.articles_set"),
        ({"data": {"synthesize": {}, "dev_set": "D"}}, "belong to data.articles_set"),
        (
            {"data": {"synthesize": {}, "articles_set": "x"}},
            "data.synthesize and data.articles_set",
        ),
        ({"teachers": {"steps": [5, 5]}}, "expected at least one, in ascending order"),
        ({"tokenizer": 3}, "tokenizer: expected keys and values, found 3"),
        ({"resources": {"gpus": "two"}}, "resources.gpus is 'two'"),
        ({"resources": {"processes": 0}}, "resources: processes is 0; expected at least 1"),
        ({"stages": {"plain": {"resources": {"nodes": -1}}}}, "resources: nodes is -1"),
        ({"resources": {"memory_gib": 0}}, "resources: memory_gib is 0"),
        ({"cluster": {"env": {"N": 8}}}, r"env\.N is 8 \(int\); expected str, in quotes"),
        ({"cluster": {"env": {1: "x"}}}, "a key of cluster.env is 1"),
        ({"stages": {"post_train": {"set": {"run.max_steps": 15}}}}, "the copy of step 20, but"),
        ({"stages": {"post_train": {"set": {"run.max_steps": 19}}}}, "the copy of step 20, but"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        plan(**changes)


def test_every_step_waits_for_what_it_reads_and_takes_what_it_needs():
    steps = plan(seeds=[3, 5], resources={"processes": 4})
    assert steps["post-train"].needs == ("tokenize",)
    assert steps["cache-1"].needs == ("post-train",)
    assert steps["stage-1-student-1-s5"].needs == ("cache-1",)
    assert set(steps["stage-2-student-1-s5"].needs) == {"stage-1-student-1-s5", "cache-2"}
    teachers = {"finetune-teacher-1", "finetune-teacher-2"}
    assert set(steps["cache-2"].needs) == {*teachers, "build-train"}
    assert set(steps["plain-teacher-s3"].needs) == {"tokenize", "build-train"}
    assert set(steps["evaluate-student-1-s3"].needs) == {"stage-2-student-1-s3", "build-dev"}
    columns = "R/data/articles/columns"
    assert steps["cache-1"].proof == (f"{columns}/teacher-text-*/column.json",)
    assert steps["cache-2"].proof == (f"{columns}/teacher-news-*/column.json",)
    assert words_after(steps["evaluate-student-1-s5"], "--seed") == ["5"]
    ranks = {name: step.resources.processes for name, step in steps.items()}
    assert ranks["post-train"] == ranks["plain-student-1-s5"] == 4
    assert ranks["cache-1"] == ranks["tokenize"] == ranks["report"] == 1
    plan(stages={"post_train": {"set": {"run.max_steps": 20}}})  # the copy is of the last step


@pytest.mark.parametrize(
    ("section", "value", "needed"),
    [
        ("data", {"validate_from": "2019-11-13"}, "data.split: public"),
        ("data", {"articles": [], "articles_set": "a", "train_set": "t", "dev_set": "d",
                  "build_articles": {"bodies": "b"}, "synthesize": None}, "building sets"),
        ("data", {"train_clicks": ["t"]}, "data.articles"),
        ("tokenizer", {"name": "tok", "vocab_size": 100}, "training a tokenizer"),
        ("tokenizer", {"name": "tok", "train_options": {"max-sentences": 9}}, "training a token"),
    ],
)  # fmt: skip
def test_what_plays_no_part_is_refused(section, value, needed):
    with pytest.raises(UsageError, match=f"is set, but has no effect without {needed}"):
        plan(**{section: SMALL.get(section, {}) | value})


def test_files_that_hold_no_pipeline(tmp_path: Path):
    path = tmp_path / "p.yaml"
    with pytest.raises(UsageError, match="does not exist"):
        load_pipeline(path)
    path.write_text("run: [")
    with pytest.raises(UsageError, match="is not YAML"):
        load_pipeline(path)
    path.write_text("- 1")
    with pytest.raises(UsageError, match="expected keys and values, found list"):
        load_pipeline(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"p\.yaml: run is missing"):
        load_pipeline(path)


@pytest.mark.parametrize("name", ["mind.yaml", "demo.yaml"])
def test_the_templates_resolve_to_the_last_training_step(name: str):
    steps = pipeline_steps(load_pipeline(TEMPLATES / name))
    check_steps(steps)
    assert steps[-1].name == "report"


def test_a_wrong_override_is_found_before_anything_runs():
    steps = list(plan(stages={"finetune_distill": {"set": {"loss.temprature": 2}}}).values())
    with pytest.raises(UsageError, match=r"step stage-2-student-1-s0: .*temprature"):
        check_steps(steps)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"run": str(tmp_path / "run")}))
    return path


def test_print_shows_the_steps_and_runs_nothing(config_file: Path, capsys):
    assert main(["pipeline", "run", str(config_file), "--print", "--until", "post-train"]) == 0
    said = capsys.readouterr().out
    assert "tnr train post_train" in said
    assert "post-train  (after tokenize)" in said
    assert "cache-1" not in said
    assert not (config_file.parent / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"set": {"run.micro_batch": 5}}, "step post-train: pipeline file: run.global_batch 32 "),
        (
            {"stages": {"finetune": {"resources": {"processes": 3}}}},
            "step finetune-teacher-1: run.global_batch 128 is not a multiple of 3 ranks",
        ),
        ({"set": {"run.deepspeed": "zero9"}}, "step post-train: run.deepspeed is 'zero9'"),
        (
            {"set": {"run.copies.rule": "first_m", "run.max_steps": 30}},
            "step finetune-teacher-1: run.copies.rule first_m with every 500 gives 0 copies",
        ),
        (
            {"data": {"synthesize": {}, "build_articles": {"sample-per-shard": 3}}},
            "step build-articles: unrecognized arguments: --sample-per-shard 3",
        ),
        (
            {"evaluate": {"options": {"batch-tokens": "many"}}},
            "argument --batch-tokens: 'many' is not a whole number",
        ),
        ({"evaluate": {"options": {"help": True}}}, "--help cannot be a step"),
        (
            {"evaluate": {"options": {"name": "same"}}},
            "--name of step evaluate-teacher-1 is set by the pipeline itself; remove name",
        ),
        ({"teachers": {**SMALL["teachers"], "cache": {"models": "m"}}}, "--models of step cache-1"),
        ({"tokenizer": {"options": {"title_tokens": 9}}}, "--title-tokens of step tokenize"),
        ({"data": {"synthesize": {"out": "elsewhere"}}}, "--out of step synthesize"),
        ({"tokenizer": {"title_tokens": -5}}, "'-5' is not a whole number from 1 on"),
        ({"run": "-x"}, "step synthesize: argument --out: expected one argument"),
    ],
)
@pytest.mark.parametrize("action", [["run", "--print"], ["submit", "--print"], ["run"]])
def test_what_a_step_would_refuse_is_not_printed(changes, said, action, tmp_path: Path, capsys):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"run": str(tmp_path / "run")} | changes))
    assert main(["pipeline", *action, str(path)]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.out == "" and len(told.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_settings_that_others_beat_are_named(tmp_path: Path, capsys):
    path = tmp_path / "p.yaml"
    changes = {
        "set": {"run": {"micro_batch": 2, "seed": 5}, "optimizer.lr": 0.5},
        "stages": {"post_train": {"set": {"run.micro_batch": 4, "optimizer.lr": 0.5}}},
        "students": [{"name": "s", "layers": [0], "set": {"run.micro_batch": 8, "run.dir": "d"}}],
    }
    path.write_text(yaml.safe_dump(SMALL | {"run": str(tmp_path / "run")} | changes))
    notes = [
        "run.seed in 'set' has no effect: the pipeline sets it itself",
        "run.micro_batch is 2 in 'set' but 4 in 'stages.post_train.set', which wins there",
        "run.micro_batch is 2 in 'set' but 8 in 'set of student s', which wins there",
        "run.dir in 'set of student s' has no effect: the pipeline sets it itself",
    ]
    for action in (["run", "--print"], ["submit", "--print"]):
        assert main(["pipeline", *action, str(path)]) == 0
        said = capsys.readouterr().err.splitlines()
        assert sorted(said) == sorted(f"tnr: note: {note}" for note in notes)
    path.write_text(yaml.safe_dump(SMALL | {"run": str(tmp_path / "run")}))
    assert main(["pipeline", "run", str(path), "--print"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teachers": {"count": 10**9}}, "teachers.count is 1,000,000,000; expected at most 100"),
        ({"teachers": {"steps": list(range(1, 500))}}, "number of teachers.steps is 499"),
        ({"seeds": list(range(5000))}, "the number of seeds is 5,000; expected at most 1,000"),
        (
            {
                "seeds": list(range(100)),
                "students": [{"name": f"s{n}", "layers": [0]} for n in range(20)],
            },
            "the number of students x seeds is 2,000; expected at most 1,000",
        ),
        ({"students": [{"name": "s", "layers": list(range(2000))}]}, "layers of student s is 2,00"),
        (
            {"seeds": list(range(900)), "set": {"data.news_text": ["title"] * 2000}},
            "have more than 2,000,000 words",
        ),
    ],
)
def test_counts_that_nobody_means_are_refused_before_they_fill_the_memory(changes, said):
    with pytest.raises(UsageError, match=said):
        plan(**changes)


def test_a_run_folder_with_brackets_is_proved_done(tmp_path: Path):
    folder = tmp_path / "[1]?"
    column = folder / "columns" / "tokens-abc"
    column.mkdir(parents=True)
    step = Step(name="a", command=("tnr",), proof=(f"{folder}/columns/tokens-*/column.json",))
    assert not proved(step)
    (column / "column.json").touch()
    assert proved(step)


def test_status_lists_every_step(config_file: Path, capsys):
    assert main(["pipeline", "status", str(config_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(plan())
    assert all("to do" in line for line in lines[1:])


def test_submit_without_slurm_says_so_and_prints_without_it(config_file: Path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["pipeline", "submit", str(config_file)]) == 1
    assert "there is no sbatch on this machine" in capsys.readouterr().err
    assert main(["pipeline", "submit", str(config_file), "--print"]) == 0
    said = capsys.readouterr().out
    assert said.count("#!/bin/bash") == len(plan())
    assert "--dependency=afterok:<finetune-teacher-1>:<finetune-teacher-2>:<build-train>" in said


def test_another_log_of_the_demo_is_split_anew_and_the_same_one_once(tmp_path: Path):
    logs = [tmp_path / name for name in ("one.tsv", "two.tsv", "copy.tsv")]
    for log, user in zip(logs, "ABA", strict=True):
        log.write_text("".join(f"{n}\t{user}\n" for n in range(20)))
    one, two, copy = (hold_out(log, tmp_path / "split") for log in logs)
    for (train, dev), log in ((one, logs[0]), (two, logs[1])):
        assert train.read_text() + dev.read_text() == log.read_text()
    assert copy == one != two
    logs[0].write_text(logs[1].read_text())  # the same name, another content
    assert hold_out(logs[0], tmp_path / "split") == two


def test_launchers_load_no_torch():
    code = (
        "import sys, launchers.local, launchers.slurm, launchers.pipeline, launchers.ranks, "
        "launchers.mark; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_layers_that_the_backbone_lacks_are_refused_before_anything_is_made(tmp_path, capsys):
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 6}')
    distil = tmp_path / "distil"
    distil.mkdir()
    (distil / "config.json").write_text('{"model_type": "distilbert", "n_layers": 6}')
    path = tmp_path / "p.yaml"
    for backbone in (
        {"name": str(bert)},
        {"name": str(distil)},
        {"name": "random", "num_layers": 6},
        {"name": str(tmp_path / "not-here-yet")},
    ):
        for layer in (5, 9):
            given = {f"model.backbone.{key}": value for key, value in backbone.items()}
            students = [{"name": "s", "layers": [0, layer]}]
            path.write_text(yaml.safe_dump(SMALL | {"set": given, "students": students}))
            wrong = layer == 9 and "not-here" not in backbone["name"]
            for words in (["submit"], ["run"]):
                assert main(["pipeline", *words, str(path), "--print"]) == (2 if wrong else 0)
                said = capsys.readouterr().err
                line = (
                    f"step stage-1-s-s0: {'pipeline file: ' * (backbone['name'] == 'random')}"
                    f"model.backbone.layers is [0, 9], but the backbone {backbone['name']} has 6 "
                    "layers; expected numbers from 0 to 5\n"
                )
                assert (line in said) is wrong
