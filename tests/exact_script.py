"""A cell of the exact-resume matrix as a process of its own, killed where the cell says.

python exact_script.py <tracking URI> <run ID> <cell> <attempt> <folder>
python exact_script.py --serve     jobs as JSON lines on stdin, what became of them on stdout

A server has imported everything and run no operation of TensorFlow, whose threads begin with
the first one: so it may fork, and a killed process costs no import. Attempts count from 0;
`reference` is the run that nobody kills.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import keras
import mlflow
import mlflow.pyfunc
import mlflow.store.tracking.sqlalchemy_store
import numpy as np
import tensorflow as tf
from builders import history
from exact_callbacks import (
    RESULT,
    STATE,
    Killer,
    Recorder,
    facts,
    kill_while_writing,
    of_cell,
    variables,
)
from exact_cells import CELLS, EPOCHS, SAMPLES, Cell
from exact_inputs import arguments
from exact_models import KINDS, VALIDATION, samples

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, keras_internals, loader, session
from mlflow_ckpt.ground import standing_here

LIMIT_S = 240.0

# What a process would import after its fork, each for itself.
PREPARED = [loader, session, tf]
for _module in pkgutil.iter_modules(keras_internals.__path__):
    PREPARED.append(importlib.import_module(f"{keras_internals.__name__}.{_module.name}"))
with suppress(ImportError):
    PREPARED.append(importlib.import_module("grain"))


class Attempt:
    """One process of one run of a cell."""

    def __init__(self, uri: str, run_id: str, cell: Cell, attempt: str, folder: Path) -> None:
        self.uri, self.run_id, self.cell, self.folder = uri, run_id, cell, folder
        kills = cell.kills if attempt != "reference" else ()
        number = int(attempt) if attempt != "reference" else 0
        self.kill = kills[number] if number < len(kills) else None
        self.log = folder / f"batches-{number}.jsonl"

    def run(self) -> None:
        mlflow.set_tracking_uri(self.uri)
        began = reached(self.run_id)
        self.log.write_text(json.dumps({"began": began}) + "\n", encoding="utf-8")
        keras.utils.set_random_seed(3)
        if self.kill is not None and self.kill.place == "write":
            kill_while_writing(self.kill.batch, published=self.cell.published)
        model, recorder = KINDS[self.cell.model].build(self.cell), Recorder(self.log, sum(began))
        with mlflow.start_run(run_id=self.run_id):
            fits = []
            for number, series in enumerate(self.cell.series):
                if number:
                    _tune(model, self.cell)
                fits.append(self._fit(model, recorder, series, number * EPOCHS))
        recorder.write("end")
        self._write(model, fits)

    def _fit(self, model: Any, recorder: Recorder, series: str, before: int) -> Any:
        cell, kind = self.cell, KINDS[self.cell.model]
        x, y = samples(cell, SAMPLES, seed=0)
        given = arguments(cell, x, y if kind.labels else None)
        if kind.labels:
            given["validation_data"] = samples(cell, VALIDATION, seed=1)
        ours = MlflowCheckpoint(
            save_freq=cell.save_freq,
            monitor=kind.monitor,
            mode="min",
            keep=None if cell.keep is None else Keep(last=cell.keep, best=1),
            name=series,
        )
        callbacks = of_cell(cell, kind.monitor, self.folder)
        place = {"first": 0, "middle": len(callbacks) // 2, "last": len(callbacks)}[cell.position]
        listed = [*callbacks[:place], ours, *callbacks[place:], recorder]
        if self.kill is not None:
            listed.append(Killer(self.kill, self.run_id, cell.steps, before, cell.hold))
        fitted = model.fit(**given, epochs=EPOCHS, verbose=cell.verbose, callbacks=listed)
        return {
            "history": fitted.history,
            "epoch": fitted.epoch,
            "facts": facts(callbacks),
        }

    def _write(self, model: keras.Model, fits: list[Any]) -> None:
        """What is held against the other run, and where to find the files of its checkpoints."""
        arrays = {f"{i}": np.asarray(v) for i, (_, v) in enumerate(variables(model))}
        np.savez(self.folder / STATE, **arrays)
        listed = ckpt.list_checkpoints(self.run_id)
        columns = ["series", "name", "kind", "epoch", "step", "is_best", "is_latest", "is_final"]
        tags = mlflow.get_run(self.run_id).data.tags
        result = {
            "fits": fits,
            "paths": [path for path, _ in variables(model)],
            "metrics": history(self.run_id),
            "checkpoints": listed[columns].to_dict("records"),
            "files": [
                mlflow.MlflowClient().get_logged_model(i).artifact_location
                for i in listed["model_id"]
            ],
            "tags": {k: v for k, v in tags.items() if k.startswith("ckpt.resume")},
        }
        (self.folder / RESULT).write_text(json.dumps(result, default=_plain), encoding="utf-8")


def reached(run_id: str) -> list[int]:
    """Step of the newest checkpoint of each series, on the server or waiting for it."""
    there = ckpt.list_checkpoints(run_id).groupby("series")["step"].max()
    here = standing_here(ckpt.Spool().open(), run_id)
    return [int(max(there.get(s, 0), here.get(s, 0))) for s in sorted({*there.index, *here})]


def _tune(model: keras.Model, cell: Cell) -> None:
    """Train other layers from here on, under another optimizer."""
    model.layers[0].trainable = False
    model.compile(optimizer=keras.optimizers.RMSprop(0.005), loss=model.loss, metrics=["accuracy"])


def _plain(value: Any) -> Any:
    return value.item()


def serve() -> None:
    """Fork a process for each line, and say of each what its end was."""
    running: dict[int, tuple[int, float]] = {}
    waiting, open_ = b"", True
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while open_ or running:
        if open_ and select.select([0], [], [], 0.02)[0]:
            data = os.read(0, 65536)  # Past Python's buffer, into which `select` cannot see.
            open_ = bool(data)
            *lines, waiting = (waiting + data).split(b"\n")
            for job in map(json.loads, lines):
                running[_forked(job)] = job["job"], time.monotonic() + LIMIT_S
        for pid in [pid for pid, (_, end) in running.items() if time.monotonic() > end]:
            os.kill(pid, signal.SIGKILL)
        pid, status = os.waitpid(-1, os.WNOHANG) if running else (0, 0)
        if pid:
            job, end = running.pop(pid)
            code = None if time.monotonic() > end else os.waitstatus_to_exitcode(status)
            sys.stdout.write(json.dumps({"job": job, "code": code}) + "\n")
            sys.stdout.flush()


def _forked(job: dict[str, Any]) -> int:
    """Start a process that runs the job; its output goes to a file beside its results."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        output = os.open(job["output"], os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        main(*job["arguments"])
        code = 0
    except BaseException:  # noqa: BLE001 (it is this process's end, and stands in its output)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(uri: str, run_id: str, cell: str, attempt: str, folder: str) -> None:
    os.chdir(folder)
    os.environ["MLFLOW_CKPT_SPOOL"] = str(Path(folder) / "spool")
    Attempt(uri, run_id, CELLS[cell], attempt, Path(folder)).run()


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        main(*sys.argv[1:])
