"""Say why a selector finds the checkpoint that it finds: what it looked at, in which order.

Nothing is read but the tracking server: whether the bytes are right, `verify` says.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlflow_ckpt.errors import NotFound
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.resolver import choose_series, find, ranking
from mlflow_ckpt.selector import Mode, Selector
from mlflow_ckpt.store import Store, Trace

_STATES = {
    "pending": "not committed: its upload runs, or was broken off",
    "failed": "not committed: the server refused it",
    "deleting": "being deleted",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One LoggedModel of the series, and what the selector made of it.

    Attributes:
        value: What it is ranked by: the metric of `best`, else the step.
        chosen: Whether it is the answer.
        verdict: Why it is, or is not.
    """

    name: str
    model_id: str
    kind: str
    epoch: int
    step: int
    value: float | None
    chosen: bool
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How a selector was answered.

    Attributes:
        run_id, series: Where it was looked for.
        selector: What was asked.
        rule: What decides, in words.
        chosen: The answer; `None` if nothing fits.
        problem: Why nothing fits, or empty.
        candidates: In the order of the rule; then those that cannot be chosen.
    """

    run_id: str
    series: str
    selector: str
    rule: str
    chosen: Checkpoint | None
    problem: str
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        chosen = self.chosen
        return {
            "run_id": self.run_id,
            "series": self.series,
            "selector": self.selector,
            "rule": self.rule,
            "chosen": None if chosen is None else chosen.name,
            "uri": None if chosen is None else chosen.uri,
            "problem": self.problem,
            "candidates": [asdict(candidate) for candidate in self.candidates],
        }


def explain(run_id: str, which: str | Selector = "latest") -> Explanation:
    """Resolve a selector, and say why it finds what it finds.

    Raises:
        SelectorError: If `which` cannot be read, or `best` has no monitor or direction.
        RunNotFound, RunDeleted, SeriesNotFound, NoCheckpoints: As `resolve`. That nothing
            fits is no error here: `problem` says it.
    """
    store, selector = Store(), Selector.parse(which)
    run = store.run(run_id)
    series = choose_series(run, selector)
    chosen, problem = None, ""
    try:
        chosen = find(store, run, selector, series)
    except NotFound as error:
        problem = str(error)
    metric, mode = ranking(selector, series) if selector.kind == "best" else (None, None)
    return Explanation(
        run_id=run.run_id,
        series=series.name,
        selector=str(selector),
        rule=_rule(selector, metric, mode),
        chosen=chosen,
        problem=problem,
        candidates=tuple(_candidates(store, run, series, selector, chosen, metric, mode)),
    )


def _rule(selector: Selector, metric: str | None, mode: Mode | None) -> str:
    if selector.kind == "best":
        which = {"min": "lowest", "max": "highest", None: "best"}[mode]
        return f"the {which} finite {metric}; of equal ones the latest step"
    if selector.kind == "latest":
        return "the highest step; of equal ones the one made last"
    if selector.kind == "final":
        return "what the model held when fit returned"
    return f"the one made last at {selector.kind} {selector.number}"


def _candidates(
    store: Store,
    run: Run,
    series: Series,
    selector: Selector,
    chosen: Checkpoint | None,
    metric: str | None,
    mode: Mode | None,
) -> Iterator[Candidate]:
    committed = store.checkpoints(run, series)
    able = [c for c in committed if _fits(c, selector) and _value(c, metric) is not None]
    sign = -1.0 if mode == "min" else 1.0
    order = {
        c.model_id: (sign * (_value(c, metric) or 0.0) if metric else 0.0, c.step, c.created_at)
        for c in committed
    }
    able.sort(key=lambda c: order[c.model_id], reverse=True)
    for checkpoint in able:
        yield _able(checkpoint, chosen, metric)
    known = {c.model_id for c in able}
    drawn = _drawn(store, run, series, metric)
    for checkpoint in sorted(committed, key=lambda c: order[c.model_id], reverse=True):
        if checkpoint.model_id not in known:
            known.add(checkpoint.model_id)
            yield _entry(checkpoint, None, False, _unfit(checkpoint, selector, metric, drawn))
    for trace in store.upkeep.traces(run, series):
        if trace.model_id not in known and trace.state != "true":
            yield _uncommitted(trace)


def _fits(checkpoint: Checkpoint, selector: Selector) -> bool:
    """Whether a committed checkpoint is of the sort that the selector asks for."""
    if selector.kind == "final":
        return checkpoint.final
    if selector.kind == "epoch":
        return checkpoint.epoch == selector.number and checkpoint.kind in ("epoch", "manual")
    if selector.kind == "step":
        return checkpoint.step == selector.number and checkpoint.kind != "final"
    return checkpoint.kind != "final"


def _value(checkpoint: Checkpoint, metric: str | None) -> float | None:
    return float(checkpoint.step) if metric is None else checkpoint.metrics.get(metric)


def _able(checkpoint: Checkpoint, chosen: Checkpoint | None, metric: str | None) -> Candidate:
    is_chosen = chosen is not None and checkpoint.model_id == chosen.model_id
    verdict = "chosen"
    if not is_chosen:
        verdict = "further back"
        if chosen is not None and _value(checkpoint, metric) == _value(chosen, metric):
            verdict = f"a tie with {chosen.name}, which " + (
                "has the later step" if checkpoint.step != chosen.step else "was made later"
            )
    return _entry(checkpoint, _value(checkpoint, metric), is_chosen, verdict)


def _entry(checkpoint: Checkpoint, value: float | None, chosen: bool, verdict: str) -> Candidate:
    return Candidate(
        name=checkpoint.name,
        model_id=checkpoint.model_id,
        kind=checkpoint.kind,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        value=value,
        chosen=chosen,
        verdict=verdict,
    )


def _drawn(store: Store, run: Run, series: Series, metric: str | None) -> Mapping[int, float]:
    """The run's curve of a metric: it has what no checkpoint may carry, such as NaN.

    A database keeps infinity as the largest number it has.
    """
    if metric is None:
        return {}
    return {step: row.value for step, row in store.rows(run, series.prefix + metric).items()}


def _unfit(
    checkpoint: Checkpoint, selector: Selector, metric: str | None, drawn: Mapping[int, float]
) -> str:
    if checkpoint.kind == "final" and selector.kind != "final":
        return "an end state: only final names it"
    if metric is None:
        return f"not {selector}"
    value = drawn.get(checkpoint.epoch) if checkpoint.kind == "epoch" else None
    if value is not None and not abs(value) < sys.float_info.max:
        shown = value if math.isnan(value) else math.copysign(math.inf, value)
        return f"its {metric} is {shown}, which is never best"
    return f"it has no {metric}"


def _uncommitted(trace: Trace) -> Candidate:
    verdict = _STATES.get(trace.state, f"not committed: ckpt.complete is {trace.state!r}")
    if trace.state == "corrupt":
        verdict = f"corrupt: {trace.reason}"
    return Candidate(
        name=trace.name,
        model_id=trace.model_id,
        kind=trace.kind,
        epoch=trace.epoch,
        step=trace.step,
        value=None,
        chosen=False,
        verdict=verdict,
    )
