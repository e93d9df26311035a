"""A training that can be held at any batch, limited, and set back in time; for the fault tests.

    python fault_training.py '{"run_id": "...", "uri": "...", "pauses": ["3:1"]}'

The fields are those of `Plan`. Before the batch that a pause names (`epoch:batch`, both from 0)
the process writes `paused 3:1` to its standard output and waits for a line on its standard
input; so it does at `start`, when everything is imported. `fault_driver.py` talks to it.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import keras
import mlflow
from builders import fit, mlp

from mlflow_ckpt import Every, Keep, MlflowCheckpoint, lease
from mlflow_ckpt.interrupt import Interrupt
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.spool import Spool

SEED = 11


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one process does.

    Attributes:
        active: Whether the run is the active one; else only its ID is named.
        every: Batches from checkpoint to checkpoint; `None` saves each epoch.
        pauses: Where it waits for a line: `start`, or `epoch:batch`.
        batch_s: Added to each batch.
        lease_s: TTL and beat of the lease, in place of its own.
        drain_s: Seconds that the end of `fit` waits for the server.
        grace_s: See `Interrupt`.
        limits: Bytes that a file may have from an epoch on (from 0); -1 lifts it.
        closed: Epochs during which the journal's folders take no new file.
        plain_user: Whether an administrator gives up what lets one write anywhere.
    """

    run_id: str
    uri: str
    epochs: int = 6
    active: bool = False
    every: int | None = None
    pauses: list[str] = field(default_factory=list)
    batch_s: float = 0.0
    lease_s: tuple[float, float] | None = None
    drain_s: float = 60.0
    grace_s: float = 30.0
    limits: dict[str, int] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    plain_user: bool = False


class Faults(keras.callbacks.Callback):
    """What the plan does to this process while it trains."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        pause(self.plan, f"{self.epoch}:{batch}")
        if batch == 0:
            self._limit()
        time.sleep(self.plan.batch_s)

    def _limit(self) -> None:
        if (limit := self.plan.limits.get(str(self.epoch))) is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        if self.plan.closed:
            journal = Journal(Spool().folder() / self.plan.run_id / "ckpt")
            for folder in (journal.path, journal.path / "making"):
                folder.chmod(0o500 if self.epoch in self.plan.closed else 0o700)


def pause(plan: Plan, name: str) -> None:
    if name in plan.pauses:
        print(f"paused {name}", flush=True)
        sys.stdin.readline()


def train(plan: Plan, *callbacks: Any, **options: Any) -> keras.Model:
    """The training itself; the same one in every process."""
    keras.utils.set_random_seed(SEED)
    model = mlp()
    checkpoint = MlflowCheckpoint(
        run_id=plan.run_id,
        keep=Keep(last=2, best=1),
        save_freq=Every(steps=plan.every) if plan.every else "epoch",
        spool=Spool(drain_timeout=plan.drain_s),
        interrupt=Interrupt(grace_seconds=plan.grace_s),
        **options,
    )
    fit(model, checkpoint, Faults(plan), *callbacks, epochs=plan.epochs, batch_size=16)
    return model


def main(text: str) -> None:
    raw = json.loads(text)
    plan = Plan(**raw)
    mlflow.set_tracking_uri(plan.uri)
    if plan.lease_s is not None:
        ttl_s, beat_s = plan.lease_s
        shorten(ttl_s, beat_s)
    if plan.plain_user:
        obey_permissions()
    pause(plan, "start")
    began = time.monotonic()
    if plan.active:
        with mlflow.start_run(run_id=plan.run_id):
            train(plan)
            print(f"fit returned after {time.monotonic() - began:.2f} s", flush=True)
    else:
        train(plan)
        print(f"fit returned after {time.monotonic() - began:.2f} s", flush=True)
    left = [t.name for t in threading.enumerate() if t.name.startswith("mlflow-ckpt")]
    print(f"threads {left}", flush=True)


def obey_permissions() -> None:
    """Give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: folders are then closed to root as well.

    The kernel keeps capabilities by thread; those that begin later have them from this one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: twice 32 bits
    for call in (libc.capget, libc.capset):
        if call(header, sets) != 0:
            raise OSError(ctypes.get_errno(), "capabilities")
        sets[0] &= ~0b110


def shorten(ttl_s: float, beat_s: float) -> None:
    """Let the lease of this process live and beat faster, so that a test need not wait."""
    real = lease.Lease.__init__
    lease.Lease.__init__ = lambda self, *args, **kwargs: real(  # type: ignore[method-assign]
        self, *args, **{**kwargs, "ttl_s": ttl_s, "beat_s": beat_s}
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
