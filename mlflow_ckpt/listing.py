"""List the checkpoints of a run as a pandas DataFrame, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mlflow_ckpt import policy
from mlflow_ckpt.record import Checkpoint, Series
from mlflow_ckpt.resolver import some_series
from mlflow_ckpt.store import Store

COLUMNS: Mapping[str, str] = {
    "series": "str",
    "epoch": "int64",
    "step": "int64",
    "kind": "str",
    "is_latest": "bool",
    "is_best": "bool",
    "is_final": "bool",
    "pinned": "bool",
    "weights_only": "bool",
    "bytes": "int64",
    "created_at": "datetime64[ms, UTC]",
    "name": "str",
    "model_id": "str",
    "uri": "str",
    "digest": "str",
}


def list_checkpoints(run_id: str, series: str | None = None) -> pd.DataFrame:
    """List the committed checkpoints of a run, oldest step first within each series.

    Returns:
        The columns of `COLUMNS` in that order (text is pandas' `str` dtype, or `object`
        before pandas 3), then one float64 column `metrics.<name>` per metric, sorted by
        name, NaN where a checkpoint has none. `is_latest` and `is_best` are what the
        selectors `latest` and `best` of that series resolve to. Empty, with the same
        columns, where the run has no checkpoints.

    Raises:
        RunNotFound, RunDeleted: If there is no such run.
        SeriesNotFound: If the run has no series of that name.
    """
    store = Store()
    run = store.run(run_id)
    rows: list[dict[str, object]] = []
    for facts in some_series(run, series):
        rows.extend(_rows(store.checkpoints(run, facts), facts))
    return _frame(rows)


def _rows(history: Sequence[Checkpoint], series: Series) -> list[dict[str, object]]:
    latest, best = leaders(history, series)
    return [
        {
            "series": c.series,
            "epoch": c.epoch,
            "step": c.step,
            "kind": c.kind,
            "is_latest": c.model_id == latest,
            "is_best": c.model_id == best,
            "is_final": c.final,
            "pinned": c.pinned,
            "weights_only": c.weights_only,
            "bytes": c.bytes,
            "created_at": pd.Timestamp(c.created_at, unit="ms", tz="UTC"),
            "name": c.name,
            "model_id": c.model_id,
            "uri": c.uri,
            "digest": c.digest,
        }
        | {f"metrics.{key}": value for key, value in c.metrics.items()}
        for c in history
    ]


def leaders(history: Sequence[Checkpoint], series: Series) -> tuple[str | None, str | None]:
    """The model IDs of what `latest` and `best` of a series resolve to."""
    ordinary = [c for c in history if c.kind != "final"]
    latest = max(ordinary, key=lambda c: (c.step, c.created_at)).model_id if ordinary else None
    return latest, _best(ordinary, series)


def _best(history: Sequence[Checkpoint], series: Series) -> str | None:
    if series.monitor is None or series.mode is None:
        return None
    candidates = [
        policy.Candidate(
            key=c.model_id,
            step=c.step,
            epoch=c.epoch,
            epoch_ended=c.kind == "epoch",
            created=c.created_at,
            value=c.metrics.get(series.monitor),
        )
        for c in history
    ]
    ranked = policy.ranked(candidates, series.mode)
    return ranked[0].key if ranked else None


def _frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    metrics = sorted({key for row in rows for key in row if key.startswith("metrics.")})
    frame = pd.DataFrame(list(rows), columns=[*COLUMNS, *metrics])
    return frame.astype({**COLUMNS, **dict.fromkeys(metrics, "float64")})
