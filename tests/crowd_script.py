"""One of many processes on one server: trains a run, or reads the runs of others.

    python crowd_script.py <plan.json> <outcome.json>

    plan      role (train or read), runs (of which a trainer has one), seconds, seed
    outcome   how often it did what it does; an error ends it with a traceback

A checkpoint's weights say its epoch, and its score is a function of run and epoch, so that a
reader can tell what it got.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", TF_CPP_MIN_LOG_LEVEL="3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint
from mlflow_ckpt.errors import NoCheckpoints
from mlflow_ckpt.record import Checkpoint

EPOCH_S = 2.0


def score(run_id: str, epoch: int) -> float:
    """It rises slowly, so that the best one is pruned now and then, and falls in between."""
    return round(epoch + 20 * random.Random(f"{run_id} {epoch}").random(), 3)


class Say(keras.callbacks.Callback):
    """Write the epoch into the weights, and end when the time is over."""

    def __init__(self, run_id: str, seconds: float) -> None:
        super().__init__()
        self.run_id = run_id
        self.until = time.monotonic() + seconds

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.layers[-1].bias.assign([float(epoch + 1)])
        logs["score"] = score(self.run_id, epoch + 1)
        time.sleep(random.uniform(0.5, 1.5) * EPOCH_S)
        if time.monotonic() > self.until:
            self.model.stop_training = True


def build() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def train(run_id: str, seconds: float) -> Counter[str]:
    x = np.ones((32, 4), np.float32)
    checkpoint = MlflowCheckpoint(
        run_id=run_id, monitor="score", mode="max", keep=Keep(last=2, best=1)
    )
    callbacks = [Say(run_id, seconds), checkpoint]
    result = build().fit(x, x[:, :1], epochs=100_000, verbose=0, callbacks=callbacks)
    return Counter(epochs=len(result.epoch))


class Reader:
    """Looks at what the others write, and remembers what it saw."""

    def __init__(self, runs: list[str]) -> None:
        self.runs = runs
        self.model = build()
        self.best: dict[str, float] = {}
        self.latest: dict[str, int] = {}
        self.did: Counter[str] = Counter()

    def look(self, run_id: str) -> None:
        """Nothing that is committed is better than what `best` finds later."""
        try:
            before = ckpt.list_checkpoints(run_id)
            best, latest = ckpt.resolve(run_id, "best"), ckpt.resolve(run_id)
        except NoCheckpoints:
            assert run_id not in self.best, "there were some before"
            self.did["nothing yet"] += 1
            return
        if len(before):
            self._not_better(run_id, before["metrics.score"].max())
            self._not_newer(run_id, int(before["epoch"].max()))
        for found in (best, latest):
            self._is_itself(run_id, found)
        self._not_better(run_id, best.metrics["score"])
        self._not_newer(run_id, latest.epoch)
        for which in ("best", "latest"):
            loaded = ckpt.load_weights(self.model, run_id, which)
            self._is_itself(run_id, loaded)
            assert float(self.model.layers[-1].bias.numpy()[0]) == loaded.epoch
            assert not loaded.skipped, f"what was pruned is not damaged: {loaded.skipped}"
            if which == "best":
                self._not_better(run_id, loaded.metrics["score"])
            else:
                self._not_newer(run_id, loaded.epoch)
            self.did["loads"] += 1
        if self.did["loads"] % 10 == 0:
            model = ckpt.load_model(run_id, "best")
            assert score(run_id, int(model.layers[-1].bias.numpy()[0])) >= self.best[run_id]
            self.did["models"] += 1
        self.did["looks"] += 1

    def _is_itself(self, run_id: str, found: Checkpoint) -> None:
        assert found.metrics["score"] == score(run_id, found.epoch), found

    def _not_better(self, run_id: str, value: float) -> None:
        """What is seen now is at least as good as what was seen before."""
        before = self.best.get(run_id, value)
        assert value >= before, f"best of {run_id} was {before}, is {value}"
        self.best[run_id] = value

    def _not_newer(self, run_id: str, epoch: int) -> None:
        before = self.latest.get(run_id, epoch)
        assert epoch >= before, f"latest of {run_id} was {before}, is {epoch}"
        self.latest[run_id] = epoch


def read(runs: list[str], seconds: float, seed: int) -> Counter[str]:
    reader, dice = Reader(runs), random.Random(seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        reader.look(dice.choice(runs))
    return reader.did


def main(plan_path: str, outcome_path: str) -> None:
    plan = json.loads(Path(plan_path).read_text())
    if plan["role"] == "train":
        did = train(plan["runs"][0], plan["seconds"])
    else:
        did = read(plan["runs"], plan["seconds"], plan["seed"])
    Path(outcome_path).write_text(json.dumps(did))


if __name__ == "__main__":
    main(*sys.argv[1:])
