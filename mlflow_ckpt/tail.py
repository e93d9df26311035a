"""The last callback of a fit: it sees what the next batch would see, and tells the session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from mlflow_ckpt.options import Options
from mlflow_ckpt.session import Session
from mlflow_ckpt.stats import Meter


class Tail(keras.callbacks.Callback):
    """Stands behind every other callback and forwards to the session."""

    def __init__(self, options: Options, callbacks: keras.callbacks.CallbackList) -> None:
        super().__init__()
        self.callbacks = callbacks
        self._options = options
        self.meter = Meter()
        self.session: Session | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self.session = Session(self._options, self.model, self.callbacks, self.meter)
        self.session.begin(self.params or {})

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._running.epoch_begin()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._running.training.batch_begin()
        self.meter.step_began()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._running.batch_end(batch, logs)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._running.training.validation_begin()

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._running.validation_batch_end()

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._running.training.validation_end()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._running.epoch_end(epoch, logs)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._running.end()
        self.session = None

    def raised(self, error: BaseException) -> None:
        """The fit ends by an exception; Keras calls no hook. See `watch_unwinding`."""
        session, self.session = self.session, None
        if session is not None:
            session.raised(error)

    @property
    def _running(self) -> Session:
        assert self.session is not None, "on_train_begin comes first"
        return self.session
