"""Show a person the checkpoints of a run: the table, one of them in full, what to type next.

On a terminal the table takes its width: what matters least is left out, and named. Anywhere
else it is plain text with every column. A command to copy is never broken into lines.

Records, which become JSON, hold bytes and UTC; people see powers of 1024 and local time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from mlflow_ckpt import table
from mlflow_ckpt.errors import CheckpointNotFound
from mlflow_ckpt.fetched import first_whole
from mlflow_ckpt.listing import list_checkpoints
from mlflow_ckpt.manifest import Manifest
from mlflow_ckpt.next_steps import load_commands, next_commands
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store
from mlflow_ckpt.table import GAP, Column, fit, human_bytes, numbers, print_columns

Record = Mapping[str, Any]

_METRIC = "metrics."


# --- what is known ------------------------------------------------------------


def records(run_id: str, series: str | None = None) -> list[dict[str, Any]]:
    """`list_checkpoints` as JSON values: NaN is `None`, a time is ISO 8601 in UTC."""
    rows = list_checkpoints(run_id, series).to_dict("records")
    return [{str(key): _json_value(value) for key, value in row.items()} for row in rows]


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def describe(run_id: str, which: str) -> dict[str, Any]:
    """One checkpoint: its record, `run_id`, `artifact_uri` and its verified `manifest`.

    Raises:
        RunNotFound, RunDeleted, SelectorError, NotFound: As `resolve`.
        DigestMismatch: If the manifest is not the committed one.
    """
    store = Store()

    def take(checkpoint: Checkpoint) -> Manifest:
        with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
            return store.manifest(checkpoint, Path(folder))

    run = store.run(run_id)
    checkpoint, manifest = first_whole(store, run, Selector.parse(which), take)
    for record in records(run_id, checkpoint.series):
        if record["model_id"] == checkpoint.model_id:
            where = {"run_id": run_id, "artifact_uri": checkpoint.artifact_uri}
            return {**record, **where, "manifest": manifest.to_dict()}
    raise CheckpointNotFound(
        f"The checkpoint {checkpoint.name} of run {run_id} was deleted just now. "
        f"See what is left with: mlflow-ckpt list {run_id}"
    )


# --- what a person sees -------------------------------------------------------


def print_run_summary(run_id: str) -> None:
    """Print the checkpoints of a run, and the commands to browse, continue and load it."""
    store = Store()
    run, found = store.run(run_id), records(run_id)
    console = table.console()
    _print_run(console, run, found)
    _print_block(console, "Next", next_commands(store.uri, run, found))


def print_checkpoints(run_id: str, series: str | None = None) -> None:
    """Print the checkpoints of a run as a table."""
    found = records(run_id, series)
    _print_run(table.console(), Store().run(run_id), found)


def print_checkpoint(run_id: str, which: str) -> None:
    """Print everything known of one checkpoint, and how to load it."""
    found, console = describe(run_id, which), table.console()
    manifest = found["manifest"]
    console.print(f"{found['name']}  {_marks(found)}".rstrip(), style="bold")
    _print_block(console, "", _pairs(_facts(found)))
    _print_block(console, "Metrics", _pairs(_metrics(manifest["checkpoint"])))
    console.print("\nFiles")
    print_columns(console, _files(manifest["files"], console))
    _print_block(console, "Model", _pairs(_model(manifest["model"])))
    _print_block(console, "Versions", _pairs(manifest["versions"]))
    _print_block(console, "Next", load_commands(found, which))


def _print_block(console: Console, title: str, lines: Sequence[str]) -> None:
    if title and lines:
        console.print(f"\n{title}")
    for line in lines:
        console.print(f"  {line}")


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """`name  value` lines, the values below each other."""
    width = max((cell_len(name) for name in values), default=0) + GAP
    return [f"{name:<{width}}{value}" for name, value in values.items()]


# --- the table of a run -------------------------------------------------------


def _print_run(console: Console, run: Run, found: Sequence[Record]) -> None:
    title = f"Run {run.run_id}" + (f" ({run.name})" if run.name else "")
    if not found:
        console.print(f"{title} holds no checkpoints.")
        return
    count = f"{len(found)} checkpoint{'s' if len(found) > 1 else ''}"
    size = human_bytes(sum(record["bytes"] for record in found))
    console.print(f"{title}: {count}, {size}", style="bold")
    series = {name: run.series[name] for name in dict.fromkeys(r["series"] for r in found)}
    columns = _columns(found, series)
    shown = fit(columns, console.width) if console.is_terminal else columns
    print_columns(console, shown, styles=[_style(record) for record in found])
    for line in _ranked_by(series):
        console.print(line)
    if hidden := [column.title for column in columns if column not in shown]:
        console.print(f"Left out at this width: {', '.join(hidden)}.", style="dim")


def _columns(found: Sequence[Record], series: Mapping[str, Series]) -> list[Column]:
    """Every column there is, in the order they are shown."""
    monitors = {facts.monitor for facts in series.values() if facts.monitor}
    keys = [key for key in found[0] if key.startswith(_METRIC)]
    metrics = sorted(keys, key=lambda key: key.removeprefix(_METRIC) not in monitors)

    def column(title: str, key: str, *, spare: int = 0, right: bool = False) -> Column:
        cells = [str(record[key]) for record in found]
        return Column(title=title, cells=cells, spare=spare, right=right)

    return [
        Column(title="", cells=[_marks(record) for record in found]),
        column("series", "series", spare=5 if len(series) == 1 else 0),
        column("epoch", "epoch", right=True),
        column("step", "step", right=True),
        Column(title="kind", cells=[_kind(record) for record in found], spare=3),
        *(_metric_column(found, key, index, monitors) for index, key in enumerate(metrics)),
        Column(title="size", cells=[human_bytes(r["bytes"]) for r in found], spare=1, right=True),
        Column(title="created", cells=[_local(r["created_at"]) for r in found], spare=4),
        column("name", "name", spare=2),
        column("model ID", "model_id", spare=100),
    ]


def _metric_column(found: Sequence[Record], key: str, index: int, monitors: set[str]) -> Column:
    name = key.removeprefix(_METRIC)
    cells = numbers([record[key] for record in found])
    spare = 0 if name in monitors else 10 + index
    return Column(title=name, cells=cells, spare=spare, right=True)


def _marks(record: Record) -> str:
    flags = {"latest": "is_latest", "best": "is_best", "final": "is_final", "pinned": "pinned"}
    return " ".join(word for word, key in flags.items() if record[key])


def _style(record: Record) -> str:
    return "green" if record["is_best"] else "cyan" if record["is_latest"] else ""


def _kind(record: Record) -> str:
    return f"{record['kind']} (weights)" if record["weights_only"] else str(record["kind"])


def _ranked_by(series: Mapping[str, Series]) -> Iterator[str]:
    for name, facts in series.items():
        if facts.monitor and facts.mode:
            of = f" of {name}" if len(series) > 1 else ""
            yield f"best{of}: {'lowest' if facts.mode == 'min' else 'highest'} {facts.monitor}"


# --- one checkpoint -----------------------------------------------------------


def _facts(found: Record) -> dict[str, str]:
    return {
        "run": found["run_id"],
        "series": found["series"],
        "epoch": str(found["epoch"]),
        "step": str(found["step"]),
        "kind": _kind(found),
        "size": f"{human_bytes(found['bytes'])} in {len(found['manifest']['files'])} files",
        "created": _local(found["created_at"]),
        "URI": found["uri"],
        "files at": found["artifact_uri"],
        "digest": found["digest"],
    }


def _metrics(facts: Mapping[str, Any]) -> dict[str, str]:
    monitor = {facts.get("monitor"): f"  (monitor, {facts.get('mode')})"}
    return {
        name: f"{value}{monitor.get(name, '')}" for name, value in facts.get("metrics", {}).items()
    }


def _files(files: Sequence[Record], console: Console) -> list[Column]:
    columns = [
        Column(title="  path", cells=[f"  {entry['path']}" for entry in files]),
        Column(title="size", cells=[human_bytes(e["size"]) for e in files], right=True),
        Column(title="digest", cells=[entry["digest"] for entry in files]),
    ]
    room = console.width - sum(column.width + GAP for column in columns[:-1])
    if console.is_terminal and columns[-1].width > room:
        columns[-1] = Column(title="digest", cells=[_short(entry["digest"]) for entry in files])
    return columns


def _model(model: Mapping[str, Any]) -> dict[str, str]:
    variables = model.get("variables", [])
    size = sum(math.prod(shape) for _, shape, _ in variables)
    facts = {
        "class": model.get("class", "unknown"),
        "variables": f"{len(variables)} with {size:,} elements{_digest(model, 'architecture')}",
    }
    for optimizer in model.get("optimizers", []):
        count = len(optimizer["variables"])
        facts[optimizer["attribute"]] = (
            f"{optimizer['class']}, {count} variables{_digest(model, 'optimizer')}"
        )
    return facts


def _digest(model: Mapping[str, Any], part: str) -> str:
    return f", {_short(model[part])}" if part in model else ""


def _short(digest: str) -> str:
    algorithm, _, text = digest.partition(":")
    return f"{algorithm}:{text[:12]}"


def _local(timestamp: str) -> str:
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")
