"""What lies in the entries of a journal: JSON that a later process, or version, can read.

Rows are `[key, value, timestamp, step]`; values that are not finite stand there as Python's
`json` writes them (`NaN`, `Infinity`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow_ckpt.manifest import Manifest, read_bounded
from mlflow_ckpt.policy import Keep
from mlflow_ckpt.record import Checkpoint, MetricRow, Position, Series

ROWS, TAGS, SERIES = "rows", "tags", "series"
CHECKPOINT, FINAL, END, STATUS = "checkpoint", "final", "end", "status"


def pack_rows(rows: Iterable[MetricRow]) -> list[list[Any]]:
    return [[row.key, row.value, row.timestamp, row.step] for row in rows]


def unpack_rows(raw: Iterable[Sequence[Any]]) -> list[MetricRow]:
    return [
        MetricRow(key=str(key), value=float(value), timestamp=int(stamp), step=int(step))
        for key, value, stamp, step in raw
    ]


def pack_series(series: Series) -> dict[str, Any]:
    return {"name": series.name, "facts": series.to_json(), "tag": series.tag}


def unpack_series(raw: Mapping[str, Any]) -> Series:
    return Series.from_tags({raw["tag"]: raw["facts"]})[raw["name"]]


def pack_keep(keep: Keep | None) -> dict[str, Any] | None:
    return None if keep is None else asdict(keep)


def unpack_keep(raw: Mapping[str, Any] | None) -> Keep | None:
    return None if raw is None else Keep(**raw)


def unpack_position(raw: Mapping[str, Any]) -> Position:
    return Position(**{name: raw[name] for name in ("series", "kind", "epoch", "step", "fit")})


def waiting_checkpoint(run_id: str, entry: str, data: Mapping[str, Any], files: Path) -> Checkpoint:
    """A checkpoint that the server does not know yet, by the data of its entry."""
    return Checkpoint(
        run_id=run_id,
        model_id="",
        position=unpack_position(data["position"]),
        metrics=dict(data["values"]),
        bytes=int(data["bytes"]),
        digest=str(data["digest"]),
        artifact_uri=str(files),
        created_at=int(data["created_at"]),
        weights_only=bool(data["weights_only"]),
        final=bool(data["final"]),
        entry=entry,
        local=files,
    )


def manifest_of(files: Path, digest: str) -> Manifest:
    """The manifest beside a checkpoint's files, held against its digest.

    Raises:
        DigestMismatch, ManifestError: As `Manifest.parse`.
    """
    return Manifest.parse(read_bounded(files), digest=digest)
