"""What one checkpoint consists of: its files, their manifest, and what is committed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlflow_ckpt import training_state
from mlflow_ckpt.manifest import Manifest
from mlflow_ckpt.pending import SaveRequest
from mlflow_ckpt.store import Commit, Draft, Store, write_card


def write_files(
    request: SaveRequest, draft: Draft, progress: Callable[[int], None]
) -> tuple[Manifest, Sequence[str]]:
    """Write every file but the manifest; returns it, and the paths that are on the disk.

    Args:
        progress: Called with the bytes of the model's file as they are written.
    """
    snapshot, position = request.snapshot, request.position
    known = snapshot.write(draft.directory, progress)
    if not snapshot.weights_only:
        write_card(draft.directory, snapshot.spec)
    if request.state is not None:
        training_state.write(draft.directory / training_state.PATH, request.state)
    manifest = Manifest.build(
        draft.directory,
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
    return manifest, [entry.path for entry in known]


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they stand there as text, such as "nan"."""
    return value if value - value == 0 else str(value)


def commit_request(
    request: SaveRequest, manifest: Manifest, synced: Sequence[str], *, link: bool
) -> Commit:
    """What the store is asked to commit; `link`: whether the run's page is to list it."""
    with_it = {(row.key, row.step) for row in request.rows}
    return Commit(
        manifest=manifest,
        synced=synced,
        metrics=request.rows,
        beside=[row for row in request.curve if (row.key, row.step) not in with_it],
        values={key: v for key, v in request.metrics.items() if v - v == 0},
        weights_only=request.snapshot.weights_only,
        capture=request.snapshot.strategy,
        final=request.position.kind == "final",
        link=link,
    )
