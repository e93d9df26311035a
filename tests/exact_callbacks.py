"""Callbacks of the exact-resume matrix: those under test, one that watches and one that kills."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from doubles import Remembering
from exact_cells import Cell, Kill

from mlflow_ckpt.fingerprint import optimizers_of
from mlflow_ckpt.store import Store, _commit

CSV, RESULT, STATE = "log.csv", "result.json", "state.npz"
HOLD_S = 120.0


class Tally(keras.callbacks.Callback):
    """A user's own callback, whose author never thought of a resume.

    It adds what it counts to the epoch's logs, so that a wrong count shows in the curves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0
        self.begun: dict[int, int] = {}
        self.running = np.zeros(2)
        self.generator = np.random.default_rng(1)
        self.drawn: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begun[epoch] = self.begun.get(epoch, 0) + 1
        self.drawn.append(float(self.generator.random()))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        loss = next(iter(logs.values()))
        self.running = 0.9 * self.running + [loss, loss**2]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["tally"] = self.batches + sum(self.begun.values()) + self.drawn[-1]
        logs["running"] = float(self.running.sum())


class FirstMetric(Remembering):
    """Remembers what every model has."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(next(iter(logs.values())))


FACTS: Mapping[str, tuple[str, ...]] = {
    "EarlyStopping": ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    "FirstMetric": ("losses",),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "Tally": ("batches", "begun", "running", "drawn"),
}


def of_cell(cell: Cell, monitor: str, folder: Path) -> list[keras.callbacks.Callback]:
    """The other callbacks of a cell; for those that wait, no epoch improves on the first."""
    known = keras.callbacks
    csv = known.CSVLogger(str(folder / CSV))
    waiting = {"monitor": monitor, "mode": "min", "min_delta": 1e3}
    if cell.callbacks == "stopping":
        stopping = known.EarlyStopping(**waiting, patience=2, restore_best_weights=True)
        return [stopping, known.TerminateOnNaN()]
    if cell.callbacks == "plateau":
        return [known.ReduceLROnPlateau(**waiting, factor=0.5, patience=1), csv]
    if cell.callbacks == "schedule":
        return [known.LearningRateScheduler(lambda epoch, rate: rate * 0.8), csv]
    if cell.callbacks == "swap":
        return [known.SwapEMAWeights(swap_on_epoch=True), known.TerminateOnNaN()]
    squares = known.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(sq=epoch**2.0))
    return [Tally(), squares, FirstMetric(), csv]


def facts(callbacks: Iterable[keras.callbacks.Callback]) -> dict[str, Any]:
    """What the callbacks of `of_cell` say of themselves, as JSON."""
    return {
        f"{type(c).__name__}.{name}": _spell(getattr(c, name))
        for c in callbacks
        for name in FACTS.get(type(c).__name__, ())
    }


def _spell(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {_digest(value)}"
    if isinstance(value, list):
        return [_spell(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _spell(v) for k, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def variables(model: keras.Model) -> list[tuple[str, Any]]:
    """Everything that a batch can change: weights, seeds, metrics, optimizers; with paths."""
    found = [*model.variables, *model.metrics_variables]
    found += [v for _, optimizer in optimizers_of(model) for v in optimizer.variables]
    once = {id(v): v for v in found}
    return [(v.path, v) for v in once.values()]


def _digest(value: Any) -> str:
    return hashlib.blake2b(np.asarray(value).tobytes(), digest_size=6).hexdigest()


class Observer(keras.callbacks.Callback):
    """One that the checkpoints neither store nor restore."""

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Nothing: an observer of a resume must not come from the checkpoint."""


class Recorder(Observer):
    """Writes one line for each batch that this process trains: its number and all variables.

    Args:
        path: Of the file; a line is there once it is written, whatever comes after.
        step: Of the newest checkpoint, by which the batches are numbered on.
    """

    def __init__(self, path: Path, step: int) -> None:
        super().__init__()
        self.path = path
        self.step = step
        self.began = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.began = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += batch + 1 - self.began
        self.write(self.step)

    def write(self, step: int | str) -> None:
        now = [[path, _digest(variable)] for path, variable in variables(self.model)]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "variables": now}) + "\n")


class Killer(Observer):
    """SIGKILL to this process.

    Args:
        kill: Where.
        run_id: Whose checkpoints it waits for.
        steps: Batches of an epoch.
        epochs_before: Epochs that earlier fits of this script have.
        hold: Batches after which training waits for a kill in a write, which comes from another
            thread: where nothing is left to train, there is nothing to continue.
    """

    def __init__(
        self, kill: Kill, run_id: str, steps: int, epochs_before: int = 0, hold: int | None = None
    ) -> None:
        super().__init__()
        self.kill = kill
        self.run_id = run_id
        self.steps = steps
        self.before = epochs_before
        self.hold = hold
        self.epoch = -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch + self.before
        self._kill_if("boundary")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._kill_if("batch", batch >= self.kill.batch)
        if self.hold is not None and self.epoch * self.steps + batch >= self.hold:
            time.sleep(HOLD_S)
            raise AssertionError(f"no kill came within {HOLD_S:g} s")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._kill_if("end", batch + 1 >= self.steps)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._kill_if("validation")

    def _kill_if(self, place: str, due: bool = True) -> None:
        if due and self.kill.place == place and self.kill.epoch == self.epoch:
            if self.kill.settled:
                Store().run(self.run_id)  # Returns when what was handed over is committed.
            die()


def kill_while_writing(nth: int, *, published: bool) -> None:
    """Kill this process in the commit of the `nth` checkpoint that it writes.

    Args:
        published: Whether that happens when all but the last request is done, instead of
            before the first file is at its place.
    """
    part = "_seal" if published else "open_draft"
    real, count = getattr(_commit, part), 0

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            die()
        return real(*arguments)

    setattr(_commit, part, counted)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
