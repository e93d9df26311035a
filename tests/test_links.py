"""Which checkpoints a run's page lists."""

from __future__ import annotations

import pytest

from mlflow_ckpt.links import ALWAYS, APART_S, Links

pytestmark = pytest.mark.pure


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
        if links.due:
            links.linked()
            linked.append(number)
    assert linked == [*range(1, ALWAYS + 1), *range(ALWAYS + 60, 1_001, 60)]


def test_links_that_the_run_has_already_count() -> None:
    links = Links(ALWAYS - 1, _Clock())
    assert links.due
    links.linked()
    assert not links.due
