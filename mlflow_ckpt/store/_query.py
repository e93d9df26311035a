"""Ask the tracking server for committed checkpoints.

Traps of MLflow 3 that shape this file: a search returns PENDING and FAILED models too,
so the commit tag decides; `order_by` knows metrics but not tags, hence `ckpt_step`; a
filter with `!=` drops models that lack the tag.

The server joins its table of tags once for each tag of a filter, and ranks a table of metrics
once for each metric of an order. So the newest and the best are looked for among the first few
models of the run in one order, and their tags are read here; what those few cannot decide is
asked for exactly. Of 10,000 checkpoints that took a third of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from mlflow_ckpt.errors import ManifestError
from mlflow_ckpt.record import (
    COMPLETE_TAG,
    DIGEST_TAG,
    ENTRY_TAG,
    FINAL_TAG,
    FORK_TAG_PREFIX,
    KIND_TAG,
    PINNED_TAG,
    SERIES_TAG,
    STEP_METRIC,
    Checkpoint,
    Kind,
    Position,
    Run,
    Series,
)
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.store._connection import translated
from mlflow_ckpt.store._faults import is_denied

Order = dict[str, object]

_PAGE = 100
_EXPERIMENTS = 1_000
_BY_AGE: Order = {"field_name": "creation_time"}
_TOP = 5
_REGISTERED_TAG = "mlflow.modelVersions"
ANY_KIND: tuple[Kind, ...] = ("epoch", "batch", "manual")


def newest(
    client: MlflowClient, run: Run, series: Series, kinds: Sequence[Kind]
) -> Checkpoint | None:
    """The checkpoint of these kinds with the highest step; of equal ones the latest made."""
    order = [_by(series, STEP_METRIC)]
    top = _page(client, run, [], order, _TOP)
    for model in top:
        if _is_one(model, series, kinds):
            return to_checkpoint(model, series)
    if len(top) < _TOP:
        return None
    return _first(client, run, series, [any_of(kinds)], order)


def newest_where(
    client: MlflowClient, run: Run, series: Series, *clauses: str
) -> Checkpoint | None:
    """Like `newest`, of those that fit these filter clauses."""
    return _first(client, run, series, clauses, [_by(series, STEP_METRIC)])


def best(
    client: MlflowClient, run: Run, series: Series, metric: str, mode: Mode
) -> Checkpoint | None:
    """The checkpoint with the best finite `metric`; ties go to the later step."""
    ranked = _by(series, metric, ascending=mode == "min")
    top = _page(client, run, [], [ranked], _TOP)
    able = [to_checkpoint(m, series) for m in top if _is_one(m, series, ANY_KIND)]
    tied = [c for c in able if c.metrics.get(metric) == able[0].metrics.get(metric)]
    if len(top) < _TOP or len(tied) < len(able):
        found = max(tied, key=lambda c: (c.step, c.created_at), default=None)
    else:
        order = [ranked, _by(series, STEP_METRIC)]
        found = _first(client, run, series, [any_of(ANY_KIND)], order)
    return found if found and metric in found.metrics else None


def everything(client: MlflowClient, run: Run, series: Series) -> list[Checkpoint]:
    """All committed checkpoints of a series, oldest step first."""
    return _all(client, run, series, [])


def newest_of_all(client: MlflowClient, run: Run, series: Series, count: int) -> list[Checkpoint]:
    """The `count` newest committed checkpoints, oldest step first."""
    page = _page(client, run, _exact(series, []), [_by(series, STEP_METRIC)], count)
    return [to_checkpoint(model, series) for model in reversed(page)]


def ends(client: MlflowClient, run: Run, series: Series) -> list[Checkpoint]:
    """Every checkpoint that is marked as an end state."""
    return _all(client, run, series, [FINAL])


def begun_deleting(client: MlflowClient, run: Run, series: Series) -> list[Checkpoint]:
    """Checkpoints of which a deletion was begun and not ended."""
    return _marked(client, run, series, "deleting")


def corrupt(client: MlflowClient, run: Run, series: Series) -> list[Checkpoint]:
    """Checkpoints whose bytes were found not to be the committed ones, oldest step first."""
    return _marked(client, run, series, "corrupt")


def _marked(client: MlflowClient, run: Run, series: Series, mark: str) -> list[Checkpoint]:
    clauses = [tag(COMPLETE_TAG, mark), tag(SERIES_TAG, series.name)]
    order = [_by(series, STEP_METRIC, ascending=True)]
    return [to_checkpoint(m, series) for m in _every(client, run, clauses, order)]


def tag(key: str, value: str) -> str:
    """Filter clause for one tag."""
    return f"tags.`{key}` = '{value}'"


FINAL = tag(FINAL_TAG, "true")


def any_of(kinds: Sequence[Kind]) -> str:
    """Filter clause for these kinds."""
    return f"tags.`{KIND_TAG}` IN ({', '.join(repr(kind) for kind in kinds)})"


def _by(series: Series, metric: str, *, ascending: bool = False) -> Order:
    return {"field_name": f"metrics.{series.prefix}{metric}", "ascending": ascending}


def _is_one(model: LoggedModel, series: Series, kinds: Sequence[Kind]) -> bool:
    """What the exact filter asks of the tags."""
    tags = model.tags
    return (
        tags.get(COMPLETE_TAG) == "true"
        and tags.get(SERIES_TAG) == series.name
        and tags.get(KIND_TAG) in kinds
    )


def _exact(series: Series, clauses: Sequence[str]) -> list[str]:
    return [tag(COMPLETE_TAG, "true"), tag(SERIES_TAG, series.name), *clauses]


def _first(
    client: MlflowClient, run: Run, series: Series, clauses: Sequence[str], order: list[Order]
) -> Checkpoint | None:
    page = _page(client, run, _exact(series, clauses), order, 1)
    return to_checkpoint(page[0], series) if page else None


def _all(
    client: MlflowClient, run: Run, series: Series, clauses: Sequence[str]
) -> list[Checkpoint]:
    order = [_by(series, STEP_METRIC, ascending=True)]
    models = _every(client, run, _exact(series, clauses), order)
    return [to_checkpoint(model, series) for model in models]


def _every(
    client: MlflowClient, run: Run, clauses: Sequence[str], order: list[Order]
) -> Iterator[LoggedModel]:
    """All models of a search, page by page."""
    token: str | None = None
    while True:
        page = _page(client, run, clauses, order, _PAGE, token)
        yield from page
        token = page.token
        if not token:
            return


def _page(
    client: MlflowClient,
    run: Run,
    clauses: Sequence[str],
    order: list[Order],
    size: int,
    token: str | None = None,
) -> PagedList[LoggedModel]:
    """One request: models of the run in this order, those without its first metric last."""
    with translated("search logged models"):
        return client.search_logged_models(
            [run.experiment_id],
            filter_string=" AND ".join([f"source_run_id = '{run.run_id}'", *clauses]),
            max_results=size,
            order_by=order,
            page_token=token,
        )


def is_gone(client: MlflowClient, model_id: str, error: MlflowException) -> bool:
    """Whether a request about a LoggedModel failed because it is deleted.

    Basic-auth, which asks the model for its experiment, denies everything about a deleted one.
    """
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return True
    if not is_denied(error):
        return False
    clause, token, readable = f"model_id = '{model_id}'", None, False
    while True:
        page = client.search_experiments(max_results=_EXPERIMENTS, page_token=token)
        ids = [experiment.experiment_id for experiment in page]
        if ids and client.search_logged_models(ids, filter_string=clause, max_results=1):
            return False
        readable, token = readable or bool(ids), page.token
        if not token:
            return readable


def is_registered(client: MlflowClient, model_id: str) -> bool:
    """Whether a version in the model registry has the files of a LoggedModel.

    MLflow tags what is registered through `mlflow.register_model` or its server. A version
    that was made by its source alone, in a database without a server, leaves no tag.
    """
    with translated(f"look for {model_id} in the model registry"):
        found = client.search_model_versions(f"source_path LIKE '%{model_id}%'", max_results=1)
    return bool(found)


def of_entry(client: MlflowClient, run: Run, entry: str) -> list[LoggedModel]:
    """Every LoggedModel that was created for an entry of a spool, committed or not.

    A request whose answer was lost is made again, so an entry may have several.
    """
    return list(_every(client, run, [tag(ENTRY_TAG, entry)], [_BY_AGE]))


def unfinished(client: MlflowClient, run: Run, series: str) -> list[LoggedModel]:
    """Every LoggedModel of a series that was created and not committed, by whomever."""
    begun = f"tags.`{COMPLETE_TAG}` IN ('pending', 'failed')"
    return list(_every(client, run, [begun, tag(SERIES_TAG, series)], [_BY_AGE]))


def held(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Why nothing may delete a checkpoint, by its tags."""
    found = {
        "pinned": tags.get(PINNED_TAG) == "true",
        "registered": _REGISTERED_TAG in tags,
        "forked": any(k.startswith(FORK_TAG_PREFIX) and v == "true" for k, v in tags.items()),
    }
    return tuple(reason for reason, holds in found.items() if holds)


def to_checkpoint(model: LoggedModel, series: Series) -> Checkpoint:
    """Read a LoggedModel that carries the commit tag.

    Raises:
        ManifestError: If its tags are not those of a checkpoint.
    """
    try:
        return _to_checkpoint(model, series)
    except (KeyError, ValueError) as error:
        raise ManifestError(
            f"Expected the tags of a checkpoint. Received: logged model {model.model_id} "
            f"({model.name}) of run {model.source_run_id}: {error!r}. Repair or delete it."
        ) from error


def _to_checkpoint(model: LoggedModel, series: Series) -> Checkpoint:
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
        held=held(model.tags),
        final=model.tags.get(FINAL_TAG) == "true",
        entry=model.tags.get(ENTRY_TAG, ""),
    )
