"""The registry of export formats: what ``tnr export --format`` knows, by name.

A new format is a class in a module of its own (:class:`trainer.export.formats.base.ExportFormat`)
and its line here. No other module names a format.
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
"""Where each format is: a module and a class in it, imported when the format is asked for. The
first is the default."""


def format_named(name: str) -> "ExportFormat":
    """Return the format of a name in :data:`FORMATS`."""
    module, _, attribute = FORMATS[name].partition(":")
    found: ExportFormat = getattr(import_module(module), attribute)(name)
    return found
