"""Whatever a value holds, a script has the lines of its template and the words meant for it."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launchers.slurm import ClusterConfig, make_job, render
from launchers.steps import Resources, Step
from trainer.cli.main import main
from trainer.errors import ConfigError

NASTY = ["a b", "a'b", 'a"b', "$(id)", "`id`", "a;id", "a#b", " #b", "%u", "%%j", "~", "*", "\\"]
NASTY += ["-x", "--x=1", "a && b", "é ü", "@{log}", "${HOME}", "!x", "a|b", ">x", "top5%users"]
LETTERS = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
VALUES = st.one_of(st.sampled_from(NASTY), st.text(LETTERS, min_size=1, max_size=12))
VALUES = VALUES.filter(str.strip)
PLACES = ("folder", "word", "task", "python", "container", "srun", "env", "module", "interface")
PLACES += ("partition", "account", "qos", "constraint")


def script(values: dict[str, str], *, array: bool, tasks: str) -> str:
    """The script of a step whose every value is given, two tasks or two ranks on two nodes."""
    cluster = ClusterConfig(
        tasks=tasks,
        python=values["python"],
        container=(values["container"], "exec"),
        srun=("--x", values["srun"]),
        env={"NAME": values["env"]},
        modules=(values["module"],),
        network_interface=values["interface"],
        partition=values["partition"],
        account=values["account"],
        qos=values["qos"],
        constraint=values["constraint"],
    )
    step = Step(
        name="step",
        command=("tnr", "train", "--run.dir", values["word"]),
        array=((values["task"],), ("b",)) if array else (),
        resources=Resources() if array else Resources(nodes=2, processes=2),
    )
    return make_job(step, cluster, Path("run") / values["folder"] / "pipeline", "d").script


def sbatch_words(line: str) -> list[str]:
    """The options of a directive as sbatch reads them (``_get_argument`` of its sources: double
    quotes group, a backslash takes the next character, # begins a comment)."""
    words, word, quoted, letters = [], "", False, iter(line.removeprefix("#SBATCH"))
    for letter in letters:
        if letter == "\\":
            word += next(letters)
        elif letter == '"':
            quoted = not quoted
        elif letter == "#":
            break
        elif letter.isspace() and not quoted:
            words += [word] if word else []
            word = ""
        else:
            word += letter
    return words + ([word] if word else [])


def shell_words(text: str) -> list[str]:
    """The words and operators of shell code, and of the code that ``bash -c`` gets in its turn."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = []
    for word in lexer:
        words += shell_words(word) if word.startswith("trap : USR1") else [word]
    return words


def parts(text: str) -> list[list[str]]:
    """Directives, then the whole shell code: comments are the template's own."""
    lines = text.splitlines()
    directives = [sbatch_words(line) for line in lines if line.startswith("#SBATCH")]
    code = "\n".join(line for line in lines if not re.match(r"\s*#", line))
    return [*directives, shell_words(code)]


@pytest.mark.parametrize("tasks", ["per_node", "per_rank"])
@pytest.mark.parametrize("array", [False, True])
@settings(deadline=None, max_examples=60)
@given(values=st.fixed_dictionaries(dict.fromkeys(PLACES, VALUES)))
@example(values=dict.fromkeys(PLACES, "a b'c\"d$(id);e#f%u&g"))
def test_no_value_becomes_a_line_or_a_word_of_its_own(array: bool, tasks: str, values: dict):
    marks = {place: f"MARK{number:02d}" for number, place in enumerate(PLACES)}
    expected = script(marks, array=array, tasks=tasks)
    values["folder"] = values["folder"].replace("\\", "")  # which Slurm could not keep
    found = script(values, array=array, tasks=tasks)
    assert len(found.splitlines()) == len(expected.splitlines())
    folder = str(Path("run") / values["folder"] / "pipeline")

    def filled(word: str) -> str:
        word = word.replace(f"run/{marks['folder']}/pipeline", folder)
        for place, mark in marks.items():
            word = word.replace(mark, values[place])
        return word

    log, *_ = (line for line in parts(expected) if line and line[0].startswith("--output"))
    for ours, theirs in zip(parts(found), parts(expected), strict=True):
        if theirs == log:
            percent = log[0].replace(f"run/{marks['folder']}/pipeline", folder.replace("%", "%%"))
            assert ours == [percent]
        else:
            assert ours == [filled(word) for word in theirs]


@pytest.mark.parametrize("letter", ["\n", "\r", "\x00", "\x1b", "\x85", "\u2028", "\t", "\udcff"])
@pytest.mark.parametrize(
    "place", ["folder", "word", "task", "python", "container", "srun", "env", "module", "partition"]
)
def test_a_control_character_is_refused_in_one_line(place: str, letter: str):
    values = dict.fromkeys(PLACES, "a") | {place: f"a{letter}#SBATCH --uid=0"}
    with pytest.raises(ConfigError, match="write it without") as caught:
        script(values, array=True, tasks="per_node")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run.dir", "a\n#SBATCH --uid=0"], "which holds a line break"),
        (["--run.dir", "r", "--model.backbone.name", "b\nrm x"], "which holds a line break"),
        (["--run.dir", "a\\b"], "Slurm drops"),
        (["--run.dir", "r", "--run.seed", "1\r"], "which holds a line break"),
    ],
)
def test_the_command_line_takes_no_line_break(words: list[str], said: str, capsys):
    assert main(["launch", "slurm", "--print", "post_train", "--data.articles", "a", *words]) == 2
    told = capsys.readouterr()
    assert said in told.err and len(told.err.splitlines()) == 1 and told.out == ""


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            'run: "a\\nb"\ndata: {synthesize: {}}\n',
            "line 1: a value is 'a\\nb', which holds a line",
        ),
        ('run: r\ndata: {synthesize: {"a\\nb": 1}}\n', "line 2: a value is"),
        ('run: r\ndata: {synthesize: {}}\ncluster: {setup: ["a\\nb"]}\n', "line 3: a value is"),
        ("run: r\ndata: {synthesize: {}}\ncluster: {env: {é: x}}\n", "not a valid variable name"),
    ],
)
def test_a_pipeline_file_takes_no_line_break(tmp_path: Path, file: str, said: str, capsys):
    path = tmp_path / "p.yaml"
    path.write_text(file)
    assert main(["pipeline", "submit", "--print", str(path)]) == 2
    told = capsys.readouterr()
    assert said in told.err and len(told.err.splitlines()) == 1 and told.out == ""


def test_a_percent_sign_of_the_run_folder_is_not_one_of_slurm_s(capsys):
    words = ["post_train", "--data.articles", "a", "--run.dir", "/data/top5%users"]
    assert main(["launch", "slurm", "--print", *words]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --output=/data/top5%%users/launch/train-%j.slurm.log\n" in out
    assert "mark=(python -m launchers.mark --folder /data/top5%users/launch " in out


def test_what_is_printed_can_be_pasted(tmp_path: Path, capsys):
    step = Step(name="a", command=("tnr", "x"))
    folder = Path("run é/it's $HOME")
    shown = render([make_job(step, ClusterConfig(), folder, "d")], folder)
    assert shlex.split(shown.splitlines()[-1])[-1] == str(folder / "slurm" / "a.sbatch")
    path = tmp_path / "p.yaml"
    path.write_text('run: "run é/it\'s $HOME"\ndata: {synthesize: {}}\n')
    assert main(["pipeline", "run", "--print", str(path), "--only", "synthesize"]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[1])[3:5] == [
        *("--out", "run é/it's $HOME/world"),
    ]


@pytest.mark.parametrize("folder", ["--wrap=id", "-x"])
def test_a_folder_that_sbatch_would_take_for_an_option_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="would read a script's path in it as an option"):
        make_job(Step(name="step", command=("tnr", "runs")), ClusterConfig(), Path(folder), "d")
