"""A thousand checkpoints in one run: exactly the right ones stay, and pruning gets no slower."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import mlflow
import pytest
import stored
from kill_roles import entry_data

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, parcel, retention
from mlflow_ckpt.delivery import Delivery
from mlflow_ckpt.ground import open_journal
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.record import STEP_METRIC, MetricRow, Position, Series
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store

SERIES = Series(name="ckpt", monitor="loss", mode="min")
FILES = {"data/model.keras": b"model", "state/training_state.h5": b"state", "MLmodel": b"card"}
STEPS = 4  # of an epoch


@pytest.fixture
def prunes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What each look for what may go, and its deletion, took, in seconds."""
    found: list[float] = []
    real = retention.Retention.apply

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        gone = real(*args)
        found.append(time.perf_counter() - began)
        return gone

    monkeypatch.setattr(retention.Retention, "apply", timed)
    return found


def deliver(run_id: str, losses: list[float], keep: Keep) -> None:
    """Commit one checkpoint for each loss, as what delivers behind a `fit` does."""
    store = Store()
    journal = open_journal(store, store.run(run_id), SERIES.name, Spool())
    delivery = Delivery(store, journal)
    delivery(journal.append(parcel.SERIES, parcel.pack_series(SERIES)))
    for epoch, loss in enumerate(losses, 1):
        room = journal.room()
        for path, data in FILES.items():
            file = journal.files_of(room) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data + str(epoch).encode())
        position = Position(series=SERIES.name, kind="epoch", epoch=epoch, step=STEPS * epoch)
        folder = journal.files_of(room)
        manifest = Manifest.build(folder, checkpoint={}, model={}, versions={})
        (folder / FILENAME).write_bytes(manifest.to_bytes())
        now = time.time_ns() // 1_000_000
        rows = [
            MetricRow(key="loss", value=loss, timestamp=now, step=epoch),
            MetricRow(key=STEP_METRIC, value=float(position.step), timestamp=now, step=epoch),
        ]
        data = entry_data(position, manifest, rows) | {
            "series": parcel.pack_series(SERIES),
            "keep": parcel.pack_keep(keep),
        }
        assert delivery(journal.append(parcel.CHECKPOINT, data, room)) is not None


def check(count: int, every: int) -> None:
    """Deliver with `Keep(last=5, best=3, every=every)`; look at records, files and resolvers."""
    losses = [float(n) for n in range(count)]
    random.Random(3).shuffle(losses)
    with mlflow.start_run() as run:
        deliver(run.info.run_id, losses, Keep(last=5, best=3, every=every))
    run_id, client = run.info.run_id, mlflow.MlflowClient()
    ranked = sorted(range(1, count + 1), key=lambda epoch: losses[epoch - 1])
    expected = {
        *range(count - 4, count + 1),
        *ranked[:3],
        *range(every, count + 1, every),
    }
    table = ckpt.list_checkpoints(run_id)
    assert set(table["epoch"]) == expected
    assert len(table) == len(expected)
    assert ckpt.resolve(run_id).epoch == count
    assert ckpt.resolve(run_id, "best").epoch == ranked[0]
    assert all(ckpt.resolve(run_id, f"epoch={n}").step == STEPS * n for n in expected)
    found = client.search_logged_models([run.info.experiment_id], max_results=1_000)
    assert {model.model_id for model in found} == set(table["model_id"])
    place = client.get_experiment(run.info.experiment_id).artifact_location
    files = {path for path in stored.listing(place) if path.startswith("models/")}
    names = [*FILES, FILENAME]
    assert files == {f"models/{m}/artifacts/{n}" for m in table["model_id"] for n in names}
    oldest = ckpt.resolve(run_id, f"epoch={min(expected)}")
    assert stored.read(oldest, "MLmodel") == b"card" + str(min(expected)).encode()


@pytest.mark.backends(quick=("postgres-s3",))
def test_of_forty_checkpoints_exactly_the_right_ones_stay() -> None:
    check(40, every=10)


@pytest.mark.slow
@pytest.mark.backends
def test_of_a_thousand_checkpoints_exactly_the_right_ones_stay(
    prunes: list[float], backend_name: str
) -> None:
    check(1_000, every=100)
    # The first ones delete nothing.
    first, last = statistics.median(prunes[20:120]), statistics.median(prunes[-100:])
    print(
        f"{backend_name}: a prune took {first * 1e3:.1f} ms at first, {last * 1e3:.1f} ms at last"
    )
    assert last < 2 * first + 0.02
