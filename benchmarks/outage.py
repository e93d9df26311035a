"""How much slower a `fit` trains while its tracking server is away.

One fit after another, each with a server and a run of its own. At the end of the first
epoch the server is left alone, killed (connections are refused from then on), or stopped
(it accepts connections and never answers). Timed are the epochs from the third on, without
the wait at the end of `fit`; each epoch saves a checkpoint. Beside them the same fit without
any checkpoint says what the checkpoints cost.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import mlflow

from benchmarks import models, peers
from benchmarks.process import call, say
from benchmarks.results import Bar, Figure, Sample, rotated
from benchmarks.servers import serve
from mlflow_ckpt import Keep, MlflowCheckpoint, Spool

_SIGNALS: Mapping[str, signal.Signals | None] = {
    "the server answers": None,
    "it refuses connections": signal.SIGKILL,
    "it never answers": signal.SIGSTOP,
}
_PRESENT, *_AWAY = _SIGNALS
_PLAIN = "no checkpoints"
_WARM = 2


class _GoAway(keras.callbacks.Callback):
    """Send a signal to the server at the end of the first epoch, and time the later ones."""

    def __init__(self, group: int | None, sign: signal.Signals | None) -> None:
        super().__init__()
        self.group = group
        self.sign = sign
        self.began = self.ended = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == _WARM:
            self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ended = time.perf_counter()
        if epoch == 0 and self.sign is not None and self.group is not None:
            os.killpg(self.group, self.sign)

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def restore_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Nothing: it is never resumed."""


def collect(
    *, mib: float, epochs: int, steps: int, repeats: int, scratch: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Train once in each situation, `repeats` times, in turn."""
    rows = []
    names = [_PLAIN, *_SIGNALS]
    for turn in range(repeats):
        for name in rotated(names, turn):
            progress(f"round {turn + 1} of {repeats}: {name}")
            asked = {"name": name, "mib": mib, "epochs": epochs, "steps": steps}
            answer = call("benchmarks.outage:train", asked, scratch=scratch, progress=progress)
            rows.append({"name": name, **answer})
    return {"mib": mib, "epochs": epochs, "rows": rows}


def train(*, name: str, mib: float, epochs: int, steps: int, scratch: Path) -> dict[str, Any]:
    """Seconds of the epochs from the third on."""
    os.environ["MLFLOW_CKPT_SPOOL"] = str(scratch / "spool")
    model = models.mlp(mib)
    dataset = models.data(model, mib)
    if name == _PLAIN:
        away = _GoAway(None, None)
        models.fit(model, dataset, epochs=epochs, steps=steps, callbacks=[away])
        return {"seconds": away.ended - away.began}
    groups: list[int] = []
    with serve(scratch, workers=1, started=groups.append) as uri:
        experiment_id = peers.use_server(uri)
        run = mlflow.MlflowClient().create_run(experiment_id)
        away = _GoAway(groups[0], _SIGNALS[name])
        limit = 60.0 if _SIGNALS[name] is None else 0.0
        saver = MlflowCheckpoint(
            run_id=run.info.run_id,
            monitor=None,
            keep=Keep(last=2, best=None),
            spool=Spool(drain_timeout=limit),
        )
        say(f"training {epochs} epochs")
        models.fit(model, dataset, epochs=epochs, steps=steps, callbacks=[away, saver])
        if _SIGNALS[name] == signal.SIGSTOP:
            os.killpg(groups[0], signal.SIGCONT)
    return {"seconds": away.ended - away.began, "saves": saver.stats().saves}


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """The figure, from what `collect` returned."""
    roles: dict[str, Any] = {_PLAIN: "control", _PRESENT: "control"}
    samples = {
        name: Sample(
            role=roles.get(name, "ours"),
            unit="s",
            values=tuple(row["seconds"] for row in raw["rows"] if row["name"] == name),
        )
        for name in (_PLAIN, *_SIGNALS)
    }
    return [
        Figure(
            key="outage",
            title=f"{raw['epochs'] - _WARM} epochs, each with a checkpoint, by what the tracking "
            "server does",
            mib=raw["mib"],
            samples=samples,
            bars=[
                Bar(
                    text=f"{name} ÷ {_PRESENT}",
                    value=samples[name].median,
                    divisor=samples[_PRESENT].median,
                    limit=1.05,
                )
                for name in _AWAY
            ],
            notes=["The wait for the server at the end of `fit` is not part of these times."],
        )
    ]
