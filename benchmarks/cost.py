"""What checkpoints cost the whole `fit`, and how fast they become durable behind it.

Machines drift by tens of per cent within a minute, so checkpoints are paired with their
neighbours: within one fit every second epoch is saved, and the time from an epoch's end to
the next one's is compared with the mean of the two neighbours that follow no checkpoint.

    epoch      0     1 save     2     3 save     4     5 save     6
    time         |--------|=========|--------|=========|--------|=========|
                  without    with     without   with ...

    cost of a checkpoint  = median over all pairs of (with - mean of both neighbours without)
    background throughput = bytes / time, from the hook that captures to the moment the
                            tracking database calls the logged model READY; the first
                            checkpoint and the last, behind which no training goes on, apart

Variants take turns: ours, Keras's `ModelCheckpoint`, and a callback that only writes the
same number of bytes and fsyncs them. The first checkpoint, with its template, is reported
apart. Keras's own save neither digests nor fsyncs. Times are seconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow

from benchmarks import limits, models, peers
from benchmarks.peers import KERAS, OURS
from benchmarks.process import say
from benchmarks.results import LARGE_MIB, Bar, Figure, Sample, interval, rotated
from benchmarks.stopwatch import Stopwatch, only_at
from mlflow_ckpt import Every

PLAIN = "plain write and fsync of the same bytes"
_VARIANTS = (OURS, KERAS, PLAIN)
_KEPT = 3


def measure(
    *, mib: float, repeats: int, checkpoints: int, apart_s: float, scratch: Path
) -> dict[str, Any]:
    """Train each variant `repeats` times: `checkpoints` saves, epochs of about `apart_s`."""
    peers.use_store(scratch)
    model = models.mlp(mib)
    dataset = models.data(model, mib)
    plain = limits.noise(sum(tensor.nbytes for tensor in models.state(model)))
    steps = steps_for(model, dataset, apart_s)
    fits: list[dict[str, Any]] = []
    for turn in range(-1, repeats):
        for variant in rotated(_VARIANTS, turn):
            say(f"round {turn + 1} of {repeats}: {variant}")
            # Round 0 warms everybody up and is thrown away; it need not be long.
            saves, length = (checkpoints, steps) if turn >= 0 else (1, 1)
            row = _one(variant, model, dataset, plain, 2 * saves + 1, length, scratch)
            fits.append({"turn": turn, "variant": variant, **row})
    kept = [row for row in fits if row["turn"] >= 0]
    return {
        "mib": mib,
        "rows": kept,
        "checkpoints": checkpoints,
        "steps": steps,
        "bytes": int(plain.nbytes),
    }


def steps_for(model: keras.Model, dataset: Any, seconds: float) -> int:
    """How many steps take about `seconds`, at least two."""
    models.fit(model, dataset, epochs=1, steps=2)
    watch = Stopwatch(lambda _: False)
    models.fit(model, dataset, epochs=1, steps=6, callbacks=[watch])
    return max(2, round(seconds / watch.usual_step({0})))


def _one(
    variant: str,
    model: keras.Model,
    dataset: Any,
    plain: Any,
    epochs: int,
    steps: int,
    scratch: Path,
) -> dict[str, Any]:
    folder = scratch / "one"
    folder.mkdir()
    try:
        with _opened(variant, folder, plain) as callback:
            watch = Stopwatch(lambda c: c is callback or peers.is_ours(c))
            blocks = _Blocks()
            if variant != OURS:
                only_at(callback, range(1, epochs, 2))
            models.fit(
                model, dataset, epochs=epochs, steps=steps, callbacks=[blocks, watch, callback]
            )
            row: dict[str, Any] = {"blocks": blocks.seconds, "first_s": watch.hook_seconds(1)}
            if isinstance(callback, limits.PlainWriter):
                row["behind_s"] = callback.seconds[1:]
            if variant == OURS:
                row["behind_s"] = _behind(watch, epochs)
                row["stats"] = peers.statistics_of(callback)
        return row
    finally:
        for left in (folder, scratch / "artifacts"):
            shutil.rmtree(left, ignore_errors=True)
        os.sync()


class _Blocks(keras.callbacks.Callback):
    """Stands first in the list and times from one epoch's end to the next one's.

    Attributes:
        seconds: Entry i is the time after the end of epoch i, its hooks included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._ended: float | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        if self._ended is not None:
            self.seconds.append(now - self._ended)
        self._ended = now


@contextmanager
def _opened(variant: str, folder: Path, plain: Any) -> Iterator[keras.callbacks.Callback]:
    if variant == OURS:
        with peers.ours(folder, last=_KEPT, save_freq=Every(epochs=2)) as callback:
            yield callback
    elif variant == KERAS:
        with peers.keras_model(folder) as callback:
            yield callback
    else:
        yield limits.PlainWriter(folder, plain)


def _behind(watch: Stopwatch, epochs: int) -> list[float]:
    """From capture to READY, of the checkpoints that are still kept, the first and last apart."""
    began = {c.epoch + 1: c.wall for c in watch.calls if c.hook == "on_epoch_end"}
    run = mlflow.active_run()
    assert run is not None, "the variant's run is still open"
    models_of_run = mlflow.MlflowClient().search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    ready = {int(m.tags["ckpt.epoch"]): m.last_updated_timestamp / 1e3 for m in models_of_run}
    return [ready[epoch] - began[epoch] for epoch in sorted(ready) if 2 < epoch < epochs]


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """Cost and throughput of one size, from what `measure` returned."""
    return [_cost(raw), _throughput(raw)]


def differences(blocks: Sequence[float]) -> list[float]:
    """Each block after a save, the first apart, minus the mean of its neighbours.

    Args:
        blocks: Seconds after the end of epoch 0, 1, ...; odd epochs are saved.
    """
    return [blocks[i] - (blocks[i - 1] + blocks[i + 1]) / 2 for i in range(3, len(blocks) - 1, 2)]


def _cost(raw: Mapping[str, Any]) -> Figure:
    rows = raw["rows"]
    costs = {
        name: tuple(
            1e3 * seconds
            for row in rows
            if row["variant"] == name
            for seconds in differences(row["blocks"])
        )
        for name in _VARIANTS
    }
    first = [1e3 * row["first_s"] for row in rows if row["variant"] == OURS]
    samples = {
        OURS: Sample(role="ours", unit="ms", values=costs[OURS]),
        KERAS: Sample(role="peer", unit="ms", values=costs[KERAS]),
        PLAIN: Sample(role="limit", unit="ms", values=costs[PLAIN]),
    }
    without = [s for row in rows for s in row["blocks"][2::2]]
    spans = {name: interval(costs[name]) for name in _VARIANTS}
    return Figure(
        key="cost",
        title="Cost of a checkpoint to the whole fit",
        mib=raw["mib"],
        samples=samples,
        bars=[
            Bar(
                text="cost ÷ that of Keras .keras",
                value=samples[OURS].median,
                divisor=samples[KERAS].median,
                limit=0.25 if raw["mib"] >= LARGE_MIB else 0.3,
            )
        ],
        notes=[
            "95 % interval of the median: "
            + ", ".join(f"{name} {low:.0f} to {high:.0f} ms" for name, (low, high) in spans.items())
            + ".",
            f"{raw['steps']} steps an epoch, which takes {statistics.median(without):.2f} s "
            "without a checkpoint.",
            f"The first checkpoint's hook, with the template: {statistics.median(first):.0f} ms.",
        ],
    )


def _throughput(raw: Mapping[str, Any]) -> Figure:
    rows, size = raw["rows"], raw["bytes"] / 2**20
    behind = {
        name: [s for row in rows if row["variant"] == name for s in row["behind_s"]]
        for name in (OURS, PLAIN)
    }
    said = [lag for row in rows for lag in row.get("stats", {}).get("lag_s", ())[1:-1]]
    notes = [f"stats() of mlflow_ckpt: median lag_s {statistics.median(said):.3f}."] if said else []
    samples = {
        name: Sample(
            role="ours" if name == OURS else "limit",
            unit="MiB/s",
            values=tuple(size / seconds for seconds in values),
        )
        for name, values in behind.items()
        if values
    }
    bars = [
        Bar(
            text="throughput, capture to commit ÷ plain write and fsync under the same training",
            value=samples[OURS].median,
            divisor=samples[PLAIN].median,
            limit=0.5,
            at_least=True,
        )
        for _ in [0]
        if len(samples) == 2
    ]
    return Figure(
        key="throughput",
        title="Background throughput, capture to commit, local store",
        mib=raw["mib"],
        samples=samples,
        bars=bars,
        notes=notes,
    )
