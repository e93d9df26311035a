"""When a run was trained: each `fit`, its checkpoints, where it went on, what began there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mlflow_ckpt.history import Made
from mlflow_ckpt.page._draw import (
    BAD,
    FORK,
    GONE,
    INK,
    Figure,
    colour_of,
    layout_of,
    on_axis,
    points_of,
    prefix,
    told,
    told_of,
)
from mlflow_ckpt.page._facts import Facts, Part


def timeline(facts: Facts) -> Figure:
    """One lane for each series, by the clock."""
    data: list[Figure] = []
    for index, part in enumerate(facts.parts):
        data += _lane(part, prefix(facts, part), colour_of(index))
    if facts.parent and data:
        data.insert(0, _began_as_fork(facts))
    layout = layout_of("time (UTC)", height=170 + 70 * len(facts.parts))
    layout["xaxis"]["type"] = "date"
    layout["yaxis"] = {**layout["yaxis"], "type": "category", "automargin": True, "title": {}}
    return {"data": data, "layout": layout}


def _lane(part: Part, before: str, colour: str) -> list[Figure]:
    ever = part.ever
    if not ever:
        return []
    lane = part.series.name
    there = {each.checkpoint.model_id: each for each in part.held}
    held = [m for m in ever if m.model_id in there]
    colours = [BAD if there[m.model_id].reason else colour for m in held]
    forks = [
        (made, fork) for made in held for fork in there[made.model_id].forks
    ]  # fmt: skip
    made = [
        _fits(part, before, colour),
        _in_lane(
            before + GONE, lane, [(m.at, told(m)) for m in ever if m.model_id not in there],
            {"symbol": "circle-open", "size": 8, "color": colour},
        ),
        _in_lane(
            f"{before}checkpoints", lane, [(m.at, told_of(there[m.model_id])) for m in held],
            {"symbol": "circle", "size": 10, "color": colours},
        ),
        _in_lane(
            f"{before}resumed", lane,
            [(r.at, f"resumed at epoch {r.epoch}, step {r.step}") for r in part.history.resumed],
            {"symbol": "triangle-right", "size": 15, "color": INK},
        ),
        _in_lane(
            f"{before}forked", lane,
            [(m.at, f"run {escape(fork)} began here, at step {m.step}") for m, fork in forks],
            {"symbol": "star-triangle-up", "size": 15, "color": FORK,
             "line": {"color": INK, "width": 1}},
        ),
    ]  # fmt: skip
    return [one for one in made if one["x"]]


def _fits(part: Part, before: str, colour: str) -> Figure:
    """A bar from the beginning of each `fit`, as far as it is known, to its last checkpoint.

    What was resumed is a `fit` of its own, whatever its number.
    """
    starts = sorted(one.at for one in part.history.resumed)
    x: list[Any] = []
    for begin, end in _stretches(part.ever, starts):
        x += [on_axis(begin), on_axis(end), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{before}training",
        "x": x,
        "y": [part.series.name if value is not None else None for value in x],
        "line": {"color": colour, "width": 12},
        "opacity": 0.25,
        "hoverinfo": "skip",
    }


def _stretches(ever: Sequence[Made], starts: Sequence[int]) -> list[tuple[int, int]]:
    """Times at which something was committed, broken where a `fit` began."""
    found: list[list[int]] = []
    fit, begun = None, 0
    for made in ever:
        resumed = [at for at in starts[begun:] if at <= made.at]
        begun += len(resumed)
        known = made.epoch >= 0
        if resumed or (known and fit is not None and made.fit != fit) or not found:
            found.append([resumed[-1] if resumed else made.at, made.at])
        found[-1][1] = made.at
        fit = made.fit if known else fit
    return [(begin, end) for begin, end in found]


def _in_lane(
    name: str, lane: str, points: Sequence[tuple[int, str]], marker: Mapping[str, Any]
) -> Figure:
    found = points_of(name, [(0, 0, text) for _, text in points], marker)
    return {**found, "x": [on_axis(at) for at, _ in points], "y": [lane] * len(points)}


def _began_as_fork(facts: Facts) -> Figure:
    first = min(made.at for part in facts.parts for made in part.ever)
    parent, step = facts.parent or ("", "")
    lane = next(part.series.name for part in facts.parts if part.ever)
    text = f"fork of run {escape(parent)} at step {escape(step)}"
    marker = {"symbol": "diamond", "size": 15, "color": FORK}
    return _in_lane("began as a fork", lane, [(first, text)], marker)
