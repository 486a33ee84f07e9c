"""Locations as they are printed: what opens them is hidden, whatever way it is written."""

import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.location import shown, shown_text

KEY = "S3CRET"

WITH_KEYS = {
    f"https://user:{KEY}@host/sets/news": "https://***@host/sets/news",
    f"https://{KEY}@host/sets/news": "https://***@host/sets/news",
    f"HTTPS://user:{KEY}@host:8080/a#{KEY}": "HTTPS://***@host:8080/a?***",
    f"s3://ID:{KEY}/a/{KEY}@bucket/news": "s3://***@bucket/news",
    f"s3://ID:{KEY}@a/{KEY}@bucket/news": "s3://***@bucket/news",
    f"s3://{KEY}/{KEY}@bucket": "s3://***@bucket",
    f"s3://ID:{KEY}::{KEY}@bucket": "s3://***@bucket",
    f"s3:/ID:{KEY}@bucket": "s3:/***@bucket",  # what a Path makes of it
    f"s3://ID:{KEY}?{KEY}@bucket": "s3://***",
    f"s3://ID:{KEY}": "s3://***",
    f"gs://bucket/news?token={KEY}": "gs://bucket/news?***",
    f"https://host/a?X-Amz-Signature={KEY}&X-Amz-Date=2": "https://host/a?***",
    f"https://host/a?{KEY}": "https://host/a?***",
    f"https://host/a?mail=a@b&token={KEY}": "https://***",
    f"https://host/a;token={KEY}": "https://host/a;token=***",
    f"zip://in.csv::https://user:{KEY}@host/a.zip?sig={KEY}": ("zip://***@host/a.zip?***"),
    f"zip://in.csv?{KEY}::s3://bucket/a?{KEY}": "zip://in.csv?***::s3://bucket/a?***",
    f"simplecache::S3://ID:{KEY}@bucket/a": "simplecache::S3://***@bucket/a",
    f"https%3A%2F%2Fuser%3A{KEY}%40host": "https%3A%2F%2F***@host",
    f"https:\\/\\/user:{KEY}@host": "https:\\/\\/***@host",
    f"https://user:a {KEY}@host/a": "https://***@host/a",
    f"https://user:a'{KEY}@host/a": "https://***@host/a",
    f"/download?token={KEY}": "/download?token=***",
}
"""Locations with keys, and how they are printed."""


@pytest.mark.parametrize("location", WITH_KEYS)
def test_keys_are_hidden(location: str) -> None:
    assert shown(location) == WITH_KEYS[location]
    assert shown(shown(location)) == shown(location)


@pytest.mark.parametrize("location", WITH_KEYS)
@pytest.mark.parametrize(
    "text",
    [
        "cannot read {}: no such file",
        "{}, then more",
        "FileNotFoundError(2, 'not there', '{}')",
        "two of them ({}) and {}",
        "first https://host/a, then {}",
        "line 1\nline 2: <{}>",
    ],
)
def test_keys_are_hidden_in_texts(text: str, location: str) -> None:
    assert KEY not in shown_text(text.format(location, location))


@pytest.mark.parametrize("location", WITH_KEYS)
def test_keys_are_hidden_in_quoted_texts(location: str) -> None:
    assert KEY not in shown_text(json.dumps({"articles": location}))
    assert KEY not in shown_text(shlex.join(["tnr", "train", "--data.articles", location]))
    assert KEY not in shown_text(repr(location))


@pytest.mark.parametrize(
    "text",
    [
        "data/news",
        "/data/a@b/news",
        "s3://bucket/sets/news",
        "https://host:8080/sets/news",
        "http://[::1]:8080/sets/news",
        "file:///data/news",
        "zip::simplecache::https://host/a",
        "zip://in.csv::simplecache::https://host/a",
        "https://host/news: HTTP 503 Service Unavailable; attempt 2 of 8 in 0.2 s",
        "shard sets are read from s3://, gs://, https://, http://, file://",
        "a question? an answer; a=b",
    ],
)
def test_what_holds_no_key_is_left_alone(text: str) -> None:
    assert shown(text) == text
    assert shown_text(text) == text


_PARTS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), min_size=0, max_size=6
)


@settings(deadline=None, max_examples=300)
@given(_PARTS, _PARTS, st.sampled_from(["s3", "GS", "https", "hdfs+a", "zip::s3"]))
def test_a_password_of_any_characters_is_hidden(before: str, after: str, scheme: str) -> None:
    assert KEY not in shown(f"{scheme}://user:{before}{KEY}{after}@host/news")
