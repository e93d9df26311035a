"""Everything that a running `fit` remembers outside of its model file.

Variables without a place in the model file, metrics, random generators, callbacks and
the position in the data go into `training_state.h5` at a save, and come back at a resume:
once before training, and where the checkpoint was taken inside an epoch once more after
every callback's `on_epoch_begin`, which that epoch has seen already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mlflow_ckpt import guard, keras_internals, training_state
from mlflow_ckpt.callback_state import CallbackStates
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.say import say


class FitState:
    """What one `fit` remembers. To be made once, after every callback's `on_train_begin`.

    Several series of one fit share it: what was restored for one must not look like a
    change to another.

    Args:
        model, callbacks: Those of the fit.
        feed: Its input; `None` in a training loop of the user's own.

    Attributes:
        logs: Logs of the last batch.
        missing_callbacks: Those in the checkpoint that the fit does not have.
    """

    def __init__(
        self,
        model: keras.Model,
        callbacks: Sequence[keras.callbacks.Callback],
        feed: keras_internals.Feed | None,
    ) -> None:
        self._model = model
        self._callbacks = CallbackStates(callbacks)
        self.feed = feed
        self.logs: Mapping[str, Any] = {}
        self.missing_callbacks: list[str] = []
        self._told: set[str] = set()
        self._guard: Mapping[str, Any] | None = None
        self._held_metrics: list[Any] | None = None
        keras_internals.forget_logs(model)

    def capture(self, batch: int) -> dict[str, Any]:
        """Everything, after `batch` batches of the running epoch; 0 stands for its end."""
        callbacks, unknown = self._callbacks.capture()
        new = [name for name in unknown if name not in self._told]
        if new:
            self._told.update(new)
            say(
                f"The state of {', '.join(new)} is not stored. Give it checkpoint_state() and "
                "restore_checkpoint_state(state) if a resume needs it."
            )
        return {
            "batch": batch,
            "stop_training": bool(self._model.stop_training),
            "build_config": _plain_build_config(self._model),
            "guard": self._describe(),
            "variables": training_state.capture_variables(self._model),
            "metrics": self._metrics() if batch else [],
            "logs": {k: float(v) for k, v in self.logs.items() if _is_number(v)} if batch else {},
            "generators": training_state.capture_generators(),
            "callbacks": callbacks,
            "not_stored": unknown,
            "data": None if self.feed is None else self.feed.state(batch),
        }

    def hold_metrics(self) -> None:
        """Remember the metrics of the epoch: a validation begins, which uses the same ones."""
        self._held_metrics = training_state.capture_metrics(self._model)

    def release_metrics(self) -> None:
        """Forget them: the validation has ended."""
        self._held_metrics = None

    def _metrics(self) -> list[Any]:
        if self._held_metrics is not None:
            return self._held_metrics
        return training_state.capture_metrics(self._model)

    def differences(self, saved: Mapping[str, Any]) -> list[guard.Difference]:
        """What is not as it was when `saved` was captured."""
        return guard.differences(saved.get("guard"), self._describe())

    def _describe(self) -> Mapping[str, Any]:
        """What the guard compares; it stays the same for the whole fit."""
        if self._guard is None:
            self._guard = guard.describe(self._model, self.feed)
        return self._guard

    def same_input(self, saved: Mapping[str, Any], found: Sequence[guard.Difference]) -> bool:
        """Whether the position in the input that `saved` has means the same in this fit."""
        data = saved.get("data")
        if self.feed is None or not data or data["kind"] != self.feed.kind:
            return False
        return not any(difference.part in guard.DATA_PARTS for difference in found)

    def restore(
        self, saved: Mapping[str, Any], *, callbacks: bool, place: bool, batch: int
    ) -> list[str]:
        """Give everything back but the model; return what found no place, in words.

        Args:
            callbacks: Whether their state is given back too.
            place: Whether to go to the place in the input.
            batch: Batches of the first epoch that are trained already.
        """
        if place and self.feed is not None:
            with keras_internals.finding_place():
                self.feed.resume(saved["data"], batch)
        return self._restore(saved, callbacks=callbacks)

    def restore_inside(self, saved: Mapping[str, Any]) -> list[str]:
        """Give back what the beginning of the epoch has changed, and the metrics so far."""
        left: list[str] = []
        try:
            if self.feed is not None:
                keras_internals.build_metrics(self._model, self.feed.element_spec)
        except (ValueError, RuntimeError) as error:
            left.append(f"metrics of the epoch so far ({type(error).__name__})")
        else:
            left += training_state.restore_metrics(self._model, saved["metrics"])
        keras_internals.begin_with_logs(self._model, saved["logs"])
        return left + self._restore(saved, callbacks=True)

    def _restore(self, saved: Mapping[str, Any], *, callbacks: bool) -> list[str]:
        left = training_state.restore_variables(self._model, saved["variables"])
        if callbacks:
            self.missing_callbacks = self._callbacks.restore(saved["callbacks"])
        # Last: what is above may draw from them.
        training_state.restore_generators(saved["generators"])
        return left

    def release(self) -> None:
        """Leave nothing behind in the model and its input; safe to call twice."""
        keras_internals.forget_logs(self._model)
        if self.feed is not None:
            self.feed.release()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "shape", None) == ()


def _plain_build_config(model: keras.Model) -> Any:
    """The build config where it is plain data; a functional model does not need one."""
    config = model.get_build_config() if model.built else None
    try:
        training_state.check_plain(config)
    except ConfigError:
        return None
    return config
