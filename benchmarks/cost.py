"""What checkpoints cost the whole `fit`, and how fast they become durable behind it.

A round trains the same model in four ways, in rotating order: without a callback, with
ours, with Keras's `ModelCheckpoint`, and with a callback that only writes the same number
of bytes and fsyncs them. Everything counts: beginning the run, the first checkpoint's
template, digests, fsync, the wait for the writer at the end.

    cost of a checkpoint  = median over rounds of (with - without) / checkpoints
    background throughput = bytes / time, from the hook that captures to the moment the
                            tracking database calls the logged model READY; the first
                            checkpoint and the last, behind which no training goes on, apart

Keras's own save neither digests nor fsyncs. Times are seconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow

from benchmarks import limits, models, peers
from benchmarks.peers import CONTROL, KERAS, OURS
from benchmarks.process import say
from benchmarks.results import LARGE_MIB, Bar, Figure, Sample, interval, rotated
from benchmarks.stopwatch import Stopwatch

PLAIN = "plain write and fsync of the same bytes"
_VARIANTS = (CONTROL, OURS, KERAS, PLAIN)
_KEPT = 3


def measure(
    *, mib: float, repeats: int, checkpoints: int, apart_s: float, scratch: Path
) -> dict[str, Any]:
    """Train each variant `repeats` times, with `checkpoints` epochs of about `apart_s` each."""
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
            epochs, length = (checkpoints, steps) if turn >= 0 else (2, 1)
            row = _one(variant, model, dataset, plain, epochs, length, scratch)
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
            hooks = [watch, callback] if callback else [watch]
            seconds = models.fit(model, dataset, epochs=epochs, steps=steps, callbacks=hooks)
            row: dict[str, Any] = {"seconds": seconds, "first_s": watch.hook_seconds(0)}
            if isinstance(callback, limits.PlainWriter):
                row["behind_s"] = callback.seconds[1:-1]
            if callback and variant == OURS:
                row["behind_s"] = _behind(watch, epochs)
                row["stats"] = peers.statistics_of(callback)
        return row
    finally:
        for left in (folder, scratch / "artifacts"):
            shutil.rmtree(left, ignore_errors=True)
        os.sync()


@contextmanager
def _opened(variant: str, folder: Path, plain: Any) -> Iterator[keras.callbacks.Callback | None]:
    if variant == OURS:
        with peers.ours(folder, last=_KEPT) as callback:
            yield callback
    elif variant == KERAS:
        with peers.keras_model(folder) as callback:
            yield callback
    else:
        yield limits.PlainWriter(folder, plain) if variant == PLAIN else None


def _behind(watch: Stopwatch, epochs: int) -> list[float]:
    """From capture to READY, of the checkpoints that are still kept, the first and last apart."""
    began = {c.epoch + 1: c.wall for c in watch.calls if c.hook == "on_epoch_end"}
    run = mlflow.active_run()
    assert run is not None, "the variant's run is still open"
    models_of_run = mlflow.MlflowClient().search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    ready = {int(m.tags["ckpt.epoch"]): m.last_updated_timestamp / 1e3 for m in models_of_run}
    return [ready[epoch] - began[epoch] for epoch in sorted(ready) if 1 < epoch < epochs]


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """Cost and throughput of one size, from what `measure` returned."""
    return [_cost(raw), _throughput(raw)]


def paired(rows: Sequence[Mapping[str, Any]], variant: str, control: str = CONTROL) -> list[float]:
    """Seconds of `variant` minus those of `control`, of the same round."""
    seconds = {(row["variant"], row["turn"]): row["seconds"] for row in rows}
    return [
        seconds[name, turn] - seconds[control, turn]
        for name, turn in sorted(seconds, key=lambda key: key[1])
        if name == variant
    ]


def _cost(raw: Mapping[str, Any]) -> Figure:
    rows, count = raw["rows"], raw["checkpoints"]
    costs = {
        name: tuple(1e3 * seconds / count for seconds in paired(rows, name))
        for name in (OURS, KERAS, PLAIN)
    }
    first = [row["first_s"] for row in rows if row["variant"] == OURS]
    later = tuple(
        (cost * count - 1e3 * one) / max(1, count - 1)
        for cost, one in zip(costs[OURS], first, strict=True)
    )
    samples = {
        OURS: Sample(role="ours", unit="ms", values=costs[OURS]),
        f"{OURS}, the first's hook apart": Sample(role="ours", unit="ms", values=later),
        KERAS: Sample(role="peer", unit="ms", values=costs[KERAS]),
        PLAIN: Sample(role="limit", unit="ms", values=costs[PLAIN]),
    }
    base = [row["seconds"] for row in rows if row["variant"] == CONTROL]
    low, high = interval(costs[OURS])
    keras_low, keras_high = interval(costs[KERAS])
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
            f"95 % interval of the median: ours {low:.0f} to {high:.0f} ms, "
            f"Keras {keras_low:.0f} to {keras_high:.0f} ms.",
            f"{count} checkpoints a fit; a fit without takes {statistics.median(base):.1f} s "
            f"({min(base):.1f} to {max(base):.1f}).",
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
