"""Hide credentials in locations: print paths and URLs without their secrets.

A URL may carry a key: as user info (``https://user:KEY@host``, ``s3://ID:KEY@bucket``), in its
query (``?X-Amz-Signature=``, ``?token=``) or in its fragment. Locations that are printed or written
go through :func:`shown`; foreign texts that may hold a location (exceptions, command lines) go
through :func:`shown_text`. If a URL can be read in two ways, the reading that hides more counts: a
key may contain ``/``, ``@``, ``?`` or spaces.
"""

import re
from collections.abc import Mapping
from typing import Any

from shards.errors import UsageError, one_line

LONGEST = 1000
HIDDEN = "***"

_SLASH, _AT, _QUERY = r"(?:[/\\]|%2f|%5c)", r"(?:@|%40)", r"(?:[?#]|%3f|%23)"
_SCHEME = re.compile(rf"(?<![a-z0-9+.\-])[a-z][a-z0-9+.\-]*(?::|%3a){_SLASH}+", re.IGNORECASE)
# In a chain of fsspec's each link but the first follows "::" and is a name or a URL.
_CHAIN = re.compile(r"::(?=[a-z][a-z0-9+.\-]*:[:/\\])", re.IGNORECASE)
_LAST_AT = re.compile(rf".*{_AT}", re.IGNORECASE | re.DOTALL)
_QUERY_START = re.compile(_QUERY, re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(?:\[[^]]*\]|[^:]*)(?::[0-9]*)?")
_PARAMETER = re.compile(r"([?&;][\w.\-]+=)[^\s&'\"<>]+")
_END = re.compile(r"[\s'\"<>`]|$")
_PUNCTUATION = ".,:;)]}"


def shown(location: object) -> str:
    """Return a path or URL without user info, query and fragment.

    Args:
        location: One complete location: a path, a URL or a chain of fsspec's (``zip::s3://...``).
    """
    text = str(location)
    scheme = _SCHEME.search(text)
    if scheme is not None:
        text = text[: scheme.end()] + _opened(text[scheme.end() :])
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def has_key(location: object) -> bool:
    """Tell whether a URL carries something that :func:`shown` hides."""
    text = str(location)
    return _SCHEME.search(text) is not None and shown(text) != text


def is_elsewhere(path: object) -> bool:
    """Tell whether a path is a URL, or a URL that ``Path`` has changed."""
    return _SCHEME.match(str(path)) is not None


def refuse_keys(settings: Any, where: str = "") -> None:
    """Refuse settings whose location carries a key, because settings are saved in run folders.

    Args:
        settings: Nested mappings and lists, as in a recipe or a pipeline file.
        where: Dotted name of the settings, for the message.

    Raises:
        UsageError: A location carries a key; the message names the setting.
    """
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            refuse_keys(value, f"{where}.{key}" if where else str(key))
    elif isinstance(settings, list | tuple):
        for value in settings:
            refuse_keys(value, where)
    elif isinstance(settings, str) and has_key(settings):
        raise UsageError(f"{where}: {key_refusal(settings)}")


def key_refusal(location: object) -> str:
    """Explain why a location with a key is refused, and where the key belongs."""
    return (
        f"{shown(location)}: credentials do not belong in a URL, which is logged; put them where"
        " fsspec looks for them (environment, ~/.netrc, fsspec's configuration)"
    )


def shown_text(text: object) -> str:
    """Hide the keys of every location in a text, as :func:`shown` does.

    A text does not mark the end of a URL. A URL ends at a space or a quote; but if a password has
    begun before that, the URL ends after the text's last ``@``.
    """
    rest, parts = str(text), []
    while scheme := _SCHEME.search(rest):
        end = _end(rest, scheme.end())
        parts += [rest[: scheme.end()], _opened(rest[scheme.end() : end])]
        rest = rest[end:]
    return _PARAMETER.sub(rf"\1{HIDDEN}", "".join([*parts, rest]))


def shown_line(text: object) -> str:
    """Make foreign text printable: one line, no keys, at most ``LONGEST`` characters."""
    line = one_line(shown_text(str(text)[: 2 * LONGEST]))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _end(text: str, start: int) -> int:
    """Return the end of the URL whose scheme ends at ``start``."""
    end = _END.search(text, start).start()  # type: ignore[union-attr]
    if _begins_with_password(text[start:end]) and not _LAST_AT.match(text, start, end):
        password = _LAST_AT.match(text, end)
        if password is not None:
            end = _END.search(text, password.end()).start()  # type: ignore[union-attr]
    return start + len(text[start:end].rstrip(_PUNCTUATION))


def _opened(text: str) -> str:
    """Return the text after a scheme, without possible keys."""
    password, query = _LAST_AT.match(text), _QUERY_START.search(text)
    if password is not None:
        if query is not None and query.start() < password.end():
            return HIDDEN  # the "@" may be the query's, or the "?" the key's
        return f"{HIDDEN}@{_opened(text[password.end() :])}"
    first, *chained = _CHAIN.split(text, maxsplit=1)
    if _begins_with_password(first):
        return HIDDEN
    query = _QUERY_START.search(first)
    first = first if query is None else f"{first[: query.start()]}?{HIDDEN}"
    return "::".join([first, *map(shown, chained)])


def _begins_with_password(text: str) -> bool:
    """Tell whether the text after a scheme has a colon that no port follows."""
    host = re.split(rf"{_SLASH}|{_QUERY}", text, maxsplit=1, flags=re.IGNORECASE)[0]
    return _HOST_AND_PORT.fullmatch(host.rstrip(_PUNCTUATION)) is None
