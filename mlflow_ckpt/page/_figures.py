"""Curves, costs and timeline as Plotly figures.

A figure is plain JSON values in the form that plotly.js takes, so that a `fit` which makes one
need not load Plotly's Python classes; a test holds each against those.

Schema: https://plotly.com/javascript/reference/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from mlflow_ckpt.page._draw import (
    BAD,
    GONE,
    INK,
    QUIET,
    Figure,
    colour_of,
    finite,
    layout_of,
    points_of,
    prefix,
    told,
    told_of,
)
from mlflow_ckpt.page._facts import Facts, Part
from mlflow_ckpt.page._timeline import timeline
from mlflow_ckpt.record import MetricRow

_LATEST = {"symbol": "circle-open", "size": 19, "line": {"width": 2}}
_BEST = {"symbol": "star", "size": 16, "line": {"color": INK, "width": 1}}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def figures(facts: Facts) -> dict[str, Figure]:
    """The figures of a page by their name; one that would be empty is left out."""
    made = {"curves": _curves(facts), "timeline": timeline(facts), "costs": _costs(facts)}
    return {name: figure for name, figure in made.items() if figure["data"]}


# --- curves -------------------------------------------------------------------


def _curves(facts: Facts) -> Figure:
    """Every curve by epoch; the checkpoints stand on what their series monitors."""
    shown = _first_shown(facts)
    data = [
        _line(key, rows, colour_of(index), visible=key in shown)
        for index, (key, rows) in enumerate(facts.curves.items())
        if rows
    ]
    colours = {key: colour_of(index) for index, key in enumerate(facts.curves)}
    shapes: list[Any] = []
    for part in facts.parts:
        key = part.series.prefix + (part.series.monitor or "")
        if rows := facts.curves.get(key):
            data += _on_curve(part, prefix(facts, part), rows, colours[key])
        shapes += [_at_epoch(one.epoch) for one in part.history.resumed]
    layout = layout_of("epoch", height=430)
    layout["shapes"] = shapes
    layout["yaxis"] = {**layout["yaxis"], "title": {"text": "value"}}
    return {"data": data, "layout": layout}


def _first_shown(facts: Facts) -> set[str]:
    """What is monitored and its training twin; where nothing is, the first four."""
    found = set[str]()
    for part in facts.parts:
        if part.series.monitor:
            name = part.series.prefix + part.series.monitor
            found |= {name, part.series.prefix + part.series.monitor.removeprefix("val_")}
    found &= set(facts.curves)
    return found or set(list(facts.curves)[:4])


def _line(key: str, rows: Sequence[MetricRow], colour: str, *, visible: bool) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines" if len(rows) > 1 else "markers",
        "name": escape(key),
        "x": [row.step for row in rows],
        "y": [finite(row.value) for row in rows],
        "line": {"color": colour, "width": 2},
        "visible": True if visible else "legendonly",
        "hovertemplate": "epoch %{x}: %{y:.6g}<extra>%{fullData.name}</extra>",
    }


def _on_curve(part: Part, before: str, rows: Sequence[MetricRow], colour: str) -> list[Figure]:
    """The checkpoints of a series on the curve that ranks them."""
    at = {row.step: row.value for row in rows}
    there = {each.checkpoint.model_id for each in part.held}
    gone = [m for m in part.ever if m.model_id not in there and m.kind == "epoch" and m.epoch in at]
    held = [h for h in part.held if h.checkpoint.kind == "epoch" and h.checkpoint.epoch in at]
    made = [
        points_of(
            before + GONE,
            [(m.epoch, at[m.epoch], told(m)) for m in gone],
            {"symbol": "circle-open", "size": 7, "color": colour},
        ),
        points_of(
            f"{before}checkpoints",
            [(h.checkpoint.epoch, at[h.checkpoint.epoch], told_of(h)) for h in held],
            {"symbol": "circle", "size": 9, "color": [BAD if h.reason else colour for h in held]},
        ),
    ]
    for mark, marker in (("latest", _LATEST), ("best", _BEST)):
        found = [h for h in held if getattr(h, mark)]
        points = [(h.checkpoint.epoch, at[h.checkpoint.epoch], told_of(h)) for h in found]
        made.append(points_of(before + mark, points, {**marker, "color": colour}))
    return [one for one in made if one["x"]]


def _at_epoch(epoch: int) -> Figure:
    """A line where a `fit` went on."""
    line = {"color": QUIET, "width": 1, "dash": "dot"}
    ends = {"x0": epoch, "x1": epoch, "y0": 0, "y1": 1}
    return {"type": "line", **ends, "yref": "paper", "line": line}


# --- costs --------------------------------------------------------------------


def _costs(facts: Facts) -> Figure:
    """Size, and what training lost, of each checkpoint by its step."""
    data: list[Figure] = []
    most = max((made.bytes for part in facts.parts for made in part.ever), default=1)
    power = min(int(math.log(max(most, 1), 1024)), len(_UNITS) - 1)
    for index, part in enumerate(facts.parts):
        ever = sorted((m for m in part.ever if m.bytes), key=lambda made: made.step)
        if not ever:
            continue
        before, colour = prefix(facts, part), colour_of(index)
        sizes = [(m.step, m.bytes / 1024**power, told(m)) for m in ever]
        stalls = [(m.step, m.stall_ms, told(m)) for m in ever if m.stall_ms is not None]
        lags = [(m.step, m.lag_s, told(m)) for m in ever if m.lag_s is not None]
        data.append(_bars(f"{before}size", sizes, colour))
        if stalls:
            marker = {"color": colour, "size": 6}
            data.append({**points_of(f"{before}stall", stalls, marker), "yaxis": "y2"})
        if lags:
            marker = {"color": colour, "size": 6, "symbol": "diamond-open"}
            data.append({**points_of(f"{before}lag", lags, marker), "yaxis": "y3"})
    layout = layout_of("step (batches)", height=520)
    axis = layout["yaxis"]
    layout["yaxis"] = {**axis, "title": {"text": f"size, {_UNITS[power]}"}, "domain": [0.72, 1]}
    layout["yaxis2"] = {**axis, "title": {"text": "stall, ms"}, "domain": [0.36, 0.64]}
    layout["yaxis3"] = {**axis, "title": {"text": "lag, s"}, "domain": [0, 0.28]}
    layout["xaxis"]["anchor"] = "y3"
    return {"data": data, "layout": layout}


def _bars(name: str, points: Sequence[tuple[float, float, str]], colour: str) -> Figure:
    found = points_of(name, points, {"color": colour})
    del found["mode"]
    return {**found, "type": "bar", "textposition": "none"}
