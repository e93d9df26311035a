"""Start `fault_training.py`, hold it, let it go, and see what it did; and what a UI would show."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import mlflow
import numpy as np
from builders import weights
from fault_training import Plan, train
from mlflow import MlflowClient

from mlflow_ckpt import loader
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store

SCRIPT = Path(__file__).with_name("fault_training.py")
WAIT_S = 240.0
WHICH = ("latest", "best", "final")
# Of one attempt, as `ckpt.entry`, or of the hour: they differ from run to run.
VARYING = frozenset({"ckpt.entry", "ckpt.manifest_digest", "ckpt.bytes"})


@dataclass(frozen=True)
class Seen:
    """What there is to be seen of a run, wherever it was trained.

    Attributes:
        shown: See `shown`.
        checkpoints: Names of those that resolve, oldest first.
        weights: Of the model, by selector.
    """

    shown: dict[str, Any]
    checkpoints: list[str]
    weights: dict[str, list[Any]]


@cache
def undisturbed(epochs: int = 6) -> Seen:
    """A run with which nothing happens."""
    run_id = new_run()
    train(Plan(run_id=run_id, uri=mlflow.get_tracking_uri(), epochs=epochs))
    found = {name: weights(loader.load_model(run_id, name)) for name in WHICH}
    return Seen(shown(run_id), [c.name for c in verify(run_id)], found)


def assert_like(run_id: str, whole: Seen, *but: str, **ours: Any) -> None:
    """What the UI shows is what it shows of the other, and every byte is right.

    Args:
        but: Names in `shown` that are not compared.
        ours: What differs in these, and how.
    """
    expected, found = {**whole.shown, **ours}, shown(run_id)
    # What of the commits is measured is what `fit` lived to see of them.
    assert {"ckpt/skipped", "ckpt/stall_ms"} <= set(found["costs"]) <= set(expected["costs"])
    del found["costs"]
    for name in found.keys() - set(but):
        assert found[name] == expected[name], name
    assert [c.name for c in verify(run_id)] == whole.checkpoints
    assert_weights(run_id, whole, *WHICH)


def assert_weights(run_id: str, whole: Seen, *which: str) -> None:
    """Bit by bit, optimizers included."""
    for name in which:
        ours, theirs = weights(loader.load_model(run_id, name)), whole.weights[name]
        assert len(ours) == len(theirs)
        assert all(map(np.array_equal, ours, theirs)), name


def waiting(run_id: str) -> list[str]:
    """Kinds of the entries that wait for the server; `dropped` is a checkpoint without files."""
    journal = Journal(Spool().folder() / run_id / "ckpt")
    assert not journal.refused()
    return ["dropped" if entry.dropped else entry.kind for entry in journal.waiting()]


class Training:
    """A process that trains; killed at the end of its `with` block, if it still runs.

    Attributes:
        lines: What it printed so far.
    """

    def __init__(self, plan: Plan, **environment: str) -> None:
        self.lines: list[str] = []
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps(asdict(plan))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str, seconds: float = WAIT_S) -> re.Match[str]:
        """Wait for a line in which `pattern` is found."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {seconds} s:\n{self.text}") from None
            if line is None:
                raise AssertionError(f"it ended without {pattern!r}:\n{self.text}")
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def paused(self, name: str) -> None:
        self.until(f"^paused {name}$")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        assert self.ended() == -signal.SIGKILL, self.text

    def ended(self, seconds: float = WAIT_S) -> int:
        """Wait for its end; its exit code."""
        code = self._process.wait(seconds)
        self._reader.join()
        while not self._queue.empty():
            line = self._queue.get()
            if line is not None:
                self.lines.append(line)
        return code


def new_run() -> str:
    """A run that nobody has begun, in the experiment `tests`."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tests")
    found = experiment.experiment_id if experiment else client.create_experiment("tests")
    return str(client.create_run(found).info.run_id)


def verify(run_id: str) -> list[Checkpoint]:
    """Hold every byte of every checkpoint that resolves against its digest."""
    store = Store()
    run = store.run(run_id)
    found = [c for series in run.series.values() for c in store.checkpoints(run, series)]
    for checkpoint in found:
        with TemporaryDirectory() as folder:
            manifest = store.manifest(checkpoint, Path(folder))
            paths = [entry.path for entry in manifest.files]
            for file in store.fetch(checkpoint, manifest, paths, Path(folder)).values():
                file.close()
    return found


def shown(run_id: str) -> dict[str, Any]:
    """Everything that the UI shows of a run, but for times, IDs and what checkpoints cost."""
    client = MlflowClient()
    run = client.get_run(run_id)
    models = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'", max_results=500
    )
    names = {model.model_id: model.name for model in models}
    assert len(names) == len(set(names.values())), f"twice: {sorted(names.values())}"
    outputs = run.outputs.model_outputs if run.outputs else []
    assert len({o.model_id for o in outputs}) == len(outputs)
    return {
        "status": run.info.status,
        "tags": {
            key: re.sub(r"m-[0-9a-f]{32}", "m-", value)
            for key, value in run.data.tags.items()
            if not key.startswith("mlflow.") and not key.startswith("ckpt.lease")
        },
        "curves": {
            key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))
            for key in run.data.metrics
            if "ckpt/" not in key
        },
        "last values": {k: v for k, v in run.data.metrics.items() if "ckpt/" not in k},
        "costs": sorted(key for key in run.data.metrics if "ckpt/" in key),
        "models": {
            model.name: {
                "status": str(model.status),
                "tags": {k: v for k, v in model.tags.items() if k not in VARYING},
                "params": model.params,
                "type": model.model_type,
                "metrics": sorted((m.key, m.step, m.value) for m in model.metrics or []),
                "files": sorted(_files(client, model.model_id, "")),
            }
            for model in models
        },
        # A link outlives its model: those of models that are gone are counted nowhere.
        "links": sorted((names[o.model_id], o.step) for o in outputs if o.model_id in names),
        # The report is for people, and told once where a server refuses it.
        "artifacts": sorted(
            f.path
            for f in client.list_artifacts(run_id, "checkpoints")
            if not f.path.endswith((".history.json", "report.html", "checkpoints.json"))
        ),
    }


def _files(client: MlflowClient, model_id: str, folder: str) -> list[str]:
    found: list[str] = []
    for item in client.list_logged_model_artifacts(model_id, folder or None):
        found += _files(client, model_id, item.path) if item.is_dir else [item.path]
    return found
