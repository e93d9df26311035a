"""Decide where a `fit` begins: which fit of the series it is, and what to restore.

`restore.py` carries the plan out. Fits of a series are counted: `fit(epochs=10)` called
twice on one model makes fit 1 and fit 2, epochs 1..10 and 11..20. After a kill in the
second, the same script finds fit 1 complete and continues inside fit 2.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import keras

from mlflow_ckpt import state_schema, training_state
from mlflow_ckpt.errors import ResumeError, SeriesInUse
from mlflow_ckpt.ground import Ground
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.resume_option import Resume
from mlflow_ckpt.resume_point import choose, is_explicit
from mlflow_ckpt.store import Store


@dataclass
class Progress:
    """What this process did with one series.

    Attributes:
        model: The model it trained.
        fit: Number of the fit that began last.
        status: `running` until `fit` returns; a fit that raised stays `running`.
        behind: Whether the run holds a later fit than the ones repeated here so far.
        epoch, step, best: What the series has reached.
    """

    model: weakref.ref[keras.Model]
    fit: int
    status: Literal["running", "completed"] = "running"
    behind: bool = False
    epoch: int = 0
    step: int = 0
    best: float | None = None


_PROGRESS: dict[tuple[str, str, str], Progress] = {}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a `fit` begins.

    Attributes:
        fit: Which fit of the series this is, from 1.
        offset: Added to Keras's epoch number to get the epoch of the series.
        epoch, step: What the series has completed.
        best: Best finite monitor value so far.
        initial_epoch: The `initial_epoch` the user gave this fit when it first began.
        restore: The checkpoint to put into the model, or `None`.
        state: Its training state.
        finished: Whether there is nothing left to train.
        behind: Whether the run holds a later fit than this one.
        restart: Whether this fit begins anew at the end of the one before it.
        resumed: Whether this fit goes on inside itself, from a checkpoint of its own.
        inside: Batches of the first epoch that are trained already.
    """

    fit: int
    offset: int
    epoch: int
    step: int
    best: float | None = None
    initial_epoch: int = 0
    restore: Checkpoint | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = False
    behind: bool = False
    restart: bool = False
    resumed: bool = False
    inside: int = 0

    def is_behind(self, other: Plan) -> bool:
        """Whether `other`, of the same fit, stands at a later step."""
        return other.step > self.step

    def moved_to(self, other: Plan) -> Plan:
        """This plan, counting on from where `other` stands, with nothing to restore."""
        return replace(
            self,
            epoch=self.offset + other.epoch - other.offset,
            step=other.step,
            finished=other.finished,
            restore=None,
            inside=other.inside,
        )

    def keras_epoch(self, epochs: int) -> int | None:
        """The `initial_epoch` Keras needs: past the end where nothing is left to train."""
        if self.restart:
            return None
        reached = self.epoch - self.offset
        return max(reached, epochs) if self.finished else reached

    def describe(self, left: Sequence[str]) -> list[str]:
        """What is about to happen, in lines for a person; `left` found no place."""
        if self.finished:
            lines = [f"already complete at epoch {self.epoch}; nothing to train."]
        elif self.inside:
            lines = [
                f"continues in epoch {self.epoch + 1} after its batch {self.inside}, "
                f"step {self.step}."
            ]
        else:
            lines = [f"continues after epoch {self.epoch}, step {self.step}."]
            if self.state.get("kind") == "batch":
                trained = self.step - int(self.state["epoch_began_at"])
                lines.append(
                    f"the checkpoint was taken inside an epoch whose input cannot be continued; "
                    f"its first {trained} batches are trained again."
                )
        if left:
            lines.append(f"not restored, for want of a place in this fit: {', '.join(left)}.")
        return lines


def track(store: Store, run: Run, series: Series, model: keras.Model, begun: Plan) -> Progress:
    """Note that this process now writes the series."""
    progress = Progress(model=weakref.ref(model), fit=begun.fit, behind=begun.behind)
    _PROGRESS[(store.uri, run.run_id, series.name)] = progress
    return progress


def this_fit(
    store: Store, run: Run, series: str, model: keras.Model
) -> tuple[int, Progress | None]:
    """Number of the fit that begins now, and what this process did with the series before.

    Raises:
        SeriesInUse: If another model object has completed a fit of it in this process.
    """
    earlier = _PROGRESS.get((store.uri, run.run_id, series))
    if earlier is None:
        return 1, None
    if earlier.status == "running":
        return earlier.fit, earlier
    if earlier.model() is model:
        return earlier.fit + 1, earlier
    raise SeriesInUse(
        f"Another model has already completed the series {series!r} of run {run.run_id} in this "
        f"process. A rebuilt model would mix two trainings: pass name='{series}2' for a series "
        "of its own, or start a new run."
    )


def plan(
    ground: Ground,
    series: Series,
    resume: Resume | None,
    fit: int,
    earlier: Progress | None,
    arguments: Mapping[str, Any],
    *,
    known: bool,
) -> Plan:
    """Decide where the fit begins; see the module's docstring.

    Args:
        arguments: `initial_epoch` and `epochs` of the running fit.
        known: Whether the run has this series at all; if not, nothing is searched.

    Raises:
        ResumeError: If the user's `initial_epoch` contradicts the run, or `resume=False`
            would write a second epoch 1 into it.
        NoCheckpoints, CheckpointNotFound: If an explicit selector finds nothing.
        IntegrityError: If what an explicit selector finds is damaged, or every checkpoint.
    """
    asked = int(arguments.get("initial_epoch", 0))
    if earlier is not None and earlier.status == "completed" and not earlier.behind:
        return _next_fit(fit, earlier, asked)
    run = ground.run
    newest = choose(ground, series, resume) if known or is_explicit(resume) else None
    if newest is None:
        return Plan(fit=fit, offset=0, epoch=asked, step=0, initial_epoch=asked)
    if resume is None:
        raise ResumeError(
            f"Run {run.run_id} already holds the series {series.name!r} up to epoch "
            f"{newest.epoch}, and resume=False would write its first epochs again. Start a new "
            f"run, or pass name='{series.name}2'."
        )
    state = training_state.read(ground.open(newest).files.get(training_state.PATH))
    state_schema.check_position(state, kind=newest.kind, epoch=newest.epoch, step=newest.step)
    if int(state["fit"]) < fit:
        broken_off = earlier is not None and earlier.status == "running"
        return _after_the_fit_before(newest, state, fit, asked, broken_off)
    return _inside(newest, state, fit, asked, int(arguments.get("epochs") or 0))


def _next_fit(fit: int, earlier: Progress, asked: int) -> Plan:
    return Plan(
        fit=fit,
        offset=earlier.epoch - asked,
        epoch=earlier.epoch,
        step=earlier.step,
        best=earlier.best,
        initial_epoch=asked,
    )


def _after_the_fit_before(
    newest: Checkpoint, state: Mapping[str, Any], fit: int, asked: int, broken_off: bool
) -> Plan:
    """This fit has no checkpoint yet: it begins where the one before it ended.

    If it was broken off in this process, the model holds half an epoch and goes back.
    """
    return Plan(
        fit=fit,
        offset=newest.epoch - asked,
        epoch=newest.epoch,
        step=newest.step,
        best=state["best"],
        initial_epoch=asked,
        restore=newest if broken_off else None,
        state=state,
        restart=broken_off,
    )


def _inside(
    newest: Checkpoint, state: Mapping[str, Any], fit: int, asked: int, epochs: int
) -> Plan:
    """Continue where the checkpoint stands, or find that nothing is left to do."""
    written, offset = int(state["fit"]), int(state["offset"])
    local = newest.epoch - offset
    if asked not in (0, int(state["initial_epoch"]), local):
        raise ResumeError(
            f"Run {newest.run_id} continues after epoch {local}, and fit was given "
            f"initial_epoch={asked}. Leave initial_epoch out: the run knows where it stopped."
        )
    stopped = bool(state["stop_training"]) and epochs <= int(state["epochs"])
    return Plan(
        fit=fit,
        offset=offset,
        epoch=newest.epoch,
        step=newest.step,
        best=state["best"],
        initial_epoch=int(state["initial_epoch"]),
        restore=newest,
        state=state,
        finished=written > fit or stopped or local >= epochs,
        behind=written > fit,
        resumed=written == fit,
    )
