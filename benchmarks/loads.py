"""Load a checkpoint: ours, which verifies every byte first, against Keras, which does not.

Both read the same file, which lies in the page cache; a plain read of it into touched
memory says what the machine allows. Three comparisons:

    weights   `load_weights` of a weights-only checkpoint: all its bytes are weights
    trained   `load_weights` of a whole training checkpoint into a compiled model; Keras reads
              the optimizer's state too, ours assigns the weights but verifies all bytes
    model     `load_model` of the same training checkpoint

Times are seconds; the three ways alternate.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import keras
import mlflow
import numpy as np

import mlflow_ckpt as ckpt
from benchmarks import limits, models, peers
from benchmarks.peers import OURS
from benchmarks.process import say
from benchmarks.results import Bar, Figure, Sample, rotated

_KERAS, _READ = "Keras", "plain read of the file"
_TITLES = {
    "weights": "load_weights of a weights-only checkpoint",
    "trained": "load_weights of a whole training checkpoint",
    "model": "load_model of a whole training checkpoint",
}


def measure(*, mib: float, repeats: int, scratch: Path) -> dict[str, Any]:
    """Time the three comparisons; runs in a process of its own."""
    peers.use_store(scratch)
    results = {kind: _compare(kind, mib, repeats) for kind in _TITLES}
    return {"mib": mib, "kinds": results}


def _compare(kind: str, mib: float, repeats: int) -> dict[str, Any]:
    weights_only = kind == "weights"
    model = models.mlp(mib, trained=not weights_only)
    if not weights_only:
        models.fit(model, models.data(model, mib), epochs=1, steps=2)
    with mlflow.start_run() as run:
        saved = ckpt.save(model, weights_only=weights_only)
    name = "model.weights.h5" if weights_only else "model.keras"
    file = Path(unquote(urlsplit(saved.artifact_uri).path)) / "data" / name
    buffer = np.ones(file.stat().st_size, np.uint8)
    ways = _ways(kind, model, run.info.run_id, file, buffer)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(-1, repeats):
        for way in rotated(list(ways), turn):
            say(f"{kind}, round {turn + 1} of {repeats}: {way}")
            taken = _timed(ways[way])
            if turn >= 0:  # the first round warms the page cache and every code path
                seconds[way].append(taken)
    result = {"seconds": seconds, "bytes": file.stat().st_size}
    file.unlink()
    return result


def _ways(
    kind: str, model: keras.Model, run_id: str, file: Path, buffer: np.ndarray[Any, Any]
) -> dict[str, Callable[[], object]]:
    if kind == "model":
        return {
            OURS: lambda: ckpt.load_model(run_id, "latest"),
            _KERAS: lambda: keras.models.load_model(file),
            _READ: lambda: limits.read_seconds(file, buffer),
        }
    return {
        OURS: lambda: ckpt.load_weights(model, run_id, "latest"),
        _KERAS: lambda: model.load_weights(file),
        _READ: lambda: limits.read_seconds(file, buffer),
    }


def _timed(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    made = way()
    seconds = time.perf_counter() - began
    del made
    gc.collect()
    return seconds


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """One figure a comparison, from what `measure` returned."""
    return [_figure(raw["mib"], kind, result) for kind, result in raw["kinds"].items()]


def _figure(mib: float, kind: str, result: Mapping[str, Any]) -> Figure:
    seconds = {way: tuple(values) for way, values in result["seconds"].items()}
    samples = {
        OURS: Sample(role="ours", unit="s", values=seconds[OURS]),
        _KERAS: Sample(role="peer", unit="s", values=seconds[_KERAS]),
        _READ: Sample(role="limit", unit="s", values=seconds[_READ]),
    }
    ours, keras_s, read = (samples[name].median for name in (OURS, _KERAS, _READ))
    if kind == "model":
        bars = [Bar(text="load_model ÷ Keras load_model", value=ours, divisor=keras_s, limit=0.15)]
    else:
        bars = [
            Bar(text="load_weights ÷ plain read", value=ours, divisor=read, limit=3.5),
            Bar(text="load_weights ÷ Keras load_weights", value=ours, divisor=keras_s, limit=0.7),
        ]
    return Figure(
        key=f"load-{kind}",
        title=_TITLES[kind],
        mib=mib,
        samples=samples,
        bars=bars,
        notes=[f"The file has {result['bytes'] / 2**20:.0f} MiB and is in the page cache."],
    )
