"""`fit` with one checkpoint every ten seconds: to a local store, and through a server.

That is how often a real training saves. A round trains three ways, in rotating order:
without a callback, with ours to a local sqlite store, and with ours through
`mlflow server` over HTTP on the same machine's cores. The ratio is that of whole fits,
the first checkpoint's template and the wait at the end included. Times are seconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import mlflow

from benchmarks import models, peers, servers
from benchmarks.cost import steps_for
from benchmarks.peers import CONTROL, OURS
from benchmarks.process import say
from benchmarks.results import Bar, Figure, Sample, rotated

LOCAL, HTTP = f"{OURS}, local store", f"{OURS}, mlflow server over HTTP"
_VARIANTS = (CONTROL, LOCAL, HTTP)


def measure(
    *, mib: float, repeats: int, epochs: int, apart_s: float, scratch: Path
) -> dict[str, Any]:
    """Train each variant `repeats` times, with `epochs` of at least `apart_s` seconds."""
    remote = scratch / "remote"
    remote.mkdir()
    model = models.mlp(mib)
    dataset = models.data(model, mib)
    steps = steps_for(model, dataset, apart_s * 1.05)
    rows: list[dict[str, Any]] = []
    with servers.serve(remote) as uri:
        local = f"sqlite:///{scratch / 'mlflow.db'}"
        places = {HTTP: (uri, peers.use_server(uri)), LOCAL: (local, peers.use_store(scratch))}
        for turn in range(-1, repeats):
            for variant in rotated(_VARIANTS, turn):
                say(f"round {turn + 1} of {repeats}: {variant}")
                tracking, experiment = places.get(variant, places[LOCAL])
                mlflow.set_tracking_uri(tracking)
                mlflow.set_experiment(experiment_id=experiment)
                shape = (epochs, steps) if turn >= 0 else (2, 1)
                seconds = _one(variant, model, dataset, *shape, scratch)
                if turn >= 0:
                    rows.append({"turn": turn, "variant": variant, "seconds": seconds})
                for left in (scratch / "artifacts", remote / "served"):
                    shutil.rmtree(left, ignore_errors=True)
                os.sync()
    return {"mib": mib, "rows": rows, "epochs": epochs, "steps": steps}


def _one(
    variant: str, model: keras.Model, dataset: Any, epochs: int, steps: int, folder: Path
) -> float:
    if variant == CONTROL:
        return models.fit(model, dataset, epochs=epochs, steps=steps)
    with peers.ours(folder) as callback:
        return models.fit(model, dataset, epochs=epochs, steps=steps, callbacks=[callback])


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """The two figures, from what `measure` returned."""
    seconds = {
        name: [row["seconds"] for row in raw["rows"] if row["variant"] == name]
        for name in _VARIANTS
    }
    control = Sample(role="control", unit="s", values=tuple(seconds[CONTROL]))
    apart = control.median / raw["epochs"]
    return [
        _figure("fit", "local store", LOCAL, 1.03, raw, seconds, control, apart),
        _figure("http", "mlflow server over HTTP", HTTP, 1.10, raw, seconds, control, apart),
    ]


def _figure(
    key: str,
    where: str,
    name: str,
    limit: float,
    raw: Mapping[str, Any],
    seconds: Mapping[str, list[float]],
    control: Sample,
    apart: float,
) -> Figure:
    ratios = [a / b for a, b in zip(seconds[name], seconds[CONTROL], strict=True)]
    return Figure(
        key=key,
        title=f"Whole fit with one checkpoint every {apart:.0f} s, {where}",
        mib=raw["mib"],
        samples={
            name: Sample(role="ours", unit="s", values=tuple(seconds[name])),
            CONTROL: control,
        },
        bars=[
            Bar(
                text="fit with ÷ without, median of paired rounds",
                value=statistics.median(ratios),
                limit=limit,
            )
        ],
        notes=[
            f"Paired ratios {min(ratios):.3f} to {max(ratios):.3f}; "
            f"{raw['epochs']} checkpoints a fit."
        ],
    )
