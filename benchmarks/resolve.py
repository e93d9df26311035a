"""Find the latest and the best checkpoint of a run that has 10, 1,000 or 10,000 of them.

A real `fit` leaves a few checkpoints in a database; the others are copies of the last
one's rows in every table that mentions it, with an ID, a name, an epoch, a step and a
metric of their own. So they are shaped as this version commits them, whatever that is, and
linked to the run as if there was one a second (see `mlflow_ckpt/links.py`).
`list_checkpoints` must see them all before anything is timed. Each count has a database,
and a server, of its own. Times are milliseconds.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
import requests
import sqlalchemy as sa
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

import mlflow_ckpt as ckpt
from benchmarks import models, peers, servers
from benchmarks.peers import OURS
from benchmarks.process import say
from benchmarks.results import Bar, Figure, Sample, ms, rotated
from mlflow_ckpt import links

_REAL = 3
_METRIC = "loss"
_KINDS = ("latest", "best")
_PLACES = ("sqlite", "HTTP")
# Columns that grow by one from a checkpoint to the next.
_COUNTED = (
    "creation_timestamp_ms",
    "last_updated_timestamp_ms",
    "metric_timestamp_ms",
    "metric_step",
    "timestamp",
    "step",
)


def measure(*, counts: Sequence[int], repeats: int, scratch: Path) -> dict[str, Any]:
    """Seed one database for each count, then time `resolve` on all of them in turn."""
    runs: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        uris: dict[tuple[str, int], str] = {}
        for count in counts:
            say(f"seeding {count} checkpoints")
            folder = scratch / str(count)
            folder.mkdir()
            runs[count] = _run(folder, count)
            uris["sqlite", count] = f"sqlite:///{folder / 'mlflow.db'}"
            uris["HTTP", count] = stack.enter_context(servers.serve(folder, workers=1))
        for place, count in uris:
            mlflow.set_tracking_uri(uris[place, count])
            _check(runs[count], count)
        keys = [f"{place} {count}" for place, count in uris]
        for turn in range(-1, repeats):
            for key in rotated(keys, turn):
                place, _, number = key.partition(" ")
                say(f"round {turn + 1} of {repeats}: {number} checkpoints over {place}")
                mlflow.set_tracking_uri(uris[place, int(number)])
                for which in _KINDS:
                    with searches() as seen:
                        began = time.perf_counter()
                        ckpt.resolve(runs[int(number)], which)
                        seconds = time.perf_counter() - began
                    row = {"place": place, "count": int(number), "which": which}
                    if turn >= 0:
                        rows.append({**row, "seconds": seconds, "searches": len(seen)})
    return {"counts": list(counts), "rows": rows}


def _run(folder: Path, count: int) -> str:
    """A run with `count` checkpoints, the best of them in the middle."""
    peers.use_store(folder)
    model = models.mlp(0.05)
    with mlflow.start_run() as run:
        callback = ckpt.MlflowCheckpoint(monitor=_METRIC, mode="min", keep=None)
        dataset = models.data(model, 0.05)
        models.fit(model, dataset, epochs=_REAL, steps=1, callbacks=[callback])
    run_id: str = run.info.run_id
    seed(f"sqlite:///{folder / 'mlflow.db'}", ckpt.resolve(run_id, "latest"), count - _REAL)
    return run_id


def seed(uri: str, newest: ckpt.Checkpoint, count: int) -> None:
    """Put `count` copies of a committed checkpoint behind it, at the following epochs."""
    engine = sa.create_engine(uri)
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        for table in tables.sorted_tables:
            found = connection.execute(_rows_of(table, tables, newest)).mappings()
            originals = [dict(row) for row in found]
            rows = [
                _copy(table.name, row, newest, number, count)
                for number in range(1, count + 1)
                if table.name != "inputs" or _is_linked(number)
                for row in originals
            ]
            if rows and table.name == "latest_metrics":
                _replace_latest(connection, table, rows[-len(originals) :])
            elif rows:
                connection.execute(sa.insert(table), rows)
    engine.dispose()


def _is_linked(number: int) -> bool:
    """Whether the run's page lists it, where there is a checkpoint a second."""
    return number <= links.ALWAYS or number % round(links.APART_S) == 0


def _rows_of(
    table: sa.Table, tables: sa.MetaData, newest: ckpt.Checkpoint
) -> sa.Select[tuple[Any, ...]]:
    """What a checkpoint left in a table: rows with its ID, and its points of the run's curves."""
    columns = table.columns
    if table.name in ("metrics", "latest_metrics"):
        own = tables.tables["logged_model_metrics"].columns
        points = sa.select(own.metric_name, own.metric_timestamp_ms, own.metric_step).where(
            own.model_id == newest.model_id
        )
        point = sa.tuple_(columns.key, columns.timestamp, columns.step)
        return sa.select(table).where(columns.run_uuid == newest.run_id, point.in_(points))
    # In `inputs` a logged model is the destination of a link.
    names = [name for name in ("model_id", "destination_id") if name in columns]
    chosen = columns[names[0]] == newest.model_id if names else sa.false()
    return sa.select(table).where(chosen)


def _replace_latest(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    for row in rows:
        same = (table.c.run_uuid == row["run_uuid"]) & (table.c.key == row["key"])
        connection.execute(sa.update(table).where(same).values(**row))


def _copy(
    table: str, row: Mapping[str, Any], newest: ckpt.Checkpoint, number: int, count: int
) -> dict[str, Any]:
    """One row of the `number`-th copy. The best value is that of the copy in the middle."""
    epoch, step = newest.epoch + number, newest.step + number
    model_id = "m-" + uuid.uuid5(uuid.NAMESPACE_OID, str(number)).hex
    name = f"{newest.series}-{epoch:04d}-{step:08d}"
    new = {key: _moved(value, newest, model_id, name) for key, value in row.items()}
    values = {"epoch": str(epoch), "step": str(step)}
    if table == "logged_model_tags":
        new["tag_value"] = values.get(row["tag_key"].removeprefix("ckpt."), new["tag_value"])
    elif table == "logged_model_params":
        new["param_value"] = values.get(row["param_key"], new["param_value"])
    elif "metrics" in table:
        ranked = table == "logged_model_metrics"
        key, value = ("metric_name", "metric_value") if ranked else ("key", "value")
        stepped = str(row[key]).endswith("ckpt_step")
        new[value] = float(step if stepped else abs(number - count // 2) - count)
    elif table == "inputs":
        new["input_uuid"] = uuid.uuid5(uuid.NAMESPACE_URL, model_id).hex
    for key in _COUNTED:
        if key in new:
            new[key] += number
    return new


def _moved(value: Any, newest: ckpt.Checkpoint, model_id: str, name: str) -> Any:
    if not isinstance(value, str):
        return value
    return value.replace(newest.model_id, model_id).replace(newest.name, name)


def _check(run_id: str, count: int) -> None:
    """Everything that was seeded must be what a reader of the package sees."""
    table = ckpt.list_checkpoints(run_id)
    latest, best = ckpt.resolve(run_id, "latest"), ckpt.resolve(run_id, "best")
    expected = table.sort_values(f"metrics.{_METRIC}").iloc[0]["model_id"]
    seen = (len(table), latest.epoch, best.model_id)
    if seen != (count, count, expected):
        raise RuntimeError(
            f"Expected {count} checkpoints, the latest at epoch {count}, the best {expected}. "
            f"Received: {seen!r}. Seed the rows as they are committed now."
        )


@contextmanager
def searches() -> Iterator[list[str]]:
    """Collect the searches for logged models, through HTTP or in the database."""
    seen: list[str] = []
    send, search = requests.Session.send, SqlAlchemyStore.search_logged_models

    def sent(session: Any, request: Any, **kwargs: Any) -> Any:
        if "logged-models/search" in (request.url or ""):
            seen.append(request.url)
        return send(session, request, **kwargs)

    def searched(*args: Any, **kwargs: Any) -> Any:
        seen.append("database")
        return search(*args, **kwargs)

    with (
        mock.patch.object(requests.Session, "send", sent),
        mock.patch.object(SqlAlchemyStore, "search_logged_models", searched),
    ):
        yield seen


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """One figure a place and selector, from what `measure` returned."""
    return [_figure(raw, place, which) for place in _PLACES for which in _KINDS]


def _figure(raw: Mapping[str, Any], place: str, which: str) -> Figure:
    rows = [r for r in raw["rows"] if r["place"] == place and r["which"] == which]
    samples = {
        f"{OURS}, {count:,} checkpoints": Sample(
            role="ours", unit="ms", values=ms([r["seconds"] for r in rows if r["count"] == count])
        )
        for count in raw["counts"]
    }
    medians = [sample.median for sample in samples.values()]
    few, many = raw["counts"][0], raw["counts"][-1]
    bars = [
        Bar(text="search requests of one resolve", value=max(r["searches"] for r in rows), limit=1)
    ]
    if place == "HTTP":
        bars.append(
            Bar(
                text=f"time with {many:,} ÷ time with {few:,} checkpoints",
                value=medians[-1],
                divisor=medians[0],
                limit=4.0,
            )
        )
    title = f"resolve(run, {which!r}) over {place}"
    key = f"resolve-{place.lower()}-{which}"
    return Figure(key=key, title=title, samples=samples, bars=bars)
