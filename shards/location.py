"""Locations as people may see them: paths and URLs without what opens them.

A URL may carry a key: as user info (``https://user:KEY@host``, ``s3://ID:KEY@bucket``), in its
query (``?X-Amz-Signature=``, ``?token=``) or in its fragment. Whatever is printed or written down
about a location goes through :func:`shown`, and texts by others that may name one (exceptions,
command lines) through :func:`shown_text`. Where a URL can be read in two ways, the reading that
hides more counts: a key may have ``/``, ``@``, ``?`` or spaces in it.
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
        location: One location, whole: a path, a URL or a chain of fsspec's (``zip::s3://...``).
    """
    text = str(location)
    scheme = _SCHEME.search(text)
    if scheme is not None:
        text = text[: scheme.end()] + _opened(text[scheme.end() :])
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def has_key(location: object) -> bool:
    """Say whether a URL carries what :func:`shown` hides."""
    text = str(location)
    return _SCHEME.search(text) is not None and shown(text) != text


def is_elsewhere(path: object) -> bool:
    """Say whether a path is a URL, or what a ``Path`` has made of one."""
    return _SCHEME.match(str(path)) is not None


def refuse_keys(settings: Any, where: str = "") -> None:
    """Refuse settings of which a location carries a key: they are written into run folders.

    Args:
        settings: Nested mappings and lists, as a recipe or a pipeline file holds them.
        where: Dotted name of the settings, for the message.

    Raises:
        UsageError: Names the setting.
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
    """Say why a location with a key is refused, and where the key belongs."""
    return (
        f"{shown(location)}: credentials do not belong into a URL, which is logged; put them where"
        " fsspec looks for them (environment, ~/.netrc, fsspec's configuration)"
    )


def shown_text(text: object) -> str:
    """Return a text in which every location is as :func:`shown` gives it.

    A text does not say where a URL ends: at a space or a quote, unless what stands before it has
    begun with a password, which then ends at the last ``@`` of the text.
    """
    rest, parts = str(text), []
    while scheme := _SCHEME.search(rest):
        end = _end(rest, scheme.end())
        parts += [rest[: scheme.end()], _opened(rest[scheme.end() : end])]
        rest = rest[end:]
    return _PARAMETER.sub(rf"\1{HIDDEN}", "".join([*parts, rest]))


def shown_line(text: object) -> str:
    """Return a text of someone else's file as it may be printed: one line, without keys, and no
    longer than ``LONGEST`` letters."""
    line = one_line(shown_text(str(text)[: 2 * LONGEST]))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _end(text: str, start: int) -> int:
    """Where the URL ends whose scheme ends at ``start``."""
    end = _END.search(text, start).start()  # type: ignore[union-attr]
    if _begins_with_password(text[start:end]) and not _LAST_AT.match(text, start, end):
        password = _LAST_AT.match(text, end)
        if password is not None:
            end = _END.search(text, password.end()).start()  # type: ignore[union-attr]
    return start + len(text[start:end].rstrip(_PUNCTUATION))


def _opened(text: str) -> str:
    """What follows a scheme, without what may be a key."""
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
    """Say whether what follows a scheme has a colon that no port follows."""
    host = re.split(rf"{_SLASH}|{_QUERY}", text, maxsplit=1, flags=re.IGNORECASE)[0]
    return _HOST_AND_PORT.fullmatch(host.rstrip(_PUNCTUATION)) is None
