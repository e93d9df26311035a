"""A thousand checkpoints in one fit: does anything stay behind?

A small model is trained for as many epochs of one step as checkpoints are asked for, once
with the callback and once without, each in a process of its own. The resident memory is
read every few epochs, from the second tenth on; its slope is the median of the slopes
between all readings. Memory is in KiB, slopes in KiB an epoch.
"""

from __future__ import annotations

import functools
import gc
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from benchmarks import models, peers
from benchmarks.peers import CONTROL, OURS
from benchmarks.process import call, say
from benchmarks.results import Bar, Figure, Sample, rotated, slope

_MIB = 0.05
_READINGS = 100
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024
_ALLOWED_KIB = 2.0


class Watch(keras.callbacks.Callback):
    """Read the resident memory at equal distances."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []
        self._every = max(1, epochs // _READINGS)
        self._epochs = epochs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self._every == 0:
            self.points.append((epoch + 1, resident_kib()))
            say(f"epoch {epoch + 1} of {self._epochs}")


def resident_kib() -> float:
    """Resident set of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_KIB


def _left_open() -> dict[str, int]:
    gc.collect()
    count = {"threads": "/proc/self/task", "descriptors": "/proc/self/fd"}
    return {name: len(list(Path(path).iterdir())) for name, path in count.items()}


def collect(
    *, count: int, repeats: int, scratch: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure both variants `repeats` times, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for turn in range(repeats):
        for variant in rotated((CONTROL, OURS), turn):
            row = call(
                "benchmarks.thousand:measure",
                {"count": count, "variant": variant},
                scratch=scratch,
                progress=functools.partial(_named, variant, progress),
            )
            rows.append({"turn": turn, "variant": variant, **row})
    return {"count": count, "rows": rows}


def _named(variant: str, progress: Callable[[str], None], text: str) -> None:
    progress(f"{variant}: {text}")


def measure(*, count: int, variant: str, scratch: Path) -> dict[str, Any]:
    """Train once; the readings, and what was open before and after."""
    peers.use_store(scratch)
    model = models.mlp(_MIB)
    dataset = models.data(model, _MIB)
    _fit(variant, model, dataset, 3, scratch)
    before = _left_open()
    watch = Watch(count)
    _fit(variant, model, dataset, count, scratch, watch)
    return {"points": watch.points, "before": before, "after": _left_open()}


def _fit(
    variant: str, model: keras.Model, dataset: Any, epochs: int, scratch: Path, *more: Watch
) -> None:
    if variant == CONTROL:
        models.fit(model, dataset, epochs=epochs, steps=1, callbacks=more)
        return
    with peers.ours(scratch, last=5) as callback:
        models.fit(model, dataset, epochs=epochs, steps=1, callbacks=[callback, *more])


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """The figure, from what `collect` returned."""
    rows, count = raw["rows"], raw["count"]
    slopes = {
        name: tuple(
            slope([(x, y) for x, y in row["points"] if x > count / 10])
            for row in rows
            if row["variant"] == name
        )
        for name in (OURS, CONTROL)
    }
    samples = {
        OURS: Sample(role="ours", unit="KiB an epoch", values=slopes[OURS]),
        CONTROL: Sample(role="control", unit="KiB an epoch", values=slopes[CONTROL]),
    }
    grown = {
        name: max(r["after"][name] - r["before"][name] for r in rows if r["variant"] == OURS)
        for name in ("threads", "descriptors")
    }
    growth = statistics.median(a - b for a, b in zip(slopes[OURS], slopes[CONTROL], strict=True))
    bars = [
        Bar(
            text="resident memory, KiB a checkpoint beyond the control",
            value=growth,
            limit=_ALLOWED_KIB,
        ),
        *(Bar(text=f"{name} left", value=number, limit=0) for name, number in grown.items()),
    ]
    return [
        Figure(
            key="thousand", title=f"{count:,} checkpoints in one fit", samples=samples, bars=bars
        )
    ]
