"""Lay out columns of text: a table on a terminal, aligned plain text anywhere else."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

GAP = 2


class _Console(Console):
    """One that leaves it to the command how to end when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(*, stderr: bool = False) -> Console:
    """Write to the present stdout, or stderr: text as it is, and no line broken."""
    return _Console(highlight=False, markup=False, emoji=False, soft_wrap=True, stderr=stderr)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column as text.

    Attributes:
        spare: Where the width does not suffice the highest goes first; 0 always stays.
    """

    title: str
    cells: Sequence[str]
    spare: int = 0
    right: bool = False

    @property
    def width(self) -> int:
        return max(cell_len(text) for text in (self.title, *self.cells))


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """Leave out the most dispensable columns until the rest fits."""
    shown = list(columns)
    while sum(column.width + GAP for column in shown) - GAP > width:
        most = max(shown, key=lambda column: column.spare)
        if not most.spare:
            break
        shown.remove(most)
    return shown


def print_columns(console: Console, columns: Sequence[Column], styles: Sequence[str] = ()) -> None:
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(column.title, justify="right" if column.right else "left")
        for index, cells in enumerate(zip(*(c.cells for c in columns), strict=True)):
            table.add_row(*cells, style=styles[index] if styles else None)
        console.print(table)
        return
    widths = [column.width for column in columns]  # of every cell: once, and not for each row
    for row in zip(*((column.title, *column.cells) for column in columns), strict=True):
        padded = (
            text.rjust(width) if column.right else text.ljust(width)
            for text, column, width in zip(row, columns, widths, strict=True)
        )
        console.print((" " * GAP).join(padded).rstrip())


def human_bytes(size: float) -> str:
    """`size` in B, KiB, MiB, GiB or TiB, with one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def numbers(values: Sequence[float | None]) -> list[str]:
    """One notation for a whole column: four decimals, or powers of ten where they say nothing."""
    sizes = [abs(value) for value in values if value]
    plain = all(0.001 <= size < 1e7 for size in sizes)
    return ["-" if value is None else f"{value:{'.4f' if plain else '.3e'}}" for value in values]
