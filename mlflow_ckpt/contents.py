"""What one checkpoint consists of: its files, their manifest, and what is committed of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow_ckpt import parcel, training_state
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.durable import sync
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.pending import SaveRequest
from mlflow_ckpt.policy import Keep
from mlflow_ckpt.store import Store, write_card


def write_files(request: SaveRequest, directory: Path, progress: Callable[[int], None]) -> Manifest:
    """Write every file, durably; returns their manifest.

    Args:
        directory: An empty folder of the caller's.
        progress: Called with the bytes of the model's file as they are written.

    Raises:
        OSError: If the disk is full or fails.
    """
    snapshot, position = request.snapshot, request.position
    known = snapshot.write(directory, progress)
    if not snapshot.weights_only:
        write_card(directory, snapshot.spec)
    if request.state is not None:
        training_state.write(directory / training_state.PATH, request.state)
    manifest = Manifest.build(
        directory,
        checkpoint={
            "series": position.series,
            "kind": position.kind,
            "epoch": position.epoch,
            "step": position.step,
            "fit": position.fit,
            "metrics": {key: _json_number(v) for key, v in request.metrics.items()},
            "monitor": request.series.monitor,
            "mode": request.series.mode,
        },
        model=snapshot.fingerprint,
        versions=Store.versions(),
        known=known,
    )
    (directory / FILENAME).write_bytes(manifest.to_bytes())
    on_disk = {entry.path for entry in known}
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.relative_to(directory).as_posix() not in on_disk:
            sync(path)
    sync(directory)
    return manifest


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they stand there as text, such as "nan"."""
    return value if value - value == 0 else str(value)


def entry_data(request: SaveRequest, manifest: Manifest, keep: Keep | None) -> dict[str, Any]:
    """What the journal says of a checkpoint: all that delivers it, in any process."""
    with_it = {(row.key, row.step) for row in request.rows}
    return {
        "position": asdict(request.position),
        "series": parcel.pack_series(request.series),
        "keep": parcel.pack_keep(keep),
        "digest": digest_bytes(manifest.to_bytes()),
        "bytes": manifest.total_bytes,
        "rows": parcel.pack_rows(request.rows),
        "beside": parcel.pack_rows(r for r in request.curve if (r.key, r.step) not in with_it),
        "curve": parcel.pack_rows(request.curve),
        "values": {key: v for key, v in request.metrics.items() if v - v == 0},
        "weights_only": request.snapshot.weights_only,
        "capture": request.snapshot.strategy,
        "final": request.position.kind == "final",
        "created_at": time.time_ns() // 1_000_000,
    }
