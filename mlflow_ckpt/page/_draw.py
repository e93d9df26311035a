"""What the figures of the page have in common: colours, points, and what is said of a checkpoint.

Text of the run's own, such as the name of a metric, is escaped: plotly.js reads some HTML in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from mlflow_ckpt.history import Made
from mlflow_ckpt.page._facts import Facts, Held, Part, as_made
from mlflow_ckpt.table import human_bytes

Figure = dict[str, Any]

# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#44AA99")
INK, QUIET, BAD, FORK = "#1f2933", "#7b8794", "#c0392b", "#E69F00"
_GRID = "#e4e7eb"
GONE = "deleted by now"


def when(at: int) -> str:
    """A time for people, in UTC, to the second."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def on_axis(at: int) -> str:
    """A time on a date axis of Plotly's, in UTC, to the millisecond."""
    found = datetime.fromtimestamp(at / 1000, UTC)
    return found.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")


def prefix(facts: Facts, part: Part) -> str:
    """What stands before a name in a legend: the series, if there are several."""
    return f"{escape(part.series.name)}: " if len(facts.parts) > 1 else ""


def points_of(
    name: str, points: Iterable[tuple[float, float | None, str]], marker: Mapping[str, Any]
) -> Figure:
    points = list(points)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x for x, _, _ in points],
        "y": [None if y is None else finite(y) for _, y, _ in points],
        "text": [text for _, _, text in points],
        "marker": dict(marker),
        "hovertemplate": "%{text}<extra></extra>",
    }


def told(made: Made) -> str:
    """What is said of a checkpoint where one points at it."""
    if made.epoch < 0:
        return f"<b>{escape(made.name)}</b><br>{when(made.at)} UTC"
    lines = [
        f"<b>{escape(made.name)}</b>",
        f"epoch {made.epoch}, step {made.step}, {escape(made.kind)}",
        f"{human_bytes(made.bytes)}, {when(made.at)} UTC",
    ]
    costs = {"stall": (made.stall_ms, "ms"), "written in": (made.write_s, "s"),
             "committed after": (made.lag_s, "s")}  # fmt: skip
    told = [
        f"{name} {value:.3g} {unit}" for name, (value, unit) in costs.items() if value is not None
    ]
    return "<br>".join([*lines, ", ".join(told)] if told else lines)


def told_of(held: Held) -> str:
    checkpoint = held.checkpoint
    metrics = [f"{escape(k)} {v:.6g}" for k, v in sorted(checkpoint.metrics.items())[:8]]
    made = held.made or as_made(checkpoint)
    marks = [mark for mark in ("latest", "best") if getattr(held, mark)]
    marks += ["corrupt: " + escape(held.reason)[:200]] if held.reason else []
    return "<br>".join([told(made), *metrics, *([", ".join(marks)] if marks else [])])


def finite(value: float) -> float | None:
    """JSON has no NaN. A database keeps infinity as the largest number that it has."""
    return value if math.isfinite(value) and abs(value) < 1e300 else None


def colour_of(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def layout_of(x: str, *, height: int) -> dict[str, Any]:
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "automargin": True}
    return {
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 10, "b": 45},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": dict(axis),
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "barmode": "group",
    }
