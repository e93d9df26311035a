"""The table of what changed layer by layer: its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_ckpt.table import Column
from mlflow_ckpt.weight_change import WeightChange
from mlflow_ckpt.weight_pairs import LayerChange


@dataclass(frozen=True)
class Row:
    """What changed, and what it is called."""

    name: str
    change: WeightChange
    dtype: str = ""
    style: str = ""


def rows_of(layer: LayerChange, variables: bool) -> list[Row]:
    """One row for a layer, or one for each of its variables."""
    if not variables:
        kinds = {_dtypes(each.dtype_a, each.dtype_b) for each in layer.variables} - {""}
        return [Row(layer.name_a, layer.change, dtype=", ".join(sorted(kinds)))]
    return [
        Row(each.name_a, each.change, dtype=_dtypes(each.dtype_a, each.dtype_b))
        for each in layer.variables
    ]


def _dtypes(a: str, b: str) -> str:
    return "" if a == b else f"{a} -> {b}"


def by_change(row: Row) -> float:
    """What grew from zero, or cannot be measured, first; what did not change last."""
    found = row.change
    return -math.inf if found.relative is None else -found.relative


def weight_columns(rows: Sequence[Row]) -> list[Column]:
    """Every column there is; those of what is not finite only where there is any."""
    changes = [row.change for row in rows]

    def counts(title: str, values: Sequence[int]) -> list[Column]:
        cells = [str(value) for value in values]
        return [Column(title=title, cells=cells, right=True)] if any(values) else []

    elements = [f"{change.elements:,}" for change in changes]
    most = [number(change.max_change) for change in changes]
    cosines = ["-" if c.cosine is None else f"{c.cosine:.6f}" for c in changes]
    found = [
        Column(title="", cells=[row.name for row in rows]),
        Column(title="elements", cells=elements, spare=3, right=True),
        Column(title="relative change", cells=_relative(changes), right=True),
        Column(title="cosine", cells=cosines, spare=1, right=True),
        Column(title="max |change|", cells=most, spare=2, right=True),
        *counts("NaN A", [change.nan_a for change in changes]),
        *counts("NaN B", [change.nan_b for change in changes]),
        *counts("Inf A", [change.inf_a for change in changes]),
        *counts("Inf B", [change.inf_b for change in changes]),
    ]
    if any(row.dtype for row in rows):
        found.append(Column(title="dtype", cells=[row.dtype for row in rows]))
    return found


def _relative(changes: Sequence[WeightChange]) -> list[str]:
    return [
        "from zero" if each.relative is None and not each.norm_a and each.change
        else number(each.relative)
        for each in changes
    ]  # fmt: skip


def style(change: WeightChange) -> str:
    """Red where something is not finite, faint where nothing changed."""
    if change.not_finite:
        return "red"
    return "" if change.changed else "dim"


def printable(text: str) -> str:
    """A name as it is, or with escapes: what a stranger's file says must not steer a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def number(value: float | None) -> str:
    """Three digits that count: layers differ by powers of ten."""
    return "-" if value is None else f"{value:.3g}"


def shape(sizes: Sequence[int]) -> str:
    """As Python writes it."""
    return str(tuple(sizes))
