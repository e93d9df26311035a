"""The part of `testing` that runs inside the training process: record, and be killed.

It takes the place of the callback's tail, so that it sees what the next batch will see,
and what it kills is a process that has just done the checkpoint's own work.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from blake3 import blake3

from mlflow_ckpt import fingerprint
from mlflow_ckpt.store import Store
from mlflow_ckpt.tail import Tail
from mlflow_ckpt.trace import KILLED, PROBE, Fit, State, Task

_DIGEST = 16  # bytes: enough against chance, and a trace holds many


class ProbingTail(Tail):
    """The tail of a fit that also notes what every batch made of the model.

    Of several in one fit the first one records: all of them see the same model.
    """

    _records = False
    _fit: Fit | None = None

    @property
    def series(self) -> str:
        return self._options.name

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._records = self._tails[0] is self
        self._fit = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_batch_begin(batch, logs)
        if self._records and self._fit is None:
            self._begin()
            self._kill_if_due()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        before = self._running.training.counts.step
        super().on_train_batch_end(batch, logs)
        if self._records:
            after = self._running.training.counts.step
            _recorder().state("batch", self.series, after, after - before, self.model)
            self._kill_if_due()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        step = self._running.training.counts.step
        if self._records and self._fit is None:
            self._begin()
        super().on_train_end(logs)
        if self._fit is not None:
            _recorder().state("end", self.series, step, step - self._fit.step, self.model)

    @property
    def _tails(self) -> list[ProbingTail]:
        return [c for c in self.callbacks.callbacks if isinstance(c, ProbingTail)]

    def _begin(self) -> None:
        """Note where the fit begins: late, because series of one fit move to the newest one."""
        run = Store().run(self._options.run_id, settled=False)
        self._fit = Fit(
            series=self.series,
            members=tuple(tail.series for tail in self._tails),
            run_id=run.run_id,
            step=self._running.training.counts.step,
        )
        _recorder().fit(self._fit)

    def _kill_if_due(self) -> None:
        recorder = _recorder()
        if recorder.is_due and self._fit is not None:
            if not recorder.task.standing:
                _see_a_checkpoint(self._fit.run_id)
            recorder.kill()


def _see_a_checkpoint(run_id: str) -> None:
    """If the run has no checkpoint yet, wait for the one that may be on its way.

    A short training would otherwise be killed with nothing to resume from.
    """
    store = Store()
    run = store.run(run_id, settled=False)
    if not any(store.resume_point(run, series) for series in run.series.values()):
        store.run(run_id, settled=True)


class _Recorder:
    """Writes the trace of this process into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.task = Task.read(folder)
        self._folder = folder
        self._steps = dict(self.task.standing)
        self._paths: dict[str, list[str]] = {}
        self._file = (folder / f"trace-{os.getpid()}.jsonl").open("a", encoding="utf-8")

    @property
    def count(self) -> int:
        return sum(self._steps.values())

    @property
    def is_due(self) -> bool:
        """Whether to be killed now. A script that starts itself again is killed only once."""
        at = self.task.kill_at
        return at is not None and self.count >= at and not (self._folder / KILLED).exists()

    def fit(self, fit: Fit) -> None:
        self._steps[fit.series] = fit.step
        self._write({"kind": "fit", **vars(fit)})

    def state(self, kind: str, series: str, step: int, ran: int, model: keras.Model) -> None:
        self._steps[series] = step
        variables = _variables(model)
        state = State(
            series=series,
            step=step,
            count=self.count,
            ran=ran,
            weights=len(model.weights),
            digests=tuple(_digest(variable) for variable in variables),
        )
        line: dict[str, Any] = {"kind": kind, **vars(state)}
        paths = [str(variable.path) for variable in variables]
        if kind == "batch" and paths != self._paths.get(series):
            self._paths[series] = line["paths"] = paths
        self._write(line)

    def kill(self) -> None:
        """End this process as `kill -9` does, with everything noted so far on disk."""
        os.fsync(self._file.fileno())
        with (self._folder / KILLED).open("w", encoding="utf-8") as file:
            json.dump({"count": self.count}, file)
            file.flush()
            os.fsync(file.fileno())
        os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


@functools.cache
def _recorder() -> _Recorder:
    return _Recorder(Path(os.environ[PROBE]))


def _variables(model: keras.Model) -> Sequence[Any]:
    """Every variable once: weights, optimizers, then seeds and metrics."""
    found = {id(v): v for v in fingerprint.state_variables(model)}
    for variable in (*model.variables, *model.metrics_variables):
        found.setdefault(id(variable), variable)
    return list(found.values())


def _digest(variable: Any) -> str:
    array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    header = f"{array.dtype.name}{array.shape}".encode()
    hasher = blake3(header)
    hasher.update(array.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest(length=_DIGEST)
