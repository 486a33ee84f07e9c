"""Loaders of inputs, shard sets and columns, for the fuzz target."""

import csv
import gzip
import hashlib
import io
import json
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import articles, news_line, write_json_lines, write_mind_folder
from helpers.foreign_tars import json_bytes, text_members, write_tar
from helpers.fuzz import Loader, same
from helpers.sets import make_articles, make_impressions, make_tokens

from shards.build import build_articles, build_impressions
from shards.clicks import ClickColumn
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import DataError, first_line
from shards.files import fingerprint, sha256_file
from shards.foreign import index_tars
from shards.pretrained import panics_as_errors
from shards.reader import ShardSet
from shards.tokenizer import load_tokenizer, tokenizer_facts
from shards.tokens import TokenColumn
from shards.verify import verify_set

TIME = "11/15/2019 8:55:22 PM"


# ---- articles and click logs


def _samples(shard_set: ShardSet) -> dict[str, Any]:
    return {
        "kind": shard_set.kind,
        "samples": [shard_set.sample(row) for row in range(len(shard_set))],
    }


def _build(pattern: str, **options: Any) -> Any:
    def load(folder: Path) -> dict[str, Any]:
        out = folder.with_name(f"{folder.name}-set")
        shutil.rmtree(out, ignore_errors=True)
        inputs = sorted(folder.glob(pattern)) or [folder / pattern]
        built = build_articles(inputs, out, max_refused=0.5, **options).shard_set
        found = _samples(built)
        refused = out / "refused.jsonl"
        found["refused"] = refused.read_text().count("\n") if refused.exists() else 0
        found["counts"] = dict(built.manifest.counts)
        found["problems"] = list(verify_set(out).problems)
        found["lines"] = None if len(inputs) > 1 else _lines(_input(inputs[0]))
        return found

    return load


def _input(path: Path) -> Path:
    return path / "news.tsv" if path.is_dir() else path


def _rows_add_up(folder: Path, before: Any, now: Any) -> str | None:
    """Every line that is not blank is in the set, refused and listed, or a duplicate."""
    if now["problems"]:
        return f"the set does not verify: {now['problems'][0]}"
    told = sum(now["counts"].get(name, 0) for name in ("repeated", "duplicate_content"))
    found = len(now["samples"]) + now["refused"] + told
    if now["lines"] is not None and abs(now["lines"] - found) > 1:
        return f"{now['lines']} lines, but {found} samples, refusals and duplicates"
    return None


def _lines(path: Path) -> int | None:
    """Lines of a plain file that are not blank; None where that is not known from its bytes."""
    data = path.read_bytes() if path.is_file() else b""
    if path.suffix not in (".jsonl", ".tsv") or b"\0" in data:
        return None
    return sum(bool(line.strip()) for line in data.split(b"\n"))


def _make_jsonl(folder: Path) -> None:
    write_json_lines(folder / "a.jsonl", articles(20))


def _make_jsonl_gz(folder: Path) -> None:
    write_json_lines(folder / "a.jsonl.gz", articles(20))


def _make_table(name: str, dialect: str) -> Any:
    def make(folder: Path) -> None:
        text = io.StringIO()
        rows = articles(20)
        rows[3]["body"] = 'Two\nlines, "quoted"' if dialect == "excel" else "One line"
        writer = csv.DictWriter(text, list(rows[0]), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return make


def _make_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(articles(20)), folder / "a.parquet")


def _make_mind(folder: Path) -> None:
    write_mind_folder(folder / "mind", [news_line(number) for number in range(20)])


def _make_mind_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "mind.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("news.tsv", "\n".join(news_line(number) for number in range(20)) + "\n")


def _make_log(folder: Path) -> None:
    write_json_lines(folder / "a.jsonl", articles(10))
    lines = [f"{n}\tU{n % 3}\t{TIME}\tN1 N2\tN3-0 N4-1 N{n % 3}-0" for n in range(20)]
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    build_articles([folder / "a.jsonl"], folder / "set")


def _load_log(folder: Path) -> dict[str, Any]:
    out = folder.with_name(f"{folder.name}-log")
    shutil.rmtree(out, ignore_errors=True)
    log = folder / "behaviors.tsv"
    built = build_impressions([log], folder / "set", out, max_refused=0.5).shard_set
    found = _samples(built)
    refused = out / "refused.jsonl"
    found["refused"] = refused.read_text().count("\n") if refused.exists() else 0
    found["counts"] = dict(built.manifest.counts)
    found["problems"] = list(verify_set(out).problems)
    found["lines"] = _lines(log)
    found["clicks"] = _clicks(built)
    return found


def _clicks(impressions: ShardSet) -> dict[str, Any]:
    column = ClickColumn.open(impressions)
    rows = np.arange(column.num_impressions)
    return {
        "history": [part.tolist() for part in column.history(rows, 4)],
        "candidates": [part.tolist() for part in column.candidates(rows)],
        "clicked": np.asarray(column.clicked(rows)).tolist(),
        "time": column.time(rows).tolist(),
        "user": column.user(rows).tolist(),
    }


# ---- tars made elsewhere


def _make_tars(folder: Path) -> None:
    rows = [(f"N{n}", f"Title {n}", f"Body {n} of some words") for n in range(12)]
    for number in range(2):
        part = rows[number * 6 : number * 6 + 6]
        members = [
            (f"{key}.json", json_bytes({"id": key, "title": title, "body": body}))
            for key, title, body in part
        ]
        write_tar(folder / f"shard-{number}.tar", members)


def _make_text_tars(folder: Path) -> None:
    members = [text_members(f"k{n}", f"Title {n}", f"Body {n} of some words") for n in range(8)]
    write_tar(folder / "train-0.tar", [member for pair in members for member in pair])


def _index(folder: Path) -> dict[str, Any]:
    out = folder.with_name(f"{folder.name}-index")
    shutil.rmtree(out, ignore_errors=True)
    built = index_tars([folder], out, max_refused=0.5)
    found = _samples(built)
    found["problems"] = list(verify_set(out).problems)
    return found


def _index_verifies(folder: Path, before: Any, now: Any) -> str | None:
    return f"the set does not verify: {now['problems'][0]}" if now["problems"] else None


def _make_indexed(folder: Path) -> None:
    _make_tars(folder)
    index_tars([folder])


# ---- shard sets: what is stored is what is read, or refused


def _make_set(folder: Path) -> None:
    make_articles(folder / "set", 20, samples_per_shard=8)


def _read_set(folder: Path) -> dict[str, Any]:
    where = folder / "set" if (folder / "set").is_dir() else folder
    found = ShardSet.open(where)
    return _samples(found) | {"fields": found.manifest.fields, "print": found.fingerprint}


def _older_says_other_fields(folder: Path, expected: Any, found: Any) -> str | None:
    """Allow other names of fields in a manifest without a checksum, as older versions wrote it."""
    (manifest,) = folder.glob("**/manifest.json")
    is_older = "checksum" not in json.loads(manifest.read_text())
    return None if is_older and same(found | {"fields": expected["fields"]}, expected) else "other"


def _verify(folder: Path) -> Any:
    """What verify calls intact is what is read; what verify names is an error."""
    from shards.errors import DamageError

    where = folder / "set" if (folder / "set").is_dir() else folder
    problems = verify_set(where).problems
    if problems:
        raise DamageError(f"{len(problems)} problems")
    return _read_set(folder)


def _forge_manifest(folder: Path) -> None:
    for path in folder.glob("**/manifest.json"):
        values = json.loads(path.read_text())
        for shard in values["shards"]:
            tar = path.parent / shard["name"]
            shard |= {"bytes": tar.stat().st_size, "sha256": sha256_file(tar)}
        parts: dict[str, Any] = {
            "format_version": values["format_version"],
            "kind": values["kind"],
            "shards": [[shard["samples"], shard["sha256"]] for shard in values["shards"]],
            "articles_fingerprint": values["articles_fingerprint"],
        }
        if "layout" in values:
            for shard in values["shards"]:
                index = path.parent / f"{Path(shard['name']).stem}.idx"
                shard |= {"index_bytes": index.stat().st_size, "index_sha256": sha256_file(index)}
            parts["layout"] = values["layout"]
            parts["shards"] = [
                [s["samples"], s["sha256"], s["index_sha256"]] for s in values["shards"]
            ]
        path.write_text(json.dumps(values | {"fingerprint": fingerprint(parts)}))


# ---- columns


def _make_token_column(folder: Path) -> None:
    make_tokens(make_articles(folder / "set", 20, samples_per_shard=8), folder / "tokenizer")


def _read_tokens(folder: Path) -> dict[str, Any]:
    column = TokenColumn.open(ShardSet.open(folder / "set"))
    rows = np.arange(column.num_rows)
    parts = [column.batch(field, rows, 12) for field in ("title", "body")]
    facts = [column.vocab_size, column.pad_id, column.prefix_ids, column.suffix_ids]
    return {
        "batches": [[array.tolist() for array in part] for part in parts],
        "facts": [*facts, column.tokenizer_sha256, column.limits],
        "skipped": column.skipped_rows.tolist(),
    }


def _make_click_column(folder: Path) -> None:
    made = make_articles(folder / "set", 20, samples_per_shard=8)
    make_impressions(folder / "clicks", made, 30, samples_per_shard=10)


def _read_clicks(folder: Path) -> dict[str, Any]:
    return _clicks(ShardSet.open(folder / "clicks"))


def _make_vectors(folder: Path) -> None:
    made = make_articles(folder / "set", 20, samples_per_shard=8)
    writer = ColumnWriter(made, "vectors", {"dtype": "float16"})
    for shard, info in enumerate(made.shards):
        values = np.arange(info.samples * 4, dtype=np.float16).reshape(-1, 4) + shard
        writer.write(shard, {"vector": values})


def _read_vectors(folder: Path) -> dict[str, Any]:
    reader = ColumnReader.open(ShardSet.open(folder / "set"), "vectors", {"dtype": "float16"})
    near, far = np.arange(20), np.array([0, 19, 8])
    return {"rows": [reader.gather("vector", rows).tolist() for rows in (near, far)]}


def _forge_cells(folder: Path) -> None:
    """Records that fit the data files: size, hashes, and the content of the header."""
    for data in folder.glob("**/columns/*/*.safetensors"):
        record = data.with_suffix(".json")
        values = json.loads(record.read_text())
        content = data.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        values["content"] = header["__metadata__"]["content"]
        values["bytes"], values["sha256"] = len(content), hashlib.sha256(content).hexdigest()
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + place for place in entry["data_offsets"])
                values["crc32"][name] = zlib.crc32(content[begin:end])
        record.write_text(json.dumps(values))


# ---- tokenizers


def _make_tokenizer(folder: Path) -> None:
    make_tokens(make_articles(folder / "set", 20), folder / "tokenizer")
    shutil.rmtree(folder / "set")


def _read_tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder / "tokenizer")
    try:  # as the command does
        with panics_as_errors():
            ids = tokenizer("The mayor of the river")["input_ids"]
    except Exception as error:
        raise DataError(first_line(error)) from error
    return [tokenizer_facts(tokenizer), ids]


def anything_goes(folder: Path, before: Any, now: Any) -> None:
    """For files that people write: other contents mean something else."""


LOADERS = [
    Loader("articles-jsonl", _make_jsonl, ("a.jsonl",), _build("a.jsonl"), _rows_add_up),
    Loader("articles-jsonl-gz", _make_jsonl_gz, ("a.*",), _build("a.jsonl.gz"), _rows_add_up),
    Loader("articles-csv", _make_table("a.csv", "excel"), ("a.*",), _build("a.csv"), anything_goes),
    Loader(
        "articles-tsv", _make_table("a.tsv", "excel-tab"), ("a.*",), _build("a.tsv"), anything_goes
    ),
    Loader("articles-parquet", _make_parquet, ("a.*",), _build("a.parquet"), anything_goes),
    Loader("articles-mind", _make_mind, ("mind/*",), _build("mind"), _rows_add_up),
    Loader("articles-mind-zip", _make_mind_zip, ("*.zip",), _build("mind.zip"), _rows_add_up),
    Loader("click-log", _make_log, ("behaviors.tsv",), _load_log, _rows_add_up),
    Loader("tars-of-json", _make_tars, ("*.tar",), _index, _index_verifies),
    Loader("tars-of-texts", _make_text_tars, ("*.tar",), _index, _index_verifies),
    *(
        Loader(name, make, files, load, _older_says_other_fields, _forge_manifest)
        for name, make, files, load in (
            ("tars-indexed", _make_indexed, ("*",), _read_set),
            ("shard-set", _make_set, ("set/*",), _read_set),
            ("shard-set-manifest", _make_set, ("set/manifest.json",), _read_set),
            ("verify", _make_set, ("set/*",), _verify),
            ("verify-indexed", _make_indexed, ("*",), _verify),
        )
    ),
    Loader("tokens", _make_token_column, ("set/columns/*/*",), _read_tokens, None, _forge_cells),
    Loader("tokens-info", _make_token_column, ("set/columns/*/*.json",), _read_tokens),
    Loader("clicks", _make_click_column, ("clicks/columns/*/*",), _read_clicks, None, _forge_cells),
    Loader("vectors", _make_vectors, ("set/columns/*/*",), _read_vectors, None, _forge_cells),
    Loader("tokenizer", _make_tokenizer, ("tokenizer/*",), _read_tokenizer, anything_goes),
]
