"""Find the best checkpoint of all runs and series of an experiment.

    ckpt:/experiment/<name>/best(<metric>)  ->  a checkpoint, its run, and its name there

One search for each way in which the series spell the metric: the first series of a run logs
`val_loss`, a later one `<series>/val_loss`. What decides within a series decides here as well:
finite values only, and of equal ones the later step.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from urllib.parse import quote

from mlflow_ckpt import policy
from mlflow_ckpt.errors import (
    CheckpointError,
    MetricNotFound,
    NoCheckpoints,
    SelectorError,
    SeriesNotFound,
)
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.selector import Mode, Selector
from mlflow_ckpt.store import Ranked, Store


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The best checkpoint of an experiment.

    Attributes:
        selector: Names it within its run.
    """

    run: Run
    checkpoint: Checkpoint
    selector: Selector


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is ranked in an experiment, and how.

    Attributes:
        experiment: Its name.
        runs: Those that have a series, deleted ones left out.
        series: Those that take part, of every run.
        metric, mode: The ranking; `mode` is `None` if nobody knows it.
        only: The series that the selector names, if it does.
    """

    experiment: str
    runs: tuple[Run, ...]
    series: tuple[Series, ...]
    metric: str
    mode: Mode | None
    only: str | None

    def uri(self, mode: str) -> str:
        """What to type for this contest with another mode."""
        series = f"@{self.only}" if self.only else ""
        metric = quote(self.metric, safe="")
        return f"ckpt:/experiment/{quote(self.experiment, safe='')}/best({metric},{mode}){series}"


def best_across(store: Store, experiment: str, selector: Selector) -> Winner:
    """The best checkpoint of an experiment.

    Args:
        selector: `best`, with or without a metric, a mode and a series.

    Raises:
        NotFound: If there is no such experiment.
        NoCheckpoints, SeriesNotFound, MetricNotFound: If nothing there fits.
        SelectorError: If the series do not agree on a monitor or a direction, and none is given.
    """
    contest = _contest(store.across.runs(experiment), experiment, selector)
    found = _first(_leaders(store, contest, contest.mode), contest.mode) if contest.mode else None
    if found is None:
        raise _nothing(store, contest)
    within = replace(
        selector, metric=contest.metric, mode=contest.mode, series=found.checkpoint.series
    )
    return Winner(run=found.run, checkpoint=found.checkpoint, selector=within)


def _contest(runs: Sequence[Run], experiment: str, selector: Selector) -> Contest:
    series = [each for run in runs for each in run.series.values()]
    if not series:
        raise NoCheckpoints(
            f"No run of the experiment {experiment!r} holds checkpoints. Add MlflowCheckpoint() to "
            "the callbacks of fit."
        )
    taking_part = [s for s in series if selector.series in (None, s.name)]
    if not taking_part:
        raise SeriesNotFound(
            f"No run of the experiment {experiment!r} has a series {selector.series!r}. "
            f"There are: {', '.join(sorted({s.name for s in series}))}."
        )
    metric = selector.metric or _agreed_monitor(taking_part, experiment)
    return Contest(
        experiment=experiment,
        runs=tuple(runs),
        series=tuple(taking_part),
        metric=metric,
        mode=selector.mode or _agreed_mode(taking_part, metric),
        only=selector.series,
    )


def _agreed_monitor(series: Iterable[Series], experiment: str) -> str:
    monitors = sorted({s.monitor for s in series if s.monitor})
    if len(monitors) == 1:
        return monitors[0]
    recorded = f"different monitors: {', '.join(monitors)}" if monitors else "no monitor"
    example = f"best({quote(monitors[0], safe='')})" if monitors else "best(val_loss)"
    raise SelectorError(
        f"The series of the experiment {experiment!r} recorded {recorded}. Name a metric: "
        f"ckpt:/experiment/{quote(experiment, safe='')}/{example}"
    )


def _agreed_mode(series: Iterable[Series], metric: str) -> Mode | None:
    """The one direction that the series know for `metric`; `None` if they disagree."""
    known = {mode for s in series if (mode := s.direction(metric))}
    if not known:
        return policy.infer_mode(metric)
    return known.pop() if len(known) == 1 else None


def _leaders(store: Store, contest: Contest, mode: Mode) -> Iterator[tuple[float, Ranked]]:
    """Of each way to spell the metric, the checkpoints with the best value, and that value."""
    for prefix in sorted({s.prefix for s in contest.series}):
        ranked = _finite(store, contest, prefix, mode)
        first = next(ranked, None)
        if first is not None:
            yield first
            yield from takewhile(partial(_ties_with, first), ranked)


def _ties_with(first: tuple[float, Ranked], other: tuple[float, Ranked]) -> bool:
    return first[0] == other[0]


def _finite(
    store: Store, contest: Contest, prefix: str, mode: Mode
) -> Iterator[tuple[float, Ranked]]:
    for each in store.across.ranked(contest.runs, prefix, contest.metric, mode, contest.only):
        value = each.checkpoint.metrics.get(contest.metric, math.nan)
        # MLflow stores an infinite value as the largest finite one.
        if abs(value) < sys.float_info.max:
            yield value, each


def _first(leaders: Iterable[tuple[float, Ranked]], mode: Mode) -> Ranked | None:
    sign = -1.0 if mode == "min" else 1.0

    def rank(leader: tuple[float, Ranked]) -> tuple[float, int, int]:
        value, each = leader
        return sign * value, each.checkpoint.step, each.checkpoint.created_at

    best = max(leaders, key=rank, default=None)
    return best[1] if best else None


def _nothing(store: Store, contest: Contest) -> CheckpointError:
    """What is missing, the metric or its direction."""
    if contest.mode is None and _first(_leaders(store, contest, "min"), "min"):
        known = any(s.direction(contest.metric) for s in contest.series)
        return SelectorError(
            f"{'The series do not agree' if known else 'It is not known'} whether "
            f"{contest.metric!r} should be small or large. "
            f"Type {contest.uri('min')} or {contest.uri('max')}"
        )
    names = store.across.metrics(contest.runs, contest.only)
    near = difflib.get_close_matches(contest.metric, names, n=1)
    of = f"the series {contest.only!r} of " if contest.only else ""
    return MetricNotFound(
        f"No checkpoint of {of}the experiment {contest.experiment!r} has a finite "
        f"{contest.metric!r}. There are: {', '.join(sorted(names)) or 'no metrics'}."
        + (f" Did you mean 'best({near[0]})'?" if near else "")
    )
