"""Values from users: shortened in messages, and free of control characters."""

import unicodedata
from typing import Any

_REFUSED = {"Cc": "a control character", "Cs": "bytes that are not UTF-8"}
_REFUSED |= dict.fromkeys(("Zl", "Zp"), "a line break")
_SHOWN_CHARS = 80


def refuse_control(value: str, where: str) -> str:
    """Refuse control characters in a value, which must stay on one line everywhere.

    A line break in a path would start a new line in a Slurm script, and a shell would run that
    line. No setting needs a line break or any other control character.

    Args:
        value: The given value.
        where: Place of the value, for the message.

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
            raise ConfigError(f"{where} is {shown(value)}, which holds {found}: write it without")
    return value


def shown(value: Any) -> str:
    """Format a value for a message: quoted, on one line, shortened if long."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"
