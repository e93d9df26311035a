"""Decide when a checkpoint is due and which ones to keep.

Everything here is a pure function of checkpoint facts: no clock, no MLflow,
no files. The callback asks the save policy; the writer obeys the keep policy.

    moment -> due() -> bool             history (any order) -> kept() -> set of keys

A step is one training batch of a series and an epoch one completed epoch; both
begin at 1. Seconds are those of a monotonic clock that the caller reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.selector import Mode

_MIN_NAMES = ("loss", "error", "mse", "mae", "rmse", "mape", "msle", "perplexity", "divergence")
_MAX_NAMES = ("acc", "accuracy", "auc", "precision", "recall", "f1", "iou", "r2", "dice")


def _positive(owner: str, field: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"Expected a whole number of at least 1. Received: {owner}({field}={value!r})"
        )


@dataclass(frozen=True, kw_only=True)
class Every:
    """Save at every `epochs`-th epoch, `steps`-th batch, or `seconds` after the last save.

    Of several triggers, each is obeyed. Epochs and steps count through resumes, so the
    same ones are saved whether or not the run was interrupted.

    Raises:
        ConfigError: If no trigger is given, or one is not positive.
    """

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        _positive("Every", "epochs", self.epochs)
        _positive("Every", "steps", self.steps)
        if self.seconds is not None and not (
            type(self.seconds) in (int, float) and 0 < self.seconds < math.inf
        ):
            raise ConfigError(
                f"Expected positive seconds. Received: Every(seconds={self.seconds!r})"
            )
        if self.epochs is None and self.steps is None and self.seconds is None:
            raise ConfigError(
                "Expected Every(epochs=), Every(steps=) or Every(seconds=). Received: Every()"
            )

    @classmethod
    def parse(cls, save_freq: str | int | Every) -> Every:
        """Read Keras's `save_freq`: `"epoch"`, a number of batches, or an `Every`.

        Raises:
            ConfigError: If it is none of these.
        """
        if isinstance(save_freq, Every):
            return save_freq
        if save_freq == "epoch":
            return cls(epochs=1)
        if isinstance(save_freq, int) and not isinstance(save_freq, bool):
            return cls(steps=save_freq)
        raise ConfigError(
            "Expected 'epoch', a number of batches, or Every(epochs= | steps= | seconds=). "
            f"Received: save_freq={save_freq!r}"
        )


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Keep the newest `last`, the `best` by the monitored metric, and every `every`-th epoch.

    Ties go to the later step. A checkpoint whose metric is missing or not finite is never
    best: divergence must not evict a good model. The newest one always stays, because a
    resume needs it. `None` switches a rule off.

    Raises:
        ConfigError: If a number is below 1.
    """

    last: int | None = 5
    best: int | None = 1
    every: int | None = None

    def __post_init__(self) -> None:
        _positive("Keep", "last", self.last)
        _positive("Keep", "best", self.best)
        _positive("Keep", "every", self.every)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The facts of one instant at which a checkpoint could be taken.

    Attributes:
        step: Batches completed in the series.
        previous_step: `step` at the previous instant that was asked about.
        epoch: Epochs completed in the series.
        epoch_ended: Whether an epoch has just ended.
        seconds: Time since the last save, or since training began.
    """

    step: int
    previous_step: int
    epoch: int
    epoch_ended: bool
    seconds: float


def due(every: Every, moment: Moment) -> bool:
    """Whether `every` asks for a checkpoint at `moment`.

    Steps may advance by more than one (`steps_per_execution`): a save is due when a
    multiple of `every.steps` was reached or passed.
    """
    if every.epochs and moment.epoch_ended and moment.epoch % every.epochs == 0:
        return True
    if every.steps and moment.step // every.steps > moment.previous_step // every.steps:
        return True
    return every.seconds is not None and moment.seconds >= every.seconds


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What the keep policy needs to know of one committed checkpoint."""

    key: str
    step: int
    epoch: int
    epoch_ended: bool
    created: int
    value: float | None = None
    protected: bool = False


def kept(history: Iterable[Candidate], keep: Keep | None, mode: Mode | None) -> set[str]:
    """Return the keys that `keep` keeps; `keep=None` keeps all."""
    return set(reasons(history, keep, mode))


def reasons(
    history: Iterable[Candidate], keep: Keep | None, mode: Mode | None
) -> dict[str, tuple[str, ...]]:
    """Why `keep` keeps what it keeps, by key: the rules `last`, `best`, `every`, `protected`."""
    ordered = sorted(history, key=lambda c: (c.step, c.created))
    if keep is None:
        return {c.key: ("all",) for c in ordered}
    rules: dict[str, list[Candidate]] = {"protected": [c for c in ordered if c.protected]}
    free = [c for c in ordered if not c.protected]
    rules["last"] = free[-(keep.last or 1) :]
    if keep.best and mode:
        rules["best"] = ranked(ordered, mode)[: keep.best]
    if keep.every:
        rules["every"] = [
            c for c in ordered if c.epoch_ended and c.epoch and c.epoch % keep.every == 0
        ]
    found: dict[str, tuple[str, ...]] = {}
    for rule, candidates in rules.items():
        for candidate in candidates:
            found[candidate.key] = (*found.get(candidate.key, ()), rule)
    return found


def ranked(history: Sequence[Candidate], mode: Mode) -> list[Candidate]:
    """Sort `history` best first; ties go to the later step, non-finite values drop out."""
    sign = 1.0 if mode == "min" else -1.0
    rows = [(c.value, c) for c in history if c.value is not None and math.isfinite(c.value)]
    return [c for value, c in sorted(rows, key=lambda r: (sign * r[0], -r[1].step, -r[1].created))]


def improves(value: float, best: float | None, mode: Mode) -> bool:
    """Whether `value` is finite and strictly better than `best`."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best if mode == "min" else value > best


def infer_mode(metric: str) -> Mode | None:
    """Guess the direction of a metric from its name, or return `None`.

    Used only where Keras itself cannot say (metrics of a user's own callback).
    """
    words = metric.lower().replace("/", "_").replace("-", "_").replace(" ", "_").split("_")
    if any(word in _MIN_NAMES for word in words):
        return "min"
    if any(word in _MAX_NAMES for word in words):
        return "max"
    return None
