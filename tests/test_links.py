"""Which checkpoints a run's page lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.links import ALWAYS, APART_S, Links
from mlflow_ckpt.record import Checkpoint, Position

pytestmark = pytest.mark.pure


def _checkpoint(number: int) -> Checkpoint:
    return Checkpoint(
        run_id="r",
        model_id=f"m-{number}",
        position=Position(series="ckpt", kind="epoch", epoch=number, step=number),
        metrics={},
        bytes=1,
        digest="blake3:0",
        artifact_uri="file:///x",
        created_at=number,
    )


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_ones_are_linked_and_then_one_a_minute() -> None:
    clock = _Clock()
    links, linked = Links(0, clock), []
    for number in range(1, 1_001):
        clock.now += APART_S / 60
        due = links.due
        links.committed(_checkpoint(number), linked=due)
        linked += [number] if due else []
    assert linked == [*range(1, ALWAYS + 1), *range(ALWAYS + 60, 1_001, 60)]
    assert [c.epoch for c in links.take_rest()][-1] == 999
    assert links.take_rest() == []


def test_links_that_the_run_has_already_count() -> None:
    links = Links(ALWAYS - 1, _Clock())
    assert links.due
    links.committed(_checkpoint(1), linked=True)
    assert not links.due


@given(kept=st.sets(st.integers(1, 300)))
def test_the_rest_is_the_newest_of_what_still_exists(kept: set[int]) -> None:
    links = Links(ALWAYS, _Clock())
    for number in range(1, 301):
        links.committed(_checkpoint(number), linked=False)
        if number not in kept:
            links.deleted([_checkpoint(number)])
    assert [c.epoch for c in links.take_rest()] == sorted(kept)[-ALWAYS:]
