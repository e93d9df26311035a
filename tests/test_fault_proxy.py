"""Every request of a delivery goes wrong once, in every way; and the run is as if none had.

One delivery says everything that a `fit` says: rows, tags, two checkpoints of which the second
has the first one pruned, the end state, the end. The server is MLflow's own; in between
stands a proxy that spoils the request of one index. Afterwards the whole run is held
against one whose delivery nobody disturbed: models, curves, links, tags and files.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from doubles import TrackingServer, tracking_server
from faults import (
    Answer,
    AnswerAfter,
    Decide,
    Delay,
    DropAnswer,
    Fault,
    Proxy,
    Refuse,
    TruncateAnswer,
    TruncateRequest,
    fast_retries,
    never,
    no_retries,
    once,
)
from mlflow import MlflowClient

from mlflow_ckpt import deliverer, parcel
from mlflow_ckpt.deliverer import Deliverer
from mlflow_ckpt.delivery import Delivery
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.ground import open_journal
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.policy import Keep
from mlflow_ckpt.record import ENTRY_TAG, STEP_METRIC, MetricRow, Position, Series
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store

FAULTS = [
    pytest.param(Refuse(), id="refuse"),
    pytest.param(DropAnswer(), id="drop-answer"),
    # Longer than the client waits: the server carries it out when nobody listens any more.
    pytest.param(Delay(1.2), id="too-late"),
    pytest.param(TruncateRequest(40), id="part-of-request"),
    pytest.param(TruncateAnswer(10), id="part-of-answer"),
    pytest.param(Answer(500), id="500"),
    pytest.param(Answer(503), id="503"),
    pytest.param(Answer(429), id="429"),
    pytest.param(AnswerAfter(500), id="500-after"),
]
RETRIES = {"mlflow-retries": fast_retries, "we-retry": no_retries}
SERIES = Series(name="ckpt", monitor="loss", mode="min", directions={"accuracy": "max"})
KEEP = Keep(last=1, best=None)
STAMP = 1_700_000_000_000
PATIENCE_S = 60.0


# --- what is delivered ------------------------------------------------------------------------


def row(key: str, value: float, step: int) -> MetricRow:
    return MetricRow(key=key, value=value, timestamp=STAMP + step, step=step)


def put_checkpoint(journal: Journal, epoch: int) -> str:
    """What the writer puts there: see `contents.py`, which brings Keras. Returns the entry."""
    room = journal.room()
    folder, source = journal.files_of(room), random.Random(epoch)
    for path in ("data/model.keras", "state/training_state.h5", "MLmodel"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(source.randbytes(3_000))
    manifest = Manifest.build(folder, checkpoint={"step": 4 * epoch}, model={}, versions={})
    (folder / FILENAME).write_bytes(manifest.to_bytes())
    position = Position(series="ckpt", kind="epoch", epoch=epoch, step=4 * epoch, fit=1)
    rows = [row("loss", 1 / epoch, epoch), row("accuracy", 0.5, epoch)]
    data = {
        "position": asdict(position),
        "series": parcel.pack_series(SERIES),
        "keep": parcel.pack_keep(KEEP),
        "digest": digest_bytes(manifest.to_bytes()),
        "bytes": manifest.total_bytes,
        "rows": parcel.pack_rows([*rows, row(STEP_METRIC, 4.0 * epoch, 4 * epoch)]),
        "beside": parcel.pack_rows([row("val_loss", float("nan"), epoch)]),
        "values": {r.key: r.value for r in rows},
        "weights_only": False,
        "capture": "host-copy",
        "final": False,
        "created_at": STAMP + epoch,
    }
    return journal.append(parcel.CHECKPOINT, data, room).uid


def put_everything(journal: Journal) -> None:
    """A whole `fit` of two epochs."""
    journal.append(parcel.SERIES, parcel.pack_series(SERIES))
    journal.append(parcel.TAGS, {"tags": {"ckpt.note": "1"}})
    journal.append(parcel.ROWS, {"rows": parcel.pack_rows([row("lr", 0.1, 1)])})
    put_checkpoint(journal, 1)
    journal.append(parcel.ROWS, {"rows": parcel.pack_rows([row("lr", float("nan"), 2)])})
    end = put_checkpoint(journal, 2)
    final = {"series": parcel.pack_series(SERIES), "model_id": "", "entry": end}
    journal.append(parcel.FINAL, final)
    cost = parcel.pack_rows([row("ckpt/write_s", 0.25, 8)])
    journal.append(parcel.ROWS, {"rows": cost, "measured": True})
    journal.append(parcel.END, {"active": False, "series": parcel.pack_series(SERIES)})


# --- where to ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A server, a proxy before it, and runs that are delivered through both."""

    server: TrackingServer
    proxy: Proxy
    folder: Path
    experiment: str

    def deliver(self, fault: Decide = never, late_s: float = 0.0) -> dict[str, Any]:
        """Deliver a `fit` to a run of its own with `fault` in between; what the run is then.

        Args:
            late_s: Until the server has what the proxy forwards too late.

        Raises:
            AssertionError: If it is not all delivered in a minute, or the server refuses some.
        """
        self.proxy.fault = never
        store = Store()
        run_id = self.client.create_run(self.experiment).info.run_id
        run = store.run(run_id)
        journal = open_journal(store, run, "ckpt", Spool(dir=self.folder / "spool"))
        put_everything(journal)
        lease = Lease(store.lease_tag(run, "ckpt"), where="")
        lease.acquire()
        failures: list[BaseException] = []

        def outcome(uid: str, result: object) -> None:
            if isinstance(result, BaseException):
                failures.append(result)

        sender = Deliverer(
            journal,
            Delivery(store, journal, claim=lease, failed=failures.append),
            key=(store.uri, run_id),
            outcome=outcome,
            emptied=lambda: None,
            exit_wait=0.0,
        )
        self.proxy.restart_count()
        self.proxy.fault = fault
        sender.wake()
        assert sender.join(PATIENCE_S), f"still delivers: {sender.fault!r}"
        self.proxy.fault = never
        assert not failures, f"refused: {failures!r}"
        time.sleep(late_s)
        assert lease.release()
        return self._picture(run_id, journal)

    @property
    def client(self) -> MlflowClient:
        """Past the proxy."""
        return MlflowClient(tracking_uri=self.server.uri)

    def _picture(self, run_id: str, journal: Journal) -> dict[str, Any]:
        """Everything that a run shows and a spool holds, with names in the place of IDs."""
        client, artifacts = self.client, self.folder / "served" / self.experiment
        run = client.get_run(run_id)
        models = client.search_logged_models([self.experiment], f"source_run_id = '{run_id}'")
        names = {model.model_id: model.name for model in models}
        links = run.outputs.model_outputs if run.outputs else []
        copy = journal.copy()
        # A model that was deleted leaves its link, as the one that was pruned does.
        gone = [o.model_id for o in links if o.model_id not in names]
        return {
            "status": run.info.status,
            "tags": {k: v for k, v in run.data.tags.items() if k.startswith("ckpt.")},
            "curves": {
                key: [
                    (m.step, repr(m.value), m.timestamp)
                    for m in client.get_metric_history(run_id, key)
                ]
                for key in run.data.metrics
            },
            "models": sorted(
                (
                    model.name,
                    str(model.status),
                    sorted((k, v) for k, v in model.tags.items() if k != ENTRY_TAG),
                    sorted(model.params.items()),
                    sorted((m.key, m.step, m.value, m.timestamp) for m in model.metrics or ()),
                    sorted(digests(artifacts / "models" / model.model_id).items()),
                )
                for model in models
            ),
            "links": sorted((names.get(o.model_id, "gone"), o.step) for o in links),
            "files of those gone": [digests(artifacts / "models" / m) for m in gone],
            "files of the run": digests(artifacts / run_id),
            "spool": sorted(digests(journal.path).keys() - {"lock"}),
            "copy": names.get(copy.progress["delivered"]["model_id"]) if copy else None,
        }


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): digest_bytes(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def line(
    tmp_path: Path, tracking: str, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Line]:
    """Our own pauses between two attempts are short here."""
    monkeypatch.setattr(deliverer, "_PAUSES", (0.01,))
    database = Path(shutil.copy(empty_database, tmp_path / "server.db"))
    with tracking_server(database, tmp_path / "served") as server, Proxy(server.uri) as proxy:
        mlflow.set_tracking_uri(proxy.uri)
        experiment = MlflowClient(tracking_uri=server.uri).create_experiment("line")
        made = Line(server=server, proxy=proxy, folder=tmp_path, experiment=experiment)
        made.deliver()  # sets the experiment's tag, which the later ones find
        yield made


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What is not as it should be; empty if nothing."""
    parts = []
    for key, wanted in expected.items():
        is_list = isinstance(wanted, list)
        if is_list and found[key] != wanted:
            more = [item for item in found[key] if item not in wanted]
            less = [item for item in wanted if item not in found[key]]
            parts.append(f"{key}: too much {more}, missing {less}, of {len(wanted)}")
        elif found[key] != wanted:
            parts.append(f"{key}: {found[key]!r}, expected {wanted!r}")
    return "\n".join(parts)


def try_one(line: Line, expected: dict[str, Any], decide: Decide, late_s: float = 0.0) -> str:
    """Deliver once with a fault; what is wrong afterwards, empty if nothing."""
    try:
        return difference(line.deliver(decide, late_s), expected)
    except AssertionError as error:
        return str(error)


def late_by(fault: Fault) -> float:
    return fault.seconds + 0.3 if isinstance(fault, Delay) else 0.0


# --- the tests --------------------------------------------------------------------------------


def test_the_delivery_says_what_it_is_meant_to_say(line: Line) -> None:
    """What all other tests are held against."""
    whole = line.deliver()
    assert [m[:2] for m in whole["models"]] == [("ckpt-0002-00000008", "READY")]
    assert dict(whole["models"][0][2])["ckpt.complete"] == "true"
    assert dict(whole["models"][0][2])["ckpt.final"] == "true"
    assert whole["links"] == [("ckpt-0002-00000008", 2), ("gone", 1)]
    assert whole["files of those gone"] == [{}]
    assert whole["copy"] == "ckpt-0002-00000008"
    assert {key: [r[0] for r in rows] for key, rows in whole["curves"].items()} == {
        "loss": [1, 2],
        "accuracy": [1, 2],
        "val_loss": [1, 2],
        "lr": [1, 2],
        "ckpt_step": [4, 8],
        "ckpt/write_s": [8],
    }
    assert line.deliver() == whole
    methods = Counter(request.split()[0] for request in line.proxy.log)
    assert methods["PUT"] == 9, "four files a checkpoint, and the series"


def test_what_goes_wrong_at_two_requests_leaves_no_trace(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of the next test: each fault where a model is made, and at one other request."""
    expected = line.deliver()
    requests = list(line.proxy.log)
    made = requests.index("POST /api/2.0/mlflow/logged-models")
    for seed, fault in enumerate(p.values[0] for p in FAULTS):
        modes = [*RETRIES] if seed % 2 else [*reversed(RETRIES)]
        other = random.Random(seed).randrange(len(requests))
        for mode, index in zip(modes, (made, other), strict=True):
            with monkeypatch.context() as patch:
                RETRIES[mode](patch, timeout_s=1)
                wrong = try_one(line, expected, once(index, fault), late_by(fault))
            assert not wrong, f"{fault} at {index} {requests[index]} with {mode}: {wrong}"


@pytest.mark.slow
@pytest.mark.parametrize("retries", RETRIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_at_any_request_leaves_no_trace(
    line: Line, fault: Fault, retries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, wrong = line.deliver(), {}
    requests = list(line.proxy.log)
    RETRIES[retries](monkeypatch, timeout_s=1)
    began = time.monotonic()
    for index, request in enumerate(requests):
        if found := try_one(line, expected, once(index, fault), late_by(fault)):
            wrong[f"{index} {request}"] = found
    print(
        f"\n{fault} with {retries}: {len(requests)} requests, {len(wrong)} wrong {[*wrong]}, "
        f"{time.monotonic() - began:.0f} s"
    )
    assert not wrong, "\n".join(f"{at}\n{what}" for at, what in wrong.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("retries", "rate"),
    # Without MLflow's retries all requests of a checkpoint, a dozen, must succeed in a row.
    [pytest.param("mlflow-retries", 1 / 3), pytest.param("we-retry", 1 / 10)],
)
def test_a_line_on_which_many_of_the_requests_go_wrong(
    line: Line, retries: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is said again, and what makes up for a lost answer, gets lost."""
    expected, wrong = line.deliver(), {}
    RETRIES[retries](monkeypatch, timeout_s=1)
    faults = [p.values[0] for p in FAULTS if not isinstance(p.values[0], Delay)]
    faults += [TruncateRequest(0), TruncateAnswer(), AnswerAfter(503), Delay(0.05)]
    happened: Counter[str] = Counter()
    for seed in range(40):
        dice = random.Random(seed)

        def decide(index: int, request: str, dice: random.Random = dice) -> Fault | None:
            if dice.random() > rate:
                return None
            fault = dice.choice(faults)
            happened[repr(fault)] += 1
            return fault

        if found := try_one(line, expected, decide):
            wrong[seed] = found
    print(f"\n{retries}: {sum(happened.values())} faults in 40 deliveries, {len(wrong)} wrong")
    for name, count in happened.most_common():
        print(f"    {count:5} {name}")
    assert not wrong, "\n".join(f"seed {seed}\n{what}" for seed, what in wrong.items())
