"""What a model reads of an article, and of a user: the same in training, evaluation, prediction and
the teacher server, and equal to a slow reference."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exports import rewrite
from helpers.rich import joined_ids, make_rich_world, rich_sample
from helpers.teacher_columns import targets
from helpers.world import TINY_CLICKS, TinyWorld, make_world

from shards.clicks import ClickColumn
from shards.columns import ColumnReader
from shards.stream import Stream
from shards.tokenize import tokenize_set
from shards.tokenizer import load_tokenizer
from trainer.cli.main import main
from trainer.errors import ColumnError, ConfigError, ModelError, UsageError
from trainer.evaluate.evaluate import EvaluateOptions, make_ready
from trainer.evaluate.metrics import ranks_without_ties
from trainer.evaluate.pairs import open_click_log
from trainer.evaluate.scoring import score_impressions
from trainer.evaluate.sharded import Ranks
from trainer.export.folder import load_export
from trainer.plan.compute import longest_work
from trainer.plan.sizes import bert_size, task_size
from trainer.recipes.load import from_settings, load_config
from trainer.tasks.build import build
from trainer.tasks.finetune.clicks import score_clicks
from trainer.tasks.live import LiveClickSignals
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.kinds.base import teacher_identity
from trainer.teacher_server.kinds.clicks import StoredClickSignals
from trainer.teacher_server.signals import ClickRows
from trainer.teacher_server.teachers import adopt

PARTS = [("title", 10), ("category", 6), ("abstract", 12)]
SETTINGS = {
    "data__news_text": [field for field, _ in PARTS],
    "data__max_category_tokens": 6,
    "data__max_abstract_tokens": 12,
    "model__backbone__hidden_dropout": 0.0,
    "model__backbone__attention_dropout": 0.0,
}
KINDS = {
    "additive": {"model__user_encoder": "additive"},
    "nrms": {"model__user_encoder": "nrms", "model__user_heads": 4},
    "last_k_mean": {"model__user_encoder": "last_k_mean", "model__user_last_k": 3},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_rich_world(tmp_path_factory.mktemp("rich"))


def slow_vectors(world: TinyWorld, model: torch.nn.Module, parts: list) -> np.ndarray:
    """Every article encoded by itself from the tokenizer's own ids."""
    tokenizer = load_tokenizer(world.tokens.tokenizer_dir)
    rows = []
    with torch.inference_mode():
        for row in range(world.articles.num_rows):
            ids = torch.tensor([joined_ids(tokenizer, rich_sample(row), parts)])
            rows.append(model.encode_news(ids, torch.ones_like(ids))[0].numpy())
    return np.stack(rows)


def slow_users(world: TinyWorld, model: torch.nn.Module, news: np.ndarray, kind: str) -> np.ndarray:
    """Every user by itself; ``last_k_mean`` in NumPy, the others by the model on one history."""
    users = []
    for sample in world.impressions:
        history = sample["history"][-5:]
        if not history:
            cold = model.user_encoder.pad_doc
            if kind == "nrms":  # attention to one slot alone is its value
                cold = model.user_encoder.self_attention.value(cold)
            users.append(cold.detach().numpy())
        elif kind == "last_k_mean":
            users.append(np.mean([news[row] for row in history[-3:]], axis=0))
        else:
            clicked = torch.from_numpy(news[history])[None]
            with torch.inference_mode():
                filled = torch.ones(1, len(history), dtype=torch.bool)
                users.append(model.encode_users(clicked, filled)[0].numpy())
    return np.stack(users)


@pytest.mark.parametrize("kind", KINDS)
def test_training_evaluation_prediction_and_teachers_say_the_same(
    world: TinyWorld, kind: str, tmp_path: Path
) -> None:
    """Users without any history among them: their learned vector is used and trained alike."""
    torch.manual_seed(0)
    config = world.config("finetune", **SETTINGS, **KINDS[kind])
    built = build(config)
    built.export(built.module.model, tmp_path / "export", {})
    export = load_export(tmp_path / "export")
    model = export.load_model()
    news = slow_vectors(world, model, PARTS)
    users = slow_users(world, model, news, kind)
    samples = list(world.impressions)
    assert sum(not sample["history"] for sample in samples) == 12
    scores = [news[s["candidates"]] @ users[i] for i, s in enumerate(samples)]
    offsets = np.cumsum([0, *map(len, scores)])
    expected = np.concatenate(scores)

    log = open_click_log(world.articles.path, world.impressions.path)
    ready = make_ready(export, log, EvaluateOptions(device="cpu"), Ranks())
    length = ready.history_length
    scored = score_impressions(ready.model, ready.news_NE, log.clicks, history_length=length)
    np.testing.assert_allclose(scored.scores, expected, rtol=1e-4, atol=1e-5)

    out = tmp_path / "prediction.zip"
    sets = ["--articles", world.articles.path, "--clicks", world.impressions.path]
    assert main([str(word) for word in ["predict", export.folder, *sets, "--out", out]]) == 0
    lines = zipfile.ZipFile(out).read("prediction.txt").decode().splitlines()
    ranks = [int(rank) for line in lines for rank in line.split("[")[1][:-1].split(",")]
    assert ranks == ranks_without_ties(scored.scores, offsets).tolist()

    request = FillRequest(articles=world.articles, impressions=world.impressions, dtype="float32")
    fill([str(export.folder)], request, lambda line: None)
    rows = np.arange(len(samples))
    places = np.stack([np.zeros(len(rows), np.int64), np.diff(offsets) - 1], axis=1)
    asked = ClickRows(np.arange(world.articles.num_rows), rows, places)
    sources = [
        StoredClickSignals(
            world.articles, world.impressions, [export.folder], "float32", "fp32", None
        ),
        LiveClickSignals(world.articles, world.impressions, [export.folder]),
    ]
    for source in sources:
        said = source.say(source.read(asked))
        np.testing.assert_allclose(said.news[0], news, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(said.users[0], users, rtol=1e-4, atol=1e-5)
        of_places = expected[offsets[:-1, None] + places]
        np.testing.assert_allclose(said.scores[0], of_places, rtol=1e-4, atol=1e-5)

    trained_scores(world, config, built, expected, offsets)


def trained_scores(world, config, built, expected, offsets) -> None:
    """A whole epoch through the task in train mode: scores of the candidates that it drew."""
    clicks = ClickColumn.open(world.impressions)
    module = built.module.train()
    cold = 0
    stream = Stream(built.data.order, 8)
    for _, batch in zip(range(clicks.num_clicks // 8), stream, strict=False):
        made = built.data.collate(batch).batch
        with torch.no_grad():
            found = score_clicks(module.model, made)[2].numpy()
        rows, clicked = clicks.click(batch.rows)
        others = clicks.sample_negatives(config.run.seed, batch.rows, batch.epochs, 3)
        places = np.concatenate([clicked[:, None], others], axis=1)
        of_places = expected[offsets[rows][:, None] + places]
        np.testing.assert_allclose(found, of_places, rtol=1e-4, atol=1e-5)
        is_cold = ~made.history_mask.numpy().any(axis=1)
        cold += int(is_cold.sum())
        assert not is_cold.any() or np.abs(found[is_cold]).max() > 1e-3
    assert cold > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_cold_users_alone_trains_their_vector(world: TinyWorld, kind: str) -> None:
    built = build(world.config("finetune", **SETTINGS, **KINDS[kind]))
    clicks = ClickColumn.open(world.impressions)
    rows, _ = clicks.click(np.arange(clicks.num_clicks))
    cold = np.flatnonzero(~clicks.history(rows, 1)[1].any(axis=1))
    batch = next(Stream(built.data.order, 8))
    batch = type(batch)(cold[:8], np.zeros(8, np.int64), batch.position)
    out = built.module.train()(built.data.collate(batch).batch)
    out["loss"].backward()
    assert built.module.model.user_encoder.pad_doc.grad.abs().max() > 0


def test_a_learned_vector_is_read_as_the_released_code_reads_it(world: TinyWorld) -> None:
    """In training and by the teacher server it stands in empty slots; in use a user without any
    history is zero, whose candidates all score 0."""
    settings = SETTINGS | KINDS["last_k_mean"] | {"model__history_padding": "learned"}
    export = load_export(world.teacher("finetune", 7, **settings))
    log = open_click_log(world.articles.path, world.impressions.path)
    ready = make_ready(export, log, EvaluateOptions(device="cpu"), Ranks())
    length = ready.history_length
    scored = score_impressions(ready.model, ready.news_NE, log.clicks, history_length=length)
    cold = np.array([not sample["history"] for sample in world.impressions])
    is_cold = np.repeat(cold, np.diff(scored.offsets))
    assert not scored.scores[is_cold].any() and (scored.scores[~is_cold] != 0).all()
    live = LiveClickSignals(world.articles, world.impressions, [export.folder])
    places = np.zeros((int(cold.sum()), 1), np.int64)
    asked = ClickRows(np.arange(3), np.flatnonzero(cold), places)
    said = live.say(live.read(asked))
    pad_doc = ready.model.user_encoder.pad_doc.detach().numpy()
    np.testing.assert_allclose(said.users[0], np.tile(pad_doc, (cold.sum(), 1)), rtol=1e-6)


def test_only_the_clicks_that_count_are_encoded(world: TinyWorld) -> None:
    """The mean of the last 3 of 5 clicks reads 3, and says so to whoever uses the export."""
    config = world.config("finetune", **SETTINGS, **KINDS["last_k_mean"])
    built = build(config)
    made = built.data.collate(next(Stream(built.data.order, 8))).batch
    assert made.history_mask.shape[1] == 3
    export = load_export(world.teacher("finetune", 3, **SETTINGS, **KINDS["last_k_mean"]))
    assert export.info["history_length"] == 3
    assert export.info["model_settings"]["user_last_k"] == 3
    assert longest_work(config).mean.texts == 8 * (3 + 1 + 3)


RELEASED = {
    "model__pooling_mask": False,
    "model__history_padding": "learned",
    "data__pad_to_max": True,
}


@pytest.mark.parametrize("of_student", [{}, RELEASED | SETTINGS], ids=["title", "released"])
def test_stored_and_live_teachers_that_read_more_than_titles_say_the_same(
    world: TinyWorld, of_student: dict
) -> None:
    """Also where the released code's empty slots are texts of the joined length, padding alone."""
    released = "model__pooling_mask" in of_student
    teacher = world.teacher(
        "finetune", 4 + 10 * released, **SETTINGS, **(RELEASED if released else {})
    )
    request = FillRequest(articles=world.articles, impressions=world.impressions, dtype="float32")
    fill([teacher], request, lambda line: None)
    options = {"teachers__models": [teacher], "teachers__dtype": "float32", **of_student}
    if released:
        options |= {"loss__padded_slots": True}
    found = []
    for source in ("stored", "live"):
        torch.manual_seed(1)
        built = build(world.config("finetune_distill", **options, teachers__source=source))
        built.module.eval()
        assert built.data.news.fields == (tuple(f for f, _ in PARTS) if released else ("title",))
        made = built.data.collate(next(Stream(built.data.order, 8))).batch
        if released:
            assert made.news.parts[0].inputs.shape[1] == 10 + 6 + 12 - 2
        out = built.module(made)
        found.append([out["loss"].item(), *(term.item() for term in out["losses"].values())])
    np.testing.assert_allclose(found[0], found[1], rtol=2e-6)


def test_an_export_says_what_it_reads_and_an_older_one_reads_the_title(world: TinyWorld) -> None:
    export = load_export(world.teacher("finetune", 5, **SETTINGS))
    assert export.info["news_text"] == [list(part) for part in PARTS]
    assert export.news_parts == tuple(PARTS) and export.info["max_body_tokens"] is None
    plain = load_export(world.teacher("finetune", 6))
    assert plain.info["news_text"] == [["title", 10]]
    assert "user_last_k" not in plain.info["model_settings"]
    post_trained = load_export(world.teacher("post_train", 6))
    assert post_trained.news_parts == (("title", 10),)
    new = teacher_identity(plain)
    assert set(new) == {
        "format", "teacher_weights_sha256", "teacher_kind", "model_settings", "tokenizer_sha256",
        "max_title_tokens", "pad_to_max",
    }  # fmt: skip
    rewrite(plain.folder, lambda info: info.pop("news_text"))
    older = load_export(plain.folder)
    assert older.news_parts == (("title", 10),) and teacher_identity(older) == new
    assert older.news_texts(world.tokens).fields == ("title",)
    assert teacher_identity(export)["news_text"] == [list(part) for part in PARTS]


def test_columns_of_a_teacher_that_reads_otherwise_are_refused(world: TinyWorld) -> None:
    teacher = world.teacher("finetune", 8, **SETTINGS)
    request = FillRequest(articles=world.articles, impressions=world.impressions)
    fill([teacher], request, lambda line: None)
    rewrite(teacher, lambda info: info.update(news_text=[["title", 10]]))
    with pytest.raises(ColumnError, match=r"news_text is .*'category', 6.* in the column"):
        StoredClickSignals(world.articles, world.impressions, [teacher], "float16", "fp32", None)


def test_a_model_finds_the_column_that_stores_what_it_reads(tmp_path: Path) -> None:
    world = make_rich_world(tmp_path)
    export = load_export(world.teacher("finetune", 1, **SETTINGS))
    title_alone = load_export(world.teacher("finetune", 2))
    everything = world.tokens.folder
    tokenizer = world.tokens.tokenizer_dir
    small = tokenize_set(world.articles, tokenizer, fields=("title",), title_tokens=10)
    assert export.tokens(world.articles).folder == everything
    assert title_alone.tokens(world.articles).folder in (everything, small.folder)
    everything.rename(tmp_path / "elsewhere")
    assert title_alone.tokens(world.articles).folder == small.folder
    with pytest.raises(ColumnError, match="stores title, not the category; run `tnr shards tok"):
        export.tokens(world.articles)


def test_an_unfinished_column_beside_the_right_one_is_no_hindrance(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    export, right = load_export(world.teacher("finetune", 1)), world.tokens.folder
    folder = right
    for title_tokens in range(4, 10):
        options = {"fields": ("title",), "title_tokens": title_tokens}
        folder = tokenize_set(world.articles, world.tokens.tokenizer_dir, **options).folder
        next(folder.glob("*000000.json")).unlink()
        if folder.name < right.name:
            break
    assert folder.name < right.name  # looked at first
    assert export.tokens(world.articles).folder == right
    right.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"{folder.name} \(.*is not complete: 1 of"):
        export.tokens(world.articles)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.news_text", "title", "title"], "names a field twice"),
        (["--data.news_text", "entities"], "'title', 'abstract', 'body', 'category'"),
        (["--data.news_text"], "data.news_text is empty"),
        (["--data.max_abstract_tokens", "2"], "data.max_abstract_tokens is 2"),
        (["--data.max_category_tokens", "0"], "data.max_category_tokens is 0"),
        (
            ["--model.user_encoder", "last_k_mean", "--model.user_last_k", "0"],
            "model.user_last_k is 0",
        ),
        (
            ["--model.user_encoder", "last_k_mean", "--data.history_length", "9"],
            "model.user_last_k 10 is more than data.history_length 9",
        ),
        (["--model.user_encoder", "last"], "'additive', 'nrms', 'last_k_mean'"),
        (
            ["--data.news_text", "title", "body", "--model.backbone.max_positions", "540"],
            "data.max_title_tokens 30 + data.max_body_tokens 512 make texts of up to 541 tokens, "
            "but the backbone reads at most 540",
        ),
    ],
)
def test_settings_that_cannot_be_run_are_one_line(words: list[str], said: str) -> None:
    given = ["--data.articles", "a", "--data.clicks", "c", "--run.dir", "r"]
    with pytest.raises(ConfigError) as caught:
        load_config("finetune", [*given, "--model.backbone.name", "random", *words])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_texts_longer_than_a_given_backbone_end_before_training(world: TinyWorld, tmp_path: Path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=200, max_position_embeddings=25, intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(tmp_path / "lm")
    load_tokenizer(world.tokens.tokenizer_dir).save_pretrained(tmp_path / "lm")
    settings = SETTINGS | {"model__backbone__name": str(tmp_path / "lm")}
    with pytest.raises(ConfigError, match=r"up to 26 tokens, but the backbone reads at most 25"):
        build(world.config("finetune", **settings))
    build(world.config("finetune", **settings | {"data__max_abstract_tokens": 11}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_counts_texts_and_parameters(kind: str) -> None:
    from trainer.models.build import build_recommender

    settings = {key.replace("__", "."): value for key, value in (SETTINGS | KINDS[kind]).items()}
    given = {"task": "finetune", "data.articles": "a", "data.clicks": "c", "run.dir": "r"}
    config = from_settings(TINY_CLICKS | given | settings, where="test")
    clicks = 3 if kind == "last_k_mean" else 5
    longest = 10 + 6 + 12 - 2
    work = longest_work(config).mean
    assert (work.texts, work.slots) == (8 * (clicks + 4), 8 * (clicks + 4) * longest)
    assert work.slots_squared == 8 * (clicks + 4) * longest**2
    size = task_size(config, bert_size(config.model.backbone, 90))
    model = build_recommender(config.model, vocab_size=90, pad_id=0)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for p in model.user_encoder.parameters())
    attention, pooling = 3 * (12 * 12 + 12), 12 * 8 + 8 + 8 + 1
    assert own == 12 + {"additive": pooling, "nrms": attention + pooling, "last_k_mean": 0}[kind]


def test_room_for_a_column_that_is_not_built_is_of_its_fields(capsys) -> None:
    words = ["plan", "--articles", "1000", "--impressions", "64", "finetune", "--run.epochs", "1"]
    words += ["--model.backbone.name", "random", "--data.news_text", "title", "abstract"]
    assert main(words) == 0
    held = 1000 * ((30 + 512 + 64) * 2 + 3 * 8)
    assert f"{held / 1e9:9.2f} GB  token column, at most" in capsys.readouterr().out


def test_an_adopted_encoder_may_read_more_than_titles(world: TinyWorld, tmp_path: Path, capsys):
    from transformers import AutoModel, BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=200, max_position_embeddings=40, intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(tmp_path / "lm")
    tokenizer = load_tokenizer(world.tokens.tokenizer_dir)
    tokenizer.save_pretrained(tmp_path / "lm")
    name, out = str(tmp_path / "lm"), tmp_path / "adopted"
    parts = [("title", 10), ("abstract", 12)]
    with pytest.raises(UsageError, match=r"10 and --max-abstract-tokens 64 make texts of up to 73"):
        adopt(name, out, news_text=("title", "abstract"), max_title_tokens=10, max_body_tokens=40)
    with pytest.raises(UsageError, match="--news-text: unknown field 'url'"):
        adopt(name, out, news_text=("url",), max_body_tokens=40)
    words = ["teachers", "adopt", name, "--out", out, "--news-text", "title,abstract"]
    words += ["--max-title-tokens", 10, "--max-abstract-tokens", 12, "--max-body-tokens", 40]
    assert main([str(word) for word in words]) == 0
    assert "--fields title,abstract,body" in capsys.readouterr().out
    request = FillRequest(articles=world.articles, impressions=None, dtype="float32")
    fill([str(out)], request, lambda line: None)
    (target,) = targets(load_export(out), request)
    assert target.made_from["news_text"] == [list(part) for part in parts]
    stored = ColumnReader.open(*target).gather("title", np.arange(40))
    language_model = AutoModel.from_pretrained(name).eval()
    for row in range(40):
        ids = torch.tensor([joined_ids(tokenizer, rich_sample(row), parts)])
        with torch.no_grad():
            expected = language_model(ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(stored[row], expected.numpy(), rtol=1e-4, atol=1e-5)
