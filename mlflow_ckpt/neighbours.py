"""Let several series of one `fit` begin at the same step.

Two callbacks of one fit save at different times. After a kill whoever is behind follows:
it restores nothing, and counts on from where the other one stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import keras

from mlflow_ckpt.resume import Plan
from mlflow_ckpt.resumption import Resumption

Kind = TypeVar("Kind")


class Neighbour(Protocol):
    """What a session shows to the other sessions of its fit."""

    plan: Plan
    resumption: Resumption

    def follows(self, plan: Plan) -> bool:
        """Whether it has begun in the same fit, from a checkpoint, as `plan` does."""

    def move(self, plan: Plan) -> None:
        """Count on from where `plan` stands."""


def agree(plan: Plan, others: Iterable[Neighbour]) -> Plan:
    """Where a series that was to begin at `plan` begins; move those that it overtakes."""
    for other in others:
        if not other.follows(plan):
            continue
        if plan.is_behind(other.plan):
            plan = plan.moved_to(other.plan)
        else:
            other.move(other.plan.moved_to(plan))
    return plan


def sessions(callbacks: keras.callbacks.CallbackList, kind: type[Kind]) -> list[Kind]:
    """The sessions of a fit, in the order of their callbacks."""
    found = (getattr(callback, "session", None) for callback in callbacks.callbacks)
    return [session for session in found if isinstance(session, kind)]
