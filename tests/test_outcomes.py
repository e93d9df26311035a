"""Whoever waits for a checkpoint learns what became of it, whoever delivered it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from builders import mlp

from mlflow_ckpt import snapshot
from mlflow_ckpt.failures import Failures
from mlflow_ckpt.job import Job
from mlflow_ckpt.outcomes import Outcomes
from mlflow_ckpt.pending import SaveRequest
from mlflow_ckpt.record import Checkpoint, Position, Series
from mlflow_ckpt.stats import Meter

pytestmark = pytest.mark.pure

POSITION = Position(series="ckpt", kind="epoch", epoch=1, step=1)
COMMITTED = Checkpoint(
    run_id="run",
    model_id="m-1",
    position=POSITION,
    metrics={},
    bytes=1,
    digest="",
    artifact_uri="",
    created_at=1,
)


class Asked:
    """Outcomes that note what they look up on the server."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.outcomes = Outcomes("run", Failures(), self.find, meter=Meter(), committed=None)

    def find(self, uid: str) -> Checkpoint:
        self.uids.append(uid)
        return COMMITTED


@pytest.fixture
def job() -> Job:
    taken = snapshot.capture(mlp())
    request = SaveRequest(
        series=Series(name="ckpt"),
        position=POSITION,
        snapshot=taken,
        state=None,
        rows=[],
        metrics={},
    )
    taken.release()
    return Job(request)


def test_a_checkpoint_on_its_way_into_the_journal_is_not_looked_for(job: Job) -> None:
    asked = Asked()
    uid = asked.outcomes.expect(job)
    asked.outcomes.emptied([])
    assert asked.uids == []
    asked.outcomes.arrived(uid)
    asked.outcomes.emptied([uid])
    assert asked.uids == []
    assert not job.outcome.done()


def test_one_that_arrives_while_the_journal_is_read_is_not_looked_for(job: Job) -> None:
    asked = Asked()

    def read() -> Iterator[str]:
        asked.outcomes.arrived(uid)
        yield from ()

    uid = asked.outcomes.expect(job)
    asked.outcomes.emptied(read())
    assert asked.uids == []


def test_one_that_another_process_has_delivered_is_looked_up_and_told(job: Job) -> None:
    asked = Asked()
    uid = asked.outcomes.expect(job)
    asked.outcomes.arrived(uid)
    asked.outcomes.emptied([])
    assert asked.uids == [uid]
    assert job.outcome.result(0) == COMMITTED
    assert asked.outcomes.expected == 0
    asked.outcomes.emptied([])
    assert asked.uids == [uid]
