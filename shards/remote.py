"""Read files of a remote shard set through fsspec, with retries; the caller checks them.

A URL is a prefix: ``s3://bucket/sets/news``, ``gs://``, ``https://``, ``http://`` or ``file://``.
Credentials come from where fsspec's file systems look for them (environment, ``~/.aws``,
``~/.netrc``, fsspec's own configuration), never from the URL, which goes into logs and checkpoints.
"""

import random
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from shards.errors import DamageError, DataError, TinyNewsRecError, UsageError
from shards.location import has_key, key_refusal, shown, shown_text

T = TypeVar("T")

# Packages that each kind of URL needs besides fsspec; the extra ``remote`` has all but gcsfs.
_SCHEMES = {
    "s3": ("s3fs", "remote"),
    "gs": ("gcsfs", "gcs"),
    "http": ("aiohttp", "remote"),
    "https": ("aiohttp", "remote"),
    "file": ("", ""),
}
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 30.0
_TRY_AGAIN = {408, 425, 429}  # the only 4xx answers that another try can change


class RemoteError(DataError):
    """A server could not be reached, or kept failing."""


class MissingError(DataError):
    """The server has no such file."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server."""

    attempts: int = 8
    """Attempts per file; the waits between them double from a quarter of a second up to 30 s."""
    timeout_s: float = 30.0
    """Longest silence of a server during a request."""


def is_url(path: object) -> bool:
    """Tell whether a path is a URL, so that the shard set is remote."""
    return "://" in str(path)


def set_argument(text: str) -> Path | str:
    """Parse a shard set on the command line: a folder, or an unchanged URL.

    Raises:
        ArgumentTypeError: The URL carries a key.
    """
    if has_key(text):
        raise ArgumentTypeError(key_refusal(text))
    return text if is_url(text) else Path(text)


def folder_argument(text: str) -> Path:
    """Parse a folder on the command line.

    Raises:
        ArgumentTypeError: The text is a URL.
    """
    if is_url(text):
        raise ArgumentTypeError(
            f"{shown(text)}: this command reads and writes folders; files fetched from a URL are"
            " checked as they come, and a local copy of the set works with this command"
        )
    return Path(text)


def check_url(url: str) -> str:
    """Return the URL of a shard set without a slash at its end.

    Raises:
        UsageError: The URL is invalid, or of a kind that shard sets are not read from.
    """
    prefix = "expected the prefix of a shard set, like s3://bucket/sets/news"
    if has_key(url):
        raise UsageError(f"{key_refusal(url)}; {prefix}")
    parts = urlsplit(url)
    if "::" in url or parts.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise UsageError(f"{url}: shard sets are read from folders and from {known}")
    if not (parts.netloc or parts.scheme == "file"):
        raise UsageError(f"{url}: {prefix}")
    return url.rstrip("/")


class Remote:
    """The files under one URL.

    Every method retries with growing waits, reported on standard error, until
    ``patience.attempts`` are used up. A missing or forbidden file is not requested again.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        """Make the file system; contact no server yet.

        Raises:
            UsageError: The URL is invalid, or the package that reads it is not installed.
        """
        self.url = check_url(url)
        self.patience = patience
        self._fs = _file_system(self.url, patience.timeout_s)
        self._root = str(self._fs._strip_protocol(self.url))

    def read(
        self,
        name: str,
        check: Callable[[bytes], T],
        start: int | None = None,
        end: int | None = None,
        attempts: int | None = None,
    ) -> T:
        """Fetch a file, or its bytes ``start`` to ``end``, and return the result of ``check``.

        Args:
            name: Path below the URL.
            check: Receives the bytes; raises DamageError for wrong bytes, which causes a retry. A
                server without range requests gives it the whole file.
            start: First byte; None is the beginning.
            end: End of the bytes; None is the end of the file.
            attempts: Number of attempts, if it differs from the patience's.

        Raises:
            MissingError: The server has no such file.
            RemoteError: All attempts failed.
            DamageError: All attempts failed, and the last one gave wrong bytes.
        """
        path = f"{self._root}/{name}"
        return self._attempt(
            name, lambda: check(self._fs.cat_file(path, start=start, end=end)), attempts
        )

    def download(self, name: str, path: Path, check: Callable[[Path], T]) -> T:
        """Fetch a file to ``path`` and return the result of ``check``; otherwise like :meth:`read`.

        The file is written to disk in pieces and never held in memory.
        """

        def fetch() -> T:
            self._fs.get_file(f"{self._root}/{name}", str(path))
            return check(path)

        return self._attempt(name, fetch, None)

    def names(self, folder: str) -> list[str] | None:
        """Return the names in a folder, or None if the server cannot list folders.

        An object store has no empty folders: a missing folder gives an empty list, or None.

        Raises:
            RemoteError: All attempts failed.
        """
        path = f"{self._root}/{folder}"
        try:
            entries = self._attempt(
                folder + "/", lambda: self._fs.ls(path, detail=False, refresh=True), None
            )
        except MissingError:
            return None if self.url.startswith("http") else []
        except _RefusedError:
            return None
        names = {unquote(str(entry).rstrip("/").rpartition("/")[2]) for entry in entries}
        return sorted(name for name in names if is_plain_name(name))

    def _attempt(self, name: str, action: Callable[[], T], attempts: int | None) -> T:
        attempts, wait = attempts or self.patience.attempts, _FIRST_WAIT_S
        where = f"{self.url}/{name}"
        for number in range(1, attempts + 1):
            try:
                return action()
            except FileNotFoundError as error:
                raise MissingError(f"{where} does not exist") from error
            except Exception as error:
                if isinstance(error, TinyNewsRecError) and not isinstance(error, DamageError):
                    raise
                reason = _reason(error)
                if isinstance(error, PermissionError) or _is_final(error):
                    raise _RefusedError(f"{where} cannot be read: {reason}") from error
                if number == attempts:
                    tries = f"{attempts} attempts" if attempts > 1 else "1 attempt"
                    kind = DamageError if isinstance(error, DamageError) else RemoteError
                    raise kind(f"{where}: {reason}; gave up after {tries}") from error
                _say(f"{where}: {reason}; attempt {number + 1} of {attempts} in {wait:.1f} s")
            # Random waits, so that the processes of many nodes do not all return at once.
            time.sleep(wait * random.uniform(0.75, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT_S)
        raise AssertionError("unreachable")


class _RefusedError(RemoteError):
    """The server refused the request."""


def is_plain_name(name: str) -> bool:
    """Tell whether a remote name suits a local file: one part, not hidden."""
    return bool(name) and name[0] not in ".?" and name.isprintable() and not set(name) & set("/\\")


def _file_system(url: str, timeout_s: float) -> Any:
    from fsspec.core import url_to_fs

    scheme = urlsplit(url).scheme  # in lower case, as fsspec wants it
    url = scheme + url[len(scheme) :]
    package, extra = _SCHEMES[scheme]
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if scheme.startswith("http"):
            from aiohttp import ClientTimeout

            silence = ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
            # A range of a compressed transfer would have other bytes.
            options["headers"] = {"Accept-Encoding": "identity"}
            options["client_kwargs"] = {"timeout": silence, "trust_env": True}
        if scheme == "s3":
            silences = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
            options["config_kwargs"] = silences | {"retries": {"total_max_attempts": 1}}
        return url_to_fs(url, **options)[0]
    except ImportError as error:
        raise UsageError(
            f"{url} is read by the package {package}, which is not installed; run:"
            f" pip install 'tiny-newsrec[{extra}]'"
        ) from error


def _is_final(error: BaseException) -> bool:
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _TRY_AGAIN


def _reason(error: BaseException) -> str:
    if isinstance(error, DamageError):
        return str(error)
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return shown_text(f"HTTP {status} {getattr(error, 'message', '')}".rstrip())
    text = shown_text(" ".join(str(error).split()))
    return f"{text} ({type(error).__name__})" if text else type(error).__name__


def _say(line: str) -> None:
    print(f"tnr: waiting for {line}", file=sys.stderr, flush=True)
