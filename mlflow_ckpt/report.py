"""Show a person the checkpoints of a run: the table, one of them in full, what to type next.

On a terminal the table takes its width: what matters least is left out, and named. Anywhere
else it is plain text with every column. A command to copy is never broken into lines.

Records, which become JSON, hold bytes and UTC; people see powers of 1024 and local time.
"""

from __future__ import annotations

import json
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from mlflow_ckpt.errors import CheckpointNotFound
from mlflow_ckpt.listing import list_checkpoints
from mlflow_ckpt.record import Run, Series
from mlflow_ckpt.resolver import resolve
from mlflow_ckpt.store import Store

Record = Mapping[str, Any]

_CONFIG = "data/config.json"  # `formats.CONFIG`, whose module brings Keras.
_METRIC = "metrics."
_GAP = 2


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
    checkpoint = resolve(run_id, which)
    with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        manifest = Store().manifest(checkpoint, Path(folder))
    for record in records(run_id, checkpoint.series):
        if record["model_id"] == checkpoint.model_id:
            where = {"run_id": run_id, "artifact_uri": checkpoint.artifact_uri}
            return {**record, **where, "manifest": asdict(manifest)}
    raise CheckpointNotFound(
        f"The checkpoint {checkpoint.name} of run {run_id} was deleted just now. "
        f"See what is left with: mlflow-ckpt list {run_id}"
    )


# --- what a person sees -------------------------------------------------------


def print_run_summary(run_id: str) -> None:
    """Print the checkpoints of a run, and the commands to browse, continue and load it."""
    store = Store()
    run, found = store.run(run_id), records(run_id)
    console = _console()
    _print_run(console, run, found)
    _print_block(console, "Next", _next_commands(store.uri, run, found))


def print_checkpoints(run_id: str, series: str | None = None) -> None:
    """Print the checkpoints of a run as a table."""
    found = records(run_id, series)
    _print_run(_console(), Store().run(run_id), found)


def print_checkpoint(run_id: str, which: str) -> None:
    """Print everything known of one checkpoint, and how to load it."""
    found, console = describe(run_id, which), _console()
    manifest = found["manifest"]
    console.print(f"{found['name']}  {_marks(found)}".rstrip(), style="bold")
    _print_block(console, "", _pairs(_facts(found)))
    _print_block(console, "Metrics", _pairs(_metrics(manifest["checkpoint"])))
    console.print("\nFiles")
    _print_columns(console, _files(manifest["files"], console))
    _print_block(console, "Model", _pairs(_model(manifest["model"])))
    _print_block(console, "Versions", _pairs(manifest["versions"]))
    _print_block(console, "Next", _load_commands(found, which))


def _console() -> Console:
    """Write to the present stdout: text as it is, and no line broken."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _print_block(console: Console, title: str, lines: Sequence[str]) -> None:
    if title and lines:
        console.print(f"\n{title}")
    for line in lines:
        console.print(f"  {line}")


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """`name  value` lines, the values below each other."""
    width = max((cell_len(name) for name in values), default=0) + _GAP
    return [f"{name:<{width}}{value}" for name, value in values.items()]


# --- the table of a run -------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One column as text.

    Attributes:
        spare: Where the width does not suffice the highest goes first; 0 always stays.
    """

    title: str
    cells: Sequence[str]
    spare: int = 0
    right: bool = False

    @property
    def width(self) -> int:
        return max(cell_len(text) for text in (self.title, *self.cells))


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
    shown = _fit(columns, console.width) if console.is_terminal else columns
    _print_columns(console, shown, styles=[_style(record) for record in found])
    for line in _ranked_by(series):
        console.print(line)
    if hidden := [column.title for column in columns if column not in shown]:
        console.print(f"Left out at this width: {', '.join(hidden)}.", style="dim")


def _columns(found: Sequence[Record], series: Mapping[str, Series]) -> list[_Column]:
    """Every column there is, in the order they are shown."""
    monitors = {facts.monitor for facts in series.values() if facts.monitor}
    keys = [key for key in found[0] if key.startswith(_METRIC)]
    metrics = sorted(keys, key=lambda key: key.removeprefix(_METRIC) not in monitors)

    def column(title: str, key: str, *, spare: int = 0, right: bool = False) -> _Column:
        cells = [str(record[key]) for record in found]
        return _Column(title=title, cells=cells, spare=spare, right=right)

    return [
        _Column(title="", cells=[_marks(record) for record in found]),
        column("series", "series", spare=5 if len(series) == 1 else 0),
        column("epoch", "epoch", right=True),
        column("step", "step", right=True),
        _Column(title="kind", cells=[_kind(record) for record in found], spare=3),
        *(_metric_column(found, key, index, monitors) for index, key in enumerate(metrics)),
        _Column(title="size", cells=[human_bytes(r["bytes"]) for r in found], spare=1, right=True),
        _Column(title="created", cells=[_local(r["created_at"]) for r in found], spare=4),
        column("name", "name", spare=2),
        column("model ID", "model_id", spare=100),
    ]


def _metric_column(found: Sequence[Record], key: str, index: int, monitors: set[str]) -> _Column:
    name = key.removeprefix(_METRIC)
    cells = _numbers([record[key] for record in found])
    spare = 0 if name in monitors else 10 + index
    return _Column(title=name, cells=cells, spare=spare, right=True)


def _fit(columns: Sequence[_Column], width: int) -> list[_Column]:
    """Leave out the most dispensable columns until the rest fits."""
    shown = list(columns)
    while sum(column.width + _GAP for column in shown) - _GAP > width:
        most = max(shown, key=lambda column: column.spare)
        if not most.spare:
            break
        shown.remove(most)
    return shown


def _print_columns(
    console: Console, columns: Sequence[_Column], styles: Sequence[str] = ()
) -> None:
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(column.title, justify="right" if column.right else "left")
        for index, cells in enumerate(zip(*(c.cells for c in columns), strict=True)):
            table.add_row(*cells, style=styles[index] if styles else None)
        console.print(table)
        return
    for row in zip(*((column.title, *column.cells) for column in columns), strict=True):
        padded = (
            text.rjust(column.width) if column.right else text.ljust(column.width)
            for text, column in zip(row, columns, strict=True)
        )
        console.print((" " * _GAP).join(padded).rstrip())


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
    return {name: f"{value}{monitor.get(name, '')}" for name, value in facts["metrics"].items()}


def _files(files: Sequence[Record], console: Console) -> list[_Column]:
    columns = [
        _Column(title="  path", cells=[f"  {entry['path']}" for entry in files]),
        _Column(title="size", cells=[human_bytes(e["size"]) for e in files], right=True),
        _Column(title="digest", cells=[entry["digest"] for entry in files]),
    ]
    room = console.width - sum(column.width + _GAP for column in columns[:-1])
    if console.is_terminal and columns[-1].width > room:
        columns[-1] = _Column(title="digest", cells=[_short(entry["digest"]) for entry in files])
    return columns


def _model(model: Mapping[str, Any]) -> dict[str, str]:
    variables = model.get("variables", [])
    size = sum(math.prod(shape) for _, shape, _ in variables)
    facts = {
        "class": model.get("class", "unknown"),
        "variables": f"{len(variables)} with {size:,} elements, {_short(model['architecture'])}",
    }
    for optimizer in model.get("optimizers", []):
        count = len(optimizer["variables"])
        facts[optimizer["attribute"]] = (
            f"{optimizer['class']}, {count} variables, {_short(model['optimizer'])}"
        )
    return facts


def _short(digest: str) -> str:
    algorithm, _, text = digest.partition(":")
    return f"{algorithm}:{text[:12]}"


# --- what to type next --------------------------------------------------------


def _next_commands(uri: str, run: Run, found: Sequence[Record]) -> list[str]:
    browse, environment = _server(uri, run)
    commands = [
        browse,
        f"{environment}mlflow run . --env-manager local -e resume -P run_id={run.run_id}",
    ]
    if found:
        load = f"ckpt.load_model('{run.run_id}', '{_worth_loading(found)}').summary()"
        commands.append(f'{environment}python -c "import mlflow_ckpt as ckpt; {load}"')
    return commands


def _server(uri: str, run: Run) -> tuple[str, str]:
    """How to look at the run, and what a command needs in front to reach the same server.

    A user or password is not printed: who has one in the URI has it in the environment.
    """
    parts = urlsplit(uri)
    _, secret, host = parts.netloc.rpartition("@")
    environment = "" if secret else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
    if parts.scheme in ("http", "https"):
        page = f"experiments/{run.experiment_id}/runs/{run.run_id}"
        return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/#/{page}", environment
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if Path(unquote(str(path))).absolute() == Path("mlflow.db").absolute():
            return "mlflow ui", ""
        absolute = shlex.quote(f"sqlite:///{path.absolute()}")
        return f"mlflow ui --backend-store-uri {absolute}", f"MLFLOW_TRACKING_URI={absolute} "
    stored = '"$MLFLOW_TRACKING_URI"' if secret else shlex.quote(uri)
    return f"mlflow ui --backend-store-uri {stored}", environment


def _worth_loading(found: Sequence[Record]) -> str:
    """Selector of the newest `best` of a series; of the newest checkpoint where none has one."""
    best = [record for record in found if record["is_best"]]
    chosen = max(best or found, key=lambda record: record["created_at"])
    several = len({record["series"] for record in found}) > 1
    return ("best" if best else "latest") + (f"@{chosen['series']}" if several else "")


def _load_commands(found: Record, which: str) -> list[str]:
    arguments = f"{json.dumps(found['run_id'])}, {json.dumps(which)}"
    files = {entry["path"] for entry in found["manifest"]["files"]}
    lines = ["import mlflow_ckpt as ckpt"]
    if found["weights_only"] and _CONFIG not in files:
        lines.append(f"ckpt.load_weights(model, {arguments})  # into a model that you build")
    else:
        lines.append(f"model = ckpt.load_model({arguments})")
    return lines


# --- words --------------------------------------------------------------------


def human_bytes(size: float) -> str:
    """`size` in B, KiB, MiB, GiB or TiB, with one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _local(timestamp: str) -> str:
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _numbers(values: Sequence[float | None]) -> list[str]:
    """One notation for a whole column: four decimals, or powers of ten where they say nothing."""
    sizes = [abs(value) for value in values if value]
    plain = all(0.001 <= size < 1e7 for size in sizes)
    return ["-" if value is None else f"{value:{'.4f' if plain else '.3e'}}" for value in values]
