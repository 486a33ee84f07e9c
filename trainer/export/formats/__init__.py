"""Registry of export formats for ``tnr export --format``, by name.

A new format is a class in its own module (:class:`trainer.export.formats.base.ExportFormat`) and a
line here. No other module names a format.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.export.formats.base import ExportFormat

_HERE = "trainer.export.formats"
FORMATS = {
    "tnr": f"{_HERE}.tnr:Tnr",
    "transformers": f"{_HERE}.transformers:Transformers",
}
"""Module and class of each format; a format is imported when it is first used. The first one is the
default."""


def format_named(name: str) -> "ExportFormat":
    """Return the format with a name in :data:`FORMATS`."""
    module, _, attribute = FORMATS[name].partition(":")
    found: ExportFormat = getattr(import_module(module), attribute)(name)
    return found
