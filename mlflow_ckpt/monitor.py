"""Watch the monitored quantity: is it there, which way is better, did it improve.

Directions come from the built metrics, as Keras's own callbacks take them; a metric of
a user's own callback is guessed by name or has to be given a mode.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from mlflow_ckpt import keras_internals, policy
from mlflow_ckpt.errors import ConfigError, MonitorMissing
from mlflow_ckpt.record import Series
from mlflow_ckpt.selector import Mode


class Monitor:
    """The monitor of one fit.

    Args:
        name: The monitored quantity; `None` watches nothing.
        mode: The user's mode; `None` asks the metrics.
        series: What the run knows of the series.
        best: Best finite value so far.
        model: Whose metrics know their directions once they are built.
        arguments: `validation_data` and `validation_freq` of the running fit.

    Attributes:
        series: The series with monitor, mode and directions, as far as they are known.
        best: Best finite value so far.
    """

    def __init__(
        self,
        name: str | None,
        mode: Mode | None,
        *,
        series: Series,
        best: float | None,
        model: keras.Model,
        arguments: Mapping[str, Any],
    ) -> None:
        self._name = name
        self._mode = mode
        self._model = model
        self._arguments = arguments
        self._asked = False
        known = series.mode if series.monitor == name else None
        self.series = replace(series, monitor=name, mode=mode or known)
        self.best = best

    def watch(self, epoch: int, series_epoch: int, metrics: Mapping[str, float]) -> bool:
        """Look at the metrics of an epoch; return whether the monitor improved.

        Args:
            epoch: Keras's number of the epoch, from 0.
            series_epoch: Its number in the series, from 1, for messages.
            metrics: The epoch's logs.

        Raises:
            MonitorMissing: If the monitor is not among them although validation was due.
            ConfigError: If nobody knows its direction.
        """
        self._ask_metrics()
        if self._name is None:
            return False
        if self._name not in metrics:
            if self._name.startswith("val_") and self._validation_is_not_due(epoch):
                return False
            raise self._missing(series_epoch, metrics)
        if not policy.improves(metrics[self._name], self.best, self._direction(self._name)):
            return False
        self.best = metrics[self._name]
        return True

    def _ask_metrics(self) -> None:
        """Note the direction of every built metric, once, for `best(<metric>)`."""
        if not self._asked:
            self._asked = True
            directions = keras_internals.metric_directions(self._model)
            self.series = replace(self.series, directions=directions)

    def _direction(self, name: str) -> Mode:
        mode = self.series.mode or self.series.direction(name) or policy.infer_mode(name)
        if mode is None:
            raise ConfigError(
                f"Keras does not know whether {name!r} should be small or large. "
                "Pass mode='min' or mode='max' to MlflowCheckpoint."
            )
        self.series = replace(self.series, mode=mode)
        return mode

    def _validation_is_not_due(self, epoch: int) -> bool:
        """Whether `validation_freq` leaves this epoch without validation."""
        if self._arguments.get("validation_data") is None:
            return False
        frequency = self._arguments.get("validation_freq", 1)
        if isinstance(frequency, int):
            return bool((epoch + 1) % frequency)
        return (epoch + 1) not in frequency

    def _missing(self, epoch: int, metrics: Mapping[str, float]) -> MonitorMissing:
        return MonitorMissing(
            f"monitor={self._name!r} is not in the logs of epoch {epoch}. "
            f"They hold: {', '.join(sorted(metrics)) or 'nothing'}. "
            f"{_next_try(str(self._name), sorted(metrics))} To keep no best: monitor=None.",
            monitor=str(self._name),
            available=tuple(sorted(metrics)),
        )


def _next_try(name: str, known: Sequence[str]) -> str:
    """What to type for a monitor that the logs do not have."""
    of_training = name.removeprefix("val_")
    if of_training != name and not any(each.startswith("val_") for each in known):
        other = f", or pass monitor={of_training!r}" if of_training in known else ""
        return f"Give fit validation_data=(x_val, y_val){other}."
    near = [each for each in known if each.startswith(name)]
    near = near or difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean monitor={near[0]!r}?"
    return f"Add it where the model is compiled: compile(metrics=[{of_training!r}])."
