"""Time in hooks, and the stall: what one checkpoint takes from the training loop.

One `fit` of three equal epochs a variant and round:

    epoch 1   usual steps            save (ours only: the first, which makes the template)
              wait until the writer is idle
    epoch 2   usual steps            save: the measured one
    epoch 3   its first step runs beside a background writer: the excess counts as stall

A peer saves once, after epoch 2; before the rounds everybody saves a tiny model, so that
no import and no first call is counted. The usual step is the median of the steps before
the measured save. Times are milliseconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from benchmarks import limits, models, peers
from benchmarks.peers import OURS, Variant
from benchmarks.process import say
from benchmarks.results import LARGE_MIB, Bar, Figure, Role, Sample, best_peer, ms, rotated
from benchmarks.stopwatch import Settle, Stopwatch, only_at

_COPY = "memory copy of the state"
_MEASURED = 1  # epochs count from 0 in hooks
_TINY_MIB = 0.05


def measure(*, mib: float, repeats: int, variants: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Measure the variants of these names; runs in a process of its own."""
    peers.use_store(scratch)
    chosen = [variant for variant in peers.VARIANTS if variant.name in variants]
    errors = _warm(chosen, scratch)
    able = [variant for variant in chosen if variant.name not in errors]
    model = models.mlp(mib)
    dataset = models.data(model, mib)
    models.fit(model, dataset, epochs=2, steps=3)
    steps = _steps(model, dataset)
    copy = limits.MemoryCopy(models.state(model))
    copy.seconds()
    rows, copies = [], []
    for turn in range(repeats):
        copies.append(copy.seconds())
        for name in rotated([variant.name for variant in able], turn):
            say(f"round {turn + 1} of {repeats}: {name}")
            variant = next(v for v in able if v.name == name)
            if name in errors:
                continue
            own = models.mlp(mib) if variant.own_model else model
            row = _attempt(variant, own, dataset, steps, scratch, errors)
            rows.extend([{"turn": turn, **row}] if row else [])
    return {"mib": mib, "rows": rows, "errors": errors, "copy_s": copies, "steps": steps}


def _warm(variants: Sequence[Variant], scratch: Path) -> dict[str, str]:
    """Let everybody save a tiny model; who cannot is out, with the reason."""
    errors: dict[str, str] = {}
    for variant in variants:
        say(f"warming up: {variant.name}")
        if variant.missing:
            errors[variant.name] = f"{variant.missing} is not installed"
            continue
        model = models.mlp(_TINY_MIB)
        _attempt(variant, model, models.data(model, _TINY_MIB), 2, scratch, errors)
    return errors


def _attempt(
    variant: Variant,
    model: keras.Model,
    dataset: Any,
    steps: int,
    scratch: Path,
    errors: dict[str, str],
) -> dict[str, Any] | None:
    """One fit; where a peer fails, its error is noted. Our own errors are raised."""
    try:
        return _one(variant, model, dataset, steps, scratch)
    except Exception as error:
        if variant.name == OURS:
            raise
        text = str(error).strip().splitlines() or [""]
        errors[variant.name] = f"{type(error).__name__}: {text[0][:300]}"
        return None


def _steps(model: keras.Model, dataset: Any) -> int:
    """Steps of an epoch: more of them where they are short, so that the median is steady."""
    watch = Stopwatch(lambda _: False)
    models.fit(model, dataset, epochs=1, steps=4, callbacks=[watch])
    return max(3, min(8, round(0.8 / watch.usual_step({0}))))


def _one(
    variant: Variant, model: keras.Model, dataset: Any, steps: int, scratch: Path
) -> dict[str, Any]:
    folder = scratch / "one"
    folder.mkdir()
    try:
        with variant.open(folder) as callback:
            if variant.name != OURS:
                only_at(callback, {_MEASURED})
            watch = Stopwatch(lambda c: c is callback or peers.is_ours(c))
            hooks = [watch, callback, Settle({_MEASURED})]
            models.fit(model, dataset, epochs=3, steps=steps, callbacks=hooks)
        usual = watch.usual_step({0, _MEASURED})
        hook, excess = watch.hook_seconds(_MEASURED), watch.excess(_MEASURED, usual)
        return {
            "variant": variant.name,
            "hook_s": hook,
            "stall_s": hook + excess,
            "first_s": watch.hook_seconds(0),
            "usual_s": usual,
            "stats": peers.statistics_of(callback),
        }
    finally:
        clean(folder, scratch / "artifacts")


def clean(*folders: Path) -> None:
    """Remove what a variant wrote, and let the disk come to rest before the next one."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """The two figures of one size, from what `measure` returned."""
    mib, rows = raw["mib"], raw["rows"]
    copy = Sample(role="limit", unit="ms", values=ms(raw["copy_s"]))
    hook = {**_samples(rows, "hook_s"), _COPY: copy}
    stall = {**_samples(rows, "stall_s"), _COPY: copy}
    notes = [
        f"A step takes {1e3 * statistics.median(r['usual_s'] for r in rows):.0f} ms; "
        f"{raw['steps']} steps an epoch."
    ]
    return [
        Figure(
            key="hooks",
            title="Time in all hooks, per checkpoint",
            mib=mib,
            samples=hook,
            errors=raw["errors"],
            bars=_hook_bars(mib, rows, hook),
            notes=[*notes, *_own_words(rows, "hook_ms")],
        ),
        Figure(
            key="stall",
            title="Stall: hooks and the excess of the next step, per checkpoint",
            mib=mib,
            samples=stall,
            errors=raw["errors"],
            bars=_stall_bars(stall),
            notes=[*notes, *_own_words(rows, "stall_ms")],
        ),
    ]


def _samples(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Sample]:
    names = list(dict.fromkeys(row["variant"] for row in rows))
    return {
        name: Sample(
            role=_role(name), unit="ms", values=ms([r[key] for r in rows if r["variant"] == name])
        )
        for name in sorted(names, key=lambda name: name != OURS)
    }


def _role(name: str) -> Role:
    return "ours" if name == OURS else "peer"


def _hook_bars(
    mib: float, rows: Sequence[Mapping[str, Any]], samples: Mapping[str, Sample]
) -> list[Bar]:
    if OURS not in samples:
        return []
    limit = 0.1 if mib >= LARGE_MIB else 0.25
    bars = [
        Bar(
            text="hooks ÷ memory copy",
            value=samples[OURS].median,
            divisor=samples[_COPY].median,
            limit=limit,
        )
    ]
    if peers.KERAS in samples:
        first = statistics.median(r["first_s"] for r in rows if r["variant"] == OURS)
        bars.append(
            Bar(
                text="hooks of the first checkpoint ÷ one Keras .keras save",
                value=1e3 * first,
                divisor=samples[peers.KERAS].median,
                limit=1.0,
            )
        )
    return bars


def _stall_bars(samples: Mapping[str, Sample]) -> list[Bar]:
    if OURS not in samples:
        return []
    stall = samples[OURS].median
    bars = [Bar(text="stall ÷ memory copy", value=stall, divisor=samples[_COPY].median, limit=6.0)]
    best = best_peer(samples)
    if best:
        bars.append(
            Bar(
                text=f"stall of the best peer ({best[0]}) ÷ ours",
                value=best[1].median,
                divisor=stall,
                limit=8.0,
                at_least=True,
            )
        )
    return bars


def _own_words(rows: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """What the callback says of itself, beside what the stopwatch saw."""
    # Of the three checkpoints of a fit, the second is the measured one; `hook_ms` begins with it.
    index = 0 if key == "hook_ms" else 1
    values = [row["stats"][key][index] for row in rows if len(row["stats"].get(key, ())) > index]
    strategies = sorted({row["stats"]["strategy"] for row in rows if row["stats"]})
    if not values:
        return []
    return [
        f"stats() of mlflow_ckpt ({', '.join(strategies)}): median {key} "
        f"{statistics.median(values):.2f} over the same {len(values)} checkpoints."
    ]
