"""Ask the tracking server for committed checkpoints.

Traps of MLflow 3 that shape this file: a search returns PENDING and FAILED models too,
so the commit tag decides; `order_by` knows metrics but not tags, hence `ckpt_step`; a
filter with `!=` drops models that lack the tag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from mlflow_ckpt.record import (
    COMPLETE_TAG,
    DIGEST_TAG,
    FINAL_TAG,
    PINNED_TAG,
    STEP_METRIC,
    Checkpoint,
    Kind,
    Position,
    Run,
    Series,
)
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.store._connection import translated

_PAGE = 100
_REGISTERED_TAG = "mlflow.modelVersions"
ANY_KIND: tuple[Kind, ...] = ("epoch", "batch", "manual")


def newest(client: MlflowClient, run: Run, series: Series, *clauses: str) -> Checkpoint | None:
    """The committed checkpoint with the highest step; of equal ones the latest made."""
    order = [{"field_name": f"metrics.{series.prefix}{STEP_METRIC}", "ascending": False}]
    found = _search(client, run, series, clauses, order, limit=1)
    return found[0] if found else None


def best(
    client: MlflowClient, run: Run, series: Series, metric: str, mode: Mode
) -> Checkpoint | None:
    """The committed checkpoint with the best finite `metric`; ties go to the later step."""
    order = [
        {"field_name": f"metrics.{series.prefix}{metric}", "ascending": mode == "min"},
        {"field_name": f"metrics.{series.prefix}{STEP_METRIC}", "ascending": False},
    ]
    found = _search(client, run, series, (kinds(*ANY_KIND),), order, limit=1)
    return found[0] if found and metric in found[0].metrics else None


def everything(client: MlflowClient, run: Run, series: Series) -> list[Checkpoint]:
    """All committed checkpoints of a series, oldest step first."""
    order = [{"field_name": f"metrics.{series.prefix}{STEP_METRIC}", "ascending": True}]
    return _search(client, run, series, (), order, limit=None)


def ends(client: MlflowClient, run: Run, series: Series) -> list[Checkpoint]:
    """Every checkpoint that is marked as an end state."""
    order = [{"field_name": f"metrics.{series.prefix}{STEP_METRIC}", "ascending": True}]
    return _search(client, run, series, (FINAL,), order, limit=None)


def kinds(*wanted: Kind) -> str:
    """Filter clause for these kinds."""
    return f"tags.`ckpt.kind` IN ({', '.join(repr(k) for k in wanted)})"


def tag(key: str, value: str) -> str:
    """Filter clause for one tag."""
    return f"tags.`{key}` = '{value}'"


FINAL = tag(FINAL_TAG, "true")


def _search(
    client: MlflowClient,
    run: Run,
    series: Series,
    clauses: Sequence[str],
    order_by: list[dict[str, object]],
    *,
    limit: int | None,
) -> list[Checkpoint]:
    filters = [
        f"source_run_id = '{run.run_id}'",
        tag(COMPLETE_TAG, "true"),
        tag("ckpt.series", series.name),
        *clauses,
    ]
    found: list[Checkpoint] = []
    token: str | None = None
    with translated("search logged models"):
        while True:
            page = client.search_logged_models(
                [run.experiment_id],
                filter_string=" AND ".join(filters),
                max_results=limit or _PAGE,
                order_by=order_by,
                page_token=token,
            )
            found.extend(to_checkpoint(model, series) for model in page)
            token = page.token
            if not token or limit:
                return found


def to_checkpoint(model: LoggedModel, series: Series) -> Checkpoint:
    """Read a LoggedModel that carries the commit tag."""
    latest: dict[str, tuple[int, float]] = {}
    for metric in model.metrics or []:
        key = metric.key.removeprefix(series.prefix)
        if metric.timestamp >= latest.get(key, (-1, 0.0))[0] and math.isfinite(metric.value):
            latest[key] = (metric.timestamp, metric.value)
    latest.pop(STEP_METRIC, None)
    return Checkpoint(
        run_id=model.source_run_id,
        model_id=model.model_id,
        position=Position.from_tags(model.tags),
        metrics={key: value for key, (_, value) in sorted(latest.items())},
        bytes=int(model.tags.get("ckpt.bytes", 0)),
        digest=model.tags[DIGEST_TAG],
        artifact_uri=model.artifact_location,
        created_at=model.creation_timestamp,
        weights_only=model.tags.get("ckpt.weights_only") == "true",
        pinned=model.tags.get(PINNED_TAG) == "true" or _REGISTERED_TAG in model.tags,
        final=model.tags.get(FINAL_TAG) == "true",
    )
