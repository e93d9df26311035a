"""Show a person how two checkpoints differ: the facts side by side, then layer by layer.

What does not differ takes one line, or none. A table has so many rows as are asked for, and
says how many more there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from rich.console import Console

from mlflow_ckpt import table
from mlflow_ckpt.comparison import Comparison, Held, MetricChange, OptimizerChange, Side
from mlflow_ckpt.contrast import Contrast, short
from mlflow_ckpt.diff_rows import (
    Row,
    by_change,
    number,
    printable,
    rows_of,
    shape,
    style,
    weight_columns,
)
from mlflow_ckpt.table import Column, fit, human_bytes, print_columns

Sort = Literal["change", "order"]


@dataclass(frozen=True, kw_only=True)
class View:
    """How much of it is shown, and in which order.

    Attributes:
        rows: How many a table has at most; `None` for all.
        sort: The most changed layer first, or the order of the model.
        variables: Whether every variable has a row, and not every layer.
    """

    rows: int | None = 20
    sort: Sort = "change"
    variables: bool = False


def print_comparison(found: Comparison, view: View) -> None:
    """Print everything that differs."""
    _Report(found, view).print()


class _Report:
    def __init__(self, found: Comparison, view: View) -> None:
        self._found = found
        self._view = view
        self._console: Console = table.console()

    def print(self) -> None:
        found = self._found
        self._sides(found.a, found.b)
        self._architecture()
        self._contrasts("Compiled otherwise", found.compiled)
        for optimizer in found.optimizers:
            self._optimizer(optimizer)
        self._contrasts("Input that differs", found.input)
        self._contrasts("Parameters that differ", found.params)
        self._contrasts("Versions that differ", found.versions)
        self._metrics(found.metrics)
        self._weights()
        self._alone()
        self._seeds()
        self._console.print(f"\n{_verdict(found)}", style="bold")

    def _say(self, text: str) -> None:
        self._console.print(f"\n{text}")

    def _columns(self, columns: Sequence[Column], styles: Sequence[str] = ()) -> None:
        whole = [replace(column, cells=list(map(printable, column.cells))) for column in columns]
        shown = fit(whole, self._console.width) if self._console.is_terminal else whole
        print_columns(self._console, shown, styles)
        if hidden := [column.title for column in whole if column not in shown]:
            self._console.print(f"Left out at this width: {', '.join(hidden)}.", style="dim")

    def _more(self, count: int, what: str) -> None:
        limit = self._view.rows
        if limit is not None and count > limit:
            self._console.print(f"... and {count - limit} more {what}: --all", style="dim")

    def _beside(self, rows: Sequence[tuple[str, str, str]]) -> None:
        names, a, b = zip(*rows, strict=True)
        self._columns(
            [
                Column(title="", cells=names),
                Column(title="A", cells=a),
                Column(title="B", cells=b),
            ],
            ["" if one == other else "yellow" for _, one, other in rows],
        )

    # --- the parts ------------------------------------------------------------

    def _sides(self, a: Side, b: Side) -> None:
        rows = [(name, *pair) for name, pair in _facts(a, b).items()]
        self._beside([(name, one, other) for name, one, other in rows if one or other])

    def _architecture(self) -> None:
        found = self._found
        if found.same_architecture:
            note = "" if found.a.has_config and found.b.has_config else ", as far as shapes tell"
            self._say(f"Architecture: the same ({_size(found.a)}){note}.")
            return
        self._say(f"Architecture: A is {_size(found.a)}, B is {_size(found.b)}.")
        if not (found.a.has_config and found.b.has_config):
            side = "A" if not found.a.has_config else "B"
            self._console.print(f"{side} holds no config: variables are compared, no arguments.")
        self._table(found.architecture)

    def _contrasts(self, title: str, found: Sequence[Contrast]) -> None:
        if found:
            self._say(title)
            self._table(found)

    def _table(self, found: Sequence[Contrast]) -> None:
        if found:
            self._beside([(each.where, _text(each.a), _text(each.b)) for each in self._cut(found)])
            self._more(len(found), "differences")

    def _cut(self, found: Sequence[Any]) -> Sequence[Any]:
        return found if self._view.rows is None else found[: self._view.rows]

    def _optimizer(self, found: OptimizerChange) -> None:
        title = "Optimizer" if found.attribute == "optimizer" else f"Optimizer {found.attribute}"
        if found.same and found.a is not None:
            self._say(f"{title}: the same {found.a.class_name}, in the same state.")
            return
        self._say(title)
        shown = list(zip(("class", "learning rate", "updates"), _held(found.a), _held(found.b),
                         strict=True))  # fmt: skip
        prefix = f"{found.attribute}."
        shown += [
            (each.where.removeprefix(prefix), _text(each.a), _text(each.b))
            for each in found.arguments
            if each.where != f"{prefix}class"
        ]
        self._beside(shown)

    def _metrics(self, found: Sequence[MetricChange]) -> None:
        if not found:
            return
        self._say("Metrics")
        changes = [number(metric.change) for metric in found]
        self._columns(
            [
                Column(title="", cells=[metric.name for metric in found]),
                Column(title="A", cells=[_text(metric.a) for metric in found], right=True),
                Column(title="B", cells=[_text(metric.b) for metric in found], right=True),
                Column(title="change", cells=changes, right=True),
                Column(title="better", cells=[(m.better or "").upper() for m in found]),
            ],
            ["green" if m.better == "b" else "red" if m.better == "a" else "" for m in found],
        )

    def _weights(self) -> None:
        found = self._found
        rows = self._rows()
        if not rows:
            return
        unit = "variable" if self._view.variables else "layer"
        by = "by relative change" if self._view.sort == "change" else "in the order of the model"
        self._say(f"Weights, {unit}s {by}")
        shown = [*self._cut(rows), Row(_count_of(len(rows), unit), found.total, style="bold")]
        for optimizer in found.optimizers:
            shown += [Row(f"{optimizer.attribute}: {each.name_a}", each.change)
                      for each in optimizer.slots]  # fmt: skip
            if optimizer.total is not None:
                shown.append(Row(f"{optimizer.attribute}: all slots", optimizer.total))
        self._columns(weight_columns(shown), [row.style or style(row.change) for row in shown])
        self._more(len(rows), f"{unit}s")

    def _seeds(self) -> None:
        found = self._found.seeds
        if found is not None:
            told = (
                f"{found.changed} of {found.elements} numbers differ"
                if found.changed
                else "the same"
            )
            self._say(f"Seed generators: {told}.")

    def _rows(self) -> list[Row]:
        layers = self._found.layers
        rows = [row for layer in layers for row in rows_of(layer, self._view.variables)]
        return sorted(rows, key=by_change) if self._view.sort == "change" else rows

    def _alone(self) -> None:
        found = self._found
        rows = [(each.name, *(shape(s) for s in (each.shape_a, each.shape_b)))
                for each in found.unlike]  # fmt: skip
        rows += [(each.name, f"{shape(each.shape)} {each.dtype}", "-") for each in found.only_a]
        rows += [(each.name, "-", f"{shape(each.shape)} {each.dtype}") for each in found.only_b]
        if rows:
            self._say("Not compared: other shapes, or in one of them only")
            self._beside([(name, one, other) for name, one, other in self._cut(rows)])
            self._more(len(rows), "variables")


# --- rows and columns ---------------------------------------------------------


def _facts(a: Side, b: Side) -> dict[str, tuple[str, str]]:
    one, other = a.checkpoint, b.checkpoint
    return {
        "checkpoint": (one.name, other.name),
        "run": (one.run_id, other.run_id),
        "run name": (a.run_name, b.run_name),
        "series": (one.series, other.series),
        "kind": (_kind(a), _kind(b)),
        "epoch": (str(one.epoch), str(other.epoch)),
        "step": (str(one.step), str(other.step)),
        "created": (_local(one.created_at), _local(other.created_at)),
        "size": (human_bytes(one.bytes), human_bytes(other.bytes)),
        "digest": (_digest(one.digest), _digest(other.digest)),
    }


def _kind(side: Side) -> str:
    found = side.checkpoint
    return f"{found.kind} (weights)" if found.weights_only else str(found.kind)


def _local(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")


def _digest(digest: str) -> str:
    algorithm, _, text = digest.partition(":")
    return f"{algorithm}:{text[:12]}"


def _size(side: Side) -> str:
    return f"{side.model_class or 'a model'} with {side.elements:,} elements"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and len(value) <= 160 else short(value)


def _held(found: Held | None) -> tuple[str, str, str]:
    """Class, learning rate and updates of an optimizer."""
    if found is None:
        return "-", "-", "-"
    rate = found.schedule if found.learning_rate is None else f"{found.learning_rate:g}"
    return found.class_name, rate or "-", _text(found.iterations)


def _count_of(count: int, unit: str) -> str:
    return f"all {count} {unit}s" if count > 1 else f"the one {unit}"


def _verdict(found: Comparison) -> str:
    total = found.total
    if found.equal:
        return "Equal bit by bit: the same model in the same state."
    if not total.elements:
        return "B is another model: nothing could be compared."
    if total.changed:
        return f"{total.changed:,} of {total.elements:,} compared elements differ."
    if found.same_architecture:
        return "The weights are equal bit by bit; the rest above is not."
    return "What was compared is equal bit by bit; the rest above is not."
