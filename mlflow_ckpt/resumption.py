"""Carry a resume out: before training, as the first epoch begins, and in the run's tags.

    restore() in on_train_begin -> go_on() in the first on_epoch_begin -> first_batch()

Inside an epoch everything is put back twice: the callbacks' `on_epoch_begin` has been
called for that epoch already, and must leave no second mark on model and state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import keras

from mlflow_ckpt import exactness, keras_internals
from mlflow_ckpt.exact_tag import Reason, exact_tag
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.ground import Ground
from mlflow_ckpt.record import RESUME_EXACT_TAG
from mlflow_ckpt.restore import Restored, load_model_again, restore
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.resume_option import Resume
from mlflow_ckpt.say import say
from mlflow_ckpt.snapshot import mark
from mlflow_ckpt.state_mark import StateMark


class Resumption:
    """The resume of one series in one fit.

    Args:
        ground, model, fit_state: Those of the fit.
        asked: What the user asked for.
    """

    def __init__(
        self,
        ground: Ground,
        model: keras.Model,
        fit_state: FitState,
        asked: Resume | None,
    ) -> None:
        self._ground = ground
        self._model = model
        self._fit_state = fit_state
        self._allow = asked.allow if asked else ()
        self._restored: Restored | None = None
        self._mark: StateMark | None = None
        self._tags: Mapping[str, str] = {}

    @property
    def happened(self) -> bool:
        """Whether this fit goes on from a checkpoint of this series."""
        return self._restored is not None

    def restore(self, plan: Plan, epochs: int, where: str) -> Plan:
        """Put the planned checkpoint into the fit; return the plan with where it goes on."""
        restored = restore(self._ground, self._model, self._fit_state, plan, self._allow)
        plan = replace(plan, inside=restored.inside)
        keras_internals.set_initial_epoch(self._model, plan.keras_epoch(epochs))
        for line in plan.describe([*restored.left, *restored.missing]):
            say(f"{where}: {line}")
        for line in restored.differences:
            say(f"{where}: accepted: {line}.")
        if not plan.finished:
            self._restored = restored
        if restored.inside and restored.whole:
            self._mark = mark(self._model)
        return plan

    def withdraw(self) -> None:
        """Another series of this fit stands further ahead: it is the one that is resumed."""
        self._restored = None

    def go_on(self, plan: Plan, *, told: bool) -> Mapping[str, str]:
        """Begin to train. Called once, after every callback's first `on_epoch_begin`.

        Args:
            told: Whether another series of this fit has written the tags.

        Returns:
            The tags that the run is to have: the caller writes them, behind the training.
        """
        if self._restored is not None and plan.inside:
            untouched = self._mark is not None and self._mark.matches(self._model)
            if self._restored.whole and not untouched:
                load_model_again(self._ground, self._model, plan)
            self._restored.left += self._fit_state.restore_inside(plan.state)
        self.release()
        if self._fit_state.feed is not None:
            self._fit_state.feed.begin()
        if self._restored is None or told or plan.restore is None:
            return {}
        found = exactness.reasons(self._restored, plan.state, self._fit_state.feed)
        self._tags = exactness.resumed_tags(
            self._ground.run.tags, plan.restore, found, self._ground.skipped
        )
        return self._tags

    def first_batch(self) -> Mapping[str, str]:
        """Look at the train step, which is compiled by now, and at the place in the input.

        Inside an epoch the input goes to its place when its first batch is asked for.

        Returns:
            The tags that change.
        """
        if not self._tags:
            return {}
        found: list[Reason] = []
        if self._fit_state.feed is not None:
            now = self._fit_state.feed.exactness()
            found.append((now.level, now.reason))
        operation = keras_internals.uncountable_operation(self._model)
        if operation is not None:
            found.append(("unknown", f"the train step runs the operation {operation}"))
        return self._degrade(found)

    def _degrade(self, found: list[Reason]) -> Mapping[str, str]:
        value = exact_tag(found, self._tags[RESUME_EXACT_TAG])
        if value == self._tags[RESUME_EXACT_TAG]:
            return {}
        self._tags = {**self._tags, RESUME_EXACT_TAG: value}
        return {RESUME_EXACT_TAG: value}

    def release(self) -> None:
        """Let go of the checkpoint's files and the model's buffers; safe to call twice."""
        self._ground.close_files()
        if self._mark is not None:
            self._mark.release()
            self._mark = None
