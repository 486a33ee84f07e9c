"""Markdown tables that also read well as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def align(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a table whose columns are as wide as their widest cell.

    The first column is left-aligned; the others, with numbers, are right-aligned.

    Args:
        head: Names of the columns.
        lines: Rows with one cell per column.
    """
    # A bar inside a cell would end the cell.
    rows = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]

    def join(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([join(rows[0]), join(rule), *map(join, rows[1:])])
