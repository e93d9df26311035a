"""A LoggedModel of this package in whatever state, also one of which nothing else can be read."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.entities import LoggedModel

from mlflow_ckpt.record import COMPLETE_TAG, FORK_TAG_PREFIX, KIND_TAG, REASON_TAG, SERIES_TAG
from mlflow_ckpt.store import _query


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A LoggedModel of this package, committed or not.

    Attributes:
        name, model_id, run_id, experiment_id: Its own, and those that it is of.
        series, kind: As in `Position`, read from its tags.
        state: Its tag `ckpt.complete`.
        reason: Why it is corrupt, if it is.
        step, epoch: As in `Position`; -1 if its tags do not say.
        held: See `Checkpoint.held`.
        forks: IDs of the runs that began at it, and hold it.
        artifact_uri: Where its files lie.
        bytes: Of its files, if it was committed; else 0.
    """

    name: str
    model_id: str
    run_id: str
    experiment_id: str
    series: str
    kind: str
    state: str
    reason: str
    step: int
    epoch: int
    held: tuple[str, ...]
    forks: tuple[str, ...]
    artifact_uri: str
    bytes: int


def trace_of(model: LoggedModel) -> Trace:
    tags = model.tags
    return Trace(
        name=model.name,
        model_id=model.model_id,
        run_id=model.source_run_id,
        experiment_id=model.experiment_id,
        series=tags.get(SERIES_TAG, ""),
        kind=tags.get(KIND_TAG, ""),
        state=tags.get(COMPLETE_TAG, ""),
        reason=tags.get(REASON_TAG, ""),
        step=_number(tags.get("ckpt.step")),
        epoch=_number(tags.get("ckpt.epoch")),
        held=_query.held(tags),
        forks=tuple(
            key.removeprefix(FORK_TAG_PREFIX)
            for key, value in tags.items()
            if key.startswith(FORK_TAG_PREFIX) and value == "true"
        ),
        artifact_uri=model.artifact_location,
        bytes=max(0, _number(tags.get("ckpt.bytes", "0"))),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else -1
