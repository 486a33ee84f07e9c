"""Values that people give: shown briefly in messages, and free of control characters."""

import unicodedata
from typing import Any

_REFUSED = {"Cc": "a control character", "Cs": "bytes that are not UTF-8"}
_REFUSED |= dict.fromkeys(("Zl", "Zp"), "a line break")
_SHOWN_CHARS = 80


def refuse_control(value: str, where: str) -> str:
    """Return a value that stays on one line wherever it is written: scripts, logs, messages.

    A line break in a path would begin a line of its own in a Slurm script, and a shell would run
    it. No setting needs one, nor any other control character.

    Args:
        value: What was given.
        where: Its place, for the message.

    Raises:
        ConfigError: The value holds a control character, a line break or undecodable bytes.
    """
    from trainer.errors import ConfigError

    if value.isprintable():
        return value
    for letter in value:
        found = _REFUSED.get(unicodedata.category(letter))
        if found is not None:
            found = "a line break" if letter in "\n\r" else found
            raise ConfigError(f"{where} is {shown(value)}; it holds {found}: write it without")
    return value


def shown(value: Any) -> str:
    """Return a value for a message: quoted as Python does, on one line, cut where it is long."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
