"""The facts of one committed checkpoint, and how they lie in tags.

A checkpoint is one MLflow LoggedModel. Its tags let the server filter and its
metrics let the server rank; `manifest.json` repeats everything, so that a tag is
never the only place of a value. This module is pure: the store does the talking.

Sizes are bytes, times are milliseconds since the Unix epoch (UTC).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from mlflow_ckpt.errors import ManifestError
from mlflow_ckpt.selector import Mode

MODEL_TYPE = "keras-checkpoint"
STEP_METRIC = "ckpt_step"
SERIES_TAG_PREFIX = "ckpt.series."
SERIES_TAG = "ckpt.series"
KIND_TAG = "ckpt.kind"
COMPLETE_TAG = "ckpt.complete"
DIGEST_TAG = "ckpt.manifest_digest"
REASON_TAG = "ckpt.corrupt_reason"
PINNED_TAG = "ckpt.pinned"
FORK_TAG_PREFIX = "ckpt.fork."
FINAL_TAG = "ckpt.final"
CAPTURE_TAG = "ckpt.capture"
ENTRY_TAG = "ckpt.entry"
LEASE_TAG_PREFIX = "ckpt.lease."
DIVERGENCE_TAG = "ckpt.resume_divergence"
FORKED_FROM_TAG = "ckpt.forked_from"
FORKED_STEP_TAG = "ckpt.forked_step"
FORKED_MODEL_TAG = "ckpt.forked_model"
# Of the new run, while it is being filled and afterwards.
FORK_STATE_TAG = "ckpt.fork_state"
FORKING, FORKED = "unfinished", "whole"
WARM_STARTED_TAG = "ckpt.warm_started_from"
RESUMED_FROM_TAG = "ckpt.resumed_from"
RESUME_COUNT_TAG = "ckpt.resume_count"
RESUME_EXACT_TAG = "ckpt.resume_exact"
RESUME_SKIPPED_TAG = "ckpt.resume_skipped"
# Of the run: when every checkpoint of a series was last read again, in milliseconds.
VERIFIED_TAG_PREFIX = "ckpt.verified."

Kind = Literal["epoch", "batch", "final", "manual"]


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in a series a checkpoint stands.

    Attributes:
        series: Name of the series.
        kind: `epoch` and `batch` are resume points; `final` holds what the model held when
            `fit` returned; `manual` was saved by hand.
        epoch: Completed epochs, from 1 (0: none yet).
        step: Completed training batches, from 1 (0: none yet).
        fit: Which `fit` of the series made it, from 1 (0: saved by hand).
    """

    series: str
    kind: Kind
    epoch: int
    step: int
    fit: int = 0

    @property
    def name(self) -> str:
        """Name of the LoggedModel: `<series>-<epoch>-<step>`, `-final` behind an end state."""
        suffix = "-final" if self.kind == "final" else ""
        return f"{self.series}-{self.epoch:04d}-{self.step:08d}{suffix}"

    def tags(self) -> dict[str, str]:
        """The tags a LoggedModel gets when it is created, before any byte is uploaded."""
        return {
            SERIES_TAG: self.series,
            KIND_TAG: self.kind,
            "ckpt.epoch": str(self.epoch),
            "ckpt.step": str(self.step),
            "ckpt.fit": str(self.fit),
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Position:
        """Read back what `tags()` wrote.

        Raises:
            KeyError, ValueError: If the tags are not those of a checkpoint.
        """
        return cls(
            series=tags[SERIES_TAG],
            kind=cast(Kind, tags[KIND_TAG]),
            epoch=int(tags["ckpt.epoch"]),
            step=int(tags["ckpt.step"]),
            fit=int(tags.get("ckpt.fit", "0")),
        )


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A checkpoint that was passed over, and why."""

    name: str
    model_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One committed checkpoint.

    Attributes:
        run_id: The MLflow run it belongs to.
        model_id: ID of its LoggedModel; `models:/<model_id>` works in every MLflow API.
        name: `<series>-<epoch>-<step>`.
        series, kind, epoch, step: See `Position`.
        metrics: Finite metrics of the epoch, under Keras's own names.
        bytes: Size of all files together.
        digest: Digest of `manifest.json`, with its algorithm: `blake3:<hex>`.
        uri: `models:/<model_id>`.
        artifact_uri: Where its files lie.
        created_at: Milliseconds since the Unix epoch.
        weights_only: Whether it holds `.weights.h5` instead of a whole model.
        held: Why nothing may delete it: `pinned`, `registered`, `forked`.
        final: Whether it holds what the model held when its `fit` returned.
        entry: Names it before it has a model ID: its entry in the spool that it came from.
        local: Folder with its files on this machine, if they are here.
        skipped: Newer ones that were passed over on the way to it, because they are damaged.
    """

    run_id: str
    model_id: str
    position: Position
    metrics: Mapping[str, float]
    bytes: int
    digest: str
    artifact_uri: str
    created_at: int
    weights_only: bool = False
    held: tuple[str, ...] = ()
    final: bool = False
    entry: str = ""
    local: Path | None = field(default=None, compare=False)
    skipped: tuple[Skipped, ...] = field(default=(), compare=False)

    @property
    def series(self) -> str:
        return self.position.series

    @property
    def kind(self) -> Kind:
        return self.position.kind

    @property
    def epoch(self) -> int:
        return self.position.epoch

    @property
    def step(self) -> int:
        return self.position.step

    @property
    def name(self) -> str:
        return self.position.name

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"

    @property
    def pinned(self) -> bool:
        """Whether retention must leave it alone."""
        return bool(self.held)


@dataclass(frozen=True, kw_only=True)
class Series:
    """What a run says of one of its series, in one tag.

    Attributes:
        name: Name of the series.
        prefix: Put before its metric names: empty for the run's first `fit`, else `<name>/`.
        monitor: The monitored quantity, or `None`.
        mode: Its direction, once known.
        directions: Direction of each metric that Keras knows one for.
    """

    name: str
    prefix: str = ""
    monitor: str | None = None
    mode: Mode | None = None
    directions: Mapping[str, Mode] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return SERIES_TAG_PREFIX + self.name

    @property
    def file(self) -> str:
        """Name of the run's artifact that says the same, and is not the table of checkpoints."""
        return f"{self.name}.json" if self.name != "checkpoints" else "checkpoints.series.json"

    def to_json(self) -> str:
        return json.dumps({k: v for k, v in asdict(self).items() if k != "name"}, sort_keys=True)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> dict[str, Series]:
        """All series that a run's tags name, in the order of the tags' names.

        An unreadable tag is an error, never a missing series.

        Raises:
            ManifestError: If a tag cannot be read.
        """
        found: dict[str, Series] = {}
        for key in sorted(k for k in tags if k.startswith(SERIES_TAG_PREFIX)):
            name = key.removeprefix(SERIES_TAG_PREFIX)
            known = {"prefix", "monitor", "mode", "directions"}
            fields = {k: v for k, v in _facts(key, tags[key]).items() if k in known}
            found[name] = cls(name=name, **fields)
        return found

    def direction(self, metric: str) -> Mode | None:
        """The recorded direction of `metric`; `val_` has the direction of its training twin."""
        if metric == self.monitor and self.mode:
            return self.mode
        return self.directions.get(metric) or self.directions.get(metric.removeprefix("val_"))


def _facts(key: str, text: str) -> dict[str, Any]:
    """What a series tag says, each known part of the type it must have."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raw = None
    if isinstance(raw, dict):
        directions = raw.get("directions", {})
        texts = (raw.get("prefix", ""), raw.get("monitor") or "", raw.get("mode") or "")
        if isinstance(directions, dict) and all(isinstance(each, str) for each in texts):
            return raw
    raise ManifestError(f"Expected the facts of a series in the tag {key!r}. Received: {text!r}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What this package needs to know of an MLflow run.

    `links` counts the models that are linked to it as outputs, deleted ones too;
    `artifact_uri` is where its own artifacts lie.
    """

    run_id: str
    experiment_id: str
    name: str = ""
    status: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metric_names: frozenset[str] = frozenset()
    links: int = 0
    artifact_uri: str = ""

    @property
    def series(self) -> dict[str, Series]:
        return Series.from_tags(self.tags)


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """One point of a run's curve. Two rows that agree in every field are one row to MLflow."""

    key: str
    value: float
    timestamp: int
    step: int
