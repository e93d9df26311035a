"""A run's checkpoints as a table that `mlflow.load_table` and the MLflow UI read.

    {"columns": [...], "data": [[...], ...]}      pandas' orient="split", without an index

Columns are those of `list_checkpoints`, then `state`, `verified_at`, `stall_ms`, `write_s`,
`lag_s`, and one `metrics.<name>` per metric. Times are ISO 8601 in UTC.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from mlflow_ckpt.listing import COLUMNS
from mlflow_ckpt.page._facts import Facts, Held

PATH = "checkpoints/checkpoints.json"
_COSTS = ("stall_ms", "write_s", "lag_s")
_METRIC = "metrics."


def table(facts: Facts) -> bytes:
    """One row per checkpoint that is there, series by series, oldest step first."""
    rows = [_row(each) for each in facts.held]
    metrics = sorted({key for row in rows for key in row if key.startswith(_METRIC)})
    columns = [*COLUMNS, "state", "verified_at", *_COSTS, *metrics]
    data = [[row.get(column) for column in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, allow_nan=False).encode()


def _row(held: Held) -> dict[str, Any]:
    checkpoint, made = held.checkpoint, held.made
    own = {
        name: getattr(checkpoint, name)
        for name in COLUMNS
        if not name.startswith("is_") and name != "created_at"
    }
    return {
        **own,
        "is_latest": held.latest,
        "is_best": held.best,
        "is_final": checkpoint.final,
        "created_at": iso(checkpoint.created_at),
        "state": held.state,
        "verified_at": iso(held.verified_at) if held.verified_at is not None else None,
        **{cost: getattr(made, cost, None) for cost in _COSTS},
        **{_METRIC + key: value for key, value in checkpoint.metrics.items()},
    }


def iso(at: int) -> str:
    """Milliseconds since the Unix epoch as ISO 8601 in UTC."""
    found = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    return found.replace("+00:00", "Z")
