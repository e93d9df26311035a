"""The life of one series in one running `fit`: begin, train, and leave nothing behind.

    begin -> training -> end -> leave          begin -> training -> raised or stopped -> leave

`training.py` follows what happens between the beginning and the end.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import keras

from mlflow_ckpt import keras_internals, neighbours, parts, resume
from mlflow_ckpt.drain import describe_left
from mlflow_ckpt.ending import Ending
from mlflow_ckpt.errors import CheckpointError
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.ground import Ground, reach
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.options import Options
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.resumption import Resumption
from mlflow_ckpt.say import say
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.stopping import Stopping
from mlflow_ckpt.store import Store
from mlflow_ckpt.training import Training
from mlflow_ckpt.writer import Writer

_FAREWELL_S = 5.0  # until the lease is given back


class Session:
    """One `fit` of one series of one run.

    Args:
        options: The callback's arguments.
        model: The model that is being trained.
        callbacks: The list that drives us.
        meter: Measures what the checkpoints cost.

    Attributes:
        fit_state: What the fit remembers; all of its sessions share it.
        stopping: What hears the signals; all of its sessions share it.
    """

    def __init__(
        self,
        options: Options,
        model: keras.Model,
        callbacks: keras.callbacks.CallbackList,
        meter: Meter,
    ) -> None:
        self._options = options
        self._meter = meter
        self._model = model
        self._callbacks = callbacks
        self._fit, self._thread = keras_internals.fit_id(), threading.get_ident()
        self.fit_state: FitState
        self.stopping = Stopping()
        self._ground: Ground | None = None
        self._lease: Lease | None = None
        self._resumption: Resumption | None = None
        self._writer: Writer | None = None
        self._training: Training | None = None
        self._left = False

    # --- begin ----------------------------------------------------------------

    def begin(self, params: Mapping[str, Any]) -> None:
        """Find the run, plan, restore. Called after every `on_train_begin`."""
        arguments = {**params, **keras_internals.fit_arguments()}
        try:
            self._start(self._prepare(arguments), arguments)
        except BaseException:
            self.leave()
            raise

    def _prepare(self, arguments: Mapping[str, Any]) -> Plan:
        """Find the run, claim the series, and plan."""
        options, store = self._options, Store()
        ground = reach(store, options.run_id, options.name, options.spool)
        self._ground, name = ground, options.name
        known = ground.run.series.get(name)
        self._series = known or parts.new_series(ground.run, name)
        self._lease = parts.new_lease(ground, options, self.where, self._is_needed)
        if ground.away is None:
            self._lease.acquire()
        fit, earlier = resume.this_fit(store, ground.run, name, self._model)
        plan = resume.plan(
            ground, self._series, options.resume, fit, earlier, arguments, known=known is not None
        )
        fresh = [other for other in self._others() if other.fresh]
        if fresh:
            self.fit_state, self.stopping = fresh[0].fit_state, fresh[0].stopping
        else:
            self.fit_state = parts.new_fit_state(self._model, self._callbacks)
        self._resumption = Resumption(ground, self._model, self.fit_state, options.resume)
        if options.interrupt.signals:
            self.stopping.listen()
        return plan

    def _start(self, plan: Plan, arguments: Mapping[str, Any]) -> None:
        """Restore, and make what follows the training."""
        options, ground = self._options, self.ground
        plan = neighbours.agree(plan, self._others(), self.where)
        if plan.restore is not None:
            epochs = int(arguments.get("epochs") or 0)
            plan = self.resumption.restore(plan, epochs, self.where)
            neighbours.overtake(plan, self._others())
        if self.fit_state.feed is not None:
            every = options.saves.every
            inside = every.steps is not None or every.seconds is not None
            self.fit_state.feed.watch(inside_epochs=inside, stops=options.interrupt.any)
        monitor = parts.new_monitor(options, self._series, plan, self._model, arguments)
        assert self._lease is not None, "it was claimed"
        self._writer = parts.new_writer(
            ground.store, ground.run, options, self._meter, ground.journal, self._lease
        )
        self._writer.deliver()
        self._saver = parts.new_saver(
            options, self._model, self.fit_state, plan, monitor, self._writer, self._meter,
            callbacks=self._callbacks.callbacks, arguments=arguments,
        )  # fmt: skip
        if plan.finished and plan.restore is not None:
            self._saver.remember(plan.restore)
        self._training = Training(
            options=options,
            model=self._model,
            fit_state=self.fit_state,
            meter=self._meter,
            run=ground.run,
            series=self._series,
            plan=plan,
            resumption=self.resumption,
            monitor=monitor,
            saver=self._saver,
            writer=self._writer,
            progress=resume.track(ground.store, ground.run, self._series, self._model, plan),
            arguments=arguments,
        )

    # --- what others see ------------------------------------------------------

    @property
    def ground(self) -> Ground:
        """Run and journal, once they are found."""
        assert self._ground is not None, "it has not begun"
        return self._ground

    @property
    def resumption(self) -> Resumption:
        """How it was continued, if it was."""
        assert self._resumption is not None, "it has not begun"
        return self._resumption

    @property
    def writer(self) -> Writer:
        """What writes its checkpoints, once it has begun."""
        assert self._writer is not None, "it has not begun"
        return self._writer

    @property
    def training(self) -> Training:
        """What follows the training, once it has begun."""
        assert self._training is not None, "it has not begun"
        return self._training

    @property
    def plan(self) -> Plan:
        """Where this fit of the series began."""
        return self.training.plan

    @property
    def run_id(self) -> str:
        return self.ground.run.run_id

    @property
    def where(self) -> str:
        """Run and series, in words."""
        return f"run {self.run_id}, series {self._series.name!r}"

    @property
    def grace_seconds(self) -> float:
        return self._options.interrupt.grace_seconds

    @property
    def fresh(self) -> bool:
        """Whether it has begun, and trained nothing yet."""
        return self._training is not None and not self._training.begun

    def follows(self, plan: Plan) -> bool:
        """Whether this session has begun in the same fit, from a checkpoint, as `plan` does."""
        return self.fresh and self.plan.resumed and plan.resumed

    def move(self, plan: Plan) -> None:
        """Count on from where `plan` stands."""
        self.resumption.withdraw()
        self.training.move(plan)

    def _every(self) -> list[Session]:
        """All sessions of the fit, in the order in which they are called."""
        return neighbours.sessions(self._callbacks, Session)

    def _others(self) -> list[Session]:
        return [other for other in self._every() if other is not self]

    # --- train ----------------------------------------------------------------

    def epoch_begin(self) -> None:
        if self.training.begun:
            self.training.epoch_begin(told=True)
            return
        every = self._every()
        before = every[: every.index(self)]
        self._first, self._last = not before, every[-1] is self
        self.training.epoch_begin(told=any(s.resumption.happened for s in before))

    def batch_end(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        if self.training.batch_end(batch, logs):
            self._stop_if_asked()

    def validation_batch_end(self) -> None:
        self._stop_if_asked()

    def epoch_end(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        if self._first:
            self.stopping.look()
        self.training.epoch_end(epoch, logs, stops=self.stopping.due)
        self._stop_if_due()

    def _stop_if_asked(self) -> None:
        """Stop here, with all other series of the fit, if a signal has asked for that."""
        if self._first:
            self.stopping.look()
        self._stop_if_due()

    def _stop_if_due(self) -> None:
        if self.stopping.due and self._last:
            self.stopping.stop(self._every())

    # --- end ------------------------------------------------------------------

    def end(self) -> None:
        """Record the state in which `fit` leaves the model. Called after every `on_train_end`.

        Raises:
            SaveFailed, StoreError: What has failed since the last save.
        """
        training = self.training
        keras_internals.clear_initial_epoch(self._model)
        self.resumption.release()
        self._meter.finish()
        self.writer.join_written()
        ending = Ending(self.ground, self._model, self._saver, self.writer, training.series)
        ending.settle(training, self.fit_state)
        limit = self._options.spool.drain_timeout
        delivered = ending.deliver(training.counts.step, limit, lambda: self.stopping.asked)
        if self.stopping.asked:
            self.stopping.stop(self._every())
        if not delivered:
            say(f"{self.where}: {describe_left(self.writer)}")
        self.leave(deliver=delivered)
        self.writer.join(_FAREWELL_S)
        self.stopping.obey()
        self.writer.raise_failures(last=True)

    # --- leaving --------------------------------------------------------------

    def save_now(self) -> None:
        self.training.save_now()

    def raised(self, error: BaseException) -> None:
        """The fit ends by an exception, on this thread: save what is whole, and leave.

        The model is whole between two batches. An epoch's end is no such place: some
        callbacks have acted in it, and others not.
        """
        if self._left:
            return
        if self._training is not None:
            if self._saves_after(error):
                try:
                    self.save_now()
                except CheckpointError as failure:
                    error.add_note(f"mlflow_ckpt: {failure}")
            self.writer.join_written()
        self.leave()

    def _saves_after(self, error: BaseException) -> bool:
        return (
            self._options.interrupt.exceptions
            and isinstance(error, Exception)
            and not isinstance(error, CheckpointError)
            and not keras_internals.raised_at_epoch_end(error)
        )

    def _is_needed(self) -> bool:
        """Whether the lease still is. A fit may end without a word: in Keras's own code."""
        if self._fit is None or keras_internals.is_on_stack(self._fit, self._thread):
            return True
        if not self._left:
            self.leave()
        return self._writer is not None and not self._writer.join(0)

    def leave(self, *, deliver: bool = True) -> None:
        """Leave nothing behind: in the model, on other threads, on the server. Safe to repeat.

        Args:
            deliver: Whether what waits is delivered, behind whatever comes next.
        """
        self._left = True
        keras_internals.clear_initial_epoch(self._model)
        if self._resumption is not None:
            self._resumption.release()
            self.stopping.hush()
        if self._ground is not None:
            self._ground.release()
        if self._writer is None:
            if self._lease is not None:
                self._lease.release()
        elif deliver:
            self._writer.leave()
        else:
            self._writer.stop()
