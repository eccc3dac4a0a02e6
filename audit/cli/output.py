"""The only writer to stdout: results, as text for people or as JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from audit.plain import plain

_GAP = 2
"""Spaces between columns."""
_LEAST = 8
"""Columns of text that a cell that is cut keeps."""
_WIDE = 200
"""Columns when stdout is no terminal: nothing is folded in a pipe or a file."""


def say(text: str = "") -> None:
    """Print a line or more, made safe; a text that must stay on one line is made so by the caller."""
    _write(plain(text, keep_lines=True) + "\n")


def as_json(value: Any) -> None:
    """Print a JSON document, in ASCII, so that no text in it can act on a terminal."""
    _write(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def as_plain(record: object) -> dict[str, Any]:
    """A record as the plain values of its canonical JSON."""
    from audit.ledger.identity import dump, parse  # its package opens databases, which no answer on a terminal waits for

    return parse(dump(record))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", width: int | None = None, cut: str = "") -> None:
    """Print a table; title, headings and cells are made safe, numbers stand to the right.

    Args:
        columns: headings.
        rows: cells.
        title: above it.
        width: columns of text that it may take; as many as the terminal has by default.
        cut: heading of the column that is cut, with an ellipsis, where that is too little; the others are left as they are.
    """
    listed = [[_cell(value) for value in row] for row in rows]
    console = Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)
    if width is not None and width < console.width:
        console.width = width
    if width is not None and cut:
        _cut(list(columns), listed, columns.index(cut), console.width)
    drawn = Table(title=Text(plain(title)) if title else None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        right = bool(listed) and all(_is_figure(row[number]) for row in listed)
        drawn.add_column(Text(plain(column)), justify="right" if right else "left", overflow="fold")
    for row in listed:
        drawn.add_row(*(Text(cell) for cell in row))
    with console.capture() as captured:
        console.print(drawn)
    _write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def _cut(columns: Sequence[str], rows: list[list[str]], place: int, width: int) -> None:
    """Shorten the cells of one column so that the table fits."""
    others = [max(cell_len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    room = width - sum(others[:place] + others[place + 1 :]) - _GAP * (len(columns) - 1)
    for row in rows:
        shown = Text(row[place])
        shown.truncate(max(room, _LEAST), overflow="ellipsis")
        row[place] = shown.plain


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" if isinstance(value, float) else plain(str(value))


def _is_figure(text: str) -> bool:
    return text[:1] in "+-0123456789(·"


def _write(text: str) -> None:
    """Write, and take it that a reader who left has seen enough: the exit code says what became of the run."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
