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
from mlflow_ckpt.say import say

Kind = TypeVar("Kind")


class Neighbour(Protocol):
    """What a session shows to the other sessions of its fit."""

    @property
    def plan(self) -> Plan:
        """Where it began."""

    @property
    def resumption(self) -> Resumption:
        """How it was continued."""

    @property
    def where(self) -> str:
        """Run and series, in words."""

    def follows(self, plan: Plan) -> bool:
        """Whether it has begun in the same fit, from a checkpoint, as `plan` does."""

    def move(self, plan: Plan) -> None:
        """Count on from where `plan` stands."""


def agree(plan: Plan, others: Iterable[Neighbour], where: str) -> Plan:
    """Where the series `where` that was to begin at `plan` begins: not behind another one."""
    for other in others:
        if other.follows(plan) and plan.is_behind(other.plan):
            plan = plan.moved_to(other.plan)
            _say_moved(where, plan)
    return plan


def overtake(plan: Plan, others: Iterable[Neighbour]) -> None:
    """Move the other series to where `plan`, which has been restored, stands."""
    for other in others:
        if not other.follows(plan):
            continue
        if other.plan.is_behind(plan):
            _say_moved(other.where, plan)
        other.move(other.plan.moved_to(plan))


def _say_moved(where: str, plan: Plan) -> None:
    say(f"{where}: goes on at step {plan.step}, as another series of this fit.")


def sessions(callbacks: keras.callbacks.CallbackList, kind: type[Kind]) -> list[Kind]:
    """The sessions of a fit, in the order of their callbacks."""
    found = (getattr(callback, "session", None) for callback in callbacks.callbacks)
    return [session for session in found if isinstance(session, kind)]
